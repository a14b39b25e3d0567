"""The humanoid that must run in a direction that it is not told.

Source: Rakelly et al., "Efficient Off-Policy Meta-Reinforcement Learning via Probabilistic Context Variables", 2019,
arXiv:1903.08254, and its code, github.com/katerakelly/oyster.
Differs from it: the physics is Gymnasium's Humanoid-v5 (0.015 s per step). The source pays 0.25 times what the centre
of mass moved in a step over the time of a physics step, a fifth of a step: the same number is 1.25 times the velocity,
as it stands here and in Humanoid-v5. The cost of contacts is left out: under the MuJoCo of the source it was zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from metarl.envs.locomotion import (
    ASSETS,
    FULL_TURN,
    Direction,
    TargetTasks,
    UniformStartEnv,
    direction_features,
    unit_vectors,
)
from metarl.envs.vector import Floats, Ids
from metarl.tasks import Split

FRAME_SKIP = 5
RESET_NOISE = 0.01
VELOCITY_WEIGHT = 1.25
CONTROL_COST = 0.1
SURVIVAL = 5.0


class HumanoidDirEnv(UniformStartEnv):
    """Reward per step: 1.25 * (dx/dt, dy/dt) . (cos angle, sin angle) - 0.1 * |control|^2 + 5, of the centre of mass.

    Observations are 45 numbers, all positions but x and y and all velocities: the physical state. The other 303 of
    Humanoid-v5 are functions of it, of the controls and of contact forces, which `mujoco.batch` does not compute.
    """

    heights = (1.0, 2.0)
    default_task = Direction(0.0)

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
            horizon: steps of 0.015 s after which a trajectory is truncated.
            action_limit: actions in [-action_limit, action_limit] are scaled onto the controls [-0.4, 0.4] and clipped.
            num_threads: threads of the simulator, 0 for all cores; does not change the results.
            autoreset_mode: as in `TaskBatchEnv`.
        """
        super().__init__(
            ASSETS / "humanoid.xml",
            num_envs,
            frame_skip=FRAME_SKIP,
            horizon=horizon,
            observation_size=45,
            action_limit=action_limit,
            reset_noise=RESET_NOISE,
            num_threads=num_threads,
            autoreset_mode=autoreset_mode,
        )
        self.simulator.bind("xipos")  # is filled from the next call on
        masses = self.simulator.model.body_mass
        self._mass_shares = masses / masses.sum()
        self._goals = np.zeros((num_envs, 2))

    def _assign_tasks(self, ids: NDArray[np.intp], tasks: Sequence[Direction]) -> None:
        self._goals[ids] = unit_vectors(tasks)

    def _tracked_positions(self, ids: Ids) -> Floats:
        """The centre of mass's x and y, as Humanoid-v5 measures them: from the last physics step's bodies."""
        centres: Floats = np.einsum("b,nbj->nj", self._mass_shares, self.simulator.bind("xipos")[ids, :, :2])
        return centres

    def _rewards(self, ids: Ids, velocities: Floats, controls: Floats) -> Floats:
        along: Floats = (self._goals[ids] * velocities).sum(1)
        cost: Floats = CONTROL_COST * np.square(controls).sum(1)
        return VELOCITY_WEIGHT * along - cost + SURVIVAL


@dataclass(frozen=True)
class HumanoidDir(TargetTasks[Direction]):
    """Directions of the plane, by default all with equal odds.

    Source: Rakelly et al. 2019, arXiv:1903.08254. The MDP ends at a height outside [1, 2] m. An oracle observes the
    direction as two more numbers, (cos angle, sin angle).

    Attributes:
        horizon: steps per trajectory, of 0.015 s each, >= 1.
        action_limit: the policy's action range, > 0: actions in [-action_limit, action_limit] are scaled onto the
            controls [-0.4, 0.4] and clipped.
        low: lowest training angle, radians, >= 0.
        high: highest training angle, above `low`, <= 2 pi.
        test_low: lowest test angle; None: test angles come from the training interval.
        test_high: highest test angle, given together with `test_low`, outside the training interval.
    """

    high: float = FULL_TURN

    _limits = (0.0, FULL_TURN)

    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> list[Direction]:
        return [Direction(angle) for angle in self._draw(num_tasks, rng, split)]

    def task_features(self, task: Direction) -> NDArray[np.float32]:
        return direction_features(task)

    def make_vector_env(self, num_envs: int, *, num_threads: int = 0) -> HumanoidDirEnv:
        return HumanoidDirEnv(num_envs, horizon=self.horizon, action_limit=self.action_limit, num_threads=num_threads)
