"""The contract of learners: what a meta-RL agent or a few-shot learner implements.

A learner owns the meta-parameters. What it learns about a task is in a state, which it returns as a value. A state is
nested dataclasses, tuples, lists or dicts of tensors, and the first axis of each tensor is the task axis. For MAML the
state is one set of weights per task, for RL² a memory, for a prototypical network its prototypes. `run_episodes`, the
trainer and the evaluation treat all of them alike.

- `Traits` declares what holds for all learners of a class.
- `Learner` is the contract of a few-shot learner.
- `ActingLearner` is the contract of an RL agent: `Learner` and `Actor`.
- `ScalableLearner` adds a test-time step size that can be chosen.

To be trained by `metarl train`, a class also has a dataclass `Config` of its settings, and its constructor takes
`(config, spaces, *, generator)`. `spaces` gives the sizes of inputs and outputs (`Spaces` for an RL agent), and
`generator`, a `torch.Generator`, draws the initial weights and the seed of any other random numbers. The `Config` of an
RL agent has `num_trajectories`, the number of trajectories to collect per task and adaptation step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, Self, TypeAlias, TypeVar, get_args

import torch
from torch import Tensor

from metarl.core.data import Episodes
from metarl.core.errors import require_one_of
from metarl.core.tasks import Tables as Tables

State = TypeVar("State")
Data_contra = TypeVar("Data_contra", contravariant=True)
Batch = TypeVar("Batch")

Unit = Literal["gradient steps", "trajectories", "shots", "presentations"]
ScoreName = Literal["return", "accuracy", "mse"]
GivenSupport = Literal["whole", "shot"]
StatePer = Literal["task", "trajectory"]
StateDict = dict[str, Any]
"""What a checkpoint holds of a learner: tensors, numbers, strings, None, and lists and dicts of these."""


@dataclass(frozen=True, kw_only=True)
class Traits:
    """Properties shared by all learners of a class. The defaults fit most RL agents that take gradient steps.

    Attributes:
        unit: what one adaptation step consumes. It is only the label of the curve's x axis.
        support: which of the given examples an adaptation step of an evaluation gets. "whole": all of the task's
            support in each step. "shot": in step k the k-th example of every class. RL agents leave it out.
        state_per: whether an adapted state belongs to a "task" or, as a memory does, to one "trajectory" of it.
        adapts_in_update: `meta_update` adapts and scores by itself, so its episodes hold only data. It returns the mean
            score after step k as `adapt/step_k`, for each k that it scored. Not for RL agents.
        trains_jointly: training adapts to no task. `meta_update` returns its score under the name `score_name`.
        observes_task: every observation ends with the features of the task (an oracle). Only for RL agents.
        step_size_can_scale: the learner is a `ScalableLearner`.
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


class Learner(Protocol[State, Data_contra, Batch]):
    """Learns to adapt to tasks.

    In an episode, the methods are called in this order. `begin` gives the state before adaptation. Then each step
    collects support, `prepare`s it, and `adapt`s the state. At last the query is collected, `prepare`d, and `score`d.
    `meta_update` gets the whole episodes.

    No method but `meta_update`, `load_state_dict` and `to` changes the learner. None changes its arguments.

    Attributes:
        traits: what holds for all learners of the class.
        score_name: the meaning of `score`. Higher is better, except for "mse".
        num_adaptation_steps: adaptation steps in meta-training, >= 0.
    """

    traits: ClassVar[Traits]
    score_name: ScoreName
    num_adaptation_steps: int

    @property
    def device(self) -> torch.device:
        """Where the meta-parameters are."""

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """Everything that is meta-learned, by name, including learned step sizes."""

    def begin(self, num_tasks: int, *, parameters: Mapping[str, Tensor] | None = None) -> State:
        """The state before any adaptation.

        Args:
            num_tasks: length of the task axis.
            parameters: meta-parameters to use instead of the learner's own.
        """

    def prepare(self, data: Data_contra) -> Batch:
        """Turns collected data into a batch for `adapt`, `score` and `meta_update`. Called once per collection."""

    def adapt(self, state: State, support: Batch, *, step: int, differentiable: bool = False) -> State:
        """The state after one more adaptation step.

        Args:
            state: the state so far.
            support: the prepared support data of this step.
            step: the number of the step, from 0. From `num_adaptation_steps` on, it is a step beyond meta-training.
            differentiable: keep the graph back to the meta-parameters.
        """

    def score(self, state: State, query: Batch) -> Tensor:
        """How good `state` is on `query`.

        Returns:
            [num_tasks]; or [num_tasks, num_units] if one pass over the query gives a whole curve ("presentations").
        """

    def meta_update(self, episodes: Episodes[State, Batch]) -> dict[str, float]:
        """Improves the meta-parameters.

        Returns:
            Scalars to log, by name; the trainer adds the prefix `train/`. If a loss or a gradient is not finite, one of
            them must not be finite either. The trainer undoes such an update, and one that leaves `parameters` or
            `state_dict` not finite, and counts it in `health/nonfinite_skips`.
        """

    def state_dict(self) -> StateDict:
        """A copy of everything that a checkpoint must hold, including the state of optimisers."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores a `state_dict` of a learner with the same settings. It keeps no reference to `state`.

        Raises:
            ValueError: `state` does not fit the learner.
        """

    def to(self, device: torch.device | str) -> Learner[State, Data_contra, Batch]:
        """Moves all tensors of the learner to `device`; returns the learner itself."""


