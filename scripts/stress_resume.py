"""Runs that are killed with SIGKILL, resumed, killed again and resumed, against one that was left alone.

Each trial is a real `metarl train` of twelve iterations with a checkpoint after every one. Every second trial's first
kill falls into the writing of a checkpoint, the other kills come at a random moment. A trial survives if its final
parameters, metrics, adaptation curve, checkpoints and TensorBoard's steps and values are those of the uninterrupted
run, and nothing unfinished is left in its folder.

    python scripts/stress_resume.py --trials 30          about seven minutes
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarking import Lines
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from metarl import checkpoint
from metarl.tracking import read_metrics

METARL = str(Path(sys.executable).with_name("metarl"))
TRAIN = (
    "train bandit --quiet --iterations 12 --checkpoint-every 1 --evaluation.every 5 --meta-batch-size 2 --device cpu "
    "--agent.num-trajectories 2 --agent.hidden-sizes 256 256 --evaluation.num-tasks 2 "
    "--evaluation.num-adaptation-steps 1 --evaluation.no-controls"
)
MAX_KILLS = 2


def main() -> int:
    """Prints one line; 1 if a trial was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--trials", type=int, default=30, help="runs to kill")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--json", type=Path, help="also write the line there")
    parsed = parser.parse_args()
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it warns of every run that was resumed
    rng, kills, inside, lost = random.Random(parsed.seed), 0, 0, []
    with tempfile.TemporaryDirectory() as temporary:
        whole = Path(temporary) / "whole"
        started = time.monotonic()
        subprocess.run(command(whole), check=True)
        duration = time.monotonic() - started
        for number in range(parsed.trials):
            run_dir = Path(temporary) / f"trial{number}"
            counts = survive(run_dir, rng, duration, while_writing=number % 2 == 0)
            kills, inside = kills + counts[0], inside + counts[1]
            lost += [f"trial {number}: {difference}" for difference in differences(whole, run_dir)[:1]]
            shutil.rmtree(run_dir)
    survived = parsed.trials - len(lost)
    lines = Lines(parsed.json)
    lines.add(
        "runs killed with SIGKILL and resumed that end like the uninterrupted one",
        survived,
        "runs",
        against="all runs",
        ratio=survived / parsed.trials,
        repeats=parsed.trials,
        kills=kills,
        kills_inside_a_checkpoint_write=inside,
        lost=lost,
        command=f"python scripts/stress_resume.py --trials {parsed.trials} --seed {parsed.seed}",
    )
    lines.close()
    return 1 if lost else 0


def command(run_dir: Path) -> list[str]:
    """Begins the run in `run_dir`, or goes on with it if there is something to go on from."""
    if checkpoint.list_checkpoints(run_dir):
        return [METARL, "train", "--quiet", "--resume", str(run_dir)]
    return [METARL, *TRAIN.split(), "--run-dir", str(run_dir)]


def survive(run_dir: Path, rng: random.Random, duration: float, *, while_writing: bool) -> tuple[int, int]:
    """Trains to the end through one or two kills; how many there were, and how many inside a checkpoint's writing."""
    kills = inside = 0
    for number in range(rng.randint(1, MAX_KILLS)):
        writes = rng.randint(1, 8) if while_writing and number == 0 else None
        moment = moment_of_writing(run_dir, writes) if writes else moment_in_time(rng.uniform(0.2, 1.0) * duration)
        with subprocess.Popen(command(run_dir)) as process:
            while process.poll() is None and not moment():
                time.sleep(0.0005)
            if process.poll() is not None:
                break
            process.kill()
        kills += 1
        inside += any(unfinished_writes(run_dir))
    subprocess.run(command(run_dir), check=True)
    return kills, inside


def moment_in_time(seconds: float) -> Callable[[], bool]:
    """True from `seconds` after now on."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end


def moment_of_writing(run_dir: Path, count: int) -> Callable[[], bool]:
    """True when the writing of the `count`-th checkpoint is seen to have begun."""
    seen: set[Path] = set()

    def reached() -> bool:
        seen.update(unfinished_writes(run_dir))
        return len(seen) >= count

    return reached


def unfinished_writes(run_dir: Path) -> Iterator[Path]:
    """Folders in which a checkpoint is being written; those being deleted are called .unfinished-iteration_..."""
    found = (run_dir / "checkpoints").glob(".unfinished-*")
    return (path for path in found if not path.name.startswith(".unfinished-iteration_"))


def differences(whole: Path, run_dir: Path) -> list[str]:
    """What of the finished run in `run_dir` is not as in `whole`, apart from times."""
    pairs = {
        "checkpoints": checkpoints,
        "metrics.jsonl": untimed_metrics,
        "adaptation.json": lambda path: json.loads((path / "adaptation.json").read_text()),
        "config.json": lambda path: json.loads((path / "config.json").read_text()),
        "TensorBoard": scalars,
        "files": names,
    }
    return [name for name, read in pairs.items() if read(whole) != read(run_dir)]


def checkpoints(run_dir: Path) -> dict[int, str]:
    """The hash of the parameters in each checkpoint; unlike any other's where one is damaged."""
    hashes = {}
    for iteration, path in checkpoint.list_checkpoints(run_dir).items():
        hashes[iteration] = str(path)
        with contextlib.suppress(checkpoint.CheckpointError):
            hashes[iteration] = checkpoint.load(path).manifest["parameters_sha256"]
    return hashes


def is_timed(tag: str) -> bool:
    """Whether a scalar is a measured time."""
    return tag == "wall_s" or (tag.startswith("time/") and tag != "time/env_steps")


def untimed_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl` without measured times."""
    return [{tag: value for tag, value in row.items() if not is_timed(tag)} for row in read_metrics(run_dir)]


def scalars(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of every tag in TensorBoard; of measured times, only the steps."""
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0}).Reload()
    return {
        tag: [(event.step, 0.0 if is_timed(tag) else event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def names(run_dir: Path) -> set[str]:
    """The names of all files and folders, but those of TensorBoard: every start writes one of its own."""
    found = {str(path.relative_to(run_dir)) for path in run_dir.rglob("*")}
    return {name for name in found if not name.startswith("events.out.tfevents")}


if __name__ == "__main__":
    sys.exit(main())
