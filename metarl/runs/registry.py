"""The names of task families, RL agents, few-shot learners and presets.

A name is built in, registered by an installed package (entry-point groups `metarl.tasks`, `metarl.agents` and
`metarl.learners`), or written out as `package.module:Class`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import inspect
import logging
import sys
import tomllib
from collections.abc import Mapping
from importlib import metadata, resources
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal, NotRequired, TypedDict, cast

from metarl.core.errors import InputError, one_line, raised, text_of, unknown_name, warn_once
from metarl.core.imports import search_working_directory
from metarl.core.tasks import AnyDistribution, TaskDistribution
from metarl.rl.tasks import EnvTaskDistribution

if TYPE_CHECKING:  # it imports torch
    from metarl.core.learner import LearnerClass, Tables

Kind = Literal["task", "agent", "learner"]

_logger = logging.getLogger(__name__)

TASKS: dict[str, str] = {
    "point-nav": "metarl.envs.point_nav:PointNav",
    "point-nav-sparse": "metarl.envs.point_nav:PointNavSparse",
    "half-cheetah-dir": "metarl.envs.half_cheetah:HalfCheetahDir",
    "half-cheetah-vel": "metarl.envs.half_cheetah:HalfCheetahVel",
    "grid-nav": "metarl.envs.grid_nav:GridNav",
    "grid-maze": "metarl.envs.grid_maze:GridMaze",
    "ant-vel": "metarl.envs.ant:AntVel",
    "ant-dir": "metarl.envs.ant:AntDir",
    "ant-goal": "metarl.envs.ant:AntGoal",
    "humanoid-dir": "metarl.envs.humanoid:HumanoidDir",
    "walker2d-params": "metarl.envs.random_params:Walker2dParams",
    "hopper-params": "metarl.envs.random_params:HopperParams",
    "point-maze-goal": "metarl.envs.point_maze:PointMazeGoal",
    "point-maze-layout": "metarl.envs.point_maze:PointMazeLayout",
    "ant-maze-goal": "metarl.envs.ant_maze:AntMazeGoal",
    "bandit": "metarl.envs.bandit:Bandit",
    "tabular-mdp": "metarl.envs.tabular_mdp:TabularMDP",
    "sinusoid": "metarl.fewshot.data.sinusoid:Sinusoid",
    "glyphs": "metarl.fewshot.data.packed:Glyphs",
    "omniglot": "metarl.fewshot.data.omniglot:Omniglot",
    "mini-imagenet": "metarl.fewshot.data.mini_imagenet:MiniImageNet",
    "image-folder": "metarl.fewshot.data.image_folder:ImageFolder",
}
AGENTS: dict[str, str] = {
    "maml": "metarl.agents.maml:MAML",
    "fomaml": "metarl.agents.fomaml:FOMAML",
    "meta-sgd": "metarl.agents.meta_sgd:MetaSGD",
    "anil": "metarl.agents.anil:ANIL",
    "cavia": "metarl.agents.cavia:CAVIA",
    "promp": "metarl.agents.promp:ProMP",
    "reptile": "metarl.agents.reptile:Reptile",
    "rl2": "metarl.agents.rl2:RL2",
    "random-init": "metarl.agents.random_init:RandomInit",
    "pretrained": "metarl.agents.pretrained:Pretrained",
    "task-blind": "metarl.agents.task_blind:TaskBlind",
    "oracle": "metarl.agents.oracle:Oracle",
    "expert": "metarl.agents.expert:Expert",
}
LEARNERS: dict[str, str] = {
    "maml": "metarl.fewshot.maml:MAML",
    "fomaml": "metarl.fewshot.fomaml:FOMAML",
    "meta-sgd": "metarl.fewshot.meta_sgd:MetaSGD",
    "reptile": "metarl.fewshot.reptile:Reptile",
    "proto": "metarl.fewshot.proto:Proto",
    "proto-zero-shot": "metarl.fewshot.zero_shot:ZeroShotProto",
    "matching": "metarl.fewshot.matching:Matching",
    "relation": "metarl.fewshot.relation:Relation",
    "siamese": "metarl.fewshot.siamese:Siamese",
    "fine-tune": "metarl.fewshot.fine_tune:FineTune",
    "multi-task": "metarl.fewshot.multi_task:MultiTask",
}

LEARNER_METHODS = ("begin", "prepare", "adapt", "score", "meta_update", "state_dict", "load_state_dict", "to")
ACTING_METHODS = (*LEARNER_METHODS, "act", "observe")


def names(kind: Kind) -> dict[str, str]:
    """Every registered name of `kind` with its "module:attribute". A package cannot replace a built-in name."""
    built_in = {"task": TASKS, "agent": AGENTS, "learner": LEARNERS}[kind]
    installed = {entry.name: entry.value.partition("[")[0].strip() for entry in _entry_points(f"metarl.{kind}s")}
    return {**installed, **built_in}


def _entry_points(group: str) -> list[metadata.EntryPoint]:
    """The entry points of all installed packages. A damaged package is left out, with a warning."""
    try:
        return list(metadata.entry_points(group=group))
    except Exception:  # after one damaged file, Python lists no entry points at all
        found: list[metadata.EntryPoint] = []
        for package in metadata.distributions():
            try:
                found += package.entry_points.select(group=group)
            except Exception as error:
                what = f"{_name_of(package)}: its entry points cannot be read: {one_line(error)}; they are left out"
                warn_once(_logger, what)
        return found


def _name_of(package: metadata.Distribution) -> str:
    try:
        return one_line(package.metadata["Name"] or "an installed package")
    except Exception:
        return "an installed package"


def load_task(name: str) -> type[AnyDistribution]:
    """The task distribution class called `name`.

    Raises:
        InputError: unknown, not importable, or not a task distribution. The message lists missing methods.
    """
    found = _load("task", name)
    if not (isinstance(found, type) and issubclass(found, TaskDistribution)):
        missing = [method for method in ("sample", "all_tasks") if not callable(getattr(found, method, None))]
        lacks = f"; missing: {', '.join(missing)}" if missing else ""
        raise InputError(
            f"task = {name!r}: {_describe(found)} does not derive from metarl.TaskDistribution or "
            f"metarl.EnvTaskDistribution{lacks}"
        )
    task: type[AnyDistribution] = found
    missing = sorted(getattr(task, "__abstractmethods__", ()))
    if issubclass(task, EnvTaskDistribution) and not _makes_environments(task):
        missing.append("make_env (with set_task) or make_vector_env")
    if missing:
        raise InputError(f"task = {name!r}: {task.__name__} lacks {', '.join(missing)}")
    return task


def load_agent(name: str) -> LearnerClass:
    """The RL agent class called `name`.

    Raises:
        InputError: unknown, not importable, or not an acting learner. The message lists missing parts.
    """
    return _load_learner("agent", name)


def load_learner(name: str) -> LearnerClass:
    """The few-shot learner class called `name`.

    Raises:
        InputError: unknown, not importable, or not a learner. The message lists missing parts.
    """
    return _load_learner("learner", name)


def load_unchecked(name: str, task: type[AnyDistribution] | None = None) -> list[type]:
    """The classes called `name`: an RL agent, a few-shot learner, or one of each. Missing methods are not checked.

    Args:
        name: registered, or module:Class.
        task: a family; only the kind of agent that it needs is loaded. None = both kinds.

    Raises:
        InputError: unknown, not importable, or no class.
    """
    kinds: tuple[Kind, ...] = ("agent", "learner")
    if task is not None:
        kinds = (kind_of_agent(task, task.__name__, name),)
    registered = [kind for kind in kinds if name in names(kind)]
    if not registered and ":" not in name:
        raise unknown_name("agent", name, {known for kind in kinds for known in names(kind)})
    return [_load_class(kind, name) for kind in registered or kinds[:1]]


def load_agent_for(task: type[AnyDistribution], task_name: str, agent_name: str) -> LearnerClass:
    """The class called `agent_name`: an RL agent or a few-shot learner, whichever `task` needs.

    Raises:
        InputError: as `load_agent` and `kind_of_agent`.
    """
    kind = kind_of_agent(task, task_name, agent_name)
    return load_agent(agent_name) if kind == "agent" else load_learner(agent_name)


def kind_of_agent(task: type[AnyDistribution], task_name: str, agent_name: str) -> Kind:
    """The kind of agent that `task` needs. It imports no agent, so a wrong name is reported at once.

    Raises:
        InputError: `agent_name` is of the other kind, or a name that is not registered.
    """
    acting = issubclass(task, EnvTaskDistribution)
    kind: Kind = "agent" if acting else "learner"
    other: Kind = "learner" if acting else "agent"
    if agent_name not in names(kind) and agent_name in names(other):
        what = {"agent": "an RL agent", "learner": "a few-shot learner"}
        raise InputError(
            f"agent = {agent_name!r}: is {what[other]}, but {task_name} needs {what[kind]}: "
            f"{', '.join(sorted(names(kind))) or 'none is installed'}"
        )
    _target(kind, agent_name)
    return kind


def presets(task_name: str, agent_name: str) -> list[str]:
    """The names of the presets for (task, agent); "default" comes first."""
    return _presets_by_agent(task_name).get(base_of(agent_name) or agent_name, [])


def preset_table(task_name: str, agent_name: str, preset: str) -> Tables:
    """The tables of a preset, as in a configuration file. A "default" without a file is empty.

    Raises:
        InputError: no such preset; lists those of this (task, agent).
    """
    known = presets(task_name, agent_name)
    if preset not in known:
        if preset == "default":
            return {}
        raise unknown_name(f"preset for {task_name} with {agent_name}", preset, {*known, "default"})
    folder = resources.files("metarl") / "presets"
    variant = "" if preset == "default" else f".{preset}"
    own = base_of(agent_name) or agent_name
    table = tomllib.loads((folder / task_name / f"{own}{variant}.toml").read_text(encoding="utf-8"))
    changes = baseline_changes(agent_name)
    return {name: {**table.get(name, {}), **changes.get(name, {})} for name in {**table, **changes}}


def base_of(agent_name: str) -> str | None:
    """The agent whose presets a baseline uses (`based_on` in its file); None for an agent that is not a baseline."""
    base: str | None = _baseline(agent_name).get("based_on")
    return base


def baseline_changes(agent_name: str) -> Tables:
    """The settings that a baseline changes in the presets of its base agent, as tables."""
    return {name: table for name, table in _baseline(agent_name).items() if name != "based_on"}


def _baseline(agent_name: str) -> dict[str, Any]:
    """The contents of `presets/baselines/<agent_name>.toml`; empty for an agent that is not a baseline."""
    file = resources.files("metarl") / "presets" / "baselines" / f"{agent_name}.toml"
    known = agent_name in names("agent") and file.is_file()
    return tomllib.loads(file.read_text(encoding="utf-8")) if known else {}


class Entry(TypedDict):
    """A registered name.

    Attributes:
        name: the name.
        summary: the first line of the class's docstring; empty if the module cannot be imported.
        module: where the class is.
        error: why the module cannot be imported.
        presets: of a task: agent name -> preset names.
    """

    name: str
    summary: str
    module: str
    error: NotRequired[str]
    presets: NotRequired[dict[str, list[str]]]


def entries() -> dict[str, list[Entry]]:
    """Everything registered, JSON-ready, under "tasks", "agents" and "learners"."""
    return {
        "tasks": [{**_entry("task", name), "presets": _presets_by_agent(name)} for name in sorted(names("task"))],
        "agents": [_entry("agent", name) for name in sorted(names("agent"))],
        "learners": [_entry("learner", name) for name in sorted(names("learner"))],
    }


def _entry(kind: Kind, name: str) -> Entry:
    entry: Entry = {"name": name, "summary": "", "module": names(kind)[name].partition(":")[0]}
    try:
        with contextlib.redirect_stdout(sys.stderr):  # packages may print when they are imported
            lines = (inspect.getdoc(_load_class(kind, name)) or "").splitlines()
    except KeyboardInterrupt:
        raise
    except InputError as error:
        return {**entry, "error": str(error)}
    except BaseException as error:
        return {**entry, "error": f"{kind} = {name!r}: its docstring raised {raised(error)}"}
    return {**entry, "summary": one_line(lines[0]) if lines else ""}


def _presets_by_agent(task_name: str) -> dict[str, list[str]]:
    if task_name not in names("task"):
        return {}
    folder = resources.files("metarl") / "presets" / task_name
    found: dict[str, list[str]] = {}
    for file in sorted(folder.iterdir(), key=lambda file: file.name) if folder.is_dir() else ():
        if file.name.endswith(".toml"):
            agent, _, variant = file.name.removesuffix(".toml").partition(".")
            found.setdefault(agent, []).append(variant or "default")
    return {agent: sorted(variants, key=lambda name: (name != "default", name)) for agent, variants in found.items()}


def _target(kind: Kind, name: str) -> tuple[str, str]:
    """The module and the attribute of `name`."""
    registered = names(kind)
    module_name, _, attribute = registered.get(name, name).partition(":")
    if name in registered and not (module_name and attribute):
        allowed = "module:Class; this is a fault of the package that registers it"
        raise InputError(f"{kind} = {name!r}: its entry point is {registered[name]!r}: must be {allowed}")
    if not (module_name and attribute):
        error = unknown_name(kind, name, registered)
        raise InputError(f"{error}; write module:Class for one of your own")
    return module_name, attribute


def _load(kind: Kind, name: str) -> object:
    """The object called `name`, of any type."""
    module_name, attribute = _target(kind, name)
    if module_name.endswith(".py"):
        dotted = ".".join(PurePath(module_name).with_suffix("").parts)
        raise InputError(f"{kind} = {name!r}: must be module:Class, not a file's name; write {dotted}:{attribute}")
    if name not in names(kind):
        search_working_directory(module_name)
    try:
        module = importlib.import_module(module_name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a user's module may raise anything
        absent = isinstance(error, ModuleNotFoundError) and error.name == module_name.partition(".")[0]
        advice = "; metarl searches the working directory and PYTHONPATH" if absent else ""
        raise InputError(f"{kind} = {name!r}: cannot import {module_name}: {raised(error)}{advice}") from error
    try:
        return functools.reduce(getattr, attribute.split("."), module)
    except KeyboardInterrupt:
        raise
    except AttributeError as error:
        where = f"{kind} = {name!r}: attribute of {module_name}"
        raise unknown_name(where, attribute, _public(vars(module))) from error
    except BaseException as error:  # of the module's own __getattr__
        raise InputError(f"{kind} = {name!r}: {module_name}:{attribute} raised {raised(error)}") from error


def _load_learner(kind: Kind, name: str) -> LearnerClass:
    found = _load_class(kind, name)
    missing = missing_parts(found, acting=kind == "agent")
    if missing:
        raise InputError(f"{kind} = {name!r}: {found.__name__} lacks {', '.join(missing)}")
    return cast("LearnerClass", found)


def _load_class(kind: Kind, name: str) -> type:
    found = _load(kind, name)
    if not isinstance(found, type):
        raise InputError(f"{kind} = {name!r}: {_describe(found)} is not a class")
    return found


def missing_parts(kind: type, *, acting: bool) -> list[str]:
    """The parts that a class lacks to be an RL agent, if `acting`, or a few-shot learner."""
    methods: tuple[str, ...] = ACTING_METHODS if acting else LEARNER_METHODS
    from metarl.core.learner import Traits  # imports torch, as `kind` did

    traits = getattr(kind, "traits", None)
    if isinstance(traits, Traits) and traits.step_size_can_scale:
        methods = (*methods, "with_step_scale")
    missing = [method for method in methods if not callable(getattr(kind, method, None))]
    if not hasattr(getattr(kind, "Config", None), "__dataclass_fields__"):
        missing.append("Config (a dataclass)")
    if not isinstance(traits, Traits):
        missing.append("traits (a metarl.Traits)")
    return missing


def _makes_environments(task: type[EnvTaskDistribution[Any]]) -> bool:
    base = EnvTaskDistribution
    native = task.make_vector_env is not base.make_vector_env
    return native or (task.make_env is not base.make_env and task.set_task is not base.set_task)


def _public(namespace: Mapping[str, object]) -> list[str]:
    return [name for name in namespace if not name.startswith("_") and not inspect.ismodule(namespace[name])]


def _describe(found: object) -> str:
    name = getattr(found, "__name__", None) or text_of(found, repr)
    return f"class {name}" if isinstance(found, type) else f"{type(found).__name__} {name}"
