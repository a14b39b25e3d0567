"""Task distributions: what a task is, how tasks are drawn, and how an environment is given one.

A task is plain data (a frozen dataclass of numbers): comparable, printable, picklable. A distribution draws tasks from
an explicit generator and has a `train` and a `test` split.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import gymnasium

Split = Literal["train", "test"]
Splits = Literal["disjoint", "identical", "same distribution"]
Task = TypeVar("Task")


class TaskDistribution(ABC, Generic[Task]):
    """Draws tasks.

    Attributes:
        splits: what a test score means. "disjoint": no test task can be drawn in training (generalisation);
            "identical": a finite family, trained and tested on the same tasks (adaptation only); "same distribution":
            fresh draws from one continuous distribution.
    """

    splits: Splits = "same distribution"

    @abstractmethod
    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> list[Task]:
        """Draws `num_tasks` tasks of `split`; all randomness comes from `rng`."""

    def all_tasks(self, split: Split = "test") -> list[Task] | None:
        """Every task of a finite split, in a fixed order, or None if the split is infinite.

        Evaluation covers a finite split task by task, with replicates, instead of sampling from it.
        """
        return None


class TaskVectorEnv(Protocol):
    """What collection asks of a vector environment: gymnasium's `VectorEnv` plus `set_tasks`.

    `set_tasks` takes one task per sub-environment and holds from the next `reset`. After a sub-environment has ended,
    what it returns until the next `reset` is ignored. `infos["diverged"]`, where present, is a bool array [num_envs]:
    the step broke the simulation and its observation and reward mean nothing. `infos["success"]`, where a family
    has it, is there in every step: bool [num_envs], whether the aim was met in it; a trajectory is a success if any of
    its live steps was. Where `metadata["autoreset_mode"]` is gymnasium's `DISABLED`, `reset` understands the option
    `reset_mask`, bool [num_envs], and resets only those: stable-baselines3 needs it, collection does not.
    """

    num_envs: int
    single_observation_space: gymnasium.Space[Any]
    single_action_space: gymnasium.Space[Any]

    def set_tasks(self, tasks: Sequence[Any]) -> None: ...
    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]: ...
    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Scene:
    """A task seen from above, as data: what `paths.png` draws the agent's way on. Lengths in the world's units.

    Attributes:
        walls: rectangles (x, y, width, height), (x, y) being the corner with the least coordinates.
        start: where a trajectory starts, None where that varies.
        goal: what is to be reached, None where nothing is.
        goal_radius: within it the goal counts as reached; 0 draws a mark alone.
        extent: (x_min, x_max, y_min, y_max) of the part of the world that is shown at least; None = what is drawn.
    """

    walls: tuple[tuple[float, float, float, float], ...] = ()
    start: tuple[float, float] | None = None
    goal: tuple[float, float] | None = None
    goal_radius: float = 0.0
    extent: tuple[float, float, float, float] | None = None


class EnvTaskDistribution(TaskDistribution[Task]):
    """A task distribution over gymnasium environments: the input of every RL agent.

    Implement `make_env` and `set_task` for any gymnasium environment (they run in gymnasium's own vector
    environments), or `make_vector_env` for one that steps all tasks at once, such as `metarl.envs.batch.BatchEnv`.

    Attributes:
        horizon: steps after which a trajectory is truncated.
    """

    horizon: int

    def make_env(self) -> gymnasium.Env[Any, Any]:
        """One environment; `set_task` is called before every reset."""
        raise NotImplementedError(f"{type(self).__name__} defines neither make_env nor make_vector_env")

    def set_task(self, env: gymnasium.Env[Any, Any], task: Task) -> None:
        """Gives `env` (as `make_env` returned it) the task that holds from the next reset."""
        raise NotImplementedError(f"{type(self).__name__} defines make_env but not set_task")

    def make_vector_env(self, num_envs: int, *, num_threads: int) -> TaskVectorEnv | None:
        """`num_envs` environments that step together, or None: then `make_env` is used `num_envs` times.

        Args:
            num_envs: number of sub-environments.
            num_threads: threads the simulator may use, 0 for all cores; the results must not depend on it.
        """
        return None

    def task_features(self, task: Task) -> NDArray[np.float32]:
        """`task` as a vector of one length for all tasks: what an oracle is told of it.

        By default all numbers that the task holds, in order, however they are nested. Where one of them is an angle,
        return its cosine and sine instead: angles just above 0 and just below 2 pi are then close.
        """
        return np.array(list(_numbers(task)), np.float32)

    def scene(self, task: Task) -> Scene | None:
        """What there is to see of `task` from above, or None: then nothing is drawn. Implement `positions` with it."""
        return None

    def positions(self, observations: NDArray[np.float32]) -> NDArray[np.floating[Any]]:
        """Where the agent is in the coordinates of `scene`.

        Args:
            observations: [..., observation_size].

        Returns:
            [..., 2].
        """
        raise NotImplementedError(f"{type(self).__name__} defines scene but not positions")


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, (bool, int, float, np.number, np.bool_)):
        yield float(value)
    elif isinstance(value, np.ndarray):
        yield from value.astype(np.float64).ravel().tolist()
    elif is_dataclass(value):
        for field in fields(value):
            yield from _numbers(getattr(value, field.name))
    elif isinstance(value, (Sequence, Mapping)) and not isinstance(value, str):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _numbers(part)
    else:
        raise TypeError(f"{value!r} is no number: define task_features, which says what numbers stand for such a task")
