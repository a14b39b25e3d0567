"""A run and its folder: build what a configuration describes, train it, report it, and load it again."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from metarl import checkpoint, plots, registry
from metarl.allocation import keep_freed_memory
from metarl.capacity import require_capacity
from metarl.collect import ShuffledTasks
from metarl.config import SPACES, RunConfig, load_config, path_settings, read_saved, resume_command
from metarl.errors import InputError, printable, raised, require
from metarl.evaluation import AdaptationCurve, adaptation_controls, choose_step_scale, evaluate_baseline
from metarl.examples import ExampleCollector, ExampleTaskDistribution
from metarl.files import WriteError, parse_json, read_file, shown, write_atomically, writing
from metarl.fitting import of_another_learner, require_counts, require_fit
from metarl.gymnasium_tasks import TaskInObservation
from metarl.learner import Learner
from metarl.paths import paths_to_json
from metarl.rollout import RolloutCollector
from metarl.run_folder import VALIDATION, RunFolder, best_iteration, claimed, decisive_settings, what_is_left
from metarl.seeds import Purpose, generator
from metarl.tables import unknown_setting
from metarl.tasks import EnvTaskDistribution
from metarl.tracking import flatten, read_metrics
from metarl.trainer import Callback, Trainer
from metarl.transfer import Target, require_same_spaces

MAX_CONTROL_TASKS = 5

_logger = logging.getLogger(__name__)


def build(config: RunConfig, *, callbacks: tuple[Callback, ...] = ()) -> Trainer:
    """The trainer that `config` describes, ready to run.

    Raises:
        InputError: the device is not there, or the environments' spaces cannot be used.
    """
    require_capacity(config)
    device = select_device(config.trainer.device)
    keep_freed_memory()
    agent = config.agent
    if hasattr(agent, "check_trainer"):
        agent.check_trainer(config.trainer)
    distribution = _distribution(config)
    collector, evaluation_collector = _collectors(config, distribution, device)
    if isinstance(collector, RolloutCollector):
        require_capacity(config, observation_size=collector.spaces.observation_size)
    learner = _learner(config, collector.spaces)
    least = config.evaluation.min_live_steps
    own_memory = learner.unit == "trajectories"
    allowed = f"left out for {config.agent_name}: each of its trajectories has a memory of its own"
    require(least is None or not own_memory, "evaluation.min_live_steps", least, allowed)
    shuffled = getattr(agent, "shuffle_tasks", False) and isinstance(collector, RolloutCollector)
    return Trainer(
        learner=learner.to(device),
        collector=ShuffledTasks(collector, num_steps=learner.num_adaptation_steps) if shuffled else collector,
        distribution=distribution,
        config=config.trainer,
        evaluation=config.evaluation,
        callbacks=callbacks,
        evaluation_collector=evaluation_collector,
        space_notes=collector.space_notes if isinstance(collector, RolloutCollector) else None,
    )


def _distribution(config: RunConfig) -> Any:
    """The run's tasks, with the task in the observation for an agent that is told it."""
    told = getattr(_kind(config), "observes_task", False)
    return TaskInObservation(config.task, timeout=config.trainer.environment_timeout) if told else config.task


def _collectors(config: RunConfig, distribution: Any, device: torch.device) -> tuple[Any, Any]:
    """What brings the data of training, and that of evaluation or None where it is the same."""
    if not isinstance(distribution, EnvTaskDistribution):
        for name in ("num_trajectories", "min_live_steps"):
            value = getattr(config.evaluation, name)
            require(value is None, f"evaluation.{name}", value, f"left out: the tasks of {config.task_name} are given")
        acting = config.trainer.act_device
        allowed = f"left out: nothing acts in the tasks of {config.task_name}"
        require(acting == "cpu", "trainer.act_device", acting, allowed)
        return ExampleCollector(distribution, device=device), None

    def collector_of(num_trajectories: int, min_live_steps: int | None = None) -> RolloutCollector:
        return RolloutCollector(
            distribution,
            num_trajectories=num_trajectories,
            min_live_steps=min_live_steps,
            num_threads=config.trainer.num_threads,
            device=device,
            act_device=device if config.trainer.act_device == "learner" else "cpu",
            environment_timeout=config.trainer.environment_timeout,
        )

    own, evaluation = config.agent.num_trajectories, config.evaluation
    return collector_of(own), collector_of(evaluation.num_trajectories or own, evaluation.min_live_steps)


def _learner(config: RunConfig, spaces: Any) -> Any:
    """A new learner, its weights drawn by the run's seed."""
    seed = int(generator(config.trainer.seed, 0, Purpose.INITIALISE).integers(2**63))
    return _kind(config)(config.agent, spaces, generator=torch.Generator().manual_seed(seed))


def _kind(config: RunConfig) -> type[Any]:
    return registry.load_agent_for(type(config.task), config.task_name, config.agent_name)


