"""Random numbers depend only on seed, iteration, purpose, step and slot.

Every random number of a run comes from `SeedSequence(seed, spawn_key=(iteration, purpose, step, slot))`. The slot of a
task is its number in the iteration's draw. So the order of a meta-batch and the number of processes change no bit of a
result, and a resumed run needs no state of a generator.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from metarl.core.errors import InputError, one_line
from metarl.core.tasks import require_tasks

# Evaluations use these numbers in the keys instead of a training iteration. Never change one: every recorded run
# depends on them.
EVALUATION_ITERATION = 1_000_003
CONTROLS_ITERATION = EVALUATION_ITERATION + 1
VALIDATION_ITERATION = EVALUATION_ITERATION + 2


class Purpose(enum.IntEnum):
    """The use of random numbers. Every recorded run depends on the values: append new ones, never renumber."""

    INITIALISE = 0
    TASKS = 1
    SUPPORT = 2
    QUERY = 3
    UPDATE = 4
    EVALUATION_TASKS = 5
    EVALUATION_SUPPORT = 6
    EVALUATION_QUERY = 7
    BOOTSTRAP = 8


def generator(seed: int, iteration: int, purpose: Purpose, step: int = 0, slot: int = 0) -> np.random.Generator:
    """The generator of one (iteration, purpose, step, slot)."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(iteration, int(purpose), step, slot)))


@dataclass(frozen=True)
class Seeds:
    """The keys of the random numbers of one call to `run_episodes`.

    Attributes:
        seed: the run's seed, >= 0.
        iteration: the iteration the episodes belong to.
        slots: one number per task, distinct within an iteration.
        evaluation: use the purposes of evaluation instead of those of training.
    """

    seed: int
    iteration: int
    slots: tuple[int, ...]
    evaluation: bool = False

    @staticmethod
    def first(num_tasks: int, *, seed: int = 0, iteration: int = 0, evaluation: bool = False) -> Seeds:
        """Slots 0, 1, ..., num_tasks - 1."""
        return Seeds(seed, iteration, tuple(range(num_tasks)), evaluation)

    def support(self, step: int) -> list[np.random.Generator]:
        """One generator per task for the support data of adaptation step `step`."""
        return self._generators(Purpose.EVALUATION_SUPPORT if self.evaluation else Purpose.SUPPORT, step)

    def query(self) -> list[np.random.Generator]:
        """One generator per task for the query data."""
        return self._generators(Purpose.EVALUATION_QUERY if self.evaluation else Purpose.QUERY, 0)

    def take(self, indices: Sequence[int]) -> Seeds:
        """The seeds of some of the tasks, in the given order."""
        return replace(self, slots=tuple(self.slots[i] for i in indices))

    def _generators(self, purpose: Purpose, step: int) -> list[np.random.Generator]:
        return [generator(self.seed, self.iteration, purpose, step, slot) for slot in self.slots]


def require_slots(tasks: object, seeds: object) -> None:
    """Raises `InputError` unless `tasks` is a list of tasks and `seeds` has a slot for each of them."""
    count = len(require_tasks(tasks))
    example = f"metarl.Seeds.first({count}, seed=0)"
    if not isinstance(seeds, Seeds):
        raise InputError(f"seeds = {one_line(seeds)}: must be a metarl.Seeds with one slot per task: {example}")
    if count != len(seeds.slots):
        there = f"{count} tasks and seeds of {len(seeds.slots)} slots"
        raise InputError(
            f"tasks: {there}; must be equal numbers. Write [task] for one task, and {example} for the seeds"
        )
