"""The episodes of `check-tasks` show what an episode depends on, and whether the task has an effect."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.wrappers import TimeLimit

from metarl.core.tasks import Split
from metarl.rl.tasks import EnvTaskDistribution
from metarl.testing.tasks import check_task_distribution

CARRIED = "state is carried from one task or episode into the next; fresh environments give equal episodes"
DISTURBED = "tasks that run at the same time disturb each other"
MODULE = {"factor": 1.0}


class Walk(gymnasium.Env[Any, Any]):
    """Walks on a line; the reward is `factor` times the place."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space: Any = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
    factor: Any = 1.0
    elapsed = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place, self.elapsed = self.np_random.normal(size=1), 0
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.place, self.elapsed = self.place + 0.1 * np.asarray(action), self.elapsed + 1
        return self.observe(), self.reward(), self.ends(), False, {}

    def observe(self) -> Any:
        return self.place.astype(np.float32)

    def reward(self) -> float:
        return float(self.place[0] * self.factor)

    def ends(self) -> bool:
        return False


class Walks(EnvTaskDistribution[float]):
    """Sound; each class below changes one thing."""

    horizon = 6
    environment: type[Walk] = Walk

    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> Any:
        return rng.uniform(0.5, 2.0, num_tasks).tolist()

    def make_env(self) -> gymnasium.Env[Any, Any]:
        return self.environment()

    def set_task(self, env: Any, task: Any) -> None:
        env.factor = task


class Multiplies(Walks):
    def set_task(self, env: Any, task: Any) -> None:
        env.factor *= task


class KeepsTheLargest(Walks):
    def set_task(self, env: Any, task: Any) -> None:
        env.factor = max(env.factor, task)


class SetsOneTaskOnly(Walks):
    def set_task(self, env: Any, task: Any) -> None:
        if task > 1.5:
            env.factor = task


class CountsResets(Walks):
    class environment(Walk):  # noqa: N801
        resets = 0

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
            self.resets += 1
            return super().reset(seed=seed)

        def reward(self) -> float:
            return float(self.resets)


class MultipliesOnTheClass(Walks):
    class environment(Walk):  # noqa: N801
        pass

    def set_task(self, env: Any, task: Any) -> None:
        type(env).factor *= task


class MultipliesInTheModule(Walks):
    def set_task(self, env: Any, task: Any) -> None:
        MODULE["factor"] *= task
        env.factor = MODULE["factor"]


class MultipliesInTheDistribution(Walks):
    factor = 1.0

    def set_task(self, env: Any, task: Any) -> None:
        self.factor *= task
        env.factor = self.factor


class SharesTheClass(Walks):
    class environment(Walk):  # noqa: N801
        pass

    def set_task(self, env: Any, task: Any) -> None:
        type(env).factor = task


class SharesTheModule(Walks):
    class environment(Walk):  # noqa: N801
        def reward(self) -> float:
            return MODULE["shared"]

    def set_task(self, env: Any, task: Any) -> None:
        MODULE["shared"] = task


class IgnoresTheSeed(Walks):
    class environment(Walk):  # noqa: N801
        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
            return super().reset()


class DrawsInTheStep(Walks):
    class environment(Walk):  # noqa: N801
        def reward(self) -> float:
            return float(np.random.default_rng().random())


class Lost(Walks):
    def set_task(self, env: Any, task: Any) -> None:
        pass


