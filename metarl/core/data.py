"""The data of episodes. The first axis of every array is the task axis.

Shape legend: N num_tasks, K num_trajectories, H horizon, E num_examples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeAlias, TypeVar

import torch
from torch import Tensor

from metarl.core.tasks import Tasks

State = TypeVar("State")
Batch = TypeVar("Batch")


@dataclass(frozen=True)
class Trajectories:
    """Experience of a policy: K trajectories of each of N tasks, padded to H steps.

    Attributes:
        observations: [N, K, H, observation_size] float32.
        actions: [N, K, H, action_size] float32, as sampled (before any clipping), or [N, K, H] int64.
        rewards: [N, K, H] float32, undiscounted.
        terminated: [N, K, H] bool, true at the step that ended the MDP.
        truncated: [N, K, H] bool, true at the last step of a trajectory that was stopped before the MDP ended.
        mask: [N, K, H] float32, 1 for live steps, 0 after the end.
        log_probs: [N, K, H] float32, of `actions` under the policy that acted.
        last_observations: [N, K, observation_size] float32, the observation after the last live step.
        diverged: [N, K] bool, whether the simulation broke down. The step in which it did is not live.
        state: the learner's state after the last step; None if the data was changed since.
        values: [N, K, H] float32, the learner's value estimates, or None.
        success: [N, K] bool, whether any live step was a success; None if the environments do not report success.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    mask: Tensor
    log_probs: Tensor
    last_observations: Tensor
    diverged: Tensor
    state: Any
    values: Tensor | None = None
    success: Tensor | None = None

    def __post_init__(self) -> None:
        expected = self.rewards.shape
        if len(expected) != 3:
            raise ValueError(f"rewards has shape {tuple(expected)}; expected [num_tasks, num_trajectories, horizon]")
        for name in ("observations", "actions", "terminated", "truncated", "mask", "log_probs"):
            shape = getattr(self, name).shape
            if shape[:3] != expected:
                raise ValueError(f"{name} has shape {tuple(shape)}; its first three axes must be {tuple(expected)}")

    @property
    def num_tasks(self) -> int:
        return self.rewards.shape[0]

    @property
    def num_trajectories(self) -> int:
        return self.rewards.shape[1]

    @property
    def num_steps(self) -> int:
        """Environment steps spent, over all tasks."""
        return int(self.mask.sum().item())

    @property
    def num_diverged(self) -> int:
        """Simulations that broke down, over all tasks."""
        return int(self.diverged.sum().item())

    def mean_returns(self) -> Tensor:
        """Undiscounted return, averaged over each task's trajectories that have a live step, [N]."""
        return self._mean((self.rewards * self.mask).sum(-1))

    def success_rates(self) -> Tensor | None:
        """Fraction of successes among each task's trajectories that have a live step, [N] float64, or None."""
        return None if self.success is None else self._mean(self.success.double())

    def without_signal(self) -> Trajectories:
        """The same experience with all rewards zero, for a control. Observations may still reveal the task."""
        return replace(self, rewards=torch.zeros_like(self.rewards), success=None, state=None)

    def _mean(self, values: Tensor) -> Tensor:
        lived = self.mask[..., 0]
        return (values * lived).sum(-1) / lived.sum(-1).clamp_min(1.0)


@dataclass(frozen=True)
class Examples:
    """Labelled examples of N supervised tasks, E each.

    Attributes:
        inputs: [N, E, ...].
        targets: [N, E, ...], class numbers within the episode or regression targets.
        classes: [N, E] global class numbers, or None if there are no classes.
    """

    inputs: Tensor
    targets: Tensor
    classes: Tensor | None = None

    def __post_init__(self) -> None:
        if self.inputs.shape[:2] != self.targets.shape[:2]:
            raise ValueError(
                f"inputs {tuple(self.inputs.shape)} and targets {tuple(self.targets.shape)} must agree in their first "
                "two axes [num_tasks, num_examples]"
            )

    @property
    def num_tasks(self) -> int:
        return self.inputs.shape[0]

    @property
    def num_steps(self) -> int:
        """Examples seen, over all tasks."""
        return self.inputs.shape[0] * self.inputs.shape[1]

    @property
    def num_diverged(self) -> int:
        return 0

    def success_rates(self) -> None:
        """Examples have no success."""

    def without_signal(self) -> Examples:
        """The same inputs with all targets zero, for a control. The inputs may still reveal the task."""
        return replace(self, targets=torch.zeros_like(self.targets))


@dataclass(frozen=True)
class Episodes(Generic[State, Batch]):
    """The episodes of one meta-batch, in slot order: the support, the adapted state and the query of every task.

    Attributes:
        tasks: the N tasks.
        slots: their slots, ascending.
        support: one prepared batch per adaptation step.
        query: prepared data that scores the adapted state.
        state: the adapted state.
        scores: [N] (or [N, num_units]) for each state, from before the first step to after the last.
        num_steps: environment steps (or examples) spent on support and query.
        support_steps: [num_adaptation_steps + 1], environment steps (or examples) that each state has learned from, on
            average over the tasks.
        num_diverged: simulations that broke down.
    """

    tasks: Tasks
    slots: tuple[int, ...]
    support: tuple[Batch, ...]
    query: Batch
    state: State
    scores: tuple[Tensor, ...]
    num_steps: int
    support_steps: tuple[float, ...]
    num_diverged: int = 0


AnyEpisodes: TypeAlias = Episodes[Any, Any]


def live_first(mask: Tensor) -> Callable[[Tensor], Tensor]:
    """A function that moves the live steps of each row to its start and drops the columns without a live step.

    Args:
        mask: [R, S], 1 for live steps, 0 for others.

    Returns:
        A function of values [R, S, ...] that returns [R, L, ...]; L is the largest number of live steps of a row.
    """
    order = mask.argsort(dim=1, descending=True, stable=True)[:, : int(mask.sum(1).max())]

    def packed(values: Tensor) -> Tensor:
        index = order.reshape(*order.shape, *(1,) * (values.dim() - 2))
        return values.gather(1, index.expand(*order.shape, *values.shape[2:]))

    return packed
