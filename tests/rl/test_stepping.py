"""Infos may hold anything: what MetaRL reads of them, what it ignores, and what it says of that."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecMonitor

from metarl.agents.sb3 import TaskVecEnv, TrialVecEnv
from metarl.core.data import Trajectories
from metarl.core.errors import EnvironmentFaultError, warn_once
from metarl.core.learner import Acted
from metarl.core.seeds import Seeds
from metarl.core.tasks import Split
from metarl.rl.rollout import RolloutCollector
from metarl.rl.stepping import DIVERGED, SUCCESS, info_flag, info_flags, number, truth
from metarl.rl.tasks import EnvTaskDistribution, TaskVectorEnv

HORIZON = 4
Infos = Mapping[Any, Any]


@pytest.fixture(autouse=True)
def _says_everything_again() -> None:
    warn_once.cache_clear()


class Uncopied(dict[Any, Any]):
    def copy(self) -> Any:
        raise RuntimeError("no copy")

    __copy__ = __deepcopy__ = copy  # type: ignore[assignment]


class Odd:
    __array__ = __bool__ = __len__ = lambda *_: 1 / 0


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *[(value, True) for value in (True, 1, 1.0, np.True_, np.float32(1), np.ones(1), np.ones((1, 1), bool), [1])],
        *[(value, False) for value in (False, 0, -0.0, np.False_, np.zeros(1, int), torch.zeros(1))],
        *[(value, None) for value in ("no", "1", b"1", None, np.nan, 2, 0.37, -1, 1j, np.ones(2), [], {})],
        *[(value, None) for value in ([[1], [1, 2]], 10**400, Odd(), np.str_("1"), np.array(["1"]), np.array(None))],
    ],
    ids=lambda value: repr(value)[:30].split(" at ")[0],
)  # fmt: skip
def test_a_boolean_is_one_boolean_zero_or_one(value: Any, expected: bool | None) -> None:
    assert truth(value) is expected


def test_a_number_is_one_that_a_float_holds() -> None:
    assert [number(value) for value in (2, np.float32(0.5), np.ones(1), [3.0], True)] == [2.0, 0.5, 1.0, 3.0, 1.0]
    assert [number(value) for value in (10**400, "1", None, 1j, np.complex64(1), np.ones(2), Odd())] == [None] * 7


@pytest.mark.parametrize(
    ("infos", "expected"),
    [
        ({"is_success": 1.0}, True),
        ({"success": False, "is_success": True}, False),  # `success` is MetaRL's own word
        ({"success": "goal", "is_success": True}, True),
        ({"success": "goal"}, None),
        ({1: 2, ("a",): 3}, None),
    ],
)
def test_success_wins_over_is_success_where_it_is_usable(infos: Infos, expected: bool | None) -> None:
    assert info_flag(infos, SUCCESS) is expected
    arrays = {name: np.array([value, value], object) for name, value in infos.items()}
    values, known = info_flags(arrays, SUCCESS, 2)
    assert values.tolist() == [expected is True] * 2
    assert known.tolist() == [expected is not None] * 2


@pytest.mark.parametrize(
    ("infos", "values", "known"),
    [
        ({"success": np.array([1.0, 0.0, np.nan])}, [1, 0, 0], [1, 1, 0]),
        ({"success": np.array([[1], [0], [1]])}, [1, 0, 1], [1, 1, 1]),
        ({"success": np.array([True, None, "no"], object)}, [1, 0, 0], [1, 0, 0]),
        ({"success": np.ones(3), "_success": np.array([True, False, True])}, [1, 0, 1], [1, 0, 1]),
        ({"success": np.ones(3), "_success": "all"}, [1, 1, 1], [1, 1, 1]),
        ({"success": np.array(["yes"] * 3)}, [0, 0, 0], [0, 0, 0]),
        ({"success": np.ones((3, 2))}, [0, 0, 0], [0, 0, 0]),
        ({"success": True}, [0, 0, 0], [0, 0, 0]),
        ({"success": "no", "is_success": [1, 0, 1]}, [1, 0, 1], [1, 1, 1]),
    ],
)
def test_what_environments_that_step_together_tell(infos: Infos, values: list[int], known: list[int]) -> None:
    found = info_flags(infos, SUCCESS, 3)
    assert [array.astype(int).tolist() for array in found] == [values, known]


def test_what_is_ignored_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        info_flag({"success": "no", "diverged": np.ones(3)}, SUCCESS)
        info_flag({"diverged": np.ones(3)}, DIVERGED)
        info_flags({"success": np.array([0.0, 0.5])}, SUCCESS, 2)
        info_flags({"success": np.array([True, None], object)}, SUCCESS, 2)  # the second one is silent
    assert [record.getMessage() for record in caplog.records] == [
        f"an environment's info[{name!r}] holds {what}: ignored; must be one boolean, 0 or 1"
        for name, what in (
            ("success", "a value of type str"),
            ("diverged", "an array of shape (3,)"),
            ("success", "a number other than 0 and 1"),
        )
    ]


class Telling(gymnasium.Env[Any, Any]):
    observation_space = spaces.Box(-9.0, 9.0, (2,), np.float32)
    action_space: Any = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, tell: Callable[[int], Any]) -> None:
        self.tell, self.elapsed = tell, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, Any]:
        self.elapsed = 0
        return np.zeros(2, np.float32), self.tell(0)

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, Any]:
        self.elapsed += 1
        return np.full(2, self.elapsed, np.float32), 1.0, False, False, self.tell(self.elapsed)


class Together:
    """The same for environments that step together: `tell` returns the infos of all."""

    metadata = {"autoreset_mode": gymnasium.vector.AutoresetMode.DISABLED}  # noqa: RUF012

    def __init__(self, tell: Callable[[int], Any], num_envs: int) -> None:
        self.tell, self.num_envs, self.elapsed = tell, num_envs, 0
        self.single_observation_space, self.single_action_space = Telling.observation_space, Telling.action_space

    def set_tasks(self, tasks: Sequence[Any]) -> None:
        pass

    def reset(self, **_: Any) -> tuple[Any, Any]:
        self.elapsed = 0
        return np.zeros((self.num_envs, 2)), self.tell(0)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, Any]:
        self.elapsed += 1
        ended = np.zeros(self.num_envs, bool)
        return np.full((self.num_envs, 2), self.elapsed), np.ones(self.num_envs), ended, ended, self.tell(self.elapsed)

    def close(self) -> None:
        pass


class Tellings(EnvTaskDistribution[float]):
    horizon = HORIZON

    def __init__(self, tell: Callable[[int], Any], *, together: bool = False) -> None:
        self.tell, self.together = tell, together

    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> list[float]:
        return rng.random(num_tasks).tolist()

    def make_env(self) -> gymnasium.Env[Any, Any]:
        return Telling(self.tell)

    def set_task(self, env: Any, task: float) -> None:
        pass

    def make_vector_env(self, num_envs: int, *, num_threads: int) -> TaskVectorEnv | None:
        return Together(self.tell, num_envs) if self.together else None


class Idle:
    """Acts by noise alone."""

    def act(self, state: None, observations: torch.Tensor, noise: torch.Tensor) -> tuple[Acted, None]:
        return Acted(noise, torch.zeros(observations.shape[:2])), state

    def observe(self, state: None, *feedback: torch.Tensor) -> None:
        return state


def collect(family: Tellings) -> Trajectories:
    collector = RolloutCollector(family, num_trajectories=2)
    return collector.query([0.1, 0.2], Idle(), None, Seeds.first(2))


def ragged(step: int) -> Any:
    return {
        "path": np.zeros((step % 3, 2)),
        "reason": "fell" if step % 2 else 0,
        "nested": {"a": None if step % 2 else [step]},
        3: Odd(),
        ("x",): object(),
        "_private": Odd(),
    }


ANYTHING = {
    "ragged": ragged,
    "words": lambda step: {"success": "no", "diverged": "no", "is_success": None, "_success": "?"},
    "arrays": lambda step: {"success": np.ones(3), "diverged": np.ones(step + 5), "is_success": np.ones((4, 2))},
    "sb3's own names": lambda step: {"episode": step, "terminal_observation": 3, "TimeLimit.truncated": "no"},
    "numbers": lambda step: {"success": 0.4, "diverged": 0.37, "is_success": np.nan},
    "odd": lambda step: {"success": Odd(), "diverged": Odd(), "is_success": {}},
    "no copies": lambda step: Uncopied(path=Uncopied(), success=Uncopied()),
    "huge": lambda step: {"image": np.zeros((500, 500)), **{str(i): i for i in range(1000)}},
}


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("tell", ANYTHING.values(), ids=ANYTHING)
def test_infos_may_hold_anything(tell: Callable[[int], Any], together: bool) -> None:
    data = collect(Tellings(tell, together=together))
    assert data.success is None
    assert not data.diverged.any()
    assert bool((data.mask == 1).all())
    env = VecMonitor(TaskVecEnv(Tellings(tell, together=together), 2))
    env.reset()
    for _ in range(HORIZON):
        *_, dones, infos = env.step(np.zeros((2, 1)))
    assert dones.all()
    assert [info.get("is_success") for info in infos] == [None, None]
    assert [info["episode"]["l"] for info in infos] == [HORIZON] * 2
    assert [info["TimeLimit.truncated"] for info in infos] == [True] * 2
    assert [info["terminal_observation"].tolist() for info in infos] == [[HORIZON] * 2] * 2
    infos = env.step(np.zeros((2, 1)))[3]
    assert "episode" not in infos[0]  # SB3 takes it for its Monitor's


@pytest.mark.parametrize("name", SUCCESS)
@pytest.mark.parametrize("together", [False, True])
def test_a_success_is_one_in_either_word(name: str, together: bool) -> None:
    def tell(step: int) -> Any:
        return {name: [step == 2] * 4 if together else step == 2} if step else {name: "nothing yet"}

    data = collect(Tellings(tell, together=together))
    assert data.success is not None
    assert data.success.all()
    env = TrialVecEnv(Tellings(tell, together=together), 4, episodes_per_trial=1)
    env.reset()
    ends = [env.step(np.zeros((4, 1)))[3][0] for _ in range(HORIZON)]
    assert [info.get("is_success") for info in ends[-1:]] == [True]


def test_sb3_gets_what_an_environment_tells_as_it_is() -> None:
    env = TaskVecEnv(Tellings(ragged), 2)
    env.reset()
    assert env.reset_infos[1]["nested"] == {"a": [0]}
    infos = env.step(np.zeros((2, 1)))[3]
    assert infos[0]["path"].shape == (1, 2)
    assert infos[1]["reason"] == "fell"
    assert "_private" in infos[0]


def test_parts_of_environments_that_step_together() -> None:
    infos = {"speed": np.array([1.0, 2.0]), "_speed": np.array([True, False]), "note": "all", "deep": {"x": [3, 4]}}
    env = TaskVecEnv(Tellings(lambda step: infos, together=True), 2)
    env.reset()
    assert env.reset_infos == [{"speed": 1.0, "note": "all", "deep": {"x": 3}}, {"note": "all", "deep": {"x": 4}}]


@pytest.mark.parametrize("infos", [None, [], 3])
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize(("when", "what"), [(0, "reset"), (2, "step")])
def test_an_info_that_is_no_dict_is_the_environments_fault(infos: Any, together: bool, when: int, what: str) -> None:
    family = Tellings(lambda step: infos if step == when else {}, together=together)
    expected = rf"^the environment's {what} returned the info {infos!r}: must be a dict \(.*step {when}\)$".replace(
        "[]", r"\[\]"
    )
    with pytest.raises(EnvironmentFaultError, match=expected):
        collect(family)


@pytest.mark.parametrize(
    ("method", "change", "said"),
    [
        ("step", lambda answer: answer[:4], "step returned 4 values: must be 5 values, observation,"),
        (
            "step",
            lambda answer: (*answer[:2], None, *answer[3:]),
            "step returned a wrong terminated: must be an array of 4 bool",
        ),
        (
            "step",
            lambda answer: (*answer[:3], np.full(4, 0.5), {}),
            "step returned a wrong truncated: must be an array of 4 bool",
        ),
        ("step", lambda answer: sys.exit(0), "step raised SystemExit: 0 (step 1)"),
        ("reset", lambda answer: sys.exit(0), "reset raised SystemExit: 0 (step 0)"),
        ("reset", lambda answer: answer[0], "reset returned one ndarray: must be 2 values, observation, info"),
        ("set_tasks", lambda answer: sys.exit(0), "set_tasks raised SystemExit: 0"),
        ("close", lambda answer: sys.exit(0), "close raised SystemExit: 0"),
    ],
)
def test_environments_that_step_together_are_told_their_faults(
    method: str, change: Callable[[Any], Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = getattr(Together, method)
    monkeypatch.setattr(Together, method, lambda *given, **settings: change(own(*given, **settings)))
    family = Tellings(lambda step: {}, together=True)
    collector = RolloutCollector(family, num_trajectories=2)

    def use() -> None:
        collector.query([0.1, 0.2], Idle(), None, Seeds.first(2))
        collector.close()

    with pytest.raises(EnvironmentFaultError, match=re.escape(f"the environment's {said}")):
        use()
    env = TaskVecEnv(family, 4)
    if method != "close":
        with pytest.raises(
            EnvironmentFaultError, match=re.escape(f"the environment's {said.removesuffix(' (step 1)')}")
        ):
            env.step(env.reset()[:, :1])


def test_environments_that_cannot_be_made_together() -> None:
    family = Tellings(lambda step: {}, together=True)
    family.make_vector_env = lambda *_, **__: sys.exit(0)  # type: ignore[method-assign]
    with pytest.raises(EnvironmentFaultError, match=r"^the task distribution's make_vector_env raised SystemExit: 0$"):
        RolloutCollector(family, num_trajectories=2)
