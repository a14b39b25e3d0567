"""A fault in a user's code ends a command with its traceback, then one line with the place, and exit code 1."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from metarl.agents.maml import MAML
from metarl.cli import main as cli
from metarl.core.data import Examples
from metarl.core.errors import EnvironmentFaultError
from metarl.core.learner import Traits
from metarl.core.seeds import Seeds
from metarl.core.tasks import Split
from metarl.fewshot.base.examples import ExampleCollector, ExampleSpaces, ExampleTaskDistribution
from metarl.rl.tasks import EnvTaskDistribution, Scene
from metarl.runs import checkpoint
from metarl.runs.config import load_config
from metarl.runs.load import load
from metarl.runs.tracking import read_metrics
from metarl.runs.train import train

TINY = (
    "--iterations 3 --meta-batch-size 2 --agent.num-trajectories 2 --agent.hidden-sizes 4 --evaluation.num-tasks 2 "
    "--evaluation.num-adaptation-steps 1 --evaluation.no-controls --quiet"
)
# In training, iterations 0 to 2 each draw 2 tasks; before, the check draws 8 for each split.
AT_THE_THIRD_ITERATION = 5


class Wild(BaseException):
    pass


class MuteError(Exception):
    def __str__(self) -> str:
        raise OSError("no words")


class Goal:
    """A task without a text."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Goal) and self.value == other.value

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        raise SystemExit(0)


