"""The meta-training loop and its callbacks."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from metarl.core import nonfinite
from metarl.core.config import EvaluationConfig, TrainerConfig
from metarl.core.curve import AdaptationCurve
from metarl.core.data import AnyEpisodes
from metarl.core.episode import AnyCollector, run_episodes
from metarl.core.errors import NonFiniteError
from metarl.core.evaluation import EvaluationObserver, evaluate, own_steps
from metarl.core.learner import AnyLearner
from metarl.core.scalars import update_scalars
from metarl.core.seeds import Purpose, Seeds, generator
from metarl.core.tasks import AnyDistribution, Split, draw
from metarl.core.trees import tree_map


@dataclass
class Progressed:
    """The result of one iteration.

    Attributes:
        iteration: the number of the iteration, from 1.
        episodes: the iteration's data.
        scalars: to be logged, by tag (`metarl.core.tags`).
        env_steps: environment steps (or examples) since the run began.
        wall_s: seconds since the run began.
    """

    iteration: int
    episodes: AnyEpisodes
    scalars: dict[str, float]
    env_steps: int
    wall_s: float


class Callback:
    """Hooks of the loop, all of which do nothing. Override those you need. They run between iterations."""

    def on_start(self, trainer: Trainer) -> None:
        """Before the first iteration."""

    def on_iteration(self, trainer: Trainer, progressed: Progressed) -> None:
        """After each meta-update. May call `trainer.stop()` and add to `progressed.scalars`."""

    def before_evaluation(self, trainer: Trainer) -> None:
        """Before each evaluation, and before the controls that follow the last one."""

    def on_evaluation(self, trainer: Trainer, curve: AdaptationCurve) -> None:
        """After each evaluation."""

    def on_end(self, trainer: Trainer) -> None:
        """After the last iteration and evaluation; also when an error ends the run."""


@dataclass
class Trainer:
    """Meta-trains `learner` on tasks of `distribution`.

    Attributes:
        learner: any learner.
        collector: collects its data.
        distribution: the tasks.
        config: settings of training.
        evaluation: settings of the evaluation.
        callbacks: called in this order; `on_end` in the reverse order.
        evaluation_collector: collects the data of evaluations; None = `collector`.
        validation: the score of the last evaluation on validation tasks, after `own_steps` adaptation steps; None if
            there was none.
        observer: gets the data of every evaluation on test tasks.
        space_notes: how actions and observations are converted, one line each; None without environments.
        nonfinite_dir: folder for dumps of updates that were not finite; None = no dumps.
        iteration: iterations finished.
        env_steps: environment steps (or examples) spent in meta-training.
        wall_s: seconds spent in meta-training, including its evaluations.
        evaluation_missing: whether the evaluation after the current iteration was interrupted, so it must run first.
        curve: the final adaptation curve; None before it is measured.
    """

    learner: AnyLearner
    collector: AnyCollector
    distribution: AnyDistribution
    config: TrainerConfig
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    callbacks: Sequence[Callback] = ()
    evaluation_collector: AnyCollector | None = None
    observer: EvaluationObserver | None = None
    space_notes: tuple[str, ...] | None = None
    nonfinite_dir: Path | None = None
    iteration: int = 0
    env_steps: int = 0
    wall_s: float = 0.0
    validation: float | None = field(default=None, init=False)
    evaluation_missing: bool = False
    curve: AdaptationCurve | None = None

    def __post_init__(self) -> None:
        self._stopping = False
        self._evaluating = True
        self._undone: list[str] = []

    def stop(self, *, evaluate: bool = True) -> None:
        """Ends the run after the current iteration. If `evaluate` is false, there is no final evaluation."""
        self._stopping = True
        self._evaluating = self._evaluating and evaluate

    @property
    def ends(self) -> bool:
        """Whether no iteration follows the current one."""
        return self._stopping or self.iteration >= self.config.iterations

    @property
    def evaluation_follows(self) -> bool:
        """Whether an evaluation comes right after the current iteration."""
        every = self.evaluation.every
        return self._evaluating if self.ends else every > 0 and self.iteration % every == 0

    def run(self) -> AdaptationCurve | None:
        """Trains until `iterations` or `max_minutes`, whichever comes first, and evaluates.

        Returns:
            The final adaptation curve on test tasks; None if the run was stopped without one.

        Raises:
            NonFiniteError: `max_nonfinite` updates in a row were undone.
        """
        with contextlib.ExitStack() as ending:
            for callback in reversed(self.callbacks):
                ending.callback(callback.on_end, self)
            for callback in self.callbacks:
                callback.on_start(self)
            start, before, first, steps = time.monotonic(), self.wall_s, self.iteration, self.env_steps
            if self.evaluation_missing and not self.ends:
                self.evaluate()
            while not self.ends:
                progressed = self.train_iteration()
                elapsed = time.monotonic() - start
                self.wall_s = progressed.wall_s = before + elapsed
                progressed.scalars["time/fps"] = (self.env_steps - steps) / max(elapsed, 1e-9)
                if self._out_of_time(elapsed, self.iteration - first):
                    self.stop()
                for callback in self.callbacks:  # before the evaluation, so that a kill in it loses nothing
                    callback.on_iteration(self, progressed)
                self._require_progress()
                if self.evaluation_follows and not self.ends:
                    self.evaluate()
            if self._evaluating:
                self.curve = self.evaluate()
            return self.curve

    @torch.enable_grad()  # users' code may have switched gradients off
    def train_iteration(self) -> Progressed:
        """Runs the episodes of one meta-batch and a meta-update. An update that is not finite is undone."""
        started = time.monotonic()
        config, learner = self.config, self.learner
        rng = generator(config.seed, self.iteration, Purpose.TASKS)
        tasks = draw(self.distribution, config.meta_batch_size, rng, split="train")
        seeds = Seeds.first(len(tasks), seed=config.seed, iteration=self.iteration)
        before = tree_map(lambda tensor: tensor.detach().clone(), learner.state_dict())
        in_update = learner.traits.adapts_in_update
        try:
            episodes = run_episodes(
                learner, self.collector, tasks, seeds, num_steps=learner.num_adaptation_steps, adapting=not in_update
            )
            sampled = time.monotonic()
            metrics = learner.meta_update(episodes)
            finding = nonfinite.find(learner, episodes, metrics)
            learned = time.monotonic()
            if finding is not None:
                learner.load_state_dict(before)
            self.iteration += 1
        except BaseException:
            learner.load_state_dict(before)  # so that a checkpoint saved now is of the last whole iteration
            raise
        if finding is None:
            self._undone.clear()
        else:
            self._undone.append(f"at iteration {self.iteration}, not finite: {finding}")
            update = nonfinite.UndoneUpdate(finding, before, episodes, metrics, self.iteration, config.seed)
            nonfinite.report(self.nonfinite_dir, update)
        self.env_steps += episodes.num_steps
        scalars = {
            **update_scalars(episodes, metrics, learner.score_name),
            "time/sample_s": sampled - started,
            "time/learn_s": learned - sampled,
            "time/env_steps": float(self.env_steps),
            "health/diverged_sims": float(episodes.num_diverged),
            "health/nonfinite_skips": float(finding is not None),
        }
        return Progressed(self.iteration, episodes, scalars, self.env_steps, 0.0)

    def evaluate(self) -> AdaptationCurve:
        """The adaptation curve on test tasks; the same tasks and random numbers at every call.

        In a run with `evaluation.every`, it also measures `validation`.
        """
        for callback in self.callbacks:
            callback.before_evaluation(self)
        settings = self.evaluation
        curve = self._curve("test", settings.num_tasks, settings.num_adaptation_steps)
        wanted = settings.num_tasks if settings.validation_tasks is None else settings.validation_tasks
        if settings.every and wanted:
            # Validation uses training's episodes, in which a learner that counts shots gets all shots in each step.
            by_shots, own = self.learner.traits.support == "shot", self.learner.num_adaptation_steps
            steps = own if by_shots else own_steps(self.learner, settings.num_adaptation_steps)
            self.validation = float(self._curve("train", wanted, steps).mean[-1])
        for callback in self.callbacks:
            callback.on_evaluation(self, curve)
        return curve

    def _curve(self, split: Split, num_tasks: int, num_steps: int) -> AdaptationCurve:
        return evaluate(
            self.learner,
            self.evaluation_collector or self.collector,
            self.distribution,
            num_tasks=num_tasks,
            num_steps=num_steps,
            seed=self.config.seed,
            batch_size=self.config.meta_batch_size,
            split=split,
            observer=self.observer if split == "test" else None,
        )

    def _require_progress(self) -> None:
        if len(self._undone) >= self.config.max_nonfinite:
            raise NonFiniteError(
                f"{len(self._undone)} updates in a row were undone, the last {self._undone[-1]}; lower the "
                "step sizes, or look for the cause in the run folder's nonfinite/ (metarl.core.nonfinite.reproduce)"
            )

    def _out_of_time(self, elapsed: float, done: int) -> bool:
        """Whether one more iteration, after `done` in `elapsed` seconds, would end beyond `max_minutes`."""
        limit = self.config.max_minutes
        return limit is not None and elapsed * (1.0 + 1.0 / done) > 60.0 * limit
