"""Checks that a saved state fits the learner that loads it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from metarl.core.errors import one_line
from metarl.runs.checkpoint import CheckpointError


def require_fit(path: Path, saved: Any, own: Any, name: str = "state") -> None:
    """Compares a saved state with that of the learner that loads it. Parts that only one has are not compared.

    Raises:
        CheckpointError: a part has another type, shape or dtype. The message names it.
    """
    if isinstance(own, Mapping) and isinstance(saved, Mapping):
        for key in [key for key in own if key in saved]:
            require_fit(path, saved[key], own[key], f"{name}.{key}")
    if own is None or (isinstance(own, Mapping) and isinstance(saved, Mapping)):
        return
    described = [_described(value) for value in (saved, own)]
    if described[0] != described[1]:
        what = f"{one_line(name)} is {described[0]}, the learner's is {described[1]}"
        raise of_another_learner(path, what)


def require_counts(path: Path, manifest: Mapping[str, Any]) -> None:
    """Raises CheckpointError unless `manifest` has valid environment steps and seconds of the run so far."""
    extra = manifest.get("extra", {})
    steps, seconds = extra.get("env_steps"), extra.get("wall_s")
    counted = type(steps) is int and 0 <= steps < 2**63
    if not (counted and type(seconds) in (int, float) and 0.0 <= seconds < math.inf):
        raise CheckpointError(f"{path}: its manifest has no valid env_steps or wall_s: no run saved it")


def of_another_learner(path: Path, reason: str) -> CheckpointError:
    other = "is of another learner, or of an older version of its task family"
    return CheckpointError(f"{path}: {other}: {reason}; train again")


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {value.dtype}"
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return "a number" if math.isfinite(value) else str(value)
    return f"a {type(value).__name__}"
