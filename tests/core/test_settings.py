from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest

from metarl.core.bounds import AtLeast, AtMost, Below, Between, Finite, Odd, Positive
from metarl.core.errors import InputError, require
from metarl.core.settings import check, from_table, read_toml


@dataclass(frozen=True)
class Settings:
    lr: float = 0.1
    steps: int = 1
    name: str = "a"
    on: bool = False
    mode: Literal["fast", "exact"] = "fast"
    limit: float | None = None
    sizes: tuple[int, ...] = (64, 64)
    span: tuple[float, float] = (0.0, 1.0)
    folder: Path | None = None

    def __post_init__(self) -> None:
        require(0.0 < self.lr < math.inf, "agent.lr", self.lr, "a finite number > 0")


class Checked:
    def __post_init__(self) -> None:
        check(self, "agent")


@dataclass(frozen=True)
class Bounded(Checked):
    """Settings with bounds; `plain_default` and `names` could not be read from a file."""

    lr: Annotated[float, Positive] = 0.1
    steps: Annotated[int, AtLeast(1)] = 1
    limit: Annotated[int | None, Between(0, 9)] = None
    sizes: Annotated[tuple[int, ...], AtLeast(1)] = (64, 64)
    side: Annotated[int, AtLeast(5), Odd] = 5
    ratio: Annotated[float, Positive, Below(1)] = 0.5
    low: Annotated[float, Finite, AtMost(2)] = 0.0
    mode: Literal["fast", "exact"] = "fast"
    folder: Path | None = None
    plain_default: int = None  # type: ignore[assignment]
    names: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Required:
    steps: int


def test_every_type_is_read() -> None:
    table = {
        "lr": 2,
        "steps": 3,
        "name": "b",
        "on": True,
        "mode": "exact",
        "limit": 5,
        "sizes": [8, 9, 10],
        "span": [0, 2],
        "folder": "x/y",
    }
    settings = from_table(Settings, table, "agent")
    assert settings == Settings(2.0, 3, "b", True, "exact", 5.0, (8, 9, 10), (0.0, 2.0), Path("x/y"))
    assert type(settings.lr) is type(settings.limit) is type(settings.span[0]) is float
    assert from_table(Settings, {"limit": None}, "agent").limit is None


def test_the_base_keeps_what_the_table_leaves_out() -> None:
    base = Settings(steps=7, name="base")
    assert from_table(Settings, {"name": "table"}, "agent", base) == Settings(steps=7, name="table")
    assert from_table(Settings, {}, "agent", base) is base


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"lrr": 1}, "agent.lrr: unknown; did you mean 'lr'?"),
        ({"qqqqqq": 1}, "agent.qqqqqq: unknown; known: folder, limit, lr, mode"),
        ({"steps": 1.5}, "agent.steps = 1.5: must be an integer"),
        ({"steps": True}, "agent.steps = True: must be an integer"),
        ({"lr": True}, "agent.lr = True: must be a number"),
        ({"lr": "1e-3"}, "agent.lr = '1e-3': must be a number; write it without quotes: lr = 1e-3"),
        ({"limit": "3"}, "agent.limit = '3': must be a number, or left out; write it without quotes: limit = 3"),
        ({"lr": "fast"}, "agent.lr = 'fast': must be a number"),
        ({"name": 3}, "agent.name = 3: must be a string"),
        ({"on": 1}, "agent.on = 1: must be true or false"),
        ({"mode": "slow"}, "agent.mode = 'slow': must be one of 'fast', 'exact'"),
        ({"sizes": 64}, "agent.sizes = 64: must be a list of integers"),
        ({"sizes": [64, "a"]}, "agent.sizes = [64, 'a']: must be a list of integers"),
        ({"span": [1.0]}, "agent.span = [1.0]: must be a list of 2 numbers"),
        ({"folder": 3}, "agent.folder = 3: must be a path, or left out"),
        ({"lr": math.nan}, "agent.lr = nan: must be a finite number > 0"),
        ([1], "agent = [1]: must be a table"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(table: Any, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        from_table(Settings, table, "agent")
    assert str(caught.value).startswith(expected)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"lr": -1}, "agent.lr = -1: must be a positive number"),
        ({"lr": math.nan}, "agent.lr = nan: must be a positive number"),
        ({"lr": math.inf}, "agent.lr = inf: must be a positive number"),
        ({"lr": True}, "agent.lr = True: must be a positive number"),
        ({"lr": "1"}, "agent.lr = '1': must be a positive number; write it without quotes: lr = 1"),
        ({"lr": "-1"}, "agent.lr = '-1': must be a positive number"),
        ({"steps": 0}, "agent.steps = 0: must be an integer >= 1"),
        ({"steps": 1.0}, "agent.steps = 1.0: must be an integer >= 1"),
        ({"limit": 10}, "agent.limit = 10: must be an integer from 0 to 9, or left out"),
        ({"sizes": [4, 0]}, "agent.sizes = [4, 0]: must be a list of integers >= 1"),
        ({"side": 3}, "agent.side = 3: must be an odd integer >= 5"),
        ({"side": 6}, "agent.side = 6: must be an odd integer >= 5"),
        ({"ratio": 1.0}, "agent.ratio = 1.0: must be a positive number < 1"),
        ({"low": -math.inf}, "agent.low = -inf: must be a finite number <= 2"),
        ({"low": 2.5}, "agent.low = 2.5: must be a finite number <= 2"),
        ({"mode": "fats"}, "agent.mode = 'fats': must be one of 'fast', 'exact'; did you mean 'fast'?"),
        ({"plain_default": 1.5}, "agent.plain_default = 1.5: must be an integer"),
    ],
)
def test_bounds_hold_in_python_as_in_a_table(settings: dict[str, Any], expected: str) -> None:
    for make in (lambda: Bounded(**settings), lambda: from_table(Bounded, settings, "agent")):
        with pytest.raises(InputError) as caught:
            make()
        assert str(caught.value) == expected


