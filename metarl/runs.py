"""A run and its folder: build what a configuration describes, train it, report it, and load it again."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from metarl import checkpoint, plots, registry
from metarl.config import RunConfig, load_config, to_dict
from metarl.errors import InputError
from metarl.evaluation import AdaptationCurve, adaptation_controls
from metarl.files import write_atomically
from metarl.rollout import RolloutCollector
from metarl.seeds import Purpose, generator
from metarl.tracking import Tracker, flatten
from metarl.trainer import Callback, Progressed, Trainer, curve_scalars

MAX_CONTROL_TASKS = 5


def build(config: RunConfig, *, callbacks: tuple[Callback, ...] = ()) -> Trainer:
    """The trainer that `config` describes, ready to run.

    Raises:
        InputError: the device is not there, or the environments' spaces cannot be used.
    """
    device = select_device(config.trainer.device)
    agent = config.agent

    def collector_of(num_trajectories: int, min_live_steps: int | None = None) -> RolloutCollector:
        return RolloutCollector(
            config.task,
            num_trajectories=num_trajectories,
            min_live_steps=min_live_steps,
            num_threads=config.trainer.num_threads,
            device=device,
            act_device=device if config.trainer.act_device == "learner" else "cpu",
        )

    collector = collector_of(agent.num_trajectories)
    evaluation_collector = collector_of(
        config.evaluation.num_trajectories or agent.num_trajectories, config.evaluation.min_live_steps
    )
    seed = int(generator(config.trainer.seed, 0, Purpose.INITIALISE).integers(2**63))
    learner = registry.load_agent_for(type(config.task), config.task_name, config.agent_name)(
        agent, collector.spaces, generator=torch.Generator().manual_seed(seed)
    )
    return Trainer(
        learner=learner.to(device),
        collector=collector,
        distribution=config.task,
        config=config.trainer,
        evaluation=config.evaluation,
        callbacks=callbacks,
        evaluation_collector=evaluation_collector,
    )


def train(
    config: RunConfig, run_dir: Path, *, resume: bool = False, callbacks: tuple[Callback, ...] = ()
) -> dict[str, Any] | None:
    """Trains, evaluates and fills `run_dir`.

    Args:
        config: the run.
        run_dir: its folder, made if it does not exist.
        resume: go on from the newest valid checkpoint in `run_dir`.
        callbacks: called before the folder's own, which writes what they add to an iteration's scalars.

    Returns:
        What `adaptation.json` holds; None if the run was stopped before its evaluation.

    Raises:
        InputError: as `build` and `restore`; the folder cannot be made, or holds a run that is not to be resumed.
    """
    if not resume and checkpoint.list_checkpoints(run_dir):
        raise InputError(
            f"run_dir = {str(run_dir)!r}: holds a trained run; go on with --resume, or name another folder"
        )
    trainer = build(config)
    if resume:
        restore(trainer, run_dir)
    trainer.callbacks = (*callbacks, RunFolder(run_dir, config))
    curve = trainer.run()
    if curve is None:
        return None
    report = describe(trainer, curve, controls=config.evaluation.controls)
    write_report(report, run_dir)
    return report


def restore(trainer: Trainer, run_dir: Path) -> None:
    """Puts `trainer` where the newest valid checkpoint of `run_dir` was taken.

    Raises:
        InputError: there is no valid checkpoint, or it is of another learner.
    """
    newest = checkpoint.latest(run_dir)
    try:
        trainer.learner.load_state_dict(newest.state)
    except (KeyError, ValueError) as error:
        raise InputError(f"{run_dir}: the checkpoint is of another learner: {error}") from error
    trainer.iteration = newest.iteration
    trainer.env_steps = int(newest.manifest["extra"]["env_steps"])
    trainer.wall_s = float(newest.manifest["extra"]["wall_s"])


def load(run_dir: Path | str, *, trusted: bool = False) -> Any:
    """The trained learner of a run folder, from its newest valid checkpoint, on the CPU.

    Args:
        run_dir: a folder that `metarl train` filled.
        trusted: allow the folder's configuration to name code of its own (`module:Class`), which is imported.

    Raises:
        InputError: the folder holds no run, or no valid checkpoint.
    """
    return load_trainer(run_dir, trusted=trusted).learner


def load_trainer(run_dir: Path | str, *, trusted: bool = False, seed: int | None = None, **evaluation: Any) -> Trainer:
    """The trainer of a run folder with the learner of its newest valid checkpoint, for evaluation on the CPU.

    Args:
        run_dir: a folder that `metarl train` filled.
        trusted: as in `load`.
        seed: of the evaluation; None for the run's.
        **evaluation: settings of the evaluation that replace the run's.
    """
    config = load_config(Path(run_dir), trusted=trusted)
    config = replace(
        config,
        trainer=replace(config.trainer, device="cpu", seed=config.trainer.seed if seed is None else seed),
        evaluation=replace(config.evaluation, **evaluation),
    )
    trainer = build(config)
    restore(trainer, Path(run_dir))
    return trainer


def describe(trainer: Trainer, curve: AdaptationCurve, *, controls: bool) -> dict[str, Any]:
    """`curve` as JSON-ready data, with the controls on up to five test tasks."""
    report = curve.to_json()
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


def read_report(run_dir: Path) -> dict[str, Any]:
    """What `adaptation.json` holds.

    Raises:
        InputError: missing or damaged.
    """
    path = run_dir / "adaptation.json"
    try:
        report: dict[str, Any] = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path}: is damaged: {error}") from error
    return report


def write_json(value: Mapping[str, Any], path: Path) -> None:
    """Writes JSON so that `path` holds the old content or the whole new one.

    Raises:
        InputError: `path` cannot be written.
    """
    try:
        write_atomically(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error


def new_run_dir(config: RunConfig) -> Path:
    """runs/<task>-<agent>-<date>-<time>-<seed>, with a number behind it if that exists."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    name = f"{config.task_name}-{config.agent_name}-{stamp}-seed{config.trainer.seed}".replace(":", ".")
    candidates = (Path("runs") / (name if number == 0 else f"{name}-{number}") for number in range(1000))
    return next(path for path in candidates if not path.exists())


