"""The command line of `metarl train`: every setting of the task, the agent and the run is a flag."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import io
import os
import re
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import tyro
from tyro.conf import Positional, arg
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from metarl.core.bounds import Bound, parts_of, words
from metarl.core.config import EvaluationConfig, TrainerConfig
from metarl.core.errors import InputError, require
from metarl.core.settings import TABLES, check, fields_of
from metarl.runs import registry
from metarl.runs.capacity import require_capacity
from metarl.runs.config import (
    RunConfig,
    from_dict,
    own_encoder,
    read_saved,
    resolve,
    resume_command,
)
from metarl.runs.config import (
    parts_of as settings_of,
)

DEFAULT_AGENT = "maml"
_DESCRIPTION = (
    "Meta-trains an agent on a family of tasks. Settings: preset, then --config file, then flags. "
    "metarl train TASKS --help shows the settings of that family and agent too."
)


@dataclass(frozen=True)
class TrainArguments:
    """The command line of `metarl train`.

    Attributes:
        config: the configuration, all flags applied.
        run_dir: folder for a new run; None = a new folder under runs/.
        resume: folder of the run to resume, or None.
        quiet: print nothing but errors.
    """

    config: RunConfig
    run_dir: Path | None
    resume: Path | None
    quiet: bool


def parse_train(argv: Sequence[str]) -> TrainArguments:
    """Reads the command line after `metarl train`. `--help` shows every setting with the value it would have.

    Settings come from the preset, then the file, then the flags; with `--resume` from the saved run, then the flags.

    Raises:
        InputError: anything wrong in the command line, in one line.
        SystemExit: after `--help`, with status 0.
    """
    _refuse_early(argv)
    task_name, agent_name = _find_task(argv), _find_value(argv, "--agent")
    preset, file, resume = (_find_value(argv, flag) for flag in ("--preset", "--config", "--resume"))
    if task_name is None and resume is None:
        if {"-h", "--help"} & {*argv}:
            _parse_command_line(argv, None)
        raise InputError(f"task: missing; metarl train TASKS, one of {', '.join(sorted(registry.names('task')))}")
    if resume is not None:
        chosen = preset is None and file is None
        require(
            chosen, "--resume", resume, "without --preset and --config: a run keeps its settings, only flags change"
        )
        names = {"task": task_name, "agent": agent_name, "agent.encoder": _find_value(argv, "--agent.encoder")}
        base = _resumed(Path(resume), names, task_values(argv))
    else:
        config_file = None if file is None else Path(file)
        agent_name = DEFAULT_AGENT if agent_name is None else agent_name
        base = resolve(str(task_name), agent_name, preset=preset, config_file=config_file)
    parsed = _parse_command_line(argv, base, resuming=resume is not None)
    require(parsed.task_name == base.task_name, "task", parsed.task_name, "the first argument: metarl train TASKS ...")
    parts = {name: getattr(parsed, name) for name in TABLES}
    for name, part in parts.items():
        check(part, name)
    config = dataclasses.replace(base, **parts)
    require_capacity(config)
    return TrainArguments(config, parsed.run_dir, parsed.resume, parsed.quiet)


def split_task_flags(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """`argv` without the `--task.*` flags and their values; and the `--task.*` flags with their values."""
    own: list[str] = []
    flags: list[str] = []
    part = own
    for token in argv:
        if token.startswith("--"):
            part = flags if token.startswith("--task.") else own
        part.append(token)
    return own, flags


def task_values(argv: Sequence[str]) -> dict[str, str]:
    """The value of each `--task.*` flag in `argv`, by setting. It is needed before tyro parses them."""
    flags = {token.partition("=")[0] for token in argv if token.startswith("--task.")}
    return {flag.removeprefix("--task.").replace("-", "_"): _find_value(argv, flag) or "" for flag in flags}


def parse_task_flags(task: Task, flags: Sequence[str]) -> Task:
    """The task distribution `task` with the settings that `flags`, all `--task.*`, give it.

    Raises:
        InputError: an unknown setting, or a value that is not allowed.
    """
    known = [f"--task.{name}".replace("_", "-") for name in fields_of(task)]
    command: Any = _TaskFlags
    with _parsing("metarl evaluate", known):
        parsed: _TaskFlags[Task] = tyro.cli(
            command[_type_of(task)], default=_TaskFlags(task), prog="metarl evaluate", args=list(flags)
        )
    check(parsed.task, "task")
    return parsed.task


def refuse_blank(argv: Sequence[str]) -> None:
    """Refuses empty arguments and those with control characters. An empty path would be the working directory.

    Settings of tasks and agents are left to their own classes.

    Raises:
        InputError: there is one.
    """
    for before, token in zip(("", *argv), argv, strict=False):
        flag, equals, value = token.partition("=") if token.startswith("--") else (before, "", token)
        field = flag if flag.startswith("--") else "argument"
        blank = not value.strip() and (equals or not token.startswith("--"))
        fine = field.startswith(("--task.", "--agent.")) or not (blank or not token.isprintable())
        require(fine, field, value, "printable text, and not empty")


def _refuse_early(argv: Sequence[str]) -> None:
    """Refuses flags that are wrong for every task and agent. It saves the seconds that importing these takes."""
    if {"-h", "--help"} & {*argv}:
        return
    _, unread = _parse_command_line(argv, None, partly=True)
    for token in unread:
        if token.startswith("--") and not token.startswith(("--task.", "--agent.")):
            try:
                _parse_command_line(["TASKS", token], None)
            except InputError as error:
                if "did you mean" in str(error):
                    raise


def _resumed(run_dir: Path, names: Mapping[str, str | None], paths: Mapping[str, str]) -> RunConfig:
    """The configuration of a run to resume; `names` are those on the command line."""
    plain = read_saved(run_dir)
    saved = {"task": plain.get("task_name"), "agent": plain.get("agent_name"), "agent.encoder": own_encoder(plain)}
    for field, given in names.items():
        same = given in (None, saved[field]) or (field == "agent.encoder" and saved[field] is None)
        require(same, field, given, f"{saved[field]!r}, as in the run {run_dir}")
        allowed = f"given by you, since code named in a run folder is not imported: {resume_command(run_dir)}"
        require(given is not None or ":" not in str(saved[field]), field, saved[field], allowed)
    return from_dict(plain, trusted=True, paths=paths)


def _find_value(argv: Sequence[str], flag: str) -> str | None:
    """The last value of `flag`. It is needed before tyro parses, because it decides which settings there are."""
    value = None
    for index, token in enumerate(argv):
        if token.startswith(f"{flag}="):
            value = token.partition("=")[2]
        elif token == flag and index + 1 < len(argv):
            value = argv[index + 1]
    return value


def _find_task(argv: Sequence[str]) -> str | None:
    """The task's name: the first word, or else a registered name, or else a word that follows no flag."""
    pairs = list(zip(("", *argv), argv, strict=False))
    words = [(before, token) for before, token in pairs if not token.startswith("-")]
    if argv and not argv[0].startswith("-"):
        return argv[0]
    known, taking = registry.names("task"), ("--agent", "--preset", "--config", "--resume", "--run-dir", "--run_dir")
    registered = [token for before, token in words if token in known and before not in taking]
    free = [token for before, token in words if not before.startswith("--") or before in ("--quiet", "--no-quiet")]
    return next(iter([*registered, *free]), None)


