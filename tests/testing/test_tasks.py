"""The checks pass on every built-in family and name each defect of a broken one in one line."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from metarl.core.data import Examples
from metarl.core.errors import EnvironmentFaultError
from metarl.core.tasks import Split, TaskDistribution
from metarl.fewshot.base.examples import ExampleSpaces, ExampleTaskDistribution
from metarl.rl.gymnasium_tasks import GymnasiumTasks
from metarl.rl.tasks import EnvTaskDistribution, Scene
from metarl.runs import registry
from metarl.testing.tasks import check_before_training, check_task_distribution

FILES_OF_ONES_OWN = ("image-folder", "mini-imagenet", "omniglot")
DATA = Path(os.environ.get("METARL_DATA", Path(__file__).parents[2] / "shared" / "data"))


@dataclass(frozen=True)
class Shift:
    size: float


class Shifts(TaskDistribution[Any]):
    """Sound; every class below breaks one thing."""

    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> list[Any]:
        return [Shift(float(size)) for size in rng.random(num_tasks)]


class Drifting(gymnasium.Env[Any, Any]):
    """Drifts by its `shift` from a random start."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    shift = 0.0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.position = self.np_random.random(2).astype(np.float32)
        return self.position, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.position = self.position + np.float32(self.shift)
        return self.position, float(self.position[0]), False, False, {}


class Drifts(EnvTaskDistribution[Shift]):
    """Sound, with environments."""

    horizon = 5
    environment: type[Drifting] = Drifting
    sample = Shifts.sample

    def make_env(self) -> gymnasium.Env[Any, Any]:
        return self.environment()

    def set_task(self, env: Any, task: Shift) -> None:
        env.shift = task.size


@pytest.mark.parametrize("name", sorted(registry.TASKS))
def test_every_registered_family_is_sound(name: str) -> None:
    if name in FILES_OF_ONES_OWN and not (name == "omniglot" and DATA.is_dir()):
        pytest.skip("its files are yours to bring; tests/fewshot/data makes small ones")
    settings = {"root": DATA} if name == "omniglot" else {}
    assert check_task_distribution(registry.load_task(name)(**settings)) == []


@dataclass(frozen=True)
class Lines(ExampleTaskDistribution[Shift]):
    """y = size * x; each flaw is one thing that is wrong."""

    flaw: str = ""
    sample = Shifts.sample

    @property
    def spaces(self) -> ExampleSpaces:
        return ExampleSpaces((2,) if self.flaw == "shape" else (1,), 1, discrete=self.flaw == "labels")

    def support(self, tasks: Any, seeds: Any, *, shot: Any = None, device: Any = "cpu") -> Examples:
        rngs = seeds.support(0)
        inputs = torch.from_numpy(np.stack([rng.uniform(size=(4, 1)) for rng in rngs])).float()
        if self.flaw == "order":
            inputs = torch.arange(float(len(tasks))).view(-1, 1, 1).expand(-1, 4, 1)
        sizes = torch.tensor([1.0 if self.flaw == "task" else float(task.size) for task in tasks]).view(-1, 1, 1)
        return Examples(inputs, sizes * inputs / (0.0 if self.flaw == "finite" else 1.0))

    def query(self, tasks: Any, seeds: Any, *, device: Any = "cpu") -> Examples:
        return self.support(tasks, seeds)


@pytest.mark.parametrize(
    ("flaw", "told"),
    [
        ("", None),
        ("shape", "support: inputs have shape (8, 4, 1): must be [8, num_examples, 2]"),
        ("labels", "support: targets must be int64 labels"),
        ("finite", "support: targets must be finite numbers [num_tasks, num_examples, 1]"),
        ("order", "support of a task depends on other things than the task and its slot's seed"),
        ("task", "gave equal examples: the task has no effect on them"),
    ],
)
def test_what_is_wrong_with_examples_is_named(flaw: str, told: str | None) -> None:
    problems = check_task_distribution(Lines(flaw))
    assert (problems == []) if told is None else told in problems[0]


