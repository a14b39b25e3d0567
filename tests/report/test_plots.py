from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle
from PIL import Image

from metarl.core import tags
from metarl.core.errors import InputError
from metarl.report import plots
from metarl.report.plots import adaptation_figure, learning_figure, routes_figure, save_figure, scenes_figure


def curve(num_tasks: int, num_replicates: int, **entries: Any) -> dict[str, Any]:
    per_task = np.arange(4.0)[:, None] * 10 + np.arange(num_tasks)
    mean = per_task.mean(1)
    return {
        "schema_version": 1,
        "unit": "gradient steps",
        "score": "return",
        "higher_is_better": True,
        "steps": [0, 1, 2, 3],
        "env_steps": [0.0, 4000.0, 8000.0, 12000.0],
        "mean": mean.tolist(),
        "iqm": (mean + 1).tolist(),
        "ci_low": (mean - 2).tolist(),
        "ci_high": (mean + 2).tolist(),
        "per_task": per_task.tolist(),
        "tasks": [f"Direction(sign={index})" for index in range(num_tasks)],
        "num_tasks": num_tasks,
        "num_replicates": num_replicates,
        "resampling": "tasks",
        **entries,
    }


def labels(figure: Figure, panel: int = 0) -> list[str]:
    legend = figure.axes[panel].get_legend()
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]


def line(figure: Figure, label: str, panel: int = 0) -> Any:
    (found,) = (line for line in figure.axes[panel].get_lines() if line.get_label() == label)
    return found


def rows(scale: float, *, evaluated: bool = False) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    for iteration in range(1, 6):
        row = {"iteration": iteration, "env_steps": 1000 * iteration, tags.PRE_ADAPT: 1.0}
        row[tags.POST_ADAPT] = None if iteration == 3 else scale * iteration
        if evaluated and iteration in (2, 4):
            row |= {f"meta_test/step_{step}": scale * step for step in (0, 1, 10)}
            row |= {f"meta_test_ci/low_step_{step}": scale * step - iteration for step in (0, 1, 10)}
            row |= {f"meta_test_ci/high_step_{step}": scale * step + 2 * iteration for step in (0, 1)}
        made.append(row)
    return made


def test_an_adaptation_curve_shows_mean_interval_iqm_and_every_task() -> None:
    figure = adaptation_figure(curve(40, 1))
    assert labels(figure) == ["mean, 95 % interval", "IQM", "each of 40 tasks"]
    assert line(figure, "mean, 95 % interval").get_ydata().tolist() == [19.5, 29.5, 39.5, 49.5]
    assert line(figure, "IQM").get_ydata().tolist() == [20.5, 30.5, 40.5, 50.5]
    (axes,) = figure.axes
    assert len(axes.get_lines()) == 40 + 3
    band = axes.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == (17.5, 51.5)


def test_a_small_finite_family_gets_a_labelled_line_per_task_with_its_interval() -> None:
    low, high = [[-1.0, -1.0]] * 4, [[99.0, 99.0]] * 4
    figure = adaptation_figure(curve(2, 20, per_task_ci_low=low, per_task_ci_high=high))
    assert labels(figure) == ["Direction(sign=0)", "Direction(sign=1)", "mean, 95 % interval", "IQM"]
    assert line(figure, "Direction(sign=1)").get_ydata().tolist() == [1.0, 11.0, 21.0, 31.0]
    colours = {to_hex(drawn.get_color()) for drawn in figure.axes[0].get_lines()}
    assert len(colours) == 3
    assert len(figure.axes[0].collections) == 3
    assert labels(adaptation_figure(curve(9, 20)))[0] == "mean, 95 % interval"


