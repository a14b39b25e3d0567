"""Configuration of a run: frozen dataclasses filled from a preset, a TOML file and the command line, in this order.

Before the preset come the `defaults` that a task family or a learner's `Config` may have: tables as in a preset.

Settings files and presets are TOML with the tables [task], [agent], [trainer] and [evaluation]; the command line spells
the same settings `--agent.inner-lr 0.1`. What a run used in the end stands in its `config.json`.
"""

from __future__ import annotations

import dataclasses
import math
import shlex
import typing
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from tyro.conf import arg

from metarl import registry
from metarl.errors import InputError, require
from metarl.files import LARGEST_TEXT, parse_json, read_file, shown
from metarl.tables import TABLES, convert, unknown_setting
from metarl.tables import from_table as from_table
from metarl.tables import read_toml as read_toml

# Bounds that nobody reaches but by a slip: what lies beyond them would only fail later, for want of memory.
MOST = 10**6
MOST_THREADS = 4096

SPACES = "spaces"
"""The entry of `config.json` that records how actions and observations are converted. It is not a setting."""


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
        _require_one_of("trainer.device", self.device, ("auto", "cpu", "cuda"))
        _require_one_of("trainer.act_device", self.act_device, ("cpu", "learner"))
        _require_int("trainer.num_threads", self.num_threads, low=0, high=MOST_THREADS)
        _require_int("trainer.checkpoint_every", self.checkpoint_every, low=1)
        _require_int("trainer.keep_last", self.keep_last, low=1)
        _require_int("trainer.max_nonfinite", self.max_nonfinite, low=1)
        limit = self.environment_timeout
        require(limit is None or 0.0 < limit < math.inf, "trainer.environment_timeout", limit, "a finite number > 0")


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


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run's results.

    Attributes:
        task_name: registered name, or module:Class.
        agent_name: registered name, or module:Class.
        preset: the preset the settings started from, or None.
        task: the task distribution.
        agent: the agent's `Config`.
        trainer: settings of the meta-training loop.
        evaluation: settings of the evaluation.
    """

    task_name: str
    agent_name: str
    preset: str | None
    task: Any
    agent: Any
    trainer: TrainerConfig
    evaluation: EvaluationConfig


def resolve(
    task_name: str, agent_name: str, *, preset: str | None = None, config_file: Path | None = None
) -> RunConfig:
    """The configuration before any command-line flag: a file's settings over a preset's over the defaults.

    Args:
        task_name: registered name, or module:Class.
        agent_name: registered name, or module:Class.
        preset: a preset of (task, agent); None = "default" where there is one.
        config_file: TOML file.

    Raises:
        InputError: an unknown name or setting, a wrong type, a value out of range, an unreadable file.
    """
    task_class = registry.load_task(task_name)
    registry.kind_of_agent(task_class, task_name, agent_name)
    file_tables = {} if config_file is None else read_toml(config_file)
    if preset is None and "default" in registry.presets(task_name, agent_name):
        preset = "default"
    tables = {} if preset is None else registry.preset_table(task_name, agent_name, preset)
    agent_class = registry.load_agent_for(task_class, task_name, agent_name)  # last: importing it takes seconds
    if agent_name in registry.BASELINES:  # whose presets are another agent's
        tables = tables or registry.baseline_changes(agent_name)
        known = {field.name for field in dataclasses.fields(agent_class.Config) if field.init}
        tables = {**tables, "agent": {key: tables["agent"][key] for key in known & tables.get("agent", {}).keys()}}
    classes = (task_class, agent_class.Config)
    layers = [*(getattr(kind, "defaults", {}) for kind in classes), tables]
    config = _build(task_name, agent_name, preset, classes, _merged(layers))
    if config_file is None:
        return config
    try:
        parts = {name: from_table(type(base), file_tables.get(name, {}), name, base) for name, base in parts_of(config)}
    except InputError as error:
        raise InputError(f"{config_file}: {error}") from error
    return dataclasses.replace(config, **parts)


def to_dict(config: RunConfig) -> dict[str, Any]:
    """`config` as JSON-ready plain data."""
    plain: dict[str, Any] = {
        "task_name": config.task_name,
        "agent_name": config.agent_name,
        "preset": config.preset,
    }
    for name, part in parts_of(config):
        settings = dataclasses.fields(part) if dataclasses.is_dataclass(part) else ()
        values = {field.name: getattr(part, field.name) for field in settings if field.init}
        plain[name] = {key: _plain(value, f"{name}.{key}") for key, value in values.items()}
    return plain


def from_dict(plain: Mapping[str, Any], *, trusted: bool = False, paths: Mapping[str, str] | None = None) -> RunConfig:
    """The inverse of `to_dict`.

    Args:
        plain: what `to_dict` returned, perhaps read from a run folder that came from elsewhere.
        trusted: also accept names of the form module:Class, which import code.
        paths: new values of the task's path settings, if its data was moved; other names are ignored.

    Raises:
        InputError: as `from_table`; or a name that is not registered while `trusted` is false.
    """
    known = {field.name for field in dataclasses.fields(RunConfig)} | {SPACES}
    for key in plain:
        if key not in known:
            raise unknown_setting(key, key, known)
    for key in ("task_name", "agent_name", *TABLES):
        if key not in plain:
            raise InputError(f"{key}: missing from the saved configuration")
    task_name: str = convert(plain["task_name"], str, "task_name")
    agent_name: str = convert(plain["agent_name"], str, "agent_name")
    allowed = "a registered name, or module:Class with --trust (from Python, trusted=True), which imports code"
    require(trusted or task_name in registry.names("task"), "task_name", task_name, allowed)
    agents = {*registry.names("agent"), *registry.names("learner")}
    require(trusted or agent_name in agents, "agent_name", agent_name, allowed)
    encoder = own_encoder(plain)
    allowed = "one of MetaRL's, or module:Class with --trust (from Python, trusted=True), which imports code"
    require(trusted or encoder is None, "agent.encoder", encoder, allowed)
    task_class = registry.load_task(task_name)
    agent_class = registry.load_agent_for(task_class, task_name, agent_name)
    preset = convert(plain.get("preset"), str | None, "preset")
    convert(plain.get(SPACES, []), tuple[str, ...], SPACES)
    tables = {name: plain[name] for name in TABLES}
    moved = {name: path for name, path in (paths or {}).items() if name in path_settings(task_class)}
    if moved and isinstance(tables["task"], Mapping):
        tables["task"] = {**tables["task"], **moved}
    return _build(task_name, agent_name, preset, (task_class, agent_class.Config), tables)


def load_config(run_dir: Path, *, trusted: bool = False, paths: Mapping[str, str] | None = None) -> RunConfig:
    """The configuration that a run folder was trained with.

    Args:
        run_dir: a folder with `config.json`.
        trusted: as for `from_dict`.
        paths: as for `from_dict`.

    Raises:
        InputError: not a run folder, or as `from_dict`.
    """
    return from_dict(read_saved(Path(run_dir)), trusted=trusted, paths=paths)


def path_settings(cls: type[Any]) -> set[str]:
    """The settings of a dataclass that are paths: they say where files lie, and results do not depend on them."""
    hints = typing.get_type_hints(cls) if dataclasses.is_dataclass(cls) else {}
    return {name for name, hint in hints.items() if Path in (hint, *typing.get_args(hint))}


def _merged(layers: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Tables of settings, later ones over earlier ones."""
    return {name: {key: value for layer in layers for key, value in layer.get(name, {}).items()} for name in TABLES}


