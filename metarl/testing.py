"""Checks for what users implement: run on every built-in, and by `metarl check-tasks` on a distribution of one's
own."""

from __future__ import annotations

import dataclasses
import math
import pickle
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from metarl.episodes import Trajectories
from metarl.learner import Acted, Spaces
from metarl.rollout import RolloutCollector
from metarl.seeds import Seeds
from metarl.tasks import EnvTaskDistribution, Split, TaskDistribution

NUM_TASKS = 8
MAX_STEPS = 50
NUM_TRAJECTORIES = 16
SPLITS: tuple[Split, Split] = ("train", "test")


def check_task_distribution(distribution: TaskDistribution[Any], *, seed: int = 0) -> list[str]:
    """What is wrong with a task distribution, one line each; an empty list if nothing is.

    Checks the number of tasks, that the generator alone decides them, that tasks are comparable plain data with finite
    parameters, what `splits` claims; and of environments, that episodes depend on the seed alone, that numbers are
    finite, and that the task reaches the environment.
    """
    problems: list[str] = []
    for split in SPLITS:
        problems += _check_sampling(distribution, split, seed)
    if not problems:
        problems += _check_splits(distribution, seed)
    if not problems and isinstance(distribution, EnvTaskDistribution):
        problems += _check_environments(distribution, seed)
    return problems


def _check_sampling(distribution: TaskDistribution[Any], split: Split, seed: int) -> list[str]:
    where = f"sample(split={split!r})"
    tasks, again, other = (
        distribution.sample(NUM_TASKS, np.random.default_rng(number), split=split) for number in (seed, seed, seed + 1)
    )
    if len(tasks) != NUM_TASKS:
        return [f"{where} returned {len(tasks)} tasks; {NUM_TASKS} were asked for"]
    problems = []
    if not _equal(tasks, again):
        advice = "draw from `rng` alone, and make tasks comparable (a frozen dataclass)"
        problems.append(f"{where} gave {tasks[0]!r}, then {again[0]!r} from equal generators: {advice}")
    finite = distribution.all_tasks(split)
    if _equal(tasks, other) and (finite is None or len(finite) > 1):
        problems.append(f"{where} gave the same {NUM_TASKS} tasks from two different generators: it ignores `rng`")
    for task in tasks:
        bad = [f"{name} = {value!r}" for name, value in _numbers(task) if not math.isfinite(value)]
        if bad:
            problems.append(f"{where} gave a task with non-finite parameters: {', '.join(bad)}")
            break
    try:
        if not _equal([pickle.loads(pickle.dumps(tasks[0]))], [tasks[0]]):
            problems.append(f"{tasks[0]!r} does not equal its pickled copy")
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        problems.append(f"{tasks[0]!r} cannot be pickled: {error}")
    return problems


def _equal(left: Sequence[Any], right: Sequence[Any]) -> bool:
    try:
        return list(left) == list(right)
    except ValueError:  # arrays compare element by element: such tasks are not comparable
        return False


def _check_splits(distribution: TaskDistribution[Any], seed: int) -> list[str]:
    train, test = ([*_draw(distribution, split, seed)] for split in SPLITS)
    if distribution.splits == "disjoint":
        shared = [task for task in test if task in train]
        if shared:
            return [f"splits = 'disjoint', but {shared[0]!r} is in both"]
    if distribution.splits == "identical":
        finite = {split: distribution.all_tasks(split) for split in SPLITS}
        if finite["train"] is None or finite["train"] != finite["test"]:
            return ["splits = 'identical', but all_tasks('train') and all_tasks('test') are not the same list"]
    return []


def _check_environments(distribution: EnvTaskDistribution[Any], seed: int) -> list[str]:
    short = _shortened(distribution)
    tasks = _distinct(distribution, seed)
    collector = RolloutCollector(short, num_trajectories=NUM_TRAJECTORIES)
    learner = _RandomLearner(collector.spaces)

    def run(task: Any, number: int) -> Trajectories:
        return collector.query([task], learner, None, Seeds.first(1, seed=number))

    try:
        first, again = run(tasks[0], seed), run(tasks[0], seed)
        problems = []
        for name in ("observations", "rewards"):
            value = getattr(first, name)
            if not bool(value.isfinite().all()):
                problems.append(f"{name} under {tasks[0]!r} are not finite")
            elif not torch.equal(value, getattr(again, name)):
                problems.append(
                    f"{name} under {tasks[0]!r} differ between two episodes with one seed: reset ignores it"
                )
        if problems or len(tasks) < 2:
            return problems
        differs = any(
            not torch.equal(getattr(run(tasks[1], number), name), getattr(run(tasks[0], number), name))
            for number in range(seed, seed + 5)
            for name in ("observations", "rewards")
        )
        if not differs:
            problems.append(
                f"{tasks[0]!r} and {tasks[1]!r} gave equal episodes: the task does not reach the environment"
            )
        return problems
    finally:
        collector.close()


def _shortened(distribution: EnvTaskDistribution[Any]) -> EnvTaskDistribution[Any]:
    """`distribution` with a shorter horizon, where its horizon is a setting."""
    if not dataclasses.is_dataclass(distribution) or distribution.horizon <= MAX_STEPS:
        return distribution
    settings = {field.name for field in dataclasses.fields(distribution) if field.init}
    return dataclasses.replace(distribution, horizon=MAX_STEPS) if "horizon" in settings else distribution


def _distinct(distribution: TaskDistribution[Any], seed: int) -> list[Any]:
    tasks: list[Any] = []
    for task in _draw(distribution, "train", seed):
        if task not in tasks:
            tasks.append(task)
    return tasks


def _draw(distribution: TaskDistribution[Any], split: Split, seed: int) -> Iterator[Any]:
    finite = distribution.all_tasks(split)
    yield from distribution.sample(200, np.random.default_rng(seed), split=split) if finite is None else finite


def _numbers(task: Any, name: str = "task") -> Iterator[tuple[str, float]]:
    if isinstance(task, (int, float, np.integer, np.floating)) and not isinstance(task, bool):
        yield name, float(task)
    elif isinstance(task, dict):
        for key, value in task.items():
            yield from _numbers(value, str(key))
    elif isinstance(task, (Sequence, np.ndarray)) and not isinstance(task, str):
        for value in task:
            yield from _numbers(value, name)
    elif dataclasses.is_dataclass(task) and not isinstance(task, type):
        for field in dataclasses.fields(task):
            yield from _numbers(getattr(task, field.name), field.name)


class _RandomLearner:
    """Acts by the noise alone, as far as a collector needs it."""

    def __init__(self, spaces: Spaces) -> None:
        self._spaces = spaces

    def act(self, state: None, observations: torch.Tensor, noise: torch.Tensor) -> tuple[Acted, None]:
        actions = (noise * self._spaces.action_size).long() if self._spaces.discrete else noise
        return Acted(actions, torch.zeros(observations.shape[:2])), state

    def observe(self, state: None, *feedback: torch.Tensor) -> None:
        return state
