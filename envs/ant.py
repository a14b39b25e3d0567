"""The ant that must walk in a direction, at a speed or to a place that it does not observe.

Sources: Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks", 2017,
arXiv:1703.03400, and its code, github.com/cbfinn/maml_rl (direction, speed); Rakelly et al., "Efficient Off-Policy
Meta-Reinforcement Learning via Probabilistic Context Variables", 2019, arXiv:1903.08254, and its code,
github.com/katerakelly/oyster (any direction, place).
Differs from them: the physics is Gymnasium's Ant-v5, with 0.05 s per step (the first paper's rllab model: 0.02 s). The
velocity is the distance that the torso moved in a step, divided by the step's time. Contacts have a cost only with
`contact_forces`, because the contact forces are computed only then.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Unpack

import numpy as np
from numpy.typing import NDArray

from metarl.core.bounds import AtLeast, Finite
from metarl.core.errors import require
from metarl.core.tasks import Split, Task
from metarl.envs.locomotion import (
    FULL_TURN,
    Angle,
    Direction,
    EnvSettings,
    FallingEnv,
    TargetTasks,
    Velocity,
    direction_features,
    unit_vectors,
)
from metarl.envs.simulator import LoopSimulator, mujoco, num_cores
from metarl.envs.vector import Bools, Floats, Ids

TORSO = 1
NUM_CONTACT_FORCES = 78
CONTACT_COST = 5e-4  # all sources; times the sum of squares of the forces, each clipped to [-1, 1]
Distance = Annotated[float, AtLeast(0)]


@dataclass(frozen=True)
class Terms:
    """A step's reward besides its progress: `survival` - `control_cost` * |control|^2, controls in [-1, 1]."""

    control_cost: float
    survival: float


TERMS = {
    "ant-dir": Terms(0.005, 0.05),  # maml_rl: its controls are divided by their limit of 150
    "ant-vel": Terms(0.005, 0.05),  # maml_rl
    "ant-goal": Terms(0.1, 0.0),  # oyster
}


@dataclass(frozen=True)
class Goal:
    """Walk to a place and stay there. The ant starts within 0.1 m of (0, 0) in both coordinates.

    Attributes:
        x: first coordinate, metres.
        y: second coordinate, metres.
    """

    x: float
    y: float


class ContactSimulator(LoopSimulator):
    """Computes the contact forces `cfrc_ext` after each step, as Gymnasium does. `mujoco.batch` cannot do this."""

    def step(self, num_steps: int, ids: Ids) -> Bools:
        """As `Simulator.step`."""
        broken = super().step(num_steps, ids)
        self._run(np.arange(len(self._data))[ids], mujoco.mj_rnePostConstraint)
        return broken


class AntEnv(FallingEnv):
    """Gymnasium's ant in a batch. Families add `_assign_tasks` and `_progress`.

    Observations are 27 numbers: those of Ant-v5 without the contact forces, the default of Ant-v4. PEARL and VariBAD
    observed the same in effect, because the contact forces were zero in the MuJoCo version that they used.
    """

    asset = "ant.xml"
    heights = (0.2, 1.0)
    terms: Terms

    def __init__(self, num_envs: int, *, contact_forces: bool = False, **settings: Unpack[EnvSettings]) -> None:
        """
        Args:
            num_envs: number of simulations.
            contact_forces: also observe the 78 contact forces of Ant-v5, clipped to [-1, 1] (105 numbers in all), and
                subtract their cost from the reward. Such simulations use `LoopSimulator`, which takes about a third
                more time per step.
            **settings: of `LocomotionEnv`; steps take 0.05 s.
        """
        super().__init__(num_envs, num_extra_observations=NUM_CONTACT_FORCES * contact_forces, **settings)
        if contact_forces:
            threads = min(settings.get("num_threads", 0) or num_cores(), num_envs)
            self.simulator = ContactSimulator(self.simulator.model, num_envs, threads)
            self.simulator.bind("cfrc_ext")
        self.simulator.bind("xpos")  # the next call fills it
        self._contact_forces = contact_forces

    def _rewards(self, ids: Ids, velocities: Floats, controls: Floats) -> Floats:
        rewards: Floats = self._progress(ids, velocities) + self.terms.survival
        rewards -= self.terms.control_cost * np.square(controls).sum(1)
        if self._contact_forces:
            rewards -= CONTACT_COST * np.square(self._clipped_forces()[ids]).sum((1, 2))
        return rewards

    @abstractmethod
    def _progress(self, ids: Ids, velocities: Floats) -> Floats:
        """The task's part of the rewards, [len(ids)], from velocities [len(ids), 2]."""

    def _tracked_positions(self, ids: Ids) -> Floats:
        """The torso's x and y as Ant-v5 measures them: from `xpos`, which lags `qpos` by part of a physics step."""
        positions: Floats = self.simulator.bind("xpos")[ids, TORSO, :2]
        return positions

    def _observe(self) -> NDArray[Any]:
        observations = super()._observe()
        if not self._contact_forces:
            return observations
        return np.concatenate((observations, self._clipped_forces()[:, 1:].reshape(self.num_envs, -1)), 1)

    def _clipped_forces(self) -> Floats:
        clipped: Floats = np.clip(self.simulator.bind("cfrc_ext"), -1.0, 1.0)
        return clipped


class AntDirEnv(AntEnv):
    """Reward per step: (dx/dt, dy/dt) . (cos angle, sin angle) - 0.005 * |control|^2 + 0.05."""

    default_task = Direction(0.0)
    terms = TERMS["ant-dir"]

    def _assign_tasks(self, ids: NDArray[np.intp], tasks: Sequence[Direction]) -> None:
        self._goals[ids] = unit_vectors(tasks)

    def _progress(self, ids: Ids, velocities: Floats) -> Floats:
        along: Floats = (self._goals[ids] * velocities).sum(1)
        return along


