"""Collects trajectories of all tasks at once."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarl.core.data import Trajectories
from metarl.core.errors import ENVIRONMENT, EnvironmentFaultError, InputError, RunError, users_code
from metarl.core.learner import Actor, Spaces
from metarl.core.seeds import Seeds, require_slots
from metarl.core.tasks import Tasks
from metarl.core.trees import to_device
from metarl.rl.checks import check_step
from metarl.rl.environments import fit_of, spaces_of, vector_env_of
from metarl.rl.stepping import Stepped, reset_all, step_all
from metarl.rl.tasks import Array, EnvTasks, TaskVectorEnv, horizon_of

State = TypeVar("State")


class RolloutCollector:
    """Collects exactly `num_trajectories` whole trajectories of every task. All simulations step together.

    Args:
        tasks: the distribution whose environments are used.
        num_trajectories: trajectories per task and collection.
        min_live_steps: if given, rounds of `num_trajectories` are collected until every task has this many live steps.
            Trajectories of a task beyond that number are masked out (the MAML paper's test protocol).
        num_threads: simulator threads; 0 for all cores. Results do not depend on it.
        device: where the learner is. Data is moved there once per collection.
        act_device: where the policy acts. On another device than the CPU, observations and actions are moved in every
            step. For small policies this takes longer than acting on the CPU.
        environment_timeout: seconds that one call of one gymnasium environment may take, > 0; None for no limit.
        watch: called after the reset and after every step. It gets the environments and a mask, bool
            [num_tasks * num_trajectories], of those whose trajectory has just reached a new state.

    Raises:
        InputError: if the environments' spaces cannot be used.
        EnvironmentFaultError: here and in collecting, if an environment fails or all simulations diverge in their first
            step.
    """

    acts = True

    def __init__(
        self,
        tasks: EnvTasks,
        *,
        num_trajectories: int,
        min_live_steps: int | None = None,
        num_threads: int = 0,
        device: torch.device | str = "cpu",
        act_device: torch.device | str = "cpu",
        environment_timeout: float | None = None,
        watch: Callable[[TaskVectorEnv, NDArray[np.bool_]], None] | None = None,
    ) -> None:
        self.tasks = tasks
        self._horizon = horizon_of(tasks)
        self.num_trajectories = num_trajectories
        self.min_live_steps = min_live_steps
        self.device = torch.device(device)
        self.act_device = torch.device(act_device)
        self._num_threads = num_threads
        self._environment_timeout = environment_timeout
        self._watch = watch
        self._envs: dict[int, TaskVectorEnv] = {}
        with torchs_defaults_kept():
            self.spaces = spaces_of(self._env(1))
        self.action_space = self._env(1).single_action_space
        self._fit = fit_of(self._env(1))

    @property
    def space_notes(self) -> tuple[str, ...]:
        """How actions and observations are converted, one line each; empty if they are not."""
        return () if self._fit is None else self._fit.notes

    def positions(self, observations: NDArray[np.float32]) -> NDArray[np.floating[Any]]:
        """The tasks' `positions` for observations of this collector, as flat vectors.

        Rescaled observations are first converted back to the environments' own units.
        """
        own = observations if self._fit is None else self._fit.observation.in_own_units(observations)
        return self.tasks.positions(own)

    def support(
        self,
        tasks: Tasks,
        learner: Actor[State],
        state: State,
        seeds: Seeds,
        *,
        step: int,
    ) -> Trajectories:
        """Trajectories of `state`, which acts, for adaptation step `step`."""
        require_slots(tasks, seeds)
        return self._collect(tasks, learner, state, seeds.support(step))

    def query(self, tasks: Tasks, learner: Actor[State], state: State, seeds: Seeds) -> Trajectories:
        """Trajectories of the adapted `state`."""
        require_slots(tasks, seeds)
        return self._collect(tasks, learner, state, seeds.query())

    def close(self) -> None:
        """Closes the environments."""
        for env in self._envs.values():
            with users_code("close", whose=ENVIRONMENT):
                env.close()
        self._envs.clear()

    def _collect(
        self,
        tasks: Tasks,
        learner: Actor[State],
        state: State,
        rngs: Sequence[np.random.Generator],
    ) -> Trajectories:
        acting = to_device(state, self.act_device)
        rounds = []
        with torch.no_grad(), one_torch_thread():
            while True:
                with torchs_defaults_kept():
                    rounds.append(self._round(tasks, learner, acting, rngs))
                acting = rounds[-1].state
                if not bool(rounds[-1].mask.any()):
                    raise EnvironmentFaultError("every simulation diverged in its first step: nothing to learn from")
                if self.min_live_steps is None:
                    break
                live = torch.stack([r.mask.sum((1, 2)) for r in rounds])
                if bool((live.sum(0) >= self.min_live_steps).all()):
                    break
        data = rounds[0] if len(rounds) == 1 else _concatenate(rounds)
        if self.min_live_steps is not None:
            data = _keep_first(data, self.min_live_steps)
        return to_device(data, self.device)

    def _round(
        self,
        tasks: Tasks,
        learner: Actor[State],
        state: State,
        rngs: Sequence[np.random.Generator],
    ) -> Trajectories:
        num_tasks, width, horizon = len(tasks), self.num_trajectories, self._horizon
        env = self._env(num_tasks * width)
        buffers = _Buffers.empty(horizon, num_tasks, width, self.spaces)
        seeds = [int(seed) for rng in rngs for seed in rng.integers(2**31, size=width)]
        noise = self._noise(rngs).to(self.act_device)
        with users_code("set_tasks", whose=ENVIRONMENT):
            env.set_tasks([task for task in tasks for _ in range(width)])
        check = functools.partial(check_step, observation_size=self.spaces.observation_size, tasks=tasks, seeds=seeds)
        alive = np.ones(num_tasks * width, dtype=bool)
        observation, _ = reset_all(env, seed=seeds)
        observation = check(observation, None, alive, step=0)
        if self._watch is not None:
            self._watch(env, alive)
        for t in range(horizon):
            buffers.observations[t] = observation
            acted, state = learner.act(state, self._to_act(buffers.observations[t], num_tasks), noise[t])
            actions = acted.actions.cpu().numpy().reshape(num_tasks * width, *buffers.actions.shape[2:])
            stepped = _step(env, actions, step=t + 1)
            live = alive & ~stepped.diverged
            observation = check(stepped.observations, stepped.rewards, live, step=t + 1)
            if self._watch is not None:
                self._watch(env, live)
            if t + 1 == horizon:
                stepped = stepped._replace(truncated=stepped.truncated | ~stepped.terminated)
            buffers.record(t, actions, acted.log_probs, acted.values, stepped, alive)
            state = learner.observe(
                state, acted.actions, *(self._to_act(row, num_tasks) for row in buffers.feedback(t))
            )
            ended = alive & (stepped.terminated | stepped.truncated | buffers.diverged)
            followed = np.where(buffers.diverged[:, np.newaxis], buffers.observations[t], observation)
            buffers.last_observations[ended] = followed[ended]
            alive = alive & ~ended
            if not alive.any():
                break
        return buffers.trajectories(num_tasks, width, state)

    def _noise(self, rngs: Sequence[np.random.Generator]) -> Tensor:
        """Sampling noise of a whole round, drawn per task in one block, [H, N, K] or [H, N, K, action_size]."""
        shape = (self._horizon, self.num_trajectories)
        if self.spaces.discrete:
            blocks = [rng.random(shape, dtype=np.float32) for rng in rngs]
        else:
            blocks = [rng.standard_normal((*shape, self.spaces.action_size), dtype=np.float32) for rng in rngs]
        return torch.from_numpy(np.stack(blocks, axis=1))

    def _to_act(self, array: Array, num_tasks: int) -> Tensor:
        tensor = torch.from_numpy(array).reshape(num_tasks, self.num_trajectories, *array.shape[1:])
        return tensor.to(self.act_device)

    def _env(self, num_envs: int) -> TaskVectorEnv:
        if num_envs not in self._envs:
            self._envs[num_envs] = vector_env_of(
                self.tasks, num_envs, num_threads=self._num_threads, timeout=self._environment_timeout
            )
        return self._envs[num_envs]


@dataclass
class _Buffers:
    """The data of one round. The first axis is time, the second one the simulations, task by task."""

    observations: NDArray[np.float32]
    actions: Array
    rewards: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    mask: NDArray[np.float32]
    log_probs: NDArray[np.float32]
    last_observations: NDArray[np.float32]
    diverged: NDArray[np.bool_]
    values: NDArray[np.float32] | None = None
    success: NDArray[np.bool_] | None = None

    @staticmethod
    def empty(horizon: int, num_tasks: int, width: int, spaces: Spaces) -> _Buffers:
        def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Array:
            # torch aligns memory to 64 bytes, numpy does not. The last bits of a matrix product depend on it.
            return torch.zeros(shape, dtype=dtype).numpy()

        rows = (horizon, num_tasks * width)
        return _Buffers(
            observations=zeros(*rows, spaces.observation_size),
            actions=zeros(*rows, dtype=torch.int64) if spaces.discrete else zeros(*rows, spaces.action_size),
            rewards=zeros(*rows),
            terminated=zeros(*rows, dtype=torch.bool),
            truncated=zeros(*rows, dtype=torch.bool),
            mask=zeros(*rows),
            log_probs=zeros(*rows),
            last_observations=zeros(rows[1], spaces.observation_size),
            diverged=zeros(rows[1], dtype=torch.bool),
        )

    def record(
        self,
        t: int,
        actions: Array,
        log_probs: Tensor,
        values: Tensor | None,
        stepped: Stepped,
        alive: NDArray[np.bool_],
    ) -> None:
        """Writes step `t` of the simulations that are alive. A step that broke a simulation is not live."""
        diverged = stepped.diverged & alive
        live = alive & ~diverged
        self.diverged |= diverged
        self.actions[t] = actions
        self.mask[t] = live
        self.rewards[t] = np.where(live, stepped.rewards, 0.0)
        self.terminated[t] = stepped.terminated & live
        self.truncated[t] = stepped.truncated & ~stepped.terminated & live
        if t > 0 and diverged.any():
            self.truncated[t - 1] |= diverged
        self.log_probs[t] = log_probs.cpu().numpy().reshape(-1)
        if values is not None:
            if self.values is None:
                self.values = np.zeros_like(self.log_probs)
            self.values[t] = values.cpu().numpy().reshape(-1)
        if stepped.success_known.any():
            success = live & stepped.success
            self.success = success if self.success is None else self.success | success

    def feedback(self, t: int) -> tuple[Array, Array, Array]:
        """Rewards, ends and truncations of step `t` for the learner. A broken simulation ends its trajectory too."""
        return self.rewards[t], self.terminated[t], self.truncated[t] | self.diverged

    def trajectories(self, num_tasks: int, width: int, state: Any) -> Trajectories:
        def task_major(array: Array) -> Tensor:
            tensor = torch.from_numpy(array).reshape(len(array), num_tasks, width, *array.shape[2:])
            return tensor.permute(1, 2, 0, *range(3, tensor.dim())).contiguous()

        def per_trajectory(array: Array) -> Tensor:
            return torch.from_numpy(array).reshape(num_tasks, width, *array.shape[1:])

        return Trajectories(
            observations=task_major(self.observations),
            actions=task_major(self.actions),
            rewards=task_major(self.rewards),
            terminated=task_major(self.terminated),
            truncated=task_major(self.truncated),
            mask=task_major(self.mask),
            log_probs=task_major(self.log_probs),
            last_observations=per_trajectory(self.last_observations),
            diverged=per_trajectory(self.diverged),
            state=state,
            values=None if self.values is None else task_major(self.values),
            success=None if self.success is None else per_trajectory(self.success),
        )


@contextlib.contextmanager
def one_torch_thread() -> Iterator[None]:
    """Limits torch to one thread, so that it does not compete with the simulator for the cores; restored afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def torchs_defaults_kept() -> Iterator[None]:
    """Raises `EnvironmentFaultError` if a user's code has changed torch's default dtype or device. MetaRL uses both."""
    try:
        yield
    except (InputError, RunError):
        raise
    except Exception:  # the network's own error would not name the cause
        _require_torchs_defaults()
        raise
    _require_torchs_defaults()


def _require_torchs_defaults() -> None:
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    for name, value, kept in (("dtype", dtype, torch.float32), ("device", device.type, "cpu")):
        if value != kept:
            raise EnvironmentFaultError(
                f"torch.get_default_{name}() is {value}: must stay {kept}. The code of the tasks or environments calls "
                f"torch.set_default_{name}: give its own tensors a {name} instead"
            )


def _step(env: TaskVectorEnv, actions: Array, *, step: int) -> Stepped:
    """Takes one step. An action that is not finite is the learner's fault: the environment gets 0 instead.

    The trajectory is truncated. The action stays in the data, so the update is not finite either and is undone.
    """
    if np.isfinite(actions).all():
        return step_all(env, actions, step=step)
    finite = np.asarray(np.isfinite(actions).all(1))
    stepped = step_all(env, np.where(finite[:, np.newaxis], actions, 0.0), step=step)
    return stepped._replace(truncated=stepped.truncated | ~finite)


def _concatenate(rounds: Sequence[Trajectories]) -> Trajectories:
    def joined(name: str) -> Any:
        parts = [getattr(r, name) for r in rounds]
        return None if parts[0] is None else torch.cat(parts, dim=1)

    names = [name for name in Trajectories.__dataclass_fields__ if name not in ("state", "success")]
    successes = [r.success for r in rounds]
    none = torch.zeros_like(rounds[0].diverged)  # some environments report success only when there is one
    known = any(success is not None for success in successes)
    success = torch.cat([none if part is None else part for part in successes], dim=1) if known else None
    return replace(rounds[-1], success=success, **{name: joined(name) for name in names})


def _keep_first(data: Trajectories, num_steps: int) -> Trajectories:
    """Masks each task's trajectories after the one with which it reaches `num_steps` live steps."""
    lengths = data.mask.sum(-1)
    before = lengths.cumsum(1) - lengths
    keep = (before < num_steps).unsqueeze(-1)
    return replace(data, mask=data.mask * keep, diverged=data.diverged & keep.squeeze(-1))
