"""Trials: several trajectories of one task in a row, which a policy with a memory takes as one sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from metarl.core.data import Trajectories, live_first
from metarl.core.trees import tree_map


class TrialState(NamedTuple):
    """The memory and the last step of each trial: N tasks, K trials each. K is 1 before the first step.

    Attributes:
        memory: the state of the memory, each tensor [N, K, ...].
        action: [N, K, action_size], the last action; one-hot if discrete, zero before the first.
        reward: [N, K], the reward of the last action.
        done: [N, K], 1 if the last action ended a trajectory.
        over: [N, K] bool, whether the present trajectory has ended. Then nothing changes until the next one.
    """

    memory: tuple[Tensor, ...]
    action: Tensor
    reward: Tensor
    done: Tensor
    over: Tensor

    def widened(self, num_trials: int) -> TrialState:
        """The state with K = `num_trials`; a state with K = 1 is expanded."""
        if self.over.shape[1] == num_trials:
            return self
        return tree_map(lambda part: part.expand(part.shape[0], num_trials, *part.shape[2:]), self)


class Trials(NamedTuple):
    """Whole trials as sequences, prepared for an update: R trials, live steps first, T the largest number of them.

    Attributes:
        inputs: [R, T, input_size].
        actions: [R, T, action_size] or [R, T].
        log_probs: [R, T], under the policy that acted.
        advantages: [R, T], standardised over all live steps.
        returns: [R, T], the targets of the value.
        rewards: [R, T], standardised over all live steps.
        mask: [R, T].
    """

    inputs: Tensor
    actions: Tensor
    log_probs: Tensor
    advantages: Tensor
    returns: Tensor
    rewards: Tensor
    mask: Tensor


class TrialData(NamedTuple):
    """The collected data of whole trials: R trials, live steps first, T the largest number of them.

    Attributes:
        observations: [R, T, observation_size].
        actions: [R, T, action_size] or [R, T].
        log_probs: [R, T], under the policy that acted.
        values: [R, T], by the critic while acting.
        rewards: [R, T].
        done: [R, T], 1 where a trajectory ended.
        mask: [R, T].
    """

    observations: Tensor
    actions: Tensor
    log_probs: Tensor
    values: Tensor
    rewards: Tensor
    done: Tensor
    mask: Tensor


def join_trials(parts: Sequence[Trajectories]) -> TrialData:
    """The trials that consist of the trajectories `parts`, one after another.

    A trial ends with its first diverged trajectory: the memory received a step that is not in the data.
    """

    def joined(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts], dim=2).flatten(0, 1)

    diverged = torch.stack([part.diverged.flatten() for part in parts])
    broken = diverged.cumsum(0) - diverged.to(torch.int64) > 0
    kept = [part.mask.flatten(0, 1) * ~late.unsqueeze(1) for part, late in zip(parts, broken, strict=True)]
    mask = torch.cat(kept, dim=1)
    packed = live_first(mask)
    same = {name: packed(joined(name)) for name in ("observations", "actions", "log_probs", "values", "rewards")}
    done = packed((joined("terminated") | joined("truncated")).to(same["rewards"].dtype))
    return TrialData(**same, done=done, mask=packed(mask))


def memory_inputs(observations: Tensor, actions: Tensor, rewards: Tensor, done: Tensor) -> Tensor:
    """The memory's inputs, [..., observation_size + action_size + 2]. All but `observations` are of the last step."""
    return torch.cat([observations, actions, rewards.unsqueeze(-1), done.unsqueeze(-1)], dim=-1)


def delayed(values: Tensor) -> Tensor:
    """`values` [R, T, ...] one step later, with zeros in the first step."""
    return torch.cat([torch.zeros_like(values[:, :1]), values[:, :-1]], dim=1)
