"""Folders, layers and public names are as documented."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import metarl

ROOT = Path(__file__).resolve().parent.parent
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
FOLDERS = {"metarl": "metarl", "metarl.agents": "agents", "metarl.envs": "envs"}

# A folder is a layer. Each room may import itself, the rooms named here, and these libraries.
ROOMS: dict[str, tuple[set[str], set[str]]] = {
    "core": (set(), {"numpy", "torch"}),
    "gradients": ({"core"}, {"torch"}),
    "networks": ({"core"}, {"torch"}),
    "rl": ({"core", "gradients", "networks"}, {"gymnasium", "numpy", "torch"}),
    "fewshot": ({"core", "gradients", "networks"}, {"PIL", "filelock", "numpy", "torch"}),
    "envs": ({"core", "rl"}, {"gymnasium", "mujoco", "numpy"}),
    "agents": ({"core", "gradients", "networks", "rl"}, {"numpy", "torch"}),
    "report": ({"core", "fewshot", "gradients", "networks", "rl"}, {"PIL", "matplotlib", "numpy", "torch"}),
    "runs": ({"core", "fewshot", "gradients", "networks", "report", "rl"}, {"filelock", "numpy", "torch"}),
}
FREE = {"__main__", "cli", "testing"}  # may import anything
# Libraries that one module alone may import.
PRIVILEGES = {
    "metarl.agents.predictors": {"gymnasium"},
    "metarl.agents.sb3": {"gymnasium", "stable_baselines3"},
    "metarl.report.film": {"av"},
    "metarl.rl.mujoco_warnings": {"mujoco"},
    "metarl.runs.tracking": {"tensorboard"},
}


def modules() -> dict[str, Path]:
    """Every module of the shipped packages, by import name."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([package, *parts]).removesuffix(".__init__")] = path
    return found


MODULES = modules()


def room_of(module: str) -> str | None:
    """The room of a module of the package, or None where anything may be imported."""
    name = module.split(".")[1]
    if name in FREE:
        return None
    assert name in ROOMS, f"{module} is in no room; give it one in tests/test_layout.py"
    return name


def runtime_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes below `node` without the bodies of `if TYPE_CHECKING:`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            continue
        yield child
        yield from runtime_nodes(child)


def imports_in(source: str) -> Iterator[str]:
    """Dotted names that `source` imports at run time, with the names of `from` imports appended."""
    for node in runtime_nodes(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the layer"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def library_of(name: str) -> str:
    # torch ships the module but only imports the tensorboard package.
    return "tensorboard" if name.startswith("torch.utils.tensorboard") else name.split(".")[0]


def violations(module: str, source: str) -> list[str]:
    """The imports of `source`, as the module named `module`, that its room does not allow."""
    room = room_of(module)
    if room is None:
        return []
    others, libraries = ROOMS[room]
    libraries = libraries | PRIVILEGES.get(module, set())
    wrong = []
    for name in imports_in(source):
        library = library_of(name)
        if library == "metarl":
            allowed = name.split(".")[1] in {room, *others} or name == "metarl.__version__"
            if not allowed:
                wrong.append(name)
        elif library not in sys.stdlib_module_names and library not in libraries:
            wrong.append(name)
    return wrong


def test_no_room_imports_a_higher_one() -> None:
    """The table lists the rooms from the lowest to the highest."""
    lower: set[str] = set()
    for room, (others, _) in ROOMS.items():
        assert others <= lower, f"{room} may import {sorted(others - lower)}, which come after it"
        lower.add(room)


def test_the_package_list_equals_the_disk() -> None:
    on_disk = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    assert sorted(SETUPTOOLS["packages"]) == sorted(on_disk)
    assert SETUPTOOLS["package-dir"] == {name: folder for name, folder in FOLDERS.items() if name != folder}


def test_every_folder_with_code_is_a_package() -> None:
    for path in MODULES.values():
        assert (path.parent / "__init__.py").is_file(), f"{path.parent} has no __init__.py"


@pytest.mark.parametrize("module", [name for name in MODULES if name != "metarl"])
def test_a_module_imports_only_what_its_room_may(module: str) -> None:
    assert violations(module, MODULES[module].read_text()) == []


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("metarl.core.seeds", "import gymnasium", ["gymnasium"]),
        (
            "metarl.core.learner",
            "from metarl.rl.rollout import RolloutCollector",
            ["metarl.rl.rollout.RolloutCollector"],
        ),
        ("metarl.core.learner", "from metarl import runs", ["metarl.runs"]),
        ("metarl.core.learner", "from metarl import Trainer", ["metarl.Trainer"]),
        ("metarl.core.episode", "def f():\n    import metarl.agents.maml", ["metarl.agents.maml"]),
        (
            "metarl.core.trainer",
            "from torch.utils.tensorboard import SummaryWriter",
            ["torch.utils.tensorboard.SummaryWriter"],
        ),
        ("metarl.core.evaluation", "import matplotlib.pyplot", ["matplotlib.pyplot"]),
        ("metarl.gradients.adam", "from metarl.networks.policies import MLP", ["metarl.networks.policies.MLP"]),
        ("metarl.envs.batch", "import torch", ["torch"]),
        ("metarl.envs.batch", "from metarl.networks.policies import MLP", ["metarl.networks.policies.MLP"]),
        ("metarl.agents.maml", "import stable_baselines3", ["stable_baselines3"]),
        ("metarl.agents.maml", "from metarl.envs.batch import BatchEnv", ["metarl.envs.batch.BatchEnv"]),
        ("metarl.fewshot.proto", "from metarl.agents.maml import MAML", ["metarl.agents.maml.MAML"]),
        ("metarl.agents.sb3", "import stable_baselines3", []),
        ("metarl.runs.checkpoint", "from metarl import __version__", []),
        ("metarl.core.tasks", "if TYPE_CHECKING:\n    import gymnasium", []),
    ],
)
def test_the_walk_sees_what_is_wrong(module: str, source: str, wrong: list[str]) -> None:
    assert violations(module, source) == wrong