def test_the_axes_say_what_was_spent_and_measured() -> None:
    (axes,) = adaptation_figure(curve(3, 1)).axes
    assert axes.get_xlabel() == "gradient steps\n(environment steps spent on the task)"
    assert axes.get_ylabel() == "return per trajectory"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0\n0", "1\n4k", "2\n8k", "3\n12k"]
    few_shot = curve(3, 1, unit="shots", score="mse", higher_is_better=False)
    (axes,) = adaptation_figure(few_shot).axes
    assert axes.get_xlabel() == "shots\n(examples spent on the task)"
    assert axes.get_ylabel() == "mean squared error (lower is better)"


def test_a_long_curve_numbers_only_some_steps() -> None:
    long = {name: list(range(50)) for name in ("steps", "env_steps", "mean", "iqm", "ci_low", "ci_high")}
    (axes,) = adaptation_figure(curve(1, 1, **long, per_task=[[1.0]] * 50)).axes
    assert axes.get_xticks().tolist() == [0, 6, 12, 18, 24, 30, 36, 42, 48]


def test_what_was_not_finite_is_a_gap() -> None:
    figure = adaptation_figure(curve(2, 1, mean=[0.0, None, 2.0, 3.0]))
    assert np.isnan(line(figure, "mean, 95 % interval").get_ydata()[1])


