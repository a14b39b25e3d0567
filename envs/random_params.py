"""A walker and a hopper whose masses, inertias, frictions and dampings differ from task to task.

Source: Rothfuss, Lee, Clavera, Asfour, Abbeel, "ProMP: Proximal Meta-Policy Search", 2018, arXiv:1810.06784, and its
environments, github.com/dennisl88/rand_param_envs, which PEARL (arXiv:1903.08254) and VariBAD (arXiv:1910.08348) use.
Differs from the source: the robots are those of Gymnasium's Walker2d-v5 and Hopper-v5. MuJoCo derives constants from
masses and inertias. Here they are recomputed for each task (`mj_setConst`). The source keeps the values of the robot as
built.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from metarl.core.bounds import AtMost, Positive
from metarl.core.errors import require
from metarl.core.tasks import Split
from metarl.envs.locomotion import LocomotionTasks, UniformStartEnv
from metarl.envs.vector import Bools, Floats, Ids

CONTROL_COST = 1e-3
SURVIVAL = 1.0
MAX_OBSERVED_SPEED = 10.0
BASES = {"body_mass": 1.5, "body_inertia": 1.5, "geom_friction": 1.5, "dof_damping": 1.3}
LARGEST_LIMIT = 20.0  # factors of 3,300; more is probably a mistake, and much more overflows


@dataclass(frozen=True)
class Physics:
    """Factors that multiply fields of the robot's `MjModel`, in MuJoCo's order. Prints as sizes and a checksum.

    Fields that are 0 stay 0, such as the mass of the world and the damping of the root joints.

    Every principal moment of inertia has a factor of its own, as in the source. The three moments of a body may violate
    the triangle inequality. MuJoCo checks this only when it compiles a model. It has no effect here: the robots move in
    a plane, so only the moment about the plane's normal matters.

    Only the sliding friction has an effect. A contact uses the larger coefficient of its two geoms.

    Attributes:
        body_mass: [num_bodies], the world first.
        body_inertia: [3 * num_bodies], three for each body.
        geom_friction: [3 * num_geoms], the floor first: sliding, torsional and rolling friction of each geom.
        dof_damping: [num_dofs].
    """

    body_mass: tuple[float, ...]
    body_inertia: tuple[float, ...]
    geom_friction: tuple[float, ...]
    dof_damping: tuple[float, ...]

    def __repr__(self) -> str:
        checksum = zlib.crc32(np.concatenate(astuple(self)).tobytes())
        return f"Physics({len(self.body_mass)} bodies, {len(self.dof_damping)} dofs, checksum {checksum:08x})"


def as_built(num_bodies: int, num_dofs: int) -> Physics:
    """The task that changes nothing. `num_bodies` counts the world, and must also be the number of geoms."""
    return Physics((1.0,) * num_bodies, (1.0,) * 3 * num_bodies, (1.0,) * 3 * num_bodies, (1.0,) * num_dofs)


class RandomParamsEnv(UniformStartEnv):
    """A robot in a plane that runs forward. Reward per step: dx/dt + 1 - 0.001 * |control|^2.

    A step takes 0.008 s. Observations are all positions but x, then all velocities. The velocities are clipped to
    [-10, 10]. The MDP ends when one of the limits below is reached.

    Attributes:
        heights: lower and upper limit of the height, in metres.
        max_angle: limit of the torso's lean in both directions, in radians.
        max_state: limit of the absolute value of each angle and velocity.
    """

    frame_skip = 4
    reset_noise = 5e-3
    num_hidden_positions = 1
    max_angle: float
    max_state: float = math.inf

    def _assign_tasks(self, ids: NDArray[np.intp], tasks: Sequence[Physics]) -> None:
        for name in BASES:
            built = getattr(self.simulator.model, name)  # never changes: the simulations have copies
            factors = np.array([getattr(task, name) for task in tasks])
            self.simulator.set_model_field(name, ids, built * factors.reshape(-1, *built.shape))
        self.simulator.set_constants(ids)

    def _rewards(self, ids: Ids, velocities: Floats, controls: Floats) -> Floats:
        rewards: Floats = velocities[:, 0] + SURVIVAL - CONTROL_COST * np.square(controls).sum(1)
        return rewards

    def _terminated(self, ids: Ids) -> Bools | bool:
        low, high = self.heights
        qpos, qvel = self.simulator.qpos[ids], self.simulator.qvel[ids]
        z, angle = qpos[:, 1], qpos[:, 2]
        bounded = (np.abs(np.concatenate((qpos[:, 2:], qvel), 1)) < self.max_state).all(1)
        healthy: Bools = (low < z) & (z < high) & (np.abs(angle) < self.max_angle) & bounded
        return ~healthy

    def _observe(self) -> NDArray[Any]:
        clipped = np.clip(self.simulator.qvel, -MAX_OBSERVED_SPEED, MAX_OBSERVED_SPEED)
        return np.concatenate((self.simulator.qpos[:, 1:], clipped), 1)


class Walker2dParamsEnv(RandomParamsEnv):
    """Gymnasium's two-legged walker: 17 observations, 6 controls."""

    asset = "walker2d_v5.xml"
    default_task = as_built(8, 9)
    heights = (0.8, 2.0)
    max_angle = 1.0


