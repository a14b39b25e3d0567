"""Reptile's updates against torch's own optimisers, plain autograd and hand-worked steps, in float64."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from metarl.agents.reptile import Reptile, ReptileConfig
from metarl.core.config import EvaluationConfig, TrainerConfig
from metarl.core.data import Episodes
from metarl.core.episode import ShuffledTasks
from metarl.core.errors import InputError
from metarl.core.learner import Spaces
from metarl.core.trees import tree_map
from metarl.envs.point_nav import PointNav
from metarl.gradients.adaptation import Parameters
from metarl.rl.policy_gradient import PolicyBatch
from metarl.rl.rollout import RolloutCollector
from metarl.runs.build import build
from metarl.runs.config import RunConfig, resolve

NUM_TASKS, NUM_STEPS = 3, 24
GAUSSIAN = Spaces(observation_size=3, action_size=2, discrete=False)
CATEGORICAL = Spaces(observation_size=3, action_size=4, discrete=True)
SPACES = pytest.mark.parametrize("spaces", [GAUSSIAN, CATEGORICAL], ids=["gaussian", "categorical"])


def make_learner(spaces: Spaces = GAUSSIAN, **settings: object) -> Reptile:
    config = ReptileConfig(**{"hidden_sizes": (5,), "activation": "tanh", "inner_updates": 3, **settings})  # type: ignore[arg-type]
    learner = Reptile(config, spaces, generator=torch.Generator().manual_seed(0))
    learner.load_state_dict(tree_map(lambda v: v.double() if v.is_floating_point() else v, learner.state_dict()))
    return learner


def make_batch(learner: Reptile, state: Parameters, seed: int) -> PolicyBatch:
    """Random observations and advantages; the policies of `state` give actions and log-probabilities."""
    rng = torch.Generator().manual_seed(seed)
    steps = (NUM_TASKS, NUM_STEPS)
    observations = torch.randn(*steps, 3, generator=rng, dtype=torch.float64)
    draw, shape = (torch.rand, steps) if learner.spaces.discrete else (torch.randn, (*steps, 2))
    acted, _ = learner.act(state, observations, draw(shape, generator=rng, dtype=torch.float64))
    mask = (torch.rand(steps, generator=rng) < 0.8).double()
    advantages = torch.randn(steps, generator=rng, dtype=torch.float64) * mask
    return PolicyBatch(
        observations=observations,
        actions=acted.actions,
        log_probs=acted.log_probs,
        advantages=advantages,
        mask=mask,
        starts=torch.zeros(steps, dtype=torch.int64),
        mean_return=advantages.sum(1),
        return_scale=torch.ones(NUM_TASKS, dtype=torch.float64),
    )


def make_episodes(learner: Reptile, seed: int = 0) -> Episodes[Parameters, PolicyBatch]:
    state = learner.begin(NUM_TASKS)
    support = []
    for step in range(learner.num_adaptation_steps):
        support.append(make_batch(learner, state, seed=100 * seed + step))
        state = learner.adapt(state, support[-1], step=step)
    query = make_batch(learner, state, seed=100 * seed + 99)
    tasks = tuple(range(NUM_TASKS))
    return Episodes(tasks, tasks, tuple(support), query, state, scores=(), num_steps=0, support_steps=())


def reference_loss(parameters: Parameters, batch: PolicyBatch, task: int) -> Tensor:
    """REINFORCE of one task, the policy written out: one tanh layer, torch's own distributions."""
    weights = {name.split(".", 1)[-1]: value for name, value in parameters.items()}
    hidden = torch.tanh(batch.observations[task] @ weights["layers.0.weight"].T + weights["layers.0.bias"])
    output = hidden @ weights["layers.1.weight"].T + weights["layers.1.bias"]
    if "log_std" in parameters:
        normal = torch.distributions.Normal(output, parameters["log_std"].exp())
        log_probs = torch.distributions.Independent(normal, 1).log_prob(batch.actions[task])
    else:
        log_probs = torch.distributions.Categorical(logits=output).log_prob(batch.actions[task])
    return -(log_probs * batch.advantages[task])[batch.mask[task] > 0].mean()


