"""The contract between learners and everything else.

One rule: a learner owns meta-parameters; whatever it learns about a task lives in a state that it returns as a value,
with the task axis leading. Policy-gradient MAML's state is one set of weights per task, RL2's is a memory, a
prototypical network's is its prototypes: `run_episodes`, the trainer and the evaluation cannot tell them apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, Self, TypeVar, get_args

import torch
from torch import Tensor

from metarl.core.data import Episodes
from metarl.core.errors import require_one_of

State = TypeVar("State")
Data_contra = TypeVar("Data_contra", contravariant=True)
Batch = TypeVar("Batch")

Unit = Literal["gradient steps", "trajectories", "shots", "presentations"]
ScoreName = Literal["return", "accuracy", "mse"]
GivenSupport = Literal["whole", "shot"]
StatePer = Literal["task", "trajectory"]
Tables = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What the project must know of a learner's class. The defaults fit most RL agents that take gradient steps.

    Attributes:
        unit: what one adaptation step consumes: the label of the curve's x axis, and nothing else.
        support: where examples are given, what an adaptation step of an evaluation gets: the "whole" support of the
            task in each step, or in step k the k-th "shot", one example of every class.
        state_per: an adapted state belongs to a "task", or to one "trajectory" of it, as a memory does.
        adapts_in_update: `meta_update` adapts and scores by itself. Its episodes hold data alone, and it returns the
            scalars `adapt/step_0`, ...: the mean score after each step, as far as known. Only where data is given.
        trains_jointly: training adapts to no task. `meta_update` returns its score under the name `score_name`.
        observes_task: the observations of training and evaluation end with the features of the task (an oracle).
        step_size_can_scale: the learner has a method `with_step_scale`; see `ScalableLearner`.
        defaults: settings of [trainer] and [evaluation] that suit this learner better than the usual ones. Presets,
            files and flags override them.
    """

    unit: Unit
    support: GivenSupport = "whole"
    state_per: StatePer = "task"
    adapts_in_update: bool = False
    trains_jointly: bool = False
    observes_task: bool = False
    step_size_can_scale: bool = False
    defaults: Tables = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name, options in (("unit", Unit), ("support", GivenSupport), ("state_per", StatePer)):
            require_one_of(f"traits.{name}", getattr(self, name), get_args(options))


class Acted(NamedTuple):
    """What a policy did in one step.

    Attributes:
        actions: [num_tasks, num_trajectories, action_size] float32 or [num_tasks, num_trajectories] int64.
        log_probs: [num_tasks, num_trajectories], of `actions`, summed over action dimensions.
        values: [num_tasks, num_trajectories], or None.
    """

    actions: Tensor
    log_probs: Tensor
    values: Tensor | None = None


@dataclass(frozen=True)
class Spaces:
    """What an acting learner must know of the environments to build its networks.

    Attributes:
        observation_size: length of the flat observation vector.
        action_size: action dimensions, or the number of actions where `discrete`.
        discrete: whether actions are numbers 0..action_size-1 instead of vectors.
    """

    observation_size: int
    action_size: int
    discrete: bool


class Learner(Protocol[State, Data_contra, Batch]):
    """Learns to learn.

    Attributes:
        traits: what holds for all learners of the class.
        score_name: what `score` returns; "mse" is better when lower.
        num_adaptation_steps: adaptation steps in meta-training.
        device: where the meta-parameters are.
    """

    traits: ClassVar[Traits]
    score_name: ScoreName
    num_adaptation_steps: int

    @property
    def device(self) -> torch.device: ...

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """Everything that is meta-learned, by name, learned step sizes too."""

    def begin(self, num_tasks: int, *, parameters: Mapping[str, Tensor] | None = None) -> State:
        """The state before any adaptation; `parameters` overrides the meta-parameters."""

    def prepare(self, data: Data_contra) -> Batch:
        """Turns a collection into what `adapt` and `meta_update` use. Called once per collection."""

    def adapt(self, state: State, support: Batch, *, step: int, differentiable: bool = False) -> State:
        """The state after one more adaptation step; changes nothing in place.

        Args:
            state: the state so far, task axis leading.
            support: prepared support data of this step.
            step: its number from 0; beyond `num_adaptation_steps` the learner's test-time schedule applies.
            differentiable: keep the graph back to the meta-parameters.
        """

    def score(self, state: State, query: Batch) -> Tensor:
        """[num_tasks], or [num_tasks, num_units] where one pass gives a whole curve ("presentations")."""

    def meta_update(self, episodes: Episodes[State, Batch]) -> dict[str, float]:
        """Improves the meta-parameters; returns scalars to log, without the `train/` prefix.

        Where a loss or gradient is not finite, a scalar must show it by not being finite either: the trainer then
        undoes the update, as it does for parameters and state, and `health/nonfinite_skips` counts it.
        """

    def state_dict(self) -> dict[str, Any]:
        """All that a checkpoint must hold, optimiser state too: tensors, numbers, strings, lists and dicts of them.

        It is a copy: later updates do not change it.
        """

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...

    def to(self, device: torch.device | str) -> Learner[State, Data_contra, Batch]:
        """Moves what the learner holds; returns itself."""


class ScalableLearner(Learner[State, Data_contra, Batch], Protocol[State, Data_contra, Batch]):
    """A learner whose test-time steps can be made larger or smaller (`Traits.step_size_can_scale`)."""

    def with_step_scale(self, factor: float) -> Self:
        """This learner with test-time steps that are `factor` times as large; it shares what was trained."""


class Actor(Protocol[State]):
    """Whatever acts in environments: all that collection asks of a learner."""

    def act(self, state: State, observations: Tensor, noise: Tensor) -> tuple[Acted, State]:
        """Acts in every trajectory of every task.

        Args:
            state: the adapted state.
            observations: [num_tasks, num_trajectories, observation_size].
            noise: standard normal [num_tasks, num_trajectories, action_size], or uniform on [0, 1)
                [num_tasks, num_trajectories] for discrete actions.
        """

    def observe(self, state: State, actions: Tensor, rewards: Tensor, terminated: Tensor, truncated: Tensor) -> State:
        """Feeds back what followed `act`, each [num_tasks, num_trajectories]; learners without a memory return
        `state`."""


def loaded(own: Mapping[str, Tensor], saved: Mapping[str, Tensor], *, what: str) -> dict[str, Tensor]:
    """`saved`, in the order and on the device of `own`, for a `load_state_dict`.

    Raises:
        ValueError: names or shapes differ; says so of `what`.
    """
    expected, found = ({name: tuple(value.shape) for name, value in part.items()} for part in (own, saved))
    if expected != found:
        names = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
        first = f"{names[0]} has shape {found.get(names[0], 'none')}, expected {expected.get(names[0], 'none')}"
        more = f" ({len(names) - 1} more differ)" if names[1:] else ""
        raise ValueError(f"{what} do not fit the network: {first}{more}")
    # Copied into memory of torch's own: where a file's bytes lie, the last bits of a matrix product may differ.
    return {name: saved[name].to(value.device, copy=True) for name, value in own.items()}


class ActingLearner(Learner[State, Data_contra, Batch], Actor[State], Protocol[State, Data_contra, Batch]):
    """A learner that collects its own data."""

    spaces: Spaces