@pytest.mark.parametrize("sound", [Shifts, Drifts])
def test_sound_families_pass(sound: type[TaskDistribution[Any]]) -> None:
    assert check_task_distribution(sound()) == []
    assert check_task_distribution(sound(), seed=17) == []


def test_a_family_that_can_be_drawn_passes() -> None:
    assert check_task_distribution(Drawn()) == []


class TooMany(Shifts):
    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> list[Any]:
        return super().sample(num_tasks + (split == "test"), rng)


class IgnoresGenerator(Shifts):
    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> list[Any]:
        return [Shift(float(number)) for number in range(num_tasks)]


class OwnGenerator(Shifts):
    """Draws from a generator that lives as long as the object, as a global one would."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)

    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> list[Any]:
        return super().sample(num_tasks, self.rng)


class GlobalGenerator(Shifts):
    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> list[Any]:
        return [Shift(size) for size in np.random.random(num_tasks)]  # noqa: NPY002


class NotFinite(Shifts):
    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> list[Any]:
        return [Shift(np.inf), *super().sample(num_tasks - 1, rng)]


class NestedNotFinite(Shifts):
    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> list[Any]:
        return [{"sizes": (size, -np.inf)} for size in rng.random(num_tasks)]


class NotPicklable(Shifts):
    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> list[Any]:
        return [_local_task()(float(size)) for size in rng.random(num_tasks)]


def _local_task() -> Any:
    @dataclass(frozen=True)
    class Hidden:
        size: float

        def __eq__(self, other: object) -> bool:
            return self.size == getattr(other, "size", None)

        __hash__ = None  # type: ignore[assignment]

    return Hidden


class Forgetful:
    """Does not come back from pickling as it was."""

    def __init__(self, size: float) -> None:
        self.size = size

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.size = -1.0


class NotComparable(Shifts):
    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> list[Any]:
        return [Forgetful(float(size)) for size in rng.random(num_tasks)]


class FalselyDisjoint(Shifts):
    splits = "disjoint"

    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> list[Any]:
        return [Shift(int(size)) for size in rng.integers(9 if split == "train" else 5, size=num_tasks)]


class FalselyIdentical(Shifts):
    splits = "identical"

    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> list[Any]:
        return [self.all_tasks(split)[i] for i in rng.integers(2, size=num_tasks)]

    def all_tasks(self, split: Split = "test") -> list[Any]:
        return [Shift(0.0), Shift(1.0 if split == "train" else 2.0)]


class SamplesWhatIsNotListed(Shifts):
    def all_tasks(self, split: Split = "test") -> list[Any]:
        return [Shift(0.0), Shift(1.0)]


class Misspelt(Shifts):
    splits = "identcal"  # type: ignore[assignment]


class IdenticalButInfinite(Shifts):
    splits = "identical"


class ForgetsItsSeed(Drifts):
    class environment(Drifting):  # noqa: N801
        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
            return super().reset()


class SeesNoNumbers(Drifts):
    class environment(Drifting):  # noqa: N801
        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            return np.full(2, np.nan, np.float32), 0.0, False, False, {}


class InfiniteRewards(Drifts):
    class environment(Drifting):  # noqa: N801
        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            return super().step(action)[0], np.inf, False, False, {}


class LosesItsTask(Drifts):
    def set_task(self, env: Any, task: Shift) -> None:
        pass


class Drawn(Drifts):
    """Sound, with a scene."""

    shown: Any = Scene(walls=((0.0, 0.0, 1.0, 1.0),), start=(0.0, 0.0))

    def scene(self, task: Shift) -> Any:
        return self.shown

    def positions(self, observations: Any) -> Any:
        return observations[..., :2]


class NoScene(Drawn):
    shown = "a room"


class ShortWall(Drawn):
    shown = Scene(walls=((0.0, 0.0, 1.0, 1.0), (0.0, 1.0, 1.0)))  # type: ignore[arg-type]


class GoalNowhere(Drawn):
    shown = Scene(goal=(0.0, np.nan))


class ForgotPositions(Drawn):
    positions = EnvTaskDistribution.positions


class OneCoordinate(Drawn):
    def positions(self, observations: Any) -> Any:
        return observations[..., :1]


class FirstTrajectory(Drawn):
    def positions(self, observations: Any) -> Any:
        return observations[0]


class PositionsNotFinite(Drawn):
    def positions(self, observations: Any) -> Any:
        return np.full_like(observations, np.nan)


class PositionsRaise(Drawn):
    def positions(self, observations: Any) -> Any:
        return observations[..., [0, 7]]


@pytest.mark.parametrize(
    ("broken", "lines"),
    [
        (NoScene, [") = 'a room': must be a metarl.rl.tasks.Scene, or None"]),
        (ShortWall, [").walls[1] = (0.0, 1.0, 1.0): must be 4 finite numbers"]),
        (GoalNowhere, [").goal = (0.0, nan): must be 2 finite numbers"]),
        (OneCoordinate, ["'an array of shape (2, 5, 1)': must be x and y: of shape (2, 5, 2)"]),
        (FirstTrajectory, ["'an array of shape (5, 2)': must be x and y: of shape (2, 5, 2)"]),
        (PositionsNotFinite, ["positions(observations of shape (2, 5, 2)) = 'an array with nan"]),
        (TooMany, ["sample(split='test') = '9 tasks': must be a list of 8 tasks, as asked for"]),
        (IgnoresGenerator, ["sample(split='train') gave the same 8 tasks from two", "sample(split='test') gave the"]),
        (OwnGenerator, ["draw from `rng` only", "draw from `rng` only"]),
        (GlobalGenerator, ["draw from `rng` only", "draw from `rng` only"]),
        (NotFinite, ["sample(split='train') = Shift(size=inf): must be a task with finite parameters; size = inf"]),
        (NestedNotFinite, ["must be a task with finite parameters; sizes = -inf"]),
        (NotPicklable, ["cannot be pickled", "cannot be pickled"]),
        (NotComparable, ["does not equal its pickled copy: make it plain data", "does not equal its pickled copy"]),
        (FalselyDisjoint, ["splits = 'disjoint', but Shift(size="]),
        (SamplesWhatIsNotListed, ["not among all_tasks('train')", "not among all_tasks('test')"]),
        (Misspelt, ["splits = 'identcal': must be one of ('disjoint', 'identical', 'same distribution')"]),
        (FalselyIdentical, ["splits = 'identical', but all_tasks('train') and all_tasks('test') are not the same"]),
        (IdenticalButInfinite, ["splits = 'identical', but all_tasks('train') and all_tasks('test') are not the same"]),
        (ForgetsItsSeed, ["observations and rewards under Shift(size="]),
        (SeesNoNumbers, ["observation[0] = nan: must be finite (task Shift(size="]),
        (InfiniteRewards, ["reward = inf: must be finite (task Shift(size="]),
        (LosesItsTask, ["gave equal episodes: the task does not reach the environment"]),
    ],
)
def test_each_defect_is_named_in_one_line(broken: type[TaskDistribution[Any]], lines: list[str]) -> None:
    before = np.random.get_state()  # noqa: NPY002
    try:
        found = check_task_distribution(broken())
    finally:
        np.random.set_state(before)  # noqa: NPY002
    assert len(found) == len(lines), found
    for line, expected in zip(found, lines, strict=True):
        assert expected in line
        assert "\n" not in line


def _hang(*_: Any, **__: Any) -> Any:
    while True:
        try:
            time.sleep(10)
        except Exception:
            continue


class HangsInSample(Drifts):
    sample = _hang


class HangsInAllTasks(Drifts):
    all_tasks = _hang


class HangsInMakeEnv(Drifts):
    make_env = _hang


class HangsInSetTask(Drifts):
    set_task = _hang


class HangsInReset(Drifts):
    class environment(Drifting):  # noqa: N801
        reset = _hang


class HangsInVectorReset(Drifts):
    def make_vector_env(self, num_envs: int, *, num_threads: int) -> Any:
        together = GymnasiumTasks(Drifts(), num_envs)
        together.reset = _hang  # type: ignore[method-assign]
        return together


class LeavesInSample(Drifts):
    def sample(self, *_: Any, **__: Any) -> Any:
        sys.exit(0)


HANGS = [HangsInSample, HangsInAllTasks, HangsInMakeEnv, HangsInSetTask, HangsInReset, HangsInVectorReset]


@pytest.mark.parametrize("broken", [*HANGS, ForgotPositions, PositionsRaise, LeavesInSample])
def test_what_foreign_code_raises_is_the_cause_even_if_it_hangs(broken: type[TaskDistribution[Any]]) -> None:
    said = {
        HangsInSample: "the task distribution's sample(split='train') raised StillRunningError: no answer within 0.1 s",
        HangsInAllTasks: "the task distribution's all_tasks('train') raised StillRunningError: no answer within",
        HangsInMakeEnv: "the environment's make_env raised StillRunningError: no answer within 0.1 s",
        HangsInSetTask: "the environment's set_task raised StillRunningError: no answer within 0.1 s (task Shift(size=",
        HangsInReset: ", seed 0, step 0)",
        HangsInVectorReset: ", seed 0, step 0)",
        ForgotPositions: "NotImplementedError: ForgotPositions defines scene but not positions",
        PositionsRaise: "the task distribution's positions raised IndexError: ",
        LeavesInSample: "sample(split='train') raised SystemExit: 0",
    }
    with pytest.raises(EnvironmentFaultError) as raised:
        check_task_distribution(broken(), timeout=0.1)
    assert said[broken] in str(raised.value)
    assert raised.value.__cause__ is not None


def test_a_forgotten_seed_is_told() -> None:
    (line,) = check_task_distribution(ForgetsItsSeed())
    assert line.endswith("reset ignores its seed")


@dataclass
class Recorded(Drifts):
    """Notes the horizons it is used with."""

    horizon: int = 1000

    def make_env(self) -> gymnasium.Env[Any, Any]:
        HORIZONS.append(self.horizon)
        return super().make_env()


HORIZONS: list[int] = []


def test_long_trajectories_are_cut_short() -> None:
    HORIZONS.clear()
    assert check_task_distribution(Recorded()) == []
    assert set(HORIZONS[1:]) == {50}  # the first environment is not stepped


class NoSpaces(gymnasium.Env[Any, Any]):
    """Its spaces are found out in `reset`, which has a fault; `close` needs what `reset` makes."""

    observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    @property
    def action_space(self) -> Any:
        raise KeyError("robot")

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return None

    def close(self) -> None:
        raise AttributeError("no window")


class WithoutSpaces(EnvTaskDistribution[float]):
    horizon = 2

    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> list[float]:
        return rng.random(num_tasks).tolist()

    def make_env(self) -> Any:
        return NoSpaces()

    def set_task(self, env: Any, task: float) -> None:
        pass


def test_spaces_that_raise_are_said_with_their_task_even_if_close_raises_too() -> None:
    with pytest.raises(EnvironmentFaultError, match=r"reset raised KeyError: 'robot' \(task 0\.\d+, seed 0, step 0\)$"):
        check_before_training(WithoutSpaces(), timeout=None)


class LongerFeatures(Drifts):
    def task_features(self, task: Shift) -> Any:
        return np.ones(2 if task.size > 0.5 else 1, np.float32)


def test_features_of_another_length_are_a_fault() -> None:
    (problem,) = check_task_distribution(LongerFeatures())
    assert "task_features returned" in problem
    assert "must be a vector of finite numbers, of length" in problem