class AntVelEnv(AntEnv):
    """Reward per step: 1 - |dx/dt - target| - 0.005 * |control|^2 + 0.05."""

    default_task = Velocity(1.0)
    terms = TERMS["ant-vel"]

    def _assign_tasks(self, ids: NDArray[np.intp], tasks: Sequence[Velocity]) -> None:
        self._goals[ids, 0] = [task.target for task in tasks]

    def _progress(self, ids: Ids, velocities: Floats) -> Floats:
        return 1.0 - np.abs(velocities[:, 0] - self._goals[ids, 0])


class AntGoalEnv(AntEnv):
    """Reward per step: -|x - goal x| - |y - goal y| - 0.1 * |control|^2. The MDP never terminates."""

    default_task = Goal(1.0, 0.0)
    terms = TERMS["ant-goal"]

    def _assign_tasks(self, ids: NDArray[np.intp], tasks: Sequence[Goal]) -> None:
        self._goals[ids] = [(task.x, task.y) for task in tasks]

    def _progress(self, ids: Ids, velocities: Floats) -> Floats:
        distances: Floats = np.abs(self._tracked_positions(ids) - self._goals[ids]).sum(1)
        return -distances

    def _terminated(self, ids: Ids) -> bool:
        return False  # the reward is negative, so a fall would be rewarded


@dataclass(frozen=True)
class AntTasks(TargetTasks[Task]):
    """The settings of every ant family. A step takes 0.05 s.

    Attributes:
        contact_forces: also observe the contact forces (105 numbers instead of 27) and subtract their cost from the
            reward, see `AntEnv`.
    """

    contact_forces: bool = False

    _env: ClassVar[type[AntEnv]]

    def make_vector_env(self, num_envs: int, *, num_threads: int = 0) -> AntEnv:
        return self._env(
            num_envs,
            horizon=self.horizon,
            action_limit=self.action_limit,
            contact_forces=self.contact_forces,
            num_threads=num_threads,
        )


@dataclass(frozen=True)
class AntDir(AntTasks[Direction]):
    """Forward or backward, with equal probability, or along any direction of the plane.

    Source: Finn et al. 2017, arXiv:1703.03400. Its reward constants are used for any direction too; PEARL has 0.5 for
    controls and 1 for survival there. The MDP ends at a height outside [0.2, 1] m. With "any", an oracle observes the
    direction as two more numbers, (cos angle, sin angle); otherwise as one, the angle 0 or pi.

    Attributes:
        low: with "any": lowest training angle, radians.
        high: with "any": highest training angle, above `low`.
        test_low: with "any": lowest test angle; None: test angles come from the training interval.
        test_high: highest test angle, above `test_low`, outside the training interval; set both or neither.
        directions: "forward-backward": the angles 0 and pi, shared by training and test; "any": uniform angles.
    """

    low: Angle = 0.0
    high: Angle = FULL_TURN
    test_low: Angle | None = None
    test_high: Angle | None = None
    directions: Literal["forward-backward", "any"] = "forward-backward"

    _env = AntDirEnv

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.directions == "forward-backward":
            whole = (self.low, self.high, self.test_low) == (0.0, FULL_TURN, None)
            require(whole, "task.directions", self.directions, "'any' where an interval of angles is given")
            object.__setattr__(self, "splits", "identical")

    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> list[Direction]:
        both = self.all_tasks(split)
        if both is not None:
            return [both[i] for i in rng.integers(0, 2, num_tasks)]
        return [Direction(angle) for angle in self._draw(num_tasks, rng, split)]

    def all_tasks(self, split: Split = "test") -> list[Direction] | None:
        return [Direction(0.0), Direction(math.pi)] if self.directions == "forward-backward" else None

    def task_features(self, task: Direction) -> NDArray[np.float32]:
        return direction_features(task) if self.directions == "any" else super().task_features(task)


@dataclass(frozen=True)
class AntVel(AntTasks[Velocity]):
    """Target speeds drawn uniformly from [low, high) m/s, by default from [0, 3).

    Source: Finn et al. 2017, arXiv:1703.03400. The MDP ends at a height outside [0.2, 1] m.

    Attributes:
        low: lowest training target, m/s.
        high: highest training target, m/s, above `low`.
        test_low: lowest test target, m/s; None: test targets come from the training interval.
        test_high: highest test target, m/s, above `test_low`, outside the training interval; set both or neither.
    """

    high: Annotated[float, Finite] = 3.0

    _env = AntVelEnv

    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> list[Velocity]:
        return [Velocity(target) for target in self._draw(num_tasks, rng, split)]


@dataclass(frozen=True)
class AntGoal(AntTasks[Goal]):
    """Goals drawn uniformly from a ring around the start, by default from the whole disc of radius 3 m.

    Source: Rakelly et al. 2019, arXiv:1903.08254.

    Attributes:
        low: smallest distance of a training goal from (0, 0), m.
        high: largest distance of a training goal, m, above `low`.
        test_low: smallest distance of a test goal, m; None: test goals come from the training ring.
        test_high: largest distance of a test goal, m, above `test_low`, outside the training ring; set both or neither.
    """

    low: Distance = 0.0
    high: Distance = 3.0
    test_low: Distance | None = None
    test_high: Distance | None = None

    _env = AntGoalEnv

    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> list[Goal]:
        low, high = self._interval(split)
        distances = np.sqrt(rng.uniform(low**2, high**2, num_tasks))  # uniform in the ring's area
        angles = rng.uniform(0.0, FULL_TURN, num_tasks)
        xs, ys = distances * np.cos(angles), distances * np.sin(angles)
        return [Goal(float(x), float(y)) for x, y in zip(xs, ys, strict=True)]
