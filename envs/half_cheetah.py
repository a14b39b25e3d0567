"""The half cheetah that must run in a direction or at a speed that it does not observe.

Source: Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks", 2017,
arXiv:1703.03400.
Differs from the paper: the physics is Gymnasium's HalfCheetah-v5, with 0.05 s per step and an observation without the
centre of mass. The paper's rllab model takes 0.01 s per step, so returns over equally many steps cannot be compared.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from metarl.core.bounds import Finite
from metarl.core.tasks import Split
from metarl.envs.locomotion import LocomotionEnv, LocomotionTasks, TargetTasks, Velocity
from metarl.envs.vector import Floats, Ids

CONTROL_COST = 0.05


@dataclass(frozen=True)
class Direction:
    """Run forward or backward.

    Attributes:
        sign: +1 forward, -1 backward.
    """

    sign: int


class HalfCheetahEnv(LocomotionEnv):
    """Gymnasium's half cheetah in a batch. Families add `_assign_tasks` and `_progress`.

    Observations are HalfCheetah-v5's 17 numbers: all positions but x, then all velocities. The MDP never terminates.
    """

    asset = "half_cheetah.xml"
    num_hidden_positions = 1

    def _rewards(self, ids: Ids, velocities: Floats, controls: Floats) -> Floats:
        cost: Floats = CONTROL_COST * np.square(controls).sum(1)
        return self._progress(velocities[:, 0], self._goals[ids, 0]) - cost

    @abstractmethod
    def _progress(self, velocities: Floats, goals: Floats) -> Floats:
        """The task's part of the rewards, [len(ids)], from velocities and goals [len(ids)]."""


class HalfCheetahDirEnv(HalfCheetahEnv):
    """Reward per step: sign * dx/dt - 0.05 * |control|^2."""

    default_task = Direction(1)

    def _assign_tasks(self, ids: NDArray[np.intp], tasks: Sequence[Direction]) -> None:
        self._goals[ids, 0] = [task.sign for task in tasks]

    def _progress(self, velocities: Floats, goals: Floats) -> Floats:
        return goals * velocities


class HalfCheetahVelEnv(HalfCheetahEnv):
    """Reward per step: -|dx/dt - target| - 0.05 * |control|^2."""

    default_task = Velocity(1.0)

    def _assign_tasks(self, ids: NDArray[np.intp], tasks: Sequence[Velocity]) -> None:
        self._goals[ids, 0] = [task.target for task in tasks]

    def _progress(self, velocities: Floats, goals: Floats) -> Floats:
        return -np.abs(velocities - goals)


@dataclass(frozen=True)
class HalfCheetahDir(LocomotionTasks[Direction]):
    """Forward or backward, with equal probability. Training and test share these two tasks.

    Source: Finn et al. 2017, arXiv:1703.03400.

    Attributes:
        horizon: steps per trajectory, of 0.05 s each.
        action_limit: the policy's action range: actions in [-action_limit, action_limit] are scaled to the
            controls [-1, 1] and clipped. The literature has two conventions. With 1, an initial policy std of 1 fills
            the range. With 10 (ProMP, garage, pytorch-maml-rl), a std of 1 is a tenth of the range.
    """

    splits = "identical"
    _env = HalfCheetahDirEnv

    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> list[Direction]:
        return [Direction(int(sign)) for sign in 2 * rng.integers(0, 2, num_tasks) - 1]

    def all_tasks(self, split: Split = "test") -> list[Direction]:
        return [Direction(-1), Direction(1)]


@dataclass(frozen=True)
class HalfCheetahVel(TargetTasks[Velocity]):
    """Target speeds drawn uniformly from [low, high) m/s.

    Source: Finn et al. 2017, arXiv:1703.03400 (0 to 2 m/s; ProMP, PEARL and VariBAD use 0 to 3 m/s).

    Attributes:
        horizon: steps per trajectory, of 0.05 s each.
        action_limit: the policy's action range, as in `HalfCheetahDir`: 1, or 10 in ProMP, garage and
            pytorch-maml-rl.
        low: lowest training target, m/s.
        high: highest training target, m/s, above `low`.
        test_low: lowest test target, m/s; None: test targets come from the training interval.
        test_high: highest test target, m/s, above `test_low`, outside the training interval; set both or neither.
    """

    high: Annotated[float, Finite] = 2.0

    _env = HalfCheetahVelEnv

    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> list[Velocity]:
        return [Velocity(target) for target in self._draw(num_tasks, rng, split)]
