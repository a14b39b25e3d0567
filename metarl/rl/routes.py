"""The agent's routes on a few test tasks, before and after adaptation: the content of `paths.json` and `paths.png`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metarl.core.data import Trajectories
from metarl.core.errors import DISTRIBUTION, environment_fault, one_line, text_of, users_code
from metarl.core.evaluation import EvaluationObserver
from metarl.core.learner import Unit
from metarl.core.schema import Routes, SceneView
from metarl.core.tasks import Tasks
from metarl.rl.tasks import EnvTaskDistribution, Scene

SCHEMA_VERSION = 1
NUM_TASKS = 4
NUM_TRAJECTORIES = 5
MAX_POINTS = 300  # of one route; a longer one is thinned out

Route = NDArray[np.float64]
"""Positions [num_points, 2], from the start of a trajectory to the observation after its last step."""
Positions = Callable[[NDArray[np.float32]], NDArray[np.floating[Any]]]
"""`EnvTaskDistribution.positions`, or a function like it."""


@dataclass(frozen=True)
class TaskRoutes:
    """Routes through the scene of one task.

    Attributes:
        task: the task.
        scene: the task seen from above.
        by_step: number of adaptation steps -> the route of each trajectory.
    """

    task: object
    scene: Scene
    by_step: dict[int, list[Route]] = field(default_factory=dict)


class RouteRecorder:
    """Observes an evaluation and keeps the routes before the first and after the last adaptation step.

    Args:
        distribution: the tasks that are evaluated. Nothing is kept if they have no scenes.
        positions: gives the agent's positions from observations; None = the distribution's method.
    """

    def __init__(self, distribution: EnvTaskDistribution[Any], *, positions: Positions | None = None) -> None:
        self._distribution = distribution
        self._positions = positions or distribution.positions
        self._steps: set[int] = set()
        self._by_episode: dict[int, TaskRoutes] = {}

    def begin(self, tasks: Tasks, *, num_replicates: int, num_steps: int) -> None:
        """Chooses the tasks to draw. Only the first replicate of each is kept."""
        self._steps = {0, num_steps}
        self._by_episode = {}
        for number in _spread(len(tasks)):
            task = tasks[number]
            with users_code("scene", task=task):
                scene = self._distribution.scene(task)
            if scene is not None:
                _require_scene(scene, task)
                self._by_episode[number * num_replicates] = TaskRoutes(task, scene)

    def record(self, step: int, data: Trajectories, *, first: int) -> None:
        """Reads the routes from `data`, which scores the state after `step` steps. Its first episode is `first`."""
        if step not in self._steps:
            return
        for episode, kept in self._by_episode.items():
            if first <= episode < first + data.num_tasks:
                kept.by_step[step] = self._routes_in(data, episode - first, kept.task)

    def routes(self) -> tuple[TaskRoutes, ...]:
        """The routes of each task that was drawn, in the order of the tasks."""
        return tuple(kept for kept in self._by_episode.values() if kept.by_step)

    def _routes_in(self, data: Trajectories, row: int, task: object) -> list[Route]:
        lengths = data.mask[row].sum(-1).long().tolist()
        lived = [number for number, length in enumerate(lengths) if length][:NUM_TRAJECTORIES]
        routes = []
        for number in lived:
            seen = data.observations[row, number, : lengths[number]].cpu().numpy()
            seen = np.concatenate([seen, data.last_observations[row, number, None].cpu().numpy()])
            kept = np.linspace(0, len(seen) - 1, min(len(seen), MAX_POINTS)).round().astype(int)
            with users_code("positions", task=task):
                route = np.asarray(self._positions(seen[kept]), np.float64)
            if route.shape != (len(kept), 2) or not np.isfinite(route).all():
                what = f"positions returned an array of shape {route.shape}: must be finite, of shape {(len(kept), 2)}"
                raise environment_fault(what, task=task, seed=None, step=None, whose=DISTRIBUTION)
            routes.append(route)
        return routes


def routes_of(observer: EvaluationObserver | None) -> tuple[TaskRoutes, ...]:
    """The routes of the last evaluation; empty if `observer` is no `RouteRecorder`."""
    return observer.routes() if isinstance(observer, RouteRecorder) else ()


def routes_to_json(routes: Sequence[TaskRoutes], *, unit: Unit) -> Routes:
    """The content of `paths.json`. Its key `ways` holds the routes of a task: a list for each of `steps`.

    Args:
        routes: of at least one task.
        unit: of an adaptation step.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "unit": unit,
        "steps": sorted(routes[0].by_step),
        "tasks": [
            {
                "task": one_line(one.task),
                "scene": scene_to_json(one.scene),
                "ways": [[route.round(4).tolist() for route in one.by_step[step]] for step in sorted(one.by_step)],
            }
            for one in routes
        ],
    }


def scene_to_json(scene: Scene) -> SceneView:
    """A scene as it is in `paths.json`."""

    def plain(numbers: Sequence[float]) -> list[float]:
        return [float(number) for number in numbers]

    return {
        "walls": [plain(wall) for wall in scene.walls],
        "start": None if scene.start is None else plain(scene.start),
        "goal": None if scene.goal is None else plain(scene.goal),
        "goal_radius": float(scene.goal_radius),
        "extent": None if scene.extent is None else plain(scene.extent),
    }


def _require_scene(scene: object, task: object) -> None:
    """Fails unless `scene` can be drawn."""
    if not isinstance(scene, Scene):
        what = f"scene returned {text_of(scene, repr):.80}: must be a metarl.rl.tasks.Scene, or None"
        raise environment_fault(what, task=task, seed=None, step=None, whose=DISTRIBUTION)
    with users_code("scene", task=task):
        scene_to_json(scene)


def _spread(count: int) -> list[int]:
    """Up to `NUM_TASKS` numbers below `count`, evenly spread, since a finite family is listed in some order."""
    return sorted({round(i * (count - 1) / (NUM_TASKS - 1)) for i in range(NUM_TASKS)})
