"""Strict reading of settings: from a TOML table or a JSON object to a dataclass. Errors are one line."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import inspect
import re
import tomllib
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from metarl.core.bounds import Bound, NotASettingError, fit, parts_of, words
from metarl.core.errors import InputError, one_line, raised, shortened
from metarl.core.files import LARGEST_TEXT, read_file

Config = TypeVar("Config")
TABLES = ("task", "agent", "trainer", "evaluation")


def from_table(cls: type[Config], table: Mapping[str, object], prefix: str, base: Config | None = None) -> Config:
    """Builds a settings dataclass from a TOML table (or a JSON object), strictly.

    Args:
        cls: a dataclass; fields may be bool, int, float, str, Path, Literal, None, unions and tuples of these. A class
            that is not a dataclass has no settings.
        table: setting -> value.
        prefix: the name of the table, for messages ("agent").
        base: values of the settings that `table` leaves out; None = the defaults.

    Raises:
        InputError: an unknown setting (with the nearest), a wrong type, a value out of bounds, a missing setting, or
            any error that `cls` raises.
    """
    if not isinstance(table, Mapping):
        raise InputError(f"{prefix} = {shortened(table)}: must be a table")
    fields = fields_of(cls)
    hints = _hints(cls) if fields else {}
    values: dict[str, object] = {}
    for key, value in table.items():
        if key not in fields:
            raise unknown_setting(f"{prefix}.{key}", key, fields)
        values[key] = convert(value, hints[key], f"{prefix}.{key}")
    if base is not None:
        return _made(prefix, cls, dataclasses.replace, base, **values) if values else base
    for name, field in fields.items():
        if name not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise InputError(f"{prefix}.{name}: missing; it has no default")
    if not fields:
        _require_no_arguments(cls, prefix)
    return _made(prefix, cls, cls, **values)


def _made(prefix: str, cls: type[Config], make: Callable[..., Config], *values: object, **settings: object) -> Config:
    try:
        return make(*values, **settings)
    except (InputError, KeyboardInterrupt):
        raise
    except BaseException as error:  # the class may be the user's own and raise anything
        given = ", ".join(f"{name}={value!r}" for name, value in settings.items())
        raise InputError(f"{prefix}: {cls.__name__}({given}) raised {raised(error)}") from error


def _require_no_arguments(cls: type[object], prefix: str) -> None:
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    wanted = [
        parameter.name
        for parameter in inspect.signature(cls).parameters.values()
        if parameter.default is parameter.empty and parameter.kind not in kinds
    ]
    if wanted:
        raise InputError(
            f"{prefix}: {cls.__name__} needs {', '.join(wanted)} to be made; write it as a dataclass, whose fields are "
            "settings, each with a default"
        )


def read_toml(path: Path) -> dict[str, dict[str, object]]:
    """The tables of a settings file.

    Raises:
        InputError: missing, a folder, not TOML (with line and column), or with a table other than the four.
    """
    path = Path(path)
    if path.suffix in {".yaml", ".yml"}:
        raise InputError(f"{path}: is YAML; settings files are TOML, with the tables {_table_list()}")
    try:
        tables = tomllib.loads(read_file(path, largest=LARGEST_TEXT).decode())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text (byte {error.start})") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(_located(path, str(error))) from error
    except (ValueError, RecursionError) as error:  # an integer of 5,000 digits, a date that is none, deep nesting
        reason = "is nested too deeply" if isinstance(error, RecursionError) else one_line(error)
        reason = re.sub(r"Exceeds the limit \((\d+) digits\).*", r"has an integer of more than \1 digits", reason)
        raise InputError(f"{path}: {reason}") from error
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise InputError(f"{path}: {name}: stands outside a table; allowed: {_table_list()}")
        if name not in TABLES:
            raise unknown_setting(f"{path}: [{name}]", name, TABLES)
    return tables


def fields_of(settings: object) -> dict[str, dataclasses.Field[Any]]:
    """The settings of a dataclass or its object, by name; empty for anything else.

    Fields that the class itself computes (`init=False`) are no settings.
    """
    found = dataclasses.fields(settings) if dataclasses.is_dataclass(settings) else ()
    return {field.name: field for field in found if field.init}


def check(settings: object, table: str) -> None:
    """Refuses values that the annotations of a settings dataclass do not allow.

    The `__post_init__` of `LearnerConfig` and of `TaskDistribution` calls it, so their subclasses are always checked.
    Default values are not checked, nor are fields of types that a settings file cannot hold.

    Args:
        settings: an object; one that is not a dataclass has no settings.
        table: the name of its table, for messages ("agent").

    Raises:
        InputError: names the setting, its value and what is allowed.
    """
    try:
        hints = _hints(type(settings))
    except NameError:  # a type that is imported for type checkers only
        return
    for name, field in fields_of(settings).items():
        if getattr(settings, name) is not field.default:
            with contextlib.suppress(NotASettingError):
                convert(getattr(settings, name), hints[name], f"{table}.{name}")


def _hints(cls: type[object]) -> dict[str, Any]:
    """The annotations of all settings. A subclass that only changes a default keeps the bounds of its base."""
    hints = typing.get_type_hints(cls, include_extras=True)
    for base in cls.__mro__[1:]:
        for name, hint in typing.get_type_hints(base, include_extras=True).items():
            if (bounds := parts_of(hint, Bound)) and not parts_of(hints[name], Bound):
                hints[name] = Annotated[hints[name], *bounds]
    return hints


def convert(value: object, hint: Any, path: str) -> Any:
    """`value` as the type `hint`.

    Raises:
        InputError: it is of another type or out of bounds; names `path`, the value and what is allowed.
    """
    with contextlib.suppress(ValueError):
        return fit(value, hint)
    problem = f"{path} = {shortened(value)}: must be {words(hint)}"
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            fit(float(value), hint)
            problem += f"; write it without quotes: {path.rpartition('.')[2]} = {value.strip()}"
    near = difflib.get_close_matches(str(value), parts_of(hint, str), n=1, cutoff=0.75)
    raise InputError(problem + (f"; did you mean {near[0]!r}?" if near else ""))


def unknown_setting(path: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a setting `name` at `path` that is not among `known`; names the nearest one."""
    options = sorted(known)
    near = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(options) or 'none'}"
    return InputError(f"{path}: unknown; {hint}")


def _table_list() -> str:
    return " ".join(f"[{name}]" for name in TABLES)


def _located(path: Path, message: str) -> str:
    place = re.search(r" \(at line (\d+), column (\d+)\)$", message)
    return f"{path}:{place[1]}:{place[2]}: {message[: place.start()]}" if place else f"{path}: {message}"
