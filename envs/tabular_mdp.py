"""Small random MDPs. The learner must learn each one within a few short episodes.

Source: Duan et al., "RL²: Fast Reinforcement Learning via Slow Reinforcement Learning", 2016, arXiv:1611.02779.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
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
class MDP:
    """A finite MDP. Prints as its size and a checksum of its numbers.

    Attributes:
        transitions: probability of each next state, [num_states][num_actions][num_states].
        mean_rewards: [num_states][num_actions].
    """

    transitions: tuple[tuple[tuple[float, ...], ...], ...]
    mean_rewards: tuple[tuple[float, ...], ...]

    @cached_property
    def arrays(self) -> tuple[Floats, Floats]:
        """`transitions` and `mean_rewards` as arrays."""
        return np.array(self.transitions), np.array(self.mean_rewards)

    def __repr__(self) -> str:
        transitions, mean_rewards = self.arrays
        checksum = zlib.crc32(transitions.tobytes() + mean_rewards.tobytes())
        return "MDP({} states, {} actions, checksum {:08x})".format(*mean_rewards.shape, checksum)


class TabularMDPEnv(TaskBatchEnv):
    """Starts in state 0 and never terminates. The observation is the state as a one-hot vector.

    The reward is the mean reward of state and action, plus standard normal noise.
    """

    def __init__(
        self,
        num_envs: int,
        *,
        num_states: int,
        num_actions: int,
        horizon: int,
        autoreset_mode: AutoresetMode = AutoresetMode.DISABLED,
    ) -> None:
        """
        Args:
            num_envs: number of MDPs.
            num_states: states of each MDP.
            num_actions: actions in each state.
            horizon: steps after which a trajectory is truncated.
            autoreset_mode: as in `TaskBatchEnv`.
        """
        super().__init__(
            num_envs,
            Box(0.0, 1.0, (num_states,), np.float32),
            Discrete(num_actions),
            horizon=horizon,
            autoreset_mode=autoreset_mode,
        )
        # The last state's cumulative probability, 1, is left out, so that rounding cannot lead beyond the last state.
        self._cumulative = np.zeros((num_envs, num_states, num_actions, num_states - 1))
        self._mean_rewards = np.zeros((num_envs, num_states, num_actions))
        self._states = np.zeros(num_envs, np.int64)
        self._next_state_uniforms = np.zeros((num_envs, horizon))
        self._reward_noise = np.zeros((num_envs, horizon))
        self._rows = np.arange(num_envs)

    def _assign_tasks(self, ids: NDArray[np.intp], tasks: Sequence[MDP]) -> None:
        transitions, mean_rewards = zip(*(task.arrays for task in tasks), strict=True)
        self._cumulative[ids] = np.cumsum(np.stack(transitions), -1)[..., :-1]
        self._mean_rewards[ids] = np.stack(mean_rewards)

    def _reset(self, ids: NDArray[np.intp], rngs: RandomNumbers) -> None:
        self._states[ids] = 0
        self._next_state_uniforms[ids] = rngs.uniforms(self.horizon)
        self._reward_noise[ids] = rngs.normals(self.horizon)

    def _advance(self, actions: NDArray[Any], ids: Ids) -> tuple[Floats, Bools | bool, Bools | bool]:
        rows, states, steps = self._rows[ids], self._states[ids], self._elapsed[ids]
        rewards = self._mean_rewards[rows, states, actions] + self._reward_noise[rows, steps]
        uniforms = self._next_state_uniforms[rows, steps]
        self._states[ids] = (self._cumulative[rows, states, actions] <= uniforms[:, np.newaxis]).sum(1)
        return rewards, False, False

    def _observe(self) -> NDArray[Any]:
        observations = np.zeros((self.num_envs, self._mean_rewards.shape[1]), np.float32)
        observations[self._rows, self._states] = 1.0
        return observations


@dataclass(frozen=True)
class TabularMDP(EnvTaskDistribution[MDP]):
    """Random MDPs: next-state probabilities from a flat Dirichlet distribution, mean rewards from N(1, 1).

    RL² joins several episodes of one MDP into a trial, in which it learns the MDP.

    Source: Duan et al. 2016, arXiv:1611.02779: 10 states, 5 actions, 10 steps from the first state.

    Attributes:
        num_states: number of states.
        num_actions: number of actions.
        horizon: steps per trajectory.
    """

    num_states: Annotated[int, AtLeast(2)] = 10
    num_actions: Annotated[int, AtLeast(2)] = 5
    horizon: Annotated[int, AtLeast(1)] = 10

    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> list[MDP]:
        transitions = rng.dirichlet(np.ones(self.num_states), (num_tasks, self.num_states, self.num_actions))
        mean_rewards = rng.normal(1.0, 1.0, (num_tasks, self.num_states, self.num_actions))
        return [
            MDP(tuple(tuple(map(tuple, state)) for state in probabilities), tuple(map(tuple, rewards)))
            for probabilities, rewards in zip(transitions.tolist(), mean_rewards.tolist(), strict=True)
        ]

    def make_vector_env(self, num_envs: int, *, num_threads: int = 0) -> TabularMDPEnv:
        return TabularMDPEnv(num_envs, num_states=self.num_states, num_actions=self.num_actions, horizon=self.horizon)
