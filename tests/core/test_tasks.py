"""Tasks of any kind: compared by content, converted to numbers, and named in one short line."""

from __future__ import annotations

import collections
import enum
import json
import pickle
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import pytest
import torch

from metarl.cli.main import main
from metarl.core.errors import InputError
from metarl.core.tasks import Split, distinct_tasks, parts_of, same_task
from metarl.rl.tasks import EnvTaskDistribution
from metarl.testing.tasks import check_before_training, check_task_distribution

NAN = float("nan")


@dataclass(frozen=True)
class Data:
    goal: Any
    note: str = field(default="", compare=False)


class Plain:
    def __init__(self, goal: Any) -> None:
        self.goal = goal


class Slots:
    __slots__ = ("goal", "unset")

    def __init__(self, goal: Any) -> None:
        self.goal = goal


class Raises(Plain):
    def __eq__(self, other: object) -> bool:
        raise RuntimeError("not to be compared")


class Alike(Plain):
    """Equal as its class says, whatever its parts are."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Alike)


class Side(enum.Enum):
    LEFT = 1
    RIGHT = 2


Pair = collections.namedtuple("Pair", "goal size")
RECORD = [("x", "f8"), ("name", "U4")]


def itself(size: float) -> list[Any]:
    """A list that holds itself."""
    tasks: list[Any] = [size]
    tasks.append(tasks)
    return tasks


@pytest.mark.parametrize(
    ("task", "other"),
    [
        (np.ones(3), np.zeros(3)),
        (np.ones(1), np.ones((1, 1))),
        (np.array([NAN, 1.0]), np.array([NAN, 2.0])),
        (np.array([(NAN, "a")], RECORD), np.array([(NAN, "b")], RECORD)),
        (np.array([1, None], object), np.array([1, 2], object)),
        (np.array([1, None], object), np.array([[1, None]], object)),
        (np.array(["a"]), np.array(["b"])),
        (torch.ones(2, requires_grad=True), torch.zeros(2)),
        (torch.ones(2, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.bfloat16)),
        (torch.eye(2).to_sparse(), torch.zeros(2, 2).to_sparse()),
        ({"goal": np.ones(2)}, {"goal": np.zeros(2)}),
        ({"goal": 1}, {"gaol": 1}),
        ({Pair(1, NAN): 1}, {Pair(2, NAN): 1}),
        ([np.ones(2), 1], [np.ones(2), 2]),
        ([1, 2], (1, 2)),
        ([1, 2], [1]),
        (Pair(np.ones(2), 1), Pair(np.ones(2), 2)),
        ({1, 2}, {1, 3}),
        (collections.deque([np.ones(2)]), collections.deque([np.zeros(2)])),
        (Data(np.ones(2)), Data(np.zeros(2))),
        (Data(NAN), Data(1.0)),
        (Plain(np.ones(2)), Plain(np.zeros(2))),
        (Slots({"a": np.ones(2)}), Slots({"a": np.zeros(2)})),
        (Raises(1), Raises(2)),
        (np.random.default_rng(0), np.random.default_rng(1)),
        (Side.LEFT, Side.RIGHT),
        (NAN, 1.0),
        (np.float32(NAN), np.float32(1)),
        (itself(1.0), itself(2.0)),
        (b"a", b"b"),
        ("a", None),
    ],
)
def test_tasks_are_the_same_by_their_content(task: Any, other: Any) -> None:
    copy = pickle.loads(pickle.dumps(task))
    assert same_task(task, copy)
    assert same_task(copy, task)
    assert not same_task(task, other)
    assert not same_task(other, task)


def test_what_a_class_says_of_equality_holds() -> None:
    assert same_task(Alike(1), Alike(2))
    assert same_task(Data(np.ones(2), note="a"), Data(np.ones(2), note="b"))
    assert same_task(1, 1.0)


def test_what_cannot_be_compared_is_different() -> None:
    deep: tuple[list[Any], list[Any]] = ([], [])
    for _ in range(5000):
        deep = ([deep[0]], [deep[1]])
    for one, other in (deep, (Plain(threading.Lock()), Plain(threading.Lock()))):
        assert same_task(one, one)
        assert not same_task(one, other)


def test_distinct_tasks_stop_when_there_are_enough() -> None:
    drawn = iter([np.zeros(2), np.zeros(2), np.ones(2), np.full(2, 2.0), np.full(2, 3.0)])
    assert [task.tolist() for task in distinct_tasks(drawn, 2)] == [[0.0, 0.0], [1.0, 1.0]]
    assert len(distinct_tasks([1, 2], 9)) == 2


def test_numbers_are_found_wherever_they_are() -> None:
    task = {"goal": np.array([1.0, 2.0]), "mass": (3, Data(torch.tensor(4.0))), "on": True}
    names = [name for name, _ in parts_of(task)]
    assert names == ["goal", "mass", "goal", "note", "on"]
    told = EnvTaskDistribution.task_features(Points(), {**task, "mass": (3, torch.tensor([4.0]))})  # type: ignore[arg-type]
    assert told.tolist() == [1.0, 2.0, 3.0, 4.0, 1.0]


class Point(gymnasium.Env[Any, Any]):
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
    goal: Any = np.zeros(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.position = self.np_random.normal(size=2)
        return self.position.astype(np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.position = self.position + 0.1 * action
        return self.position.astype(np.float32), -float(np.linalg.norm(self.position - self.goal)), False, False, {}


class Points(EnvTaskDistribution[Any]):
    horizon = 3

    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> Any:
        return rng.uniform(-1.0, 1.0, (num_tasks, 2))

    def make_env(self) -> gymnasium.Env[Any, Any]:
        return Point()

    def set_task(self, env: Any, task: Any) -> None:
        while isinstance(task, (tuple, list)):
            task = task[0]
        env.goal = np.asarray(task["goal"] if isinstance(task, dict) else getattr(task, "goal", task))[:2]


class Mixed(Points):
    """Every task holds what cannot be compared with `==`, is not hashable, and is long."""

    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> Any:
        goals = super().sample(num_tasks, rng)
        return [{"goal": goal, "data": Data(torch.ones(2)), "who": Raises(1), "map": [0.5] * 2000} for goal in goals]


class Listed(Points):
    """A finite family in one array."""

    splits = "identical"

    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> Any:
        return self.all_tasks()[rng.integers(2, size=num_tasks)]

    def all_tasks(self, split: Split = "test") -> Any:
        return np.array([[1.0, 0.0], [0.0, 1.0]])


@pytest.mark.parametrize("name", ["Mixed", "Listed"])
def test_tasks_of_any_kind_are_checked_trained_on_resumed_and_evaluated(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    family, run_dir = f"{__name__}:{name}", str(tmp_path / "run")
    tiny = "--iterations=1 --meta-batch-size=2 --agent.num-trajectories=2 --agent.hidden-sizes=2"
    few = "--evaluation.num-tasks=1 --evaluation.num-adaptation-steps=1 --evaluation.controls"
    assert main(["check-tasks", family]) == 0
    assert main(["train", family, *tiny.split(), *few.split(), "--run-dir", run_dir]) == 0
    assert main(["train", family, "--resume", run_dir, "--iterations=2", "--quiet"]) == 0
    assert main(["evaluate", run_dir, "--trust", "--tasks=3"]) == 0
    report = json.loads((tmp_path / "run" / "adaptation.json").read_text())
    assert all(task.startswith(("{'goal': array([", "[1. 0.]", "[0. 1.]")) for task in report["tasks"])
    said = capsys.readouterr()
    noted = [line for line in said.err.splitlines() if not line.startswith("metarl: checking ")]
    why = "2 episodes are run: the family has 2 test tasks, and each is run equally often"
    notes = [f"metarl: note: evaluation.num_tasks = 1: {why}", f"metarl: note: --tasks = 3: {why}"]
    assert noted == (notes if name == "Listed" else [])
    assert max(map(len, (*report["tasks"], *said.out.splitlines()))) < 350


class Sized(NamedTuple):
    goal: Any
    name: str = "far"


@dataclass
class Drawn(Points):
    """A sample is what `form` makes of a list of goals."""

    form: Callable[[list[Any]], Any]

    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> Any:
        return self.form(list(super().sample(num_tasks, rng)))


@pytest.mark.parametrize(
    "task", [Sized, lambda goal: (goal, "far"), lambda goal: [goal, goal[:1]], lambda goal: goal[:1]]
)
def test_a_task_may_be_a_sequence_of_uneven_parts(task: Callable[[Any], Any]) -> None:
    check_before_training(Drawn(lambda goals: tuple(map(task, goals))), timeout=None)


@pytest.mark.parametrize("form", [iter, lambda goals: np.array(8), lambda goals: dict(enumerate(goals)), str])
def test_what_is_no_list_of_tasks_is_named(form: Callable[[Any], Any]) -> None:
    with pytest.raises(InputError, match=r"^sample\(split='train'\) = .*: must be a list of 8 tasks"):
        check_before_training(Drawn(form), timeout=None)


class LongAndNotFinite(Mixed):
    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> Any:
        return [{**task, "map": [NAN] * 2000} for task in super().sample(num_tasks, rng)]


class LongAndNoList(Mixed):
    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> Any:
        return dict(enumerate(super().sample(num_tasks, rng)))


class LongAndIgnored(Mixed):
    def set_task(self, env: Any, task: Any) -> None:
        pass


class LongAndShared(Mixed):
    splits = "disjoint"


@pytest.mark.parametrize("broken", [LongAndNotFinite, LongAndNoList, LongAndIgnored, LongAndShared])
def test_a_line_about_a_long_task_is_short(broken: type[Mixed]) -> None:
    (line,) = check_task_distribution(broken())
    assert len(line) < 1000
