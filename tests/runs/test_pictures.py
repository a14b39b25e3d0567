"""Pictures of run folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from metarl.cli import main as cli

ODD_FILES = [
    *((name, text) for name in ("adaptation.json", "metrics.jsonl", "paths.json") for text in ("[]", "{}", "3", '"x"')),
    *(("adaptation.json", text) for text in (9999 * "[", "NaN", '{"a": 1, "a": 2}', f"{5000 * '9'}", "\x00")),
    *(("adaptation.json", {name: odd}) for name in ("steps", "per_task", "mean") for odd in (None, "x", [{}], 1)),
    ("adaptation.json", {"unit": 7}),
    ("adaptation.json", {"env_steps": ["a"]}),
    ("adaptation.json", {"num_replicates": "many"}),
    ("adaptation.json", {"cross_adaptation": {"tasks": ["x"], "matrix": 65 * [[1.0]]}}),
    ("paths.json", {"unit": "gradient steps", "steps": [0, 1], "tasks": 65 * [{}]}),
    ("metrics.jsonl", '{"iteration": 1, "env_steps": "x"}\n\n'),
    ("metrics.jsonl", '{"iteration": true}\n\n'),
]


@pytest.mark.parametrize(("name", "content"), ODD_FILES)
def test_a_run_folders_odd_files_are_named_and_nothing_is_drawn(
    name: str, content: Any, tmp_path: Path, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in ("config.json", "adaptation.json", "metrics.jsonl"):
        shutil.copy(run_dir / file, tmp_path)
    if isinstance(content, dict):
        content = json.dumps({**json.loads((run_dir / "adaptation.json").read_text()), **content})
    if name == "metrics.jsonl":
        (tmp_path / "adaptation.json").unlink()
    (tmp_path / name).write_text(content)
    assert cli.main(["plot", str(tmp_path), "--out", str(tmp_path / "a.png")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"metarl: {tmp_path}")
    assert not list(tmp_path.glob("a*.png"))
