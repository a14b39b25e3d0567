"""A picture of the rooms of the code and of the imports between them.

    python scripts/draw_rooms.py --picture docs/rooms.png

Every box is a folder. An arrow goes from a folder to one that it imports; its width shows how many modules do so.
Dashed arrows are imports by name, from the registry. Every folder imports `core`, and `cli` and `testing` may import
all
others: only some of these arrows are drawn.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections import Counter
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from metarl.report.plots import save_figure

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"metarl": ROOT / "metarl", "metarl.agents": ROOT / "agents", "metarl.envs": ROOT / "envs"}
WIDTH, HEIGHT = 2.6, 0.9
# The place of each box (column, row) and what it holds. `tests/test_layout.py` checks that no arrow goes up.
BOXES = {
    "cli": ((2.2, 5), "the command line"),
    "testing": ((5.0, 5), "checks of your own\nfamilies and learners"),
    "runs": ((3.6, 4), "a run on disk"),
    "report": ((7.2, 3), "text, pictures, films"),
    "envs": ((4.9, 3), "task families,\nsimulator"),
    "agents": ((2.3, 3), "RL algorithms"),
    "fewshot": ((0.0, 3), "few-shot learners\nand their tasks"),
    "rl": ((5.6, 2), "environments,\ncollection, returns"),
    "gradients": ((0.6, 1), "derivatives through\nan adaptation"),
    "networks": ((3.4, 1), "policies, memories"),
    "core": ((2.0, 0), "tasks, learners, the episode,\ntraining, evaluation"),
}
BY_NAME = [("runs", "agents"), ("runs", "envs"), ("runs", "fewshot")]


def imports() -> Counter[tuple[str, str]]:
    """In how many modules each folder imports each other one."""
    found: Counter[tuple[str, str]] = Counter()
    for package, folder in FOLDERS.items():
        for path in folder.rglob("*.py"):
            name = ".".join([package, *path.relative_to(folder).with_suffix("").parts])
            rooms = set()
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and node.module is not None:
                    names = [f"{node.module}.{alias.name}" for alias in node.names]
                    rooms |= {parts[1] for parts in (name.split(".") for name in names) if parts[0] == "metarl"}
            own = name.split(".")[1]
            found.update((own, room) for room in rooms & BOXES.keys() if own in BOXES and room != own)
    return found


def figure() -> Figure:
    """The picture."""
    drawing = Figure(figsize=(11.0, 7.0), layout="constrained")
    axes = drawing.add_subplot()
    axes.set_xlim(0.1, 9.7)
    axes.set_ylim(-0.1, 9.1)
    axes.axis("off")

    def centre(room: str) -> tuple[float, float]:
        (column, row), _ = BOXES[room]
        return column + WIDTH / 2, row * 1.6 + HEIGHT / 2

    def arrow(start: str, end: str, width: float, style: str) -> None:
        (x, y), (to_x, to_y) = centre(start), centre(end)
        axes.add_patch(
            FancyArrowPatch(
                (x, y - HEIGHT / 2),
                (to_x, to_y + HEIGHT / 2),
                arrowstyle="-|>",
                mutation_scale=11,
                linewidth=width,
                linestyle=style,
                color="#5A6B7B",
                zorder=1,
            )
        )

    for (start, end), count in sorted(imports().items()):
        if end != "core" and start not in ("cli", "testing"):
            arrow(start, end, 0.6 + 0.35 * count**0.5, "solid")
    for start, end in BY_NAME:
        arrow(start, end, 0.9, "dashed")
    for start in ("cli", "testing"):
        arrow(start, "runs", 1.2, "solid")
    for start in ("gradients", "networks"):
        arrow(start, "core", 1.2, "solid")
    for room, (_, content) in BOXES.items():
        x, y = centre(room)
        box = FancyBboxPatch(
            (x - WIDTH / 2 + 0.35, y - HEIGHT / 2),
            WIDTH - 0.7,
            HEIGHT,
            boxstyle="round,pad=0.02,rounding_size=0.12",
            facecolor="#EAF1F7",
            edgecolor="#0072B2",
            zorder=2,
        )
        axes.add_patch(box)
        axes.text(x, y + 0.2, room, ha="center", va="center", weight="bold", fontsize=11, zorder=3)
        axes.text(x, y - 0.16, content, ha="center", va="center", fontsize=8, zorder=3)
    return drawing


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--picture", type=Path, required=True, help="a png, pdf or svg file")
    save_figure(figure(), parser.parse_args().picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