class ScalableLearner(Learner[State, Data_contra, Batch], Protocol[State, Data_contra, Batch]):
    """A learner whose test-time steps can be made larger or smaller (`Traits.step_size_can_scale`)."""

    def with_step_scale(self, factor: float) -> Self:
        """A learner with the same trained parameters, whose test-time steps are `factor` times as large."""


@dataclass(frozen=True)
class Spaces:
    """The sizes of observations and actions, for the networks of an RL agent.

    Attributes:
        observation_size: length of the flat observation vector.
        action_size: action dimensions, or the number of actions if `discrete`.
        discrete: whether actions are numbers 0..action_size-1 instead of vectors.
    """

    observation_size: int
    action_size: int
    discrete: bool


class Acted(NamedTuple):
    """What a policy did in one step.

    Attributes:
        actions: [num_tasks, num_trajectories, action_size] float32 or [num_tasks, num_trajectories] int64.
        log_probs: [num_tasks, num_trajectories], of `actions`, summed over action dimensions.
        values: [num_tasks, num_trajectories], the value estimates of the states, or None.
    """

    actions: Tensor
    log_probs: Tensor
    values: Tensor | None = None


class Actor(Protocol[State]):
    """Acts in environments. Collection needs nothing else of a learner."""

    def act(self, state: State, observations: Tensor, noise: Tensor) -> tuple[Acted, State]:
        """Acts in every trajectory of every task. All randomness comes from `noise`.

        Args:
            state: the adapted state.
            observations: [num_tasks, num_trajectories, observation_size].
            noise: standard normal [num_tasks, num_trajectories, action_size], or uniform on [0, 1)
                [num_tasks, num_trajectories] for discrete actions.

        Returns:
            The actions, and the state after them, which differs from `state` only if the learner has a memory.
        """

    def observe(self, state: State, actions: Tensor, rewards: Tensor, terminated: Tensor, truncated: Tensor) -> State:
        """The state after the results of `act`. A learner without a memory returns `state`.

        Args:
            state: as `act` returned it.
            actions: as `act` returned them.
            rewards: [num_tasks, num_trajectories].
            terminated: [num_tasks, num_trajectories], whether the MDP has ended.
            truncated: [num_tasks, num_trajectories], whether the trajectory has ended for another reason.
        """


class ActingLearner(Learner[State, Data_contra, Batch], Actor[State], Protocol[State, Data_contra, Batch]):
    """An RL agent: a learner that collects its own data by acting.

    Its data is `metarl.Trajectories`.

    Attributes:
        spaces: as given to the constructor.
    """

    spaces: Spaces


AnyLearner: TypeAlias = Learner[Any, Any, Any]
AnyActingLearner: TypeAlias = ActingLearner[Any, Any, Any]


class LearnerClass(Protocol):
    """The class of a learner, as `metarl.runs.registry` returns it.

    Attributes:
        Config: the dataclass of its settings.
        traits: as in `Learner`.
    """

    __name__: str
    Config: type[Any]
    traits: Traits

    def __call__(self, config: Any, spaces: Any, *, generator: torch.Generator) -> AnyLearner:
        """A new learner.

        Args:
            config: a `Config`.
            spaces: `Spaces` for an RL agent, `ExampleSpaces` for a few-shot learner.
            generator: draws the initial weights, and the seed of any other random numbers.
        """


def loaded(own: Mapping[str, Tensor], saved: Mapping[str, Tensor], *, what: str) -> dict[str, Tensor]:
    """Copies of the tensors of `saved`, in the order and on the device of `own`. For use in `load_state_dict`.

    Raises:
        ValueError: names or shapes differ. `what` names the tensors in the message.
    """
    expected, found = ({name: tuple(value.shape) for name, value in part.items()} for part in (own, saved))
    if expected != found:
        names = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
        first = f"{names[0]} has shape {found.get(names[0], 'none')}, expected {expected.get(names[0], 'none')}"
        more = f" ({len(names) - 1} more differ)" if names[1:] else ""
        raise ValueError(f"{what} do not fit the network: {first}{more}")
    # A copy lies at an aligned address, a file's bytes may not. The last bits of a matrix product depend on that.
    return {name: saved[name].to(value.device, copy=True) for name, value in own.items()}
