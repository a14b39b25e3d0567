"""Draws pictures of run folders. Their files may have any content."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from metarl.core.errors import InputError, raised
from metarl.report import plots
from metarl.runs import reports, tracking

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(run_dirs: Sequence[Path], out: Path) -> list[Path]:
    """Draws one run's adaptation curve and its trajectories, if any, or the learning curves of several runs.

    Args:
        run_dirs: one run folder or more.
        out: the picture's file. The picture of trajectories is FILE.paths.png beside it.

    Returns:
        The written files. If one picture cannot be drawn, none is written.

    Raises:
        InputError: a file cannot be read, drawn or written.
    """
    plots.check_path(out)
    first, single = run_dirs[0], len(run_dirs) == 1
    drawn = {}
    if single and (first / "adaptation.json").is_file():
        report = reports.read_report(first)
        drawn[out] = _drawn(first / "adaptation.json", lambda: plots.adaptation_figure(report), out)
    else:
        rows = {str(run_dir): tracking.read_metrics(run_dir) for run_dir in run_dirs}
        drawn[out] = _drawn(first / "metrics.jsonl", lambda: plots.learning_figure(rows), out)
    if single and (first / "paths.json").is_file():
        beside = out.with_suffix(f".paths{out.suffix}")
        plots.check_path(beside)
        routes = reports.read_routes(first)
        drawn[beside] = _drawn(first / "paths.json", lambda: plots.routes_figure(routes), beside)
    for path, data in drawn.items():
        plots.write_picture(data, path)
    return list(drawn)


def _drawn(source: Path, draw: Callable[[], Figure], path: Path) -> bytes:
    """The picture that `draw` makes of the file `source`, in the format of `path`.

    Raises:
        InputError: `source` cannot be drawn.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return plots.rendered(draw(), path.suffix[1:])
    except InputError:
        raise
    except Exception as error:  # the file may hold anything
        raise InputError(f"{source}: is damaged: it cannot be drawn: {raised(error)}") from error
