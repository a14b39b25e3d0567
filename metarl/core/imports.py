"""Imports modules of the user."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from importlib.machinery import PathFinder
from pathlib import Path


def search_working_directory(module_name: str) -> None:
    """Lets Python find the user's own modules in the working directory, after all other places.

    MetaRL's own modules are imported first: their optional packages (torch: opt_einsum) must not come from there.
    """
    top = module_name.partition(".")[0]
    with contextlib.suppress(OSError, ValueError):  # no such folder any more; a name that no module can have
        folder = str(Path.cwd())
        somewhere = top in sys.modules or importlib.util.find_spec(top) or PathFinder.find_spec(top, [folder])
        if somewhere and folder not in sys.path:
            importlib.import_module("metarl.runs.train")  # by name: core must not import runs
            sys.path.append(folder)