def select_device(name: str) -> torch.device:
    """The device called `name`; "auto" is CUDA where torch finds it."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        reason = "this torch is a CPU build" if torch.version.cuda is None else "torch finds no CUDA device"
        raise InputError(f"trainer.device = 'cuda': {reason}; use 'auto' or 'cpu'")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


class RunFolder(Callback):
    """Keeps a run's folder: config, metrics, TensorBoard events, checkpoints."""

    def __init__(self, run_dir: Path, config: RunConfig) -> None:
        self._run_dir = run_dir
        self._config = config
        self._plain = to_dict(config)
        self._tracker: Tracker | None = None
        self._logged = self._saved = 0
        self._final: dict[str, float] = {}

    def on_start(self, trainer: Trainer) -> None:
        try:
            self._run_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"run_dir = {str(self._run_dir)!r}: cannot be made: {error.strerror}") from error
        self._tracker = Tracker(
            self._run_dir,
            config=self._plain,
            num_adaptation_steps=trainer.learner.num_adaptation_steps,
            num_evaluation_steps=trainer.evaluation.num_adaptation_steps,
            start_iteration=trainer.iteration + 1 if trainer.iteration else 0,
        )

    def on_iteration(self, trainer: Trainer, progressed: Progressed) -> None:
        assert self._tracker is not None
        self._tracker.log(
            progressed.iteration, progressed.scalars, env_steps=progressed.env_steps, wall_s=progressed.wall_s
        )
        self._logged = progressed.iteration
        if progressed.iteration % self._config.trainer.checkpoint_every == 0:
            self._save(trainer)

    def on_evaluation(self, trainer: Trainer, curve: AdaptationCurve) -> None:
        assert self._tracker is not None
        self._tracker.figure("meta_test/adaptation_curve", plots.adaptation_figure(curve.to_json()), trainer.iteration)
        self._tracker.evaluation(trainer.iteration, curve_scalars(curve))
        self._final = curve_scalars(curve)

    def on_end(self, trainer: Trainer) -> None:
        if self._tracker is None:
            return
        if self._saved < self._logged == trainer.iteration:  # an iteration that broke off is done again, not saved
            self._save(trainer)
        if self._final:
            # Tags of their own: the last point of the test curves is recorded already.
            results = {tag.replace("meta_test", "hparam"): value for tag, value in self._final.items()}
            self._tracker.hparams(flatten(self._plain), results)
        self._tracker.close()

    def _save(self, trainer: Trainer) -> None:
        checkpoint.save(
            self._run_dir,
            trainer.iteration,
            state=trainer.learner.state_dict(),
            parameters=trainer.learner.parameters,
            config=self._plain,
            extra={"env_steps": trainer.env_steps, "wall_s": trainer.wall_s},
        )
        self._saved = trainer.iteration
