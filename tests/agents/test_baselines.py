"""The baselines: what each one trains, adapts and observes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor

import metarl
from metarl.agents.expert import Expert, ExpertConfig
from metarl.agents.pretrained import PretrainedConfig
from metarl.cli import main as cli
from metarl.core.config import EvaluationConfig, TrainerConfig
from metarl.core.episode import run_episodes
from metarl.core.errors import InputError
from metarl.core.evaluation import evaluate
from metarl.core.learner import Traits
from metarl.core.seeds import Purpose, Seeds, generator
from metarl.core.step_scale import STEP_SCALES, choose_step_scale
from metarl.envs.ant import AntDir
from metarl.envs.grid_nav import GoalCell, GridNav
from metarl.envs.half_cheetah import Direction, HalfCheetahDir
from metarl.envs.humanoid import HumanoidDir
from metarl.envs.locomotion import Direction as Angle
from metarl.envs.point_nav import PointNav
from metarl.gradients.adaptation import LEARNED_STEP_SIZE
from metarl.gradients.vectors import flatten, unflatten
from metarl.report.film import RenderedEnv
from metarl.rl.policy_gradient import AdaptivePolicy, PolicyBatch
from metarl.rl.rollout import RolloutCollector
from metarl.rl.task_in_observation import TaskInObservation
from metarl.rl.tasks import EnvTaskDistribution, unwrapped
from metarl.runs import registry
from metarl.runs.build import build
from metarl.runs.config import RunConfig, from_dict, resolve, to_dict
from metarl.runs.train import train

POINTS = PointNav(horizon=8)


def small(agent: str, task: Any = POINTS, name: str = "point-nav", **settings: Any) -> RunConfig:
    config = resolve(name, agent)
    given = {"hidden_sizes": (5,), "num_trajectories": 4, **settings}
    return dataclasses.replace(
        config,
        task=task,
        agent=dataclasses.replace(config.agent, **given),
        trainer=TrainerConfig(iterations=2, meta_batch_size=3, device="cpu", num_threads=1),
        evaluation=EvaluationConfig(num_tasks=4, num_adaptation_steps=2, controls=False),
    )


def double(learner: Any) -> Any:
    parameters = {name: value.double() for name, value in learner.parameters.items()}
    learner.load_state_dict({**learner.state_dict(), "parameters": parameters})
    return learner


def batch_of(learner: Any, trainer: Any, num_tasks: int = 3) -> PolicyBatch:
    tasks = trainer.distribution.sample(num_tasks, generator(3, 0, Purpose.TASKS))
    episodes = run_episodes(learner, trainer.collector, tasks, Seeds(3, 0, tuple(range(num_tasks))), num_steps=0)
    batch: PolicyBatch = episodes.query
    return batch


def test_pretrained_takes_the_trust_region_step_of_all_tasks_pooled() -> None:
    trainer = build(small("pretrained", curvature_every=1))
    learner = trainer.learner
    tasks = trainer.distribution.sample(3, generator(3, 0, Purpose.TASKS))
    episodes = run_episodes(learner, trainer.collector, tasks, Seeds(3, 0, (0, 1, 2)), num_steps=0)
    assert episodes.support == ()
    double(learner)
    query = episodes.query
    query = query._replace(**{n: v.double() for n, v in query._asdict().items() if v.is_floating_point()})
    episodes = dataclasses.replace(episodes, query=query, state=learner.begin(3))
    outer = learner.outer_problem(episodes)
    start = flatten(learner.parameters)
    policies = [learner.policy(learner.begin(3), task) for task in range(3)]

    def distribution(vector: Tensor, task: int) -> Any:
        given = unflatten(vector, learner.parameters)
        return torch.func.functional_call(policies[task], given, (query.observations[task],))

    def objective(vector: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for task in range(3):
            log_probs = distribution(vector, task).log_prob(query.actions[task])
            live = query.mask[task]
            total = (
                total + ((log_probs - query.log_probs[task]).exp() * query.advantages[task] * live).sum() / live.sum()
            )
        return total / 3

    def divergence(vector: Tensor) -> Tensor:
        kls = [distribution(start, task).kl(distribution(vector, task)) for task in range(3)]
        return torch.stack([(kl * mask).sum() / mask.sum() for kl, mask in zip(kls, query.mask, strict=True)]).mean()

    torch.testing.assert_close(outer.gradient(), torch.func.grad(objective)(start))
    direction = torch.randn(len(start), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    product = torch.func.grad(lambda vector: torch.func.grad(divergence)(vector) @ direction)(start)
    torch.testing.assert_close(outer.product(direction), product, rtol=1e-6, atol=1e-9)
    metrics = learner.meta_update(episodes)
    assert metrics["accepted"] == 1.0
    assert 0.0 < metrics["approx_kl"] <= learner.config.max_kl
    assert objective(flatten(learner.parameters)) > objective(start)


@pytest.mark.parametrize("agent", ["pretrained", "random-init"])
def test_the_first_test_step_is_whole_and_the_later_ones_are_scaled(agent: str) -> None:
    trainer = build(small(agent, inner_lr=0.3, later_step_scale=0.25))
    learner = trainer.learner
    assert learner.num_adaptation_steps == 0
    batch = batch_of(learner, trainer)
    state = learner.begin(3)
    for step, size in ((0, 0.3), (1, 0.075), (2, 0.075)):
        adapted = learner.adapt(state, batch, step=step)
        for task in range(3):
            one = {name: value[task] for name, value in state.items()}
            data = PolicyBatch(*(field[task] for field in batch))
            gradient = torch.func.grad(learner.inner_loss)(one, data)
            for name, value in adapted.items():
                torch.testing.assert_close(value[task], one[name] - size * gradient[name])


def test_zero_inner_steps_cannot_be_set() -> None:
    assert "num_adaptation_steps" not in to_dict(small("pretrained"))["agent"]
    assert from_dict(to_dict(small("pretrained"))).agent.num_adaptation_steps == 0
    with pytest.raises(InputError, match=r"agent\.num_adaptation_steps"):
        from_dict({**to_dict(small("pretrained")), "agent": {"num_adaptation_steps": 2}})
    with pytest.raises(TypeError):
        PretrainedConfig(estimator="dice")  # type: ignore[call-arg]


@pytest.mark.parametrize("agent", ["task-blind", "oracle"])
def test_what_never_adapts_stays_as_it_is(agent: str) -> None:
    trainer = build(small(agent))
    state = trainer.learner.begin(3)
    assert trainer.learner.adapt(state, batch_of(trainer.learner, trainer), step=0) is state
    before = flatten(trainer.learner.parameters).clone()
    curve = trainer.run()
    assert curve is not None
    assert np.ptp(curve.mean) < 0.1 * abs(curve.mean[0])
    assert not torch.equal(flatten(trainer.learner.parameters), before)


@pytest.mark.parametrize("agent", ["random-init", "expert"])
def test_what_is_not_trained_stays_as_it_was_drawn(agent: str) -> None:
    trainer = build(small(agent))
    before = flatten(trainer.learner.parameters).clone()
    trainer.run()
    assert torch.equal(flatten(trainer.learner.parameters), before)


def test_an_oracle_sees_its_task_at_the_end_of_every_observation(tmp_path: Path) -> None:
    config = small("oracle")
    trainer = build(config)
    assert trainer.learner.spaces.observation_size == 4
    tasks = trainer.distribution.sample(3, generator(0, 0, Purpose.TASKS))
    collector = trainer.collector
    data = collector.query(tasks, trainer.learner, trainer.learner.begin(3), Seeds.first(3))
    plain = RolloutCollector(POINTS, num_trajectories=4, num_threads=1)
    for task, seen, mask in zip(tasks, data.observations, data.mask, strict=True):
        live = seen[mask.bool()]
        assert torch.equal(live[:, 2:], torch.tensor([task.x, task.y]).expand(len(live), 2))
        assert torch.equal(seen[:, 0, :2], torch.zeros(len(seen), 2))
    assert plain.spaces.observation_size == 2
    report = train(config, tmp_path / "run")
    assert report is not None
    ways = json.loads((tmp_path / "run" / "paths.json").read_text())["tasks"][0]["ways"]
    assert np.asarray(ways[0][0]).shape[-1] == 2  # positions, without the task features
    assert metarl.load(tmp_path / "run").spaces.observation_size == 4
    robots = TaskInObservation(HalfCheetahDir()).make_vector_env(1, num_threads=1)
    assert isinstance(unwrapped(robots), RenderedEnv)  # an oracle can be filmed
    robots.close()


def test_task_features() -> None:
    assert HalfCheetahDir().task_features(Direction(-1)).tolist() == [-1.0]
    for family in (HumanoidDir(), AntDir(directions="any")):
        almost, none, back = (family.task_features(Angle(angle)) for angle in (2.0 * np.pi - 1e-3, 0.0, np.pi))
        np.testing.assert_allclose([none, back], [[1.0, 0.0], [-1.0, 0.0]], atol=1e-6)
        assert np.abs(almost - none).max() < 2e-3  # a full turn is no turn
    assert AntDir().task_features(Angle(np.pi)).tolist() == [np.float32(np.pi)]
    told = GridNav(size=3).task_features(GoalCell(2, 1))
    assert told.tolist() == [0.0] * 5 + [1.0] + [0.0] * 3
    for name in registry.TASKS:
        kind = registry.load_task(name)
        if issubclass(kind, EnvTaskDistribution):
            distribution = kind()
            tasks = distribution.sample(5, np.random.default_rng(0))
            features = [distribution.task_features(task) for task in tasks]
            assert len({len(row) for row in features}) == 1, name
            assert all(row.dtype == np.float32 and np.isfinite(row).all() for row in features)
            assert len({tuple(row) for row in features}) == len(set(map(str, tasks))), name


@dataclass(frozen=True)
class Named:
    """A task that is not a number."""

    name: str


class Pendulums(EnvTaskDistribution[Any]):
    """Gymnasium's own environments, stepped one by one."""

    horizon = 5

    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: str = "train") -> list[Any]:
        return [{"gravity": float(g), "more": (True, np.array([2.0]))} for g in rng.uniform(5.0, 10.0, num_tasks)]

    def make_env(self) -> gymnasium.Env[Any, Any]:
        return gymnasium.make("Pendulum-v1")

    def set_task(self, env: gymnasium.Env[Any, Any], task: Any) -> None:
        env.unwrapped.g = task["gravity"]  # type: ignore[attr-defined]


