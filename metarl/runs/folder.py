"""A run's folder while it is trained in: one process has it, records, checkpoints, which of them stay."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from metarl.core.errors import InputError, RunError
from metarl.core.evaluation import AdaptationCurve
from metarl.core.files import made_folder, remove_unfinished, shown, write_error
from metarl.core.learner import Learner
from metarl.core.trainer import Callback, Progressed, Trainer, curve_scalars, own_steps
from metarl.report import plots
from metarl.rl.routes import paths_of, paths_to_json
from metarl.runs import checkpoint
from metarl.runs.config import SPACES, RunConfig, path_settings, resume_command, to_dict
from metarl.runs.locks import locked_folder
from metarl.runs.tracking import Tracker, flatten, read_metrics, read_rows_before

VALIDATION = "meta_validation/score"

_logger = logging.getLogger(__name__)


@contextlib.contextmanager
def new_run_dir(config: RunConfig, start: Path = Path()) -> Iterator[Path]:
    """Makes runs/<task>-<agent>-<date>-<time>-<seed> in `start`, with a number behind it if that exists.

    Nobody else gets the same folder; what is still empty of it at the end is gone again.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S")
    name = f"{config.task_name}-{config.agent_name}-{stamp}-seed{config.trainer.seed}".replace(":", ".")
    with contextlib.ExitStack() as made:
        for number in range(1000):
            path = start / "runs" / (name if number == 0 else f"{name}-{number}")
            try:
                made.enter_context(made_folder(path, exist_ok=False))
            except FileExistsError:
                continue
            except OSError as error:
                raise write_error(f"run_dir = {str(shown(path))!r}: cannot be made", error) from None
            yield path
            return
    raise InputError(f"run_dir = 'runs/{name}': cannot be made: it and 999 more like it are there; use --run-dir")


@contextlib.contextmanager
def claimed(run_dir: Path) -> Iterator[None]:
    """Makes the folder and keeps it for this process, free of what a killed one left unfinished.

    Raises:
        InputError: it cannot be made, or another process has it.
        WriteError: the disk is full.
    """
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(made_folder(run_dir))
            held.enter_context(locked_folder(run_dir))
        except OSError as error:
            raise write_error(f"run_dir = {str(shown(run_dir))!r}: cannot be made", error) from None
        remove_unfinished(run_dir)
        remove_unfinished(run_dir / "checkpoints")
        yield


def decisive_settings(config: RunConfig) -> dict[str, Any]:
    """The settings that decide the results, by dotted name; paths of data are not among them."""
    names = ("task_name", "agent_name", "trainer.seed", "trainer.meta_batch_size")
    tables = {"task": config.task, "agent": config.agent}
    paths = {f"{table}.{name}" for table, part in tables.items() for name in path_settings(type(part))}
    settings = flatten(to_dict(config)).items()
    return {
        key: value
        for key, value in settings
        if key in names or (key not in paths and key.startswith(("task.", "agent.")))
    }


def best_iteration(run_dir: Path, learner: Learner[Any, Any, Any]) -> int | None:
    """The iteration with the best score on validation tasks, among those with a checkpoint.

    In a run without validation scores, the score on test tasks counts instead. Among equal scores, the earliest wins.
    None without an evaluation.
    """
    return _best(scores_by_iteration(read_metrics(run_dir), learner), checkpoint.list_checkpoints(run_dir))


def scores_by_iteration(rows: Sequence[Mapping[str, Any]], learner: Learner[Any, Any, Any]) -> dict[int, float]:
    """The score of each evaluated iteration that `best_iteration` compares; higher is better."""
    validated = any(VALIDATION in row for row in rows)
    scores: dict[int, float] = {}
    for row in rows:
        numbers = [key.removeprefix("meta_test/step_") for key in row if key.startswith("meta_test/step_")]
        tested = [int(number) for number in numbers if number.isdecimal()]
        steps = own_steps(learner, max(tested, default=0))
        score = row.get(VALIDATION if validated else f"meta_test/step_{steps}")
        if score is not None and math.isfinite(score):
            scores[row["iteration"]] = -score if learner.score_name == "mse" else score
    return scores


