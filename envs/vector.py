"""The base of environments that step all their tasks together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, TypeAlias

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from metarl.envs.random_numbers import RandomNumbers

Floats: TypeAlias = NDArray[np.float64]
Bools: TypeAlias = NDArray[np.bool_]
Ids: TypeAlias = slice | NDArray[np.intp]
"""Which sub-environments: `ALL`, or their sorted numbers. Both index an array whose leading axis is num_envs."""

ALL = slice(None)


class TaskBatchEnv(gymnasium.vector.VectorEnv[NDArray[Any], NDArray[Any], NDArray[Any]], ABC):
    """A `gymnasium.vector.VectorEnv` in which each sub-environment has a task of its own.

    A family implements `_assign_tasks`, `_reset`, `_advance` and `_observe`, vectorised over the sub-environments. It
    may add `_infos`. It may read `_elapsed`, the steps [num_envs] since each reset.

    A step can end a trajectory in two ways. `terminated` means that the MDP ended. `truncated` means that it could
    continue but is stopped: at the horizon, or because the simulation diverged. A step at the horizon that ends the MDP
    is only `terminated`.

    Autoreset is gymnasium's, `DISABLED` by default. A sub-environment that has ended then stays frozen until it is
    reset: same observation, reward 0, neither terminated nor truncated, nothing simulated.

    Attributes:
        default_task: the task of every sub-environment before `set_tasks` is called, or None if tasks must be set.
        horizon: steps after which a trajectory is truncated.
        autoreset_mode: what happens after a trajectory ends.
    """

    default_task: Any = None

    def __init__(
        self,
        num_envs: int,
        observation_space: gymnasium.Space[Any],
        action_space: gymnasium.Space[Any],
        *,
        horizon: int,
        autoreset_mode: AutoresetMode = AutoresetMode.DISABLED,
    ) -> None:
        """
        Args:
            num_envs: number of sub-environments, >= 1.
            observation_space: observation space of one sub-environment.
            action_space: action space of one sub-environment.
            horizon: steps after which a trajectory is truncated, >= 1.
            autoreset_mode: what happens after a trajectory ends.

        Raises:
            ValueError: num_envs or horizon is below 1.
        """
        if num_envs < 1 or horizon < 1:
            raise ValueError(f"num_envs = {num_envs} and horizon = {horizon}: both must be at least 1")
        self.num_envs = num_envs
        self.single_observation_space = observation_space
        self.single_action_space = action_space
        self.observation_space = batch_space(observation_space, num_envs)
        self.action_space = batch_space(action_space, num_envs)
        self.horizon = horizon
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self._tasks: tuple[Any, ...] = (self.default_task,) * num_envs
        self._unassigned = np.ones(num_envs, bool)
        self._seeds = np.random.SeedSequence().generate_state(num_envs, np.uint64).astype(np.uint64)
        self._num_resets = np.zeros(num_envs, np.uint64)
        self._rngs: dict[int, np.random.Generator] = {}
        self._elapsed = np.zeros(num_envs, np.int64)
        self._ended = np.ones(num_envs, bool)
        self._started = False

    @property
    def tasks(self) -> tuple[Any, ...]:
        """The tasks that were set last, one per sub-environment."""
        return self._tasks

    def set_tasks(self, tasks: Sequence[Any]) -> None:
        """Gives every sub-environment a task. It takes effect at the next reset.

        Args:
            tasks: one per sub-environment.

        Raises:
            ValueError: the number of tasks is not that of sub-environments.
        """
        if len(tasks) != self.num_envs:
            raise ValueError(f"{len(tasks)} tasks for {self.num_envs} sub-environments; give one task to each")
        self._tasks = tuple(tasks)
        self._unassigned[:] = True

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Starts new trajectories.

        Args:
            seed: an int s seeds sub-environment i with s + i. A sequence has one seed for each, below 2^64. None,
                for all or for one of them: the random numbers continue. A trajectory depends on its seed, task and
                actions and on the number of trajectories since seeding, not on its place in the batch.
            options: `{"reset_mask": bool array [num_envs]}` resets only the marked sub-environments.

        Returns:
            All observations, [num_envs, ...], and an empty dict.

        Raises:
            ValueError: the seed sequence or mask has the wrong length, a seed is out of range, the mask is all False,
                or no task was set and the family has no default task.
            TypeError: the mask is not a bool array.
        """
        ids = np.flatnonzero(self._reset_mask(options))
        given = self._given_seeds(seed)
        seeded = [i for i in ids.tolist() if given[i] is not None]
        self._seeds[seeded] = np.array([given[i] for i in seeded], np.uint64)
        self._num_resets[seeded] = 0
        for i in seeded:
            self._rngs.pop(i, None)
        self._begin(ids)
        self._started = True
        return self._observe(), {}

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Steps every sub-environment once, except those that have ended.

        Args:
            actions: [num_envs, ...], in `action_space`; those of ended sub-environments are ignored.

        Returns:
            Observations, rewards (float64), terminated and truncated (bool), each [num_envs, ...], and infos.
            `infos["diverged"]`, bool [num_envs], marks simulations that diverged in this step; they are truncated with
            reward 0. The infos that the family adds are 0 or False where nothing was simulated or the simulation
            diverged. In `SAME_STEP` mode, infos also has gymnasium's `final_obs`, `final_info` and their masks.

        Raises:
            gymnasium.error.ResetNeeded: before the first reset.
            ValueError: actions has the wrong shape.
        """
        if not self._started:
            raise gymnasium.error.ResetNeeded("step was called before the first reset")
        actions = np.asarray(actions)
        if actions.shape != self.action_space.shape:
            raise ValueError(f"actions has shape {actions.shape}; expected {self.action_space.shape}")
        ids: Ids = np.flatnonzero(~self._ended) if self._ended.any() else ALL
        if self.autoreset_mode == AutoresetMode.NEXT_STEP and self._ended.any():
            self._begin(np.flatnonzero(self._ended))
        rewards = np.zeros(self.num_envs)
        terminated, truncated, diverged = np.zeros((3, self.num_envs), bool)
        if isinstance(ids, slice) or ids.size:
            new_rewards, new_terminated, new_diverged = self._advance(actions[ids], ids)
            diverged[ids] = new_diverged
            rewards[ids] = np.where(new_diverged, 0.0, new_rewards)
            terminated[ids] = new_terminated
            terminated &= ~diverged
            self._elapsed[ids] += 1
            truncated[ids] = self._elapsed[ids] >= self.horizon
            truncated = (truncated | diverged) & ~terminated
        step_infos = {"diverged": diverged} | self._family_infos(ids, ~diverged)
        over = terminated | truncated
        self._ended |= over
        observations = self._observe()
        infos: dict[str, Any] = step_infos | {f"_{name}": np.ones(self.num_envs, bool) for name in step_infos}
        if self.autoreset_mode == AutoresetMode.SAME_STEP and over.any():
            infos |= self._final_infos(observations, step_infos, over)
            self._begin(np.flatnonzero(over))
            observations = self._observe()
        return observations, rewards, terminated, truncated, infos

    @abstractmethod
    def _assign_tasks(self, ids: NDArray[np.intp], tasks: Sequence[Any]) -> None:
        """Gives the sub-environments `ids` their tasks, one each. They are reset next."""

    @abstractmethod
    def _reset(self, ids: NDArray[np.intp], rngs: RandomNumbers) -> None:
        """Puts the sub-environments `ids` into initial states.

        Args:
            ids: numbers of the sub-environments, sorted.
            rngs: their random numbers: one numpy generator each, or drawn for all at once, which is faster.
        """

    @abstractmethod
    def _advance(self, actions: NDArray[Any], ids: Ids) -> tuple[Floats, Bools | bool, Bools | bool]:
        """Steps the sub-environments `ids`.

        Args:
            actions: one for each of them, [len(ids), ...].
            ids: `ALL`, or the numbers of some. The others must not change.

        Returns:
            Rewards, terminated and diverged, [len(ids)] each. The last two may be a single False for all.
        """

    @abstractmethod
    def _observe(self) -> NDArray[Any]:
        """All observations as a new array, [num_envs, ...], in the observation space's dtype."""

    def _infos(self, ids: Ids) -> dict[str, NDArray[Any]]:
        """What `step` adds to its infos about the step that was just simulated. Names are the same in every step.

        Args:
            ids: the sub-environments: `ALL`, or the numbers of some, possibly none.

        Returns:
            Numbers or bools [len(ids)] by name, such as "success".
        """
        return {}

    def _family_infos(self, ids: Ids, valid: Bools) -> dict[str, NDArray[Any]]:
        infos = {}
        for name, values in self._infos(ids).items():
            infos[name] = np.zeros(self.num_envs, values.dtype)
            infos[name][ids] = np.where(valid[ids], values, infos[name][ids])
        return infos

    def _begin(self, ids: NDArray[np.intp]) -> None:
        unassigned = ids[self._unassigned[ids]]
        if unassigned.size:
            tasks = [self._tasks[i] for i in unassigned]
            if any(task is None for task in tasks):
                raise ValueError(f"{type(self).__name__} has no default task; call set_tasks before reset")
            self._assign_tasks(unassigned, tasks)
            self._unassigned[unassigned] = False
        self._reset(ids, RandomNumbers(self._seeds[ids], self._num_resets[ids], lambda k: self._generator(int(ids[k]))))
        self._num_resets[ids] += np.uint64(1)
        self._elapsed[ids] = 0
        self._ended[ids] = False

    def _generator(self, i: int) -> np.random.Generator:
        if i not in self._rngs:
            self._rngs[i] = np.random.default_rng(int(self._seeds[i]))
        return self._rngs[i]

    def _final_infos(self, observations: NDArray[Any], infos: dict[str, NDArray[Any]], over: Bools) -> dict[str, Any]:
        final_obs = np.full(self.num_envs, None, object)
        for i in np.flatnonzero(over):
            final_obs[i] = observations[i]
        final_info = {name: np.where(over, values, np.zeros_like(values)) for name, values in infos.items()}
        final_info |= {f"_{name}": over.copy() for name in infos}
        return {"final_obs": final_obs, "_final_obs": over.copy(), "final_info": final_info, "_final_info": over.copy()}

    def _given_seeds(self, seed: int | Sequence[int | None] | None) -> Sequence[int | None]:
        if seed is None:
            return [None] * self.num_envs
        seeds = [int(seed) + i for i in range(self.num_envs)] if isinstance(seed, (int, np.integer)) else seed
        if len(seeds) != self.num_envs:
            raise ValueError(f"{len(seeds)} seeds for {self.num_envs} sub-environments; give one seed to each")
        wrong = next((s for s in seeds if s is not None and not 0 <= s < 2**64), None)
        if wrong is not None:
            raise ValueError(f"seed {wrong} is not in [0, 2^64)")
        return seeds

    def _reset_mask(self, options: dict[str, Any] | None) -> Bools:
        if options is None or "reset_mask" not in options:
            return np.ones(self.num_envs, bool)
        mask = options["reset_mask"]
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
            raise TypeError(f"reset_mask must be a numpy array of bool; it is {mask!r}")
        if mask.shape != (self.num_envs,) or not mask.any():
            raise ValueError(f"reset_mask must have shape ({self.num_envs},) and a True value; it is {mask}")
        return mask
