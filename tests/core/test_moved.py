"""Earlier names of modules."""

from __future__ import annotations

import importlib
import sys

import pytest

import metarl
from metarl.core.moved import MOVED


@pytest.fixture
def earlier(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.delitem(sys.modules, "metarl.tasks", raising=False)
    return "metarl.tasks"


def test_an_earlier_name_gives_the_same_objects_and_a_warning(earlier: str) -> None:
    with pytest.warns(DeprecationWarning, match=r"^metarl\.tasks is now metarl\.core\.tasks and metarl\.rl\.tasks"):
        module = importlib.import_module(earlier)
    assert module.TaskDistribution is metarl.TaskDistribution
    assert module.EnvTaskDistribution is metarl.EnvTaskDistribution
    with pytest.raises(AttributeError, match=r"has no attribute 'Taks'; metarl\.tasks is now"):
        _ = module.Taks


def test_every_new_name_is_a_module() -> None:
    for homes in MOVED.values():
        for home in homes:
            importlib.import_module(home)


def test_other_names_are_not_found() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"metarl\.nowhere"):
        importlib.import_module("metarl.nowhere")
