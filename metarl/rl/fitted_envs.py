"""Wrappers that convert the spaces of environments for a policy, as `metarl.rl.spaces` describes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium

from metarl.core.errors import environment_fault
from metarl.rl.spaces import Fit, NotOfItsSpaceError
from metarl.rl.tasks import TaskVectorEnv


def fitted(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """`env` in a `FittedEnv`, or `env` itself if its spaces need no conversion."""
    wrapped = FittedEnv(env)
    return wrapped if wrapped.fit.changes else env


class FittedEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """`env` with a flat float Box of observations, and a flat Box or a Discrete from 0 on of actions.

    Raises:
        InputError: a space is not supported. The message says what to do.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        self.fit = Fit(env.observation_space, env.action_space, env.metadata or {})
        self.observation_space, self.action_space = self.fit.observation.space, self.fit.action.space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, infos = self.env.reset(seed=seed, options=options)
        return self.fit.observation(observation), infos

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        taken = self.fit.action(action) if self.fit.action.changes else action
        observation, reward, terminated, truncated, infos = self.env.step(taken)
        return self.fit.observation(observation), reward, terminated, truncated, infos


class FittedVectorEnv:
    """`FittedEnv` for a vector environment: `fit` converts whole batches of `env`."""

    def __init__(self, env: TaskVectorEnv, fit: Fit) -> None:
        self.num_envs = env.num_envs
        self.single_observation_space, self.single_action_space = fit.observation.space, fit.action.space
        self.fit = fit
        self._env = env

    def set_tasks(self, tasks: Sequence[Any]) -> None:
        self._env.set_tasks(tasks)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        return self._fitted(self._env.reset(seed=seed, options=options), "reset")  # type: ignore[no-any-return]

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        taken = self.fit.action(actions, batch=True) if self.fit.action.changes else actions
        return self._fitted(self._env.step(taken), "step")  # type: ignore[no-any-return]

    def close(self) -> None:
        self._env.close()

    def _fitted(self, answer: Any, where: str) -> Any:
        """`answer` with flat observations. A malformed answer is returned as it is; the caller checks it."""
        if not isinstance(answer, tuple) or not answer:
            return answer
        try:
            return self.fit.observation(answer[0], batch=True), *answer[1:]
        except NotOfItsSpaceError as error:
            raise environment_fault(f"{where} returned {error}", task=None, seed=None, step=0) from None

    def __getattr__(self, name: str) -> Any:
        """What only some environments have, such as `render_simulation`."""
        if name == "_env":
            raise AttributeError(name)
        return getattr(self._env, name)