def test_no_import_cycles() -> None:
    edges = {
        module: {
            target
            for name in imports_in(path.read_text())
            for target in (name, name.rpartition(".")[0])
            if target in MODULES and target not in {"metarl", module}
        }
        for module, path in MODULES.items()
    }
    while leaves := {module for module, targets in edges.items() if not targets}:
        edges = {module: targets - leaves for module, targets in edges.items() if module not in leaves}
    assert not edges, f"these modules import each other: {edges}"


def fresh(code: str, *, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import metarl", "numpy torch mujoco gymnasium stable_baselines3 matplotlib tensorboard tyro rich"),
        (
            "import metarl.core.tasks, metarl.core.seeds, metarl.envs",
            "torch mujoco gymnasium stable_baselines3 matplotlib",
        ),
        (
            "import metarl.core.episode, metarl.agents",
            "mujoco gymnasium stable_baselines3 matplotlib tensorboard tyro rich",
        ),
    ],
)
def test_an_import_is_light(statement: str, absent: str) -> None:
    result = fresh(f"import sys; {statement}; print(*(set({absent.split()}) & set(sys.modules)))")
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []


@pytest.mark.parametrize("folder", ["agents", "envs"])
def test_a_bare_folder_name_is_refused(folder: str) -> None:
    result = fresh(f"import {folder}")
    assert result.returncode == 1
    expected = f"ImportError: write `import metarl.{folder}`, not `import {folder}`"
    assert result.stderr.strip().splitlines()[-1] == expected


@pytest.mark.parametrize("name", sorted(metarl._MODULE_OF))
def test_a_public_name_resolves(name: str) -> None:
    value = getattr(metarl, name)
    assert value is getattr(importlib.import_module(metarl._MODULE_OF[name]), name)
    assert value.__module__ == metarl._MODULE_OF[name], "list the module that defines it"
    assert name in dir(metarl)


def test_an_unknown_name_is_an_attribute_error() -> None:
    name = "Learners"
    with pytest.raises(AttributeError, match="'metarl' has no attribute 'Learners'"):
        getattr(metarl, name)


def test_type_checkers_see_the_lazy_names() -> None:
    tree = ast.parse(MODULES["metarl"].read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    seen = {
        alias.asname: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert seen == metarl._MODULE_OF