def train(
    config: RunConfig, run_dir: Path, *, resume: bool = False, callbacks: tuple[Callback, ...] = ()
) -> dict[str, Any] | None:
    """Trains, evaluates and fills `run_dir`.

    No other process can train in `run_dir` meanwhile.

    Args:
        config: the run.
        run_dir: its folder, made if it does not exist.
        resume: go on from the newest valid checkpoint in `run_dir`.
        callbacks: called before the folder's own, which writes what they add to an iteration's scalars.

    Returns:
        What `adaptation.json` holds; None if the run was stopped before its evaluation.

    Raises:
        InputError: as `build` and `restore`; the folder cannot be made, is in use, or holds a run that is not to be
            resumed or was made with other settings.
        WriteError: the disk is full; says from which checkpoint the run can be resumed.
    """
    run_dir = run_dir.absolute()  # an environment may change the working directory
    with claimed(run_dir):
        if resume:
            _require_same_run(config, run_dir)
        elif checkpoint.list_checkpoints(run_dir):
            how = f"go on with {resume_command(run_dir)}, or name another folder"
            raise InputError(f"run_dir = {str(shown(run_dir))!r}: holds a trained run; {how}")
        trainer = build(config)
        if resume:
            restore(trainer, run_dir, config=config)
        trainer.callbacks = (*callbacks, RunFolder(run_dir, config))
        trainer.nonfinite_dir = run_dir / "nonfinite"
        try:
            curve = trainer.run()
            if curve is None:
                return None
            for callback in trainer.callbacks:
                callback.before_evaluation(trainer)
            report = describe(trainer, curve, controls=config.evaluation.controls)
            write_report(report, run_dir)
            if curve.paths:
                write_paths(paths_to_json(curve.paths, unit=curve.unit), run_dir)
        except WriteError as error:
            raise WriteError(f"{error}; {what_is_left(run_dir)}") from None
        return report


def restore(trainer: Trainer, run_dir: Path, *, config: RunConfig, which: str | int = "latest") -> None:
    """Puts `trainer` where a checkpoint of `run_dir` was taken.

    Args:
        trainer: as `build` made it.
        run_dir: the run folder.
        config: the run's; a checkpoint that was made with other settings is not used.
        which: "latest" for the newest that can be used, and a warning about newer ones that cannot; "best" for that
            of `best_iteration`; or an iteration.

    Raises:
        InputError: there is no such checkpoint, or it is damaged or of another learner.
    """
    own = trainer.learner.state_dict()

    def use(folder: Path, found: checkpoint.Checkpoint) -> None:
        try:
            require_fit(folder, found.state, own)
            trainer.learner.load_state_dict(found.state)
        except checkpoint.CheckpointError:
            raise
        except Exception as error:  # the learner may be foreign code, and so may the file
            raise of_another_learner(folder, raised(error)) from error
        require_counts(folder, found.manifest)

    chosen = _chosen(which, trainer.learner, run_dir, decisive_settings(config), use)
    extra = chosen.manifest["extra"]
    trainer.iteration = chosen.iteration
    trainer.env_steps = extra["env_steps"]
    trainer.wall_s = float(extra["wall_s"])
    _say_other_spaces(trainer, run_dir)


def _say_other_spaces(trainer: Trainer, run_dir: Path) -> None:
    """Warns if actions and observations are now converted differently than in training."""
    saved, now = read_saved(run_dir).get(SPACES, []), list(trainer.space_notes or ())
    if saved != now:
        then, still = ("; ".join(notes) or "nothing changed" for notes in (saved, now))
        text = "%s: actions or observations are converted differently than in training. In training: %s. Now: %s"
        _logger.warning(text, run_dir, then, still)


def load(
    run_dir: Path | str,
    *,
    checkpoint: str | int = "latest",
    trusted: bool = False,
    paths: Mapping[str, str] | None = None,
) -> Any:
    """The trained learner of a run folder, on the CPU.

    Args:
        run_dir: a folder that `metarl train` filled.
        checkpoint: "latest" valid one, the "best" on validation tasks during training, or an iteration.
        trusted: allow the folder's configuration to name code of its own (`module:Class`), which is imported.
        paths: where the task's data lies now, if it was moved: {"root": "new/place"}.

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
    """The trainer of a run folder with the learner of one of its checkpoints, for evaluation on the CPU.

    Args:
        run_dir: a folder that `metarl train` filled.
        checkpoint: as in `load`.
        trusted: as in `load`.
        seed: of the evaluation; None for the run's.
        on: other tasks than the run's, for evaluation.
        paths: as in `load`.
        **evaluation: settings of the evaluation that replace the run's.

    Raises:
        InputError: as `load`; the tasks of `on` have other observations, actions, inputs or classes than the run's.
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
        before = trainer.evaluation_collector or trainer.collector
        config = replace(config, task_name=on.name, task=on.task)
        trainer.distribution = _distribution(config)
        there = _collectors(config, trainer.distribution, trainer.learner.device)
        require_same_spaces(on, there[0].spaces, getattr(before, "spaces", None))
        trainer.collector, trainer.evaluation_collector = there
    return trainer


