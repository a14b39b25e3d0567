"""The agent's ways through a few test tasks, before and after adaptation: what `paths.json` and `paths.png` show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metarl.core.data import Trajectories
from metarl.core.errors import DISTRIBUTION, environment_fault, one_line, text_of, users_code
from metarl.core.evaluation import EvaluationObserver
from metarl.rl.tasks import EnvTaskDistribution, Scene

SCHEMA_VERSION = 1
NUM_TASKS = 4
NUM_TRAJECTORIES = 5
MAX_POINTS = 300  # of one way; a longer one is thinned out

Positions = Callable[[NDArray[np.float32]], NDArray[np.floating[Any]]]


@dataclass(frozen=True)
class Paths:
    """Ways through one task's scene.

    Attributes:
        task: the task.
        scene: what is to be seen of it.
        ways: adaptation step -> positions [num_points, 2] of each trajectory, from its start to what followed its end.
    """

    task: Any
    scene: Scene
    ways: dict[int, list[NDArray[np.float64]]]


class RouteRecorder:
    """Keeps of an evaluation's data what is drawn: ways before the first and after the last adaptation step.

    Args:
        distribution: whose tasks are evaluated; without scenes nothing is kept.
        positions: gives the agent's positions from observations; None = the distribution's method.
    """

    def __init__(
        self,
        distribution: EnvTaskDistribution[Any],
        *,
        positions: Positions | None = None,
    ) -> None:
        self._distribution = distribution
        self._positions = positions or distribution.positions
        self._steps: set[int] = set()
        self._paths: dict[int, Paths] = {}

    def begin(self, tasks: Sequence[Any], *, num_replicates: int, num_steps: int) -> None:
        """Chooses the tasks to be drawn; of each, the first replicate is kept."""
        self._steps = {0, num_steps}
        self._paths = {}
        for number in _spread(len(tasks)):
            with users_code("scene", task=tasks[number]):
                scene: Any = self._distribution.scene(tasks[number])
            if scene is not None:
                _require_scene(scene, tasks[number])
                self._paths[number * num_replicates] = Paths(tasks[number], scene, {})

    def record(self, step: int, data: Trajectories, *, first: int) -> None:
        """Looks at the data that scores the state after `step` steps of the episodes from number `first` on."""
        if step not in self._steps:
            return
        for episode, paths in self._paths.items():
            if first <= episode < first + data.num_tasks:
                paths.ways[step] = self._ways(data, episode - first, paths.task)

    def paths(self) -> tuple[Paths, ...]:
        """What was kept, in the order of the tasks."""
        return tuple(paths for paths in self._paths.values() if paths.ways)

    def _ways(self, data: Trajectories, row: int, task: Any) -> list[NDArray[np.float64]]:
        lengths = data.mask[row].sum(-1).long().tolist()
        lived = [number for number, length in enumerate(lengths) if length][:NUM_TRAJECTORIES]
        ways = []
        for number in lived:
            seen = data.observations[row, number, : lengths[number]].cpu().numpy()
            seen = np.concatenate([seen, data.last_observations[row, number, None].cpu().numpy()])
            kept = np.linspace(0, len(seen) - 1, min(len(seen), MAX_POINTS)).round().astype(int)
            with users_code("positions", task=task):
                way = np.asarray(self._positions(seen[kept]), np.float64)
            if way.shape != (len(kept), 2) or not np.isfinite(way).all():
                what = f"positions returned an array of shape {way.shape}: must be finite, of shape {(len(kept), 2)}"
                raise environment_fault(what, task=task, seed=None, step=None, whose=DISTRIBUTION)
            ways.append(way)
        return ways


def paths_of(observer: EvaluationObserver | None) -> tuple[Paths, ...]:
    """What `observer` kept of the last evaluation; empty if it is no `RouteRecorder`."""
    return observer.paths() if isinstance(observer, RouteRecorder) else ()


def paths_to_json(paths: Sequence[Paths], *, unit: str) -> dict[str, Any]:
    """The schema of `paths.json`: coordinates with four decimals; `steps` are the adaptation steps of each task's
    `ways`."""
    return {
        "schema_version": SCHEMA_VERSION,
        "unit": unit,
        "steps": sorted(paths[0].ways),
        "tasks": [
            {
                "task": one_line(one.task),
                "scene": scene_to_json(one.scene),
                "ways": [[way.round(4).tolist() for way in one.ways[step]] for step in sorted(one.ways)],
            }
            for one in paths
        ],
    }


def scene_to_json(scene: Scene) -> dict[str, Any]:
    """A scene as `paths.json` has it."""

    def plain(numbers: Sequence[float] | None) -> list[float] | None:
        return None if numbers is None else [float(number) for number in numbers]

    return {
        "walls": [plain(wall) for wall in scene.walls],
        "start": plain(scene.start),
        "goal": plain(scene.goal),
        "goal_radius": float(scene.goal_radius),
        "extent": plain(scene.extent),
    }


def _require_scene(scene: Any, task: Any) -> None:
    """Fails unless `scene` can be drawn."""
    if not isinstance(scene, Scene):
        what = f"scene returned {text_of(scene, repr):.80}: must be a metarl.rl.tasks.Scene, or None"
        raise environment_fault(what, task=task, seed=None, step=None, whose=DISTRIBUTION)
    with users_code("scene", task=task):
        scene_to_json(scene)


def _spread(count: int) -> list[int]:
    """Up to `NUM_TASKS` numbers below `count`, evenly spread: a finite family is listed in some order."""
    return sorted({round(i * (count - 1) / (NUM_TASKS - 1)) for i in range(NUM_TASKS)})
