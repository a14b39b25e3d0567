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


@pytest.fixture(autouse=True)
def _globals_untouched() -> Iterator[None]:
    before = _globals()
    yield
    changed = [name for name, value in _globals().items() if value != before[name]]
    assert not changed, f"the test changed {', '.join(changed)}"