class Unnamed(Pendulums):
    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: str = "train") -> list[Any]:
        return [Named("left")] * num_tasks


def test_environments_of_gymnasium_tell_an_oracle_too() -> None:
    told = TaskInObservation(Pendulums())
    env = told.make_vector_env(2, num_threads=1)
    tasks = told.sample(2, np.random.default_rng(0))
    env.set_tasks(tasks)
    first, _ = env.reset(seed=[1, 2])
    second = env.step(np.zeros((2, 1), np.float32))[0]
    expected = np.array([[task["gravity"], 1.0, 2.0] for task in tasks], np.float32)
    assert np.array_equal(first[:, 3:], expected)
    assert np.array_equal(second[:, 3:], expected)
    assert env.single_observation_space.shape == (6,)
    env.set_tasks(tasks[::-1])  # takes effect at the next reset, here of one environment
    assert np.array_equal(env.step(np.zeros((2, 1), np.float32))[0][:, 3:], expected)
    again, _ = env.reset(options={"reset_mask": np.array([True, False])})
    assert np.array_equal(again[:, 3:], expected[[1, 1]])
    env.close()
    with pytest.raises(InputError, match="task_features"):
        TaskInObservation(Unnamed())


def test_the_experts_iteration_is_ppo_written_out() -> None:
    trainer = build(small("expert", num_epochs=3, inner_lr=0.02, clip_range=0.1))
    learner = trainer.learner
    batch = batch_of(learner, trainer)
    adapted = learner.adapt(learner.begin(3), batch, step=0)
    for task in range(3):
        policy = learner.policy(learner.begin(3), task)
        # beta1 = 0: torch's Adam without momentum
        optimizer = torch.optim.Adam(policy.parameters(), lr=0.02, betas=(0.0, 0.999), eps=1e-8)
        live = batch.mask[task].bool()
        for _ in range(3):
            log_probs = policy(batch.observations[task][live]).log_prob(batch.actions[task][live])
            ratio = (log_probs - batch.log_probs[task][live]).exp()
            advantages = batch.advantages[task][live]
            loss = -torch.minimum(ratio * advantages, ratio.clamp(0.9, 1.1) * advantages).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        for name, value in policy.named_parameters():
            torch.testing.assert_close(adapted[name][task], value.detach(), rtol=1e-4, atol=1e-5)
    later = build(small("expert", num_epochs=3, inner_lr=0.04, later_step_scale=0.5, clip_range=0.1)).learner
    for name, value in later.adapt(later.begin(3), batch, step=1).items():
        torch.testing.assert_close(value, adapted[name], rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match=r"agent\.num_epochs"):
        ExpertConfig(num_epochs=0)
    with pytest.raises(InputError, match=r"agent\.clip_range"):
        ExpertConfig(clip_range=0.0)


