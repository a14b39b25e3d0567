"""The README's tables, made from the cells that scripts/reproduce.py measured."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metarl.core.errors import require
from metarl.core.statistics import Array, crossed_interval
from metarl.runs.registry import AGENTS, TASKS, base_of

BUDGETS = (0, 1, 2, 20, 40, 60)
EVALUATION_SEED = 1_000_000
TEST_STEPS = 3  # adaptation steps of a cell's own curve
LONG = "-long"  # ends the column of an agent that was trained until its learning curve is flat
# Further columns of an agent. The shuffled Reptile adapts to data of other tasks: its gain is not adaptation. The
# oracle is a ceiling only once its learning curve is flat.
VARIANTS = {"reptile": "reptile:shuffled", "oracle": f"oracle{LONG}"}
LABELS = {
    "reptile:shuffled": "`reptile --preset shuffled` (control)",
    "oracle-long": "`oracle`, until its curve is flat",
    "expert": "`expert` (trained on each test task by itself)",
}
FLOOR, CEILINGS = "task-blind", ("oracle-long", "oracle")
NOT_RUN, NOT_NEEDED = "not run", "not needed"
# Every agent but a baseline is compared with `REFERENCE`; these pairs are compared, too.
REFERENCE = "maml"
PAIRS = (("pretrained", "maml"), ("reptile", "reptile:shuffled"), ("reptile", "pretrained"), ("promp", "pretrained"))
PAIRS += (("rl2", "promp"),)
PAIRED_BUDGETS = (20, 60)
# Finn et al. 2017, figures 4 and 5, from the authors' data: return before, after 1 and 3 steps, and the oracle's.
PAPER = {
    "point-nav": (-40.41, -11.68, -3.23, -2.29),
    "half-cheetah-vel": (-129.53, -78.57, -60.78, -54.47),
    "half-cheetah-dir": (-50.69, 293.19, 315.65, 442.69),
    "ant-vel": (30.58, 96.74, 101.41, 107.89),
    "ant-dir": (8.66, 499.15, 499.11, 524.80),
}
# The same figure 4's curves of 2-D navigation, after 0 to 3 steps.
PAPER_CURVES = {
    "maml": (-40.41, -11.68, -3.33, -3.23),
    "pretrained": (-40.81, -19.73, -11.72, -8.47),
    "random-init": (-82.66, -57.96, -53.84, -46.81),
    "oracle": (-2.29,) * 4,
}

Cells = dict[tuple[str, str], list[dict[str, Any]]]


def all_columns() -> list[str]:
    """Every registered agent, each followed by its variant, in the registry's order."""
    return [column for agent in AGENTS for column in (agent, VARIANTS.get(agent)) if column]


def columns(cells: Cells) -> list[str]:
    """The rows of the tables: the columns of agents that have a cell in any family."""
    measured = {agent_of(column) for _, column in cells}
    return [column for column in all_columns() if agent_of(column) in measured]


def families(cells: Cells) -> list[str]:
    """The families that have a cell or a figure of the paper, in the registry's order."""
    return [family for family in TASKS if family in PAPER or any(family == own for own, _ in cells)]


def agent_of(column: str) -> str:
    """The registered agent of a column: "AGENT", "AGENT:PRESET" or "AGENT-long"."""
    name = column.partition(":")[0]
    return name if name in AGENTS else name.removesuffix(LONG)


def read_cells(folder: Path) -> Cells:
    """All cells by family and column, sorted by seed."""
    cells: Cells = {}
    for path in sorted(folder.glob("*/*.json")):
        cell = json.loads(path.read_text())
        cells.setdefault((cell["task"], cell["column"]), []).append(cell)
    return {key: sorted(group, key=lambda cell: int(cell["seed"])) for key, group in cells.items()}


def values_of(group: Sequence[Mapping[str, Any]]) -> Array:
    """Scores [budgets, seeds, tasks, replicates] of the seeds of one agent.

    Raises:
        InputError: the seeds were measured on different tasks, or a cell does not list its tasks.
    """
    tasks = group[0].get("tasks")
    for cell in group:
        found, allowed = cell.get("tasks"), f"those of seed {group[0]['seed']}" if tasks else "a list of tasks"
        require(bool(found) and found == tasks, f"tasks of {cell['label']}, seed {cell['seed']}", found, allowed)
    values = np.asarray([cell["values"] for cell in group], dtype=np.float64)
    return values.reshape(*values.shape[:2], len(tasks), -1).swapaxes(0, 1)


