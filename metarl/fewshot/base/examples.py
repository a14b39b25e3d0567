"""Few-shot tasks: small labelled data sets, drawn from a distribution and handed to a learner.

The counterpart of environments and `metarl.rl.rollout`: here data is given, not collected by acting.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic

import torch
from torch import Tensor

from metarl.core.data import Examples
from metarl.core.errors import DISTRIBUTION, environment_fault, text_of, users_code
from metarl.core.learner import Learner, Tables
from metarl.core.seeds import Seeds, require_slots
from metarl.core.tasks import Task, TaskDistribution, same_task


@dataclass(frozen=True)
class ExampleSpaces:
    """Shapes of the tasks, from which a few-shot learner builds its networks.

    Attributes:
        input_shape: of one input, such as (1, 28, 28).
        num_outputs: classes of a test task (its ways), or the length of a regression target.
        discrete: targets are class numbers, else vectors.
        train_ways: classes of a training task (its ways); 0 for regression.
        train_classes: global numbers of all training classes; empty for regression.
        description_size: length of the vectors that describe classes in zero-shot tasks; 0 if the support is examples.
    """

    input_shape: tuple[int, ...]
    num_outputs: int
    discrete: bool
    train_ways: int = 0
    train_classes: tuple[int, ...] = ()
    description_size: int = 0


class ExampleTaskDistribution(TaskDistribution[Task]):
    """A distribution of supervised tasks: the input of every few-shot learner.

    All random numbers come from `seeds`, so a task's support and query are the same for every adaptation step and every
    learner. Support and query share no example. `seeds.evaluation` selects the sizes of evaluation instead of those of
    training.

    Attributes:
        caption: the protocol of the scores, for reports: "5-way 1-shot".
        baseline_name: name of `baseline` in a report.
    """

    defaults: ClassVar[Tables] = {"evaluation": {"num_tasks": 600, "num_adaptation_steps": 1, "controls": False}}
    baseline_name: ClassVar[str] = "baseline"

    @property
    def caption(self) -> str:
        return ""

    @property
    @abstractmethod
    def spaces(self) -> ExampleSpaces:
        """Shapes of inputs and targets."""

    @abstractmethod
    def support(
        self, tasks: Sequence[Task], seeds: Seeds, *, shot: int | None = None, device: torch.device | str = "cpu"
    ) -> Examples:
        """The support examples of each task.

        Args:
            tasks: one per slot of `seeds`.
            seeds: of the episode.
            shot: return only this example of every class, counted from 0; None = all examples.
            device: where to put the examples.
        """

    @abstractmethod
    def query(self, tasks: Sequence[Task], seeds: Seeds, *, device: torch.device | str = "cpu") -> Examples:
        """The query examples of each task."""

    def for_validation(self) -> ExampleTaskDistribution[Task]:
        """The distribution for validation: its training tasks have as many classes as test tasks."""
        return self

    def baseline(self, support: Examples, query: Examples) -> Tensor | None:
        """[num_tasks]: the score of a method without training, for comparison; None if the family has none."""
        return None


class ExampleCollector(Generic[Task]):
    """Gives a learner the examples of its tasks.

    Every step gets the whole support. In an evaluation of a learner with the trait `support="shot"`, step k gets the
    k-th example of every class.

    Args:
        tasks: the distribution.
        device: where the learner is.
    """

    acts = False

    def __init__(self, tasks: ExampleTaskDistribution[Task], *, device: torch.device | str = "cpu") -> None:
        self.tasks = tasks
        self.device = torch.device(device)
        self._last: tuple[Seeds, int | None, list[Task], Examples] | None = None

    @property
    def spaces(self) -> ExampleSpaces:
        """The shapes of the distribution's tasks."""
        return self.tasks.spaces

    def support(
        self, tasks: Sequence[Task], learner: Learner[Any, Any, Any], state: object, seeds: Seeds, *, step: int
    ) -> Examples:
        """As in `metarl.core.episode.Collector`."""
        require_slots(tasks, seeds)
        one_by_one = learner.traits.support == "shot" and seeds.evaluation
        wanted = (seeds, step if one_by_one else None)
        if self._last is None or self._last[:2] != wanted or not same_task(self._last[2], list(tasks)):
            with users_code("support"):
                examples = self.tasks.support(tasks, seeds, shot=wanted[1], device=self.device)
            self._last = (*wanted, list(tasks), _require_examples(examples, "support"))
        return self._last[3]

    def query(self, tasks: Sequence[Task], learner: object, state: object, seeds: Seeds) -> Examples:
        """As in `metarl.core.episode.Collector`."""
        require_slots(tasks, seeds)
        with users_code("query"):
            examples = self.tasks.query(tasks, seeds, device=self.device)
        return _require_examples(examples, "query")


def _require_examples(examples: object, method: str) -> Examples:
    if not isinstance(examples, Examples):
        what = f"{method} returned {text_of(examples, repr):.80}: must be a metarl.Examples"
        raise environment_fault(what, task=None, seed=None, step=None, whose=DISTRIBUTION)
    return examples
