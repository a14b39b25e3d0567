"""A policy with a memory."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from metarl.core.learner import Spaces
from metarl.networks.memories import Memory, MemoryName, make_memory
from metarl.networks.policies import Categorical, Distribution, Gaussian

MIN_LOG_STD = math.log(1e-6)


class RecurrentPolicy(nn.Module):
    """A memory with a policy head, a value head and, as an option, a head that predicts rewards.

    Args:
        spaces: of the environments.
        input_size: inputs of the memory per step.
        memory: kind of the memory.
        hidden_size: width of the memory.
        output_gain: factor on the initial weights of the policy head.
        initial_std: standard deviation of continuous actions at the start.
        predicts_rewards: whether there is a head for rewards.
        generator: draws the initial weights.
    """

    def __init__(
        self,
        spaces: Spaces,
        input_size: int,
        *,
        memory: MemoryName,
        hidden_size: int,
        output_gain: float,
        initial_std: float,
        predicts_rewards: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.memory: Memory = make_memory(memory, input_size, hidden_size, generator=generator)
        self.policy = nn.Linear(self.memory.output_size, spaces.action_size)
        self.value = nn.Linear(self.memory.output_size, 1)
        for head, gain in ((self.policy, output_gain), (self.value, 1.0)):
            nn.init.xavier_uniform_(head.weight, gain=gain, generator=generator)
            nn.init.zeros_(head.bias)
        if not spaces.discrete:
            self.log_std = nn.Parameter(torch.full((spaces.action_size,), math.log(initial_std)))
        self.discrete = spaces.discrete
        self.prediction: nn.Linear | None = None
        if predicts_rewards:
            self.prediction = nn.Linear(self.memory.output_size, spaces.action_size + 1)
            nn.init.xavier_uniform_(self.prediction.weight, generator=generator)
            nn.init.zeros_(self.prediction.bias)

    def heads(self, outputs: Tensor) -> tuple[Distribution, Tensor]:
        """Action distribution and value for the memory's outputs [..., O]; the learner chooses the value's unit."""
        raw = self.policy(outputs)
        distribution = Categorical(raw) if self.discrete else Gaussian(raw, self.log_std.clamp_min(MIN_LOG_STD))
        return distribution, self.value(outputs).squeeze(-1)

    def predicted_rewards(self, outputs: Tensor, actions: Tensor) -> Tensor | None:
        """[...], linear in the actions [..., action_size] (one-hot if discrete); None without a head for rewards."""
        if self.prediction is None:
            return None
        weights, bias = self.prediction(outputs).tensor_split([-1], dim=-1)
        predicted: Tensor = (weights * actions).sum(-1) + bias.squeeze(-1)
        return predicted