class OnAWrapper(Walks):
    def make_env(self) -> gymnasium.Env[Any, Any]:
        return TimeLimit(Walk(), 6)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (Multiplies, CARRIED),
        (KeepsTheLargest, CARRIED),
        (SetsOneTaskOnly, CARRIED),
        (CountsResets, CARRIED),
        (
            MultipliesOnTheClass,
            "they change tests.testing.test_environments.MultipliesOnTheClass.environment.factor, which",
        ),
        (MultipliesInTheModule, "they change tests.testing.test_environments.MODULE, which is kept outside"),
        (MultipliesInTheDistribution, "they change distribution.factor, which is kept outside of the environment"),
        (SharesTheClass, DISTURBED),
        (SharesTheModule, DISTURBED),
        (IgnoresTheSeed, ": reset ignores its seed"),
        (DrawsInTheStep, ": reset ignores its seed"),
        (Lost, "gave equal episodes: the task does not reach the environment"),
        (
            OnAWrapper,
            "set_task sets 'factor' of the wrapper gymnasium.wrappers.common.TimeLimit: write env.unwrapped.fac",
        ),
    ],
)
def test_what_episodes_depend_on_is_told_apart(broken: type[Walks], said: str) -> None:
    notes: list[str] = []
    (line,) = check_task_distribution(broken(), on_note=notes.append)
    assert said in line
    assert notes == []


class ChangesObservations(Walks):
    class environment(Walk):  # noqa: N801
        def observe(self) -> Any:
            return (self.place + self.factor).astype(np.float32)

        def reward(self) -> float:
            return 0.0


class ChangesTheEnd(Walks):
    """The task shows only after more steps than the first attempt takes."""

    horizon = 90

    class environment(Walk):  # noqa: N801
        def reward(self) -> float:
            return 0.0

        def ends(self) -> bool:
            return bool(self.elapsed >= 40 * self.factor + 20)


class EndsAtTheHorizon(Walks):
    """Terminated or truncated: only that depends on the task."""

    class environment(Walk):  # noqa: N801
        def reward(self) -> float:
            return 0.0

        def ends(self) -> bool:
            return bool(self.elapsed == 6 and self.factor > 1.0)


class PaysLate(Walks):
    horizon = 90

    class environment(Walk):  # noqa: N801
        def reward(self) -> float:
            return super().reward() * (self.elapsed > 80)


class PaysFarAway(Walks):
    """Reached only by a repeated action."""

    horizon = 90

    class environment(Walk):  # noqa: N801
        def reward(self) -> float:
            return float(self.place[0] > 6.0 + self.factor)


@pytest.mark.parametrize("sound", [Walks, ChangesObservations, ChangesTheEnd, EndsAtTheHorizon, PaysLate, PaysFarAway])
def test_a_task_that_changes_anything_is_seen(sound: type[Walks]) -> None:
    notes: list[str] = []
    assert check_task_distribution(sound(), on_note=notes.append) == []
    assert notes == []


class Sparse(Walks):
    class environment(Walk):  # noqa: N801
        def reward(self) -> float:
            return float(abs(self.place[0] - 1000.0 * self.factor) < 1.0)


def test_a_reward_that_is_never_met_is_no_fault() -> None:
    notes: list[str] = []
    assert check_task_distribution(Sparse(), on_note=notes.append) == []
    (note,) = notes
    assert note.startswith("could not show that the task reaches the environment")


class Few(Walks):
    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> Any:
        return (1.0 + rng.integers(3, size=num_tasks)).tolist()


class FewApart(Few):
    splits = "disjoint"

    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> Any:
        return [task + 10.0 * (split == "test") for task in super().sample(num_tasks, rng)]


class Listed(Few):
    def all_tasks(self, split: Split = "test") -> Any:
        return [1.0, 2.0, 3.0]


class ListedIdentical(Listed):
    splits = "identical"


@pytest.mark.parametrize(
    ("family", "said"),
    [
        (Few, ["only 3 different train tasks and 3 different test tasks in 200 draws", "set splits = 'identical'"]),
        (FewApart, ["only 3 different train tasks and 3 different test tasks in 200 draws"]),
        (Listed, ["set splits = 'identical'"]),
        (ListedIdentical, []),
    ],
)
def test_how_to_declare_a_small_family_is_said(family: type[Walks], said: list[str]) -> None:
    notes: list[str] = []
    assert check_task_distribution(family(), on_note=notes.append) == []
    assert len(notes) == len(said)
    for note, words in zip(notes, said, strict=True):
        assert words in note
