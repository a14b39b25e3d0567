"""The order of an episode: support, adapt, ..., query. Nothing else in the project knows it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor

from metarl.core.data import Episodes
from metarl.core.learner import Learner
from metarl.core.seeds import Seeds, require_slots


class Collected(Protocol):
    """What `run_episodes` asks of data: `Trajectories` and `Examples` both are."""

    @property
    def num_tasks(self) -> int: ...
    @property
    def num_steps(self) -> int: ...
    @property
    def num_diverged(self) -> int: ...
    def success_rates(self) -> Tensor | None:
        """[num_tasks], or None if success is not known."""


State = TypeVar("State")
State_contra = TypeVar("State_contra", contravariant=True)
Batch = TypeVar("Batch")
Data = TypeVar("Data", bound=Collected)
Data_co = TypeVar("Data_co", bound=Collected, covariant=True)


class Collector(Protocol[State_contra, Data_co]):
    """Brings data of given tasks, all tasks in one call.

    Attributes:
        acts: True where the learner acts to get its data (RL): support k is then fresh experience of the state before
            step k, and scores it. False where data is given (few-shot): every state is scored on the same query.
    """

    acts: bool

    def support(self, tasks: Sequence[Any], learner: Any, state: State_contra, seeds: Seeds, *, step: int) -> Data_co:
        """Support data of adaptation step `step`, collected by `state`."""

    def query(self, tasks: Sequence[Any], learner: Any, state: State_contra, seeds: Seeds) -> Data_co:
        """Query data, collected by the ADAPTED state."""


class ShuffledTasks(Generic[State, Data]):
    """A control: every collection of a slot is of another task of the meta-batch, so that nothing about one task can
    build up from step to step. As much data of every task as without it.

    Args:
        collector: what collects.
        num_steps: support collections before the query; a meta-batch of more tasks meets none twice in one slot.
    """

    def __init__(self, collector: Collector[State, Data], *, num_steps: int) -> None:
        self.acts = collector.acts
        self._collector = collector
        self._num_steps = num_steps

    def support(self, tasks: Sequence[Any], learner: Any, state: State, seeds: Seeds, *, step: int) -> Data:
        """As the collector's, slot i meeting the task of slot i + step."""
        return self._collector.support(_rotated(tasks, step), learner, state, seeds, step=step)

    def query(self, tasks: Sequence[Any], learner: Any, state: State, seeds: Seeds) -> Data:
        """As the collector's, slot i meeting the task of slot i + num_steps."""
        return self._collector.query(_rotated(tasks, self._num_steps), learner, state, seeds)


def _rotated(tasks: Sequence[Any], places: int) -> list[Any]:
    return [tasks[(i + places) % len(tasks)] for i in range(len(tasks))]


def run_episodes(
    learner: Learner[State, Data, Batch],
    collector: Collector[State, Data],
    tasks: Sequence[Any],
    seeds: Seeds,
    *,
    num_steps: int,
    transform_support: Callable[[Data], Data] | None = None,
    on_scored: Callable[[int, Data], None] | None = None,
    adapting: bool = True,
) -> Episodes[State, Batch]:
    """Meets `tasks`, adapts to each `num_steps` times, and collects the query by the adapted state.

    Training and evaluation, RL and few-shot all go through here. The tasks are put in slot order first: sums over the
    meta-batch, and matrix products whose last bits depend on where a task lies in memory, then come out the same
    whatever order the tasks were given in.

    Args:
        learner: any learner.
        collector: brings its data.
        tasks: the meta-batch.
        seeds: one slot per task.
        num_steps: adaptation steps, >= 0.
        transform_support: applied to support data before the learner sees it (controls such as zero reward).
        on_scored: called with k and the data that scores the state after k steps, tasks in slot order.
        adapting: false, where data is given, brings the data alone: the state stays that before adaptation, and
            `scores` is empty. For a learner with the trait `adapts_in_update`.

    Returns:
        The episodes in slot order; `scores[k]` is the learner's score after k steps.
    """
    require_slots(tasks, seeds)
    order = sorted(range(len(tasks)), key=lambda i: seeds.slots[i])
    tasks, seeds = [tasks[i] for i in order], seeds.take(order)
    state = learner.begin(len(tasks))
    if not adapting and collector.acts:
        raise ValueError("adapting = False: the learner's experience depends on what it has adapted to")
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


def _experience(learner: Learner[Any, Any, Any], data: Any) -> float:
    """Steps of `data` that one adapted state learns from, on average.

    A task's trajectories make one state together, except where each trajectory has a memory of its own.
    """
    states = data.num_tasks * (data.num_trajectories if learner.traits.state_per == "trajectory" else 1)
    return float(data.num_steps / states)
