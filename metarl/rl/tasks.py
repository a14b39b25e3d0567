"""Task distributions over environments: what a family of RL tasks implements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from metarl.core.errors import one_line, require, users_code
from metarl.core.tasks import Task, TaskDistribution, parts_of

if TYPE_CHECKING:
    import gymnasium


def horizon_of(distribution: EnvTaskDistribution[Any]) -> int:
    """Its horizon as an int.

    Raises:
        InputError: it is no integer >= 1.
    """
    with users_code("horizon"):
        horizon: Any = getattr(distribution, "horizon", None)
    is_integer = isinstance(horizon, (int, np.integer)) and not isinstance(horizon, bool)
    require(is_integer and horizon >= 1, "horizon", horizon, "an integer >= 1: steps per trajectory")
    return int(horizon)


class TaskVectorEnv(Protocol):
    """What collection asks of a vector environment: gymnasium's `VectorEnv` plus `set_tasks`.

    `set_tasks` takes one task per sub-environment and holds from the next `reset`. After a sub-environment has ended,
    what it returns until the next `reset` is ignored. `infos["diverged"]`, where present, is a bool array [num_envs]:
    the step broke the simulation and its observation and reward mean nothing. `infos["success"]` (or `"is_success"`)
    is bool [num_envs]: whether the step reached the goal. A family that has it gives it in every step. A trajectory is
    a success if any of its live steps was. Other infos are not read (`metarl.rl.stepping`). If
    `metadata["autoreset_mode"]` is gymnasium's `DISABLED`, `reset` takes the option `reset_mask`, bool [num_envs], and
    resets only those sub-environments. stable-baselines3 needs it; collection does not. Spaces are converted as those
    of `make_env`. If `metadata["own_units"]` is true, nothing is rescaled.
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
    """A task seen from above, as data: the background of `paths.png`. Lengths are in the world's units.

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
        """One environment; `set_task` is called before every reset.

        A policy observes one flat vector. Its action is one flat vector or one choice. `metarl.rl.spaces` converts
        other spaces: observations are flattened, integers of a Box are rescaled to [-1, 1], and bounded actions are
        rescaled from [-1, 1]. If `env.metadata["own_units"]` is true, nothing is rescaled.
        """
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

        By default, all numbers in the task, in order, at any depth. Where one of them is an angle,
        return its cosine and sine instead: angles just above 0 and just below 2 pi are then close.
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
        """What there is to see of `task` from above, or None: then nothing is drawn. Implement `positions` with it."""
        return None

    def positions(self, observations: NDArray[np.float32]) -> NDArray[np.floating[Any]]:
        """Where the agent is in the coordinates of `scene`.

        Args:
            observations: [..., observation_size], flat, and in the environment's own units even if the policy
                sees them rescaled.

        Returns:
            [..., 2].
        """
        raise NotImplementedError(f"{type(self).__name__} defines scene but not positions")
