"""Reads the results of environments: numbers, booleans, and three infos.

- `diverged`: the step broke the simulation.
- `success`: the step reached the task's goal.
- `is_success`: the name of stable-baselines3 for it, read if there is no usable `success`.

Each info is one boolean; 0, 1 and an array of one such element are accepted too. Anything else under these names is
logged once and ignored.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from metarl.core.errors import ENVIRONMENT, environment_fault, text_of, users_code, warn_once
from metarl.rl.tasks import Array, ResetOptions, ResetResult, TaskVectorEnv

Bools = NDArray[np.bool_]
AnyInfos = Mapping[Any, Any]
SUCCESS = ("success", "is_success")
DIVERGED = ("diverged",)
RESET_NAMES = ("observation", "info")
STEP_NAMES = ("observation", "reward", "terminated", "truncated", "info")

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
        success_known: [n], whether the infos hold a usable value for it.
        infos: as the environments gave them.
    """

    observations: Any
    rewards: Any
    terminated: Bools
    truncated: Bools
    diverged: Bools
    success: Bools
    success_known: Bools
    infos: AnyInfos


def reset_all(env: TaskVectorEnv, *, seed: Sequence[int | None], options: ResetOptions = None) -> ResetResult:
    """Resets `env`. Returns the observations, which are not checked yet, and the infos.

    Raises:
        EnvironmentFaultError: the environment raised, or returned something else.
    """
    with users_code("reset", whose=ENVIRONMENT, step=0):
        result = env.reset(seed=seed, options=options)
        wrong = wrong_result(result, RESET_NAMES)
        if wrong:
            raise environment_fault(f"reset returned {wrong}", task=None, seed=None, step=0)
    return result


def step_all(env: TaskVectorEnv, actions: Array, *, step: int | None) -> Stepped:
    """Steps `env` and reads the result. `step` is used only in error messages.

    Raises:
        EnvironmentFaultError: the environment raised, or returned something else.
    """
    with users_code("step", whose=ENVIRONMENT, step=step):
        result: Any = env.step(actions)
        wrong = wrong_result(result, STEP_NAMES)
        if wrong:
            raise environment_fault(f"step returned {wrong}", task=None, seed=None, step=step)
        observations, rewards, *ends, infos = result
        over = [_flags(values, env.num_envs) for values in ends]
        for name, flags in zip(STEP_NAMES[2:4], over, strict=True):
            if flags is None:
                what = f"step returned a wrong {name}: must be an array of {env.num_envs} booleans"
                raise environment_fault(what, task=None, seed=None, step=step)
        diverged, _ = info_flags(infos, DIVERGED, env.num_envs)
        success, known = info_flags(infos, SUCCESS, env.num_envs)
    return Stepped(observations, rewards, cast(Bools, over[0]), cast(Bools, over[1]), diverged, success, known, infos)


def wrong_result(result: object, names: Sequence[str]) -> str:
    """What is wrong with a result of `reset` or `step`; "" if it has a value for each name and the last is a dict."""
    expected = f"must be {len(names)} values, {', '.join(names)}, as in gymnasium"
    if not isinstance(result, (tuple, list)):
        return f"one {type(result).__name__}: {expected}"
    if len(result) != len(names):
        return f"{len(result)} values: {expected}"
    if not isinstance(result[-1], Mapping):
        return f"the info {text_of(result[-1], repr):.80}: must be a dict"
    return ""


def number(value: object) -> float | None:
    """`value` as a float, also from an array of one element; None if that is impossible."""
    if isinstance(value, Real):
        try:
            return float(value)
        except (OverflowError, TypeError, ValueError):
            return None
    array = _array(value)
    return float(array.item()) if array is not None and array.size == 1 and array.dtype.kind in "biuf" else None


def truth(value: object) -> bool | None:
    """`value` as a boolean, from a boolean, 0, 1 or an array of one such element; None for anything else."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    known = number(value)
    return bool(known) if known in (0.0, 1.0) else None


def info_flag(infos: AnyInfos, names: Sequence[str]) -> bool | None:
    """The first boolean that one environment's infos hold under `names`; None if there is none."""
    for name in names:
        if name in infos:
            value = infos[name]
            known = truth(value)
            if known is not None:
                return known
            _ignored(name, _kind(value))
    return None


def info_flags(infos: AnyInfos, names: Sequence[str], num_envs: int) -> tuple[Bools, Bools]:
    """`info_flag` for a vector environment, whose infos are arrays.

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


def mask_of(infos: AnyInfos, name: str, num_envs: int) -> Bools:
    """Which environments have the info `name`: gymnasium's mask `_name`; all of them if there is no mask."""
    mask = _flags(infos.get(f"_{name}", True), num_envs)
    return np.ones(num_envs, bool) if mask is None else mask


def _flags(values: object, num_envs: int) -> Bools | None:
    """[num_envs] booleans, or None."""
    array = _array(values)
    if array is None or array.shape != (num_envs,) or array.dtype.kind not in "biuf":
        return None
    return array.astype(bool) if bool(((array == 0) | (array == 1)).all()) else None


def _array(value: object) -> Array | None:
    try:
        return np.asarray(value)
    except Exception:  # ragged lists, or whatever a foreign object raises
        return None


def _kind(value: object) -> str:
    array = _array(value)
    if array is None or array.dtype == object or isinstance(value, str):
        return f"a value of type {type(value).__name__}"
    return "a number other than 0 and 1" if array.size == 1 else f"an array of shape {array.shape}"


def _ignored(name: str, what: str) -> None:
    warn_once(_logger, f"an environment's info[{name!r}] holds {what}: ignored; must be one boolean, 0 or 1")
