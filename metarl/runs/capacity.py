"""Refuses runs that cannot fit into the machine's memory, before anything is created."""

from __future__ import annotations

import math

from metarl.core.errors import InputError
from metarl.core.files import total_memory
from metarl.core.settings import fields_of
from metarl.rl.tasks import EnvTaskDistribution
from metarl.runs import registry
from metarl.runs.config import RunConfig

# Settings of built-in families and agents. The memory of a task grows linearly or with the square of the setting.
LINEAR = (
    "horizon",
    "num_arms",
    "num_actions",
    "num_pulls",
    "num_rays",
    "num_rows",
    "num_columns",
    "context_size",
    "hidden_size",
)
SHOTS = ("num_ways", "train_ways", "num_shots", "num_queries", "train_queries")
UPDATE = ("num_adaptation_steps", "inner_updates", "trajectories_per_trial")
SQUARE = ("num_states", "size", "view", "image_size", "num_filters")
GROWTH = dict.fromkeys((*LINEAR, *SHOTS, *UPDATE, "hidden_sizes"), 1) | dict.fromkeys(SQUARE, 2)

NUMBER = 4  # bytes of a float32
ITEM = 32  # bytes of a number in a task, or of an item that has several numbers
STEP = 20  # bytes of a step besides its observation: action, reward, log-probability and masks


def require_capacity(config: RunConfig, *, observation_size: int = 1) -> None:
    """Raises `InputError` if `config` needs more memory than the machine has.

    The need is a lower bound: a run that passes may still need too much.

    Args:
        config: of the run.
        observation_size: numbers in an observation; 1 if unknown.
    """
    tasks = config.trainer.meta_batch_size
    built_in = {*registry.TASKS}, {*registry.AGENTS, *registry.LEARNERS}
    settings = {} if config.task_name not in built_in[0] else _settings("task", config.task)
    settings |= {} if config.agent_name not in built_in[1] else _settings("agent", config.agent)
    for name, values in settings.items():
        power = GROWTH[name.partition(".")[2]]
        for value in values:
            _require({name: value}, tasks * (ITEM if power == 1 else NUMBER), power=power)
    evaluation, together = config.evaluation, {"trainer.meta_batch_size": tasks}
    _require({"evaluation.num_tasks": evaluation.num_tasks}, NUMBER * (evaluation.num_adaptation_steps + 1))
    if not isinstance(config.task, EnvTaskDistribution):
        return
    bytes_per_step = NUMBER * observation_size + STEP
    if evaluation.min_live_steps is not None:
        at_once = {"trainer.meta_batch_size": min(tasks, evaluation.num_tasks)}
        _require({"evaluation.min_live_steps": evaluation.min_live_steps} | at_once, bytes_per_step)
    horizon = getattr(config.task, "horizon", None)
    if type(horizon) is not int:  # a user's own family; its horizon is checked elsewhere
        return
    collections = {name: value for name, (value, *_) in settings.items() if name.partition(".")[2] in UPDATE}
    length = next((name for name in ("task.horizon", "task.num_pulls") if name in settings), "horizon")
    both = {length: horizon} | together
    if "num_trajectories" in fields_of(config.agent):  # a user's own agent may lack it
        _require({"agent.num_trajectories": config.agent.num_trajectories} | both | collections, bytes_per_step)
    if evaluation.num_trajectories is not None:
        both |= {"trainer.meta_batch_size": min(tasks, evaluation.num_tasks)}
        _require({"evaluation.num_trajectories": evaluation.num_trajectories} | both, bytes_per_step)


def _settings(table: str, part: object) -> dict[str, tuple[int, ...]]:
    """The settings of `part` that are in GROWTH."""
    found = {}
    for setting in fields_of(part):
        value = getattr(part, setting)
        numbers = value if isinstance(value, tuple) else (value,)
        if setting in GROWTH and all(type(number) is int for number in numbers):
            found[f"{table}.{setting}"] = numbers
    return found


def _require(factors: dict[str, int], size: int, *, power: int = 1) -> None:
    """Raises `InputError` if the product of `factors`, times `size` bytes, exceeds the memory; names the largest."""
    need, memory = math.prod(factors.values()) ** power * size, total_memory()
    if need <= memory:
        return
    name = max(factors, key=lambda name: factors[name])
    others = {other: value for other, value in factors.items() if other != name}
    most = math.isqrt(memory // size) if power == 2 else memory // (size * math.prod(others.values()))
    beside = f" with {', '.join(f'{other} = {value}' for other, value in others.items())}" if others else ""
    bound = f"at most {most}{beside}" if most else f"smaller{beside}"
    has = f"this machine has {memory // 10**9} GB of memory"
    raise InputError(f"{name} = {factors[name]}: must be {bound}: {has}, and the run needs at least {need // 10**9} GB")
