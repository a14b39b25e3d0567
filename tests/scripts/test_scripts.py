from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path

import pytest

from metarl.cli import main as cli
from metarl.runs import registry

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
FAMILIES = sorted(registry.TASKS)


def script(family: str) -> Path:
    return SCRIPTS / f"train_{family.replace('-', '_')}.py"


def test_there_is_one_training_script_per_family() -> None:
    assert sorted(SCRIPTS.glob("train_*.py")) == sorted(map(script, FAMILIES))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("flags", [[], ["--preset", "quick", "--seed", "1"], ["--help"]])
def test_a_script_trains_its_family_and_passes_all_flags_on(
    family: str, flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []

    def main(argv: list[str]) -> int:
        calls.append(argv)
        return 7

    monkeypatch.setattr(cli, "main", main)
    monkeypatch.setattr(sys, "argv", [str(script(family)), *flags])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(script(family)), run_name="__main__")
    assert calls == [["train", family, *flags]]
    assert stop.value.code == 7


@pytest.mark.parametrize("family", FAMILIES)
def test_importing_a_script_trains_nothing(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "main", lambda argv: pytest.fail("trained"))
    runpy.run_path(str(script(family)), run_name=script(family).stem)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_scripts_docstring_names_its_presets_and_itself(family: str) -> None:
    text = ast.get_docstring(ast.parse(script(family).read_text())) or ""
    commands = [
        line.split() for line in text.splitlines() if line.startswith(f"    python scripts/{script(family).name}")
    ]
    assert commands

    def value(command: list[str], flag: str, otherwise: str) -> str:
        return command[command.index(flag) + 1] if flag in command else otherwise

    named = {(value(command, "--agent", "maml"), value(command, "--preset", "default")) for command in commands}
    assert {preset for agent, preset in named if agent == "maml"} >= {*registry.presets(family, "maml")}
    known = {(agent, preset) for agent, _ in named for preset in (*registry.presets(family, agent), "default")}
    assert named <= known  # "default" may have no file: then the settings' own defaults hold
