"""Loads trained runs."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from metarl.core.errors import one_line, printable, raised, require
from metarl.core.learner import AnyLearner
from metarl.core.settings import unknown_setting
from metarl.core.tags import VALIDATION
from metarl.core.trainer import Trainer
from metarl.fewshot.base.examples import ExampleCollector
from metarl.rl.rollout import RolloutCollector
from metarl.runs import checkpoint
from metarl.runs.best import best_iteration
from metarl.runs.build import build, collectors_of, distribution_of, observer_of
from metarl.runs.config import SPACES, RunConfig, decisive_settings, load_config, path_settings, read_saved
from metarl.runs.other_tasks import Target, require_same_spaces
from metarl.runs.tracking import read_metrics

_logger = logging.getLogger(__name__)


def restore(trainer: Trainer, run_dir: Path, *, config: RunConfig, which: str | int = "latest") -> None:
    """Loads a checkpoint of `run_dir` into `trainer`.

    Args:
        trainer: as `build` made it.
        run_dir: the run folder.
        config: the run's. A checkpoint with other settings is not used.
        which: "latest", the newest checkpoint that can be used, with a warning about newer ones that cannot; "best",
            the one that `best_iteration` chooses; or an iteration.

    Raises:
        InputError: no such checkpoint, or it is damaged or of another learner.
    """
    own = trainer.learner.state_dict()

    def use(folder: Path, found: checkpoint.Checkpoint) -> None:
        try:
            if reason := misfit(found.state, own):
                raise _of_another_learner(folder, reason)
            trainer.learner.load_state_dict(found.state)
        except checkpoint.CheckpointError:
            raise
        except Exception as error:  # the learner may be foreign code, and so may the file
            raise _of_another_learner(folder, raised(error)) from error
        _require_counts(folder, found.manifest)

    chosen = _chosen(which, trainer.learner, run_dir, decisive_settings(config), use)
    extra = chosen.manifest["extra"]
    trainer.iteration = chosen.iteration
    trainer.env_steps = extra["env_steps"]
    trainer.wall_s = float(extra["wall_s"])
    _say_other_spaces(trainer, run_dir)


def load(
    run_dir: Path | str,
    *,
    checkpoint: str | int = "latest",
    trusted: bool = False,
    paths: Mapping[str, str] | None = None,
) -> AnyLearner:
    """The trained learner of a run folder, on the CPU.

    Args:
        run_dir: a folder that `metarl train` filled.
        checkpoint: "latest", "best" (by the score on validation tasks during training), or an iteration.
        trusted: import classes that the folder names as `module:Class`.
        paths: new places of the task's data, if it was moved: {"root": "new/place"}.

    Raises:
        InputError: the folder holds no run, or no such checkpoint.
    """
    return load_trainer(run_dir, checkpoint=checkpoint, trusted=trusted, paths=paths).learner


def load_trainer(
    run_dir: Path | str,
    *,
    checkpoint: str | int = "latest",
    trusted: bool = False,
    seed: int | None = None,
    on: Target | None = None,
    paths: Mapping[str, str] | None = None,
    **evaluation: Any,
) -> Trainer:
    """The trainer of a run folder, with the learner of a checkpoint, for evaluation on the CPU.

    Args:
        run_dir: a folder that `metarl train` filled.
        checkpoint: as in `load`.
        trusted: as in `load`.
        seed: of the evaluation; None = the run's.
        on: tasks to evaluate on instead of the run's.
        paths: as in `load`.
        **evaluation: settings of the evaluation, instead of the run's.

    Raises:
        InputError: as `load`; `paths` has an unknown name; or the tasks of `on` have other observations, actions,
            inputs or classes than the run's.
    """
    run_dir = Path(run_dir).absolute()  # an environment may change the working directory
    saved = load_config(run_dir, trusted=trusted, paths=paths)
    known = path_settings(type(saved.task))
    for name in paths or {}:
        if name not in known:
            raise unknown_setting(f"paths: {name}", name, known)
    config = replace(
        saved,
        trainer=replace(saved.trainer, device="cpu", seed=saved.trainer.seed if seed is None else seed),
        evaluation=replace(saved.evaluation, **{"every": 0, **evaluation}),  # nothing is trained between evaluations
    )
    trainer = build(config)
    restore(trainer, run_dir, config=saved, which=checkpoint)
    if on is not None:
        before = trainer.evaluation_collector
        assert isinstance(before, (RolloutCollector, ExampleCollector)), "as `build` made it"
        config = replace(config, task_name=on.name, task=on.task)
        trainer.distribution = distribution_of(config)
        there = collectors_of(config, trainer.distribution, trainer.learner.device)
        require_same_spaces(on, there[0].spaces, before.spaces)
        trainer.collector, trainer.evaluation_collector = there
        trainer.observer = observer_of(there[1])
    return trainer


def _chosen(
    which: str | int,
    learner: AnyLearner,
    run_dir: Path,
    settings: Mapping[str, object],
    use: Callable[[Path, checkpoint.Checkpoint], None],
) -> checkpoint.Checkpoint:
    """The checkpoint `which` (as in `restore`), after `use` accepted it."""
    if which == "latest":
        newest = checkpoint.latest(run_dir, config=settings, use=use)
        for reason in newest.skipped:
            _logger.warning("%s; going on from iteration %d", printable(reason), newest.iteration)
        return newest
    folders = {str(iteration): folder for iteration, folder in checkpoint.list_checkpoints(run_dir).items()}
    there = ", ".join(folders) or "none"
    if which == "best":
        best = best_iteration(run_dir, learner)
        require(best is not None, "checkpoint", which, f"one of {there}: none of them was evaluated (evaluation.every)")
        if not any(VALIDATION in row for row in read_metrics(run_dir)):
            _logger.warning(
                "%s: no validation scores, so iteration %s was chosen by its score on test tasks; the best of several "
                "test scores is too optimistic; --evaluation.every N in training measures validation scores",
                *(run_dir, best),
            )
        which = str(best)
    require(str(which) in folders, "checkpoint", which, f"latest, best or an iteration, one of {there}")
    found = checkpoint.load(folders[str(which)], config=settings)
    use(folders[str(which)], found)
    return found


def _say_other_spaces(trainer: Trainer, run_dir: Path) -> None:
    """Warns if actions and observations are now converted differently than in training."""
    saved, now = read_saved(run_dir).get(SPACES, []), list(trainer.space_notes or ())
    if saved != now:
        then, still = ("; ".join(notes) or "nothing changed" for notes in (saved, now))
        text = "%s: actions or observations are converted differently than in training. In training: %s. Now: %s"
        _logger.warning(text, run_dir, then, still)


def misfit(saved: object, own: object, name: str = "state") -> str | None:
    """Describes the first part of a saved state that has another type, shape or dtype than the learner's own state.

    Returns None if all parts fit. Parts that only one of the two states has are not compared.
    """
    if isinstance(own, Mapping) and isinstance(saved, Mapping):
        found = (misfit(saved[key], own[key], f"{name}.{key}") for key in own if key in saved)
        return next((reason for reason in found if reason is not None), None)
    there, here = _described(saved), _described(own)
    if own is None or there == here:
        return None
    return f"{one_line(name)} is {there}, the learner's is {here}"


def _require_counts(path: Path, manifest: checkpoint.Manifest) -> None:
    """Raises CheckpointError unless `manifest` has valid environment steps and seconds of the run so far."""
    extra = manifest.get("extra", {})
    steps, seconds = extra.get("env_steps"), extra.get("wall_s")
    counted = type(steps) is int and 0 <= steps < 2**63
    if not (counted and type(seconds) in (int, float) and 0.0 <= seconds < math.inf):
        raise checkpoint.CheckpointError(f"{path}: its manifest has no valid env_steps or wall_s: no run saved it")


def _of_another_learner(path: Path, reason: str) -> checkpoint.CheckpointError:
    other = "is of another learner, or of an older version of its task family"
    return checkpoint.CheckpointError(f"{path}: {other}: {reason}; train again")


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {value.dtype}"
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return "a number" if math.isfinite(value) else str(value)
    return f"a {type(value).__name__}"
