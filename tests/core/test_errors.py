from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from metarl.core.errors import raised

CODE = """
from metarl.rl.task_in_observation import TaskInObservation

def make():
    return TaskInObservation(None)
"""


def test_the_place_of_an_error_is_in_the_users_code_and_not_in_metarl(tmp_path: Path) -> None:
    path = tmp_path / "users_code.py"
    path.write_text(CODE)
    spec = importlib.util.spec_from_file_location("users_code", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        module.make()
    except Exception as error:
        message = raised(error)
    assert re.search(r"users_code\.py:5\)$", message), message
