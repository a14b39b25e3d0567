"""Checks of a task distribution. `metarl check-tasks` runs them; tests run them on all built-in families."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable, Iterator
from typing import Any, get_args

import numpy as np
import torch

from metarl.core.data import Examples
from metarl.core.errors import EnvironmentFaultError, InputError, closing, one_line, require
from metarl.core.seeds import Seeds
from metarl.core.tasks import AnyDistribution, Split, Splits, Tasks, are_listed, distinct_tasks, parts_of, same_task
from metarl.fewshot.base.examples import ExampleSpaces, ExampleTaskDistribution
from metarl.rl.gymnasium_tasks import wrong_environment
from metarl.rl.task_in_observation import TaskInObservation
from metarl.rl.tasks import AnySpace, EnvTaskDistribution, EnvTasks, horizon_of
from metarl.testing.environments import check_environments
from metarl.testing.foreign import TIMEOUT_S, Foreign
from metarl.testing.learners import check_agent as check_agent

NUM_TASKS = 8
NUM_DRAWN = 200
FEW_TASKS = 40  # `NUM_DRAWN` draws show nearly all tasks of a family of this size
SPLITS: tuple[Split, Split] = ("train", "test")


def check_task_distribution(
    distribution: AnyDistribution,
    *,
    seed: int = 0,
    timeout: float | None = TIMEOUT_S,
    on_call: Callable[[str], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> list[str]:
    """Lists the faults of a task distribution, one line each; empty if there are none.

    The checks:
        - Sampling gives the requested number of tasks, and they depend only on the generator.
        - Tasks are plain data with finite parameters, and `splits` is correct.
        - Episodes depend only on the task and the seed, and all numbers are finite.
        - The task reaches the environment. `scene` and `positions`, if there are any, can be drawn.
        - `task_features`, if the family defines it, gives finite numbers of one length.
        - Examples depend only on the task and its slot's seed, have the sizes in `spaces`, and differ between tasks.

    Args:
        distribution: the distribution to check.
        seed: of all random numbers, >= 0.
        timeout: seconds that one call of the distribution or an environment may take, > 0; None for no limit.
        on_call: called with the name of each call before it is made.
        on_note: called with each note: one useful line that is not a fault.

    Raises:
        EnvironmentFaultError: the distribution or an environment raised an error (its cause), or took too long.
    """
    call, note = Foreign(timeout, on_call), on_note or (lambda _: None)
    try:
        check_before_training(distribution, seed=seed, timeout=timeout, on_call=on_call)
        problems: list[str] = []
        for split in SPLITS:
            problems += _check_sampling(distribution, split, seed, call)
        if not problems:
            problems += _check_splits(distribution, seed, call, note)
        if not problems and isinstance(distribution, EnvTaskDistribution):
            tasks = distinct_tasks(_draw(distribution, "train", seed, call), NUM_TASKS)
            problems += check_environments(distribution, tasks, seed=seed, call=call, on_note=note)
            if type(distribution).task_features is not EnvTaskDistribution.task_features:
                observed = call("task_features", TaskInObservation, distribution)
                for task in tasks:
                    call("task_features", observed.task_features, task)
        if not problems and isinstance(distribution, ExampleTaskDistribution):
            problems += _check_examples(distribution, seed, call)
    except InputError as error:
        return [str(error)]
    except EnvironmentFaultError as error:
        if error.__cause__ is not None:  # keep the traceback of an error in the user's code
            raise
        return [str(error)]
    return problems


def check_before_training(
    distribution: AnyDistribution,
    *,
    seed: int = 0,
    timeout: float | None = TIMEOUT_S,
    on_call: Callable[[str], None] | None = None,
) -> None:
    """The part of `check_task_distribution` that runs no episode. `metarl train` starts with it.

    Checks that samples have the right number of tasks with finite parameters. For environments, checks the horizon, and
    that the spaces are the same for all tasks.

    Args:
        distribution: the distribution to check.
        seed: of all random numbers, >= 0.
        timeout: as in `check_task_distribution`.
        on_call: as in `check_task_distribution`.

    Raises:
        InputError: the first thing that is wrong.
        EnvironmentFaultError: the distribution or an environment raised an error (its cause), or took too long.
    """
    call = Foreign(timeout, on_call)
    require(distribution.splits in get_args(Splits), "splits", distribution.splits, f"one of {get_args(Splits)}")
    for split in SPLITS:
        where = f"sample(split={split!r})"
        tasks = call(where, distribution.sample, NUM_TASKS, np.random.default_rng(seed), split=split)
        asked = f"a list of {NUM_TASKS} tasks, as asked for"
        _require_list(tasks, where, asked)
        require(len(tasks) == NUM_TASKS, where, f"{len(tasks)} tasks", asked)
        for task in tasks:
            bad = [f"{name} = {one_line(value, max_length=60)}" for name, value in parts_of(task) if _not_finite(value)]
            if bad:
                raise InputError(
                    f"{where} = {one_line(task)}: must be a task with finite parameters; {', '.join(bad[:3])}"
                )
        where = f"all_tasks({split!r})"
        finite = call(where, distribution.all_tasks, split)
        if finite is not None:
            _require_list(finite, where, "None, or a list of at least one task")
            require(len(finite) > 0, where, finite, "None, or at least one task")
    if isinstance(distribution, EnvTaskDistribution):
        _check_spaces(distribution, seed, call)


def _require_list(tasks: object, where: str, allowed: str) -> None:
    if not are_listed(tasks):
        raise InputError(f"{where} = {one_line(repr(tasks))}: must be {allowed}")


def _not_finite(value: Any) -> bool:
    numbers = isinstance(value, (float, np.floating)) or (isinstance(value, np.ndarray) and value.dtype.kind == "f")
    return numbers and not bool(np.isfinite(value).all())


def _check_spaces(distribution: EnvTasks, seed: int, call: Foreign) -> None:
    horizon = horizon_of(distribution)
    if type(distribution).make_vector_env is not EnvTaskDistribution.make_vector_env:
        together = call("make_vector_env", distribution.make_vector_env, 1, num_threads=1)
        if together is not None:
            tasks = _draw(distribution, "train", seed, call)[:1]
            with call.environment("set_tasks", task=tasks[0]):
                together.set_tasks(tasks)
            with call.environment("reset", task=tasks[0], seed=seed):
                together.reset(seed=[seed])
            with call.environment("close"):
                together.close()
            return
    with call.environment("make_env"):
        env = distribution.make_env()
        wrong = wrong_environment(env)
        if wrong:
            raise InputError(wrong)

    def close() -> None:
        with call.environment("close"):
            env.close()

    with closing(close):
        with call.environment("make_env"):
            limit = None if env.spec is None else env.spec.max_episode_steps
        allowed = (
            f"at most {limit}, where the environment's own TimeLimit ends a trajectory (see its max_episode_steps)"
        )
        require(limit is None or horizon <= limit, "horizon", horizon, allowed)
        first: tuple[object, tuple[AnySpace, AnySpace]] | None = None
        for task in distinct_tasks(_draw(distribution, "train", seed, call), NUM_TASKS):
            with call.environment("set_task", task=task):
                distribution.set_task(env, task)
            with call.environment("reset", task=task, seed=seed):
                env.reset(seed=seed)
                spaces = (env.observation_space, env.action_space)
                same = first is None or spaces == first[1]
            first = first or (task, spaces)
            allowed = f"equal to those of {one_line(first[0])}: {first[1]}"
            require(same, f"observation and action space of {one_line(task)}", spaces, allowed)


def _check_sampling(distribution: AnyDistribution, split: Split, seed: int, call: Foreign) -> list[str]:
    where = f"sample(split={split!r})"
    tasks, again, other = (
        list(call(where, distribution.sample, NUM_TASKS, np.random.default_rng(number), split=split))
        for number in (seed, seed, seed + 1)
    )
    task, data = one_line(tasks[0]), "make it plain data: numbers, arrays, a dict, a frozen dataclass"
    try:
        if not same_task(pickle.loads(pickle.dumps(tasks[0])), tasks[0]):
            return [f"{task} does not equal its pickled copy: {data}"]
    except Exception as error:
        return [f"{task} cannot be pickled: {one_line(error)}; {data}"]
    problems = []
    if not same_task(tasks, again):
        one, two = next(pair for pair in zip(tasks, again, strict=True) if not same_task(*pair))
        what = f"{where} gave {one_line(one)}, then {one_line(two)} from equal generators"
        problems.append(f"{what}: draw from `rng` only")
    finite = call(f"all_tasks({split!r})", distribution.all_tasks, split)
    if same_task(tasks, other) and (finite is None or len(finite) > 1):
        problems.append(f"{where} gave the same {NUM_TASKS} tasks from two different generators: it ignores `rng`")
    foreign = [task for task in tasks if finite is not None and not any(same_task(task, one) for one in finite)]
    if foreign:
        problems.append(f"{where} gave {one_line(foreign[0])}, which is not among all_tasks({split!r})")
    return problems


def _check_splits(distribution: AnyDistribution, seed: int, call: Foreign, on_note: Callable[[str], None]) -> list[str]:
    drawn = {split: list(_draw(distribution, split, seed, call)) for split in SPLITS}
    finite = {split: call(f"all_tasks({split!r})", distribution.all_tasks, split) for split in SPLITS}
    if distribution.splits == "disjoint":
        for task in drawn["test"]:
            if any(same_task(task, other) for other in drawn["train"]):
                return [f"splits = 'disjoint', but {one_line(task)} is in both"]
    listed = finite["train"] is not None and finite["test"] is not None
    if distribution.splits == "identical" and not (listed and same_task(drawn["train"], drawn["test"])):
        return ["splits = 'identical', but all_tasks('train') and all_tasks('test') are not the same list"]
    few = {split: distinct_tasks(drawn[split], FEW_TASKS + 1) for split in SPLITS}
    unlisted = [split for split in SPLITS if finite[split] is None and len(few[split]) <= FEW_TASKS]
    if unlisted:
        counts = " and ".join(f"{len(few[split])} different {split} tasks" for split in unlisted)
        advice = "If there are no others, return all of them from all_tasks(split): evaluation then covers each of them"
        on_note(f"sample gave only {counts} in {NUM_DRAWN} draws. {advice}")
    train, test = few["train"], few["test"]
    same = len(train) == len(test) <= FEW_TASKS and all(any(same_task(one, other) for other in test) for one in train)
    if same and distribution.splits != "identical":
        on_note(
            "training and test have the same tasks: set splits = 'identical', so that results claim adaptation only"
        )
    return []


def _check_examples(distribution: ExampleTaskDistribution[Any], seed: int, call: Foreign) -> list[str]:
    tasks = distinct_tasks(_draw(distribution, "train", seed, call), NUM_TASKS)
    problems: list[str] = []
    for evaluation in (False, True):
        seeds = Seeds.first(len(tasks), seed=seed, evaluation=evaluation)
        for part in (distribution.support, distribution.query):
            data = call(part.__name__, part, tasks, seeds)
            again = call(part.__name__, part, tasks[::-1], seeds.take(range(len(tasks))[::-1]))
            problems += [
                f"{part.__name__}: {fault}" for fault in _example_faults(data, distribution.spaces, len(tasks))
            ]
            if not problems and not torch.equal(data.inputs, again.inputs.flip(0)):
                problems.append(f"{part.__name__} of a task depends on other things than the task and its slot's seed")
    if problems or len(tasks) < 2:
        return list(dict.fromkeys(problems))
    seeds = dataclasses.replace(seeds, slots=(0,) * len(tasks))  # equal random numbers, so only the tasks differ
    support, query = distribution.support(tasks, seeds), distribution.query(tasks, seeds)
    if all(torch.equal(part[0], part[1]) for data in (support, query) for part in (data.inputs, data.targets)):
        both = f"{one_line(tasks[0])} and {one_line(tasks[1])}"
        return [f"{both} gave equal examples: the task has no effect on them"]
    return []


def _example_faults(data: Examples, spaces: ExampleSpaces, num_tasks: int) -> Iterator[str]:
    """The faults of examples that `Examples` itself does not refuse."""
    described = bool(spaces.description_size) and data.inputs.shape[2:] == (spaces.description_size,)
    if data.num_tasks != num_tasks or not (data.inputs.shape[2:] == spaces.input_shape or described):
        expected = ", ".join(map(str, (num_tasks, "num_examples", *spaces.input_shape)))
        yield f"inputs have shape {tuple(data.inputs.shape)}: must be [{expected}]"
    if not bool(data.inputs.isfinite().all()):
        yield "inputs are not all finite"
    if spaces.discrete:
        ways = max(spaces.num_outputs, spaces.train_ways)
        fits = data.targets.dtype == torch.int64 and data.targets.dim() == 2
        if not fits or not 0 <= int(data.targets.min()) <= int(data.targets.max()) < ways:
            yield f"targets must be int64 labels [num_tasks, num_examples] from 0 to {ways - 1}"
    elif data.targets.dim() != 3 or data.targets.shape[2] != spaces.num_outputs or not data.targets.isfinite().all():
        yield f"targets must be finite numbers [num_tasks, num_examples, {spaces.num_outputs}]"


def _draw(distribution: AnyDistribution, split: Split, seed: int, call: Foreign) -> Tasks:
    """Every task of a finite split, or some tasks of an infinite one."""
    finite = call(f"all_tasks({split!r})", distribution.all_tasks, split)
    if finite is not None:
        return list(finite)
    rng = np.random.default_rng(seed)
    return list(call(f"sample(split={split!r})", distribution.sample, NUM_DRAWN, rng, split=split))
