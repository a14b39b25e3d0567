"""Checks for what users implement: run on every built-in, and by `metarl check-tasks` on a distribution of one's
own."""

from __future__ import annotations

import dataclasses
import math
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from metarl.episodes import Examples, Trajectories
from metarl.errors import EnvironmentFaultError, InputError, one_line, raised, require
from metarl.examples import ExampleSpaces, ExampleTaskDistribution
from metarl.learner import Acted, Spaces
from metarl.rollout import RolloutCollector
from metarl.seeds import Seeds
from metarl.tasks import EnvTaskDistribution, Scene, Split, TaskDistribution

NUM_TASKS = 8
MAX_STEPS = 50
NUM_TRAJECTORIES = 16
TIMEOUT_S = 60.0
SPLITS: tuple[Split, Split] = ("train", "test")


def check_task_distribution(distribution: TaskDistribution[Any], *, seed: int = 0) -> list[str]:
    """What is wrong with a task distribution, one line each; an empty list if nothing is.

    Checks the number of tasks, that the generator alone decides them, that tasks are comparable plain data with finite
    parameters, what `splits` claims; and of environments, that episodes depend on the seed alone, that numbers are
    finite, that the task reaches the environment, and that `scene` and `positions`, where there are any, can be drawn;
    of examples, that they depend on the task and its slot's seed alone, are what `spaces` says, and differ by task.
    """
    try:
        check_before_training(distribution, seed=seed)
    except InputError as error:
        return [str(error)]
    problems: list[str] = []
    for split in SPLITS:
        problems += _check_sampling(distribution, split, seed)
    if not problems:
        problems += _check_splits(distribution, seed)
    if not problems and isinstance(distribution, EnvTaskDistribution):
        problems += _check_environments(distribution, seed)
    if not problems and isinstance(distribution, ExampleTaskDistribution):
        problems += _check_examples(distribution, seed)
    return problems


def check_before_training(distribution: TaskDistribution[Any], *, seed: int = 0) -> None:
    """The part of `check_task_distribution` that takes no episode: what `metarl train` refuses.

    Checks that samples have the right number of tasks with finite parameters, the horizon, and that all tasks'
    environments have the same spaces.

    Raises:
        InputError: the first thing that is wrong.
    """
    for split in SPLITS:
        where = f"sample(split={split!r})"
        tasks = _call(where, distribution.sample, NUM_TASKS, np.random.default_rng(seed), split=split)
        asked = f"a list of {NUM_TASKS} tasks, as asked for"
        counted = isinstance(tasks, (Sequence, np.ndarray)) and not isinstance(tasks, str)
        require(counted, where, tasks, asked)
        require(len(tasks) == NUM_TASKS, where, f"{len(tasks)} tasks", asked)
        for task in tasks:
            bad = [f"{name} = {value!r}" for name, value in _numbers(task) if not math.isfinite(value)]
            require(not bad, where, task, f"a task with finite parameters; {', '.join(bad)}")
        finite = _call(f"all_tasks({split!r})", distribution.all_tasks, split)
        require(finite is None or len(finite) > 0, f"all_tasks({split!r})", finite, "None, or one task at least")
    if isinstance(distribution, EnvTaskDistribution):
        _check_spaces(distribution, seed)


def _check_spaces(distribution: EnvTaskDistribution[Any], seed: int) -> None:
    horizon = getattr(distribution, "horizon", None)
    require(isinstance(horizon, int) and horizon >= 1, "horizon", horizon, "an integer >= 1: steps per trajectory")
    if type(distribution).make_vector_env is not EnvTaskDistribution.make_vector_env:
        return
    env = _call("make_env", distribution.make_env)
    require(callable(getattr(env, "reset", None)), "make_env()", env, "a gymnasium environment")
    try:
        limit = getattr(env.spec, "max_episode_steps", None)
        allowed = (
            f"at most {limit}, where the environment's own TimeLimit ends a trajectory (see its max_episode_steps)"
        )
        require(limit is None or horizon <= limit, "horizon", horizon, allowed)
        first: tuple[Any, Any] | None = None
        for task in _distinct(distribution, seed)[:NUM_TASKS]:
            _call("set_task", distribution.set_task, env, task)
            _call("reset", env.reset, seed=seed)
            spaces = (env.observation_space, env.action_space)
            first = first or (task, spaces)
            same = f"equal to those of {first[0]!r}: {first[1]}"
            require(spaces == first[1], f"observation and action space of {task!r}", spaces, same)
    finally:
        env.close()


