"""Reads what environments return: numbers, booleans, and three infos.

`diverged`: the step broke the simulation. `success`: the step reached the task's goal. `is_success`: the name of
stable-baselines3 for it, read if there is no usable `success`. Each is one boolean; 0, 1 and an array of one such
element count too. Anything else under these names is logged once and ignored.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from metarl.core.errors import ENVIRONMENT, environment_fault, text_of, users_code, warn_once
from metarl.rl.tasks import TaskVectorEnv

Bools = NDArray[np.bool_]
SUCCESS = ("success", "is_success")
DIVERGED = ("diverged",)
RESET_ANSWER = ("observation", "info")
STEP_ANSWER = ("observation", "reward", "terminated", "truncated", "info")

_logger = logging.getLogger(__name__)


class Stepped(NamedTuple):
    """The result of one step of n environments.

    Attributes:
        observations: [n, observation_size], not checked yet.
        rewards: [n], not checked yet.
        terminated: [n].
        truncated: [n].
        diverged: [n], whether the step broke the simulation.
        success: [n], whether the step reached the task's goal.
        tells_success: [n], whether the infos hold a usable value for it.
        infos: as the environments gave them.
    """

    observations: Any
    rewards: Any
    terminated: Bools
    truncated: Bools
    diverged: Bools
    success: Bools
    tells_success: Bools
    infos: Mapping[Any, Any]


def reset_all(
    env: TaskVectorEnv, *, seed: Sequence[int | None], options: dict[str, Any] | None = None
) -> tuple[Any, Mapping[Any, Any]]:
    """Resets `env`. Returns the observations, which are not checked yet, and the infos.

    Raises:
        EnvironmentFaultError: the environment raised, or returned something else.
    """
    with users_code("reset", whose=ENVIRONMENT, step=0):
        answer = env.reset(seed=seed, options=options)
        wrong = wrong_answer(answer, RESET_ANSWER)
        if wrong:
            raise environment_fault(f"reset returned {wrong}", task=None, seed=None, step=0)
    return answer


def step_all(env: TaskVectorEnv, actions: NDArray[Any], *, step: int | None) -> Stepped:
    """Steps `env` and reads the result. `step` is used only in error messages.

    Raises:
        EnvironmentFaultError: the environment raised, or returned something else.
    """
    with users_code("step", whose=ENVIRONMENT, step=step):
        answer: Any = env.step(actions)
        wrong = wrong_answer(answer, STEP_ANSWER)
        if wrong:
            raise environment_fault(f"step returned {wrong}", task=None, seed=None, step=step)
        observations, rewards, *ends, infos = answer
        over = [_flags(values, env.num_envs) for values in ends]
        for name, flags in zip(STEP_ANSWER[2:4], over, strict=True):
            if flags is None:
                what = f"step returned a wrong {name}: must be an array of {env.num_envs} booleans"
                raise environment_fault(what, task=None, seed=None, step=step)
        diverged, _ = told_by_all(infos, DIVERGED, env.num_envs)
        success, tells = told_by_all(infos, SUCCESS, env.num_envs)
    return Stepped(observations, rewards, cast(Bools, over[0]), cast(Bools, over[1]), diverged, success, tells, infos)


def wrong_answer(answer: Any, names: Sequence[str]) -> str:
    """What is wrong with a result of `reset` or `step`; "" if it has a value for each name and the last is a dict."""
    many = isinstance(answer, (tuple, list))
    if not many or len(answer) != len(names):
        returned = f"{len(answer)} values" if many else f"one {type(answer).__name__}"
        return f"{returned}: must be {len(names)} values, {', '.join(names)}, as in gymnasium"
    if not isinstance(answer[-1], Mapping):
        return f"the info {text_of(answer[-1], repr):.80}: must be a dict"
    return ""


def number(value: Any) -> float | None:
    """`value`, or the element of an array of one, as a float; None if that is impossible."""
    if isinstance(value, Real):
        try:
            return float(value)
        except (OverflowError, TypeError, ValueError):
            return None
    array = _array(value)
    return float(array.item()) if array is not None and array.size == 1 and array.dtype.kind in "biuf" else None


def truth(value: Any) -> bool | None:
    """`value` as a boolean, from a boolean, 0, 1 or an array of one such element; None for anything else."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    known = number(value)
    return bool(known) if known in (0.0, 1.0) else None


def told(infos: Mapping[Any, Any], names: Sequence[str]) -> bool | None:
    """The first boolean that one environment's infos hold under `names`; None if there is none."""
    for name in names:
        if name in infos:
            value = infos[name]
            known = truth(value)
            if known is not None:
                return known
            _ignored(name, _kind(value))
    return None


def told_by_all(infos: Mapping[Any, Any], names: Sequence[str], num_envs: int) -> tuple[Bools, Bools]:
    """`told` for a vector environment, whose infos are arrays.

    Returns:
        The booleans, and which environments have one, both [num_envs].
    """
    values, known = np.zeros((2, num_envs), bool)
    for name in names:
        if name not in infos:
            continue
        array = _array(infos[name])
        if array is None or array.shape not in ((num_envs,), (num_envs, 1)):
            _ignored(name, _kind(infos[name]))
            continue
        array, there = array.reshape(num_envs), mask_of(infos, name, num_envs)
        if array.dtype == object:
            there = there & np.array([value is not None for value in array])  # None: this environment gives no value
            truths = [truth(value) for value in array]
            usable = np.array([value is not None for value in truths])
            array = np.array([bool(value) for value in truths])
        elif array.dtype.kind in "biuf":
            usable = (array == 0) | (array == 1)
        else:
            usable = np.zeros(num_envs, bool)
        for i in np.flatnonzero(there & ~usable)[:1].tolist():
            _ignored(name, _kind(infos[name][i]))
        fresh = there & usable & ~known
        values[fresh] = array[fresh].astype(bool)
        known |= fresh
    return values, known


def mask_of(infos: Mapping[Any, Any], name: str, num_envs: int) -> Bools:
    """Which environments have the info `name`: gymnasium's mask `_name`; all of them if there is no mask."""
    mask = _flags(infos.get(f"_{name}", True), num_envs)
    return np.ones(num_envs, bool) if mask is None else mask


def _flags(values: Any, num_envs: int) -> Bools | None:
    """[num_envs] booleans, or None."""
    array = _array(values)
    if array is None or array.shape != (num_envs,) or array.dtype.kind not in "biuf":
        return None
    return array.astype(bool) if bool(((array == 0) | (array == 1)).all()) else None


def _array(value: Any) -> NDArray[Any] | None:
    try:
        return np.asarray(value)
    except Exception:  # ragged lists, or whatever a foreign object raises
        return None


def _kind(value: Any) -> str:
    array = _array(value)
    if array is None or array.dtype == object or isinstance(value, str):
        return f"a value of type {type(value).__name__}"
    return "a number other than 0 and 1" if array.size == 1 else f"an array of shape {array.shape}"


def _ignored(name: str, what: str) -> None:
    warn_once(_logger, f"an environment's info[{name!r}] holds {what}: ignored; must be one boolean, 0 or 1")
