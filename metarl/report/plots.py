"""Pictures of a run: adaptation curve, learning curves, the agent's routes. Drawn without pyplot's global state."""

from __future__ import annotations

from metarl.report import backend as backend  # first: it imports matplotlib whatever MPLBACKEND says

# isort: split
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Rectangle
from matplotlib.ticker import EngFormatter
from numpy.typing import ArrayLike, NDArray

from metarl.core import tags
from metarl.core.errors import InputError, printable, require
from metarl.core.files import require_replaceable, write_atomically, writing
from metarl.core.schema import Controls, Report, Routes, RoutesOfTask, SceneView
from metarl.report.text import endpoints

# Okabe and Ito's palette: colour-blind readers can distinguish its colours.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8B6F47")
JOINT_TAGS = ("train/accuracy", "train/mse")  # of updates that adapt to no task
SCORE_LABELS = {"return": "return per trajectory", "accuracy": "accuracy (fraction)", "mse": "mean squared error"}
SUFFIXES = (".png", ".pdf", ".svg")
MAX_NAMED_TASKS = 8
MAX_LABEL = 24  # characters
MAX_COLUMN_LABELS = 3
MAX_ROWS = 64  # rows of panels in a picture, or of cells in a table

_PANEL = (5.6, 4.0)  # inches
_SCENE = 2.5  # inches
_WALL, _START, _GOAL = "#3A3A3A", "#222222", "#F0C300"
Floats = NDArray[np.float64]
Route = Sequence[Sequence[float]]  # positions (x, y)
Rows = Sequence[Mapping[str, float | None]]  # of metrics.jsonl

_MARKS: dict[str, dict[str, Any]] = {
    "start": {"color": _START, "marker": "s", "markersize": 6, "markerfacecolor": "white", "linestyle": "none"},
    "goal": {"color": _START, "marker": "*", "markersize": 13, "markerfacecolor": _GOAL, "linestyle": "none"},
    "end of a trajectory": {"marker": "o", "markersize": 5, "markeredgecolor": "white", "linestyle": "none"},
}
_STYLE: Any = {
    "font.size": 11,
    "axes.labelsize": 12,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "lines.linewidth": 2.0,
    "lines.solid_capstyle": "round",
    "figure.dpi": 120,
    "savefig.dpi": 200,
    "svg.fonttype": "none",
    # The user's matplotlibrc must not change how names of tasks and runs are shown.
    "text.parse_math": False,
    "text.usetex": False,
    "axes.formatter.use_mathtext": False,
}


def adaptation_figure(curve: Report) -> Figure:
    """Draws an adaptation curve.

    Args:
        curve: the content of `adaptation.json`. Each task of a finite family of up to eight tasks has a labelled line;
            tasks of other families have faint lines. `success` and `cross_adaptation` have a panel each.
    """
    cross = curve.get("cross_adaptation")
    with matplotlib.rc_context(_STYLE):
        figure, panels = _panels(1 + ("success" in curve) + bool(cross))
        _draw_curve(panels[0], curve)
        if "success" in curve:
            _draw_success(panels[1], curve)
        if cross:
            _draw_cross_adaptation(panels[-1], cross, str(curve["score"]))
    return figure


def routes_figure(routes: Routes) -> Figure:
    """Draws the agent's routes on a few tasks: a row per task, before adaptation on the left, after it on the right.

    Args:
        routes: the content of `paths.json`.
    """
    _require_few("tasks", routes["tasks"])
    tasks, columns = routes["tasks"], endpoints(routes["unit"])[: len(routes["steps"])]
    with matplotlib.rc_context({**_STYLE, "axes.grid": False}):
        figure = Figure(figsize=(_SCENE * len(columns) + 0.4, _SCENE * len(tasks) + 0.8), layout="constrained")
        panels = figure.subplots(len(tasks), len(columns), squeeze=False)
        limits = _scene_limits(tasks)
        for row, (task, label) in enumerate(zip(tasks, _short([task["task"] for task in tasks]), strict=True)):
            for axes, drawn in zip(panels[row], task["ways"], strict=True):
                _draw_scene(axes, task["scene"], drawn, limits)
            panels[row, 0].set_ylabel(label, fontsize=10)
        for axes, title in zip(panels[0], columns, strict=True):
            axes.set_title(title)
        _explain_scenes(figure, tasks)
    return figure


