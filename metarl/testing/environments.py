"""Checks of environments: episodes depend only on task and seed, and the task has an effect."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray

from metarl.core.data import Trajectories
from metarl.core.errors import closing, one_line, require
from metarl.core.learner import Acted, Spaces
from metarl.core.seeds import Seeds
from metarl.core.settings import fields_of
from metarl.core.tasks import Tasks, same_task
from metarl.rl.rollout import RolloutCollector
from metarl.rl.routes import Positions
from metarl.rl.tasks import EnvTaskDistribution, EnvTasks, Scene
from metarl.testing.foreign import Foreign
from metarl.testing.sizes import size_notes

NUM_TASKS = 8
NUM_TRAJECTORIES = 2
MAX_STEPS = 50
# If short episodes under random actions show no effect of the task, longer ones with repeated actions are tried.
FEWER_TASKS = 4
MORE_TRAJECTORIES = 16
MORE_STEPS = 1000
_STANDARD_LIBRARY = sysconfig.get_path("stdlib")


def check_environments(
    distribution: EnvTasks,
    tasks: Tasks,
    *,
    seed: int,
    call: Foreign,
    on_note: Callable[[str], None],
) -> list[str]:
    """Lists the faults of the environments of `distribution`, one line each.

    Args:
        distribution: the family.
        tasks: some of its tasks, all different, at least one.
        seed: of the episodes, >= 0.
        call: calls the user's code.
        on_note: called with each note: one useful line that is not a fault.

    Raises:
        InputError: a scene cannot be drawn.
        EnvironmentFaultError: an environment or the distribution raised, or returned what cannot be used.
    """
    check = _Check(distribution, list(tasks[:NUM_TASKS]), seed, call)
    collector, first, problem = check.repeats()
    if problem is None:
        _check_scene(distribution, tasks[0], first.observations[0].numpy(), call, collector.positions)
        for said in (*collector.space_notes, *size_notes(first, collector.action_space)):
            on_note(said)
        if len(tasks) > 1 and not _tells_apart(first):
            problem = check.finds_no_task(on_note)
    return [] if problem is None else [problem]


@dataclasses.dataclass(frozen=True)
class _Check:
    distribution: EnvTasks
    tasks: list[object]
    seed: int
    call: Foreign

    @property
    def together(self) -> bool:
        """Whether the family has a vector environment of its own."""
        return type(self.distribution).make_vector_env is not EnvTaskDistribution.make_vector_env

    def repeats(self) -> tuple[RolloutCollector, Trajectories, str | None]:
        """Collects all episodes twice. Returns the collector, the episodes, and the fault if the two differ, or None.

        Every environment runs two tasks in turn, so state that is carried over from the first shows in the second.
        """
        order = list(range(len(self.tasks)))
        if not self.together:  # in a vector environment, the last bits may depend on the position
            order.reverse()
        with self._collecting() as (collector, collect):
            first, again = collect(self.tasks), collect([self.tasks[i] for i in order])
        for place, i in enumerate(order):
            names = " and ".join(_differences(first, i, again, place))
            if names:
                what = f"{names} under {one_line(self.tasks[i])} differ between two episodes with the same seed"
                return collector, first, f"{what}: {self._why(i)}"
        return collector, first, None

    def finds_no_task(self, on_note: Callable[[str], None]) -> str | None:
        """Returns the fault if the task cannot affect the environment, or None. A note says if no effect was found."""
        full = _with_horizon(self.distribution, MORE_STEPS)
        for hold in (1, 10, full.horizon):
            with self._collecting(full, num_trajectories=MORE_TRAJECTORIES, hold=hold) as (_, collect):
                if _tells_apart(collect(self.tasks[:FEWER_TASKS], seed=self.seed + hold)):
                    return None
        both = f"{one_line(self.tasks[0])} and {one_line(self.tasks[1])}"
        lost = self._lost()
        if lost is not None:
            return f"{both} gave equal episodes: the task does not reach the environment{lost}"
        on_note(
            f"could not show that the task reaches the environment: {both} gave equal episodes under random actions "
            f"({full.horizon} steps). That is no fault if random actions never reach the reward; otherwise the "
            "environment ignores what set_task changes"
        )
        return None

    def _why(self, i: int) -> str:
        """Why two episodes of task `i` differ. Fresh environments separate an ignored seed from carried state."""
        outside = _Outside(self.distribution)
        alone = [self._fresh([self.tasks[i]]) for _ in range(2)]
        if _differences(alone[0], 0, alone[1], 0):
            changed = outside.changed()
            kept = f"they change {changed}, which is kept outside of the environment and carried into the next episode"
            return kept if changed else "reset ignores its seed"
        last = len(self.tasks) - 1
        for tasks, place in ((self.tasks, i), (self.tasks[::-1], last - i)):
            if not self.together and _differences(self._fresh(tasks), place, alone[0], 0):
                return (
                    "tasks that run at the same time disturb each other. Keep a task in its environment, not in a "
                    "class, a module or the distribution"
                )
        return (
            "state is carried from one task or episode into the next; fresh environments give equal episodes. Set "
            "every value anew in set_task and reset: `env.mass *= task` multiplies the mass of the last task"
        )

    def _fresh(self, tasks: Tasks) -> Trajectories:
        """Episodes in fresh environments."""
        with self._collecting() as (_, collect):
            return collect(tasks)

    @contextlib.contextmanager
    def _collecting(
        self,
        distribution: EnvTasks | None = None,
        *,
        num_trajectories: int = NUM_TRAJECTORIES,
        hold: int = 1,
    ) -> Iterator[tuple[RolloutCollector, Callable[..., Trajectories]]]:
        """A collector with fresh environments, and a function that collects; all tasks get equal random numbers."""
        short = _with_horizon(self.distribution, MAX_STEPS) if distribution is None else distribution
        self.call.on_call("make_env")
        collector = RolloutCollector(short, num_trajectories=num_trajectories, environment_timeout=self.call.timeout)

        def collect(tasks: Tasks, seed: int = self.seed) -> Trajectories:
            self.call.on_call(f"episodes of {len(tasks)} tasks, {num_trajectories} of {short.horizon} steps each")
            learner = _RandomLearner(collector.spaces, hold)
            return collector.query(tasks, learner, None, Seeds(seed, 0, (0,) * len(tasks)))

        with closing(collector.close):
            yield collector, collect

    def _lost(self) -> str | None:
        """A hint if two tasks leave all attributes of their environments equal, so that the task can have no effect."""
        envs, added = [], set()
        for task in self.tasks[:2]:
            env: Any
            if self.together:
                env = self.distribution.make_vector_env(1, num_threads=0)
                before = _contents(env)
                with self.call.environment("set_tasks", task=task):
                    env.set_tasks([task])
            else:
                with self.call.environment("make_env"):
                    env = self.distribution.make_env()
                before = _contents(env)
                with self.call.environment("set_task", task=task):
                    self.distribution.set_task(env, task)
            # Nothing reads a new attribute of one of gymnasium's wrappers.
            added |= {
                name for name in _contents(env).keys() - before.keys() if name[0].startswith("gymnasium.wrappers.")
            }
            envs.append(env)

        def alike() -> bool:
            one, other = ({key: part for key, part in _contents(env).items() if key not in added} for env in envs)
            return same_task(one, other)

        lost = alike()
        if not lost:  # a generator may differ until it is seeded
            for env, task in zip(envs, self.tasks, strict=False):
                with self.call.environment("reset", task=task, seed=self.seed):
                    env.reset(seed=[self.seed] if self.together else self.seed)
            lost = alike()
        for env in envs:
            with self.call.environment("close"):
                env.close()
        if not lost:
            return None
        hints = [f"; set_task sets {name!r} of the wrapper {kind}: write env.unwrapped.{name}" for kind, name in added]
        return min(hints, default="")


def _contents(env: object) -> dict[tuple[str, str], object]:
    """The attributes of an environment and of its wrappers, by class and name."""
    found: dict[tuple[str, str], object] = {}
    for layer in _layers(env):
        kind = f"{type(layer).__module__}.{type(layer).__qualname__}"
        inner = [layer.env] if isinstance(layer, gymnasium.Wrapper) else []
        values = getattr(layer, "__dict__", {}).items()  # a class with slots has none
        found |= {(kind, name): value for name, value in values if not any(value is env for env in inner)}
    return found


def _layers(env: object) -> Iterator[object]:
    while isinstance(env, gymnasium.Wrapper):
        yield env
        env = env.env
    yield env


class _Outside:
    """Data that a family keeps outside its environments: attributes of classes, modules and the distribution."""

    def __init__(self, distribution: EnvTasks) -> None:
        self._distribution = distribution
        self._before = self._data()

    def changed(self) -> str:
        """The names of data that has changed since the constructor ran, or ""."""
        after = self._data()
        changed = [name for name, value in after.items() if not same_task(value, self._before.get(name))]
        return " and ".join(changed[:3])

    def _data(self) -> dict[str, object]:
        homes = {"distribution": vars(self._distribution)}
        for name, module in list(sys.modules.items()):
            if _is_own(module):
                homes[name] = vars(module)
                homes |= {f"{name}.{kind.__qualname__}": dict(vars(kind)) for kind in _classes_in(module, name)}
        data = {}
        for home, values in homes.items():
            for name, value in values.items():
                if not name.startswith("__") and not callable(value):
                    with contextlib.suppress(Exception):  # skip what cannot be copied, such as a module
                        data[f"{home}.{name}"] = copy.deepcopy(value)
        return data


def _classes_in(home: object, module: str) -> Iterator[type]:
    """The classes that a module defines, including nested ones."""
    inside = f"{home.__qualname__}." if isinstance(home, type) else ""
    for kind in list(vars(home).values()):
        if isinstance(kind, type) and kind.__module__ == module and kind.__qualname__.startswith(inside):
            yield kind
            yield from _classes_in(kind, module)


def _is_own(module: object) -> bool:
    """Whether a module is the user's own: not installed, and not part of Python or MetaRL."""
    file, name = getattr(module, "__file__", None), getattr(module, "__name__", "")
    if not isinstance(file, str) or not Path(file).is_absolute() or name.partition(".")[0] == "metarl":
        return False
    return not file.startswith(_STANDARD_LIBRARY) and "site-packages" not in file and "dist-packages" not in file


