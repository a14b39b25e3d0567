"""Runs that are killed with SIGKILL and resumed twice, compared with an uninterrupted run.

Each trial is a real `metarl train` of 20 iterations with the default `checkpoint_every`: checkpoints are written only
before its three evaluations. The two kills of a trial aim at training, an evaluation or the writing of a checkpoint, in
turn. Afterwards, the state of the folder shows when a kill really happened. A trial survives if its results equal those
of the uninterrupted run, and its folder holds no unfinished file. The results are the final parameters, metrics,
adaptation curve, checkpoints, and TensorBoard's steps and values.

    python scripts/stress_resume.py --trials 30          60 kills in about ten minutes
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
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarking import Lines
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from metarl.runs import checkpoint
from metarl.runs.tracking import read_metrics

METARL = str(Path(sys.executable).with_name("metarl"))
ITERATIONS, EVERY = 20, 8
TRAIN = (
    f"train bandit --quiet --iterations {ITERATIONS} --evaluation.every {EVERY} --meta-batch-size 2 --device cpu "
    "--agent.num-trajectories 2 --agent.hidden-sizes 256 256 --evaluation.num-tasks 60 "
    "--evaluation.num-adaptation-steps 1 --evaluation.no-controls"
)
EVALUATION_S = 0.5  # about what an evaluation takes
PLANS = (("training", "evaluation"), ("writing", "evaluation"), ("evaluation", "training"), ("training", "writing"))


def main() -> int:
    """Prints one line; returns 1 if a trial was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--trials", type=int, default=30, help="runs to kill")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments of the kills")
    parser.add_argument("--json", type=Path, help="also write the line to this file")
    parsed = parser.parse_args()
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it warns of every resumed run
    rng, kills, lost = random.Random(parsed.seed), Counter[str](), []
    with tempfile.TemporaryDirectory() as temporary:
        whole = Path(temporary) / "whole"
        subprocess.run(command(whole), check=True)
        for number in range(parsed.trials):
            run_dir = Path(temporary) / f"trial{number}"
            kills += survive(run_dir, rng, PLANS[number % len(PLANS)])
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
        kills=kills.total(),
        kills_by_place=dict(sorted(kills.items())),
        lost=lost,
        command=f"python scripts/stress_resume.py --trials {parsed.trials} --seed {parsed.seed}",
    )
    lines.close()
    return 1 if lost else 0


def command(run_dir: Path) -> list[str]:
    """The command that begins the run in `run_dir`, or resumes it if it has a checkpoint."""
    if checkpoint.list_checkpoints(run_dir):
        return [METARL, "train", "--quiet", "--resume", str(run_dir)]
    return [METARL, *TRAIN.split(), "--run-dir", str(run_dir)]


def survive(run_dir: Path, rng: random.Random, plan: tuple[str, ...]) -> Counter[str]:
    """Trains to the end with the kills of `plan`; returns the number of kills by place."""
    kills = Counter[str]()
    for place in plan:
        before = starts(run_dir)
        moment = MOMENTS[place](run_dir, rng)
        with subprocess.Popen(command(run_dir)) as process:
            while process.poll() is None and not (starts(run_dir) > before and moment()):
                time.sleep(0.0005)
            if process.poll() is not None:
                break
            process.kill()
        kills[where(run_dir)] += 1
    subprocess.run(command(run_dir), check=True)
    return kills


def starts(run_dir: Path) -> int:
    """How often training started in `run_dir`: each start writes a file of events."""
    return len([*run_dir.glob("events.out.tfevents.*")])


def in_training(run_dir: Path, rng: random.Random) -> Callable[[], bool]:
    """True after a random number of further rows, but not during an evaluation."""
    least = rng.randint(min(num_rows(run_dir) + 1, ITERATIONS - 1), ITERATIONS - 1)
    return lambda: num_rows(run_dir) >= least and not evaluates(run_dir)


def in_evaluation(run_dir: Path, rng: random.Random) -> Callable[[], bool]:
    """True a random time after the start of one of the coming evaluations."""
    skipped, delay = rng.randint(0, 1) * EVERY, rng.uniform(0.0, EVALUATION_S)
    least, began = min(num_rows(run_dir) + skipped, ITERATIONS), 0.0

    def reached() -> bool:
        nonlocal began
        if num_rows(run_dir) >= least and evaluates(run_dir):
            began = began or time.monotonic()
            return time.monotonic() >= began + delay
        return False

    return reached


def in_writing(run_dir: Path, rng: random.Random) -> Callable[[], bool]:
    """True when the writing of the next checkpoint, or of the one after it, has begun."""
    seen: set[Path] = set()
    count = rng.randint(1, 2)

    def reached() -> bool:
        seen.update(unfinished_writes(run_dir))
        return len(seen) >= count

    return reached


MOMENTS = {"training": in_training, "evaluation": in_evaluation, "writing": in_writing}


def where(run_dir: Path) -> str:
    """The place of the kill, read from the state of `run_dir`."""
    if any(unfinished_writes(run_dir)) or any(run_dir.glob(".unfinished-*")):
        return "writing"
    return "evaluation" if evaluates(run_dir) else "training"


def num_rows(run_dir: Path) -> int:
    """Number of recorded iterations."""
    path = run_dir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def evaluates(run_dir: Path) -> bool:
    """Whether an evaluation is running: the last iteration is saved, and its evaluation is not recorded yet."""
    rows = num_rows(run_dir)
    if rows != ITERATIONS and (rows == 0 or rows % EVERY):
        return False
    saved = max(checkpoint.list_checkpoints(run_dir), default=0)
    return saved == rows and "meta_test/step_0" not in read_metrics(run_dir)[-1]


def unfinished_writes(run_dir: Path) -> Iterator[Path]:
    """Folders in which a checkpoint is being written. Folders being deleted are called .unfinished-iteration_..."""
    found = (run_dir / "checkpoints").glob(".unfinished-*")
    return (path for path in found if not path.name.startswith(".unfinished-iteration_"))


def differences(whole: Path, run_dir: Path) -> list[str]:
    """The parts of the finished run in `run_dir` that differ from `whole`, apart from times."""
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
    """The hash of the parameters in each checkpoint; for a damaged one, a value that no other run has."""
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
    """The names of all files and folders except TensorBoard's: every start writes a new one."""
    found = {str(path.relative_to(run_dir)) for path in run_dir.rglob("*")}
    return {name for name in found if not name.startswith("events.out.tfevents")}


if __name__ == "__main__":
    sys.exit(main())
