"""Runs episodes: support, adapt, ..., query. Only this module has this order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Protocol, Self, TypeAlias, TypeVar

from torch import Tensor

from metarl.core.data import Episodes, Trajectories
from metarl.core.learner import AnyLearner, Learner
from metarl.core.seeds import Seeds, require_slots
from metarl.core.tasks import Tasks


class Collected(Protocol):
    """Data of a batch of tasks: `metarl.Trajectories` or `metarl.Examples`."""

    @property
    def num_tasks(self) -> int:
        """Tasks in the batch."""

    @property
    def num_steps(self) -> int:
        """Environment steps, or examples, of all tasks together."""

    @property
    def num_diverged(self) -> int:
        """Simulations that broke down."""

    def success_rates(self) -> Tensor | None:
        """[num_tasks], the fraction of successful trajectories, or None if success is not known."""

    def without_signal(self) -> Self:
        """The same data with all rewards or targets zero, for a control."""


State = TypeVar("State")
State_contra = TypeVar("State_contra", contravariant=True)
Batch = TypeVar("Batch")
Data = TypeVar("Data", bound=Collected)
Data_co = TypeVar("Data_co", bound=Collected, covariant=True)


class Collector(Protocol[State_contra, Data_co]):
    """Collects data of all tasks of a batch in one call.

    Attributes:
        acts: True if the learner acts to get its data (RL). The state before step k then collects the support of
            step k, which also scores that state. False if data is given (few-shot). Every state is then scored on the
            same query.
    """

    acts: bool

    def support(self, tasks: Tasks, learner: Any, state: State_contra, seeds: Seeds, *, step: int) -> Data_co:
        """Collects support data.

        Args:
            tasks: one per slot of `seeds`.
            learner: the learner; one that acts, if `acts`.
            state: the state before the step, which acts.
            seeds: all randomness comes from `seeds.support(step)`.
            step: the number of the adaptation step, from 0.
        """

    def query(self, tasks: Tasks, learner: Any, state: State_contra, seeds: Seeds) -> Data_co:
        """Collects query data. The arguments are those of `support`, but `state` is the adapted state, and all
        randomness comes from `seeds.query()`."""


AnyCollector: TypeAlias = Collector[Any, Any]


class ShuffledTasks(Generic[State, Data]):
    """A control: each collection of a slot is of another task, so that nothing learned about a task can accumulate.

    The meta-batch as a whole has as much data of every task as without this control.

    Args:
        collector: collects the data.
        num_steps: support collections before the query. With more tasks than that, no slot meets a task twice.
    """

    def __init__(self, collector: Collector[State, Data], *, num_steps: int) -> None:
        self.acts = collector.acts
        self._collector = collector
        self._num_steps = num_steps

    def support(self, tasks: Tasks, learner: Any, state: State, seeds: Seeds, *, step: int) -> Data:
        """As the collector's, but slot i meets the task of slot i + step."""
        return self._collector.support(_rotated(tasks, step), learner, state, seeds, step=step)

    def query(self, tasks: Tasks, learner: Any, state: State, seeds: Seeds) -> Data:
        """As the collector's, but slot i meets the task of slot i + num_steps."""
        return self._collector.query(_rotated(tasks, self._num_steps), learner, state, seeds)


def _rotated(tasks: Tasks, places: int) -> Tasks:
    return [tasks[(i + places) % len(tasks)] for i in range(len(tasks))]


def run_episodes(
    learner: Learner[State, Data, Batch],
    collector: Collector[State, Data],
    tasks: Tasks,
    seeds: Seeds,
    *,
    num_steps: int,
    transform_support: Callable[[Data], Data] | None = None,
    on_scored: Callable[[int, Data], None] | None = None,
    adapting: bool = True,
) -> Episodes[State, Batch]:
    """Adapts to each task `num_steps` times, and collects the query with the adapted state.

    Training and evaluation of all learners use this function. It sorts the tasks by slot first. The order in which they
    are given then changes no bit: sums over the meta-batch depend on the order of their terms, and matrix products on
    the place of a task in memory.

    Args:
        learner: any learner.
        collector: collects its data.
        tasks: the meta-batch.
        seeds: one slot per task.
        num_steps: adaptation steps, >= 0.
        transform_support: applied to support data before the learner gets it (controls such as zero reward).
        on_scored: called with k and the data that scores the state after k steps, tasks in slot order.
        adapting: if false, only collect data; do not adapt and do not score. For a learner with the trait
            `adapts_in_update`, whose data is given.

    Returns:
        The episodes in slot order; `scores[k]` is the learner's score after k steps.
    """
    require_slots(tasks, seeds)
    order = sorted(range(len(tasks)), key=lambda i: seeds.slots[i])
    tasks, seeds = [tasks[i] for i in order], seeds.take(order)
    state = learner.begin(len(tasks))
    if not adapting and collector.acts:
        raise ValueError("adapting = False: must be True for a learner that acts: its state decides its data")
    query = None if collector.acts else collector.query(tasks, learner, state, seeds)
    fixed = None if query is None else learner.prepare(query)
    support: list[Batch] = []
    scores: list[Tensor] = []
    learned_from, collected, diverged = [0.0], 0, 0
    for step in range(num_steps):
        data = collector.support(tasks, learner, state, seeds, step=step)
        collected += data.num_steps
        fresh = collector.acts or learner.traits.support == "shot"  # else all steps see the same examples
        learned_from.append(learned_from[-1] * fresh + _experience(learner, data))
        diverged += data.num_diverged
        batch = learner.prepare(data if transform_support is None else transform_support(data))
        support.append(batch)
        if not adapting:
            continue
        scores.append(learner.score(state, batch if fixed is None else fixed))
        if on_scored is not None:
            on_scored(step, data if query is None else query)
        state = learner.adapt(state, batch, step=step)
    if query is None or fixed is None:
        query = collector.query(tasks, learner, state, seeds)
        diverged += query.num_diverged
        fixed = learner.prepare(query)
    if adapting:
        scores.append(learner.score(state, fixed))
        if on_scored is not None:
            on_scored(num_steps, query)
    return Episodes(
        tasks=tuple(tasks),
        slots=seeds.slots,
        support=tuple(support),
        query=fixed,
        state=state,
        scores=tuple(scores),
        num_steps=collected + query.num_steps,
        support_steps=tuple(learned_from),
        num_diverged=diverged,
    )


def _experience(learner: AnyLearner, data: Collected) -> float:
    """Steps of `data` per adapted state, on average: a state belongs to a task or to one of its trajectories."""
    num_states = data.num_tasks
    if learner.traits.state_per == "trajectory" and isinstance(data, Trajectories):
        num_states *= data.num_trajectories
    return data.num_steps / num_states