@pytest.mark.parametrize("agent", sorted(set(registry.AGENTS) - {"rl2", "expert", "task-blind", "oracle"}))
def test_a_step_scale_scales_the_test_time_steps_alone(agent: str) -> None:
    trainer = build(small(agent))
    learner = trainer.learner
    scaled = learner.with_step_scale(0.5)
    state = learner.begin(3)
    batch = learner.prepare(
        trainer.collector.support(
            trainer.distribution.sample(3, generator(3, 0, Purpose.TASKS)), learner, state, Seeds.first(3), step=0
        )
    )
    whole, half = learner.adapt(state, batch, step=0), scaled.adapt(scaled.begin(3), batch, step=0)
    moved = 0.0
    names = [name for name in learner.parameters if not name.startswith(LEARNED_STEP_SIZE)]
    for name in names:
        torch.testing.assert_close(half[name] - state[name], 0.5 * (whole[name] - state[name]), rtol=1e-4, atol=1e-6)
        moved += float((whole[name] - state[name]).abs().sum())
    moved += float(whole["context"].abs().sum()) if agent == "cavia" else 0.0
    assert moved > 0.0
    assert learner.adapt(state, batch, step=0).keys() == whole.keys()
    assert all(torch.equal(learner.adapt(state, batch, step=0)[name], whole[name]) for name in names)