def summary(group: Sequence[Mapping[str, Any]]) -> tuple[Array, Array, Array]:
    """Mean and 95 % interval over the seeds and their common tasks, at every budget."""
    values = values_of(group)
    low, high = crossed_interval(values, np.random.default_rng(0))
    return values.mean((1, 2, 3)), low, high


def difference(
    group: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]
) -> tuple[Array, Array, Array] | None:
    """`summary` of the differences from `other`, paired by task and seed; None without common seeds and tasks."""
    by_seed = [{cell["seed"]: cell for cell in cells} for cells in (group, other)]
    seeds = sorted(by_seed[0].keys() & by_seed[1].keys())
    pair = [[cells[seed] for seed in seeds] for cells in by_seed]
    if not seeds or pair[0][0].get("tasks") != pair[1][0].get("tasks"):
        return None
    values = values_of(pair[0]) - values_of(pair[1])
    low, high = crossed_interval(values, np.random.default_rng(0))
    return values.mean((1, 2, 3)), low, high


def anchors(cells: Cells, family: str) -> tuple[float, float] | None:
    """Floor and ceiling of a family: the task-blind policy and the oracle, over all their budgets and seeds."""
    ceiling = next((column for column in CEILINGS if (family, column) in cells), None)
    if ceiling is None or (family, FLOOR) not in cells:
        return None
    floor, top = (float(np.mean([cell["values"] for cell in cells[family, name]])) for name in (FLOOR, ceiling))
    return floor, top


def tables(cells: Cells) -> dict[str, str]:
    """Markdown by name: a table for each family, "paper", "seeds" and "differences"."""
    found = {family: _family_table(cells, family) for family in families(cells)}
    return found | {"paper": _paper_table(cells), "seeds": _seed_table(cells), "differences": _pair_table(cells)}


