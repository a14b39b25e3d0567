from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

from metarl.cli.progress import ProgressCallback
from metarl.core import trainer as trainer_module
from metarl.core.config import EvaluationConfig, TrainerConfig
from metarl.core.curve import AdaptationCurve
from metarl.core.data import Episodes, Examples
from metarl.core.evaluation import evaluate, own_steps
from metarl.core.learner import ScoreName, Traits
from metarl.core.scalars import curve_scalars
from metarl.core.seeds import Seeds
from metarl.core.tasks import Split, TaskDistribution
from metarl.core.trainer import Callback, Progressed, Trainer


@dataclass(frozen=True)
class Level:
    value: float


class Levels(TaskDistribution[Level]):
    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> list[Level]:
        return [Level(float(value)) for value in rng.normal(3.0, 1.0, num_tasks)]


class Collector:
    """One noisy example of each task's level."""

    acts = True

    def support(self, tasks: Sequence[Level], learner: Any, state: Any, seeds: Seeds, *, step: int) -> Examples:
        return self._draw(tasks, seeds.support(step))

    def query(self, tasks: Sequence[Level], learner: Any, state: Any, seeds: Seeds) -> Examples:
        return self._draw(tasks, seeds.query())

    def _draw(self, tasks: Sequence[Level], rngs: Sequence[np.random.Generator]) -> Examples:
        levels = [[task.value + rng.normal()] for task, rng in zip(tasks, rngs, strict=True)]
        return Examples(torch.zeros(len(tasks), 1), torch.tensor(levels))


