"""Wrappers that convert the spaces of environments for a policy, as `metarl.rl.spaces` describes."""

from __future__ import annotations

from typing import Any

import gymnasium

from metarl.core.errors import environment_fault
from metarl.rl.spaces import Fit, NotOfItsSpaceError
from metarl.rl.tasks import (
    AnyEnv,
    Infos,
    ResetOptions,
    ResetResult,
    ResetSeed,
    StepResult,
    TaskVectorEnv,
    TaskVectorWrapper,
)


def fitted(env: AnyEnv) -> AnyEnv:
    """`env` in a `FittedEnv`, or `env` itself if its spaces need no conversion."""
    wrapped = FittedEnv(env)
    return wrapped if wrapped.fit.changes else env


class FittedEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """`env` with a flat float Box of observations, and a flat Box or a Discrete from 0 on of actions.

    Raises:
        InputError: a space is not supported. The message says what to do.
    """

    def __init__(self, env: AnyEnv) -> None:
        super().__init__(env)
        self.fit = Fit(env.observation_space, env.action_space, env.metadata or {})
        self.observation_space, self.action_space = self.fit.observation.space, self.fit.action.space

    def reset(self, *, seed: int | None = None, options: ResetOptions = None) -> ResetResult:
        observation, infos = self.env.reset(seed=seed, options=options)
        return self.fit.observation(observation), infos

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, Infos]:
        taken = self.fit.action(action) if self.fit.action.changes else action
        observation, reward, terminated, truncated, infos = self.env.step(taken)
        return self.fit.observation(observation), reward, terminated, truncated, infos


class FittedVectorEnv(TaskVectorWrapper):
    """`FittedEnv` for a vector environment: `fit` converts whole batches of `env`."""

    def __init__(self, env: TaskVectorEnv, fit: Fit) -> None:
        super().__init__(env)
        self.single_observation_space, self.single_action_space = fit.observation.space, fit.action.space
        self.fit = fit

    def reset(self, *, seed: ResetSeed = None, options: ResetOptions = None) -> ResetResult:
        return self._fitted(self.env.reset(seed=seed, options=options), "reset")  # type: ignore[no-any-return]

    def step(self, actions: Any) -> StepResult:
        taken = self.fit.action(actions, batch=True) if self.fit.action.changes else actions
        return self._fitted(self.env.step(taken), "step")  # type: ignore[no-any-return]

    def _fitted(self, result: object, where: str) -> Any:
        """`result` with flat observations. A malformed result is returned as it is; the caller checks it."""
        if not isinstance(result, tuple) or not result:
            return result
        try:
            return self.fit.observation(result[0], batch=True), *result[1:]
        except NotOfItsSpaceError as error:
            raise environment_fault(f"{where} returned {error}", task=None, seed=None, step=0) from None