def test_the_step_scale_is_chosen_on_validation_tasks() -> None:
    """Among the scales, 2 reaches the goal exactly, on tasks of the training split only."""
    asked: list[tuple[Sequence[Any], str]] = []

    class Distribution(PointNav):
        def all_tasks(self, split: Any = "test") -> Any:
            return None

        def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Any = "train") -> Any:
            tasks = super().sample(num_tasks, rng)
            asked.append((tasks, split))
            return tasks

    class Stub:
        traits = Traits(unit="gradient steps", step_size_can_scale=True)
        score_name, num_adaptation_steps = "return", 1

        def __init__(self, scale: float = 1.0) -> None:
            self.scale = scale

        def with_step_scale(self, factor: float) -> Stub:
            return Stub(self.scale * factor)

        def begin(self, num_tasks: int) -> Tensor:
            return torch.zeros(num_tasks)

        def prepare(self, data: Any) -> Any:
            return data

        def adapt(self, state: Tensor, support: Any, *, step: int) -> Tensor:
            return state + self.scale

        def score(self, state: Tensor, query: Any) -> Tensor:
            return -(state - 2.0).abs()

    class Data:
        num_tasks, num_steps, num_diverged = 5, 1, 0

        def success_rates(self) -> None:
            return None

    class Nothing:
        acts = True

        def support(self, *args: Any, **kwargs: Any) -> Data:
            return Data()

        query = support

    learner, scores = choose_step_scale(Stub(), Nothing(), Distribution(), num_tasks=5, num_steps=1)
    assert tuple(scores) == STEP_SCALES
    assert learner.scale == 2.0
    assert scores[2.0] == 0.0
    assert {split for _, split in asked} == {"train"}
    assert all(tasks == asked[0][0] for tasks, _ in asked)
    asked.clear()
    evaluate(Stub(), Nothing(), Distribution(), num_tasks=5, num_steps=1)
    assert [split for _, split in asked] == ["test"]
    stub = SimpleNamespace(traits=Traits(unit="gradient steps"))
    assert choose_step_scale(stub, Nothing(), Distribution())[0] is stub  # type: ignore[arg-type]