def test_cross_adaptation_is_a_second_panel_with_readable_numbers() -> None:
    cross = {"tasks": ["Direction(sign=-1)", "Direction(sign=1)"], "matrix": [[310.2, -270.4], [-301.5, 295.3]]}
    figure = adaptation_figure(curve(2, 20, cross_adaptation=cross))
    axes = figure.axes[1]
    assert [(text.get_position(), text.get_text()) for text in axes.texts] == [
        ((0, 0), "310"),
        ((1, 0), "-270"),
        ((0, 1), "-302"),
        ((1, 1), "295"),
    ]
    assert [text.get_color() for text in axes.texts] == ["black", "white", "white", "black"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("scored on", "adapted on")
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["Direction\n(sign=-1)", "Direction\n(sign=1)"]


def test_controls_stand_below_the_matrix() -> None:
    cross = {"tasks": ["a", "b"], "matrix": [[9.0, 1.0], [1.0, 9.0]], "before": [2.0, 3.0], "zero_reward": [4.0, 5.0]}
    axes = adaptation_figure(curve(2, 20, cross_adaptation=cross)).axes[1]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["a", "b", "zero\nreward", "nothing"]
    assert [text.get_text() for text in axes.texts[4:]] == ["4", "5", "2", "3"]


def test_success_is_a_panel_between_the_curve_and_the_matrix() -> None:
    rates = {"success": [0.0, 0.5, 0.9, 1.0], "success_ci_low": [0.0] * 4, "success_ci_high": [0.1, 0.6, 1.0, 1.0]}
    cross = {"tasks": ["a", "b"], "matrix": [[9.0, 1.0], [1.0, 9.0]]}
    figure = adaptation_figure(curve(40, 1, **rates, cross_adaptation=cross))
    assert [axes.get_ylabel() for axes in figure.axes] == [
        "return per trajectory",
        "success rate, 95 % interval",
        "adapted on",
    ]
    (rate,) = figure.axes[1].get_lines()
    assert rate.get_ydata().tolist() == rates["success"]
    band = figure.axes[1].collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == (0.0, 1.0)


def paths(*, unit: str = "gradient steps", steps: tuple[int, ...] = (0, 3), **scene: Any) -> dict[str, Any]:
    """Two tasks with two routes each at every step. Those of step k end at (k, 1) and (k, 2)."""
    plain = {"walls": [], "start": None, "goal": None, "goal_radius": 0.0, "extent": None, **scene}
    ways = [[[[0.0, 0.0], [float(k), float(end)]] for end in (1, 2)] for k in steps]
    tasks = [{"task": f"Goal(x=0.{number}23456)", "scene": plain, "ways": ways} for number in (1, 2)]
    return {"schema_version": 1, "unit": unit, "steps": [*steps], "tasks": tasks}


def test_ways_are_drawn_per_task_before_and_after() -> None:
    figure = routes_figure(paths())
    assert [axes.get_title() for axes in figure.axes] == ["before adaptation", "after adaptation", "", ""]
    assert [axes.get_ylabel() for axes in figure.axes] == ["Goal(x=0.123)", "", "Goal(x=0.223)", ""]
    for axes, k in zip(figure.axes, (0, 3, 0, 3), strict=True):
        lines = [line for line in axes.get_lines() if len(line.get_xdata()) == 2]
        ends = [line for line in axes.get_lines() if len(line.get_xdata()) == 1]
        assert [line.get_xydata().tolist()[1] for line in lines] == [[k, 1.0], [k, 2.0]]
        assert [line.get_xydata().tolist() for line in ends] == [[[k, 1.0]], [[k, 2.0]]]
        colours = [line.get_color() for line in lines]
        assert colours == [line.get_color() for line in ends]
        assert len({*colours}) == 2
        assert lines[0].get_linewidth() > lines[1].get_linewidth()


def test_columns_are_called_as_the_unit_wants() -> None:
    figure = routes_figure(paths(unit="trajectories"))
    assert [axes.get_title() for axes in figure.axes[:2]] == ["first trajectory", "last trajectory"]
    assert len(routes_figure(paths(steps=(0,))).axes) == 2  # nothing was adapted: one column


def test_a_scene_shows_walls_start_and_goal_to_scale() -> None:
    walls = [[-2.0, -1.0, 1.0, 6.0], [4.0, -1.0, 0.5, 0.25]]
    figure = routes_figure(paths(walls=walls, start=[0.0, 0.0], goal=[3.0, 1.5], goal_radius=0.5))
    for axes in figure.axes:
        assert axes.get_aspect() == 1.0
        boxes = [patch.get_bbox().bounds for patch in axes.patches if isinstance(patch, Rectangle)]
        assert boxes == [tuple(wall) for wall in walls]
        (goal,) = (patch for patch in axes.patches if isinstance(patch, Circle))
        assert (tuple(goal.center), goal.radius) == ((3.0, 1.5), 0.5)
        assert [(0.0, 0.0)] in [[tuple(point) for point in line.get_xydata()] for line in axes.get_lines()]
        (x_low, x_high), (y_low, y_high) = axes.get_xlim(), axes.get_ylim()
        assert (x_low < -2.0, x_high > 4.5, y_low < -1.0, y_high > 5.0) == (True,) * 4
        assert x_high - x_low == pytest.approx(y_high - y_low)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["start", "goal", "end of a trajectory"]


def test_scenes_are_drawn_each_to_its_own_scale() -> None:
    room, field = [paths(walls=walls, start=[0.0, 0.0])["tasks"][0]["scene"] for walls in ([[0, 0, 9, 1]], [])]
    figure = scenes_figure([("a room", room), ("a field", field), ("again", room)], num_columns=2)
    assert [axes.get_title() for axes in figure.axes] == ["a room", "a field", "again", ""]
    assert [len(axes.patches) for axes in figure.axes] == [1, 0, 1, 0]
    wide, narrow, again, _ = (axes.get_xlim()[1] for axes in figure.axes)
    assert wide == again > 9.0 > 1.0 > narrow
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["start"]


def test_what_a_scene_lacks_is_not_explained_and_its_extent_is_shown() -> None:
    figure = routes_figure(paths(extent=[-5.0, 1.0, 0.0, 1.0]))
    assert figure.axes[0].get_xlim()[0] < -5.0
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["end of a trajectory"]
    assert not figure.axes[0].patches
    empty = paths()
    for task in empty["tasks"]:
        task["ways"] = [[], []]  # every trajectory broke down in its first step
    assert len(routes_figure(empty).axes) == 4


def test_labels_are_shortened_or_numbered_where_they_would_not_fit() -> None:
    def ticks(tasks: list[str]) -> tuple[list[str], list[str]]:
        matrix = np.eye(len(tasks)).tolist()
        axes = adaptation_figure(curve(2, 1, cross_adaptation={"tasks": tasks, "matrix": matrix})).axes[1]
        texts = [[tick.get_text() for tick in ticks] for ticks in (axes.get_yticklabels(), axes.get_xticklabels())]
        return texts[0], texts[1]

    short = [f"Goal\n(x={number})" for number in ("0.123", "-1.5e-07")]
    assert ticks(["Goal(x=0.123456789)", "Goal(x=-1.5000001e-07)"]) == (short, short)
    assert ticks(["a", "b", "c", "d"]) == (["1: a", "2: b", "3: c", "4: d"], ["1", "2", "3", "4"])
    long = [f"Arms(probabilities=(0.{index}, 0.5, 0.25, 0.75))" for index in range(1, 5)]
    assert ticks(long) == ([f"task {number}" for number in range(1, 5)], ["1", "2", "3", "4"])
    assert labels(adaptation_figure(curve(2, 20, tasks=long[:2])))[:2] == ["task 1", "task 2"]


def test_a_learning_curve_is_drawn_against_environment_steps() -> None:
    figure = learning_figure({"maml": rows(2.0)})
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("environment steps", "return per trajectory")
    assert labels(figure) == ["last step", "step 0"]
    after = line(figure, "last step")
    assert after.get_xdata().tolist() == [1000, 2000, 4000, 5000]
    assert after.get_ydata().tolist() == [2.0, 4.0, 8.0, 10.0]


def test_runs_keep_their_colour_and_label() -> None:
    figure = learning_figure({"a": rows(1.0), "b": rows(2.0)})
    assert labels(figure) == [f"{run}: {when}" for run in "ab" for when in ("last step", "step 0")]
    colours = [line(figure, label).get_color() for label in labels(figure)]
    assert colours[0] == colours[1] != colours[2] == colours[3]
    assert len(learning_figure({str(run): rows(1.0) for run in range(10)}).axes) == 1


def test_evaluations_are_a_second_panel_with_steps_in_order() -> None:
    figure = learning_figure({"a": rows(1.0, evaluated=True), "b": rows(2.0)})
    assert labels(figure, 1) == ["a: step 0", "a: step 1", "a: step 10"]
    assert line(figure, "a: step 10", 1).get_xdata().tolist() == [2000, 4000]
    bands = [band.get_paths()[0].vertices for band in figure.axes[1].collections]
    assert [(band[:, 1].min(), band[:, 1].max()) for band in bands] == [(-4.0, 8.0), (-3.0, 9.0)]  # 10 lacks an end


def test_a_run_with_nothing_to_draw_is_named() -> None:
    with pytest.raises(InputError, match=r"runs/x: metrics\.jsonl holds no rollout/post_adapt"):
        learning_figure({"runs/x": [{"iteration": 1, "env_steps": 3}]})


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".pdf", b"%PDF"), (".svg", b"<?xml")])
def test_a_picture_is_written_in_the_format_of_its_name(tmp_path: Path, suffix: str, start: bytes) -> None:
    path = tmp_path / "new" / f"a{suffix}"
    save_figure(adaptation_figure(curve(2, 20)), path)
    assert path.read_bytes().startswith(start)
    assert list(path.parent.iterdir()) == [path]


def test_a_png_is_sharp_enough_to_print(tmp_path: Path) -> None:
    save_figure(adaptation_figure(curve(2, 1)), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (1120, 800)


@pytest.mark.parametrize("name", ["a.jpg", "a", "a.PNG.txt"])
def test_another_format_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"must be a file ending in \.png, \.pdf, \.svg"):
        save_figure(Figure(), tmp_path / name)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match=r"a\.png: cannot be written: "):
        save_figure(Figure(), tmp_path / "file" / "a.png")


def test_drawing_leaves_pyplot_and_its_settings_alone() -> None:
    code = "import sys, metarl.report.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    before = dict(plots.matplotlib.rcParams)
    adaptation_figure(curve(2, 1))
    assert dict(plots.matplotlib.rcParams) == before