def _parse_command_line(
    argv: Sequence[str], base: RunConfig | None, *, resuming: bool = False, partly: bool = False
) -> Any:
    """`argv` as `_Flags`, with the settings of `base` as defaults.

    With `partly`, unknown flags are not refused: the answer is (flags, list of the unknown ones).
    """
    parts = dict(settings_of(base)) if base else {"trainer": TrainerConfig(), "evaluation": EvaluationConfig()}
    known = [f"--{table}.{name}".replace("_", "-") for table, part in parts.items() for name in fields_of(part)]
    default = _Flags(
        task_name=(base.task_name if base else "") if resuming or partly else tyro.MISSING,
        agent_name=base.agent_name if base else DEFAULT_AGENT,
        preset=base.preset if base else None,
        **{"task": None, "agent": None, **parts},
    )
    command: Any = _Flags
    command = command[_type_of(default.task), _type_of(default.agent)]
    with _parsing("metarl train TASKS", known if base else ()):
        options: dict[str, Any] = {"return_unknown_args": True} if partly else {}
        cli = functools.partial(tyro.cli, command, prog="metarl train", description=_DESCRIPTION, args=list(argv))
        return cli(default=default, **options)


@contextlib.contextmanager
def _parsing(command: str, known: Sequence[str]) -> Iterator[None]:
    with errors_in_one_line(command, known), _RULES, warnings.catch_warnings():
        # A family that derives from EnvTaskDistribution without naming its task type is fine here.
        warnings.filterwarnings("ignore", "Could not resolve type parameter")
        yield


