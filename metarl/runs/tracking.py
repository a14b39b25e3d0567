"""The records of a run: `config.json`, `metrics.jsonl` and TensorBoard events, all in the run folder.

The x axis of TensorBoard is the iteration. The two records hold the same scalars under the same tags.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import summary as summaries

from metarl.core.errors import InputError, printable
from metarl.core.files import parse_json, read_file, write_atomically, writing
from metarl.core.tags import EVALUATION_PREFIXES, TEST_HIGH, TEST_LOW, TEST_STEP, TRAIN_STEP
from metarl.report.plots import rendered
from metarl.runs.config import flatten

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]
"""A row of `metrics.jsonl`: a number or None under every tag, and the number of the iteration under "iteration"."""


class Tracker:
    """Writes the records of a run.

    Args:
        run_dir: the run folder; made if missing.
        config: JSON-ready configuration.
        num_adaptation_steps: the last step K of `adapt/step_K`.
        num_evaluation_steps: the last step K of `meta_test/step_K`; None = the same.
        start_iteration: the first iteration that will be logged. Records of this iteration and later ones are dropped.
        evaluated_again: the evaluation after the iteration before `start_iteration` is repeated. Its earlier scores,
            which may be in only one of the two records, are dropped too.

    Raises:
        WriteError: the disk is full. All methods raise it too.
        InputError: the folder is not writable.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        config: Mapping[str, object],
        num_adaptation_steps: int,
        num_evaluation_steps: int | None = None,
        start_iteration: int = 0,
        evaluated_again: bool = False,
    ) -> None:
        run_dir = Path(run_dir)
        run_dir.mkdir(parents=True, exist_ok=True)
        self._path = run_dir / "metrics.jsonl"
        recorded = self._path.exists()
        kept, _ = read_rows_before(run_dir, start_iteration)
        evaluated_again = evaluated_again and bool(kept) and kept[-1]["iteration"] == start_iteration - 1
        if evaluated_again:
            kept[-1] = {tag: value for tag, value in kept[-1].items() if not tag.startswith(EVALUATION_PREFIXES)}
        self._last_row: Row = kept[-1] if kept else {}
        with writing(run_dir / "config.json"):
            write_atomically(run_dir / "config.json", (json.dumps(config, indent=2, allow_nan=False) + "\n").encode())
        self._events = _EventFile(run_dir)
        if recorded:
            # TensorBoard drops what it has read of this iteration and of later ones.
            self._events.add(start_iteration - evaluated_again, session_log=SessionLog(status=SessionLog.START))
        else:
            last = num_adaptation_steps if num_evaluation_steps is None else num_evaluation_steps
            self._events.add(0, summary=_layout(num_adaptation_steps, last))
        table = _markdown_table(flatten(config))
        self._events.add(start_iteration, summary=summaries.text("config", table))  # type: ignore[no-untyped-call]
        self._events.flush()
        with writing(self._path):  # last, so that a run folder with this file also has the layout
            write_atomically(self._path, b"".join(map(_line, kept)))
            self._file = self._path.open("ab")
        if evaluated_again:
            plain = ("iteration", "env_steps", "wall_s")
            scalars = {tag: value for tag, value in kept[-1].items() if tag not in plain}
            self._add_scalars(scalars, kept[-1]["iteration"])

    def log(self, iteration: int, scalars: Mapping[str, float], *, env_steps: int, wall_s: float) -> None:
        """Records one iteration. Other processes can read it when this returns.

        Args:
            iteration: number of the iteration.
            scalars: by TensorBoard tag. A value that is not finite becomes null in `metrics.jsonl` and a gap in
                TensorBoard.
            env_steps: environment steps of the run so far.
            wall_s: seconds of the run so far.
        """
        values = {tag: _number(value) for tag, value in scalars.items()}
        self._last_row = {"iteration": iteration, "env_steps": env_steps, "wall_s": _number(wall_s), **values}
        with writing(self._path):
            self._file.write(_line(self._last_row))
            self._file.flush()
        self._add_scalars(values, iteration)

    def evaluation(self, iteration: int, scalars: Mapping[str, float], *, env_steps: int, wall_s: float) -> None:
        """Adds scores on test tasks to the row that `log` wrote for the same iteration.

        TensorBoard is written first, so an evaluation in `metrics.jsonl` is in both records.

        Args:
            iteration: the last one that was logged. If its row was lost, a row with only these scores is written.
            scalars: as in `log`.
            env_steps: as in `log`.
            wall_s: as in `log`.
        """
        if iteration != self._last_row.get("iteration"):
            self.log(iteration, scalars, env_steps=env_steps, wall_s=wall_s)
            return
        values = {tag: _number(value) for tag, value in scalars.items()}
        self._add_scalars({tag: value for tag, value in values.items() if tag not in self._last_row}, iteration)
        before = len(_line(self._last_row))
        self._last_row = {**self._last_row, **values}
        with writing(self._path):
            self._file.close()
            write_atomically(self._path, self._path.read_bytes()[:-before] + _line(self._last_row))
            self._file = self._path.open("ab")

    def sync(self) -> None:
        """Writes both records to the disk, and waits until that is done."""
        with writing(self._path):
            os.fsync(self._file.fileno())
        self._events.sync()

    def figure(self, tag: str, figure: Figure, iteration: int) -> None:
        """Adds a picture to TensorBoard."""
        picture = rendered(figure, "png", dpi=figure.dpi)
        width, height = (round(side * figure.dpi) for side in figure.get_size_inches())
        image = Summary.Image(encoded_image_string=picture, width=width, height=height, colorspace=4)
        self._events.add(iteration, summary=Summary(value=[Summary.Value(tag=tag, image=image)]))
        self._events.flush()

    def hparams(self, config_flat: Mapping[str, object], metrics: Mapping[str, float]) -> None:
        """Adds the run to TensorBoard's HParams tab.

        Args:
            config_flat: setting -> value, such as `flatten(config)`.
            metrics: results by tag. Tags of their own, such as "hparam/return", keep them out of the run's curves.
        """
        plain = (bool, int, float, str)
        settings = {
            key: value if isinstance(value, plain) else printable(str(value)) for key, value in config_flat.items()
        }
        results = {tag: number for tag, value in metrics.items() if (number := _number(value)) is not None}
        for summary in summaries.hparams(settings, results):  # type: ignore[no-untyped-call]
            self._events.add(0, summary=summary)
        self._add_scalars(results, self._last_row.get("iteration", 0))

    def close(self) -> None:
        """Closes both records. They are complete after every method, so closing after an error loses nothing."""
        with contextlib.suppress(OSError):
            self._file.close()
        self._events.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _add_scalars(self, values: Mapping[str, float | None], iteration: int) -> None:
        finite = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items() if value is not None]
        self._events.add(iteration, summary=Summary(value=finite))
        self._events.flush()


