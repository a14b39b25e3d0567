"""Gymnasium environments with tasks as one vector environment; errors name the task, seed and step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NoReturn, TypeVar

import gymnasium
import numpy as np

from metarl.core.errors import ENVIRONMENT, environment_fault, text_of, users_code
from metarl.core.tasks import Tasks
from metarl.core.time_limit import TimeLimit
from metarl.rl.mujoco_warnings import caught
from metarl.rl.mujoco_warnings import diverged as has_diverged
from metarl.rl.spaces import Fit, NotOfItsSpaceError
from metarl.rl.stepping import DIVERGED, RESET_NAMES, STEP_NAMES, SUCCESS, info_flag, number, truth, wrong_result
from metarl.rl.tasks import AnySpace, Array, EnvTasks, Infos, ResetOptions, ResetResult, ResetSeed, StepResult

Result = TypeVar("Result")


class GymnasiumTasks:
    """A vector environment of gymnasium's environments, which are stepped one after another.

    Vector actions are clipped. An environment that has ended stays as it is until the next `reset`. As in gymnasium,
    the option `{"reset_mask": bool array [num_envs]}` of `reset` resets only some of the environments.

    Args:
        tasks: makes the environments and gives them their tasks.
        num_envs: number of environments.
        timeout: seconds that one call of one environment may take, > 0; None for no limit.

    Attributes:
        envs: the environments that the tasks' `make_env` made, each in a wrapper.

    Raises:
        EnvironmentFaultError: here and in every other method, if an environment raises, hangs, or returns something
            that is no observation or reward.
    """

    metadata: ClassVar[Infos] = {"autoreset_mode": gymnasium.vector.AutoresetMode.DISABLED}

    def __init__(self, tasks: EnvTasks, num_envs: int, *, timeout: float | None = None) -> None:
        self._limit = TimeLimit(timeout)
        self.num_envs = num_envs
        with self._limit.watching():
            self.envs = [_TaskEnv(tasks, self._limit) for _ in range(num_envs)]
        self.fit = self.envs[0].fit
        self.single_observation_space = self.fit.observation.space
        self.single_action_space = self.fit.action.space
        for env in self.envs:
            env.require_spaces(self.envs[0].spaces)
        space = self.single_observation_space
        self._observations = np.zeros((num_envs, *(space.shape or ())), space.dtype)

    def set_tasks(self, tasks: Tasks) -> None:
        """One task per environment, from the next reset."""
        for env, task in zip(self.envs, tasks, strict=True):
            env.task = task

    def reset(self, *, seed: ResetSeed = None, options: ResetOptions = None) -> ResetResult:
        """Resets the environments. Returns no infos: `envs[i].infos` holds those of environment i."""
        seeds = [seed] * self.num_envs if seed is None else seed
        if isinstance(seeds, (int, np.integer)):
            seeds = [seeds + i for i in range(self.num_envs)]
        others = {name: value for name, value in (options or {}).items() if name != "reset_mask"}
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, bool))
        with self._limit.watching():
            for i in np.flatnonzero(mask).tolist():
                self._observations[i], _ = self.envs[i].reset(seed=seeds[i], options=others or None)
        return self._observations.copy(), {}

    def step(self, actions: Any) -> StepResult:
        """Steps the environments that have not ended.

        The infos are `diverged` and, if any environment gives it, `success` with gymnasium's mask `_success`.
        `envs[i].infos` holds all infos of environment i.
        """
        space = self.single_action_space
        if isinstance(space, gymnasium.spaces.Box):
            actions = np.clip(actions, space.low, space.high).astype(space.dtype)
        rewards = np.zeros(self.num_envs)
        terminated, truncated, diverged, success, known = np.zeros((5, self.num_envs), bool)
        with self._limit.watching():
            for i, (env, action) in enumerate(zip(self.envs, actions, strict=True)):
                if not env.ended:
                    self._observations[i], rewards[i], terminated[i], truncated[i], infos = env.step(action)
                    diverged[i] = infos["diverged"]
                    known[i] = infos["success"] is not None
                    success[i] = bool(infos["success"])
        successes = {"success": success, "_success": known} if known.any() else {}
        return self._observations.copy(), rewards, terminated, truncated, {"diverged": diverged, **successes}

    def close(self) -> None:
        for env in self.envs:
            env.close()


def wrong_environment(env: object) -> str:
    """What is wrong with the result of `make_env`; "" for a gymnasium environment."""
    if isinstance(env, gymnasium.Env):
        return ""
    advice = ""
    if isinstance(env, type):
        advice = f", such as {env.__name__}()"
    elif isinstance(env, gymnasium.vector.VectorEnv):
        advice = ", one environment. Return a vector environment of your own from make_vector_env"
    elif callable(getattr(env, "step", None)):
        advice = f". Let {type(env).__name__} inherit from it: `class {type(env).__name__}(gymnasium.Env)`"
    return f"make_env returned {text_of(env, repr):.80}: must be a gymnasium.Env{advice}"


class _TaskEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Sets the environment's task before every reset. Its errors name the task, seed and step.

    Attributes:
        task: the task from the next reset on.
        ended: whether a trajectory is over.
        infos: the infos of the last reset or step, unchanged.
    """

    def __init__(self, tasks: EnvTasks, limit: TimeLimit) -> None:
        self._tasks = tasks
        self._limit = limit
        self._seed: int | None = None
        self._steps: int | None = None
        self._warnings: list[str] = []
        self.task: Any = None
        self.ended = False
        self.infos: Mapping[Any, Any] = {}
        env = self._call("make_env", tasks.make_env)
        wrong = wrong_environment(env)
        if wrong:
            self._fail(wrong)
        super().__init__(env)
        self.spaces = self._call("make_env", self._present_spaces)
        self.fit = Fit(*self.spaces, env.metadata or {})

    def require_spaces(self, spaces: tuple[AnySpace, AnySpace]) -> None:
        """Fails unless the environment has the `spaces`, of observations and of actions."""
        present = self._call("make_env" if self._steps is None else "reset", self._present_spaces)
        for name, now, before in zip(("observation_space", "action_space"), present, spaces, strict=True):
            if now is not before and now != before:
                self._fail(f"{name} = {now}: must equal that of the first environment, {before}")

    def reset(self, *, seed: int | None = None, options: ResetOptions = None) -> ResetResult:
        self.ended = False
        self._seed, self._steps = seed, 0
        if self.task is not None:
            self._call("set_task", self._tasks.set_task, self.env, self.task)
        answer = self._call("reset", self._reset, seed, options)
        self._require(answer, "reset", RESET_NAMES)
        observation, self.infos = answer
        self.require_spaces(self.spaces)
        return self._observed(observation, "reset"), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, Infos]:
        """Returns only two infos: `diverged`, and `success`, which is None if the environment does not give it."""
        self._steps = (self._steps or 0) + 1
        taken = self.fit.action(action) if self.fit.action.changes else action
        answer = self._call("step", self.env.step, taken)
        broken = has_diverged(self._warnings)
        self._require(answer, "step", STEP_NAMES)
        observation, reward, *ends, self.infos = answer
        diverged, success = self._call("step", lambda: [info_flag(self.infos, names) for names in (DIVERGED, SUCCESS)])
        broken = broken or bool(diverged)
        paid = number(reward)
        if paid is None:
            self._fail(
                f"step returned the reward {text_of(reward, repr):.80}: must be one number that a float can hold"
            )
        terminated, truncated = (self._flag(name, value) for name, value in zip(STEP_NAMES[2:4], ends, strict=True))
        self.ended = terminated or truncated or broken
        infos = {"diverged": broken, "success": success}
        return self._observed(observation, "step"), paid, terminated, truncated, infos

    def close(self) -> None:
        self._call("close", self.env.close)

    def _present_spaces(self) -> tuple[AnySpace, AnySpace]:
        return self.env.observation_space, self.env.action_space

    def _reset(self, seed: int | None, options: ResetOptions) -> Any:
        return self.env.reset(seed=seed, options=options)

    def _require(self, answer: object, where: str, names: Sequence[str]) -> None:
        wrong = wrong_result(answer, names)
        if wrong:
            self._fail(f"{where} returned {wrong}")

    def _flag(self, name: str, value: object) -> bool:
        flag = truth(value)
        if flag is None:
            self._fail(f"step returned {name} = {text_of(value, repr):.80}: must be one boolean")
        return flag

    def _observed(self, observation: Any, where: str) -> Array:
        """The observation in the dtype of its space, flattened if the space is not flat."""
        if self.fit.observation.changes:
            try:
                return self.fit.observation(observation)
            except NotOfItsSpaceError as error:
                self._fail(f"{where} returned {error}")
        space = self.spaces[0]
        array = observation if isinstance(observation, np.ndarray) else self._call(where, _array_of, observation)
        if array.shape != space.shape and array.dtype.kind in "OU":
            kind = f"the observation {text_of(observation, repr):.80}"
            self._fail(f"{where} returned {kind}: must be an array of shape {space.shape}, the observation space's")
        if array.shape != space.shape:
            self._fail(
                f"{where} returned an observation of shape {array.shape}: must be {space.shape}, "
                "the observation space's"
            )
        if array.dtype == space.dtype:
            return array
        if array.dtype.kind not in "biuf":
            self._fail(f"{where} returned an observation of dtype {array.dtype}: must be numbers, {space.dtype}")
        with np.errstate(all="ignore"):
            converted = array.astype(space.dtype)
            lost = np.isfinite(array) > np.isfinite(converted)
        if lost.any():
            index = ", ".join(map(str, np.argwhere(lost)[0]))
            self._fail(f"observation[{index}] = {array[lost][0]}: must be finite as {space.dtype}, the space's dtype")
        return converted

    def _call(self, what: str, function: Callable[..., Result], *arguments: Any) -> Result:
        self._limit.restart()
        with (
            caught() as self._warnings,
            users_code(what, task=self.task, seed=self._seed, step=self._steps, whose=ENVIRONMENT),
        ):
            return function(*arguments)

    def _fail(self, what: str) -> NoReturn:
        raise environment_fault(what, task=self.task, seed=self._seed, step=self._steps)


def _array_of(observation: Any) -> Array:
    """`observation` as an array; if its parts differ in length, an array that holds it as one object."""
    try:
        return np.asarray(observation)
    except ValueError:
        array = np.empty((), object)
        array[()] = observation
        return array
