"""Bernoulli bandits: each task has its own payment probabilities, and the learner must find the best arm.

Source: Duan et al., "RL²: Fast Reinforcement Learning via Slow Reinforcement Learning", 2016, arXiv:1611.02779.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from metarl.core.bounds import AtLeast
from metarl.core.tasks import Split
from metarl.envs.random_numbers import RandomNumbers
from metarl.envs.vector import Bools, Floats, Ids, TaskBatchEnv
from metarl.rl.tasks import EnvTaskDistribution


@dataclass(frozen=True)
class Arms:
    """A bandit.

    Attributes:
        probabilities: each arm's probability of paying 1, in [0, 1].
    """

    probabilities: tuple[float, ...]


class BanditEnv(TaskBatchEnv):
    """Each step pulls one arm, which pays 1 or 0. The observation is always [0.0]. The MDP never terminates."""

    def __init__(
        self, num_envs: int, *, num_arms: int, num_pulls: int, autoreset_mode: AutoresetMode = AutoresetMode.DISABLED
    ) -> None:
        """
        Args:
            num_envs: number of bandits.
            num_arms: arms of each bandit.
            num_pulls: pulls after which a trajectory is truncated.
            autoreset_mode: as in `TaskBatchEnv`.
        """
        self.default_task = Arms(tuple((arm + 1) / (num_arms + 1) for arm in range(num_arms)))
        super().__init__(
            num_envs,
            Box(0.0, 1.0, (1,), np.float32),
            Discrete(num_arms),
            horizon=num_pulls,
            autoreset_mode=autoreset_mode,
        )
        self._probabilities = np.zeros((num_envs, num_arms))
        self._uniforms = np.zeros((num_envs, num_pulls))
        self._rows = np.arange(num_envs)

    def _assign_tasks(self, ids: NDArray[np.intp], tasks: Sequence[Arms]) -> None:
        self._probabilities[ids] = [task.probabilities for task in tasks]

    def _reset(self, ids: NDArray[np.intp], rngs: RandomNumbers) -> None:
        self._uniforms[ids] = rngs.uniforms(self.horizon)

    def _advance(self, actions: NDArray[Any], ids: Ids) -> tuple[Floats, Bools | bool, Bools | bool]:
        rows = self._rows[ids]
        paid = self._uniforms[rows, self._elapsed[rows]] < self._probabilities[rows, actions]
        return paid.astype(np.float64), False, False

    def _observe(self) -> NDArray[Any]:
        return np.zeros((self.num_envs, 1), np.float32)


@dataclass(frozen=True)
class Bandit(EnvTaskDistribution[Arms]):
    """Bernoulli bandits with probabilities drawn uniformly from [0, 1]. A trajectory is `num_pulls` pulls.

    RL² joins several trajectories into one trial, in which it learns the arms.

    Source: Duan et al. 2016, arXiv:1611.02779.

    Attributes:
        num_arms: number of arms.
        num_pulls: pulls per trajectory; this is also the `horizon`.
    """

    num_arms: Annotated[int, AtLeast(2)] = 5
    num_pulls: Annotated[int, AtLeast(1)] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "horizon", self.num_pulls)

    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> list[Arms]:
        return [Arms(tuple(map(float, row))) for row in rng.random((num_tasks, self.num_arms))]

    def make_vector_env(self, num_envs: int, *, num_threads: int = 0) -> BanditEnv:
        return BanditEnv(num_envs, num_arms=self.num_arms, num_pulls=self.num_pulls)