def scenes_figure(scenes: Sequence[tuple[str, SceneView]], *, num_columns: int) -> Figure:
    """Draws tasks from above, each at its own scale.

    Args:
        scenes: title and scene, as in `paths.json`, of each.
        num_columns: panels in a row.
    """
    tasks: list[RoutesOfTask] = [{"task": title, "scene": scene, "ways": []} for title, scene in scenes]
    num_rows = -(-len(scenes) // num_columns)
    with matplotlib.rc_context({**_STYLE, "axes.grid": False}):
        figure = Figure(figsize=(_SCENE * num_columns, (_SCENE + 0.3) * num_rows + 0.3), layout="constrained")
        panels = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
        for axes, (title, scene), task in zip(panels, scenes, tasks, strict=False):
            _draw_scene(axes, scene, [], _scene_limits([task]))
            axes.set_title(title)
        for axes in panels[len(scenes) :]:
            axes.set_axis_off()
        _explain_scenes(figure, tasks, without=("end of a trajectory",))
    return figure


def learning_figure(runs: Mapping[str, Rows]) -> Figure:
    """Draws the score against environment steps. If a run was evaluated in training, a second panel has test tasks.

    Args:
        runs: label -> rows of `metrics.jsonl`.

    Raises:
        InputError: a run has no score to draw.
    """
    runs = {printable(label): rows for label, rows in runs.items()}
    for label, rows in runs.items():
        if not any(_values(rows, tag)[0].size for tag in (tags.PRE_ADAPT, tags.POST_ADAPT, *JOINT_TAGS)):
            raise InputError(f"{label}: metrics.jsonl holds no {tags.POST_ADAPT} to draw")
    steps = {label: _evaluated_steps(rows) for label, rows in runs.items()}
    evaluated = any(steps.values())
    with matplotlib.rc_context(_STYLE):
        figure, panels = _panels(2 if evaluated else 1)
        for colour, (label, rows) in zip(_cycle(len(runs)), runs.items(), strict=True):
            _draw_training(panels[0], rows, colour, f"{label}: " if len(runs) > 1 else "")
            if evaluated:
                _draw_evaluations(panels[1], rows, steps[label], colour, f"{label}: " if len(runs) > 1 else "")
        panels[0].set_title("training tasks")
        if evaluated:
            panels[1].set_title("test tasks")
        for panel in panels:
            panel.set_xlabel("environment steps")
            panel.set_ylabel(SCORE_LABELS["return"])
            panel.xaxis.set_major_formatter(EngFormatter(sep=""))
            if len(runs) == 1:
                panel.legend(loc="best")
            else:
                panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=min(len(runs), 3))
    return figure


def check_path(path: Path) -> None:
    """Raises `InputError` unless `path` has a picture's suffix and is a regular file or does not exist."""
    require(path.suffix in SUFFIXES, "picture", str(path), f"a file ending in {', '.join(SUFFIXES)}")
    with writing(path):
        require_replaceable(path)


def save_figure(figure: Figure, path: Path) -> None:
    """Writes `figure` as png, pdf or svg, by the suffix of `path`. An interrupted write leaves the old file.

    Raises:
        InputError: another suffix, or the file cannot be written.
        WriteError: the disk is full.
    """
    path = Path(path)
    check_path(path)
    write_picture(rendered(figure, path.suffix[1:]), path)


def write_picture(data: bytes, path: Path) -> None:
    """Writes a picture made by `rendered`. Raises the same errors as `save_figure`."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)


def rendered(figure: Figure, kind: str, *, dpi: float | None = None) -> bytes:
    """`figure` as the content of a file of `kind`, "png", "pdf" or "svg", with `dpi` pixels per inch (None = 200)."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # names in other scripts; they show as boxes
        figure.savefig(buffer, format=kind, dpi=dpi or _STYLE["savefig.dpi"])
    return buffer.getvalue()


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(_PANEL[0] * count, _PANEL[1]), layout="constrained")
    return figure, [figure.add_subplot(1, count, number + 1) for number in range(count)]


def _draw_curve(axes: Axes, curve: Report) -> None:
    steps = curve["steps"]
    per_task = np.asarray(curve["per_task"], dtype=float)
    named = curve["num_replicates"] > 1 and per_task.shape[1] <= MAX_NAMED_TASKS
    if named:
        _draw_named_tasks(axes, curve, per_task)
    else:
        axes.plot(steps, per_task, color="#9A9A9A", alpha=0.35, linewidth=0.8)
    colour = "#222222" if named else COLOURS[0]
    axes.plot(
        steps, _floats(curve["mean"]), color=colour, marker="o", markersize=5, label="mean, 95 % interval", zorder=4
    )
    axes.fill_between(
        steps, _floats(curve["ci_low"]), _floats(curve["ci_high"]), color=colour, alpha=0.2, linewidth=0, zorder=3
    )
    axes.plot(steps, _floats(curve["iqm"]), color=colour, linestyle=(0, (4, 2)), linewidth=1.4, label="IQM", zorder=4)
    if not named and per_task.shape[1] > 1:
        axes.plot([], [], color="#9A9A9A", linewidth=0.8, label=f"each of {per_task.shape[1]} tasks")
    if "baseline" in curve:
        baseline = curve["baseline"]
        axes.axhline(baseline["mean"], color=COLOURS[1], linestyle=":", label=printable(baseline["name"]), zorder=2)
    better = "" if curve["higher_is_better"] else " (lower is better)"
    axes.set_ylabel(_score_label(curve["score"]) + better)
    _label_steps(axes, curve)
    axes.legend(loc="best")


