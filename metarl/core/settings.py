"""Strict reading of settings: a TOML table (or a JSON object) becomes a frozen dataclass, or one line says why not."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import inspect
import numbers
import re
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from metarl.core.bounds import Bound, allowed
from metarl.core.errors import InputError, one_line, raised, shortened
from metarl.core.files import LARGEST_TEXT, read_file

Config = TypeVar("Config")
Part = TypeVar("Part")
TABLES = ("task", "agent", "trainer", "evaluation")


def from_table(cls: type[Config], table: Mapping[str, Any], prefix: str, base: Config | None = None) -> Config:
    """Builds a settings dataclass from a TOML table (or a JSON object), strictly.

    Args:
        cls: a dataclass; fields may be bool, int, float, str, Path, Literal, Optional and tuples of these. A class that
            is no dataclass has no settings.
        table: setting -> value.
        prefix: where the table stands, for messages ("agent").
        base: values of the settings that `table` leaves out; None = the defaults.

    Raises:
        InputError: unknown setting (with the nearest), wrong type, missing setting, or whatever `cls` itself raises.
    """
    if not isinstance(table, Mapping):
        raise InputError(f"{prefix} = {shortened(table)}: must be a table")
    fields = fields_of(cls)
    hints = _hints(cls) if fields else {}
    values: dict[str, Any] = {}
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


def _made(prefix: str, cls: type[Config], make: Callable[..., Any], *values: Any, **settings: Any) -> Config:
    try:
        made: Config = make(*values, **settings)
        return made
    except (InputError, KeyboardInterrupt):
        raise
    except BaseException as error:  # the class is foreign code: whatever stops it is the answer
        raise InputError(f"{prefix}: {cls.__name__}({_listed(settings)}) raised {raised(error)}") from error


def _require_no_arguments(cls: type[Any], prefix: str) -> None:
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


def _listed(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in settings.items())


def read_toml(path: Path) -> dict[str, dict[str, Any]]:
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
    """The settings of a dataclass or of an object of one, by name; of anything else, none.

    Fields that the class itself computes (`init=False`) are no settings.
    """
    found = dataclasses.fields(settings) if dataclasses.is_dataclass(settings) else ()
    return {field.name: field for field in found if field.init}


def check(settings: object, table: str) -> None:
    """Refuses values that the annotations of a settings dataclass do not allow.

    `LearnerConfig` and `TaskDistribution` call it, so their subclasses are checked when they are made. Defaults are the
    author's and are not checked. Neither are types that a settings file cannot hold.

    Args:
        settings: an object; one that is no dataclass has no settings.
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
            with contextlib.suppress(_OtherTypeError):
                convert(getattr(settings, name), hints[name], f"{table}.{name}")


def _hints(cls: type[Any]) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


class _OtherTypeError(TypeError):
    """The annotation of a field that no settings file can hold."""


def parts_of(hint: Any, kind: type[Part]) -> list[Part]:
    """The objects of type `kind` at any depth of an annotation: its bounds, or the strings of its Literals."""
    args = typing.get_args(hint)
    return [part for arg in args for part in ([arg] if isinstance(arg, kind) else parts_of(arg, kind))]


def convert(value: Any, hint: Any, path: str) -> Any:
    """`value` as the type `hint`.

    Raises:
        InputError: it is of another type or out of bounds; names `path`, the value and what is allowed.
    """
    matched, converted = _match(value, hint, ())
    if matched:
        return converted
    problem = f"{path} = {shortened(value)}: must be {expected(hint)}"
    if isinstance(value, str) and _is_number(value) and _match(float(value), hint, ())[0]:
        problem += f"; write it without quotes: {path.rpartition('.')[2]} = {value.strip()}"
    near = difflib.get_close_matches(str(value), parts_of(hint, str), n=1, cutoff=0.75)
    raise InputError(problem + (f"; did you mean {near[0]!r}?" if near else ""))


def _match(value: Any, hint: Any, bounds: tuple[Bound, ...]) -> tuple[bool, Any]:
    """Whether `value` fits `hint` and `bounds`, and `value` as the type `hint`."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _match(value, args[0], (*bounds, *_bounds(hint)))
    if origin in (typing.Union, types.UnionType):
        matches = [match for match in (_match(value, option, bounds) for option in args) if match[0]]
        return matches[0] if matches else (False, None)
    if origin is Literal:
        return any(type(value) is type(option) and value == option for option in args), value
    if origin is tuple:
        return _match_tuple(value, args, bounds)
    if hint is None or hint is types.NoneType:
        return value is None, None
    if hint in (int, float):
        return _match_number(value, hint, bounds)
    if hint is Path:
        return isinstance(value, (str, Path)), Path(value) if isinstance(value, (str, Path)) else None
    if hint in (bool, str):
        return isinstance(value, hint), value
    raise _OtherTypeError(f"{hint!r} is not a type that a setting can have")


def _match_number(value: Any, hint: type[int] | type[float], bounds: tuple[Bound, ...]) -> tuple[bool, float | None]:
    kind = numbers.Integral if hint is int else numbers.Real  # numpy's numbers too
    fits = isinstance(value, kind) and not isinstance(value, bool)
    try:
        number = hint(value) if fits else None
    except OverflowError:  # an integer beyond the largest float
        return False, None
    return number is not None and allowed(number, bounds), number


def _match_tuple(value: Any, args: tuple[Any, ...], bounds: tuple[Bound, ...]) -> tuple[bool, Any]:
    if not isinstance(value, (list, tuple)):
        return False, None
    options = args[:1] * len(value) if args[-1:] == (Ellipsis,) else args
    if len(options) != len(value):
        return False, None
    matches = [_match(item, option, bounds) for item, option in zip(value, options, strict=True)]
    return all(matched for matched, _ in matches), tuple(item for _, item in matches)


def _bounds(hint: Any) -> tuple[Bound, ...]:
    return tuple(extra for extra in typing.get_args(hint)[1:] if isinstance(extra, Bound))


def expected(hint: Any, bounds: tuple[Bound, ...] = (), plural: bool = False) -> str:
    """What `hint` and `bounds` allow: "an integer >= 1, or left out"."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return expected(args[0], (*bounds, *_bounds(hint)), plural)
    if origin in (typing.Union, types.UnionType):
        options = [expected(option, bounds, plural) for option in args if option is not types.NoneType]
        return " or ".join(options) + (", or left out" if len(options) < len(args) else "")
    if origin is Literal:
        return "one of " + ", ".join(repr(option) for option in args)
    if origin is tuple:
        several = args[-1:] == (Ellipsis,)
        return f"a list of {'' if several else f'{len(args)} '}{expected(args[0], bounds, plural=True)}"
    if hint is bool:
        return "true or false"
    noun = {int: "integer", float: "number", str: "string", Path: "path"}[hint] + ("s" if plural else "")
    noun = functools.reduce(lambda words, bound: bound.words.format(words), bounds, noun)
    return noun if plural else f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


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