def _call(what: str, function: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
    """Calls foreign code: whatever it raises is the answer."""
    try:
        return function(*arguments, **settings)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{what} raised {raised(error)}") from error


def _check_sampling(distribution: TaskDistribution[Any], split: Split, seed: int) -> list[str]:
    where = f"sample(split={split!r})"
    tasks, again, other = (
        distribution.sample(NUM_TASKS, np.random.default_rng(number), split=split) for number in (seed, seed, seed + 1)
    )
    problems = []
    if not _equal(tasks, again):
        advice = "draw from `rng` alone, and make tasks comparable (a frozen dataclass)"
        problems.append(f"{where} gave {tasks[0]!r}, then {again[0]!r} from equal generators: {advice}")
    finite = distribution.all_tasks(split)
    if _equal(tasks, other) and (finite is None or len(finite) > 1):
        problems.append(f"{where} gave the same {NUM_TASKS} tasks from two different generators: it ignores `rng`")
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
    collector = RolloutCollector(short, num_trajectories=NUM_TRAJECTORIES, environment_timeout=TIMEOUT_S)
    learner = _RandomLearner(collector.spaces)

    def run(task: Any, number: int) -> Trajectories:
        return collector.query([task], learner, None, Seeds.first(1, seed=number))

    try:
        first = run(tasks[0], seed)
        names = _differences(first, run(tasks[0], seed))
        if names:
            what = f"{' and '.join(names)} under {tasks[0]!r} differ between two episodes with one seed"
            return [f"{what}: reset ignores it"]
        _check_scene(distribution, tasks[0], first.observations[0].numpy())
        if len(tasks) < 2:
            return []
        numbers = range(seed, seed + 5)
        if not any(_differences(run(tasks[0], number), run(tasks[1], number)) for number in numbers):
            return [f"{tasks[0]!r} and {tasks[1]!r} gave equal episodes: the task does not reach the environment"]
        return []
    except InputError as error:
        return [str(error)]
    except EnvironmentFaultError as error:
        if error.__cause__ is not None:  # what the environment raised is worth its traceback
            raise
        return [str(error)]
    finally:
        collector.close()


def _check_scene(distribution: EnvTaskDistribution[Any], task: Any, observations: NDArray[np.float32]) -> None:
    """Raises `InputError` unless the task can be drawn, or says that it is not to be."""
    where = f"scene({one_line(task)})"
    scene = _call(where, distribution.scene, task)
    if scene is None:
        return
    require(isinstance(scene, Scene), where, scene, "a metarl.tasks.Scene, or None")
    parts = {"start": (scene.start, (2,)), "goal": (scene.goal, (2,)), "extent": (scene.extent, (4,))}
    parts = {name: (value, shape) for name, (value, shape) in parts.items() if value is not None}
    parts |= {f"walls[{i}]": (wall, (4,)) for i, wall in enumerate(scene.walls)}
    for name, (value, shape) in {**parts, "goal_radius": (scene.goal_radius, ())}.items():
        kind = f"{shape[0]} finite numbers" if shape else "a finite number"
        require(_is_finite(value, shape), f"{where}.{name}", value, kind)
    positions = _call("positions", distribution.positions, observations)
    of = f"positions(observations of shape {observations.shape})"
    shape = (*observations.shape[:-1], 2)
    require(np.shape(positions) == shape, of, f"an array of shape {np.shape(positions)}", f"x and y: of shape {shape}")
    require(_is_finite(positions, shape), of, "an array with nan, inf or no numbers", "finite numbers")


def _is_finite(value: Any, shape: tuple[int, ...]) -> bool:
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        return False
    return array.shape == shape and bool(np.isfinite(array).all())


def _check_examples(distribution: ExampleTaskDistribution[Any], seed: int) -> list[str]:
    tasks = _distinct(distribution, seed)[:NUM_TASKS]
    problems: list[str] = []
    for evaluation in (False, True):
        seeds = Seeds.first(len(tasks), seed=seed, evaluation=evaluation)
        for part in (distribution.support, distribution.query):
            data, again = part(tasks, seeds), part(tasks[::-1], seeds.take(range(len(tasks))[::-1]))
            problems += [
                f"{part.__name__}: {fault}" for fault in _example_faults(data, distribution.spaces, len(tasks))
            ]
            if not problems and not torch.equal(data.inputs, again.inputs.flip(0)):
                problems.append(f"{part.__name__} of a task depends on other things than the task and its slot's seed")
    if problems or len(tasks) < 2:
        return list(dict.fromkeys(problems))
    seeds = dataclasses.replace(seeds, slots=(0,) * len(tasks))  # equal random numbers: what differs is the task's
    support, query = distribution.support(tasks, seeds), distribution.query(tasks, seeds)
    if all(torch.equal(part[0], part[1]) for data in (support, query) for part in (data.inputs, data.targets)):
        return [f"{tasks[0]!r} and {tasks[1]!r} gave equal examples: the task does not reach them"]
    return []


def _example_faults(data: Examples, spaces: ExampleSpaces, num_tasks: int) -> Iterator[str]:
    """What is wrong with examples, beside what `Examples` itself refuses."""
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


def _differences(left: Trajectories, right: Trajectories) -> list[str]:
    names = ("observations", "rewards")
    return [name for name in names if not torch.equal(getattr(left, name), getattr(right, name))]


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
