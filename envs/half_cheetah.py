"""The half cheetah that must run in a direction or at a speed that it is not told.

Source: Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks", 2017,
arXiv:1703.03400.
Differs from the paper: the physics is Gymnasium's HalfCheetah-v5 (0.05 s per step, observation without the centre of
mass); the paper's rllab model takes 0.01 s per step, so returns over equally many steps are different quantities.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from metarl.envs.batch import BatchEnv
from metarl.envs.locomotion import TargetTasks, Velocity, check_settings
from metarl.envs.vector import Floats, Ids
from metarl.tasks import EnvTaskDistribution, Split

CONTROL_COST = 0.05
FRAME_SKIP = 5


@dataclass(frozen=True)
class Direction:
    """Run forward or backward.

    Attributes:
        sign: +1 forward, -1 backward.
    """

    sign: int


class HalfCheetahEnv(BatchEnv):
    """Gymnasium's half cheetah in a batch, without a goal: families add `_rewards`.

    Observations are HalfCheetah-v5's 17 numbers (positions but the first, then velocities). It never terminates.
    """

    default_camera = "track"

    def __init__(
        self,
        num_envs: int,
        *,
        horizon: int = 200,
        action_limit: float = 1.0,
        num_threads: int = 0,
        autoreset_mode: AutoresetMode = AutoresetMode.DISABLED,
    ) -> None:
        """
        Args:
            num_envs: number of simulations.
            horizon: steps of 0.05 s after which a trajectory is truncated.
            action_limit: actions in [-action_limit, action_limit] are scaled onto the controls [-1, 1] and clipped.
            num_threads: threads of the simulator, 0 for all cores; does not change the results.
            autoreset_mode: as in `TaskBatchEnv`.
        """
        super().__init__(
            Path(gymnasium.__file__).parent / "envs/mujoco/assets/half_cheetah.xml",
            num_envs,
            frame_skip=FRAME_SKIP,
            horizon=horizon,
            observation_size=17,
            action_limit=action_limit,
            num_threads=num_threads,
            autoreset_mode=autoreset_mode,
        )
        self._goals = np.zeros(num_envs)

    def _rewards(self, ids: Ids, velocities: Floats, controls: Floats) -> Floats:
        cost: Floats = CONTROL_COST * np.square(controls).sum(1)
        return self._progress(velocities[:, 0], self._goals[ids]) - cost

    @abstractmethod
    def _progress(self, velocities: Floats, goals: Floats) -> Floats:
        """The task's part of the reward, from velocities and goals [num_envs]."""

    def _observe(self) -> NDArray[Any]:
        return np.concatenate((self.simulator.qpos[:, 1:], self.simulator.qvel), 1)


class HalfCheetahDirEnv(HalfCheetahEnv):
    """Reward per step: sign * dx/dt - 0.05 * |control|^2."""

    default_task = Direction(1)

    def _assign_tasks(self, ids: NDArray[np.intp], tasks: Sequence[Direction]) -> None:
        self._goals[ids] = [task.sign for task in tasks]

    def _progress(self, velocities: Floats, goals: Floats) -> Floats:
        return goals * velocities


class HalfCheetahVelEnv(HalfCheetahEnv):
    """Reward per step: -|dx/dt - target| - 0.05 * |control|^2."""

    default_task = Velocity(1.0)

    def _assign_tasks(self, ids: NDArray[np.intp], tasks: Sequence[Velocity]) -> None:
        self._goals[ids] = [task.target for task in tasks]

    def _progress(self, velocities: Floats, goals: Floats) -> Floats:
        return -np.abs(velocities - goals)


@dataclass(frozen=True)
class HalfCheetahDir(EnvTaskDistribution[Direction]):
    """Forward or backward, with equal odds: two tasks, which training and test share.

    Source: Finn et al. 2017, arXiv:1703.03400.

    Attributes:
        horizon: steps per trajectory, of 0.05 s each, >= 1.
        action_limit: the policy's action range, > 0: actions in [-action_limit, action_limit] are scaled onto the
            controls [-1, 1] and clipped. The literature has two conventions: 1 (an initial policy std of 1 fills the
            range) and 10 (ProMP, garage, pytorch-maml-rl: a std of 1 is a tenth of the range).
    """

    horizon: int = 200
    action_limit: float = 1.0

    splits = "identical"

    def __post_init__(self) -> None:
        check_settings(self.horizon, self.action_limit)

    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> list[Direction]:
        return [Direction(int(sign)) for sign in 2 * rng.integers(0, 2, num_tasks) - 1]

    def all_tasks(self, split: Split = "test") -> list[Direction]:
        return [Direction(-1), Direction(1)]

    def make_vector_env(self, num_envs: int, *, num_threads: int = 0) -> HalfCheetahDirEnv:
        return HalfCheetahDirEnv(
            num_envs, horizon=self.horizon, action_limit=self.action_limit, num_threads=num_threads
        )


@dataclass(frozen=True)
class HalfCheetahVel(TargetTasks[Velocity]):
    """Target speeds drawn uniformly from [low, high) m/s.

    Source: Finn et al. 2017, arXiv:1703.03400 (0 to 2 m/s; ProMP, PEARL and VariBAD use 0 to 3 m/s).

    Attributes:
        horizon: steps per trajectory, of 0.05 s each, >= 1.
        action_limit: the policy's action range, > 0, as in `HalfCheetahDir`: 1, or 10 in ProMP, garage and
            pytorch-maml-rl.
        low: lowest training target, m/s.
        high: highest training target, m/s, above `low`.
        test_low: lowest test target, m/s; None: test targets come from the training interval.
        test_high: highest test target, m/s, above `test_low`; given together with it, outside the training interval.
    """

    high: float = 2.0

    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> list[Velocity]:
        return [Velocity(target) for target in self._draw(num_tasks, rng, split)]

    def make_vector_env(self, num_envs: int, *, num_threads: int = 0) -> HalfCheetahVelEnv:
        return HalfCheetahVelEnv(
            num_envs, horizon=self.horizon, action_limit=self.action_limit, num_threads=num_threads
        )
