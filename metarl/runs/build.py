"""Builds the trainer that a configuration describes."""

from __future__ import annotations

import ctypes
import platform
from typing import Any, cast

import torch

from metarl.core.config import LearnerConfig
from metarl.core.episode import ShuffledTasks
from metarl.core.errors import require
from metarl.core.learner import AnyLearner, Spaces
from metarl.core.seeds import Purpose, generator
from metarl.core.tasks import AnyDistribution
from metarl.core.trainer import Callback, Trainer
from metarl.fewshot.base.examples import ExampleCollector, ExampleSpaces, ExampleTaskDistribution
from metarl.rl.rollout import RolloutCollector
from metarl.rl.routes import RouteRecorder
from metarl.rl.task_in_observation import TaskInObservation
from metarl.rl.tasks import EnvTaskDistribution
from metarl.runs.capacity import require_capacity
from metarl.runs.config import RunConfig
from metarl.runs.device import select_device

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # of glibc's malloc.h
LARGEST = 2**31 - 1

RunCollector = RolloutCollector | ExampleCollector[Any]


def build(config: RunConfig, *, callbacks: tuple[Callback, ...] = ()) -> Trainer:
    """The trainer that `config` describes, ready to run.

    Raises:
        InputError: the device does not exist, or the environments' spaces cannot be used.
    """
    require_capacity(config)
    device = select_device(config.trainer.device)
    keep_freed_memory()
    agent = config.agent
    if isinstance(agent, LearnerConfig):
        agent.check_trainer(config.trainer)
    distribution = distribution_of(config)
    collector, evaluation_collector = collectors_of(config, distribution, device)
    acting = collector if isinstance(collector, RolloutCollector) else None
    if acting is not None:
        require_capacity(config, observation_size=acting.spaces.observation_size)
    learner = _learner(config, collector.spaces)
    least = config.evaluation.min_live_steps
    own_memory = learner.traits.state_per == "trajectory"
    allowed = f"left out for {config.agent_name}: each of its trajectories has a memory of its own"
    require(least is None or not own_memory, "evaluation.min_live_steps", least, allowed)
    shuffled = isinstance(agent, LearnerConfig) and agent.shuffle_tasks and acting is not None
    return Trainer(
        learner=learner.to(device),
        collector=ShuffledTasks(collector, num_steps=learner.num_adaptation_steps) if shuffled else collector,
        distribution=distribution,
        config=config.trainer,
        evaluation=config.evaluation,
        callbacks=callbacks,
        evaluation_collector=evaluation_collector,
        observer=observer_of(evaluation_collector),
        space_notes=None if acting is None else acting.space_notes,
    )


def distribution_of(config: RunConfig) -> AnyDistribution:
    """The run's tasks. For an agent that observes the task, it is part of the observation."""
    task = config.task
    if not (config.learner_class.traits.observes_task and isinstance(task, EnvTaskDistribution)):
        return task
    return TaskInObservation(task, timeout=config.trainer.environment_timeout)


def collectors_of(
    config: RunConfig, distribution: AnyDistribution, device: torch.device
) -> tuple[RunCollector, RunCollector]:
    """The collectors of training and of evaluation. For few-shot tasks they are the same object."""
    evaluation = config.evaluation
    if not isinstance(distribution, EnvTaskDistribution):
        settings = {"num_trajectories": evaluation.num_trajectories, "min_live_steps": evaluation.min_live_steps}
        for name, value in settings.items():
            require(value is None, f"evaluation.{name}", value, f"left out: the tasks of {config.task_name} are given")
        acting = config.trainer.act_device
        allowed = f"left out: nothing acts in the tasks of {config.task_name}"
        require(acting == "cpu", "trainer.act_device", acting, allowed)
        given = ExampleCollector(cast(ExampleTaskDistribution[Any], distribution), device=device)
        return given, given

    def collector_of(num_trajectories: int, min_live_steps: int | None = None) -> RolloutCollector:
        return RolloutCollector(
            distribution,
            num_trajectories=num_trajectories,
            min_live_steps=min_live_steps,
            num_threads=config.trainer.num_threads,
            device=device,
            act_device=device if config.trainer.act_device == "learner" else "cpu",
            environment_timeout=config.trainer.environment_timeout,
        )

    own = config.agent.num_trajectories
    return collector_of(own), collector_of(evaluation.num_trajectories or own, evaluation.min_live_steps)


def observer_of(collector: RunCollector) -> RouteRecorder | None:
    """Records the routes of an evaluation by `collector`; None if nothing acts in the tasks."""
    if not isinstance(collector, RolloutCollector):
        return None
    return RouteRecorder(collector.tasks, positions=collector.positions)


def _learner(config: RunConfig, spaces: Spaces | ExampleSpaces) -> AnyLearner:
    """A new learner. Its weights are drawn with the run's seed."""
    seed = int(generator(config.trainer.seed, 0, Purpose.INITIALISE).integers(2**63))
    return config.learner_class(config.agent, spaces, generator=torch.Generator().manual_seed(seed))


def keep_freed_memory() -> bool:
    """Lets the process keep the memory that it frees, so that the next iteration's tensors need no new pages.

    This works with glibc only. By default, glibc returns the memory of every tensor of more than 32 MB to the
    system. The system then zeroes each page before its next use. That took 40 % of the time of Proto's 60-way episodes.

    Returns:
        Whether glibc accepted the settings.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # All threads share one arena: an arena per thread would have heaps of 64 MB, which is too small.
    settings = {M_MMAP_THRESHOLD: LARGEST, M_TRIM_THRESHOLD: LARGEST, M_ARENA_MAX: 1}
    return all(mallopt(name, value) == 1 for name, value in settings.items())
