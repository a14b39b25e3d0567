"""The recipes of CONTRIBUTING.md work as written: their file, their registry line, their test and their commands."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from metarl.cli.main import main
from metarl.runs import registry

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
FILES = dict(re.findall(r"^`([\w/]+\.py)`:\n\n```python\n(.*?)```", TEXT, re.DOTALL | re.M))
LINES = re.findall(r'^```python\n    "([\w-]+)": "([\w.]+):(\w+)",\n```', TEXT, re.M)
TINY = "--iterations 1 --meta-batch-size 2 --evaluation.num-tasks 2 --evaluation.no-controls --device cpu --quiet"
SHORT = f"{TINY} --agent.num-trajectories 2 --agent.hidden-sizes 4"
SMALL = f"{TINY} --task.num-ways 2 --agent.num-filters 2"


def module(name: str, path: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module `name` with the code that the recipe has for `path`, imported until the end of the test."""
    file = folder / Path(path).name
    file.write_text(FILES[path])
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, made)
    spec.loader.exec_module(made)
    return made


def test_the_files_that_it_names_exist() -> None:
    paths = {*re.findall(r"`([\w./]+/[\w./]*)`", TEXT)}
    new = {*FILES, "scripts/train_poles.py"}
    assert len(paths) > 40
    assert [path for path in sorted(paths - new) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize(
    ("table", "path", "check", "train"),
    [
        (registry.AGENTS, "agents/descent.py", "check-agent", f"point-nav --agent descent {SHORT}"),
        (registry.TASKS, "envs/poles.py", "check-tasks", f"poles {SHORT} --task.horizon 5"),
        (registry.LEARNERS, "metarl/fewshot/manhattan.py", "check-agent", f"glyphs --agent manhattan {SMALL}"),
    ],
    ids=["agent", "family", "learner"],
)
def test_a_recipe_works_as_written(
    table: dict[str, str], path: str, check: str, train: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = Path(path).stem
    (line,) = (line for line in LINES if line[0] == name)
    assert line[1] == f"metarl.{path.removeprefix('metarl/').removesuffix('.py').replace('/', '.')}"
    module(line[1], path, tmp_path, monkeypatch)
    (folder,) = (Path(other).parent for other in FILES if Path(other).name == f"test_{name}.py")
    tests = module(f"test_{name}", f"{folder}/test_{name}.py", tmp_path, monkeypatch)
    for test in vars(tests).copy():
        if test.startswith("test_"):
            getattr(tests, test)()
    monkeypatch.setitem(table, name, f"{line[1]}:{line[2]}")
    assert f"`metarl {check} {name}`" in TEXT
    assert main([check, name]) == 0
    assert main(["train", *train.split(), "--run-dir", str(tmp_path / "run")]) == 0