def test_metarl_evaluate_chooses_the_step_size_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = tmp_path / "run", tmp_path / "out.json"
    train(small("random-init", inner_lr=1e-3), run)
    assert cli.main(["evaluate", str(run), "--choose-step-size", "--json", str(out)]) == 0
    report = json.loads(out.read_text())
    assert list(report["validation"]) == ["0.25", "0.5", "1.0", "2.0", "4.0", "8.0"]
    assert report["validation"][str(report["step_scale"])] == max(report["validation"].values())
    assert f"step size: {report['step_scale']:g} times the run's own" in capsys.readouterr().out
    chosen = choose_step_scale(
        metarl.load(run), RolloutCollector(POINTS, num_trajectories=4), POINTS, num_tasks=4, num_steps=2
    )
    assert {str(factor): score for factor, score in chosen[1].items()} == report["validation"]
    blind = tmp_path / "blind"
    train(small("task-blind"), blind)
    assert cli.main(["evaluate", str(blind), "--choose-step-size"]) == 2
    rl2 = tmp_path / "rl2"
    config = resolve("point-nav", "rl2")
    config = dataclasses.replace(
        config,
        agent=dataclasses.replace(config.agent, hidden_size=4, num_trajectories=2),
        trainer=TrainerConfig(iterations=1, meta_batch_size=2, device="cpu"),
        evaluation=EvaluationConfig(num_tasks=2, num_adaptation_steps=1, controls=False),
    )
    train(config, rl2)
    capsys.readouterr()
    assert cli.main(["evaluate", str(rl2), "--choose-step-size"]) == 2
    assert "--choose-step-size" in capsys.readouterr().err


def test_baselines_have_the_presets_of_maml_with_their_changes() -> None:
    baselines = [agent for agent in registry.AGENTS if registry.base_of(agent) == "maml"]
    assert baselines == ["random-init", "pretrained", "task-blind", "oracle", "expert"]
    for family in ("half-cheetah-dir", "point-nav", "ant-goal"):
        maml = resolve(family, "maml")
        for agent in baselines:
            assert registry.presets(family, agent) == registry.presets(family, "maml")
            config = resolve(family, agent)
            assert config.preset == "default"
            assert config.task == maml.task
            assert config.agent.hidden_sizes == maml.agent.hidden_sizes
            untrained = agent in ("random-init", "expert")
            assert config.trainer.iterations == (1 if untrained else 400)
            assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    assert resolve("half-cheetah-dir", "pretrained", preset="paper").agent.max_kl == 0.02
    assert resolve("grid-nav", "pretrained").preset == "default"
    alone = resolve("tabular-mdp", "expert")  # where MAML has no preset
    assert (alone.preset, alone.trainer.iterations, alone.evaluation.num_adaptation_steps) == (None, 1, 100)
    with pytest.raises(InputError, match="papr"):
        resolve("half-cheetah-dir", "oracle", preset="papr")
    assert issubclass(registry.load_agent("expert"), AdaptivePolicy)
    assert Expert.Config is ExpertConfig


@pytest.mark.slow
def test_the_oracle_finds_goals_that_the_task_blind_policy_cannot(tmp_path: Path) -> None:
    """grid-nav, with a best return of 11.07 for a known goal: measured 4.0 and -0.9 after 40 updates of 3,000 steps."""
    means = {}
    for agent in ("task-blind", "oracle"):
        config = resolve("grid-nav", agent)
        config = dataclasses.replace(
            config,
            trainer=dataclasses.replace(config.trainer, iterations=40, meta_batch_size=10, device="cpu"),
            evaluation=EvaluationConfig(num_tasks=21, num_adaptation_steps=0, controls=False),
        )
        report = train(config, tmp_path / agent)
        assert report is not None
        means[agent] = report["mean"][0]
    assert means["oracle"] > 2.5
    assert means["task-blind"] < 0.0


@pytest.mark.slow
def test_the_expert_learns_a_task_from_nothing() -> None:
    """point-nav, 15 PPO iterations of 20 trajectories: measured -72 before, -8.2 after on the 40 goals."""
    config = resolve("point-nav", "expert")
    config = dataclasses.replace(
        config,
        trainer=TrainerConfig(iterations=1, meta_batch_size=1, device="cpu"),
        evaluation=EvaluationConfig(num_tasks=40, num_adaptation_steps=15, controls=False),
    )
    curve = build(config).run()
    assert curve is not None
    assert curve.mean[0] < -40.0
    assert curve.mean[-1] > -12.0
