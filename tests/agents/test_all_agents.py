"""What every registered agent must do, whatever its algorithm."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor

from metarl.core import curve
from metarl.core.config import EvaluationConfig, TrainerConfig
from metarl.core.controls import adaptation_controls
from metarl.core.episode import run_episodes
from metarl.core.seeds import Purpose, Seeds, generator
from metarl.core.statistics import bootstrap
from metarl.core.trainer import Callback, Progressed, Trainer
from metarl.core.trees import tree_map
from metarl.report import plots
from metarl.runs import checkpoint
from metarl.runs.build import build
from metarl.runs.config import RunConfig, resolve
from metarl.runs.registry import AGENTS
from metarl.runs.tracking import read_metrics
from metarl.runs.train import train

# Those settings that an agent has are made small.
SMALL: dict[str, Any] = {
    "num_trajectories": 3,
    "num_adaptation_steps": 2,
    "inner_updates": 2,
    "hidden_sizes": (6,),
    "hidden_size": 8,
    "epochs": 2,
    "num_epochs": 2,
    "num_minibatches": 2,
    "schedule_iterations": 8,
    "curvature_every": 1,
}
HORIZONS = {"point-nav": 6, "half-cheetah-dir": 5}

UNTRAINED = ("random-init", "expert")

AGENT = pytest.mark.parametrize("agent", sorted(AGENTS))


def small(agent: str, task: str) -> RunConfig:
    config = resolve(task, agent)
    fields = {field.name for field in dataclasses.fields(config.agent)}
    distribution = config.task
    if task in HORIZONS:
        distribution = dataclasses.replace(distribution, horizon=HORIZONS[task])
    return dataclasses.replace(
        config,
        task=distribution,
        agent=dataclasses.replace(config.agent, **{name: SMALL[name] for name in SMALL.keys() & fields}),
        trainer=TrainerConfig(iterations=4, meta_batch_size=4, seed=1, device="cpu", num_threads=1, checkpoint_every=2),
        evaluation=EvaluationConfig(num_tasks=4, num_adaptation_steps=1, controls=False),
    )


def tensors(tree: Any) -> list[Tensor]:
    found: list[Tensor] = []
    tree_map(lambda tensor: (found.append(tensor), tensor)[1], tree)
    return found


def same(left: Any, right: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(tensors(left), tensors(right), strict=True))


class Cut(Callback):
    """Ends a run in its third iteration."""

    def on_iteration(self, trainer: Trainer, progressed: Progressed) -> None:
        if progressed.iteration == 3:
            raise KeyboardInterrupt


def untimed(run_dir: Path) -> list[dict[str, Any]]:
    return [{tag: row[tag] for tag in row if not tag.startswith(("wall", "time/"))} for row in read_metrics(run_dir)]


@AGENT
@pytest.mark.parametrize("task", ["bandit", "point-nav", "half-cheetah-dir"])
def test_a_resumed_run_is_the_uninterrupted_one(
    agent: str, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "adaptation_figure", lambda report: Figure())
    monkeypatch.setattr(curve, "bootstrap", functools.partial(bootstrap, num_resamples=10))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    reports = [train(small(agent, task), whole)]
    with pytest.raises(KeyboardInterrupt):
        train(small(agent, task), parts, callbacks=(Cut(),))
    halfway = checkpoint.latest(parts)
    reports.append(train(small(agent, task), parts, resume=True))
    ends = [checkpoint.latest(folder) for folder in (whole, parts)]
    assert ends[0].manifest["parameters_sha256"] == ends[1].manifest["parameters_sha256"]
    stood_still = ends[0].manifest["parameters_sha256"] == halfway.manifest["parameters_sha256"]
    assert stood_still == (agent in UNTRAINED)
    assert same(ends[0].state, ends[1].state)
    assert json.dumps(reports[0]) == json.dumps(reports[1])
    assert untimed(whole) == untimed(parts)
    assert [row["health/nonfinite_skips"] for row in untimed(whole)] == [0.0] * 4


def updated(agent: str, order: list[int]) -> tuple[Trainer, list[Any]]:
    """Two updates, the tasks of every meta-batch given in `order`."""
    trainer = build(small(agent, "point-nav"))
    learner, found = trainer.learner, []
    for iteration in range(2):
        tasks = trainer.distribution.sample(len(order), generator(5, iteration, Purpose.TASKS))
        seeds = Seeds(5, iteration, tuple(order))
        chosen = [tasks[slot] for slot in order]
        episodes = run_episodes(learner, trainer.collector, chosen, seeds, num_steps=learner.num_adaptation_steps)
        learner.meta_update(episodes)
        found.append((episodes.scores, episodes.state))
    return trainer, found


@AGENT
def test_reordering_the_meta_batch_changes_no_bit(agent: str) -> None:
    plain, mixed = updated(agent, [0, 1, 2, 3, 4, 5]), updated(agent, [4, 2, 0, 5, 1, 3])
    assert same(plain[1], mixed[1])
    assert same(plain[0].learner.state_dict(), mixed[0].learner.state_dict())


@AGENT
def test_state_round_trips_and_a_misfit_is_refused(agent: str) -> None:
    trainer, _ = updated(agent, [0, 1, 2, 3])
    state = trainer.learner.state_dict()
    config = small(agent, "point-nav")
    fresh = build(dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, seed=9))).learner
    assert not same(fresh.state_dict(), state) or not tensors(state)
    fresh.load_state_dict(state)
    assert same(fresh.state_dict(), state)
    assert same(dict(fresh.parameters), dict(trainer.learner.parameters))
    other = build(small(agent, "bandit")).learner
    with pytest.raises(ValueError, match="fit"):
        other.load_state_dict(state)


@AGENT
def test_adaptation_changes_nothing_in_place(agent: str) -> None:
    trainer = build(small(agent, "point-nav"))
    learner = trainer.learner
    tasks, seeds = trainer.distribution.sample(4, generator(0, 0, Purpose.TASKS)), Seeds.first(4)
    before = [tensor.clone() for tensor in tensors(dict(learner.parameters))]
    state = learner.begin(4)
    begun = [tensor.clone() for tensor in tensors(state)]
    batch = learner.prepare(trainer.collector.support(tasks, learner, state, seeds, step=0))
    adapted = learner.adapt(state, batch, step=0)
    assert same(tensors(state), begun)
    assert same(tensors(dict(learner.parameters)), before)
    assert all(len(tensor) == 4 for tensor in tensors(adapted) if tensor.dim() > 0)


@AGENT
def test_support_without_reward_leaves_the_score_of_before(agent: str) -> None:
    trainer = build(small(agent, "half-cheetah-dir"))
    tasks = trainer.distribution.sample(2, generator(0, 0, Purpose.TASKS))
    collector = trainer.evaluation_collector or trainer.collector
    controls = adaptation_controls(trainer.learner, collector, tasks, num_replicates=2, num_steps=2)
    same_score = controls["zero_reward"] == controls["before"]
    assert same_score == (agent != "rl2")  # whose memory holds what it saw; all others need a reward for a gradient
    moves = agent not in ("rl2", "oracle", "task-blind")
    assert (np.diag(controls["matrix"]).tolist() != controls["before"]) or not moves
