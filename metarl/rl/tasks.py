"""Task distributions over environments: what a family of RL tasks implements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from metarl.core.errors import one_line, require, users_code
from metarl.core.tasks import Task, TaskDistribution, Tasks, parts_of

if TYPE_CHECKING:
    import gymnasium

AnyEnv: TypeAlias = "gymnasium.Env[Any, Any]"
AnySpace: TypeAlias = "gymnasium.Space[Any]"
EnvTasks: TypeAlias = "EnvTaskDistribution[Any]"
Array = NDArray[Any]

Infos: TypeAlias = dict[str, Any]
ResetSeed: TypeAlias = int | Sequence[int | None] | None
ResetOptions: TypeAlias = dict[str, Any] | None
ResetResult: TypeAlias = tuple[Any, Infos]
"""Observations and infos."""
StepResult: TypeAlias = tuple[Any, Any, Any, Any, Infos]
"""Observations, rewards, terminated, truncated and infos."""


class TaskVectorEnv(Protocol):
    """A vector environment in which each sub-environment has a task: gymnasium's `VectorEnv` with `set_tasks`.

    Collection resets all sub-environments together and steps them for `horizon` steps. After a sub-environment has
    ended, collection ignores its results until the next reset, so any autoreset mode will do.

    `metadata`, if there is any, is read too:
        - `own_units` is true: actions and observations are not rescaled. Otherwise spaces are converted as those of
          `EnvTaskDistribution.make_env`.
        - `autoreset_mode` is gymnasium's `DISABLED`: `reset` takes the option `reset_mask`, bool [num_envs], and resets
          only those sub-environments. stable-baselines3 needs this; collection does not.

    Attributes:
        num_envs: number of sub-environments.
        single_observation_space: of one sub-environment.
        single_action_space: of one sub-environment.
    """

    num_envs: int
    single_observation_space: AnySpace
    single_action_space: AnySpace

    def set_tasks(self, tasks: Tasks) -> None:
        """Gives each sub-environment a task, which takes effect at the next reset.

        Args:
            tasks: `num_envs` tasks.
        """

    def reset(self, *, seed: ResetSeed = None, options: ResetOptions = None) -> ResetResult:
        """Starts new trajectories.

        Args:
            seed: one per sub-environment. Equal seeds and tasks must give equal trajectories.
            options: as in gymnasium.

        Returns:
            Observations [num_envs, ...], and infos, which are not read.
        """

    def step(self, actions: Any) -> StepResult:
        """Takes one step in every sub-environment.

        Two infos are read (`metarl.rl.stepping`), each bool [num_envs]. `diverged`: the step broke the simulation, so
        its observation and reward mean nothing. `success` or `is_success`: the step reached the goal. A family that has
        this info gives it in every step. A trajectory is a success if any of its live steps was.

        Args:
            actions: [num_envs, ...], not clipped.

        Returns:
            Observations [num_envs, ...], rewards [num_envs], terminated and truncated, bool [num_envs], and infos.
        """

    def close(self) -> None:
        """Frees what the environments hold."""


class TaskVectorWrapper:
    """Base of wrappers around a `TaskVectorEnv`; passes everything on. A subclass overrides what it changes.

    Attributes:
        env: the wrapped environment.
        metadata: of the wrapped environment.
    """

    def __init__(self, env: TaskVectorEnv) -> None:
        self.env = env
        self.num_envs = env.num_envs
        self.single_observation_space = env.single_observation_space
        self.single_action_space = env.single_action_space
        self.metadata = metadata_of(env)

    def set_tasks(self, tasks: Tasks) -> None:
        self.env.set_tasks(tasks)

    def reset(self, *, seed: ResetSeed = None, options: ResetOptions = None) -> ResetResult:
        return self.env.reset(seed=seed, options=options)

    def step(self, actions: Any) -> StepResult:
        return self.env.step(actions)

    def close(self) -> None:
        self.env.close()


def unwrapped(env: TaskVectorEnv) -> TaskVectorEnv:
    """The environment inside all of MetaRL's wrappers."""
    while isinstance(env, TaskVectorWrapper):
        env = env.env
    return env


def metadata_of(env: TaskVectorEnv) -> Mapping[str, Any]:
    """The environment's `metadata`; empty if a class of the user's own has none."""
    return getattr(env, "metadata", None) or {}


