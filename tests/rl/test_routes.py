"""What is kept of an evaluation to be drawn."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from metarl.core.data import Trajectories
from metarl.core.errors import EnvironmentFaultError
from metarl.core.evaluation import evaluate
from metarl.core.learner import Acted, Traits
from metarl.envs.bandit import Bandit
from metarl.envs.point_nav import Goal, PointNav
from metarl.rl.rollout import RolloutCollector
from metarl.rl.routes import MAX_POINTS, NUM_TASKS, NUM_TRAJECTORIES, RouteRecorder, routes_to_json
from metarl.rl.tasks import EnvTaskDistribution, Scene


class Plane(PointNav):
    """Positions in another unit than observations."""

    def scene(self, task: Goal) -> Scene:
        return Scene(goal=(task.x, task.y))

    def positions(self, observations: NDArray[np.float32]) -> NDArray[np.float32]:
        return 10.0 * observations


class HalfPlane(Plane):
    """Tasks on the left half have nothing to be seen."""

    def scene(self, task: Goal) -> Scene | None:  # type: ignore[override]
        return super().scene(task) if task.x > 0 else None


def data_of(num_tasks: int, lengths: list[int], *, horizon: int = 6, first: int = 0) -> Trajectories:
    """Observation (task, 100 * trajectory + step) with the tasks numbered from `first`."""
    width = len(lengths)
    grid = torch.meshgrid(*(torch.arange(n).float() for n in (num_tasks, width, horizon + 1)), indexing="ij")
    seen = torch.stack([grid[0] + first, 100 * grid[1] + grid[2]], -1)
    steps = torch.arange(horizon).expand(num_tasks, width, horizon)
    length = torch.tensor(lengths).unsqueeze(-1)
    mask = (steps < length).float()
    flags = torch.zeros_like(mask, dtype=torch.bool)
    last = seen[:, torch.arange(width), torch.tensor(lengths)]
    observations = torch.where(mask.unsqueeze(-1) > 0, seen[:, :, :-1], torch.nan)
    none = torch.zeros(num_tasks, width, dtype=torch.bool)
    return Trajectories(observations, mask, mask, flags, flags, mask, mask, last, none, None)


def goals(*xs: float) -> list[Goal]:
    return [Goal(x, 0.5) for x in xs]


def recorder_of(tasks: list[Goal], *, distribution: Any = None, replicates: int = 1, num_steps: int = 2) -> Any:
    recorder = RouteRecorder(distribution or Plane())
    recorder.begin(tasks, num_replicates=replicates, num_steps=num_steps)
    return recorder


def test_a_way_goes_from_the_start_to_what_followed_the_last_live_step() -> None:
    recorder = recorder_of(goals(1.0))
    assert recorder.routes() == ()
    for step in range(3):
        recorder.record(step, data_of(1, [2, 0, 6]), first=0)
    (paths,) = recorder.routes()
    assert (paths.task, paths.scene) == (Goal(1.0, 0.5), Scene(goal=(1.0, 0.5)))
    assert [*paths.by_step] == [0, 2]  # before and after; the steps between are not drawn
    for routes in paths.by_step.values():
        assert [route.tolist() for route in routes] == [
            [[0.0, 0.0], [0.0, 10.0], [0.0, 20.0]],
            [[0.0, 10.0 * (200 + step)] for step in range(7)],  # the one without a live step is left out
        ]


def test_a_few_tasks_all_over_the_list_and_few_trajectories_of_their_first_replicate() -> None:
    tasks = goals(*(1.0 + number for number in range(10)))
    recorder = recorder_of(tasks, replicates=3, num_steps=0)
    for first in range(0, 30, 7):  # batches that end between the replicates
        recorder.record(0, data_of(min(7, 30 - first), [1] * 8, first=first), first=first)
    paths = recorder.routes()
    assert [tasks.index(one.task) for one in paths] == [0, 3, 6, 9]
    assert len(paths) == NUM_TASKS
    for one in paths:
        episodes = [route[0, 0] / 10 for route in one.by_step[0]]
        assert episodes == [3.0 * tasks.index(one.task)] * NUM_TRAJECTORIES


@pytest.mark.parametrize(("count", "drawn"), [(1, [0]), (2, [0, 1]), (4, [0, 1, 2, 3]), (5, [0, 1, 3, 4])])
def test_small_families_are_drawn_once_each(count: int, drawn: list[int]) -> None:
    tasks = goals(*range(1, count + 1))
    recorder = recorder_of(tasks)
    recorder.record(0, data_of(count, [1]), first=0)
    assert [tasks.index(one.task) for one in recorder.routes()] == drawn


def test_tasks_and_families_without_a_scene_are_left_out() -> None:
    recorder = recorder_of(goals(1.0, -1.0, 2.0), distribution=HalfPlane())
    recorder.record(0, data_of(3, [1]), first=0)
    assert [one.task.x for one in recorder.routes()] == [1.0, 2.0]
    arms = Bandit().sample(3, np.random.default_rng(0))
    recorder = recorder_of(arms, distribution=Bandit())  # type: ignore[arg-type]
    recorder.record(0, data_of(3, [1]), first=0)
    assert recorder.routes() == ()
    assert EnvTaskDistribution.scene(Plane(), goals(1.0)[0]) is None


def test_a_scene_without_positions_says_what_to_write() -> None:
    class Blind(PointNav):
        positions = EnvTaskDistribution.positions

    recorder = recorder_of(goals(1.0), distribution=Blind())
    with pytest.raises(EnvironmentFaultError, match="Blind defines scene but not positions"):
        recorder.record(0, data_of(1, [1]), first=0)


def test_long_ways_are_thinned_but_keep_their_ends() -> None:
    recorder = recorder_of(goals(1.0))
    recorder.record(0, data_of(1, [1000], horizon=1000), first=0)
    (route,) = recorder.routes()[0].by_step[0]
    assert len(route) == MAX_POINTS
    assert route[[0, -1], 1].tolist() == [0.0, 10_000.0]
    assert np.diff(route[:, 1]).max() <= 40.0


def test_json_holds_the_scene_and_rounded_ways() -> None:
    recorder = recorder_of(goals(0.25), num_steps=1)
    for step in (0, 1):
        data = data_of(1, [1])
        recorder.record(step, replace(data, observations=data.observations + (step + 1) / 3), first=0)
    plain = json.loads(json.dumps(routes_to_json(recorder.routes(), unit="gradient steps"), allow_nan=False))
    assert plain == {
        "schema_version": 1,
        "unit": "gradient steps",
        "steps": [0, 1],
        "tasks": [
            {
                "task": "Goal(x=0.25, y=0.5)",
                "scene": {"walls": [], "start": None, "goal": [0.25, 0.5], "goal_radius": 0.0, "extent": None},
                "ways": [[[[3.3333, 3.3333], [0.0, 10.0]]], [[[6.6667, 6.6667], [0.0, 10.0]]]],
            }
        ],
    }


def test_numbers_of_a_scene_may_be_numpys() -> None:
    one = np.float32(1.0)

    class Walled(Plane):
        def scene(self, task: Goal) -> Scene:
            box: Any = np.ones(4, np.float32)
            return Scene(walls=(box, box), start=(one, one), goal_radius=one, extent=(one,) * 4)  # type: ignore[arg-type]

    recorder = recorder_of(goals(1.0), distribution=Walled())
    recorder.record(0, data_of(1, [1]), first=0)
    (task,) = json.loads(json.dumps(routes_to_json(recorder.routes(), unit="trajectories")))["tasks"]
    assert task["scene"]["walls"] == [[1.0] * 4] * 2
    assert (task["scene"]["start"], task["scene"]["extent"]) == ([1.0, 1.0], [1.0] * 4)


class Drifting:
    """After k steps it goes by (0.1 * k, 0.05) in every step."""

    traits = Traits(unit="gradient steps")
    score_name = "return"
    num_adaptation_steps = 2

    def begin(self, num_tasks: int) -> torch.Tensor:
        return torch.zeros(num_tasks)

    def prepare(self, data: Trajectories) -> Trajectories:
        return data

    def adapt(self, state: torch.Tensor, support: Trajectories, *, step: int) -> torch.Tensor:
        return state + 1.0

    def score(self, state: torch.Tensor, query: Trajectories) -> torch.Tensor:
        return query.mean_returns()

    def act(self, state: torch.Tensor, observations: torch.Tensor, noise: torch.Tensor) -> Any:
        actions = torch.stack([state, torch.full_like(state, 0.5)], -1).unsqueeze(1).expand_as(noise)
        return Acted(actions, torch.zeros(noise.shape[:2])), state

    def observe(self, state: torch.Tensor, *feedback: torch.Tensor) -> torch.Tensor:
        return state


@pytest.mark.parametrize("batch_size", [None, 3])
def test_an_evaluation_brings_its_own_trajectories_and_no_others(batch_size: int | None) -> None:
    family = PointNav(horizon=3)
    collector = RolloutCollector(family, num_trajectories=2)
    recorder = RouteRecorder(family, positions=collector.positions)
    curve = evaluate(Drifting(), collector, family, num_steps=1, batch_size=batch_size, observer=recorder)  # type: ignore[arg-type]
    paper = family.all_tasks()
    assert paper is not None
    assert [one.task for one in recorder.routes()] == [paper[number] for number in (0, 13, 26, 39)]
    for one in recorder.routes():
        assert one.scene == family.scene(one.task)
        for step, routes in one.by_step.items():
            assert len(routes) == 2
            for route in routes:
                np.testing.assert_allclose(route, [[0.1 * step * t, 0.05 * t] for t in range(4)], atol=1e-6)
    assert "paths" not in curve.to_json()
