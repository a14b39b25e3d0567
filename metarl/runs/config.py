"""Configuration of a run: frozen dataclasses filled from a preset, a TOML file and the command line, in this order.

The `defaults` of the task family and of the learner's `Traits` are applied before the preset. They are tables as in a
preset.

Settings files and presets are TOML with the tables [task], [agent], [trainer] and [evaluation]. On the command line, a
setting is written as `--agent.inner-lr 0.1`. The final configuration of a run is saved in its `config.json`.
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
from typing import TYPE_CHECKING, Any

import numpy as np

from metarl.core.config import EvaluationConfig, TrainerConfig
from metarl.core.errors import InputError, require
from metarl.core.files import LARGEST_TEXT, Json, read_json_object, shown
from metarl.core.settings import TABLES, convert, fields_of, from_table, read_toml, unknown_setting
from metarl.core.tasks import AnyDistribution
from metarl.runs import registry

if TYPE_CHECKING:  # it imports torch
    from metarl.core.learner import LearnerClass, Tables

SPACES = "spaces"
"""The entry of `config.json` that records how actions and observations are converted. It is not a setting."""


@dataclass(frozen=True)
class RunConfig:
    """Everything that the results of a run depend on.

    Attributes:
        task_name: registered name, or module:Class.
        agent_name: registered name, or module:Class.
        preset: the preset the settings started from, or None.
        learner_class: the class called `agent_name`.
        task: the task distribution.
        agent: the agent's `Config`.
        trainer: settings of the meta-training loop.
        evaluation: settings of the evaluation.
    """

    task_name: str
    agent_name: str
    preset: str | None
    learner_class: LearnerClass
    task: AnyDistribution
    agent: Any
    trainer: TrainerConfig
    evaluation: EvaluationConfig


def resolve(
    task_name: str, agent_name: str, *, preset: str | None = None, config_file: Path | None = None
) -> RunConfig:
    """The configuration before any command-line flag: a file overrides the preset, which overrides the defaults.

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
    if registry.base_of(agent_name) is not None:  # the base's presets may have settings that the baseline lacks
        tables = tables or registry.baseline_changes(agent_name)
        known = fields_of(agent_class.Config).keys()
        tables = {**tables, "agent": {key: tables["agent"][key] for key in known & tables.get("agent", {}).keys()}}
    layers = [task_class.defaults, agent_class.traits.defaults, tables]
    config = _build(task_name, agent_name, preset, task_class, agent_class, _merged(layers))
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
        plain[name] = {key: _plain(getattr(part, key), f"{name}.{key}") for key in fields_of(part)}
    return plain


def from_dict(plain: Mapping[str, Any], *, trusted: bool = False, paths: Mapping[str, str] | None = None) -> RunConfig:
    """The inverse of `to_dict`.

    Args:
        plain: a result of `to_dict`. It may come from a run folder of someone else.
        trusted: also accept names of the form module:Class, which import code.
        paths: new values of the task's path settings, if its data was moved; other names are ignored.

    Raises:
        InputError: as `from_table`; or a name that is not registered while `trusted` is false.
    """
    known = {"task_name", "agent_name", "preset", *TABLES, SPACES}
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
    return _build(task_name, agent_name, preset, task_class, agent_class, tables)


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


def path_settings(cls: type) -> set[str]:
    """The settings of a dataclass that are paths. Results do not depend on them, so data may be moved."""
    settings = fields_of(cls)
    hints = typing.get_type_hints(cls) if settings else {}
    return {name for name in settings if Path in (hints[name], *typing.get_args(hints[name]))}


def decisive_settings(config: RunConfig) -> dict[str, object]:
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


def flatten(config: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested settings as one level of dotted names: {"agent": {"inner_lr": 0.1}} -> {"agent.inner_lr": 0.1}."""
    flat: dict[str, object] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def _merged(layers: Sequence[Tables]) -> Tables:
    """Tables of settings, later ones over earlier ones."""
    return {name: {key: value for layer in layers for key, value in layer.get(name, {}).items()} for name in TABLES}


def _build(
    task_name: str,
    agent_name: str,
    preset: str | None,
    task_class: type[AnyDistribution],
    agent_class: LearnerClass,
    tables: Tables,
) -> RunConfig:
    settings: tuple[type[Any], ...] = (task_class, agent_class.Config, TrainerConfig, EvaluationConfig)
    built = {name: from_table(cls, tables.get(name, {}), name) for name, cls in zip(TABLES, settings, strict=True)}
    return RunConfig(task_name, agent_name, preset, agent_class, **built)


def parts_of(config: RunConfig) -> list[tuple[str, Any]]:
    """The four groups of settings with the names of their tables."""
    return [(name, getattr(config, name)) for name in TABLES]


def _plain(value: Any, field: str) -> Json:
    if isinstance(value, (list, tuple)):
        return [_plain(item, field) for item in value]
    if isinstance(value, Path):
        return str(value.absolute())  # so that the run can be resumed from any working directory
    plain: Json = value.item() if isinstance(value, np.generic) else value
    fits = plain is None or isinstance(plain, (bool, int, str)) or (isinstance(plain, float) and math.isfinite(plain))
    require(fits, field, plain, "a finite number, a text, true, false, None, a path or a list of these, to be saved")
    return plain


def read_saved(run_dir: Path) -> dict[str, Any]:
    """The content of a run folder's `config.json`, unchecked.

    Raises:
        InputError: not a run folder, or a damaged file.
    """
    if run_dir.is_file():
        what = "a zip file, such as Stable-Baselines3 saves," if zipfile.is_zipfile(run_dir) else "a file"
        raise InputError(f"{run_dir}: is {what} and not a run folder; only those that metarl train filled are read")
    no_run = f"{run_dir}: is not a run folder: config.json"
    path = run_dir / "config.json"
    return read_json_object(path, content="configuration", unreadable=no_run, largest=LARGEST_TEXT)


def own_encoder(plain: Mapping[str, object]) -> str | None:
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
