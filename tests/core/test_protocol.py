"""Both families of learners on one core: a prototypical network and a recurrent agent go through the same
`run_episodes`, trainer and evaluation as MAML, and learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from metarl.agents.rl2 import RL2, RL2Config
from metarl.core.config import EvaluationConfig, TrainerConfig
from metarl.core.controls import adaptation_controls
from metarl.core.data import Episodes, Examples
from metarl.core.learner import ScoreName, Traits
from metarl.core.seeds import Seeds
from metarl.core.tasks import Split, TaskDistribution
from metarl.core.trainer import Trainer
from metarl.envs.bandit import Bandit
from metarl.rl.rollout import RolloutCollector

NUM_WAYS, NUM_SHOTS, INPUT_SIZE, SIGNAL_SIZE = 3, 2, 12, 2


class ModuleLearner:
    """What the two toy learners share: a module, an optimiser and their checkpoint."""

    module: nn.Module
    optimizer: torch.optim.Optimizer

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        return dict(self.module.named_parameters())

    def state_dict(self) -> dict[str, Any]:
        return {"module": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])

    def to(self, device: torch.device | str) -> Self:
        self.module.to(device)
        return self

    def improve(self, loss: Tensor) -> dict[str, float]:
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": float(loss.detach())}


# Supervised: prototypical networks (Snell et al. 2017) on Gaussian blobs hidden among noise dimensions.


@dataclass(frozen=True)
class Blobs:
    centres: tuple[tuple[float, ...], ...]


class BlobTasks(TaskDistribution[Blobs]):
    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> list[Blobs]:
        draws = rng.normal(size=(num_tasks, NUM_WAYS, SIGNAL_SIZE))
        return [Blobs(tuple(tuple(float(x) for x in row) for row in task)) for task in draws]


class BlobCollector:
    acts = False

    def support(self, tasks: Sequence[Blobs], learner: Any, state: Any, seeds: Seeds, *, step: int) -> Examples:
        return self._draw(tasks, seeds.support(0), NUM_SHOTS)

    def query(self, tasks: Sequence[Blobs], learner: Any, state: Any, seeds: Seeds) -> Examples:
        return self._draw(tasks, seeds.query(), 10)

    def _draw(self, tasks: Sequence[Blobs], rngs: Sequence[np.random.Generator], count: int) -> Examples:
        labels = np.tile(np.arange(NUM_WAYS), count)
        inputs = []
        for task, rng in zip(tasks, rngs, strict=True):
            signal = np.asarray(task.centres)[labels] + 0.3 * rng.normal(size=(len(labels), SIGNAL_SIZE))
            inputs.append(np.concatenate([signal, 2.0 * rng.normal(size=(len(labels), INPUT_SIZE - SIGNAL_SIZE))], 1))
        targets = torch.from_numpy(labels).expand(len(tasks), -1)
        return Examples(torch.from_numpy(np.stack(inputs)).float(), targets)


class ProtoNet(ModuleLearner):
    """State: prototypes [num_tasks, num_ways, embedding_size], zero before any support."""

    traits = Traits(unit="shots", support="shot")
    score_name: ScoreName = "accuracy"
    num_adaptation_steps = 1

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.module = nn.Linear(INPUT_SIZE, 4, bias=False)
        with torch.no_grad():
            self.module.weight.normal_(0.0, 0.3, generator=generator)
        self.optimizer = torch.optim.Adam(self.module.parameters(), lr=1e-2)

    def begin(self, num_tasks: int, *, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        return torch.zeros(num_tasks, NUM_WAYS, 4)

    def prepare(self, data: Examples) -> Examples:
        return data

    def adapt(self, state: Tensor, support: Examples, *, step: int, differentiable: bool = False) -> Tensor:
        with torch.set_grad_enabled(differentiable):
            members = nn.functional.one_hot(support.targets, NUM_WAYS).float()
            return members.mT @ self.module(support.inputs) / members.sum(1).unsqueeze(-1)

    def logits(self, state: Tensor, query: Examples) -> Tensor:
        return -torch.cdist(self.module(query.inputs), state).square()

    def score(self, state: Tensor, query: Examples) -> Tensor:
        with torch.no_grad():
            return (self.logits(state, query).argmax(-1) == query.targets).float().mean(-1)

    def meta_update(self, episodes: Episodes[Tensor, Examples]) -> dict[str, float]:
        prototypes = self.adapt(episodes.state, episodes.support[0], step=0, differentiable=True)
        logits = self.logits(prototypes, episodes.query)
        return self.improve(nn.functional.cross_entropy(logits.flatten(0, 1), episodes.query.targets.flatten()))


def quiet_trainer(learner: Any, collector: Any, distribution: Any, *, iterations: int, num_steps: int) -> Trainer:
    return Trainer(
        learner,
        collector,
        distribution,
        TrainerConfig(iterations=iterations, meta_batch_size=20),
        EvaluationConfig(num_tasks=200, num_adaptation_steps=num_steps),
    )


def test_a_prototypical_network_learns_and_uses_its_support() -> None:
    learner = ProtoNet()
    trainer = quiet_trainer(learner, BlobCollector(), BlobTasks(), iterations=150, num_steps=1)
    untrained = trainer.evaluate()
    trained = trainer.run()
    assert untrained.unit == "shots"
    assert trained.mean[0] == pytest.approx(1 / NUM_WAYS)  # no support yet: every prototype is equal
    assert trained.mean[1] > untrained.mean[1] + 0.15
    assert trained.gain(1)[1] > 0.3
    tasks = BlobTasks().sample(3, np.random.default_rng(0))
    controls = adaptation_controls(learner, BlobCollector(), tasks, num_replicates=10)
    diagonal = np.diag(controls["matrix"]).mean()
    others = (np.sum(controls["matrix"]) - 3 * diagonal) / 6
    assert diagonal > others + 0.2
    assert diagonal > np.mean(controls["zero_reward"]) + 0.2


def test_a_recurrent_agent_learns_to_adapt_within_a_trial() -> None:
    distribution = Bandit(num_arms=2)
    collector = RolloutCollector(distribution, num_trajectories=16)
    config = RL2Config(trajectories_per_trial=6, num_trajectories=16, hidden_size=16, learning_rate=1e-2)
    learner = RL2(config, collector.spaces, generator=torch.Generator().manual_seed(0))
    trainer = quiet_trainer(learner, collector, distribution, iterations=30, num_steps=5)
    curve = trainer.run()
    assert curve.unit == "trajectories"
    assert curve.values.shape == (6, 200, 1)
    assert curve.env_steps == (
        0.0,
        1.0,
        2.0,
        3.0,
        4.0,
        5.0,
    )  # its own pulls, nobody else's
    assert abs(curve.mean[0] - 0.5) < 0.05  # nothing is known before the first pull
    assert curve.gain(5)[1] > 0.03


def test_learners_round_trip_through_their_state() -> None:
    first, second = ProtoNet(), ProtoNet()
    trainer = quiet_trainer(first, BlobCollector(), BlobTasks(), iterations=3, num_steps=1)
    for _ in range(3):
        trainer.train_iteration()
    second.load_state_dict(first.state_dict())
    assert all(torch.equal(value, second.parameters[name]) for name, value in first.parameters.items())
