"""What the families of running robots share: tasks, the intervals that targets come from, and an end by falling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
from numpy.typing import NDArray

from metarl.envs.batch import BatchEnv
from metarl.envs.vector import Bools, Floats, Ids
from metarl.errors import require
from metarl.tasks import EnvTaskDistribution, Split, Task

ASSETS = Path(gymnasium.__file__).parent / "envs/mujoco/assets"
FULL_TURN = 2.0 * math.pi


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


@dataclass(frozen=True)
class TargetTasks(EnvTaskDistribution[Task]):
    """Tasks with a target number, drawn uniformly from an interval: one for training, and one for test if held out.

    Attributes:
        horizon: steps per trajectory, >= 1.
        action_limit: the policy's action range, > 0: actions in [-action_limit, action_limit] are scaled onto the range
            of the controls and clipped.
        low: lowest training target.
        high: highest training target, above `low`.
        test_low: lowest test target; None: test targets come from the training interval.
        test_high: highest test target, above `test_low`; given together with it, outside the training interval.
    """

    horizon: int = 200
    action_limit: float = 1.0
    low: float = 0.0
    high: float = 1.0
    test_low: float | None = None
    test_high: float | None = None

    _limits: ClassVar[tuple[float, float]] = (-math.inf, math.inf)
    """What no target may lie below and above."""

    def __post_init__(self) -> None:
        check_settings(self.horizon, self.action_limit)
        self._check_interval("", self.low, self.high)
        if self.test_low is None or self.test_high is None:
            missing = "task.test_low" if self.test_low is None else "task.test_high"
            require(self.test_low is self.test_high, missing, None, "given with the other end of the test interval")
            return
        self._check_interval("test_", self.test_low, self.test_high)
        apart = self.test_high <= self.low or self.high <= self.test_low
        outside = f"such that test targets lie outside the training interval [{self.low}, {self.high})"
        require(apart, "task.test_low, task.test_high", (self.test_low, self.test_high), outside)
        object.__setattr__(self, "splits", "disjoint")

    def _check_interval(self, prefix: str, low: float, high: float) -> None:
        least, most = self._limits
        at_least = "" if least == -math.inf else f" and at least {least}"
        require(math.isfinite(low) and least <= low, f"task.{prefix}low", low, f"finite{at_least}")
        at_most = "" if most == math.inf else f", at most {most}"
        above = f"finite and above task.{prefix}low = {low}{at_most}"
        require(low < high < math.inf and high <= most, f"task.{prefix}high", high, above)

    def _interval(self, split: Split) -> tuple[float, float]:
        if split == "test" and self.test_low is not None and self.test_high is not None:
            return self.test_low, self.test_high
        return self.low, self.high

    def _draw(self, num: int, rng: np.random.Generator, split: Split) -> list[float]:
        return [float(target) for target in rng.uniform(*self._interval(split), num)]


def check_settings(horizon: int, action_limit: float) -> None:
    """Raises `InputError` unless both are above 0 and the limit is finite."""
    require(horizon >= 1, "task.horizon", horizon, "at least 1")
    require(0.0 < action_limit < math.inf, "task.action_limit", action_limit, "finite and above 0")


def unit_vectors(tasks: Sequence[Direction]) -> Floats:
    """The directions' vectors of length 1, [len(tasks), 2]."""
    angles = np.array([task.angle for task in tasks])
    return np.stack((np.cos(angles), np.sin(angles)), 1)


def direction_features(task: Direction) -> NDArray[np.float32]:
    """The direction as (cos angle, sin angle), [2], for oracles: angles just above 0 and just below 2 pi are close."""
    vector: NDArray[np.float32] = unit_vectors([task])[0].astype(np.float32)
    return vector


class FallingEnv(BatchEnv):
    """A robot of Gymnasium's for which a height out of range, a fall or a leap, ends the MDP.

    Observations are all positions but x and y, then all velocities.

    Attributes:
        heights: lowest and highest height that goes on, in metres.
    """

    heights: tuple[float, float]
    default_camera = "track"

    def _terminated(self, ids: Ids) -> Bools | bool:
        low, high = self.heights
        z = self.simulator.qpos[ids, 2]
        unhealthy: Bools = (z < low) | (high < z)
        return unhealthy

    def _observe(self) -> NDArray[Any]:
        return np.concatenate((self.simulator.qpos[:, 2:], self.simulator.qvel), 1)


class UniformStartEnv(FallingEnv):
    """Starts with noise that is uniform in velocities too."""

    def _initial_states(self, rngs: Sequence[np.random.Generator]) -> tuple[Floats, Floats]:
        noise, nq = self.reset_noise, self.simulator.model.nq
        drawn = np.stack([rng.uniform(-noise, noise, nq + self.simulator.model.nv) for rng in rngs])
        return self._initial_qpos + drawn[:, :nq], self._initial_qvel + drawn[:, nq:]