def leaves(parameters: Parameters) -> Parameters:
    return {name: value.clone().requires_grad_() for name, value in parameters.items()}


@SPACES
def test_inner_updates_and_meta_steps_equal_torchs_adam_and_a_mean(spaces: Spaces) -> None:
    """Three meta-updates with one torch optimiser per task; the mean of their moments goes to the next meta-update."""
    learner = make_learner(spaces, inner_lr=0.02, meta_step_size=0.8, schedule_iterations=4)
    carried: dict[str, tuple[Tensor, Tensor]] = {}
    for iteration in range(3):
        episodes = make_episodes(learner, seed=iteration)
        start = dict(learner.parameters)
        trained, optimizers = [], []
        for task in range(NUM_TASKS):
            parameters = leaves(start)
            optimizer = torch.optim.Adam(parameters.values(), lr=0.02, betas=(0.0, 0.999))
            for name, (count, second) in carried.items():
                first = torch.full_like(second, 7.0)  # has no effect
                value = {"step": count.clone(), "exp_avg": first, "exp_avg_sq": second.clone()}
                optimizer.state[parameters[name]] = value
            for batch in (*episodes.support, episodes.query):
                optimizer.zero_grad()
                reference_loss(parameters, batch, task).backward()
                optimizer.step()
            trained.append({name: value.detach() for name, value in parameters.items()})
            optimizers.append([optimizer.state[value] for value in parameters.values()])
        for number, name in enumerate(start):
            second = torch.stack([states[number]["exp_avg_sq"] for states in optimizers]).mean(0)
            carried[name] = (optimizers[0][number]["step"], second)
        metrics = learner.meta_update(episodes)
        share = 0.8 * (1.0 - iteration / 4)
        assert metrics["meta_step_size"] == pytest.approx(share)
        for name, value in learner.parameters.items():
            mean = torch.stack([parameters[name] for parameters in trained]).mean(0)
            torch.testing.assert_close(value, start[name] + share * (mean - start[name]), rtol=1e-9, atol=1e-12)
    state = learner.begin(2)
    assert state["num_steps"].tolist() == [9, 9]
    for name, (_, second) in carried.items():
        torch.testing.assert_close(state[f"second.{name}"], second.expand(2, *second.shape), rtol=1e-9, atol=1e-15)


def test_the_first_step_by_hand() -> None:
    """Without history, Adam's first step is the learning rate times the gradient's sign, whatever its size."""
    learner = make_learner(inner_updates=1, inner_lr=0.25, meta_step_size=0.5)
    before = dict(learner.parameters)
    episodes = make_episodes(learner)
    parameters = leaves(before)
    losses = [reference_loss(parameters, episodes.query, task) for task in range(NUM_TASKS)]
    learner.meta_update(episodes)
    for name, value in learner.parameters.items():
        signs = torch.stack(
            [torch.autograd.grad(loss, parameters[name], retain_graph=True)[0].sign() for loss in losses]
        )
        torch.testing.assert_close(value, before[name] - 0.5 * 0.25 * signs.mean(0), rtol=0, atol=1e-5)


def test_moments_are_carried_or_reset() -> None:
    carrying, resetting = make_learner(), make_learner(reset_moments=True)
    for learner in (carrying, resetting):
        learner.meta_update(make_episodes(learner))
    for name in carrying.parameters:
        assert bool((carrying.begin(1)[f"second.{name}"] > 0).any())
        assert not bool(resetting.begin(1)[f"second.{name}"].any())
        torch.testing.assert_close(carrying.parameters[name], resetting.parameters[name], rtol=0, atol=0)
    assert carrying.begin(1)["num_steps"].tolist() == [3]
    assert resetting.begin(1)["num_steps"].tolist() == [0]