class Guesser:
    """State: a guess per task. The meta-parameter is the first guess."""

    traits = Traits(unit="shots", support="shot")
    score_name: ScoreName = "return"
    num_adaptation_steps = 2
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.parameters: Mapping[str, Tensor] = {"guess": torch.zeros(())}

    def begin(self, num_tasks: int, *, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        return self.parameters["guess"].expand(num_tasks)

    def prepare(self, data: Examples) -> Examples:
        return data

    def adapt(self, state: Tensor, support: Examples, *, step: int, differentiable: bool = False) -> Tensor:
        return 0.5 * (state + support.targets[:, 0])

    def score(self, state: Tensor, query: Examples) -> Tensor:
        return -(state - query.targets[:, 0]).abs()

    def meta_update(self, episodes: Episodes[Tensor, Examples]) -> dict[str, float]:
        guess = 0.9 * self.parameters["guess"] + 0.1 * episodes.query.targets.mean()
        self.parameters = {"guess": guess}
        return {"guess": float(guess)}

    def state_dict(self) -> dict[str, Any]:
        return {**self.parameters}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.parameters = dict(state)

    def to(self, device: torch.device | str) -> Guesser:
        return self


class Recorder(Callback):
    def __init__(self, log: list[tuple[Any, ...]], name: str = "") -> None:
        self.log = log
        self.name = name
        self.rows: list[dict[str, float]] = []
        self.curves: list[AdaptationCurve] = []

    def on_start(self, trainer: Trainer) -> None:
        self.log.append((self.name, "start", trainer.iteration))

    def on_iteration(self, trainer: Trainer, progressed: Progressed) -> None:
        assert progressed.iteration == trainer.iteration
        self.log.append((self.name, "iteration", progressed.iteration))
        self.rows.append(progressed.scalars)

    def on_evaluation(self, trainer: Trainer, curve: AdaptationCurve) -> None:
        self.log.append((self.name, "evaluation", trainer.iteration))
        self.curves.append(curve)

    def on_end(self, trainer: Trainer) -> None:
        self.log.append((self.name, "end", trainer.iteration))


def make(*callbacks: Callback, iterations: int = 3, every: int = 0, **settings: Any) -> Trainer:
    return Trainer(
        Guesser(),
        Collector(),
        Levels(),
        TrainerConfig(iterations=iterations, meta_batch_size=4, **settings),
        EvaluationConfig(every=every, num_tasks=6, num_adaptation_steps=3),
        callbacks,
    )


def tick(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Lets `seconds` pass between any two looks at the trainer's clock; an iteration looks four times."""
    looks = iter(range(10**6))
    monkeypatch.setattr(trainer_module, "time", SimpleNamespace(monotonic=lambda: seconds * next(looks)))


def without_times(rows: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    return [{tag: value for tag, value in row.items() if not tag.startswith("time/")} for row in rows]


def test_callbacks_are_called_in_order() -> None:
    log: list[tuple[Any, ...]] = []
    make(Recorder(log, "a"), Recorder(log, "b"), iterations=2).run()
    events = [("start", 0), ("iteration", 1), ("iteration", 2), ("evaluation", 2), ("end", 2)]
    assert log == [(name, *event) for event in events for name in ("a", "b")]


@pytest.mark.parametrize(
    ("every", "iterations", "expected"),
    [(0, 3, [3]), (2, 5, [2, 4, 5]), (2, 4, [2, 4]), (1, 3, [1, 2, 3]), (9, 2, [2])],
)
def test_evaluations_come_every_so_often_and_once_at_the_end(every: int, iterations: int, expected: list[int]) -> None:
    log: list[tuple[Any, ...]] = []
    recorder = Recorder(log)
    curve = make(recorder, iterations=iterations, every=every).run()
    assert [iteration for _, kind, iteration in log if kind == "evaluation"] == expected
    assert curve is recorder.curves[-1]
    # An iteration is reported, and saved, before its evaluation: a kill in the evaluation loses nothing.
    assert all(log[log.index(("", "evaluation", at)) - 1] == ("", "iteration", at) for at in expected)


@pytest.mark.parametrize("hook", ["on_start", "on_iteration", "on_evaluation"])
def test_callbacks_end_also_when_one_of_them_fails(hook: str) -> None:
    class Failing(Callback):
        pass

    def fail(*_: Any) -> None:
        raise RuntimeError("disk full")

    setattr(Failing, hook, fail)
    log: list[tuple[Any, ...]] = []
    with pytest.raises(RuntimeError, match="disk full"):
        make(Recorder(log, "a"), Failing(), Recorder(log, "b")).run()
    at = {"on_start": 0, "on_iteration": 1, "on_evaluation": 3}[hook]
    assert log[-2:] == [("a", "end", at), ("b", "end", at)]


def test_stop_ends_after_the_present_iteration_and_evaluates() -> None:
    class Stopper(Callback):
        def on_iteration(self, trainer: Trainer, progressed: Progressed) -> None:
            if progressed.iteration == 2:
                trainer.stop()

    log: list[tuple[Any, ...]] = []
    trainer = make(Stopper(), Recorder(log), iterations=100)
    trainer.run()
    assert trainer.iteration == 2
    assert log[-3:] == [("", "iteration", 2), ("", "evaluation", 2), ("", "end", 2)]


def test_who_stops_without_an_evaluation_gets_none_when_time_runs_out_too() -> None:
    trainer = make(iterations=100)
    trainer.stop(evaluate=False)
    trainer.stop()
    assert trainer.run() is None


@pytest.mark.parametrize("start", [0, 10])
def test_time_runs_out_before_an_iteration_would_exceed_it(start: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tick(monkeypatch, 15.0)  # an iteration takes a minute
    log: list[tuple[Any, ...]] = []
    trainer = make(Recorder(log), iterations=100, every=1, max_minutes=3.5)
    trainer.iteration = start
    trainer.run()
    assert trainer.iteration == start + 3
    assert log[-3:] == [("", "iteration", start + 3), ("", "evaluation", start + 3), ("", "end", start + 3)]


def test_one_seed_gives_one_run_and_another_seed_another() -> None:
    rows, curves = [], []
    for seed in (0, 0, 1):
        recorder = Recorder([])
        curves.append(make(recorder, seed=seed).run().values)
        rows.append(without_times(recorder.rows))
    assert rows[0] == rows[1]
    assert all(ours != others for ours, others in zip(rows[0], rows[2], strict=True))
    np.testing.assert_array_equal(curves[0], curves[1])
    assert not np.isclose(curves[0], curves[2]).any()


def test_every_iteration_has_tasks_and_luck_of_its_own() -> None:
    class Watching(Collector):
        def __init__(self) -> None:
            self.luck: list[float] = []

        def query(self, tasks: Sequence[Level], learner: Any, state: Any, seeds: Seeds) -> Examples:
            data = super().query(tasks, learner, state, seeds)
            values = torch.tensor([[task.value] for task in tasks])
            self.luck.extend((data.targets - values).flatten().tolist())
            return data

    trainer = make(iterations=5)
    trainer.collector = watching = Watching()
    tasks = [task for _ in range(5) for task in trainer.train_iteration().episodes.tasks]
    assert len({*tasks}) == len(tasks) == 5 * 4
    assert len({round(value, 4) for value in watching.luck}) == 5 * 4


def test_an_update_may_take_gradients_even_if_users_code_has_switched_them_off() -> None:
    class Asking(Guesser):
        def meta_update(self, episodes: Episodes[Tensor, Examples]) -> dict[str, float]:
            return {**super().meta_update(episodes), "recording": float(torch.is_grad_enabled())}

    trainer = make()
    trainer.learner = Asking()
    with torch.no_grad():
        assert trainer.train_iteration().scalars["train/recording"] == 1.0


def test_a_run_in_two_parts_is_the_run_in_one() -> None:
    whole, parts = Recorder([]), Recorder([])
    make(whole, iterations=5).run()
    first = make(parts, iterations=2)
    first.run()
    second = make(parts, iterations=5)
    second.learner, second.iteration, second.env_steps = first.learner, first.iteration, first.env_steps
    second.run()
    assert without_times(parts.rows) == without_times(whole.rows)


def test_evaluating_changes_no_training() -> None:
    often, never = Recorder([]), Recorder([])
    make(often, every=1).run()
    make(never).run()
    assert without_times(often.rows) == without_times(never.rows)


def test_an_iterations_scalars(monkeypatch: pytest.MonkeyPatch) -> None:
    tick(monkeypatch, 2.0)
    recorder = Recorder([])
    trainer = make(recorder, iterations=4)
    curve = trainer.run()
    assert [set(row) for row in recorder.rows] == [
        {
            "rollout/pre_adapt/ep_rew_mean",
            "rollout/post_adapt/ep_rew_mean",
            "adapt/gain",
            "adapt/step_0",
            "adapt/step_1",
            "adapt/step_2",
            "train/guess",
            "time/fps",
            "time/sample_s",
            "time/learn_s",
            "time/env_steps",
            "health/diverged_sims",
            "health/nonfinite_skips",
        }
    ] * 4
    assert all(math.isfinite(value) for row in recorder.rows for value in row.values())
    row = recorder.rows[-1]
    assert row["rollout/pre_adapt/ep_rew_mean"] == row["adapt/step_0"]
    assert row["rollout/post_adapt/ep_rew_mean"] == row["adapt/step_2"]
    assert row["adapt/gain"] == pytest.approx(row["adapt/step_2"] - row["adapt/step_0"])
    assert trainer.env_steps == row["time/env_steps"] == 4 * 4 * 3  # iterations, tasks, two supports and a query
    assert (row["time/sample_s"], row["time/learn_s"], row["time/fps"]) == (2.0, 2.0, 48 / 32)
    scores = {f"meta_test/step_{k}": curve.mean[k] for k in range(4)}
    for end, values in zip(("low", "high"), curve.interval(), strict=True):
        scores |= {f"meta_test_ci/{end}_step_{k}": values[k] for k in range(4)}
    assert curve_scalars(curve) == pytest.approx(scores)
    success = np.repeat([[0.0, 0.5], [0.5, 0.5], [0.5, 1.0], [1.0, 1.0]], 3, axis=1)[..., None]
    rates = {f"meta_test/success_step_{k}": rate for k, rate in enumerate((0.25, 0.5, 0.75, 1.0))}
    assert curve_scalars(replace(curve, success=success)) == pytest.approx(scores | rates)


def test_another_collector_may_serve_the_evaluation() -> None:
    class Other(Collector):
        calls = 0

        def query(self, *args: Any, **settings: Any) -> Examples:
            self.calls += 1
            return super().query(*args, **settings)

    trainer = make(iterations=2)
    trainer.evaluation_collector = other = Other()
    trainer.run()
    assert other.calls == 2  # six test tasks, four at a time


@pytest.mark.parametrize(
    ("settings", "episodes", "steps"),
    [
        ({}, 6, 2),  # the learner counts shots: its own number of steps
        ({"validation_tasks": 2}, 2, 2),
        ({"validation_tasks": 0}, None, 2),
        ({"every": 0}, None, 2),
    ],
)
def test_validation_tasks_are_of_the_training_split_and_change_no_training(
    settings: dict[str, Any], episodes: int | None, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int, int]] = []

    def measured(*given: Any, split: Split, num_tasks: int, num_steps: int, **others: Any) -> AdaptationCurve:
        asked.append((split, num_tasks, num_steps))
        return evaluate(*given, split=split, num_tasks=num_tasks, num_steps=num_steps, **others)

    monkeypatch.setattr(trainer_module, "evaluate", measured)
    trainer, plain = make(iterations=3), make(iterations=3)
    trainer.evaluation = replace(trainer.evaluation, **{"every": 2, **settings})
    trainer.run()
    tested = ("test", 6, 3)
    each = [tested] if episodes is None else [tested, ("train", episodes, steps)]
    assert asked == each * (2 if trainer.evaluation.every else 1)
    plain.run()
    assert torch.equal(trainer.learner.parameters["guess"], plain.learner.parameters["guess"])
    assert trainer.env_steps == plain.env_steps
    if episodes is None:
        assert trainer.validation is None
        return
    curve = evaluate(trainer.learner, Collector(), Levels(), num_tasks=episodes, num_steps=steps, split="train")
    assert trainer.validation == pytest.approx(curve.mean[-1])


@pytest.mark.parametrize(
    ("own", "others", "steps"),
    [
        (1, {}, 1),
        (5, {}, 3),
        (1, {"trains_jointly": True}, 3),
        (1, {"support": "shot"}, 3),
    ],
)
def test_a_learner_is_judged_after_its_own_steps(own: int, others: dict[str, Any], steps: int) -> None:
    traits = Traits(unit="gradient steps", **others)
    learner: Any = SimpleNamespace(traits=traits, num_adaptation_steps=own)
    assert own_steps(learner, 3) == steps


@pytest.mark.parametrize(("max_minutes", "remaining"), [(None, [16, 8, 0]), (0.25, [7])])
def test_progress_is_one_plain_line_per_iteration_without_a_terminal(
    max_minutes: float | None, remaining: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    tick(monkeypatch, 2.0)  # an iteration takes 8 seconds
    file = io.StringIO()
    recorder = Recorder([])
    progress = ProgressCallback(Console(file=file, width=40, soft_wrap=True))
    make(progress, recorder, iterations=3, max_minutes=max_minutes).run()
    lines = file.getvalue().splitlines()
    assert len(lines) == len(recorder.rows)
    for number, (line, row, eta) in enumerate(zip(lines, recorder.rows, remaining, strict=True), start=1):
        before, after = row["rollout/pre_adapt/ep_rew_mean"], row["rollout/post_adapt/ep_rew_mean"]
        scores = f"return before adaptation {before:.4g}, after adaptation {after:.4g}"
        assert line == f"iteration {number}/3  {scores}  {8 * number} s  eta {eta} s"


def test_the_pace_of_a_resumed_run_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    tick(monkeypatch, 2.0)
    file = io.StringIO()
    trainer = make(ProgressCallback(Console(file=file)), iterations=12)
    trainer.iteration = 10
    trainer.run()
    assert [line.partition("  eta ")[2] for line in file.getvalue().splitlines()] == ["8 s", "0 s"]


@pytest.mark.parametrize("fails", [False, True])
def test_progress_is_a_bar_on_a_terminal(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(Callback):
        def on_iteration(self, trainer: Trainer, progressed: Progressed) -> None:
            if fails and progressed.iteration == 2:
                raise RuntimeError("disk full")

    monkeypatch.setenv("TERM", "xterm")
    file = io.StringIO()
    trainer = make(ProgressCallback(Console(file=file, force_terminal=True, width=150)), Failing(), iterations=4)
    if fails:
        with pytest.raises(RuntimeError, match="disk full"):
            trainer.run()
    else:
        trainer.run()
    text = file.getvalue()
    assert ("2/4" if fails else "4/4") in text
    assert "return before" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is back