def _draw_success(axes: Axes, curve: Report) -> None:
    low, high = _floats(curve["success_ci_low"]), _floats(curve["success_ci_high"])
    axes.plot(curve["steps"], _floats(curve["success"]), color=COLOURS[2], marker="o", markersize=5)
    axes.fill_between(curve["steps"], low, high, color=COLOURS[2], alpha=0.2, linewidth=0)
    axes.set_ylim(-0.03, 1.03)
    axes.set_ylabel("success rate, 95 % interval")
    _label_steps(axes, curve)


def _draw_named_tasks(axes: Axes, curve: Report, per_task: Floats) -> None:
    low, high = curve.get("per_task_ci_low"), curve.get("per_task_ci_high")
    for index, (task, colour) in enumerate(zip(_short(curve["tasks"]), COLOURS, strict=False)):
        axes.plot(curve["steps"], per_task[:, index], color=colour, marker="o", markersize=4, label=task)
        if low is not None and high is not None:
            axes.fill_between(
                curve["steps"], _floats(low)[:, index], _floats(high)[:, index], color=colour, alpha=0.18, linewidth=0
            )


def _label_steps(axes: Axes, curve: Report) -> None:
    """Labels each step with its number and, below, the experience spent up to this step."""
    stride = -(-len(curve["steps"]) // 9)
    format_count = EngFormatter(sep="", places=None)
    ticks = curve["steps"][::stride]
    spent = curve["env_steps"][::stride]
    axes.set_xticks(ticks, [f"{step}\n{format_count(round(count))}" for step, count in zip(ticks, spent, strict=True)])
    experience = "environment steps" if curve["score"] == "return" else "examples"
    axes.set_xlabel(f"{printable(curve['unit'])}\n({experience} spent on the task)")


def _draw_cross_adaptation(axes: Axes, cross: Controls, score: str) -> None:
    _require_few("cross_adaptation", cross["matrix"])
    tasks = [label.replace("(", "\n(", 1) for label in _short(cross["tasks"])]
    columns = tasks
    if len(tasks) > MAX_COLUMN_LABELS:
        columns = [str(number) for number in range(1, len(tasks) + 1)]
        tasks = [
            task if task == f"task {number}" else f"{number}: {task}"
            for number, task in zip(columns, tasks, strict=True)
        ]
    known = {"zero\nreward": cross.get("zero_reward"), "nothing": cross.get("before")}  # earlier files lack some
    controls = {label: scores for label, scores in known.items() if scores is not None}
    rows, matrix = [*tasks, *controls], _floats([*cross["matrix"], *controls.values()])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    image = axes.imshow(matrix, cmap="cividis", aspect="auto")
    if controls:
        axes.axhline(len(columns) - 0.5, color="white", linewidth=5)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0, labelsize=10)
    axes.set_xlabel("scored on")
    axes.set_ylabel("adapted on")
    axes.set_title(f"cross-adaptation: {_score_label(score)}")
    shades = np.asarray(image.cmap(image.norm(matrix)))[..., :3] @ (0.299, 0.587, 0.114)
    for (row, column), value in np.ndenumerate(matrix):
        ink = "black" if shades[row, column] > 0.5 else "white"
        axes.text(column, row, f"{value:.3g}", ha="center", va="center", color=ink, fontsize=13)


def _draw_scene(axes: Axes, scene: SceneView, routes: Sequence[Route], limits: Sequence[float]) -> None:
    for x, y, width, height in scene["walls"]:
        axes.add_patch(Rectangle((x, y), width, height, facecolor=_WALL, linewidth=0))
    if scene["goal"]:
        x, y = scene["goal"]
        axes.add_patch(Circle((x, y), scene["goal_radius"], facecolor=_GOAL, alpha=0.45, linewidth=0))
    for number, (route, colour) in enumerate(zip(routes, COLOURS, strict=False)):
        points = _floats(route)
        # Later routes are thinner, so that routes that coincide all stay visible.
        axes.plot(*points.T, color=colour, linewidth=3.2 * 0.7**number, solid_joinstyle="round")
        axes.plot(*points[-1], color=colour, **_MARKS["end of a trajectory"], zorder=3)
    if scene["start"]:
        axes.plot(*scene["start"], **_MARKS["start"], zorder=4)
    if scene["goal"]:
        axes.plot(*scene["goal"], **_MARKS["goal"], zorder=4)
    axes.set(xlim=limits[:2], ylim=limits[2:], aspect="equal", xticks=[], yticks=[])
    axes.spines[:].set(visible=not scene["walls"], color="#BBBBBB")


