"""Evaluation with a learner whose every score is known: after k steps it stands at (1 - 2^-k) of the task's level."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from metarl.core.controls import adaptation_controls
from metarl.core.data import Trajectories
from metarl.core.episode import run_episodes
from metarl.core.errors import InputError
from metarl.core.evaluation import coverage, evaluate
from metarl.core.learner import ScoreName, Traits
from metarl.core.seeds import CONTROLS_ITERATION, EVALUATION_ITERATION, VALIDATION_ITERATION, Purpose, Seeds, generator
from metarl.core.tasks import Split, TaskDistribution
from metarl.envs.point_nav import PointNav
from metarl.fewshot.base.examples import ExampleCollector
from metarl.fewshot.data.sinusoid import Sinusoid
from metarl.rl.rollout import RolloutCollector


@dataclass(frozen=True)
class Level:
    value: float
    cost: int = 1


class Levels(TaskDistribution[Level]):
    """Levels 1 to 2; or a finite test split."""

    def __init__(self, *values: float) -> None:
        self.finite = [Level(value, cost) for cost, value in enumerate(values, start=1)]
        self.asked: list[tuple[int, Split]] = []

    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> list[Level]:
        self.asked.append((num_tasks, split))
        return [Level(float(value), 1 + i) for i, value in enumerate(rng.uniform(1.0, 2.0, num_tasks))]

    def all_tasks(self, split: Split = "test") -> list[Level] | None:
        return self.finite if self.finite and split == "test" else None


@dataclass(frozen=True)
class Data:
    levels: Tensor
    num_steps: int
    num_diverged: int = 0

    @property
    def num_tasks(self) -> int:
        return len(self.levels)

    def success_rates(self) -> None:
        return None

    def without_signal(self) -> Data:
        return replace(self, levels=torch.zeros_like(self.levels))


class Collector:
    def __init__(self, *, noise: float = 0.0, acts: bool = True) -> None:
        self.noise = noise
        self.acts = acts
        self.drawn: list[tuple[float, ...]] = []

    def support(self, tasks: Sequence[Level], learner: Any, state: Any, seeds: Seeds, *, step: int) -> Data:
        return self._draw(tasks, seeds.support(step))

    def query(self, tasks: Sequence[Level], learner: Any, state: Any, seeds: Seeds) -> Data:
        return self._draw(tasks, seeds.query())

    def _draw(self, tasks: Sequence[Level], rngs: Sequence[np.random.Generator]) -> Data:
        noise = [float(rng.normal()) for rng in rngs]
        self.drawn.append(tuple(noise))
        levels = [task.value + self.noise * value for task, value in zip(tasks, noise, strict=True)]
        return Data(torch.tensor(levels, dtype=torch.float64), sum(task.cost for task in tasks))


class Halving:
    """State: an estimate per task, which each step moves half-way to the support's level."""

    traits = Traits(unit="gradient steps")
    num_adaptation_steps = 1
    device = torch.device("cpu")
    parameters: Mapping[str, Tensor] = {}

    def __init__(self, *, start: float = 0.0, score_name: ScoreName = "return") -> None:
        self.start = start
        self.score_name = score_name

    def begin(self, num_tasks: int, *, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        return torch.full((num_tasks,), self.start, dtype=torch.float64)

    def prepare(self, data: Data) -> Data:
        return data

    def adapt(self, state: Tensor, support: Data, *, step: int, differentiable: bool = False) -> Tensor:
        return (state + support.levels) / 2

    def score(self, state: Tensor, query: Data) -> Tensor:
        error = state - query.levels
        return error.square() if self.score_name == "mse" else -error.abs()

    def meta_update(self, episodes: Any) -> dict[str, float]:
        raise AssertionError("evaluation must not train")

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...

    def to(self, device: torch.device | str) -> Halving:
        return self


class Repeater(Halving):
    """Scores each of three presentations: level, 2 * level, 3 * level."""

    traits = Traits(unit="presentations", support="shot")

    def score(self, state: Tensor, query: Data) -> Tensor:
        return query.levels[:, None] * torch.arange(1.0, 4.0)


@pytest.mark.parametrize("acts", [True, False])
def test_every_point_of_the_curve_is_the_score_after_so_many_steps(acts: bool) -> None:
    distribution = Levels()
    curve = evaluate(Halving(), Collector(acts=acts), distribution, num_tasks=5, num_steps=3)
    assert distribution.asked == [(5, "test")]
    assert (curve.unit, curve.score, curve.splits) == ("gradient steps", "return", "same distribution")
    levels = np.array([task.value for task in curve.tasks])
    np.testing.assert_allclose(curve.values[..., 0], -levels / 2.0 ** np.arange(4)[:, None], rtol=1e-12)
    np.testing.assert_allclose(curve.mean, -levels.mean() / 2.0 ** np.arange(4))


def test_without_adaptation_the_curve_is_one_point() -> None:
    curve = evaluate(Halving(), Collector(), Levels(), num_tasks=3, num_steps=0)
    assert curve.values.shape == (1, 3, 1)
    assert curve.env_steps == (0.0,)
    assert curve.to_json()["gain"] == {"mean": [0.0], "ci_low": [0.0], "ci_high": [0.0]}


@pytest.mark.parametrize(("score", "sign"), [("return", 1.0), ("accuracy", 1.0), ("mse", -1.0)])
@pytest.mark.parametrize("finite", [True, False])
def test_a_gain_is_positive_when_it_is_better(score: ScoreName, sign: float, finite: bool) -> None:
    curve = evaluate(Halving(), Collector(), Levels(2.0, 4.0) if finite else Levels(), num_tasks=4, num_steps=1)
    curve = replace(curve, score=score)
    rise = float((curve.values[1] - curve.values[0]).mean())
    assert rise > 0.0
    gain = curve.gain(1)
    assert gain[0] == sign * rise
    assert gain[1] <= gain[0] <= gain[2]
    if finite:
        assert [np.sign(curve.task_gain(1, task)[0]) for task in range(2)] == [sign, sign]


@pytest.mark.parametrize(("asked", "count"), [(1, 3), (3, 3), (7, 6), (40, 39)])
def test_how_many_episodes_are_taken_is_known_before(asked: int, count: int) -> None:
    family = Levels(1.0, 4.0, 2.0)
    curve = evaluate(Halving(), Collector(), family, num_tasks=asked, num_steps=0)
    taken, reason = coverage(family, asked)
    assert taken == count == curve.values[0].size
    assert bool(reason) == (asked != count)
    assert coverage(Levels(), asked) == (asked, "")


@pytest.mark.parametrize(
    ("tasks", "seeds", "said"),
    [
        (Level(1.0, 1), Seeds.first(1), "tasks = Level(value=1.0, cost=1): must be a list of tasks; write [task] for"),
        (0.5, Seeds.first(1), "tasks = 0.5: must be a list of tasks"),
        ({"goal": 1.0}, Seeds.first(1), "tasks = {'goal': 1.0}: must be a list of tasks"),
        (np.array(0.5), Seeds.first(1), "tasks = 0.5: must be a list of tasks"),
        ((0.5, -0.5), Seeds.first(1), "2 tasks and seeds of 1 slots; must be equal numbers. Write [task] for one task"),
        ([Level(1.0, 1)], 0, "seeds = 0: must be a metarl.Seeds with one slot per task: metarl.Seeds.first(1, seed=0)"),
        ([Level(1.0, 1)], [0], "seeds = [0]: must be a metarl.Seeds"),
    ],
)
def test_a_bare_task_or_seed_is_told_in_one_line(tasks: Any, seeds: Any, said: str) -> None:
    examples, drift = ExampleCollector(Sinusoid()), RolloutCollector(PointNav(), num_trajectories=1)
    calls: list[Any] = [
        lambda: run_episodes(Halving(), Collector(), tasks, seeds, num_steps=1),
        lambda: examples.support(tasks, Halving(), None, seeds, step=0),  # type: ignore[arg-type]
        lambda: examples.query(tasks, None, None, seeds),
        lambda: drift.support(tasks, None, None, seeds, step=0),  # type: ignore[arg-type]
        lambda: drift.query(tasks, None, None, seeds),  # type: ignore[arg-type]
    ]
    if "list of tasks" in said:
        calls.append(lambda: adaptation_controls(Halving(), Collector(), tasks))
        calls.append(lambda: evaluate(Halving(), Collector(), tasks))
    for call in calls:
        with pytest.raises(InputError) as raised:
            call()
        assert (said if "distribution" not in str(raised.value) else "a task distribution, not a task") in str(
            raised.value
        )


@pytest.mark.parametrize(("num_tasks", "replicates"), [(1, 1), (3, 1), (6, 2), (20, 6)])
def test_a_finite_family_is_covered_task_by_task(num_tasks: int, replicates: int) -> None:
    distribution, collector = Levels(1.0, 4.0, 2.0), Collector(noise=1.0)
    curve = evaluate(Halving(), collector, distribution, num_tasks=num_tasks, num_steps=1)
    assert curve.tasks == tuple(distribution.finite)
    assert distribution.asked == []
    assert curve.values.shape == (2, 3, replicates)
    assert len({*collector.drawn[0]}) == 3 * replicates  # every replicate has a luck of its own
    noise = np.reshape(collector.drawn[0], (3, replicates))
    np.testing.assert_allclose(curve.values[0], -np.abs(np.array([[1.0], [4.0], [2.0]]) + noise))


@pytest.mark.parametrize(
    ("score", "worst"), [("return", "Level(value=4.0, cost=2)"), ("mse", "Level(value=4.0, cost=2)")]
)
def test_the_worst_task_of_a_finite_family_is_named(score: ScoreName, worst: str) -> None:
    learner = Halving(score_name=score)
    curve = evaluate(learner, Collector(), Levels(1.0, 4.0, 2.0), num_tasks=6, num_steps=2)
    report = curve.to_json()
    assert report["higher_is_better"] is (score == "return")
    assert report["worst_task"] == worst
    assert report["per_task"][2] == ([-0.25, -1.0, -0.5] if score == "return" else [0.0625, 1.0, 0.25])
    assert report["worst_decile"][2] == (-1.0 if score == "return" else 1.0)


class FiniteBoth(Levels):
    def all_tasks(self, split: Split = "test") -> list[Level] | None:
        return self.finite


def test_validation_draws_from_a_training_split_with_more_tasks_than_asked_for() -> None:
    family = FiniteBoth(1.0, 2.0, 3.0)
    for num_tasks, covered in ((3, 3), (7, 3), (2, 2)):
        curve = evaluate(Halving(), Collector(), family, num_tasks=num_tasks, num_steps=1, split="train")
        assert len(curve.tasks) == covered
    assert family.asked == [(2, "train")]
    assert len(evaluate(Halving(), Collector(), family, num_tasks=2, num_steps=1).tasks) == 3


def test_steps_spent_are_averages_over_all_tasks_whatever_the_batches() -> None:
    for batch_size in (None, 2, 3):
        curve = evaluate(Halving(), Collector(), Levels(), num_tasks=5, num_steps=2, batch_size=batch_size)
        assert curve.env_steps == pytest.approx((0.0, 3.0, 6.0))  # tasks cost 1, 2, 3, 4 and 5 steps


@pytest.mark.parametrize("batch_size", [1, 2, 5, 7])
@pytest.mark.parametrize("distribution", [Levels(), Levels(1.0, 3.0)])
def test_the_batch_size_changes_no_value(batch_size: int, distribution: Levels) -> None:
    counts: list[tuple[int, int]] = []
    whole = evaluate(Halving(), Collector(noise=1.0), distribution, num_tasks=6, num_steps=2)
    parts = evaluate(
        Halving(),
        Collector(noise=1.0),
        distribution,
        num_tasks=6,
        num_steps=2,
        batch_size=batch_size,
        on_batch=lambda done, total: counts.append((done, total)),
    )
    np.testing.assert_array_equal(whole.values, parts.values)
    assert counts == [(min(done, 6), 6) for done in range(batch_size, 6 + batch_size, batch_size)]


def test_evaluation_is_repeatable_and_follows_its_seed() -> None:
    first, again, other = (
        evaluate(Halving(), Collector(noise=1.0), Levels(), num_tasks=4, num_steps=1, seed=seed) for seed in (0, 0, 1)
    )
    assert first.tasks == again.tasks
    np.testing.assert_array_equal(first.values, again.values)
    assert first.to_json() == again.to_json()
    assert not {*first.tasks} & {*other.tasks}
    assert not np.isclose(first.values, other.values).any()


def test_evaluation_meets_the_same_tasks_and_luck_whatever_was_trained() -> None:
    collectors = Collector(), Collector()
    curves = [
        evaluate(Halving(start=start), collector, Levels(), num_tasks=4, num_steps=2)
        for start, collector in zip((0.0, 5.0), collectors, strict=True)
    ]
    assert curves[0].tasks == curves[1].tasks
    assert collectors[0].drawn == collectors[1].drawn
    assert not np.array_equal(curves[0].values, curves[1].values)


def test_the_iterations_that_stand_for_evaluation_never_change() -> None:
    assert (EVALUATION_ITERATION, CONTROLS_ITERATION, VALIDATION_ITERATION) == (1_000_003, 1_000_004, 1_000_005)


def test_evaluation_uses_no_random_number_of_training() -> None:
    tested, distribution = Collector(), Levels()
    tasks = evaluate(Halving(), tested, distribution, num_tasks=4, num_steps=2, seed=3).tasks
    trained = Collector()
    for iteration in (*range(20), EVALUATION_ITERATION):
        drawn = distribution.sample(4, generator(3, iteration, Purpose.TASKS))
        assert not {*drawn} & {*tasks}
        run_episodes(Halving(), trained, drawn, Seeds.first(4, seed=3, iteration=iteration), num_steps=2)
    assert not {value for row in trained.drawn for value in row} & {value for row in tested.drawn for value in row}


def test_a_learner_that_scores_every_unit_of_one_pass_gives_a_row_per_unit() -> None:
    curve = evaluate(Repeater(), Collector(acts=False), Levels(), num_tasks=5, num_steps=1, batch_size=2)
    levels = np.array([task.value for task in curve.tasks])
    np.testing.assert_allclose(curve.values[..., 0], [levels, 2 * levels, 3 * levels])
    assert curve.env_steps == (0.0, 1.0, 2.0)
    assert curve.to_json()["steps"] == [0, 1, 2]


COMMON = {
    "schema_version", "unit", "score", "higher_is_better", "splits", "steps", "env_steps", "mean", "iqm",
    "worst_decile", "ci_low", "ci_high", "gain", "per_task", "tasks", "num_tasks", "num_replicates", "resampling",
}  # fmt: skip
FINITE = {"per_task_ci_low", "per_task_ci_high", "per_task_gain", "worst_task"}


@pytest.mark.parametrize("finite", [True, False])
def test_the_report_holds_the_whole_schema(finite: bool) -> None:
    distribution = Levels(1.0, 4.0, 2.0) if finite else Levels()
    curve = evaluate(Halving(), Collector(noise=0.5), distribution, num_tasks=12, num_steps=2)
    report = json.loads(json.dumps(curve.to_json(), allow_nan=False))
    assert report.keys() == COMMON | (FINITE if finite else set())
    num_tasks, replicates = (3, 4) if finite else (12, 1)
    assert (report["num_tasks"], report["num_replicates"]) == (num_tasks, replicates)
    assert report["resampling"] == ("replicates within task" if finite else "tasks")
    assert (report["schema_version"], report["steps"]) == (1, [0, 1, 2])
    assert report["tasks"] == [str(task) for task in curve.tasks]
    for key in ("env_steps", "mean", "iqm", "worst_decile", "ci_low", "ci_high"):
        assert len(report[key]) == 3, key
    assert {key: len(values) for key, values in report["gain"].items()} == {"mean": 3, "ci_low": 3, "ci_high": 3}
    per_task = [report["per_task"], *(report[key] for key in ("per_task_ci_low", "per_task_ci_high") if finite)]
    per_task += report["per_task_gain"].values() if finite else []
    assert all(np.shape(rows) == (3, num_tasks) for rows in per_task)
    np.testing.assert_allclose(report["per_task"], curve.values.mean(2))
    np.testing.assert_allclose(report["mean"], curve.values.mean((1, 2)))


class Trying(Collector):
    """Trajectories of one step; after k steps of adaptation the first 1 + k of every four are successes."""

    silent = False

    def support(self, tasks: Sequence[Level], learner: Any, state: Any, seeds: Seeds, *, step: int) -> Any:
        return self._try(tasks, 1 + step)

    def query(self, tasks: Sequence[Level], learner: Any, state: Any, seeds: Seeds) -> Any:
        return self._try(tasks, 4)

    def _try(self, tasks: Sequence[Level], count: int) -> Trajectories:
        one = torch.ones(len(tasks), 4, 1)
        success = (torch.arange(4) < count).expand(len(tasks), 4) & torch.tensor([[task.value < 9] for task in tasks])
        none = torch.zeros_like(success)
        return Trajectories(
            observations=one.unsqueeze(-1),
            actions=one.unsqueeze(-1),
            rewards=one,
            terminated=one > 0,
            truncated=one < 0,
            mask=one,
            log_probs=one,
            last_observations=one,
            diverged=none,
            state=None,
            success=None if self.silent and not success.any() else success,
        )


class Idle(Halving):
    def adapt(self, state: Tensor, support: Any, *, step: int, differentiable: bool = False) -> Tensor:
        return state

    def score(self, state: Tensor, query: Any) -> Tensor:
        return state


@pytest.mark.parametrize("batch_size", [None, 1, 3])
@pytest.mark.parametrize("silent", [False, True])
def test_success_is_a_curve_beside_the_score(batch_size: int | None, silent: bool) -> None:
    collector = Trying()
    collector.silent = silent  # reports success only where there was one
    curve = evaluate(Idle(), collector, Levels(1.0, 9.0), num_tasks=6, num_steps=3, batch_size=batch_size)
    assert curve.success is not None
    np.testing.assert_array_equal(curve.success[:, 0], [[0.25] * 3, [0.5] * 3, [0.75] * 3, [1.0] * 3])
    np.testing.assert_array_equal(curve.success[:, 1], 0.0)
    report = curve.to_json()
    assert report["success"] == [0.125, 0.25, 0.375, 0.5]
    assert report.keys() == COMMON | FINITE | {"success", "success_ci_low", "success_ci_high"}


@pytest.mark.parametrize("acts", [True, False])
def test_the_cross_adaptation_matrix_is_adapted_on_its_row_and_scored_on_its_column(acts: bool) -> None:
    tasks = [Level(1.0), Level(2.0), Level(4.0)]
    controls = adaptation_controls(
        Halving(start=1.0), Collector(acts=acts), tasks, num_replicates=3, num_steps=2, seed=5
    )
    adapted = {1.0: 1.0, 2.0: 1.75, 4.0: 3.25}
    assert controls["matrix"] == [[-abs(adapted[i.value] - j.value) for j in tasks] for i in tasks]
    assert controls["matrix_ci_low"] == controls["matrix_ci_high"] == controls["matrix"]
    assert controls["before"] == [0.0, -1.0, -3.0]
    assert controls["zero_reward"] == [-0.75, -1.75, -3.75]  # two steps half-way to zero
    assert controls["tasks"] == [str(task) for task in tasks]
    assert (controls["num_adaptation_steps"], controls["num_replicates"]) == (2, 3)
    json.dumps(controls, allow_nan=False)


def test_controls_take_the_learners_own_number_of_steps() -> None:
    controls = adaptation_controls(Halving(), Collector(), [Level(2.0)], num_replicates=1)
    assert controls["num_adaptation_steps"] == 1
    assert controls["matrix"] == [[-1.0]]


class OnlyQuery(Halving):
    def score(self, state: Tensor, query: Data) -> Tensor:
        return query.levels


def test_the_entries_of_a_column_share_their_querys_luck() -> None:
    tasks = [Level(1.0), Level(1.0, 2), Level(1.0, 3)]
    matrix = np.array(adaptation_controls(OnlyQuery(), Collector(noise=1.0), tasks, num_replicates=4)["matrix"])
    np.testing.assert_array_equal(matrix, matrix[[1, 2, 0]])
    assert len({*matrix[0].tolist()}) == 3
