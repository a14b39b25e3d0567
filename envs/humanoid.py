"""The humanoid that must run in a direction that it does not observe.

Source: Rakelly et al., "Efficient Off-Policy Meta-Reinforcement Learning via Probabilistic Context Variables", 2019,
arXiv:1903.08254, and its code, github.com/katerakelly/oyster.
Differs from it: the physics is Gymnasium's Humanoid-v5, with 0.015 s per step. The source takes the distance that the
centre of mass moves in a step. It divides the distance by the time of one physics step, which is a fifth of a step. The
weight of this quotient is 0.25. This equals 1.25 times the velocity, the weight here and in Humanoid-v5. Contacts have
no cost here: it was zero in the source's MuJoCo version.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

import numpy as np
from numpy.typing import NDArray

from metarl.core.tasks import Split
from metarl.envs.locomotion import (
    FULL_TURN,
    Angle,
    Direction,
    EnvSettings,
    TargetTasks,
    UniformStartEnv,
    direction_features,
    unit_vectors,
)
from metarl.envs.vector import Floats, Ids

VELOCITY_WEIGHT = 1.25
CONTROL_COST = 0.1
SURVIVAL = 5.0


class HumanoidDirEnv(UniformStartEnv):
    """Reward per step: 1.25 * (dx/dt, dy/dt) . (cos angle, sin angle) - 0.1 * |control|^2 + 5.

    The velocities are those of the centre of mass. The controls lie in [-0.4, 0.4]. Observations are 45 numbers, the
    physical state: all positions but x and y, then all velocities. The other 303 numbers of Humanoid-v5 follow from
    it, from the controls and from contact forces, which `mujoco.batch` does not compute.
    """

    asset = "humanoid.xml"
    reset_noise = 0.01
    heights = (1.0, 2.0)
    default_task = Direction(0.0)

    def __init__(self, num_envs: int, **settings: Unpack[EnvSettings]) -> None:
        super().__init__(num_envs, **settings)
        self.simulator.bind("xipos")  # the next call fills it
        masses = self.simulator.model.body_mass
        self._mass_shares = masses / masses.sum()

    def _assign_tasks(self, ids: NDArray[np.intp], tasks: Sequence[Direction]) -> None:
        self._goals[ids] = unit_vectors(tasks)

    def _tracked_positions(self, ids: Ids) -> Floats:
        """The centre of mass's x and y, as Humanoid-v5 measures them: when the last physics step began."""
        centres: Floats = np.einsum("b,nbj->nj", self._mass_shares, self.simulator.bind("xipos")[ids, :, :2])
        return centres

    def _rewards(self, ids: Ids, velocities: Floats, controls: Floats) -> Floats:
        along: Floats = (self._goals[ids] * velocities).sum(1)
        cost: Floats = CONTROL_COST * np.square(controls).sum(1)
        return VELOCITY_WEIGHT * along - cost + SURVIVAL


@dataclass(frozen=True)
class HumanoidDir(TargetTasks[Direction]):
    """Directions of the plane, drawn uniformly, by default from the full turn.

    Source: Rakelly et al. 2019, arXiv:1903.08254. The MDP ends at a height outside [1, 2] m. An oracle observes the
    direction as two more numbers, (cos angle, sin angle).

    Attributes:
        horizon: steps per trajectory, of 0.015 s each.
        action_limit: the policy's action range: actions in [-action_limit, action_limit] are scaled to the
            controls [-0.4, 0.4] and clipped.
        low: lowest training angle, radians.
        high: highest training angle, above `low`.
        test_low: lowest test angle; None: test angles come from the training interval.
        test_high: highest test angle, above `test_low`, outside the training interval; set both or neither.
    """

    low: Angle = 0.0
    high: Angle = FULL_TURN
    test_low: Angle | None = None
    test_high: Angle | None = None

    _env = HumanoidDirEnv

    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> list[Direction]:
        return [Direction(angle) for angle in self._draw(num_tasks, rng, split)]

    def task_features(self, task: Direction) -> NDArray[np.float32]:
        return direction_features(task)
