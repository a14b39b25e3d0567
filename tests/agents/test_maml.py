"""MAML's outer step against finite differences, triple differentiation and its own definition, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from metarl.agents.fomaml import FOMAML
from metarl.agents.maml import MAML, AdaptedSurrogate, MAMLConfig
from metarl.core.data import Episodes
from metarl.core.episode import run_episodes
from metarl.core.learner import Spaces
from metarl.core.seeds import Purpose, Seeds, generator
from metarl.envs.half_cheetah import HalfCheetahDir
from metarl.envs.point_nav import PointNav
from metarl.gradients.adaptation import Parameters
from metarl.gradients.lifting import over_tasks
from metarl.gradients.vectors import flatten, unflatten
from metarl.rl.policy_gradient import PolicyBatch
from metarl.rl.rollout import RolloutCollector

NUM_TASKS, NUM_STEPS = 4, 30
GAUSSIAN = Spaces(observation_size=3, action_size=2, discrete=False)
CATEGORICAL = Spaces(observation_size=3, action_size=4, discrete=True)


def make_learner(spaces: Spaces, kind: type[MAML] = MAML, **settings: object) -> MAML:
    config = MAMLConfig(**{"hidden_sizes": (5,), "activation": "tanh", "inner_lr": 0.3, "chunk_steps": 60, **settings})  # type: ignore[arg-type]
    learner = kind(config, spaces, generator=torch.Generator().manual_seed(0))
    learner.load_state_dict({"parameters": {name: value.double() for name, value in learner.parameters.items()}})
    return learner


def make_batch(learner: MAML, state: Parameters, seed: int) -> PolicyBatch:
    """Random observations and advantages; the policies of `state` give actions and log-probabilities."""
    rng = torch.Generator().manual_seed(seed)
    observations = torch.randn(NUM_TASKS, NUM_STEPS, 3, generator=rng, dtype=torch.float64)
    shape = (NUM_TASKS, NUM_STEPS) if learner.spaces.discrete else (NUM_TASKS, NUM_STEPS, 2)
    draw = torch.rand if learner.spaces.discrete else torch.randn
    acted, _ = learner.act(state, observations, draw(shape, generator=rng, dtype=torch.float64))
    mask = (torch.rand(NUM_TASKS, NUM_STEPS, generator=rng) < 0.8).double()
    advantages = torch.randn(NUM_TASKS, NUM_STEPS, generator=rng, dtype=torch.float64) * mask
    starts, scale = torch.zeros_like(mask).long(), torch.ones_like(mask[:, 0])
    return PolicyBatch(observations, acted.actions, acted.log_probs, advantages, mask, starts, advantages.sum(1), scale)


def make_episodes(learner: MAML, num_steps: int) -> Episodes[Parameters, PolicyBatch]:
    state = learner.begin(NUM_TASKS)
    support = []
    for step in range(num_steps):
        support.append(make_batch(learner, state, seed=step))
        state = learner.adapt(state, support[-1], step=step)
    query = make_batch(learner, state, seed=99)
    return Episodes(
        tasks=tuple(range(NUM_TASKS)),
        slots=tuple(range(NUM_TASKS)),
        support=tuple(support),
        query=query,
        state=state,
        scores=(),
        num_steps=0,
        support_steps=(),
    )


def reference_distribution(parameters: Mapping[str, Tensor], observations: Tensor) -> torch.distributions.Distribution:
    """The policy written out: one tanh layer, torch's own distributions."""
    weights = {name.split(".", 1)[-1]: value for name, value in parameters.items()}
    hidden = torch.tanh(observations @ weights["layers.0.weight"].T + weights["layers.0.bias"])
    output = hidden @ weights["layers.1.weight"].T + weights["layers.1.bias"]
    if "log_std" not in parameters:
        return torch.distributions.Categorical(logits=output)
    return torch.distributions.Independent(torch.distributions.Normal(output, parameters["log_std"].exp()), 1)


def live_mean(values: Tensor, mask: Tensor) -> Tensor:
    return values[mask > 0].mean()


