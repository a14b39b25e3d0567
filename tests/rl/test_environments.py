"""Users' environments that raise, hang or return nonsense: what they did is said with task, seed and step."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from metarl.core.errors import EnvironmentFaultError, InputError
from metarl.core.tasks import Split
from metarl.rl.gymnasium_tasks import GymnasiumTasks
from metarl.rl.tasks import EnvTaskDistribution
from metarl.runs import checkpoint
from metarl.runs.tracking import read_metrics
from metarl.testing.tasks import check_before_training

METARL = str(Path(sys.executable).with_name("metarl"))
NEVER = 10**9


@dataclass(frozen=True)
class Slope:
    value: float


class Hill(gymnasium.Env[Any, Any]):
    """Counts its steps. `returns` says what it observes and pays at a step, 0 being the reset; it may well raise."""

    observation_space = spaces.Box(-NEVER, NEVER, (2,), np.float32)
    action_space: spaces.Space[Any] = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, returns: Callable[[int], tuple[Any, Any]], ends_at: int) -> None:
        self.returns, self.ends_at = returns, ends_at
        self.elapsed = self.resets = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.elapsed, self.resets = 0, self.resets + 1
        return self.returns(0)[0], {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.elapsed += 1
        return *self.returns(self.elapsed), self.elapsed == self.ends_at, False, {}


def sound(step: int) -> tuple[Any, Any]:
    return np.full(2, step, np.float32), 1.0


class Hills(EnvTaskDistribution[Slope]):
    horizon = 20

    def __init__(self, returns: Callable[[int], tuple[Any, Any]] = sound, *, ends_at: int = NEVER) -> None:
        self.returns, self.ends_at = returns, ends_at
        self.made: list[Hill] = []

    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> list[Slope]:
        raise NotImplementedError

    def make_env(self) -> gymnasium.Env[Any, Any]:
        self.made.append(Hill(self.returns, self.ends_at))
        return self.made[-1]

    def set_task(self, env: Any, task: Slope) -> None:
        pass


def play(family: EnvTaskDistribution[Any], *, steps: int = 4, timeout: float | None = None) -> GymnasiumTasks:
    envs = GymnasiumTasks(family, 2, timeout=timeout)
    envs.set_tasks([Slope(0.25), Slope(0.75)])
    envs.reset(seed=[11, 12])
    for _ in range(steps):
        envs.step(np.zeros((2, 1)))
    return envs


def after(step: int, mishap: Callable[[], Any]) -> Callable[[int], tuple[Any, Any]]:
    """Sound before `step`; then whatever `mishap` does, or returns instead of the pair."""
    return lambda now: sound(now) if now < step else mishap()


def raising(error: BaseException) -> Callable[..., Any]:
    def mishap(*_: Any) -> Any:
        raise error

    return mishap


def test_a_mask_resets_some_and_leaves_the_others_as_they_ended() -> None:
    family = Hills(ends_at=2)
    envs = play(family, steps=3)
    options = {"reset_mask": np.array([True, False])}
    observations, _ = envs.reset(options=options)
    assert "reset_mask" in options, "the caller's own"
    assert observations.tolist() == [[0.0, 0.0], [2.0, 2.0]]
    assert envs.step(np.zeros((2, 1)))[0].tolist() == [[1.0, 1.0], [2.0, 2.0]]
    assert [env.resets for env in family.made] == [2, 1]
    envs.reset()
    assert [env.resets for env in family.made] == [3, 2]


@pytest.mark.parametrize("error", [ValueError("bad\n  luck"), BrokenPipeError("gone"), SystemExit(0)])
def test_what_a_step_raises_comes_with_its_task_seed_and_step(error: BaseException) -> None:
    with pytest.raises(EnvironmentFaultError) as raised:
        play(Hills(after(3, raising(error))))
    said = " ".join(str(error).split())
    what = f"the environment's step raised {type(error).__name__}: {said}"
    assert str(raised.value) == f"{what} (task Slope(value=0.25), seed 11, step 3)"
    assert raised.value.__cause__ is error


@pytest.mark.parametrize(
    ("method", "place"),
    [
        ("make_env", ""),
        ("set_task", " (task Slope(value=0.25), seed 11, step 0)"),
    ],
)
def test_what_a_distribution_raises_comes_with_what_was_called(
    method: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = RuntimeError("no")
    monkeypatch.setattr(Hills, method, raising(error))
    with pytest.raises(EnvironmentFaultError) as raised:
        play(Hills())
    assert str(raised.value) == f"the environment's {method} raised RuntimeError: no{place}"
    assert raised.value.__cause__ is error


def test_what_closing_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    envs = play(Hills())
    monkeypatch.setattr(Hill, "close", raising(SystemExit(0)))
    with pytest.raises(EnvironmentFaultError, match=r"close raised SystemExit: 0 \(task .*0.25\), seed 11, step 4\)$"):
        envs.close()


def test_what_a_reset_raises() -> None:
    with pytest.raises(EnvironmentFaultError, match=r"reset raised OSError: no \(task .*0.25\), seed 11, step 0\)$"):
        play(Hills(after(0, raising(OSError("no")))))


@pytest.mark.parametrize("error", [InputError("task.slope = 3: must be in [0, 1]"), KeyboardInterrupt()], ids=repr)
def test_bad_input_and_a_stop_stay_what_they_are(error: BaseException) -> None:
    with pytest.raises(type(error)) as raised:
        play(Hills(after(2, raising(error))))
    assert raised.value is error


NUMBER = "must be one number that a float can hold"
OBSERVATION = "an observation of shape {}: must be (2,), the observation space's"


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ((np.zeros(3), 1.0), OBSERVATION.format("(3,)")),
        ((np.zeros((1, 2)), 1.0), OBSERVATION.format("(1, 2)")),
        (([0.0, 0.0, 0.0], 1.0), OBSERVATION.format("(3,)")),
        ((None, 1.0), "the observation None: must be an array of shape (2,), the observation space's"),
        ((np.zeros(2, complex), 1.0), "an observation of dtype complex128: must be numbers, float32"),
        ((np.zeros(2, object), 1.0), "an observation of dtype object: must be numbers, float32"),
        ((["a", "b"], 1.0), "an observation of dtype <U1: must be numbers, float32"),
        ((np.zeros(2), None), f"the reward None: {NUMBER}"),
        ((np.zeros(2), np.zeros(2)), f"the reward array([0., 0.]): {NUMBER}"),
        ((np.zeros(2), "1"), f"the reward '1': {NUMBER}"),
        ((np.zeros(2), np.str_("1")), f"the reward np.str_('1'): {NUMBER}"),
        ((np.zeros(2), 1j), f"the reward 1j: {NUMBER}"),
        ((np.zeros(2), 10**400), f"the reward 1{'0' * 79}: {NUMBER}"),
        ((np.zeros(2), 10**5000), f"the reward <int without text: repr raised ValueError>: {NUMBER}"),
    ],
)
def test_what_is_no_observation_or_reward(returned: tuple[Any, Any], said: str) -> None:
    with pytest.raises(EnvironmentFaultError) as raised:
        play(Hills(after(2, lambda: returned)))
    assert str(raised.value) == f"the environment's step returned {said} (task Slope(value=0.25), seed 11, step 2)"


@pytest.mark.parametrize(
    "returned", [([0, 1], 1), ((0.0, 1.0), np.float32(1.0)), (np.ones(2), np.array(1.0)), (np.ones(2), np.ones(1))]
)
def test_what_is_one(returned: tuple[Any, Any]) -> None:
    play(Hills(lambda step: returned))


def test_an_observation_of_a_reset_is_checked_too() -> None:
    with pytest.raises(EnvironmentFaultError, match=r"reset returned an observation of shape \(1,\)"):
        play(Hills(lambda step: (np.zeros(1), 0.0)))


@pytest.mark.parametrize("name", ["observation_space", "action_space"])
def test_spaces_stay_what_they_were(name: str) -> None:
    class Growing(Hills):
        def set_task(self, env: Any, task: Slope) -> None:
            if env.resets:
                setattr(env, name, spaces.Box(-NEVER, NEVER, (3,), np.float32))

    said = rf"{name} = Box\(.*: must equal that of the first environment, Box\(.*\(task .*, seed 11, step 0\)$"
    with pytest.raises(EnvironmentFaultError, match=said):
        play(Growing(), steps=0).reset(seed=[11, 12])


def test_a_simulation_that_broke_is_left_alone_until_the_next_reset() -> None:
    class Breaking(Hill):
        def step(self, action: Any) -> Any:
            return *super().step(action)[:4], {"diverged": True}

    class Breakings(Hills):
        def make_env(self) -> Any:
            self.made.append(Breaking(self.returns, NEVER))
            return self.made[-1]

    family = Breakings()
    play(family, steps=4)
    assert [env.elapsed for env in family.made] == [1, 1]


@pytest.mark.parametrize("observation", [None, "left", {"x": 1}, (np.zeros(2), {}), [[1.0], [1.0, 2.0]], object()])
def test_an_observation_that_is_no_array_is_shown(observation: Any) -> None:
    shown = re.escape(f"reset returned the observation {observation!r:.80}: must be an array of shape (2,)")
    with pytest.raises(EnvironmentFaultError, match=shown):
        play(Hills(lambda step: (observation, 0.0)))


class OfOldGym:
    """It has the methods, but is no gymnasium.Env."""

    def reset(self) -> Any: ...
    def step(self, action: Any) -> Any: ...


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ("CartPole-v1", "'CartPole-v1': must be a gymnasium.Env"),
        (Hill, "<class '.*Hill'>: must be a gymnasium.Env, such as Hill()"),
        (OfOldGym(), "<.*OfOldGym object .*: must be a gymnasium.Env. Let OfOldGym inherit from it: `class "),
        (gymnasium.make_vec("CartPole-v1", num_envs=2), ".*, one environment. Return a vector environment of your own"),
    ],
)
def test_an_environment_is_one_of_gymnasiums(made: Any, said: str) -> None:
    class Nothing(Hills):
        def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> list[Slope]:
            return [Slope(value) for value in rng.random(num_tasks).tolist()]

        def make_env(self) -> Any:
            return made

    said = f"make_env returned {said.replace('()', '[(][)]')}"
    with pytest.raises(EnvironmentFaultError, match=f"^the environment's {said}"):
        play(Nothing())
    with pytest.raises(InputError, match=f"^{said}"):
        check_before_training(Nothing(), timeout=None)


def test_an_environment_that_has_ended_is_left_alone_until_the_next_reset() -> None:
    family = Hills(ends_at=3)
    envs = play(family, steps=6)
    assert [env.elapsed for env in family.made] == [3, 3]
    assert [env.resets for env in family.made] == [1, 1]
    observations, rewards, terminated, truncated, _ = envs.step(np.zeros((2, 1)))
    assert observations.tolist() == [[3.0, 3.0]] * 2
    assert not np.stack((rewards, terminated, truncated)).any()
    envs.reset(seed=[1, 2])
    envs.step(np.zeros((2, 1)))
    assert [(env.elapsed, env.resets) for env in family.made] == [(1, 2)] * 2


def hang() -> Any:
    while True:
        time.sleep(0.01)


@pytest.mark.parametrize(("step", "what"), [(0, "reset"), (2, "step")])
def test_a_call_that_hangs_is_broken_off_where_it_hangs(step: int, what: str) -> None:
    started = time.monotonic()
    with pytest.raises(EnvironmentFaultError) as raised:
        play(Hills(after(step, hang)), timeout=0.2)
    assert time.monotonic() - started < 5.0
    where = f"(task Slope(value=0.25), seed 11, step {step})"
    assert str(raised.value) == f"the environment's {what} raised TimeoutError: no answer within 0.2 s {where}"
    cause = raised.value.__cause__
    assert isinstance(cause, TimeoutError)
    names, frame = [], cause.__traceback__
    while frame is not None:
        names.append(frame.tb_frame.f_code.co_name)
        frame = frame.tb_next
    assert "hang" in names


def test_each_call_of_each_environment_has_the_time_to_itself() -> None:
    def slow(step: int) -> tuple[Any, Any]:
        time.sleep(0.4)
        return sound(step)

    play(Hills(slow), steps=0, timeout=0.7)  # two resets take 0.8 s


@pytest.mark.parametrize("timeout", [None, 0.2])
def test_a_slow_caller_is_not_broken_off(timeout: float | None) -> None:
    envs = play(Hills(), timeout=timeout)
    time.sleep(0.3)
    envs.step(np.zeros((2, 1)))


@pytest.mark.parametrize("fails", [False, True])
def test_the_alarm_of_the_caller_is_as_it_was(fails: bool) -> None:
    def handler(number: int, frame: object) -> None:
        raise AssertionError("too early")

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 30.0, 7.0)
        if fails:
            with pytest.raises(EnvironmentFaultError):
                play(Hills(after(2, hang)), timeout=0.1)
        else:
            play(Hills(), timeout=100.0)
        assert signal.getsignal(signal.SIGALRM) is handler
        remaining, interval = signal.getitimer(signal.ITIMER_REAL)
        assert 0.0 < remaining < (29.9 if fails else 30.0)
        assert interval == 7.0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def test_there_is_no_limit_outside_the_main_thread() -> None:
    done: list[GymnasiumTasks] = []

    def slow(step: int) -> tuple[Any, Any]:
        time.sleep(0.05)
        return sound(step)

    thread = threading.Thread(target=lambda: done.append(play(Hills(slow), steps=1, timeout=0.01)))
    thread.start()
    thread.join()
    assert len(done) == 1


MODULE = """
import json, pathlib, time
from dataclasses import dataclass
import gymnasium, numpy as np
import metarl