def test_one_update_of_plain_descent_is_joint_training() -> None:
    learner = make_learner(inner_updates=1, inner_optimizer="sgd", inner_lr=0.2, meta_step_size=0.5)
    episodes = make_episodes(learner)
    assert episodes.support == ()
    parameters = leaves(dict(learner.parameters))
    optimizer = torch.optim.SGD(parameters.values(), lr=0.2 * 0.5)
    torch.stack([reference_loss(parameters, episodes.query, task) for task in range(NUM_TASKS)]).mean().backward()
    optimizer.step()
    learner.meta_update(episodes)
    for name, value in learner.parameters.items():
        torch.testing.assert_close(value, parameters[name].detach(), rtol=1e-10, atol=1e-12)


def test_several_updates_of_plain_descent() -> None:
    learner = make_learner(inner_optimizer="sgd", inner_lr=0.2)
    episodes = make_episodes(learner)
    for task in range(NUM_TASKS):
        parameters = leaves(dict(learner.parameters))
        optimizer = torch.optim.SGD(parameters.values(), lr=0.2)
        for batch in episodes.support:
            optimizer.zero_grad()
            reference_loss(parameters, batch, task).backward()
            optimizer.step()
        for name, value in parameters.items():
            torch.testing.assert_close(episodes.state[name][task], value.detach(), rtol=1e-10, atol=1e-12)


def test_the_schedule_falls_to_zero_and_the_last_iteration_still_learns() -> None:
    learner = make_learner(inner_updates=1, meta_step_size=2.0, schedule_iterations=4)
    sizes = [learner.meta_update(make_episodes(learner))["meta_step_size"] for _ in range(4)]
    assert sizes == pytest.approx([2.0, 1.5, 1.0, 0.5])
    assert learner.meta_step_size() == 0.0
    assert make_learner(meta_step_size=2.0).meta_step_size() == 2.0


def test_step_sizes_are_smaller_beyond_the_updates_of_meta_training() -> None:
    learner = make_learner(inner_lr=0.4, inner_updates=3, later_step_scale=0.5)
    assert learner.num_adaptation_steps == 2
    assert [learner.step_size(step) for step in range(5)] == [0.4, 0.4, 0.4, 0.2, 0.2]


def test_acting_uses_the_parameters_alone() -> None:
    learner = make_learner()
    episodes = make_episodes(learner)
    observations, noise = episodes.query.observations, torch.zeros(NUM_TASKS, NUM_STEPS, 2, dtype=torch.float64)
    acted, after = learner.act(episodes.state, observations, noise)
    assert after is episodes.state
    zeroed = {name: torch.zeros_like(v) if "second" in name else v for name, v in episodes.state.items()}
    assert torch.equal(acted.actions, learner.act(zeroed, observations, noise)[0].actions)
    module = learner.policy(episodes.state, 1).double()
    torch.testing.assert_close(module(observations[1]).mean, acted.actions[1], rtol=1e-5, atol=1e-6)


def test_state_round_trip_goes_on_with_the_same_bits() -> None:
    settings = {"schedule_iterations": 10}
    learner, fresh = make_learner(**settings), make_learner(**settings)
    learner.meta_update(make_episodes(learner))
    fresh.load_state_dict(learner.state_dict())
    sizes = [one.meta_update(make_episodes(one))["meta_step_size"] for one in (learner, fresh)]
    assert sizes[0] == sizes[1] < 1.0
    for name, value in learner.begin(1).items():
        assert torch.equal(value, fresh.begin(1)[name])


def test_a_loss_that_is_not_finite_shows() -> None:
    learner = make_learner()
    episodes = make_episodes(learner)
    broken = replace(episodes, query=episodes.query._replace(advantages=episodes.query.advantages * torch.nan))
    assert not math.isfinite(learner.meta_update(broken)["move_norm"])