class HopperParamsEnv(RandomParamsEnv):
    """Gymnasium's one-legged hopper: 11 observations, 3 controls."""

    asset = "hopper.xml"
    default_task = as_built(5, 6)
    heights = (0.7, math.inf)
    max_angle = 0.2
    max_state = 100.0


@dataclass(frozen=True)
class RandomParams(LocomotionTasks[Physics]):
    """Random factors: 1.3^u for dampings, 1.5^u for the rest. Each has its own u, uniform between two limits.

    Attributes:
        horizon: steps per trajectory, of 0.008 s each.
        action_limit: the policy's action range: actions in [-action_limit, action_limit] are scaled to the
            controls [-1, 1] and clipped.
        log_scale_limit: u of training tasks lies in [-log_scale_limit, log_scale_limit]. With 3,
            factors lie between 0.30 and 3.4, those of dampings between 0.46 and 2.2.
        test_log_scale_limit: above `log_scale_limit`: |u| of test tasks lies between `log_scale_limit` and this
            limit; None: test tasks are drawn like training tasks.
    """

    log_scale_limit: Annotated[float, Positive, AtMost(LARGEST_LIMIT)] = 3.0
    test_log_scale_limit: Annotated[float | None, Positive, AtMost(LARGEST_LIMIT)] = None

    _env: ClassVar[type[RandomParamsEnv]]

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.log_scale_limit, self.test_log_scale_limit
        if high is not None:
            require(low < high, "task.test_log_scale_limit", high, f"above task.log_scale_limit = {low}")
            object.__setattr__(self, "splits", "disjoint")

    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> list[Physics]:
        low, high = 0.0, self.log_scale_limit
        if split == "test" and self.test_log_scale_limit is not None:
            low, high = high, self.test_log_scale_limit
        sizes = [len(getattr(self._env.default_task, name)) for name in BASES]
        exponents = rng.uniform(low - high, high - low, (num_tasks, sum(sizes)))
        exponents += np.copysign(low, exponents)
        factors = np.repeat([*BASES.values()], sizes) ** exponents
        parts = np.split(factors, np.cumsum(sizes)[:-1], axis=1)
        return [Physics(*map(tuple, task)) for task in zip(*(part.tolist() for part in parts), strict=True)]


@dataclass(frozen=True)
class Walker2dParams(RandomParams):
    """A walker with random masses, inertias, frictions and dampings; a fall or a leap ends the MDP.

    Source: Rothfuss et al. 2018, arXiv:1810.06784. Settings: see `RandomParams`.
    """

    _env = Walker2dParamsEnv


@dataclass(frozen=True)
class HopperParams(RandomParams):
    """A hopper with random masses, inertias, frictions and dampings; a fall ends the MDP.

    Source: Rothfuss et al. 2018, arXiv:1810.06784. Settings: see `RandomParams`.
    """

    _env = HopperParamsEnv
