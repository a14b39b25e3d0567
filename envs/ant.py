"""The ant that must walk in a direction, at a speed or to a place that it is not told.

Sources: Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks", 2017,
arXiv:1703.03400, and its code, github.com/cbfinn/maml_rl (direction, speed); Rakelly et al., "Efficient Off-Policy
Meta-Reinforcement Learning via Probabilistic Context Variables", 2019, arXiv:1903.08254, and its code,
github.com/katerakelly/oyster (any direction, place).
Differs from them: the physics is Gymnasium's Ant-v5 (0.05 s per step; the first paper's rllab model takes 0.02 s), a
velocity is what the torso moved in a step over the step's time, and the cost of contacts is there only with
`contact_forces`, because the forces then are.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import mujoco
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from metarl.envs.batch import LoopSimulator, num_cores
from metarl.envs.locomotion import (
    ASSETS,
    FULL_TURN,
    Direction,
    FallingEnv,
    TargetTasks,
    Velocity,
    direction_features,
    unit_vectors,
)
from metarl.envs.vector import Bools, Floats, Ids
from metarl.errors import require, unknown_name
from metarl.tasks import Split, Task

FRAME_SKIP = 5
TORSO = 1
CONTACT_COST = 5e-4  # all sources; times the sum of squares of the forces, each clipped to [-1, 1]


@dataclass(frozen=True)
class Terms:
    """What a step pays beside its progress: `survival` - `control_cost` * |control|^2, controls in [-1, 1]."""

    control_cost: float
    survival: float


TERMS = {
    "ant-dir": Terms(0.005, 0.05),  # maml_rl, whose cost is of controls over their limit of 150
    "ant-vel": Terms(0.005, 0.05),  # maml_rl
    "ant-goal": Terms(0.1, 0.0),  # oyster
}


@dataclass(frozen=True)
class Goal:
    """Walk to a place and stay there.

    Attributes:
        x: first coordinate, metres; the ant starts within 0.1 m of (0, 0) in both.
        y: second coordinate, metres.
    """

    x: float
    y: float


class ContactSimulator(LoopSimulator):
    """Computes the contact forces `cfrc_ext` after a step, as Gymnasium does; `mujoco.batch` has no call for it."""

    def step(self, num_steps: int, ids: Ids) -> Bools:
        """As `Simulator.step`."""
        broken = super().step(num_steps, ids)
        self._run(np.arange(len(self._data))[ids], mujoco.mj_rnePostConstraint)
        return broken


class AntEnv(FallingEnv):
    """Gymnasium's ant in a batch, without a goal: families add `_progress`.

    Observations are 27 numbers: Ant-v5's without the contact forces, which is Ant-v4's default, and in effect what
    PEARL and VariBAD had: their contact entries were zero under the MuJoCo that they used.
    """

    heights = (0.2, 1.0)
    terms: Terms

    def __init__(
        self,
        num_envs: int,
        *,
        horizon: int = 200,
        action_limit: float = 1.0,
        contact_forces: bool = False,
        num_threads: int = 0,
        autoreset_mode: AutoresetMode = AutoresetMode.DISABLED,
    ) -> None:
        """
        Args:
            num_envs: number of simulations.
            horizon: steps of 0.05 s after which a trajectory is truncated.
            action_limit: actions in [-action_limit, action_limit] are scaled onto the controls [-1, 1] and clipped.
            contact_forces: observe the 78 contact forces of Ant-v5, clipped to [-1, 1], too (105 numbers), and pay
                for them. Such simulations run in the loop for older MuJoCo: about a third more time per step.
            num_threads: threads of the simulator, 0 for all cores; does not change the results.
            autoreset_mode: as in `TaskBatchEnv`.
        """
        super().__init__(
            ASSETS / "ant.xml",
            num_envs,
            frame_skip=FRAME_SKIP,
            horizon=horizon,
            observation_size=105 if contact_forces else 27,
            action_limit=action_limit,
            num_threads=num_threads,
            autoreset_mode=autoreset_mode,
        )
        if contact_forces:
            threads = min(num_threads or num_cores(), num_envs)
            self.simulator = ContactSimulator(self.simulator.model, num_envs, threads)
            self.simulator.bind("cfrc_ext")
        self.simulator.bind("xpos")  # is filled from the next call on
        self._contact_forces = contact_forces
        self._goals = np.zeros((num_envs, 2))

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
        """The torso's x and y as Ant-v5 measures them: they lag `qpos` by a part of a physics step."""
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
    """Reward per step: -|x - goal x| - |y - goal y| - 0.1 * |control|^2. It never terminates."""

    default_task = Goal(1.0, 0.0)
    terms = TERMS["ant-goal"]

    def _assign_tasks(self, ids: NDArray[np.intp], tasks: Sequence[Goal]) -> None:
        self._goals[ids] = [(task.x, task.y) for task in tasks]

    def _progress(self, ids: Ids, velocities: Floats) -> Floats:
        distances: Floats = np.abs(self._tracked_positions(ids) - self._goals[ids]).sum(1)
        return -distances

    def _terminated(self, ids: Ids) -> bool:
        return False  # the reward is negative: an end would pay