class Recorder:
    """Collects, and records the tasks."""

    def __init__(self, collector: RolloutCollector) -> None:
        self.acts = True
        self.collector = collector
        self.met: list[list[object]] = []

    def support(self, tasks: list[object], *arguments: object, **settings: object) -> object:
        self.met.append(tasks)
        return self.collector.support(tasks, *arguments, **settings)  # type: ignore[arg-type]

    def query(self, tasks: list[object], *arguments: object) -> object:
        self.met.append(tasks)
        return self.collector.query(tasks, *arguments)  # type: ignore[arg-type]


def run_config(*, trainer: dict[str, int] | None = None, **agent: object) -> RunConfig:
    settings = {"hidden_sizes": (4,), "num_trajectories": 2, "inner_updates": 3, **agent}
    return RunConfig(
        task_name="point-nav",
        agent_name="reptile",
        preset=None,
        learner_class=Reptile,
        task=PointNav(horizon=4),
        agent=ReptileConfig(**settings),  # type: ignore[arg-type]
        trainer=TrainerConfig(**{"iterations": 1, "meta_batch_size": 4, "device": "cpu", **(trainer or {})}),  # type: ignore[arg-type]
        evaluation=EvaluationConfig(num_tasks=2, controls=False),
    )


@pytest.mark.parametrize("shuffle", [True, False])
def test_shuffled_every_update_of_a_slot_meets_another_task(shuffle: bool) -> None:
    trainer = build(run_config(shuffle_tasks=shuffle))
    assert isinstance(trainer.collector, ShuffledTasks) is shuffle
    recorder: Any = Recorder(trainer.evaluation_collector)  # type: ignore[arg-type]
    trainer.collector = ShuffledTasks(recorder, num_steps=trainer.learner.num_adaptation_steps) if shuffle else recorder
    episodes = trainer.train_iteration().episodes
    assert len(recorder.met) == 3
    for met in recorder.met:
        assert sorted(map(str, met)) == sorted(map(str, episodes.tasks))  # every task has the same amount of data
    for slot in range(4):
        assert len({met[slot] for met in recorder.met}) == (3 if shuffle else 1)


def test_evaluation_is_never_shuffled() -> None:
    trainer = build(run_config(shuffle_tasks=True))
    assert isinstance(trainer.evaluation_collector, RolloutCollector)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("inner_updates", 0), ("inner_optimizer", "rmsprop"), ("meta_step_size", math.nan), ("schedule_iterations", 0)],
)
def test_a_bad_setting_is_named(setting: str, value: object) -> None:
    with pytest.raises(InputError, match=rf"^agent\.{setting} = {value!r}: must be "):
        ReptileConfig(**{setting: value})  # type: ignore[arg-type]


def test_a_run_beyond_the_schedule_or_with_too_few_tasks_to_shuffle_is_refused() -> None:
    with pytest.raises(InputError, match=r"^trainer.iterations = 6: must be at most agent.schedule_iterations = 5: "):
        build(run_config(schedule_iterations=5, trainer={"iterations": 6}))
    few = {"meta_batch_size": 2}
    with pytest.raises(InputError, match=r"^trainer.meta_batch_size = 2: must be at least agent.inner_updates = 3 "):
        build(run_config(shuffle_tasks=True, trainer=few))
    build(run_config(trainer=few))


@pytest.mark.slow
def test_it_learns_to_adapt_and_its_control_does_not() -> None:
    """Return after four updates at iteration 10, measured with seed 0: -11, of the control -39."""
    after = {}
    for preset in ("default", "shuffled"):
        config = resolve("point-nav", "reptile", preset=preset)
        trainer = build(replace(config, trainer=replace(config.trainer, device="cpu")))
        scalars = [trainer.train_iteration().scalars for _ in range(10)][-1]
        after[preset] = scalars["adapt/step_4"]
    assert after["default"] > -20.0
    assert after["shuffled"] < -30.0
