"""Settings of the training loop and of the evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import arg

from metarl.core.bounds import AtLeast, Between, Positive
from metarl.core.errors import require
from metarl.core.settings import check
from metarl.core.settings import from_table as from_table
from metarl.core.settings import read_toml as read_toml

# Bounds that nobody reaches but by a slip: what lies beyond them would only fail later, for want of memory.
MOST = 10**6
MOST_THREADS = 4096


@dataclass(frozen=True)
class TrainerConfig:
    """How long to meta-train, on what, and with which random numbers."""

    iterations: Annotated[int, AtLeast(1), arg(aliases=["--iterations"])] = 100
    """Meta-updates in all, >= 1; a resumed run counts from its beginning."""
    meta_batch_size: Annotated[int, Between(1, MOST), arg(aliases=["--meta-batch-size"])] = 20
    """Tasks per meta-update, >= 1; more give a less noisy meta-gradient for proportionally more experience."""
    max_minutes: Annotated[float | None, Positive, arg(aliases=["--max-minutes"])] = None
    """Stop after the iteration in which this many minutes have passed, > 0; None = no limit."""
    seed: Annotated[int, Between(0, 2**63 - 1), arg(aliases=["--seed"])] = 0
    """Seed of every random number of the run, 0 to 2**63 - 1."""
    device: Annotated[Literal["auto", "cpu", "cuda"], arg(aliases=["--device"])] = "auto"
    """Where meta-updates are computed; auto = cuda if torch has it, else cpu."""
    act_device: Literal["cpu", "learner"] = "cpu"
    """Where the policy acts: one step's data is too small to pay for two transfers, so cpu is faster for small ones."""
    num_threads: Annotated[int, Between(0, MOST_THREADS)] = 0
    """Simulator threads, >= 0; 0 = all cores. Results do not depend on it."""
    checkpoint_every: Annotated[int, AtLeast(1), arg(aliases=["--checkpoint-every"])] = 50
    """Iterations between checkpoints, >= 1; the last iteration and evaluated iterations are always saved."""
    keep_last: Annotated[int, AtLeast(1)] = 3
    """Newest checkpoints to keep, >= 1; the best one, by the evaluations during training, is kept besides."""
    max_nonfinite: Annotated[int, AtLeast(1)] = 5
    """Updates in a row that were not finite, and so undone, after which the run ends with an error, >= 1."""
    environment_timeout: Annotated[float | None, Positive] = 300.0
    """Seconds that one call of one gymnasium environment may take, > 0; None = no limit."""

    def __post_init__(self) -> None:
        check(self, "trainer")


class LearnerConfig:
    """Base of the `Config` of agents and learners. A `Config` of your own may also be a plain dataclass.

    Attributes:
        shuffle_tasks: every collection of a meta-training iteration is of another task (`ShuffledTasks`): a control.
    """

    shuffle_tasks = False

    def __post_init__(self) -> None:
        check(self, "agent")

    def check_trainer(self, trainer: TrainerConfig) -> None:
        """Refuses settings of the training loop that do not fit these settings.

        Raises:
            InputError: with the setting to change.
        """


@dataclass(frozen=True)
class EvaluationConfig:
    """How the adaptation curve on test tasks is measured."""

    every: Annotated[int, AtLeast(0)] = 0
    """Iterations between evaluations during training, >= 0; 0 = only at the end."""
    num_tasks: Annotated[int, Between(1, MOST)] = 40
    """Test episodes in all, >= 1: tasks of an infinite family, or num_tasks // T replicates of each of T tasks."""
    num_adaptation_steps: Annotated[int, Between(0, MOST)] = 3
    """Last step of the curve, >= 0; it may go beyond the steps of meta-training."""
    validation_tasks: Annotated[int | None, Between(0, MOST)] = None
    """Validation episodes at each evaluation of a run with `every`, >= 0. Their score chooses `--checkpoint best`.
    Their tasks come from the training split. With "identical" splits, only their random numbers differ from the test's.
    None = num_tasks, which at most doubles the time of an evaluation; 0 = no validation."""
    num_trajectories: Annotated[int | None, Between(1, MOST)] = None
    """Trajectories per adaptation step, >= 1; None = the agent's own number."""
    min_live_steps: Annotated[int | None, AtLeast(1)] = None
    """Collect at least this many live steps per adaptation step instead, >= 1."""
    controls: bool = True
    """Also measure the controls: cross-adaptation (adapt on one task, score on another) and zero reward."""

    def __post_init__(self) -> None:
        check(self, "evaluation")
        allowed = "left out where num_trajectories is given: each says how much to collect"
        one = self.min_live_steps is None or self.num_trajectories is None
        require(one, "evaluation.min_live_steps", self.min_live_steps, allowed)
