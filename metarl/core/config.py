"""Settings of the training loop and of the evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from metarl.core.bounds import AtLeast, Between, Positive
from metarl.core.errors import require
from metarl.core.settings import check

# A larger number is a mistake: the run would fail later for lack of memory.
MOST = 10**6
MOST_THREADS = 4096


@dataclass(frozen=True)
class TrainerConfig:
    """How long to meta-train, on how many tasks, with which random numbers and where."""

    iterations: Annotated[int, AtLeast(1)] = 100
    """Meta-updates of the whole run. A resumed run counts those before it too."""
    meta_batch_size: Annotated[int, Between(1, MOST)] = 20
    """Tasks per meta-update. More tasks: less gradient noise, more samples."""
    max_minutes: Annotated[float | None, Positive] = None
    """Stop when one more iteration of average length would exceed this many minutes. None = no limit."""
    seed: Annotated[int, Between(0, 2**63 - 1)] = 0
    """Seed of every random number of the run."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where meta-updates are computed. auto = cuda if torch finds a GPU, else cpu."""
    act_device: Literal["cpu", "learner"] = "cpu"
    """Where the policy computes its actions: on the CPU, or on the device of the learner. A small policy is faster on
    the CPU, because each step would need two transfers."""
    num_threads: Annotated[int, Between(0, MOST_THREADS)] = 0
    """Simulator threads. 0 = all cores. The results do not depend on it."""
    checkpoint_every: Annotated[int, AtLeast(1)] = 50
    """Iterations between checkpoints. The last iteration and evaluated iterations are always saved."""
    keep_last: Annotated[int, AtLeast(1)] = 3
    """Newest checkpoints to keep. The best one, by the evaluations during training, is kept too."""
    max_nonfinite: Annotated[int, AtLeast(1)] = 5
    """The run ends with an error after this many updates in a row with NaN or infinite numbers. Each is undone."""
    environment_timeout: Annotated[float | None, Positive] = 300.0
    """Seconds that one call of one gymnasium environment may take. None = no limit."""

    def __post_init__(self) -> None:
        check(self, "trainer")


class LearnerConfig:
    """Base of the `Config` of agents and learners: checks every setting by its annotation.

    A `Config` of your own may also be a plain dataclass.

    Attributes:
        shuffle_tasks: a control: each collection of a meta-training iteration uses another task (`ShuffledTasks`).
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
    """Iterations between evaluations during training. 0 = evaluate only at the end."""
    num_tasks: Annotated[int, Between(1, MOST)] = 40
    """Test episodes in all. An infinite family has as many tasks; a finite family of T tasks has num_tasks // T
    replicates of each task."""
    num_adaptation_steps: Annotated[int, Between(0, MOST)] = 3
    """Last step of the curve. It may exceed the number of steps in meta-training."""
    validation_tasks: Annotated[int | None, Between(0, MOST)] = None
    """Validation episodes at each evaluation of a run with `every`. Their score chooses `--checkpoint best`.
    Their tasks come from the training split. With "identical" splits, only their random numbers differ from the test's.
    None = num_tasks, which at most doubles the time of an evaluation. 0 = no validation."""
    num_trajectories: Annotated[int | None, Between(1, MOST)] = None
    """Trajectories per adaptation step. None = as many as the agent collects in training."""
    min_live_steps: Annotated[int | None, AtLeast(1)] = None
    """Collect at least this many live steps per adaptation step, instead of a number of trajectories."""
    controls: bool = True
    """Also measure two controls: adapt on one task and score on another, and adapt with all rewards set to zero."""

    def __post_init__(self) -> None:
        check(self, "evaluation")
        allowed = "left out where num_trajectories is given: each says how much to collect"
        one = self.min_live_steps is None or self.num_trajectories is None
        require(one, "evaluation.min_live_steps", self.min_live_steps, allowed)