class _EventFile:
    """A TensorBoard event file. (SummaryWriter would write on another thread, where errors are lost.)"""

    def __init__(self, run_dir: Path) -> None:
        # TensorBoard reads event files in the order of their names, and stops reading one when it finds the next. The
        # new name must be the last one, even if a file has the same second or the clock was set back.
        earlier = [path.name.split(".") for path in run_dir.glob("events.out.tfevents.*")]
        second = max([int(time.time()), *(int(parts[3]) for parts in earlier if parts[3].isdecimal())])
        name = f"events.out.tfevents.{second:010d}.{len(earlier):06d}.{socket.gethostname()}"
        self._path = run_dir / name
        with writing(self._path):
            self._file = self._path.open("xb")
        self._records = RecordWriter(self._file)
        self.add(0, file_version="brain.Event:2")

    def add(self, iteration: int, **content: Any) -> None:
        event = Event(wall_time=time.time(), step=iteration, **content)
        with writing(self._path):
            self._records.write(event.SerializeToString())

    def flush(self) -> None:
        with writing(self._path):
            self._file.flush()

    def sync(self) -> None:
        with writing(self._path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()


def read_metrics(run_dir: Path) -> list[Row]:
    """The rows of `metrics.jsonl`, oldest first. An incomplete last line, left by a kill, is ignored.

    Raises:
        InputError: no such file, or a damaged line before the last.
    """
    path = Path(run_dir) / "metrics.jsonl"
    try:
        return _rows(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def read_rows_before(run_dir: Path, start_iteration: int) -> tuple[list[Row], list[str]]:
    """The rows of `metrics.jsonl` that a run resumed at `start_iteration` keeps, and what is wrong with them.

    Returns:
        The rows in order, one for each iteration (the last one), and a text for each lost, damaged or repeated row.

    Raises:
        InputError: the file cannot be read.
    """
    path = run_dir / "metrics.jsonl"
    try:
        lines = read_file(path).split(b"\n")
    except FileNotFoundError:
        lines = []
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    rows: dict[int, Row] = {}
    wrong = []
    for number, line in enumerate(lines, start=1):
        try:
            row = _row(line) if line else None
        except ValueError:
            wrong += [f"line {number} is damaged"] if number < len(lines) else []  # a kill may cut off the last line
            continue
        if row is not None and row["iteration"] < start_iteration:
            wrong += [f"iteration {row['iteration']} is there twice"] if row["iteration"] in rows else []
            rows[row["iteration"]] = row
    lost = [iteration for iteration in range(1, start_iteration) if iteration not in rows]
    if lost:
        wrong.append(f"{len(lost)} of {start_iteration - 1} rows are lost, the first of iteration {lost[0]}")
    return [rows[iteration] for iteration in sorted(rows)], wrong


def _rows(path: Path) -> list[Row]:
    lines = read_file(path).split(b"\n")
    rows: list[Row] = []
    for number, line in enumerate(lines, start=1):
        try:
            rows += [_row(line)] if line else []
        except ValueError as error:
            if number < len(lines):
                raise InputError(f"{path}:{number}: is damaged: {error}") from error
    return rows


def _row(line: bytes) -> Row:
    """The row in `line`. Raises `ValueError` if it is not an iteration with a number or null under every tag."""
    row = parse_json(line)
    numbers = isinstance(row, dict) and all(value is None or type(value) in (int, float) for value in row.values())
    if not numbers or type(row.get("iteration")) is not int:
        raise ValueError("holds no numbers of an iteration")
    return cast(Row, row)


def _line(row: Row) -> bytes:
    return (json.dumps(row, allow_nan=False) + "\n").encode()


def _number(value: float) -> float | None:
    number = value if isinstance(value, int) else float(value)
    return number if math.isfinite(number) else None


def _layout(num_adaptation_steps: int, num_evaluation_steps: int) -> Summary:
    """TensorBoard's custom charts: one chart has all steps of a curve; test tasks also have a chart with intervals."""
    charts = []
    for title, tag, last in (
        ("training tasks", TRAIN_STEP, num_adaptation_steps),
        ("test tasks", TEST_STEP, num_evaluation_steps),
    ):
        tags = [f"{tag}{step}" for step in range(last + 1)]
        charts.append(layout_pb2.Chart(title=title, multiline=layout_pb2.MultilineChartContent(tag=tags)))
    bands = [
        layout_pb2.MarginChartContent.Series(
            value=f"{TEST_STEP}{step}",
            lower=f"{TEST_LOW}{step}",
            upper=f"{TEST_HIGH}{step}",
        )
        for step in range(num_evaluation_steps + 1)
    ]
    margin = layout_pb2.MarginChartContent(series=bands)
    charts.append(layout_pb2.Chart(title="test tasks, 95 % intervals", margin=margin))
    summary = summaries.custom_scalars({})  # type: ignore[no-untyped-call]
    layout = layout_pb2.Layout(category=[layout_pb2.Category(title="adaptation", chart=charts)])
    summary.value[0].tensor.string_val[0] = layout.SerializeToString()
    return summary


def _as_text(value: object) -> str:
    """`value` as Markdown. Characters with a meaning in Markdown or HTML are escaped."""
    text = printable(str(value)).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*{}\[\]()#!|>]|(?<!\w)_|_(?!\w))", r"\\\1", text)


def _markdown_table(settings: Mapping[str, object]) -> str:
    rows = [f"| {_as_text(key)} | {_as_text(value)} |" for key, value in settings.items()]
    return "\n".join(["| setting | value |", "|---|---|", *rows])
