"""Checks what a vector environment returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metarl.core.errors import ENVIRONMENT, environment_fault, users_code

_LARGEST = float(np.finfo(np.float32).max)


def check_step(
    observations: NDArray[Any],
    rewards: NDArray[Any] | None,
    live: NDArray[np.bool_],
    *,
    observation_size: int,
    tasks: Sequence[Any],
    seeds: Sequence[int | None],
    step: int | NDArray[np.int64],
) -> NDArray[Any]:
    """What a vector environment returned, once it is known to be usable.

    Args:
        observations: [num_envs, observation_size].
        rewards: [num_envs]; None after a reset.
        live: [num_envs] bool: others may return anything.
        observation_size: that there must be.
        tasks: in equal blocks of sub-environments.
        seeds: one per sub-environment, of its reset, None where that had none.
        step: steps since the reset, from 1; [num_envs] if they differ between environments.

    Returns:
        The observations, with zeros for what is not finite of those that are not live.

    Raises:
        EnvironmentFaultError: a shape or type is wrong, or a live observation or reward is not finite as float32.
    """
    steps = np.broadcast_to(step, len(live))
    size = (len(live), observation_size)
    observations = _numbers("observations", observations, size, step=int(steps.max()))
    if rewards is not None:
        rewards = _numbers("rewards", rewards, size[:1], step=int(steps.max()))
    finite = np.abs(observations) <= _LARGEST
    paid = np.full(len(live), True) if rewards is None else np.abs(rewards) <= _LARGEST
    if finite.all() and paid.all():
        return observations
    for i in np.flatnonzero(live & ~(finite.all(1) & paid)).tolist():
        column = int(np.argmin(finite[i]))
        reward = None if rewards is None or paid[i] else rewards[i]
        value, name = (observations[i, column], f"observation[{column}]") if reward is None else (reward, "reward")
        allowed = "finite" if not np.isfinite(value) else f"finite as float32, at most {_LARGEST:.2g}"
        task = tasks[i * len(tasks) // len(live)]
        what = f"{name} = {value}: must be {allowed}"
        raise environment_fault(what, task=task, seed=seeds[i], step=int(steps[i]))
    return np.where(finite, observations, 0.0)


def _numbers(name: str, values: Any, shape: tuple[int, ...], *, step: int) -> NDArray[Any]:
    """`values` as an array of numbers of `shape`."""
    with users_code("step", step=step, whose=ENVIRONMENT):
        array = np.asarray(values)
    wrong = "" if array.dtype.kind in "biuf" else f"dtype {array.dtype}: must be numbers"
    if array.shape != shape:
        wrong = f"shape {array.shape}: must be {shape}"
    if wrong:
        raise environment_fault(f"{name} have {wrong}", task=None, seed=None, step=step)
    return array