def _check_scene(
    distribution: EnvTasks,
    task: object,
    observations: NDArray[np.float32],
    call: Foreign,
    positions_of: Positions,
) -> None:
    """Raises `InputError` unless `scene` returns None or a scene that can be drawn."""
    where = f"scene({one_line(task)})"
    scene = call(where, distribution.scene, task)
    if scene is None:
        return
    require(isinstance(scene, Scene), where, scene, "a metarl.rl.tasks.Scene, or None")
    parts = {"start": (scene.start, (2,)), "goal": (scene.goal, (2,)), "extent": (scene.extent, (4,))}
    parts = {name: (value, shape) for name, (value, shape) in parts.items() if value is not None}
    parts |= {f"walls[{i}]": (wall, (4,)) for i, wall in enumerate(scene.walls)}
    for name, (value, shape) in {**parts, "goal_radius": (scene.goal_radius, ())}.items():
        kind = f"{shape[0]} finite numbers" if shape else "a finite number"
        require(_is_finite(value, shape), f"{where}.{name}", value, kind)
    positions = call("positions", positions_of, observations)
    of = f"positions(observations of shape {observations.shape})"
    shape = (*observations.shape[:-1], 2)
    require(np.shape(positions) == shape, of, f"an array of shape {np.shape(positions)}", f"x and y: of shape {shape}")
    require(_is_finite(positions, shape), of, "an array with nan, inf or no numbers", "finite numbers")


