"""Imports matplotlib even if MPLBACKEND is wrong: pictures go into files, which needs no backend."""

from __future__ import annotations

import contextlib
import os

_wanted = os.environ.pop("MPLBACKEND", None)
try:
    import matplotlib
finally:
    if _wanted is not None:
        os.environ["MPLBACKEND"] = _wanted
if _wanted:
    with contextlib.suppress(ValueError):  # MPLBACKEND names an unknown backend
        matplotlib.rcParams["backend"] = _wanted