def _scene_limits(tasks: Sequence[RoutesOfTask]) -> list[float]:
    """x_min, x_max, y_min, y_max of a square around all that is drawn, with a margin."""
    drawn: list[ArrayLike] = [route for task in tasks for routes in task["ways"] for route in routes]
    for scene in (task["scene"] for task in tasks):
        drawn += [[(x, y), (x + width, y + height)] for x, y, width, height in scene["walls"]]
        drawn += [[mark] for mark in (scene["start"], scene["goal"]) if mark]
        if scene["extent"]:
            drawn.append([scene["extent"][0::2], scene["extent"][1::2]])
    points = np.concatenate([_floats(part) for part in drawn] or [np.zeros((1, 2))])
    low, high = points.min(0), points.max(0)
    half = 0.53 * max(float((high - low).max()), 1e-6)
    x, y = (low + high) / 2
    return [x - half, x + half, y - half, y + half]


def _explain_scenes(figure: Figure, tasks: Sequence[RoutesOfTask], without: Sequence[str] = ()) -> None:
    marks = [name for name in _MARKS if name not in without]
    shown = [name for name in marks if any(task["scene"].get(name, True) for task in tasks)]
    handles = [Line2D([], [], **{"color": COLOURS[0], **_MARKS[name]}, label=name) for name in shown]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), handletextpad=0.4, columnspacing=1.4)


def _require_few(name: str, rows: Sequence[object]) -> None:
    if len(rows) > MAX_ROWS:
        raise ValueError(f"{name} has {len(rows)} entries, more than a picture can show")


def _score_label(score: str) -> str:
    return SCORE_LABELS.get(score, printable(score))


def _short(tasks: Sequence[str]) -> list[str]:
    """Short labels: numbers have three digits. If a label is still too long, all tasks are numbered instead."""
    names = [printable(str(task)) for task in tasks]
    labels = [re.sub(r"\d+\.\d+(e-?\d+)?", lambda number: f"{float(number[0]):.3g}", name) for name in names]
    fit = max(map(len, labels)) <= MAX_LABEL
    return labels if fit else [f"task {number}" for number in range(1, len(labels) + 1)]


def _draw_training(axes: Axes, rows: Rows, colour: str, prefix: str) -> None:
    joint = [(tag, "joint training", ":") for tag in JOINT_TAGS]
    for tag, label, style in ((tags.POST_ADAPT, "last step", "-"), (tags.PRE_ADAPT, "step 0", (0, (4, 2))), *joint):
        env_steps, values = _values(rows, tag)
        if values.size:
            width = 1.8 if tag == tags.POST_ADAPT else 1.3
            axes.plot(env_steps, values, color=colour, linestyle=style, linewidth=width, label=prefix + label)


def _draw_evaluations(axes: Axes, rows: Rows, steps: Sequence[int], colour: str, prefix: str) -> None:
    for step in steps:
        env_steps, values = _values(rows, f"{tags.TEST_STEP}{step}")
        shade = _paler(colour, 0.3 + 0.7 * (step + 1) / (max(steps) + 1))
        axes.plot(env_steps, values, color=shade, marker="o", markersize=4, label=f"{prefix}step {step}")
        (_, low), (_, high) = (_values(rows, f"{end}{step}") for end in (tags.TEST_LOW, tags.TEST_HIGH))
        if low.shape == high.shape == values.shape:  # records of earlier versions have no intervals
            axes.fill_between(env_steps, low, high, color=shade, alpha=0.15, linewidth=0)


def _evaluated_steps(rows: Rows) -> list[int]:
    return tags.steps_in((tag for row in rows for tag in row), tags.TEST_STEP)


def _values(rows: Rows, tag: str) -> tuple[Floats, Floats]:
    points = [(row["env_steps"], row[tag]) for row in rows if None not in (row.get(tag), row.get("env_steps"))]
    array = np.asarray(points, dtype=float).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def _floats(values: ArrayLike) -> Floats:
    return np.asarray(values, dtype=np.float64)


def _cycle(count: int) -> list[str]:
    return [COLOURS[index % len(COLOURS)] for index in range(count)]


def _paler(colour: str, strength: float) -> tuple[float, ...]:
    return tuple(1.0 - strength * (1.0 - channel) for channel in to_rgb(colour))
