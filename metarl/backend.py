"""Imports matplotlib whatever MPLBACKEND says: pictures go into files, and for these no backend is needed."""

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
    with contextlib.suppress(ValueError):  # it names none that there is
        matplotlib.rcParams["backend"] = _wanted
