"""What every test must leave as it found it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch


def _globals() -> dict[str, object]:
    name, keys, position, *_ = np.random.get_state(legacy=True)  # noqa: NPY002
    return {
        "numpy's global generator": (name, np.asarray(keys).tobytes(), position),
        "torch's thread count": torch.get_num_threads(),
        "torch's default dtype": torch.get_default_dtype(),
    }


@pytest.fixture(autouse=True, scope="session")
def _no_folders_of_sb3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """stable-baselines3 makes an empty folder in the system's temporary one for every model that learns."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SB3_LOGDIR", str(tmp_path_factory.mktemp("sb3")))
        yield


@pytest.fixture(autouse=True)
def _globals_untouched() -> Iterator[None]:
    before = _globals()
    yield
    changed = [name for name, value in _globals().items() if value != before[name]]
    assert not changed, f"the test changed {', '.join(changed)}"