def reference_objectives(
    learner: MAML, episodes: Episodes[Parameters, PolicyBatch]
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Mean surrogate and mean KL as plain functions of the flat meta-parameters: one task at a time, plain autograd."""

    def of_task(batch: PolicyBatch, task: int) -> PolicyBatch:
        return PolicyBatch(*(field[task] for field in batch))

    def reinforce(parameters: Parameters, batch: PolicyBatch) -> Tensor:
        log_probs = reference_distribution(parameters, batch.observations).log_prob(batch.actions)
        return -live_mean(log_probs * batch.advantages, batch.mask)

    def adapted(vector: Tensor, task: int) -> Parameters:
        current = unflatten(vector, learner.parameters)
        for batch in episodes.support:
            names, values = list(current), list(current.values())
            loss = reinforce(current, of_task(batch, task))
            gradients = torch.autograd.grad(loss, values, create_graph=not learner.first_order)
            steps = [value - learner.config.inner_lr * g for value, g in zip(values, gradients, strict=True)]
            current = dict(zip(names, steps, strict=True))
        return current

    def mean_over_tasks(one_task: Callable[[Tensor, int], Tensor], vector: Tensor) -> Tensor:
        with torch.enable_grad():  # the inner loop needs gradients even under no_grad
            leaf = vector if vector.requires_grad else vector.clone().requires_grad_()
            mean = torch.stack([one_task(leaf, task) for task in range(NUM_TASKS)]).mean()
        return mean if vector.requires_grad else mean.detach()

    def task_surrogate(vector: Tensor, task: int) -> Tensor:
        batch = of_task(episodes.query, task)
        log_probs = reference_distribution(adapted(vector, task), batch.observations).log_prob(batch.actions)
        return live_mean((log_probs - batch.log_probs).exp() * batch.advantages, batch.mask)

    def task_kl(vector: Tensor, task: int) -> Tensor:
        batch = of_task(episodes.query, task)
        old = reference_distribution({name: value[task] for name, value in episodes.state.items()}, batch.observations)
        new = reference_distribution(adapted(vector, task), batch.observations)
        return live_mean(torch.distributions.kl_divergence(old, new), batch.mask)

    return partial(mean_over_tasks, task_surrogate), partial(mean_over_tasks, task_kl)


@pytest.mark.parametrize("spaces", [GAUSSIAN, CATEGORICAL], ids=["gaussian", "categorical"])
@pytest.mark.parametrize("num_steps", [1, 2])
class TestOuterStep:
    def test_gradient_equals_autograd_and_finite_differences(self, spaces: Spaces, num_steps: int) -> None:
        learner = make_learner(spaces, num_adaptation_steps=num_steps)
        episodes = make_episodes(learner, num_steps)
        surrogate, _ = reference_objectives(learner, episodes)
        gradient = learner.outer_problem(episodes).gradient()
        point = flatten(learner.parameters).requires_grad_()
        torch.testing.assert_close(gradient, torch.autograd.grad(surrogate(point), point)[0], rtol=1e-9, atol=1e-12)
        rng = torch.Generator().manual_seed(7)
        for _ in range(5):
            direction = torch.randn(point.shape, generator=rng, dtype=torch.float64)
            with torch.no_grad():
                numeric = (surrogate(point + 1e-6 * direction) - surrogate(point - 1e-6 * direction)) / 2e-6
            assert float(gradient @ direction) == pytest.approx(float(numeric), rel=1e-5, abs=1e-8)

    def test_product_equals_triple_differentiation_and_finite_differences(self, spaces: Spaces, num_steps: int) -> None:
        learner = make_learner(spaces, num_adaptation_steps=num_steps)
        episodes = make_episodes(learner, num_steps)
        _, kl = reference_objectives(learner, episodes)
        outer = learner.outer_problem(episodes)
        point = flatten(learner.parameters)
        hessian = torch.autograd.functional.hessian(kl, point)
        rng = torch.Generator().manual_seed(8)
        direction = torch.randn(point.shape, generator=rng, dtype=torch.float64)
        product = outer.product(direction)
        torch.testing.assert_close(product, hessian @ direction, rtol=1e-10, atol=1e-10)

        def kl_gradient(vector: Tensor) -> Tensor:
            moved = vector.detach().requires_grad_()
            return torch.autograd.grad(kl(moved), moved)[0]

        numeric = (kl_gradient(point + 1e-5 * direction) - kl_gradient(point - 1e-5 * direction)) / 2e-5
        torch.testing.assert_close(product, numeric, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("stride", [1, 3])
    def test_kl_and_its_gradient_vanish_and_curvature_is_positive(
        self, spaces: Spaces, num_steps: int, stride: int
    ) -> None:
        learner = make_learner(spaces, num_adaptation_steps=num_steps, curvature_every=stride)
        episodes = make_episodes(learner, num_steps)
        outer = learner.outer_problem(episodes)
        surrogate, kl = reference_objectives(learner, episodes)
        value, distance = outer.evaluate(flatten(learner.parameters))
        assert abs(distance) < 1e-10
        point = flatten(learner.parameters).requires_grad_()
        assert value == pytest.approx(float(surrogate(point.detach())), rel=1e-12)
        assert abs(float(kl(point.detach()))) < 1e-10
        assert float(torch.autograd.grad(kl(point), point)[0].abs().max()) < 1e-10
        rng = torch.Generator().manual_seed(9)
        for _ in range(20):
            direction = torch.randn(point.shape, generator=rng, dtype=torch.float64)
            assert float(direction @ outer.product(direction)) >= 0.0

    def test_the_update_improves_the_surrogate_within_the_trust_region(self, spaces: Spaces, num_steps: int) -> None:
        learner = make_learner(spaces, num_adaptation_steps=num_steps)
        episodes = make_episodes(learner, num_steps)
        surrogate, kl = reference_objectives(learner, episodes)
        before = flatten(learner.parameters)
        metrics = learner.meta_update(episodes)
        after = flatten(learner.parameters)
        gained = float(surrogate(after) - surrogate(before))
        assert metrics["surrogate_improvement"] == pytest.approx(gained, rel=1e-9)
        assert gained > 0.0
        assert metrics["approx_kl"] == pytest.approx(float(kl(after)), rel=1e-9)
        assert 0.0 < float(kl(after)) <= learner.config.max_kl


def test_first_order_leaves_the_hessian_out_and_nothing_else() -> None:
    first, full = (make_learner(GAUSSIAN, kind) for kind in (FOMAML, MAML))
    episodes = make_episodes(full, 1)
    outer = first.outer_problem(episodes)
    surrogate, kl = reference_objectives(first, episodes)
    point = flatten(first.parameters).requires_grad_()
    expected = torch.autograd.grad(surrogate(point), point)[0]
    torch.testing.assert_close(outer.gradient(), expected, rtol=1e-10, atol=1e-12)
    assert float((outer.gradient() - full.outer_problem(episodes).gradient()).norm()) > 1e-3
    direction = torch.ones_like(expected)
    fisher_only = torch.autograd.functional.hvp(kl, point.detach(), direction)[1]
    torch.testing.assert_close(outer.product(direction), fisher_only, rtol=1e-9, atol=1e-12)


def test_a_bad_step_leaves_the_parameters_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = make_learner(GAUSSIAN)
    episodes = make_episodes(learner, 1)
    before = dict(learner.parameters)
    monkeypatch.setattr(AdaptedSurrogate, "evaluate", lambda self, vector: (float("nan"), float("nan")))
    metrics = learner.meta_update(episodes)
    assert metrics["accepted"] == 0.0
    for name, value in learner.parameters.items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_a_non_finite_gradient_is_skipped_and_reported() -> None:
    learner = make_learner(GAUSSIAN)
    episodes = make_episodes(learner, 1)
    broken = replace(episodes, query=episodes.query._replace(advantages=episodes.query.advantages * torch.nan))
    before = dict(learner.parameters)
    metrics = learner.meta_update(broken)
    assert not math.isfinite(metrics["gradient_norm"])
    assert all(torch.equal(value, before[name]) for name, value in learner.parameters.items())


def test_log_probabilities_are_summed_and_of_the_unclipped_action() -> None:
    learner = make_learner(GAUSSIAN, initial_std=2.0)
    state = learner.begin(1)
    observations = torch.zeros(1, 1, 3, dtype=torch.float64)
    acted, _ = learner.act(state, observations, torch.full((1, 1, 2), 5.0, dtype=torch.float64))
    assert acted.actions.flatten().tolist() == pytest.approx([10.0, 10.0])
    expected = torch.distributions.Normal(0.0, 2.0).log_prob(torch.tensor(10.0, dtype=torch.float64)) * 2
    assert float(acted.log_probs) == pytest.approx(float(expected))


def test_categorical_actions_follow_their_probabilities() -> None:
    learner = make_learner(CATEGORICAL, hidden_sizes=())
    state = learner.begin(1)
    observations = torch.ones(1, 40_000, 3, dtype=torch.float64)
    noise = torch.rand(1, 40_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    acted, _ = learner.act(state, observations, noise)
    distribution = over_tasks(learner.distribution, state, observations)
    probabilities = distribution[0][0, 0].softmax(-1)
    frequencies = torch.bincount(acted.actions.flatten(), minlength=4) / 40_000
    torch.testing.assert_close(frequencies.double(), probabilities, atol=0.01, rtol=0)
    torch.testing.assert_close(acted.log_probs.exp().flatten(), probabilities[acted.actions.flatten()])


def test_test_time_steps_beyond_those_trained_are_halved() -> None:
    learner = make_learner(GAUSSIAN, inner_lr=0.4, num_adaptation_steps=2, later_step_scale=0.5)
    assert [learner.step_size(step) for step in range(4)] == [0.4, 0.4, 0.2, 0.2]


def test_prepare_masks_and_standardises_per_task() -> None:
    distribution = PointNav(horizon=20)
    collector = RolloutCollector(distribution, num_trajectories=6)
    learner = MAML(MAMLConfig(hidden_sizes=(8,)), collector.spaces, generator=torch.Generator().manual_seed(0))
    tasks = distribution.sample(3, generator(0, 0, Purpose.TASKS))
    data = collector.support(tasks, learner, learner.begin(3), Seeds.first(3), step=0)
    batch = learner.prepare(data)
    for task in range(3):
        live = batch.advantages[task][batch.mask[task] > 0]
        assert abs(float(live.mean())) < 1e-4
        assert abs(float(live.std(correction=0)) - 1.0) < 1e-3
    torch.testing.assert_close(batch.mean_return, (data.rewards * data.mask).sum((1, 2)) / 6)


def train(order: list[int], *, iterations: int = 2) -> tuple[MAML, list[Tensor]]:
    """A few iterations on half-cheetah-dir, the meta-batch taken in the given order of slots."""
    distribution = HalfCheetahDir(horizon=15, action_limit=10.0)
    collector = RolloutCollector(distribution, num_trajectories=3)
    learner = MAML(
        MAMLConfig(hidden_sizes=(16,), activation="tanh"), collector.spaces, generator=torch.Generator().manual_seed(3)
    )
    scores = []
    for iteration in range(iterations):
        tasks = distribution.sample(len(order), generator(5, iteration, Purpose.TASKS))
        seeds = Seeds(5, iteration, tuple(order))
        episodes = run_episodes(learner, collector, [tasks[slot] for slot in order], seeds, num_steps=1)
        learner.meta_update(episodes)
        assert episodes.slots == tuple(range(len(order)))
        scores.append(episodes.scores[-1])
    collector.close()
    return learner, scores


def test_reordering_the_meta_batch_changes_no_bit() -> None:
    plain, plain_scores = train([0, 1, 2, 3, 4, 5])
    mixed, mixed_scores = train([4, 2, 0, 5, 1, 3])
    for left, right in zip(plain_scores, mixed_scores, strict=True):
        assert torch.equal(left, right)
    for name, value in plain.parameters.items():
        assert torch.equal(value, mixed.parameters[name])


def test_one_seed_gives_the_same_bits_twice() -> None:
    first, first_scores = train([0, 1, 2, 3])
    second, second_scores = train([0, 1, 2, 3])
    assert all(torch.equal(left, right) for left, right in zip(first_scores, second_scores, strict=True))
    assert all(torch.equal(value, second.parameters[name]) for name, value in first.parameters.items())


def test_state_round_trip_and_a_misfit() -> None:
    learner, other = make_learner(GAUSSIAN), make_learner(GAUSSIAN, hidden_sizes=(6,))
    fresh = MAML(learner.config, GAUSSIAN, generator=torch.Generator().manual_seed(42))
    fresh.load_state_dict(learner.state_dict())
    assert all(torch.equal(value, fresh.parameters[name]) for name, value in learner.parameters.items())
    with pytest.raises(ValueError, match="do not fit"):
        other.load_state_dict(learner.state_dict())


def test_adapted_policy_as_a_module() -> None:
    learner = make_learner(GAUSSIAN)
    episodes = make_episodes(learner, 1)
    module = learner.policy(episodes.state, 2).double()
    observations = episodes.query.observations[2]
    expected = over_tasks(learner.distribution, episodes.state, episodes.query.observations)
    torch.testing.assert_close(module(observations).mean, expected[0][2], check_dtype=False, rtol=1e-5, atol=1e-6)