@dataclass(frozen=True)
class Scene:
    """A task seen from above, as data: the background of `paths.png`. Lengths are in the world's units.

    Attributes:
        walls: rectangles (x, y, width, height); (x, y) is the corner with the smallest coordinates.
        start: where a trajectory starts; None if that varies.
        goal: the position to reach; None if there is none.
        goal_radius: distance within which the goal counts as reached; with 0, only a mark is drawn.
        extent: (x_min, x_max, y_min, y_max) of the part of the world that is shown at least; None = what is drawn.
    """

    walls: tuple[tuple[float, float, float, float], ...] = ()
    start: tuple[float, float] | None = None
    goal: tuple[float, float] | None = None
    goal_radius: float = 0.0
    extent: tuple[float, float, float, float] | None = None


class EnvTaskDistribution(TaskDistribution[Task]):
    """A task distribution over gymnasium environments: the input of every RL agent.

    Implement `sample` and `horizon`, and one of two ways to make environments. With `make_env` and `set_task`, MetaRL
    steps any gymnasium environment, one after another. With `make_vector_env`, all tasks step at once, as in
    `metarl.envs.batch.BatchEnv`. The other methods are optional.

    Attributes:
        horizon: steps after which a trajectory is truncated, >= 1.
    """

    horizon: int

    def make_env(self) -> AnyEnv:
        """Makes one environment. `set_task` is called before each of its resets.

        A policy observes one flat vector. Its action is one flat vector or one choice. `metarl.rl.spaces` converts
        other spaces: observations are flattened, integers of a Box are rescaled to [-1, 1], and bounded actions are
        rescaled from [-1, 1]. If `env.metadata["own_units"]` is true, nothing is rescaled.
        """
        raise NotImplementedError(f"{type(self).__name__} defines neither make_env nor make_vector_env")

    def set_task(self, env: AnyEnv, task: Task) -> None:
        """Sets the task of `env`, made by `make_env`, for the next reset and those after it."""
        raise NotImplementedError(f"{type(self).__name__} defines make_env but not set_task")

    def make_vector_env(self, num_envs: int, *, num_threads: int) -> TaskVectorEnv | None:
        """Makes `num_envs` environments that step together. None: `make_env` is called `num_envs` times instead.

        Args:
            num_envs: number of sub-environments.
            num_threads: threads that the simulator may use, 0 for all cores; the results must not depend on it.
        """
        return None

    def task_features(self, task: Task) -> NDArray[np.float32]:
        """`task` as a vector, of one length for all tasks. An oracle sees it at the end of its observations.

        By default, these are all numbers in the task, in order, at any depth. If one of them is an angle, return its
        cosine and sine instead: then angles just above 0 and just below 2 pi are close.
        """
        numbers: list[float] = []
        for _, part in parts_of(task):
            if isinstance(part, np.ndarray) and part.dtype.kind in "biuf":
                numbers += part.astype(np.float64).ravel().tolist()
            elif isinstance(part, (bool, int, float, np.number, np.bool_)):
                numbers.append(float(part))
            else:
                advice = "define task_features, which gives the numbers for such a task"
                raise TypeError(f"{one_line(repr(part))} is not a number: {advice}")
        return np.array(numbers, np.float32)

    def scene(self, task: Task) -> Scene | None:
        """The view of `task` from above; None = nothing is drawn. A family with scenes implements `positions` too."""
        return None

    def positions(self, observations: NDArray[np.float32]) -> NDArray[np.floating[Any]]:
        """Where the agent is, in the coordinates of `scene`.

        Args:
            observations: [..., observation_size], flat, and in the environment's own units even if the policy
                sees them rescaled.

        Returns:
            [..., 2].
        """
        raise NotImplementedError(f"{type(self).__name__} defines scene but not positions")


def horizon_of(distribution: EnvTasks) -> int:
    """The horizon as an int.

    Raises:
        InputError: it is not an integer >= 1.
    """
    with users_code("horizon"):
        horizon: Any = getattr(distribution, "horizon", None)  # a subclass may have forgotten it
    is_integer = isinstance(horizon, (int, np.integer)) and not isinstance(horizon, bool)
    require(is_integer and horizon >= 1, "horizon", horizon, "an integer >= 1: steps per trajectory")
    return int(horizon)
