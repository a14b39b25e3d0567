"""Catches MuJoCo's warnings in environments that step one by one.

By default MuJoCo prints each warning and writes it into MUJOCO_LOG.TXT in the working directory.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

_logger = logging.getLogger(__name__)


@contextlib.contextmanager
def caught() -> Iterator[list[str]]:
    """Collects MuJoCo's warnings and logs them at level INFO. The former handler is restored at the end."""
    import mujoco  # only where environments are stepped one by one

    texts: list[str] = []
    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(texts.append)
    try:
        yield texts
    finally:
        mujoco.set_mju_user_warning(before)
        for text in texts:
            _logger.info("MuJoCo: %s", text)
            if before is not None:
                before(text)


def diverged(texts: list[str]) -> bool:
    """Whether a simulation diverged. MuJoCo then resets it to its initial state and continues with finite numbers."""
    return any("simulation is unstable" in text for text in texts)