@dataclass(frozen=True)
class Slope:
    value: float


class Hill(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-9.0, 9.0, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        self.seed, self.elapsed = seed, 0
        return np.zeros(2, np.float32), {{}}

    def step(self, action):
        self.elapsed += 1
        observation, reward = np.ones(2, np.float32), float(action[0])
        metrics, note = pathlib.Path("run/metrics.jsonl"), pathlib.Path("mishap.json")
        if self.elapsed == 3 and metrics.exists() and metrics.read_text().count("\\n") == 2 and not note.exists():
            note.write_text(json.dumps([str(self.slope), self.seed]))
            {mishap}
        return observation, reward, False, False, {{}}


class Hills(metarl.EnvTaskDistribution):
    horizon = 5

    def sample(self, num_tasks, rng, *, split="train"):
        return [Slope(float(value)) for value in rng.random(num_tasks)]

    def make_env(self):
        return Hill()

    def set_task(self, env, task):
        env.slope = task
"""
TINY = (
    "train steep:Hills --iterations 3 --meta-batch-size 2 --agent.num-trajectories 2 --agent.hidden-sizes 4 "
    "--evaluation.num-tasks 2 --evaluation.num-adaptation-steps 1 --evaluation.no-controls "
    "--trainer.environment-timeout 1 --run-dir run"
)


def metarl(arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([METARL, *arguments.split()], cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("mishap", "original", "said"),
    [
        (
            "raise EOFError('lost\\nthe simulator')",
            "EOFError: lost\nthe simulator",
            "step raised EOFError: lost the simulator",
        ),
        ("time.sleep(60)", "time.sleep(60)", "step raised TimeoutError: no answer within 1 s"),
        ("reward = np.nan", None, "reward = nan: must be finite"),
        ("observation[1] = np.inf", None, "observation[1] = inf: must be finite"),
    ],
    ids=["raise", "hang", "reward", "observation"],
)
def test_a_users_environment_that_fails_ends_the_run_with_what_where_and_when(
    mishap: str, original: str | None, said: str, tmp_path: Path
) -> None:
    (tmp_path / "steep.py").write_text(MODULE.format(mishap=mishap))
    result = metarl(TINY, tmp_path)
    assert result.returncode == 1, result.stderr
    task, seed = json.loads((tmp_path / "mishap.json").read_text())
    *above, last = result.stderr.splitlines()
    assert last == f"metarl: the environment's {said} (task {task}, seed {seed}, step 3)"
    if original is None:
        assert above == []
    else:
        assert above[0] == "Traceback (most recent call last):"
        assert 'steep.py", line' in result.stderr
        assert original in "\n".join(above)
        assert result.stderr.count("Traceback") == 1
    assert "iteration 2/3" in result.stdout
    assert checkpoint.latest(tmp_path / "run").iteration == 2
    if mishap.startswith("raise"):  # it does so once
        _goes_on(tmp_path)


def _goes_on(folder: Path) -> None:
    result = metarl("train steep:Hills --resume run --quiet", folder)
    assert (result.returncode, result.stderr) == (0, "")
    assert [row["iteration"] for row in read_metrics(folder / "run")] == [1, 2, 3]
