"""Checks the observations and rewards of a vector environment."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from metarl.core.errors import ENVIRONMENT, environment_fault, users_code
from metarl.core.tasks import Tasks
from metarl.rl.tasks import Array

_LARGEST = float(np.finfo(np.float32).max)


def check_step(
    observations: Array,
    rewards: Array | None,
    live: NDArray[np.bool_],
    *,
    observation_size: int,
    tasks: Tasks,
    seeds: Sequence[int | None],
    step: int | NDArray[np.int64],
) -> Array:
    """The observations, after a check of what a vector environment returned.

    Args:
        observations: [num_envs, observation_size].
        rewards: [num_envs]; None after a reset.
        live: [num_envs] bool. The values of other environments are not checked.
        observation_size: the expected length of an observation.
        tasks: each belongs to an equal block of sub-environments.
        seeds: of the reset of each sub-environment, or None.
        step: steps since the reset, from 1; [num_envs] if they differ between environments.

    Returns:
        The observations. If an environment is not live, zeros replace its numbers that are not finite.

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


def _numbers(name: str, values: object, shape: tuple[int, ...], *, step: int) -> Array:
    """`values` as an array of numbers of `shape`."""
    with users_code("step", step=step, whose=ENVIRONMENT):
        array = np.asarray(values)
    wrong = "" if array.dtype.kind in "biuf" else f"dtype {array.dtype}: must be numbers"
    if array.shape != shape:
        wrong = f"shape {array.shape}: must be {shape}"
    if wrong:
        raise environment_fault(f"{name} have {wrong}", task=None, seed=None, step=step)
    return array
