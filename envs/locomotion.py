"""What the families of running robots share: tasks, settings, intervals of targets, and the environments' base."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypedDict

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from metarl.core.bounds import AtLeast, Between, Finite, Positive
from metarl.core.errors import require
from metarl.core.tasks import Split, Task
from metarl.envs.batch import BatchEnv
from metarl.envs.simulator import load_model
from metarl.envs.vector import Bools, Floats, Ids
from metarl.rl.tasks import EnvTaskDistribution

ASSETS = Path(gymnasium.__file__).parent / "envs/mujoco/assets"
FULL_TURN = 2.0 * math.pi
Angle = Annotated[float, Between(0.0, FULL_TURN)]


@dataclass(frozen=True)
class Velocity:
    """Run at a speed.

    Attributes:
        target: metres per second.
    """

    target: float


@dataclass(frozen=True)
class Direction:
    """Run along a direction of the plane.

    Attributes:
        angle: radians, anticlockwise from the x axis.
    """

    angle: float


class EnvSettings(TypedDict, total=False):
    """The settings of every `LocomotionEnv`; its constructor describes them."""

    horizon: int
    action_limit: float
    num_threads: int
    autoreset_mode: AutoresetMode


class LocomotionEnv(BatchEnv):
    """One of Gymnasium's robots in a batch. Families add `_assign_tasks` and `_rewards`.

    Observations are all positions but the first `num_hidden_positions`, then all velocities.

    Attributes:
        asset: file name of Gymnasium's model.
        num_hidden_positions: how many positions are not observed: x in a plane, x and y in space.
        frame_skip: physics steps per environment step.
        reset_noise: as in `BatchEnv`.
    """

    asset: str
    num_hidden_positions: int
    frame_skip = 5
    reset_noise = 0.1
    default_camera = "track"

    def __init__(
        self,
        num_envs: int,
        *,
        horizon: int = 200,
        action_limit: float = 1.0,
        num_extra_observations: int = 0,
        num_threads: int = 0,
        autoreset_mode: AutoresetMode = AutoresetMode.DISABLED,
    ) -> None:
        """
        Args:
            num_envs: number of simulations.
            horizon: environment steps after which a trajectory is truncated; `dt` seconds each.
            action_limit: actions in [-action_limit, action_limit] are scaled to the range of the controls and clipped.
            num_extra_observations: how many numbers a family's `_observe` adds.
            num_threads: threads of the simulator, 0 for all cores; does not change the results.
            autoreset_mode: as in `TaskBatchEnv`.
        """
        model = load_model(ASSETS / self.asset)
        super().__init__(
            model,
            num_envs,
            frame_skip=self.frame_skip,
            horizon=horizon,
            observation_size=model.nq - self.num_hidden_positions + model.nv + num_extra_observations,
            action_limit=action_limit,
            reset_noise=self.reset_noise,
            num_threads=num_threads,
            autoreset_mode=autoreset_mode,
        )
        self._goals = np.zeros((num_envs, 2))  # `_assign_tasks` writes it, `_rewards` reads it

    def _observe(self) -> NDArray[Any]:
        return np.concatenate((self.simulator.qpos[:, self.num_hidden_positions :], self.simulator.qvel), 1)


class FallingEnv(LocomotionEnv):
    """The MDP ends when the height of the robot leaves a range: by a fall or a leap.

    Attributes:
        heights: lowest and highest height that does not end the MDP, in metres.
    """

    heights: tuple[float, float]
    num_hidden_positions = 2

    def _terminated(self, ids: Ids) -> Bools | bool:
        low, high = self.heights
        z = self.simulator.qpos[ids, 2]
        unhealthy: Bools = (z < low) | (high < z)
        return unhealthy


class UniformStartEnv(FallingEnv):
    """The initial noise is uniform in positions and in velocities."""

    def _initial_states(self, rngs: Sequence[np.random.Generator]) -> tuple[Floats, Floats]:
        noise, nq = self.reset_noise, self.simulator.model.nq
        drawn = np.stack([rng.uniform(-noise, noise, nq + self.simulator.model.nv) for rng in rngs])
        return self._initial_qpos + drawn[:, :nq], self._initial_qvel + drawn[:, nq:]


@dataclass(frozen=True)
class LocomotionTasks(EnvTaskDistribution[Task]):
    """The settings of every family of running robots.

    Attributes:
        horizon: steps per trajectory.
        action_limit: the policy's action range: actions in [-action_limit, action_limit] are scaled to the range
            of the controls and clipped.
    """

    horizon: Annotated[int, AtLeast(1)] = 200
    action_limit: Annotated[float, Positive] = 1.0

    _env: ClassVar[type[LocomotionEnv]]

    def make_vector_env(self, num_envs: int, *, num_threads: int = 0) -> LocomotionEnv:
        return self._env(num_envs, horizon=self.horizon, action_limit=self.action_limit, num_threads=num_threads)


@dataclass(frozen=True)
class TargetTasks(LocomotionTasks[Task]):
    """Tasks with a target number, drawn uniformly from an interval. The test split may have an interval of its own.

    Attributes:
        low: lowest training target.
        high: highest training target, above `low`.
        test_low: lowest test target; None: test targets come from the training interval.
        test_high: highest test target, above `test_low`, outside the training interval; set both or neither.
    """

    low: Annotated[float, Finite] = 0.0
    high: Annotated[float, Finite] = 1.0
    test_low: Annotated[float | None, Finite] = None
    test_high: Annotated[float | None, Finite] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.low < self.high, "task.high", self.high, f"above task.low = {self.low}")
        if self.test_low is None or self.test_high is None:
            missing = "task.test_low" if self.test_low is None else "task.test_high"
            require(self.test_low is self.test_high, missing, None, "given with the other end of the test interval")
            return
        above = f"above task.test_low = {self.test_low}"
        require(self.test_low < self.test_high, "task.test_high", self.test_high, above)
        apart = self.test_high <= self.low or self.high <= self.test_low
        outside = f"such that test targets lie outside the training interval [{self.low}, {self.high})"
        require(apart, "task.test_low, task.test_high", (self.test_low, self.test_high), outside)
        object.__setattr__(self, "splits", "disjoint")

    def _interval(self, split: Split) -> tuple[float, float]:
        if split == "test" and self.test_low is not None and self.test_high is not None:
            return self.test_low, self.test_high
        return self.low, self.high

    def _draw(self, num: int, rng: np.random.Generator, split: Split) -> list[float]:
        return [float(target) for target in rng.uniform(*self._interval(split), num)]


def unit_vectors(tasks: Sequence[Direction]) -> Floats:
    """The directions as vectors of length 1, [len(tasks), 2]."""
    angles = np.array([task.angle for task in tasks])
    return np.stack((np.cos(angles), np.sin(angles)), 1)


def direction_features(task: Direction) -> NDArray[np.float32]:
    """The direction as (cos angle, sin angle), [2], for oracles. Angles near 0 and 2 pi then have similar features."""
    vector: NDArray[np.float32] = unit_vectors([task])[0].astype(np.float32)
    return vector
