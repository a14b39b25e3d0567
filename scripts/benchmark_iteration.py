"""Time of a whole MAML iteration, compared with its physics.

Half-cheetah-dir with 40 tasks x 20 trajectories x 200 steps, a 64x64 tanh policy, one inner step and 10
conjugate-gradient iterations. The ratio is the time of an iteration divided by the time that its two collections spend
in the simulator. It is measured with exact curvature on all data, and with the curvature estimated on every tenth step.

    python scripts/benchmark_iteration.py                     five minutes on two cores
    python scripts/benchmark_iteration.py --quick             a noisier answer within a minute
    python scripts/benchmark_iteration.py --profile NAME --json profile.json     seconds by stage instead
    python scripts/benchmark_iteration.py --picture out.png before.json after.json
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarking import Lines, arguments, repeats_of

STAGES = (
    "physics",
    "reset",
    "acting",
    "recording",
    "advantages",
    "inner step",
    "graphs",
    "meta-gradient",
    "curvature products",
    "line search",
    "rest",
)
EVERY = {"exact curvature": 1, "curvature on every tenth step": 10}


class Stopwatch:
    """Seconds by stage; of nested stages, only the innermost one counts."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._running: list[str] = ["rest"]
        self._since = time.perf_counter()

    def watch(self, owner: Any, method: str, stage: str) -> None:
        """Times every call of `owner.method` as `stage`, unless it runs inside the line search."""
        original: Callable[..., Any] = getattr(owner, method)

        def timed(*given: Any, **named: Any) -> Any:
            self._switch()
            self._running.append("line search" if "line search" in self._running else stage)
            try:
                return original(*given, **named)
            finally:
                self._switch()
                self._running.pop()

        setattr(owner, method, timed)

    def restart(self) -> None:
        self.seconds.clear()
        self._since = time.perf_counter()

    def stop(self) -> None:
        self._switch()

    def _switch(self) -> None:
        now = time.perf_counter()
        self.seconds[self._running[-1]] += now - self._since
        self._since = now


def make_trainer(every: int, quick: bool) -> Any:
    from metarl.cli.flags import parse_train
    from metarl.runs.build import build

    flags = (
        "half-cheetah-dir --meta-batch-size 40 --agent.num-trajectories 20 --agent.hidden-sizes 64 64 --device cpu "
        "--agent.activation tanh --agent.num-adaptation-steps 1 --agent.cg-iterations 10 "
        f"--agent.curvature-every {every} "
        f"--task.horizon {40 if quick else 200}"
    )
    return build(parse_train(flags.split()).config)


def stages() -> list[tuple[Any, str, str]]:
    """Owner and name of each method that is timed, and the stage that it belongs to."""
    from metarl.agents.maml import MAML, AdaptedSurrogate
    from metarl.envs.simulator import Simulator
    from metarl.envs.vector import TaskBatchEnv
    from metarl.rl.rollout import RolloutCollector

    return [
        (Simulator, "step", "physics"),
        (TaskBatchEnv, "reset", "reset"),
        (MAML, "act", "acting"),
        (RolloutCollector, "support", "recording"),
        (RolloutCollector, "query", "recording"),
        (MAML, "prepare", "advantages"),
        (MAML, "adapt", "inner step"),
        (AdaptedSurrogate, "__init__", "graphs"),
        (AdaptedSurrogate, "gradient", "meta-gradient"),
        (AdaptedSurrogate, "product", "curvature products"),
        (AdaptedSurrogate, "evaluate", "line search"),
    ]


def measure(every: list[int], repeats: int, quick: bool) -> dict[int, list[dict[str, float]]]:
    """Seconds by stage of `repeats` alternating iterations of each kind, after a warm-up iteration."""
    stopwatch = Stopwatch()
    for owner, method, stage in stages():
        stopwatch.watch(owner, method, stage)
    trainers = {kind: make_trainer(kind, quick) for kind in every}
    found: dict[int, list[dict[str, float]]] = {kind: [] for kind in every}
    for repeat in range(repeats + 1):
        for kind, trainer in trainers.items():
            stopwatch.restart()
            trainer.train_iteration()
            stopwatch.stop()
            if repeat:
                found[kind].append(dict(stopwatch.seconds))
    return found


def peak_memory(every: int, quick: bool) -> float:
    """Peak memory of one iteration in GiB, measured in its own process."""
    command = [sys.executable, "-W", "ignore", __file__, "--memory-of", str(every), *(["--quick"] if quick else [])]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def draw(picture: Path, files: list[Path]) -> None:
    from matplotlib.figure import Figure

    rows = [json.loads(line) for file in files for line in file.read_text().splitlines() if line.strip()]
    figure = Figure(figsize=(10, 1.4 + 0.62 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for number, row in enumerate(rows):
        left = 0.0
        for colour, stage in enumerate(STAGES):
            share = row["seconds"].get(stage, 0.0) / row["seconds"]["physics"]
            label = stage if number == 0 else None
            axes.barh(number, share, left=left, color=f"C{colour}" if colour < 10 else "black", label=label)
            left += share
        axes.text(left + 0.01, number, f"{left:.2f}", va="center")
    axes.set_yticks(range(len(rows)), [row["case"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("time of one iteration / time in the simulator")
    axes.margins(x=0.08)
    figure.legend(loc="outside upper center", ncols=6, frameon=False, fontsize="small")
    figure.savefig(picture, dpi=130)


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--profile", metavar="NAME", help="print median seconds by stage under this name")
    parser.add_argument("--picture", type=Path, help="draw the profiles of FILES there")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    parser.add_argument("files", nargs="*", type=Path, help="outputs of --profile")
    parsed = parser.parse_args()
    if parsed.picture:
        draw(parsed.picture, parsed.files)
        return
    if parsed.memory_of:
        make_trainer(parsed.memory_of, parsed.quick).train_iteration()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
        return
    repeats, lines = repeats_of(parsed), Lines(None if parsed.profile else parsed.json)
    found = measure(list(EVERY.values()), repeats, parsed.quick)
    profiles = []
    for name, every in EVERY.items():
        seconds = [sum(stages.values()) for stages in found[every]]
        if parsed.profile:
            stages = {stage: statistics.median(s.get(stage, 0.0) for s in found[every]) for stage in STAGES}
            profiles.append({"case": f"{parsed.profile}: {name}", "repeats": repeats, "seconds": stages})
            print(json.dumps(profiles[-1]))
            continue
        ratios = [second / stages["physics"] for second, stages in zip(seconds, found[every], strict=True)]
        lines.add(
            f"iteration, {name}",
            statistics.median(seconds),
            "s",
            against="time in the simulator",
            ratio=statistics.median(ratios),
            repeats=repeats,
            peak_memory_gib=round(peak_memory(every, parsed.quick), 2),
        )
    if parsed.profile and parsed.json:
        parsed.json.write_text("".join(json.dumps(profile) + "\n" for profile in profiles))
    lines.close()


if __name__ == "__main__":
    main()