def test_a_subclass_that_changes_a_default_keeps_the_bounds() -> None:
    @dataclass(frozen=True)
    class Another(Bounded):
        steps: int = 7

    with pytest.raises(InputError, match=r"^agent.steps = 0: must be an integer >= 1$"):
        Another(steps=0)


def test_what_fits_in_python_stays_as_it_is() -> None:
    folder: Any = "x/y"
    settings = Bounded(lr=np.float32(1.0), steps=np.int64(3), sizes=[], folder=folder, names={"a": 1})  # type: ignore[arg-type]
    assert (settings.sizes, settings.folder) == ([], "x/y")


def test_a_type_that_only_a_type_checker_imports_does_not_hinder() -> None:
    kind = make_dataclass("Kind", [("x", "NowhereImported", 1)], bases=(Checked,))
    assert kind(x=2).x == 2


def test_a_setting_without_default_must_be_given() -> None:
    with pytest.raises(InputError, match=r"task\.steps: missing"):
        from_table(Required, {}, "task")
    assert from_table(Required, {"steps": 2}, "task") == Required(2)


def test_a_class_without_settings_accepts_an_empty_table_only() -> None:
    assert isinstance(from_table(object, {}, "task"), object)
    with pytest.raises(InputError, match=r"task\.x: unknown; known: none"):
        from_table(object, {"x": 1}, "task")


def test_a_type_that_no_setting_can_have_is_a_programming_error() -> None:
    @dataclass
    class Odd:
        x: complex = 1j

    with pytest.raises(TypeError, match="not a type that a setting can have"):
        # the annotation is evaluated in this module, where complex is the builtin
        from_table(Odd, {"x": 1}, "task")


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text("[agent]\nlr = 0.5\n[trainer]\nseed = 3\n")
    assert read_toml(path) == {"agent": {"lr": 0.5}, "trainer": {"seed": 3}}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"[agent]\nlr = = 1\n", ":2:6: Invalid value"),
        (b"[agent\n", ":1:7: "),
        (b"[agnet]\nlr = 1\n", "[agnet]: unknown; did you mean 'agent'?"),
        (b"lr = 1\n", "lr: stands outside a table; allowed: [task] [agent] [trainer] [evaluation]"),
        (b"[agent]\nname = '\xff'\n", "is not UTF-8 text"),
        (b"[agent]\nlr = 1\nlr = 2\n", ":3:7: Cannot overwrite a value"),
    ],
)
def test_a_bad_file_is_named_with_the_place(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_toml(path)
    assert str(caught.value).startswith(str(path))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_a_folder_and_yaml_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_toml(tmp_path / "absent.toml")
    with pytest.raises(InputError, match="Is a directory"):
        read_toml(tmp_path)
    with pytest.raises(InputError, match="is YAML; settings files are TOML"):
        read_toml(tmp_path / "a.yaml")