def _build(
    task_name: str,
    agent_name: str,
    preset: str | None,
    classes: tuple[type[Any], type[Any]],
    tables: Mapping[str, Mapping[str, Any]],
) -> RunConfig:
    parts: list[tuple[str, type[Any]]] = list(zip(TABLES, (*classes, TrainerConfig, EvaluationConfig), strict=True))
    built = {name: from_table(cls, tables.get(name, {}), name) for name, cls in parts}
    return RunConfig(task_name, agent_name, preset, **built)


def parts_of(config: RunConfig) -> list[tuple[str, Any]]:
    """The four groups of settings with the names of their tables."""
    return [(name, getattr(config, name)) for name in TABLES]


def _plain(value: Any, field: str) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(item, field) for item in value]
    if isinstance(value, Path):
        return str(value.absolute())  # so that the run can be resumed from any working directory
    value = value.item() if isinstance(value, np.generic) else value
    fits = value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value))
    require(fits, field, value, "a finite number, a text, true, false, None, a path or a list of these, to be saved")
    return value


def _require_int(field: str, value: object, *, low: int, high: int | None = None) -> None:
    fits = isinstance(value, int) and not isinstance(value, bool) and low <= value and (high is None or value <= high)
    require(fits, field, value, f"an integer >= {low}" if high is None else f"an integer from {low} to {high}")


def _require_one_of(field: str, value: object, options: tuple[str, ...]) -> None:
    require(value in options, field, value, "one of " + ", ".join(repr(option) for option in options))


def read_saved(run_dir: Path) -> dict[str, Any]:
    """What `config.json` of a run folder holds, unchecked.

    Raises:
        InputError: not a run folder, or a damaged file.
    """
    path = run_dir / "config.json"
    if run_dir.is_file():
        what = "a zip file, such as Stable-Baselines3 saves," if zipfile.is_zipfile(run_dir) else "a file"
        raise InputError(f"{run_dir}: is {what} and not a run folder; only those that metarl train filled are read")
    try:
        plain = parse_json(read_file(path, largest=LARGEST_TEXT))
    except OSError as error:
        raise InputError(f"{run_dir}: is not a run folder: config.json: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path}: is damaged: {error}") from error
    if not isinstance(plain, dict):
        raise InputError(f"{path}: is damaged: holds no configuration")
    return plain


def own_encoder(plain: Mapping[str, Any]) -> str | None:
    """The user's own encoder, as module:Class, in a saved configuration; None if there is none."""
    agent = plain.get("agent")
    encoder = str(agent.get("encoder", "")) if isinstance(agent, Mapping) else ""
    return encoder if ":" in encoder else None


def resume_command(run_dir: Path) -> str:
    """The shell command that resumes the run in `run_dir`.

    It names the user's own classes, since code named in a run folder is not imported.
    """
    plain = read_saved(run_dir)
    task, agent = (str(plain.get(f"{kind}_name", "")) for kind in ("task", "agent"))
    own = [*([task] if ":" in task else []), *(["--agent", agent] if ":" in agent else [])]
    encoder = own_encoder(plain)
    flags = [] if encoder is None else ["--agent.encoder", encoder]
    return shlex.join(["metarl", "train", *own, "--resume", str(shown(run_dir)), *flags])