@dataclass(frozen=True)
class AntTasks(TargetTasks[Task]):
    """What the families of ants have in common; a step takes 0.05 s.

    Attributes:
        contact_forces: observe the contact forces and pay for them: 105 numbers instead of 27, see `AntEnv`.
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
    """Forward or backward, with equal odds, or along any direction of the plane.

    Source: Finn et al. 2017, arXiv:1703.03400; its constants hold for any direction too, where PEARL's are 0.5 for
    controls and 1 for survival. The MDP ends at a height outside [0.2, 1] m. With "any", an oracle observes the
    direction as two more numbers, (cos angle, sin angle); otherwise it observes one, the angle 0 or pi.

    Attributes:
        low: with "any": lowest training angle, radians, >= 0.
        high: with "any": highest training angle, above `low`, <= 2 pi.
        test_low: with "any": lowest test angle; None: test angles come from the training interval.
        test_high: highest test angle, given together with `test_low`, outside the training interval.
        directions: "forward-backward": the angles 0 and pi, which training and test share; "any": uniform angles.
    """

    high: float = FULL_TURN
    directions: Literal["forward-backward", "any"] = "forward-backward"

    _limits = (0.0, FULL_TURN)
    _env = AntDirEnv

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.directions not in ("forward-backward", "any"):
            raise unknown_name("task.directions", self.directions, ("forward-backward", "any"))
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
        test_high: highest test target, m/s, given together with `test_low`, outside the training interval.
    """

    high: float = 3.0

    _env = AntVelEnv

    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> list[Velocity]:
        return [Velocity(target) for target in self._draw(num_tasks, rng, split)]


@dataclass(frozen=True)
class AntGoal(AntTasks[Goal]):
    """Goals drawn uniformly from a ring round the start, by default from the whole disc of radius 3 m.

    Source: Rakelly et al. 2019, arXiv:1903.08254.

    Attributes:
        low: least distance of a training goal from (0, 0), m, >= 0.
        high: greatest distance of a training goal, m, above `low`.
        test_low: least distance of a test goal, m; None: test goals come from the training ring.
        test_high: greatest distance of a test goal, m, given together with `test_low`, outside the training ring.
    """

    high: float = 3.0

    _limits = (0.0, math.inf)
    _env = AntGoalEnv

    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> list[Goal]:
        low, high = self._interval(split)
        distances = np.sqrt(rng.uniform(low**2, high**2, num_tasks))  # uniform in the ring's area
        angles = rng.uniform(0.0, FULL_TURN, num_tasks)
        xs, ys = distances * np.cos(angles), distances * np.sin(angles)
        return [Goal(float(x), float(y)) for x, y in zip(xs, ys, strict=True)]