@contextlib.contextmanager
def errors_in_one_line(command: str, known: Sequence[str] = ()) -> Iterator[None]:
    """Turns an error that tyro prints before it exits into an `InputError`. `--help` still prints and exits.

    Args:
        command: the command whose `--help` lists the flags.
        known: known flags. The nearest one is proposed if tyro proposes none.
    """
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed), _wide_enough():
            yield
    except SystemExit as stop:
        if stop.code == 0:
            raise
        cause: BaseException | None = stop
        while cause is not None and not isinstance(cause, InputError):
            cause = cause.__context__
        raise cause or InputError(_one_line(printed.getvalue(), command, known)) from None
    sys.stderr.write(printed.getvalue())  # what the constructors of the tasks printed


@contextlib.contextmanager
def _wide_enough() -> Iterator[None]:
    """Makes tyro assume at least 80 columns. With fewer, it breaks words in two."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(max(80, shutil.get_terminal_size().columns))
    try:
        yield
    finally:
        os.environ.pop("COLUMNS")
        if before is not None:
            os.environ["COLUMNS"] = before


Task = TypeVar("Task")
Agent = TypeVar("Agent")


@dataclass(frozen=True)
class _TaskFlags(Generic[Task]):
    task: Task


@dataclass(frozen=True, kw_only=True)
class _Flags(Generic[Task, Agent]):
    """The flags of `metarl train`. `task` and `agent` are of the classes that the command line names."""

    task_name: Annotated[Positional[str], arg(metavar="TASKS", help=_families())]
    agent_name: Annotated[str, arg(name="agent")] = DEFAULT_AGENT
    """Agent or few-shot learner, by name or as module:Class."""
    preset: str | None = None
    """Settings shipped for this family and agent."""
    config: Path | None = None
    """TOML file with tables [task] [agent] [trainer] [evaluation]."""
    run_dir: Path | None = None
    """Folder of the new run; default: a new folder under runs/."""
    resume: Path | None = None
    """Folder of the run to resume."""
    quiet: bool = False
    """Print nothing but errors."""
    task: Task
    agent: Agent
    trainer: TrainerConfig
    evaluation: EvaluationConfig


def _families() -> str:
    return f"Family of tasks: {', '.join(sorted(registry.names('task')))}, or module:Class."


def _type_of(settings: object) -> Any:
    """The type of `settings` for tyro, which makes no flags for an object that is not a dataclass."""
    kind = type(settings)
    return kind if fields_of(settings) else Annotated[kind, tyro.conf.Suppress, tyro.conf.Fixed]


_RULES = ConstructorRegistry()
_SHORT = ("iterations", "meta_batch_size", "max_minutes", "seed", "device", "checkpoint_every")
"""Settings of [trainer] whose flags are also understood without the table's name."""