def choose_step_size(trainer: Trainer) -> dict[str, Any]:
    """Gives `trainer` its learner with the step size that is best on validation tasks.

    Returns:
        JSON-ready: `step_scale`, the factor on the learner's own, and `validation`, the mean score with every factor.

    Raises:
        InputError: the learner has no step size that could be chosen.
    """
    learner, settings = trainer.learner, trainer.evaluation
    steps = settings.num_adaptation_steps
    fits = getattr(learner, "has_step_size", False) and steps > 0
    require(fits, "--choose-step-size", "given", "for RL agents that take gradient steps, and for some steps")
    collector = trainer.evaluation_collector or trainer.collector
    trainer.learner, scores = choose_step_scale(
        learner,
        collector,
        trainer.distribution,
        num_tasks=settings.num_tasks,
        num_steps=steps,
        seed=trainer.config.seed,
        batch_size=trainer.config.meta_batch_size,
    )
    best = max(scores, key=lambda factor: scores[factor])
    return {"step_scale": best, "validation": {str(factor): score for factor, score in scores.items()}}


def describe(trainer: Trainer, curve: AdaptationCurve, *, controls: bool) -> dict[str, Any]:
    """`curve` as JSON-ready data, with the controls on up to five test tasks, and what few-shot scores stand beside."""
    report = curve.to_json()
    report["settings"] = dict(getattr(trainer.learner, "settings", {}))
    if isinstance(trainer.distribution, ExampleTaskDistribution):
        report["protocol"] = trainer.distribution.caption
        baseline = evaluate_baseline(trainer.distribution, curve.tasks, seed=trainer.config.seed)
        if baseline is not None:
            report["baseline"] = baseline
    if controls and trainer.learner.num_adaptation_steps > 0:
        tasks = list(curve.tasks)[:MAX_CONTROL_TASKS]
        report["cross_adaptation"] = adaptation_controls(
            trainer.learner,
            trainer.evaluation_collector or trainer.collector,
            tasks,
            num_replicates=max(1, trainer.evaluation.num_tasks // len(tasks)),
            seed=trainer.config.seed,
        )
    return report


def write_report(report: Mapping[str, Any], run_dir: Path) -> None:
    """Writes `adaptation.json` and `adaptation.png`."""
    write_json(report, run_dir / "adaptation.json")
    plots.save_figure(plots.adaptation_figure(report), run_dir / "adaptation.png")


def write_paths(paths: Mapping[str, Any], run_dir: Path) -> None:
    """Writes `paths.json` and `paths.png`."""
    write_json(paths, run_dir / "paths.json", indent=None)
    plots.save_figure(plots.paths_figure(paths), run_dir / "paths.png")


def read_report(run_dir: Path, name: str = "adaptation.json") -> dict[str, Any]:
    """What `adaptation.json` holds, or another of the run's JSON files.

    Raises:
        InputError: missing or damaged.
    """
    path = run_dir / name
    try:
        report: dict[str, Any] = parse_json(read_file(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path}: is damaged: {error}") from error
    if not isinstance(report, dict):
        raise InputError(f"{path}: is damaged: holds no report")
    return report


def write_json(value: Mapping[str, Any], path: Path, *, indent: int | None = 1) -> None:
    """Writes JSON so that `path` holds the old content or the whole new one.

    Raises:
        InputError: `path` cannot be written.
        WriteError: the disk is full.
    """
    with writing(path):
        write_atomically(path, (json.dumps(value, indent=indent, allow_nan=False) + "\n").encode())


def _require_same_run(config: RunConfig, run_dir: Path) -> None:
    saved = flatten(read_saved(run_dir))
    for setting, value in decisive_settings(config).items():
        if setting in saved:
            allowed = f"{saved[setting]!r}, as in the run {shown(run_dir)}: its results depend on it"
            require(value == saved[setting], setting, value, allowed)


def _chosen(
    which: str | int,
    learner: Learner[Any, Any, Any],
    run_dir: Path,
    settings: Mapping[str, Any],
    use: Callable[[Path, checkpoint.Checkpoint], None],
) -> checkpoint.Checkpoint:
    """The checkpoint that `restore` was asked for, after `use` took it."""
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


def select_device(name: str) -> torch.device:
    """The device called `name`; "auto" is CUDA where torch finds it. There, cuDNN's convolutions and recurrent networks
    keep all bits of float32 from now on, as matrix products do: TensorFloat-32, torch's default for them, turned MAML's
    meta-gradient on images of noise by a fifth of its length."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        reason = "this torch is a CPU build" if torch.version.cuda is None else "torch finds no CUDA device"
        raise InputError(f"trainer.device = 'cuda': {reason}; use 'auto' or 'cpu'")
    if not available or name == "cpu":
        return torch.device("cpu")
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda")
