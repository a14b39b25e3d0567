"""An RL agent written from scratch, and agents that each break one thing."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metarl.core.learner import Acted, Traits
from metarl.fewshot.proto import Proto


@dataclass(frozen=True)
class Settings:
    num_trajectories: int = 3
    learning_rate: float = 0.01


class Sound:
    """Its adapted state is a matrix of weights per task, and training moves the meta-parameters towards their mean."""

    Config = Settings
    traits = Traits(unit="gradient steps")
    score_name = "return"
    num_adaptation_steps = 1

    def __init__(self, config: Settings, spaces: Any, *, generator: torch.Generator) -> None:
        self.config, self.spaces = config, spaces
        shape = (spaces.observation_size, spaces.action_size)
        self.weight = nn.Parameter(torch.randn(shape, generator=generator))
        self.optimizer = torch.optim.Adam([self.weight], lr=config.learning_rate)

    @property
    def device(self) -> torch.device:
        return self.weight.device

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        return {"weight": self.weight.detach()}

    def to(self, device: torch.device | str) -> Any:
        return self

    def state_dict(self) -> dict[str, Any]:
        return {"weight": self.weight.detach().clone(), "moments": self.moments()}

    def moments(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.optimizer.state.get(self.weight, {}).items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.load_weight(state)
        self.optimizer.state[self.weight] = {name: value.clone() for name, value in state["moments"].items()}

    def load_weight(self, state: Mapping[str, Any]) -> None:
        with torch.no_grad():
            self.weight.copy_(state["weight"])

    def begin(self, num_tasks: int, *, parameters: Mapping[str, Tensor] | None = None) -> Any:
        return self.weight.detach().repeat(num_tasks, 1, 1)

    def prepare(self, data: Any) -> Any:
        return data

    def act(self, state: Any, observations: Tensor, noise: Tensor) -> Any:
        outputs = observations @ state
        if not self.spaces.discrete:
            return Acted(outputs + noise, -noise.square().sum(-1)), state
        actions = (noise.unsqueeze(-1) > outputs.softmax(-1).cumsum(-1)).sum(-1)
        return Acted(actions.clamp_max(outputs.shape[-1] - 1), torch.zeros_like(noise)), state

    def observe(self, state: Any, actions: Tensor, rewards: Tensor, terminated: Tensor, truncated: Tensor) -> Any:
        return state

    def adapt(self, state: Any, support: Any, *, step: int, differentiable: bool = False) -> Any:
        return state * (1.0 + 0.1 * torch.tanh(support.mean_returns()))[:, None, None]

    def score(self, state: Any, query: Any) -> Tensor:
        return query.mean_returns()  # type: ignore[no-any-return]

    def meta_update(self, episodes: Any) -> Any:
        loss = (self.weight - episodes.state.mean(0)).square().sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": float(loss.detach())}


class ForgetsOptimizer(Sound):
    def state_dict(self) -> dict[str, Any]:
        return {"weight": self.weight.detach().clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.load_weight(state)


class ForgetsCounter(Sound):
    updates = 0

    def meta_update(self, episodes: Any) -> Any:
        self.updates += 1
        self.optimizer.param_groups[0]["lr"] = 0.01 / self.updates
        return super().meta_update(episodes)


class IgnoresKeys(Sound):
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.load_weight(state)


class LiveState(Sound):
    def state_dict(self) -> dict[str, Any]:
        return {"weight": self.weight.detach(), "moments": self.moments()}


class ChangesType(Sound):
    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        return {**state, "weight": state["weight"].double()} if state["moments"] else state


class KeepsWhatItLoads(Sound):
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.optimizer.state[self.weight] = state["moments"]


class SavesAFunction(Sound):
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "schedule": print}


class UnsavedFeatures(Sound):
    """Fixed random features, which the seed of a later evaluation would draw anew."""

    def __init__(self, config: Settings, spaces: Any, *, generator: torch.Generator) -> None:
        super().__init__(config, spaces, generator=generator)
        self.features = torch.randn(spaces.observation_size, spaces.observation_size, generator=generator)

    def act(self, state: Any, observations: Tensor, noise: Tensor) -> Any:
        return super().act(state, observations @ self.features, noise)


class AdaptsInPlace(Sound):
    def adapt(self, state: Any, support: Any, *, step: int, differentiable: bool = False) -> Any:
        return state.mul_(1.1)


class ActsInPlace(Sound):
    def act(self, state: Any, observations: Tensor, noise: Tensor) -> Any:
        observations.mul_(2.0)
        return super().act(state, observations, noise)


class ObservesInPlace(Sound):
    def observe(self, state: Any, *feedback: Tensor) -> Any:
        return state.add_(0.01)


class PreparesInPlace(Sound):
    def prepare(self, data: Any) -> Any:
        data.rewards.sub_(data.rewards.mean())
        return data


class AdaptsItself(Sound):
    def adapt(self, state: Any, support: Any, *, step: int, differentiable: bool = False) -> Any:
        self.load_weight({"weight": self.weight + 0.1})
        return super().adapt(state, support, step=step)


class DrawsFromTorch(Sound):
    def adapt(self, state: Any, support: Any, *, step: int, differentiable: bool = False) -> Any:
        return state + torch.randn(1)


class DrawsFromNumpy(Sound):
    def meta_update(self, episodes: Any) -> Any:
        np.random.permutation(4)  # noqa: NPY002
        return super().meta_update(episodes)


class DrawsFromRandom(Sound):
    def act(self, state: Any, observations: Tensor, noise: Tensor) -> Any:
        return super().act(state, observations, noise + random.random())


class SeedsTorch(Sound):
    def begin(self, num_tasks: int, *, parameters: Mapping[str, Tensor] | None = None) -> Any:
        torch.manual_seed(0)
        return super().begin(num_tasks)


class StartsAnywhere(Sound):
    def __init__(self, config: Settings, spaces: Any, *, generator: torch.Generator) -> None:
        super().__init__(config, spaces, generator=generator)
        self.load_weight({"weight": nn.Linear(spaces.action_size, spaces.observation_size).weight})


class HasEntropy(Sound):
    def __init__(self, config: Settings, spaces: Any, *, generator: torch.Generator) -> None:
        super().__init__(config, spaces, generator=generator)
        self.rng = np.random.default_rng()

    def meta_update(self, episodes: Any) -> Any:
        self.optimizer.param_groups[0]["lr"] = 0.01 * float(self.rng.random())
        return super().meta_update(episodes)


class MixesTasks(Sound):
    def adapt(self, state: Any, support: Any, *, step: int, differentiable: bool = False) -> Any:
        returns = support.mean_returns()
        return state * (1.0 + 0.1 * (returns - returns.mean()))[:, None, None]


class KnowsPlaces(Sound):
    def score(self, state: Any, query: Any) -> Tensor:
        return query.mean_returns() + torch.arange(len(state))


class OtherDerivative(Sound):
    def adapt(self, state: Any, support: Any, *, step: int, differentiable: bool = False) -> Any:
        return super().adapt(state, support, step=step) * (2.0 if differentiable else 1.0)


class OneState(Sound):
    def begin(self, num_tasks: int, *, parameters: Mapping[str, Tensor] | None = None) -> Any:
        return self.weight.detach()


class OneScore(Sound):
    def score(self, state: Any, query: Any) -> Tensor:
        return query.mean_returns().mean()  # type: ignore[no-any-return]


class FlatActions(Sound):
    def act(self, state: Any, observations: Tensor, noise: Tensor) -> Any:
        acted, state = super().act(state, observations, noise)
        return acted._replace(actions=acted.actions.flatten(0, 1)), state


class ActsAlone(Sound):
    def act(self, state: Any, observations: Tensor, noise: Tensor) -> Any:
        return super().act(state, observations, noise)[0].actions


class LogsTensors(Sound):
    def meta_update(self, episodes: Any) -> Any:
        return {name: torch.tensor(value) for name, value in super().meta_update(episodes).items()}


class LogsNaN(Sound):
    def meta_update(self, episodes: Any) -> Any:
        return super().meta_update(episodes) | {"entropy": float("nan")}


class LogsNothing(Sound):
    def meta_update(self, episodes: Any) -> Any:
        super().meta_update(episodes)


class HidesAParameter(Sound):
    def __init__(self, config: Settings, spaces: Any, *, generator: torch.Generator) -> None:
        super().__init__(config, spaces, generator=generator)
        self.scale = nn.Parameter(torch.ones(()))

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "scale": self.scale.detach().clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.scale.data.copy_(state["scale"])

    def meta_update(self, episodes: Any) -> Any:
        self.scale.data.mul_(0.9)
        return super().meta_update(episodes)


class HidesAll(Sound):
    """Plain tensors: only the behaviour shows the fault."""

    def __init__(self, config: Settings, spaces: Any, *, generator: torch.Generator) -> None:
        super().__init__(config, spaces, generator=generator)
        self.moved = torch.zeros(())

    def begin(self, num_tasks: int, *, parameters: Mapping[str, Tensor] | None = None) -> Any:
        return super().begin(num_tasks) + self.moved

    def meta_update(self, episodes: Any) -> Any:
        self.moved = self.moved + 1.0
        return {}


class ReturnsNothing(Sound):
    def to(self, device: torch.device | str) -> Any:
        self.weight.data = self.weight.data.to(device)


class Raises(Sound):
    def adapt(self, state: Any, support: Any, *, step: int, differentiable: bool = False) -> Any:
        raise SystemExit("no step")


class WrongWords(Sound):
    score_name = "reward"
    num_adaptation_steps = 1.5  # type: ignore[assignment]
    device = "cpu"  # type: ignore[assignment]

    def parameters(self) -> Any:  # type: ignore[override]
        return {}


class Incomplete:
    Config = dict
    begin = adapt = score = act = print


class NeedsSettings(Sound):
    @dataclass(frozen=True)
    class Config:  # type: ignore[override]
        learning_rate: float


class CollectsNothing(Sound):
    @dataclass(frozen=True)
    class Config:  # type: ignore[override]
        learning_rate: float = 0.1


class ForgetfulProto(Proto):
    """A few-shot learner that forgets its second moments."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        moments = state["adam"] | {"second": {name: value * 0 for name, value in state["adam"]["second"].items()}}
        super().load_state_dict({**state, "adam": moments})