@_RULES.struct_rule
def _settings_rule(info: StructTypeInfo) -> StructConstructorSpec | None:
    """The flags of a dataclass as tyro makes them, plus the allowed values and the short names.

    The inner call applies tyro's own rule. `in_union_context`, which matters for lists alone, marks that call.
    """
    if info.in_union_context or not dataclasses.is_dataclass(info.type):
        return None
    spec = ConstructorRegistry.get_struct_spec(dataclasses.replace(info, in_union_context=True))
    assert isinstance(spec, StructConstructorSpec)
    settings = fields_of(info.type)
    fields = tuple(_flag(info.type, field) for field in spec.fields if field.name in settings)
    return StructConstructorSpec(info.type, fields)


def _flag(kind: type[Any], field: StructFieldSpec) -> StructFieldSpec:
    aliases = [f"--{field.name.replace('_', '-')}"] if kind is TrainerConfig and field.name in _SHORT else []
    text = field.helptext() if callable(field.helptext) else field.helptext
    if parts_of(field.type, Bound):
        text = f"{text or ''} Allowed: {words(field.type)}.".lstrip()
    annotated: Any = Annotated[field.type, arg(aliases=aliases)]
    return dataclasses.replace(field, type=annotated, helptext=text)


# Messages of tyro, and MetaRL's words for them: field = value: must be what is allowed.
_REWORDED = (
    (r"Error parsing (\S+): invalid literal for int\(\) with base 10: (.*)", r"\1 = \2: must be an integer"),
    (r"Error parsing (\S+): could not convert string to float: (.*)", r"\1 = \2: must be a number"),
    (r"Error parsing (\S+): Exceeds the limit \((\d+) digits\).*", r"\1: must be an integer of at most \2 digits"),
    (r"Error parsing (\S+): no type .*\{None\}\|INT .* from \[(.*?)\]\..*", r"\1 = \2: must be an integer"),
    (r"Error parsing (\S+): no type .*\{None\}\|FLOAT .* from \[(.*?)\]\..*", r"\1 = \2: must be a number"),
    (
        r"Error parsing (\S+): Could not find valid parse for arguments: \[(.*)\]",
        r"\1 = \2: must be values of the type that --help shows",
    ),
    (r"Missing value for argument '(.*?)'\..*", r"\1: needs a value"),
    (r"invalid choice (.*) for argument '(.*?)'\. Expected one of \((.*)\)\.", r"\2 = \1: must be one of \3"),
    (r"Missing from [\w -]+: (--\S+) [A-Z]+ (.*) \(required\)", r"\1: missing; \2"),
    (r"Missing from [\w -]+: (\S+) (.*) \(required\)", r"\1: missing; \2"),
    (r"Error parsing (\S+): (.*)", r"\1: \2"),
)
_UNKNOWN = "Unrecognized options: "


def _one_line(box: str, command: str, known: Sequence[str]) -> str:
    """The message of tyro's framed error, frame drawn in ASCII or not, without the title, the help and the advice."""
    sections: list[list[str]] = [[]]
    for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines():
        text = line.strip("│| ")
        if text and not text.strip("─-╭╮╰╯ "):
            sections.append([])
        elif text.startswith("╭"):
            sections = [[text], []]
        elif text:
            sections[-1].append(text)
    _, message, *others = sections if len(sections) > 1 else [[], *sections]
    near = [lines[1] for lines in others if len(lines) > 1 and lines[0].startswith("Perhaps you meant")]
    text = " ".join(message)
    if not text.startswith(_UNKNOWN):
        return functools.reduce(lambda line, pair: re.sub(f"^{pair[0]}$", pair[1], line), _REWORDED, text)
    first = text.removeprefix(_UNKNOWN).split(", ")[0]
    near = [re.split("[ ,]", option)[0] for option in near] or difflib.get_close_matches(first, known, n=1, cutoff=0.7)
    if near:
        return f"{first}: unknown; did you mean {near[0]}?"
    table = [flag for flag in known if flag.startswith("--task.") and first.startswith("--task.")]
    return f"{first}: unknown; " + (f"known: {', '.join(table)}" if table else f"{command} --help lists what there is")
