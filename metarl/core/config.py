"""Settings of the training loop and of the evaluation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import arg

from metarl.core.errors import require, require_one_of
from metarl.core.settings import from_table as from_table
from metarl.core.settings import read_toml as read_toml

# Bounds that nobody reaches but by a slip: what lies beyond them would only fail later, for want of memory.
MOST = 10**6
MOST_THREADS = 4096


@dataclass(frozen=True)
class TrainerConfig:
    """How long to meta-train, on what, and with which random numbers."""

    iterations: Annotated[int, arg(aliases=["--iterations"])] = 100
    """Meta-updates in all, >= 1; a resumed run counts from its beginning."""
    meta_batch_size: Annotated[int, arg(aliases=["--meta-batch-size"])] = 20
    """Tasks per meta-update, >= 1; more give a less noisy meta-gradient for proportionally more experience."""
    max_minutes: Annotated[float | None, arg(aliases=["--max-minutes"])] = None
    """Stop after the iteration in which this many minutes have passed, > 0; None = no limit."""
    seed: Annotated[int, arg(aliases=["--seed"])] = 0
    """Seed of every random number of the run, 0 to 2**63 - 1."""
    device: Annotated[Literal["auto", "cpu", "cuda"], arg(aliases=["--device"])] = "auto"
    """Where meta-updates are computed; auto = cuda if torch has it, else cpu."""
    act_device: Literal["cpu", "learner"] = "cpu"
    """Where the policy acts: one step's data is too small to pay for two transfers, so cpu is faster for small ones."""
    num_threads: int = 0
    """Simulator threads, >= 0; 0 = all cores. Results do not depend on it."""
    checkpoint_every: Annotated[int, arg(aliases=["--checkpoint-every"])] = 50
    """Iterations between checkpoints, >= 1; the last iteration and evaluated iterations are always saved."""
    keep_last: int = 3
    """Newest checkpoints to keep, >= 1; the best one, by the evaluations during training, is kept besides."""
    max_nonfinite: int = 5
    """Updates in a row that were not finite, and so undone, after which the run ends with an error, >= 1."""
    environment_timeout: float | None = 300.0
    """Seconds that one call of one gymnasium environment may take, > 0; None = no limit."""

    def __post_init__(self) -> None:
        _require_int("trainer.iterations", self.iterations, low=1)
        _require_int("trainer.meta_batch_size", self.meta_batch_size, low=1, high=MOST)
        minutes = self.max_minutes
        require(minutes is None or 0.0 < minutes < math.inf, "trainer.max_minutes", minutes, "a finite number > 0")
        _require_int("trainer.seed", self.seed, low=0, high=2**63 - 1)
        require_one_of("trainer.device", self.device, ("auto", "cpu", "cuda"))
        require_one_of("trainer.act_device", self.act_device, ("cpu", "learner"))
        _require_int("trainer.num_threads", self.num_threads, low=0, high=MOST_THREADS)
        _require_int("trainer.checkpoint_every", self.checkpoint_every, low=1)
        _require_int("trainer.keep_last", self.keep_last, low=1)
        _require_int("trainer.max_nonfinite", self.max_nonfinite, low=1)
        limit = self.environment_timeout
        require(limit is None or 0.0 < limit < math.inf, "trainer.environment_timeout", limit, "a finite number > 0")


class LearnerConfig:
    """Base of the `Config` of agents and learners. A `Config` of your own may also be a plain dataclass.

    Attributes:
        shuffle_tasks: every collection of a meta-training iteration is of another task (`ShuffledTasks`): a control.
    """

    shuffle_tasks = False

    def check_trainer(self, trainer: TrainerConfig) -> None:
        """Refuses settings of the training loop that do not fit these settings.

        Raises:
            InputError: with the setting to change.
        """


@dataclass(frozen=True)
class EvaluationConfig:
    """How the adaptation curve on test tasks is measured."""

    every: int = 0
    """Iterations between evaluations during training, >= 0; 0 = only at the end."""
    num_tasks: int = 40
    """Test episodes in all, >= 1: tasks of an infinite family, or num_tasks // T replicates of each of T tasks."""
    num_adaptation_steps: int = 3
    """Last step of the curve, >= 0; it may go beyond the steps of meta-training."""
    validation_tasks: int | None = None
    """Validation episodes at each evaluation of a run with `every`, >= 0. Their score chooses `--checkpoint best`.
    Their tasks come from the training split. With "identical" splits, only their random numbers differ from the test's.
    None = num_tasks, which at most doubles the time of an evaluation; 0 = no validation."""
    num_trajectories: int | None = None
    """Trajectories per adaptation step, >= 1; None = the agent's own number."""
    min_live_steps: int | None = None
    """Collect at least this many live steps per adaptation step instead, >= 1."""
    controls: bool = True
    """Also measure the controls: cross-adaptation (adapt on one task, score on another) and zero reward."""

    def __post_init__(self) -> None:
        _require_int("evaluation.every", self.every, low=0)
        _require_int("evaluation.num_tasks", self.num_tasks, low=1, high=MOST)
        _require_int("evaluation.num_adaptation_steps", self.num_adaptation_steps, low=0, high=MOST)
        if self.validation_tasks is not None:
            _require_int("evaluation.validation_tasks", self.validation_tasks, low=0, high=MOST)
        if self.num_trajectories is not None:
            _require_int("evaluation.num_trajectories", self.num_trajectories, low=1, high=MOST)
        if self.min_live_steps is not None:
            _require_int("evaluation.min_live_steps", self.min_live_steps, low=1)
            allowed = "left out where num_trajectories is given: each says how much to collect"
            require(self.num_trajectories is None, "evaluation.min_live_steps", self.min_live_steps, allowed)


def _require_int(field: str, value: object, *, low: int, high: int | None = None) -> None:
    fits = isinstance(value, int) and not isinstance(value, bool) and low <= value and (high is None or value <= high)
    require(fits, field, value, f"an integer >= {low}" if high is None else f"an integer from {low} to {high}")
