"""Both families of learners on one core: a prototypical network and a recurrent agent go through the same
`run_episodes`, trainer and evaluation as MAML, and learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from metarl.collect import run_episodes
from metarl.config import EvaluationConfig, TrainerConfig
from metarl.envs.bandit import Bandit
from metarl.episodes import Episodes, Examples, Trajectories
from metarl.evaluation import adaptation_controls
from metarl.learner import Acted, ScoreName, Spaces, Unit
from metarl.networks import Categorical
from metarl.rollout import RolloutCollector
from metarl.seeds import Seeds
from metarl.tasks import Split, TaskDistribution
from metarl.trainer import Trainer

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

    unit: Unit = "shots"
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


# Reinforcement: a small recurrent agent (in the manner of RL2, Duan et al. 2016) on one-pull bandits.


class Memory(NamedTuple):
    """hidden [num_tasks, num_trajectories, size]; last [.., num_arms + 1]: previous action and reward."""

    hidden: Tensor
    last: Tensor


class Recurrent(ModuleLearner):
    """State: a memory per trial; one adaptation step is one more pull. Trained by REINFORCE over the trial."""

    unit: Unit = "trajectories"
    score_name: ScoreName = "return"
    num_trials = 16
    hidden_size = 16

    def __init__(self, spaces: Spaces, *, num_pulls: int) -> None:
        self.spaces = spaces
        self.num_adaptation_steps = num_pulls - 1
        torch_state = torch.random.get_rng_state()
        torch.manual_seed(0)  # modules initialise from the global generator; restored below
        self.module = nn.ModuleDict(
            {
                "cell": nn.GRUCell(spaces.action_size + 1, self.hidden_size),
                "head": nn.Linear(self.hidden_size, spaces.action_size),
            }
        )
        torch.random.set_rng_state(torch_state)
        self.optimizer = torch.optim.Adam(self.module.parameters(), lr=1e-2)

    def begin(self, num_tasks: int, *, parameters: Mapping[str, Tensor] | None = None) -> Memory:
        return Memory(
            torch.zeros(num_tasks, self.num_trials, self.hidden_size),
            torch.zeros(num_tasks, self.num_trials, self.spaces.action_size + 1),
        )

    def step(self, memory: Memory) -> tuple[Categorical, Memory]:
        hidden = self.module["cell"](memory.last.flatten(0, 1), memory.hidden.flatten(0, 1))
        logits = self.module["head"](hidden)
        return Categorical(logits.unflatten(0, memory.hidden.shape[:2])), memory._replace(
            hidden=hidden.reshape(memory.hidden.shape)
        )

    def act(self, state: Memory, observations: Tensor, noise: Tensor) -> tuple[Acted, Memory]:
        distribution, state = self.step(state)
        actions = distribution.sample(noise)
        return Acted(actions, distribution.log_prob(actions)), state

    def observe(self, state: Memory, actions: Tensor, rewards: Tensor, terminated: Tensor, truncated: Tensor) -> Memory:
        one_hot = nn.functional.one_hot(actions, self.spaces.action_size).float()
        return state._replace(last=torch.cat([one_hot, rewards.unsqueeze(-1)], dim=-1))

    def prepare(self, data: Trajectories) -> Trajectories:
        return data

    def adapt(self, state: Memory, support: Trajectories, *, step: int, differentiable: bool = False) -> Memory:
        memory: Memory = support.state
        return memory

    def score(self, state: Memory, query: Trajectories) -> Tensor:
        return query.mean_returns()

    def meta_update(self, episodes: Episodes[Memory, Trajectories]) -> dict[str, float]:
        pulls = [*episodes.support, episodes.query]
        rewards = torch.stack([pull.rewards[..., 0] for pull in pulls])
        to_go = rewards.flip(0).cumsum(0).flip(0)
        advantages = to_go - to_go.mean((1, 2), keepdim=True)
        memory, losses = self.begin(len(episodes.tasks)), []
        for pull, advantage in zip(pulls, advantages, strict=True):
            distribution, memory = self.step(memory)
            actions = pull.actions[..., 0]
            losses.append(-(distribution.log_prob(actions) * advantage).mean())
            memory = self.observe(memory, actions, pull.rewards[..., 0], pull.terminated, pull.truncated)
        return self.improve(torch.stack(losses).sum())


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
    collector = RolloutCollector(distribution, num_trajectories=Recurrent.num_trials)
    learner = Recurrent(collector.spaces, num_pulls=6)
    trainer = quiet_trainer(learner, collector, distribution, iterations=60, num_steps=5)
    curve = trainer.run()
    assert curve.unit == "trajectories"
    assert curve.values.shape == (6, 200, 1)
    assert curve.env_steps == tuple(float(Recurrent.num_trials * k) for k in range(6))
    assert abs(curve.mean[0] - 0.5) < 0.05  # nothing is known before the first pull
    assert curve.gain(5)[1] > 0.03


def test_the_recurrent_agents_replay_equals_its_acting() -> None:
    distribution = Bandit(num_arms=3)
    collector = RolloutCollector(distribution, num_trajectories=Recurrent.num_trials)
    learner = Recurrent(collector.spaces, num_pulls=4)
    tasks = distribution.sample(2, np.random.default_rng(0))
    episodes = run_episodes(learner, collector, tasks, Seeds.first(2), num_steps=3)
    memory = learner.begin(2)
    for pull in (*episodes.support, episodes.query):
        distribution_t, memory = learner.step(memory)
        replayed = distribution_t.log_prob(pull.actions[..., 0])
        torch.testing.assert_close(replayed.detach(), pull.log_probs[..., 0], rtol=1e-5, atol=1e-5)
        memory = learner.observe(
            memory, pull.actions[..., 0], pull.rewards[..., 0], pull.terminated[..., 0], pull.truncated[..., 0]
        )


def test_learners_round_trip_through_their_state() -> None:
    first, second = ProtoNet(), ProtoNet()
    trainer = quiet_trainer(first, BlobCollector(), BlobTasks(), iterations=3, num_steps=1)
    for _ in range(3):
        trainer.train_iteration()
    second.load_state_dict(first.state_dict())
    assert all(torch.equal(value, second.parameters[name]) for name, value in first.parameters.items())