class Valley(gymnasium.Env[Any, Any]):
    observation_space = spaces.Box(-9.0, 9.0, (2,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        Valleys.happen("reset")
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, Any]:
        return Valleys.happen("step") or (np.zeros(2, np.float32), 1.0, False, False, {})


class Valleys(EnvTaskDistribution[Any]):
    """A fault in call number `when` (from 0) of the method `where`."""

    horizon = 4
    where = ""
    when = 0
    mishap: ClassVar[Callable[[], Any]] = lambda: None
    kind: ClassVar[Callable[[float], Any]] = float
    calls: ClassVar[dict[str, int]] = {}

    def __init__(self) -> None:
        self.happen("init")

    @classmethod
    def happen(cls, where: str) -> Any:
        now = cls.calls.get(where, 0)
        cls.calls[where] = now + 1
        return cls.mishap() if (where, now) == (cls.where, cls.when) else None

    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> list[Any]:
        return self.happen("sample") or [self.kind(value) for value in rng.random(num_tasks).tolist()]

    def all_tasks(self, split: Split = "test") -> list[Any] | None:
        return self.happen("all_tasks")  # type: ignore[no-any-return]

    def make_env(self) -> gymnasium.Env[Any, Any]:
        self.happen("make_env")
        return Valley()

    def set_task(self, env: Any, task: Any) -> None:
        self.happen("set_task")

    def task_features(self, task: Any) -> Any:
        features = self.happen("task_features")
        return [0.5] if features is None else features

    def scene(self, task: Any) -> Any:
        return self.happen("scene") or Scene(goal=(0.0, 1.0))

    def positions(self, observations: Any) -> Any:
        positions = self.happen("positions")
        return observations[..., :2] if positions is None else positions


class Careless(MAML):
    """Ends the process in its second update."""

    def meta_update(self, episodes: Any) -> dict[str, float]:
        Valleys.happen("meta_update")
        return super().meta_update(episodes)


@pytest.fixture(autouse=True)
def _fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(Valleys, "calls", {})


def raises(error: BaseException) -> Callable[[], Any]:
    def mishap() -> Any:
        raise error

    return mishap


def run(
    where: str,
    when: int,
    mishap: Callable[[], Any],
    monkeypatch: pytest.MonkeyPatch,
    *,
    agent: str = "maml",
    command: str = "train {task} --agent {agent} {tiny} --run-dir run",
) -> int:
    for name, value in (("where", where), ("when", when), ("mishap", staticmethod(mishap))):
        monkeypatch.setattr(Valleys, name, value)
    Valleys.calls.clear()
    return cli.main(command.format(task=f"{__name__}:Valleys", agent=agent, tiny=TINY).split())


RAISED = [
    (SystemExit(0), "SystemExit: 0"),
    (StopIteration(), "StopIteration"),
    (Wild("free"), "Wild: free"),
    (asyncio.CancelledError("late"), "CancelledError: late"),
    (ValueError("two\n  lines"), "ValueError: two lines"),
    (MuteError(), "MuteError: <MuteError without text: str raised OSError>"),
    (RuntimeError("out of memory"), "RuntimeError: out of memory"),
    (ValueError("x" * 1000), f"ValueError: {'x' * 200}"),
]
CALLS = [  # method, call, agent, the place in the message
    ("sample", 0, "maml", "the task distribution's sample(split='train')"),
    ("sample", AT_THE_THIRD_ITERATION, "maml", "the task distribution's sample(2, split='train')"),
    ("all_tasks", 3, "maml", "the task distribution's all_tasks("),
    ("make_env", 0, "maml", "the environment's make_env"),
    ("make_env", 4, "maml", "the environment's make_env"),
    ("set_task", 0, "maml", "the environment's set_task"),
    ("set_task", 17, "maml", "the environment's set_task"),
    ("reset", 0, "maml", "the environment's reset"),
    ("reset", 17, "maml", "the environment's reset"),
    ("step", 0, "maml", "the environment's step"),
    ("task_features", 0, "oracle", "the task distribution's task_features"),
    ("task_features", 2, "oracle", "the task distribution's task_features"),
    ("scene", 0, "maml", "the task distribution's scene"),
    ("positions", 1, "maml", "the task distribution's positions"),
]


@pytest.mark.parametrize(
    ("where", "when", "agent", "said", "error", "text"),
    [
        *[(*call, *RAISED[i % len(RAISED)]) for i, call in enumerate(CALLS)],
        *[("step", 30, "maml", "the environment's step", *raised) for raised in RAISED],
    ],
)
def test_what_is_raised_comes_with_its_traceback_and_one_line(
    where: str,
    when: int,
    agent: str,
    said: str,
    error: BaseException,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert run(where, when, raises(error), monkeypatch, agent=agent) == 1
    *above, last = capfd.readouterr().err.splitlines()
    assert above[0] == "Traceback (most recent call last):"
    assert f'"{__file__}", line' in "\n".join(above), "the user's own line"
    assert last.startswith(f"metarl: {said}")
    assert f" raised {text}" in last
    if where in ("set_task", "reset", "step") and when:
        assert ", seed " in last
        assert last.endswith(", step 4)" if where == "step" else ", step 0)")
    if where in ("set_task", "reset", "step", "scene", "positions", "task_features") and when:
        assert "(task 0." in last


ANSWER = "must be 5 values, observation, reward, terminated, truncated, info, as in gymnasium"
SEEN = np.zeros(2, np.float32)
RETURNED = [
    ("sample", AT_THE_THIRD_ITERATION, [0.5], "sample(2, split='train') returned 1 tasks: must be a list of 2 tasks"),
    ("sample", AT_THE_THIRD_ITERATION, 0.5, "sample(2, split='train') returned 0.5: must be a list of 2 tasks"),
    ("all_tasks", 3, "ab", "returned 'ab': must be a list of one or more tasks"),
    ("reset", 20, SEEN, None),
    ("step", 40, (SEEN, 1.0, True, {}), f"step returned 4 values: {ANSWER}"),
    ("step", 40, "done", f"step returned one str: {ANSWER}"),
    ("step", 40, (SEEN, 1.0, None, False, {}), "step returned terminated = None: must be one boolean"),
    ("step", 40, (SEEN, 1.0, False, "no", {}), "step returned truncated = 'no': must be one boolean"),
    ("step", 40, (SEEN, 1.0, np.zeros(2, bool), False, {}), "step returned terminated = array([False, False])"),
    ("step", 40, (SEEN, 1.0, False, False, None), "step returned the info None: must be a dict"),
    ("step", 40, (SEEN, 10**400, False, False, {}), "must be one number that a float can hold"),
    ("step", 40, (SEEN, 1e39, False, False, {}), "reward = 1e+39: must be finite as float32, at most 3.4e+38"),
    ("step", 40, (np.array([0.0, 1e39]), 1.0, False, False, {}), "observation[1] = 1e+39: must be finite as float32"),
    (
        "step",
        40,
        (np.array([0, "x"], object), 1.0, False, False, {}),
        "an observation of dtype object: must be numbers",
    ),
    ("scene", 0, "a room", "scene returned 'a room': must be a metarl.rl.tasks.Scene, or None"),
    ("scene", 0, Scene(goal="far"), "scene raised ValueError"),  # type: ignore[arg-type]
    ("positions", 1, np.zeros(3), "positions returned an array of shape (3,): must be finite, of shape (5, 2)"),
    ("task_features", 2, [0.5, 1.0], "task_features returned array([0.5, 1. ], dtype=float32): must be a vector of"),
    ("task_features", 2, [np.nan], "task_features returned array([nan], dtype=float32): must be a vector of finite"),
]


@pytest.mark.parametrize(("where", "when", "answer", "said"), RETURNED)
def test_a_wrong_answer_is_said_in_one_line(
    where: str,
    when: int,
    answer: Any,
    said: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if where == "reset":  # as in the old gym
        monkeypatch.setattr(Valley, "reset", lambda env, **_: answer)
        said = "reset returned one ndarray: must be 2 values, observation, info, as in gymnasium"
    agent = "oracle" if where == "task_features" else "maml"
    assert run(where, when, lambda: answer, monkeypatch, agent=agent) == 1
    *_, last = capfd.readouterr().err.splitlines()
    assert last.startswith("metarl: the ")
    assert str(said) in last
    if where == "step":
        assert ", seed " in last
        assert last.endswith(", step 3)")
        assert checkpoint.latest(Path("run")).iteration == 1, "what was finished is saved"


def test_tasks_without_text_train_and_fail_like_any_other(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Valleys, "kind", Goal)
    assert run("", 0, raises(Wild()), monkeypatch) == 0
    assert [row["iteration"] for row in read_metrics(Path("run"))] == [1, 2, 3]
    assert run("step", 3, raises(Wild()), monkeypatch, command="train {task} --agent {agent} {tiny}") == 1
    assert "raised Wild (task <Goal without text: str raised SystemExit>, seed " in capfd.readouterr().err


@pytest.mark.parametrize("where", ["init", "make_env", "step"])
def test_a_working_directory_that_changes_moves_no_files(
    where: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert run(where, 0, lambda: os.chdir(elsewhere), monkeypatch) == 0
    assert Path.cwd() == elsewhere
    assert (tmp_path / "run" / "adaptation.png").is_file()
    os.chdir(tmp_path)
    evaluate = "evaluate run --trust --tasks 2 --json curve.json"
    assert run(where, 0, lambda: os.chdir(elsewhere), monkeypatch, command=evaluate) == 0
    assert Path.cwd() == elsewhere
    assert (tmp_path / "curve.json").is_file()
    os.chdir(tmp_path)
    Valleys.calls.clear()
    assert load("run", trusted=True).num_adaptation_steps == 1
    os.chdir(tmp_path)
    Valleys.calls.clear()
    config = load_config(Path("run"), trusted=True)
    os.chdir(tmp_path)
    train(config, Path("again"))
    os.chdir(tmp_path)
    assert Path("again/adaptation.json").read_bytes() == Path("run/adaptation.json").read_bytes()
    assert run(where, 0, lambda: os.chdir(elsewhere), monkeypatch, command="train {task} {tiny}") == 0
    assert len(list((tmp_path / "runs").glob("*/adaptation.json"))) == 1
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize(("where", "when"), [("sample", 0), ("make_env", 0), ("step", 20), ("all_tasks", 0)])
def test_a_fault_in_an_evaluation_is_said_alike(
    where: str, when: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("", 0, raises(Wild()), monkeypatch) == 0
    capfd.readouterr()
    command = "evaluate run --trust --tasks 2 --json curve.json"
    assert run(where, when, raises(SystemExit(0)), monkeypatch, command=command) == 1
    above, last = capfd.readouterr().err.rsplit("metarl: ", 1)
    assert above.startswith("Traceback")
    assert f"{where}" in last
    assert "raised SystemExit: 0" in last
    assert not Path("curve.json").exists()


@pytest.mark.parametrize(
    ("error", "text"),
    [(SystemExit(0), "ended by SystemExit(0) before it was done"), (Wild("free"), "Wild: free")],
)
def test_an_agent_that_fails_does_not_end_the_command_as_if_all_were_done(
    error: BaseException, text: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("meta_update", 1, raises(error), monkeypatch, agent=f"{__name__}:Careless") == 1
    said = capfd.readouterr().err
    assert said.startswith("Traceback")
    assert said.splitlines()[-1] == f"metarl: {text}"


@pytest.mark.parametrize("where", ["sample", "step"])
def test_ctrl_c_in_a_users_code_is_a_stop(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(where, 0, raises(KeyboardInterrupt()), monkeypatch) == 130


@pytest.mark.parametrize("horizon", [np.int64(4), np.int32(4)], ids=repr)
def test_a_horizon_of_numpy_is_one(horizon: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Valleys, "horizon", horizon)
    assert run("", 0, raises(Wild()), monkeypatch) == 0


@pytest.mark.parametrize("horizon", [True, 4.0, np.float64(4), "4", None, 0, -1, [4], np.array([4])], ids=repr)
def test_a_horizon_that_is_no_integer(
    horizon: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Valleys, "horizon", horizon)
    assert run("", 0, raises(Wild()), monkeypatch) == 2
    said = f"metarl: horizon = {horizon!r}: must be an integer >= 1: steps per trajectory\n"
    assert capfd.readouterr().err == said
    assert not Path("run").exists()


@pytest.mark.parametrize("command", ["train {task} {tiny} --run-dir run", "check-tasks {task}"])
def test_an_environment_that_leaves_while_it_is_closed(
    command: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Valley, "close", lambda env: raises(SystemExit(0))())
    assert run("", 0, raises(Wild()), monkeypatch, command=command) == 1
    assert capfd.readouterr().err.splitlines()[-1] == "metarl: the environment's close raised SystemExit: 0"


class Vague(ExampleTaskDistribution[float]):
    """Few-shot tasks with a fault in the method `where`."""

    spaces = ExampleSpaces((1,), 1, discrete=False)

    def __init__(self, where: str, mishap: Callable[[], Any]) -> None:
        self.where, self.mishap = where, mishap

    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> list[float]:
        return rng.random(num_tasks).tolist()

    def support(self, *_: Any, **__: Any) -> Any:
        return self.mishap() if self.where == "support" else Examples(torch.zeros(2, 3, 1), torch.zeros(2, 3, 1))

    query = support


@pytest.mark.parametrize("method", ["support", "query"])
def test_examples_that_are_none(method: str) -> None:
    learner: Any = SimpleNamespace(traits=Traits(unit="gradient steps"))
    settings = {"step": 0} if method == "support" else {}
    for mishap, said in (
        (raises(SystemExit(0)), "raised SystemExit: 0"),
        (lambda: [1], "returned [1]: must be a metarl"),
    ):
        collect = getattr(ExampleCollector(Vague("support", mishap)), method)
        with pytest.raises(EnvironmentFaultError, match=re.escape(f"the task distribution's {method} {said}")):
            collect([0.1, 0.2], learner, None, Seeds.first(2), **settings)