def filled(text: str, cells: Cells) -> str:
    """`text` with every table between its markers, <!-- table NAME --> and <!-- end -->."""
    for name, table in tables(cells).items():
        pattern = re.compile(rf"(<!-- table {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
        text = pattern.sub(lambda match, table=table: f"{match[1]}{table}\n{match[2]}", text)  # type: ignore[misc]
    return text


def _family_table(cells: Cells, family: str) -> str:
    if not any(family == own for own, _ in cells):
        return f"`{family}`: {NOT_RUN}."
    ends = anchors(cells, family)
    head = "| agent | seeds | " + " | ".join(f"{budget}" for budget in BUDGETS) + " | share at 20 | at 60 |"
    lines = [head, "|---|---|" + "---|" * (len(BUDGETS) + 2)]
    for column in columns(cells):
        group = cells.get((family, column), [])
        label = LABELS.get(column, f"`{column}`")
        if not group:
            lines.append(f"| {label} | {_absent(cells, family, column)} |" + " |" * (len(BUDGETS) + 2))
            continue
        own_curves = [cell["curve"]["mean"] for cell in group if "curve" in cell]
        if own_curves and len(own_curves[0]) - 1 > TEST_STEPS:
            label += f"; {np.mean([curve[-1] for curve in own_curves]):.1f} after {len(own_curves[0]) - 1} iterations"
        if column.endswith(LONG):
            millions = sorted({round(cell["trained_on_env_steps"] / 1e6) for cell in group})
            label += f" ({', '.join(map(str, millions))} million steps)"
        mean, low, high = summary(group)
        marks = "§" if any(_at_an_end(cell) for cell in group) else ""
        marks += "" if column not in CEILINGS or all(cell.get("flat") for cell in group) else "‡"
        scores = [f"{a:.1f} [{b:.1f}, {c:.1f}]" for a, b, c in zip(mean, low, high, strict=True)]
        shares = [_share(float(mean[BUDGETS.index(budget)]), ends) for budget in (20, 60)]
        lines.append(f"| {label}{marks} | {len(group)} | " + " | ".join([*scores, *shares]) + " |")
    return "\n".join(lines)


def _absent(cells: Cells, family: str, column: str) -> str:
    """Why a column has no cell: not run, or AGENT-long is not needed, since AGENT's own learning curve is flat."""
    short = cells.get((family, agent_of(column)), [])
    enough = bool(short) and all(cell.get("flat") for cell in short)
    return NOT_NEEDED if column.endswith(LONG) and enough else NOT_RUN


def _at_an_end(cell: Mapping[str, Any]) -> bool:
    """Whether the best step size is the smallest or the largest of those tried. If so, a better one may lie beyond."""
    tried = [float(scale) for scale in cell.get("validation", {})]
    return bool(tried) and cell["step_scale"] in (min(tried), max(tried))


def _share(score: float, ends: tuple[float, float] | None) -> str:
    if ends is None:
        return NOT_RUN
    if ends[1] <= ends[0]:
        return "none"  # no scale: the ceiling is not above the floor
    return f"{100.0 * (score - ends[0]) / (ends[1] - ends[0]):.0f} %"


def _paper_table(cells: Cells) -> str:
    """MAML's share of the gap between its own start and the oracle, in the paper's figures and here."""
    lines = ["| family | paper, 1 step | here | paper, 3 steps | here |", "|---|---|---|---|---|"]
    for family, (before, one, three, oracle) in PAPER.items():
        shares = [100.0 * (score - before) / (oracle - before) for score in (one, three)]
        ends = anchors(cells, family)
        here = [NOT_RUN] * 2
        if ends is not None and ends[1] > ends[0] and (family, "maml") in cells:
            mean, _, _ = summary(cells[family, "maml"])
            start, gap = float(mean[0]), ends[1] - float(mean[0])
            here = [f"{100.0 * (float(mean[BUDGETS.index(budget)]) - start) / gap:.0f} %" for budget in (20, 60)]
        lines.append(f"| `{family}` | {shares[0]:.0f} % | {here[0]} | {shares[1]:.0f} % | {here[1]} |")
    return "\n".join(lines)


def _seed_table(cells: Cells) -> str:
    """Every seed's mean after 20 trajectories."""
    shown = families(cells)
    lines = ["| agent | " + " | ".join(f"`{family}`" for family in shown) + " |", "|---|" + "---|" * len(shown)]
    place = BUDGETS.index(20)
    for column in columns(cells):
        found = []
        for family in shown:
            group = cells.get((family, column), [])
            means = [f"{np.mean(cell['values'][place]):.1f}" for cell in group]
            found.append(", ".join(means) or _absent(cells, family, column))
        lines.append(f"| {LABELS.get(column, f'`{column}`')} | " + " | ".join(found) + " |")
    return "\n".join(lines)


def _pair_table(cells: Cells) -> str:
    """Differences of two agents, paired by task and seed, in the families where any such pair was run."""
    agents = [column for column in columns(cells) if column != REFERENCE and base_of(agent_of(column)) is None]
    pairs = [*((column, REFERENCE) for column in agents), *PAIRS]
    shown = [family for family in families(cells) if any(_pair(cells, family, *pair) for pair in pairs)]
    head = "| difference | after | " + "".join(f"`{family}` | " for family in shown).rstrip()
    lines = [head, "|---|---|" + "---|" * len(shown)]
    for column, other in pairs:
        found = [_pair(cells, family, column, other) for family in shown]
        if all(pair is None for pair in found):
            continue
        for budget in PAIRED_BUDGETS:
            place = BUDGETS.index(budget)
            scores = [
                NOT_RUN if pair is None else f"{pair[0][place]:.1f} [{pair[1][place]:.1f}, {pair[2][place]:.1f}]"
                for pair in found
            ]
            names = (LABELS.get(name, f"`{name}`") for name in (column, other))
            lines.append(f"| {' minus '.join(names)} | {budget} | " + " | ".join(scores) + " |")
    return "\n".join(lines)


def _pair(cells: Cells, family: str, column: str, other: str) -> tuple[Array, Array, Array] | None:
    there = (family, column) in cells and (family, other) in cells
    return difference(cells[family, column], cells[family, other]) if there else None
