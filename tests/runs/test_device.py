from __future__ import annotations

import pytest
import torch

from metarl.core.errors import InputError
from metarl.runs.device import select_device


def test_devices_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert select_device("auto") == select_device("cpu") == torch.device("cpu")
    with pytest.raises(InputError, match=r"^trainer.device = 'cuda': .*; use 'auto' or 'cpu'$") as raised:
        select_device("cuda")
    assert "\n" not in str(raised.value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert select_device("cpu") == torch.device("cpu")
    assert torch.backends.cudnn.allow_tf32
    assert select_device("auto") == select_device("cuda") == torch.device("cuda")
    assert not torch.backends.cudnn.allow_tf32
