"""Chooses the device of a run."""

from __future__ import annotations

import torch

from metarl.core.errors import InputError


def select_device(name: str) -> torch.device:
    """The device called `name`; "auto" is CUDA if torch finds it, else the CPU.

    On CUDA, this switches TensorFloat-32 off in cuDNN's convolutions and recurrent networks, where it is torch's
    default. TensorFloat-32 changed MAML's meta-gradient on images of noise by a fifth of its norm.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        reason = "this torch is a CPU build" if torch.version.cuda is None else "torch finds no CUDA device"
        raise InputError(f"trainer.device = 'cuda': {reason}; use 'auto' or 'cpu'")
    if not available or name == "cpu":
        return torch.device("cpu")
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda")
