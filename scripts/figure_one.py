"""Figure 1 of the README, drawn from the cells that scripts/reproduce.py measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import matplotlib
import numpy as np
from compare_bandits import GREYS
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from results_table import BUDGETS, PAPER_CURVES, Cells, summary

# The agents of Finn et al. 2017, figure 4.
COLOURS = {"maml": "#0072B2", "pretrained": "#D55E00", "random-init": "#8B6F47", "oracle": "#009E73"}
LABELS = {"maml": "MAML", "pretrained": "pretrained", "random-init": "random init", "oracle": "oracle"}
MEMORY_COLOURS = ("#0072B2", "#56B4E9", "#CC79A7", "#E69F00", "#000000")
STEP_BUDGETS = (0, 20, 40, 60)  # updates of 20 trajectories each
NEVER_MOVING, BEST = -40.1, -0.54  # returns on the paper's 40 goals: of staying, and of going straight at full speed
SHOWN_GOALS = 3


def draw(cells: Cells, bandits: Sequence[Mapping[str, Any]]) -> Figure:
    """The three panels; they leave out agents without cells."""
    with matplotlib.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(16.5, 5.4), layout="constrained")
        navigation, bandit, cheetah = figure.subplots(1, 3)
        _navigation(navigation, cells)
        _bandit(bandit, bandits)
        _cheetah(cheetah, cells)
    return figure


def _navigation(axes: Axes, cells: Cells) -> None:
    steps = np.arange(len(STEP_BUDGETS))
    places = [BUDGETS.index(budget) for budget in STEP_BUDGETS]
    for number, (column, colour) in enumerate(COLOURS.items()):
        own = cells.get(("point-nav", column if column != "maml" else "maml:paper"), [])[:1]
        if own and column == "maml":  # tested by the paper's protocol: 4,000 steps per update
            mean, low, high = (own[0]["curve"][name] for name in ("mean", "ci_low", "ci_high"))
        elif own:
            mean, low, high = (part[places] for part in summary(own))
        if own:
            axes.plot(steps, mean, color=colour, marker="o", markersize=4, linewidth=1.8, label=LABELS[column])
            axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
        if column in PAPER_CURVES:
            beside = steps + 0.04 * (number - 1)
            axes.plot(beside, PAPER_CURVES[column], color=colour, marker="D", linestyle="none", markerfacecolor="none")
    axes.plot([], [], color="#444444", marker="D", linestyle="none", markerfacecolor="none", label="paper's figures")
    for value, name, above in ((NEVER_MOVING, "never moving", False), (BEST, "best possible", True)):
        axes.axhline(value, color="#777777", linewidth=0.9, linestyle=(0, (2, 2)))
        axes.annotate(
            f"{name}, {value:g}",
            (steps[-1], value),
            xytext=(0, 3 if above else -11),
            textcoords="offset points",
            ha="right",
            color="#555555",
            fontsize=8,
        )
    axes.set_xticks(steps)
    axes.set_xlabel("gradient steps")
    axes.set_ylabel("return")
    axes.set_title("(a) point-nav, as in Finn et al. 2017")
    axes.legend(frameon=False, fontsize=8, loc="lower left")
    axes.set_ylim(-140.0, 6.0)
    axes.set_yticks(range(-80, 1, 20))
    found = [cell["paths"] for cell in cells.get(("point-nav", "maml:paper"), []) if "paths" in cell]
    if found:
        _ways(axes.inset_axes((0.56, 0.02, 0.42, 0.36)), found[0]["tasks"][:SHOWN_GOALS])


def _ways(axes: Axes, tasks: Sequence[Mapping[str, Any]]) -> None:
    """One trajectory to each goal, before and after adaptation."""
    for colour, task in zip(("#0072B2", "#CC79A7", "#009E73"), tasks, strict=False):
        for ways, style in ((task["ways"][0], (0, (1, 1))), (task["ways"][-1], "-")):
            axes.plot(*np.asarray(ways[0]).T, color=colour, linestyle=style, linewidth=1.3)
        axes.plot(*task["scene"]["goal"], color=colour, marker="*", markersize=9, markeredgecolor="#222222")
    axes.plot(0, 0, marker="s", markersize=4, color="#222222", markerfacecolor="white")
    axes.set(xticks=[], yticks=[], aspect="equal")
    axes.spines[:].set(visible=True, color="#BBBBBB")
    axes.set_title("before (dotted), after", fontsize=7, pad=2)


def _bandit(axes: Axes, panels: Sequence[Mapping[str, Any]]) -> None:
    panel = next((panel for panel in panels if (panel["num_arms"], panel["num_pulls"]) == (5, 100)), None)
    axes.set_title("(b) bandits, 5 arms, 100 pulls: RL² with every memory")
    axes.set_xlabel("pull")
    axes.set_ylabel("regret per pull")
    if panel is None:
        return
    pulls = np.arange(1, panel["num_pulls"] + 1)
    for name, style in GREYS.items():
        regret = panel["players"][name]["regret_per_pull"]
        axes.plot(pulls, regret, color="#666666", linestyle=style, linewidth=1.2, label=name)
    for name, colour in zip(panel["learned"], cycle(MEMORY_COLOURS), strict=False):
        axes.plot(pulls, panel["players"][name]["regret_per_pull"], color=colour, linewidth=1.8, label=name)
    axes.set_yscale("log")
    axes.set_yticks([0.02, 0.05, 0.1, 0.2, 0.3], ["0.02", "0.05", "0.1", "0.2", "0.3"])
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize=8)


def _cheetah(axes: Axes, cells: Cells) -> None:
    directions = {"forward": ("Direction(sign=1)", "-"), "backward": ("Direction(sign=-1)", (0, (4, 2)))}
    first = np.inf
    for column, colour in COLOURS.items():
        group = cells.get(("half-cheetah-dir", column), [])
        if not group:
            continue
        tasks = group[0]["tasks"]
        values = np.asarray([cell["values"] for cell in group])
        per_task = values.reshape(*values.shape[:2], len(tasks), -1).mean((0, 3))
        env_steps = np.mean([cell["env_steps"] for cell in group], axis=0)
        first = min(first, env_steps[1])
        for task, style in directions.values():
            axes.plot(
                env_steps, per_task[:, tasks.index(task)], color=colour, linestyle=style, marker="o", markersize=3
            )
    if np.isfinite(first):
        axes.set_xscale("symlog", linthresh=first, linscale=0.5)
    handles = [Line2D([], [], color=colour, label=LABELS[column]) for column, colour in COLOURS.items()]
    handles += [Line2D([], [], color="#444444", linestyle=style, label=name) for name, (_, style) in directions.items()]
    axes.legend(handles=handles, frameon=False, fontsize=8, loc="upper left", ncols=2)
    axes.set_xlabel("environment steps on the test task")
    axes.set_ylabel("return")
    axes.set_title("(c) half-cheetah-dir: the same weights, either direction")
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.8 * (high - low), high + 0.45 * (high - low))
    crosses = [cell["controls"] for cell in cells.get(("half-cheetah-dir", "maml"), []) if cell["controls"]]
    if crosses:
        inset = axes.inset_axes((0.62, 0.07, 0.34, 0.3))
        matrix = np.mean([cross["matrix"] for cross in crosses], axis=0)
        scale = float(np.abs(matrix).max())
        inset.imshow(matrix, cmap="RdBu", vmin=-scale, vmax=scale)
        names = {task: name for name, (task, _) in directions.items()}
        ticks = [names.get(task, task) for task in crosses[0]["tasks"]]
        inset.set_xticks(range(len(ticks)), ticks, fontsize=7)
        inset.set_yticks(range(len(ticks)), ticks, fontsize=7, rotation=90, va="center")
        inset.set_title("MAML: adapted on (row), run on", fontsize=7, pad=2)
        for (row, column_number), value in np.ndenumerate(matrix):
            ink = "white" if abs(value) > 0.6 * scale else "black"
            inset.text(column_number, row, f"{value:.0f}", ha="center", va="center", fontsize=8, color=ink)
        inset.spines[:].set(visible=False)