def _evaluated_part(row: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a row that `scores_by_iteration` reads, kept in memory; empty without an evaluation."""
    scores = {tag: value for tag, value in row.items() if tag == VALIDATION or tag.startswith("meta_test/step_")}
    return {"iteration": row["iteration"], **scores} if scores else {}


def _best(scores: Mapping[int, float], candidates: Collection[int]) -> int | None:
    among = [iteration for iteration in scores if iteration in candidates]
    return max(among, key=lambda iteration: (scores[iteration], -iteration), default=None)


def what_is_left(run_dir: Path) -> str:
    """From which checkpoint a run that ended can go on, in words."""
    try:
        newest = checkpoint.latest(run_dir).iteration
        command = resume_command(run_dir)
    except InputError:
        return "no checkpoint was saved before"
    folder = checkpoint.list_checkpoints(run_dir)[newest]
    return f"the last good checkpoint is {shown(folder)}; {command} goes on from it"


class RunFolder(Callback):
    """Keeps a run's folder: config, metrics, TensorBoard events, checkpoints.

    Checkpoints are saved every `checkpoint_every` iterations, before each evaluation, and at the end. The newest
    `keep_last` and the best one are kept. After a failed write, nothing more is written.
    """

    def __init__(self, run_dir: Path, config: RunConfig) -> None:
        self._run_dir = run_dir
        self._config = config
        self._plain = to_dict(config)
        self._tracker: Tracker | None = None
        self._logged = self._saved = 0
        self._evaluated: dict[int, dict[str, Any]] = {}

    def on_start(self, trainer: Trainer) -> None:
        self._saved = trainer.iteration
        start = trainer.iteration + 1 if trainer.iteration else 0
        rows, wrong = read_rows_before(self._run_dir, start)
        if wrong:
            shown = "; ".join([*wrong[:3], *wrong[3:][-1:]])
            _logger.warning("%s: %s; going on", self._run_dir / "metrics.jsonl", shown)
        self._evaluated = {row["iteration"]: part for row in rows if (part := _evaluated_part(row))}
        due = trainer.iteration > 0 and trainer.evaluation_follows
        trainer.evaluation_missing = due and trainer.iteration not in self._evaluated
        self._tracker = Tracker(
            self._run_dir,
            config=self._plain if trainer.space_notes is None else {**self._plain, SPACES: list(trainer.space_notes)},
            num_adaptation_steps=trainer.learner.num_adaptation_steps,
            num_evaluation_steps=trainer.evaluation.num_adaptation_steps,
            start_iteration=start,
            evaluated_again=trainer.ends or trainer.evaluation_missing,
        )

    def on_iteration(self, trainer: Trainer, progressed: Progressed) -> None:
        iteration = progressed.iteration
        with self._recording() as tracker:
            tracker.log(iteration, progressed.scalars, env_steps=progressed.env_steps, wall_s=progressed.wall_s)
            self._logged = iteration
            if iteration % self._config.trainer.checkpoint_every == 0 or trainer.evaluation_follows:
                self._save(trainer, tracker)

    def on_evaluation(self, trainer: Trainer, curve: AdaptationCurve) -> None:
        with self._recording() as tracker:
            figure = plots.adaptation_figure(curve.to_json())
            tracker.figure("meta_test/adaptation_curve", figure, trainer.iteration)
            if paths := paths_of(trainer.observer):
                figure = plots.paths_figure(paths_to_json(paths, unit=curve.unit))
                tracker.figure("meta_test/paths", figure, trainer.iteration)
            validated = {} if trainer.validation is None else {VALIDATION: trainer.validation}
            scalars = curve_scalars(curve) | validated
            tracker.evaluation(trainer.iteration, scalars, env_steps=trainer.env_steps, wall_s=trainer.wall_s)
            self._evaluated[trainer.iteration] = _evaluated_part({"iteration": trainer.iteration, **scalars})
            if self._saved == trainer.iteration:
                self._prune(trainer)

    def on_end(self, trainer: Trainer) -> None:
        if self._tracker is None:
            return
        with self._recording() as tracker:
            if self._saved < self._logged == trainer.iteration:  # one that broke off is done again, not saved
                self._save(trainer, tracker)
            if trainer.curve is not None:
                # Tags of their own: the last point of the test curves is recorded already.
                scalars = curve_scalars(trainer.curve)
                scores = {tag: value for tag, value in scalars.items() if tag.startswith("meta_test/")}
                results = {tag.replace("meta_test", "hparam"): value for tag, value in scores.items()}
                tracker.hparams(flatten(self._plain), results)
            tracker.close()

    @contextlib.contextmanager
    def _recording(self) -> Iterator[Tracker]:
        assert self._tracker is not None
        tracker = self._tracker
        try:
            yield tracker
        except (InputError, RunError):
            self._tracker = None
            tracker.close()
            raise

    def _save(self, trainer: Trainer, tracker: Tracker) -> None:
        if not self._run_dir.is_dir():  # made again, it would have checkpoints and no settings
            raise RunError(f"{shown(self._run_dir)}: was moved or deleted while the run wrote to it")
        tracker.sync()  # rows first: a checkpoint must not lack the rows of its iterations
        checkpoint.save(
            self._run_dir,
            trainer.iteration,
            state=trainer.learner.state_dict(),
            parameters=trainer.learner.parameters,
            config=decisive_settings(self._config),
            extra={"env_steps": trainer.env_steps, "wall_s": trainer.wall_s},
        )
        self._saved = trainer.iteration
        self._prune(trainer)

    def _prune(self, trainer: Trainer) -> None:
        scores = scores_by_iteration([*self._evaluated.values()], trainer.learner)
        best = _best(scores, checkpoint.list_checkpoints(self._run_dir))
        checkpoint.prune(self._run_dir, self._config.trainer.keep_last, newest=trainer.iteration, keep=[best])