def _is_finite(value: object, shape: tuple[int, ...]) -> bool:
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        return False
    return array.shape == shape and bool(np.isfinite(array).all())


def _tells_apart(data: Trajectories) -> bool:
    """Whether episodes of any two tasks differ."""
    return any(_differences(data, 0, data, i) for i in range(1, data.num_tasks))


def _differences(left: Trajectories, i: int, right: Trajectories, j: int) -> list[str]:
    """The differences of the live steps of two episodes: of task i in `left`, and of task j in `right`."""
    names = {"observations": "observations", "rewards": "rewards", "mask": "lengths", "terminated": "ends"}
    found = []
    for name, shown in names.items():
        one, other = (_live(data, name)[place] for data, place in ((left, i), (right, j)))
        if not torch.equal(one, other):
            found.append(shown)
    return found


def _live(data: Trajectories, name: str) -> torch.Tensor:
    values: torch.Tensor = getattr(data, name)
    mask = data.mask.bool()
    return torch.where(mask.unsqueeze(-1) if values.dim() > mask.dim() else mask, values, torch.zeros_like(values))


def _with_horizon(distribution: EnvTasks, most: int) -> EnvTasks:
    """`distribution` with a horizon of at most `most`, where its horizon can be set."""
    if distribution.horizon <= most:
        return distribution
    if dataclasses.is_dataclass(distribution):
        settable = "horizon" in fields_of(distribution)
        return dataclasses.replace(distribution, horizon=most) if settable else distribution
    short = copy.copy(distribution)
    with contextlib.suppress(AttributeError):  # a property
        short.horizon = most
    return short


class _RandomLearner:
    """A learner that acts at random. It has only what a collector needs.

    Args:
        spaces: of the environments.
        hold: steps for which each action is repeated; repeated actions move the agent further.
    """

    def __init__(self, spaces: Spaces, hold: int) -> None:
        self._spaces = spaces
        self._hold = hold
        self._steps = 0
        self._actions = torch.zeros(0)

    def act(self, state: None, observations: torch.Tensor, noise: torch.Tensor) -> tuple[Acted, None]:
        if self._steps % self._hold == 0:
            self._actions = (noise * self._spaces.action_size).long() if self._spaces.discrete else noise
        self._steps += 1
        return Acted(self._actions, torch.zeros(observations.shape[:2])), state

    def observe(self, state: None, *feedback: torch.Tensor) -> None:
        return state
