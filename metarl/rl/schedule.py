"""The linear schedule of step sizes: they fall to zero over the iterations of a run."""

from __future__ import annotations

from metarl.core.config import TrainerConfig
from metarl.core.errors import require


def schedule_left(schedule_iterations: int | None, num_updates: int) -> float:
    """The factor on a step size after `num_updates` meta-updates, from 1 down to 0; without a schedule it stays 1."""
    return 1.0 if schedule_iterations is None else max(0.0, 1.0 - num_updates / schedule_iterations)


def require_within_schedule(schedule_iterations: int | None, trainer: TrainerConfig) -> None:
    """Refuses a run that is longer than the schedule: its last iterations would learn nothing.

    Raises:
        InputError: names `trainer.iterations`.
    """
    allowed = f"at most agent.schedule_iterations = {schedule_iterations}: beyond it, nothing is learned"
    fits = schedule_iterations is None or trainer.iterations <= schedule_iterations
    require(fits, "trainer.iterations", trainer.iterations, allowed)
