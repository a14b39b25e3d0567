"""Wraps MetaRL's agents as models of stable-baselines3 (SB3), with the method `predict`.

`evaluate_policy` of SB3, and any loop over a gymnasium environment, can use them. SB3 need not be installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from metarl.agents.rl2 import RL2
from metarl.core.errors import InputError, one_line, require
from metarl.core.learner import Spaces
from metarl.core.trees import to_device, tree_map
from metarl.gradients.adaptation import Parameters
from metarl.rl.policy_gradient import AdaptivePolicy
from metarl.rl.spaces import ActionFit
from metarl.rl.trials import TrialState

Array = NDArray[Any]
Space = gymnasium.Space[Any]


class _Predictor:
    """The common part of both predictors: shapes, random numbers, and the bounds of actions.

    Attributes:
        environment: the environment that its observations come from, for messages.
    """

    environment = ""

    def __init__(self, spaces: Spaces, action_space: Space | None, seed: int | np.random.Generator) -> None:
        call = f"{type(self).__name__}(learner, env.action_space)"
        if action_space is None:
            raise InputError(f"action_space: missing; write {call}")
        is_space = isinstance(action_space, gymnasium.Space)
        require(is_space, "action_space", action_space, f"a gymnasium space; write {call}")
        self._fit = ActionFit(action_space)
        chosen = self._fit.space
        discrete = isinstance(chosen, gymnasium.spaces.Discrete)
        size = int(chosen.n) if isinstance(chosen, gymnasium.spaces.Discrete) else chosen.shape
        expected = spaces.action_size if spaces.discrete else (spaces.action_size,)
        fits = discrete == spaces.discrete and size == expected
        kind = f"Discrete({expected})" if spaces.discrete else f"a Box of shape {expected}"
        require(fits, "action_space", action_space, f"{kind}, as the agent was trained for")
        self.spaces, self.action_space = spaces, action_space
        self._rng = np.random.default_rng(seed)

    def _rows(self, observation: ArrayLike, size: int) -> tuple[Tensor, bool]:
        """Observations as [1, n, size], and whether `observation` is a single one, without the axis n."""
        try:
            rows = np.asarray(observation, np.float32)
        except (TypeError, ValueError) as error:
            raise InputError(f"observation: {one_line(error)}; must be numbers, [{size}] or [n, {size}]") from error
        allowed = f"[{size}] or [n, {size}]: an observation of {self.environment}"
        require(rows.ndim in (1, 2) and rows.shape[-1] == size, "observation.shape", rows.shape, allowed)
        return torch.from_numpy(np.atleast_2d(rows)[np.newaxis].copy()), rows.ndim == 1

    def _noise(self, num_rows: int) -> Tensor:
        if self.spaces.discrete:
            return torch.from_numpy(self._rng.random((1, num_rows), dtype=np.float32))
        shape = (1, num_rows, self.spaces.action_size)
        return torch.from_numpy(self._rng.standard_normal(shape, dtype=np.float32))

    def _actions(self, drawn: Tensor, single: bool) -> Array:
        actions: Array = drawn[0].numpy()
        if self._fit.changes:
            taken: Array = self._fit(actions[0]) if single else self._fit(actions, batch=True)
            return taken
        if isinstance(self.action_space, gymnasium.spaces.Box):
            actions = np.clip(actions, self.action_space.low, self.action_space.high)
        return actions[0] if single else actions


def _require_learner(learner: object, kind: type[object], allowed: str) -> None:
    """Refuses a `learner` that is not of `kind`. The message says what to write instead."""
    advice = ""
    if isinstance(learner, (str, Path)):
        advice = f"; write metarl.load({str(learner)!r})"
    elif isinstance(learner, (RL2, AdaptivePolicy)):
        advice = f"; write {TrialPredictor.__name__ if isinstance(learner, RL2) else AdaptedPredictor.__name__}"
    elif isinstance(learner, type):
        advice = "; write an object of the class, such as metarl.load(run_dir)"
    given = learner if isinstance(learner, (str, Path)) else one_line(type(learner).__name__)
    require(isinstance(learner, kind), "learner", str(given), f"{allowed}{advice}")


class AdaptedPredictor(_Predictor):
    """Wraps one adapted policy of an agent that takes gradient steps as a model of SB3.

    Args:
        learner: the agent.
        action_space: of the environment that takes the actions: a `TaskVecEnv`, or an environment made by the user.
            Actions are clipped to it, as by SB3's models, and rescaled as in training.
        state: the adapted state; None for the meta-parameters.
        task: the position of the policy on the task axis of the state.
        seed: seed of the sampling noise, or its generator.

    Raises:
        InputError: the agent has a memory (use `TrialPredictor`); the state has no such task; there is no action space,
            or it differs from that of training.
    """

    environment = "TaskVecEnv"

    def __init__(
        self,
        learner: AdaptivePolicy,
        action_space: Space | None = None,
        *,
        state: Parameters | None = None,
        task: int = 0,
        seed: int | np.random.Generator = 0,
    ) -> None:
        _require_learner(learner, AdaptivePolicy, "an RL agent that takes gradient steps")
        super().__init__(learner.spaces, action_space, seed)
        fresh = learner.begin(1)
        adapted = fresh if state is None else state
        fits = isinstance(adapted, Mapping) and adapted.keys() == fresh.keys()
        require(fits, "state", type(adapted).__name__, "an adapted state of this learner, such as learner.begin(1)")
        num_tasks = len(next(iter(adapted.values())))
        is_task = isinstance(task, (int, np.integer)) and 0 <= task < num_tasks
        require(is_task, "task", task, f"an integer in [0, {num_tasks}), one of the tasks of the state")
        self._learner = learner
        self._state = to_device(tree_map(lambda value: value[task : task + 1].detach(), adapted), "cpu")

    def predict(
        self,
        observation: ArrayLike,
        state: tuple[Array, ...] | None = None,
        episode_start: object = None,
        deterministic: bool = False,
    ) -> tuple[Array, tuple[Array, ...] | None]:
        """The actions for one or several observations.

        Args:
            observation: [observation_size], or [n, observation_size]; flat, with integers rescaled. `TaskVecEnv` and
                `metarl.rl.wrappers.fitted(env)` give this form.
            state: returned as it is.
            episode_start: not used.
            deterministic: take the likeliest action instead of a random one.

        Returns:
            Actions [n, action_size] or, discrete, [n], without n for a single observation; and `state`.
        """
        rows, single = self._rows(observation, self.spaces.observation_size)
        with torch.no_grad():
            distribution = self._learner.distribution(self._state, rows)
            drawn = distribution.mode() if deterministic else distribution.sample(self._noise(rows.shape[1]))
        return self._actions(drawn, single), state


class TrialPredictor(_Predictor):
    """Wraps RL² as a recurrent model of SB3. It takes the observations of `TrialVecEnv`.

    The state that `predict` returns holds the memory and the last action before clipping. As in training, the memory
    gets this action, and not the clipped one in the observation.

    Args:
        learner: the agent.
        action_space: of the environment that takes the actions: a `TaskVecEnv`, or an environment made by the user.
            Actions are clipped to it, as by SB3's models, and rescaled as in training.
        seed: seed of the sampling noise, or its generator.

    Raises:
        InputError: the agent has no memory (use `AdaptedPredictor`); there is no action space, or it differs from that
            of training.
    """

    environment = "TrialVecEnv(distribution, num_envs, episodes_per_trial=...)"

    def __init__(self, learner: RL2, action_space: Space | None = None, *, seed: int | np.random.Generator = 0) -> None:
        _require_learner(learner, RL2, "RL2, or one derived from it")
        super().__init__(learner.spaces, action_space, seed)
        self._learner = learner

    def predict(
        self,
        observation: ArrayLike,
        state: tuple[Array, ...] | None = None,
        episode_start: ArrayLike | None = None,
        deterministic: bool = False,
    ) -> tuple[Array, tuple[Array, ...]]:
        """The actions for one step of one or several trials.

        Args:
            observation: [observation_size + action_size + 2], or with an axis of n in front.
            state: returned by the last step; None if all trials begin.
            episode_start: bool [n], true where a trial begins; its memory is cleared. None: no trial begins.
            deterministic: take the likeliest action instead of a random one.

        Returns:
            Actions [n, action_size] or, discrete, [n], without n for a single observation; and the next state, arrays
            [n, ...].
        """
        sizes = [self.spaces.observation_size, self.spaces.action_size, 1, 1]
        rows, single = self._rows(observation, sum(sizes))
        inputs, _, reward, done = torch.split(rows, sizes, dim=-1)
        trial = self._before(rows.shape[1], state, episode_start)
        trial = trial._replace(reward=reward[..., 0], done=done[..., 0])
        with torch.no_grad():
            distribution, _, trial = self._learner.distribution(trial, inputs)
            drawn = distribution.mode() if deterministic else distribution.sample(self._noise(rows.shape[1]))
            trial = self._learner.observe(trial, drawn, trial.reward, trial.over, trial.over)
        return self._actions(drawn, single), tuple(part[0].numpy() for part in (*trial.memory, trial.action))

    def _before(self, num_rows: int, state: tuple[Array, ...] | None, starts: ArrayLike | None) -> TrialState:
        """The state of each trial so far; the initial state where a trial begins."""
        fresh = to_device(self._learner.begin(1), "cpu")
        fresh = tree_map(lambda part: part.expand(1, num_rows, *part.shape[2:]), fresh)
        if state is None:
            return fresh
        parts = [torch.from_numpy(part.copy()).unsqueeze(0) for part in state]
        if starts is not None:
            for part in parts:
                part[0, torch.from_numpy(np.asarray(starts, bool))] = 0
        return fresh._replace(memory=tuple(parts[:-1]), action=parts[-1])
