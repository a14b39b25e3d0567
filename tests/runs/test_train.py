"""Training in a folder, and resuming."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from metarl.cli.flags import parse_train
from metarl.core.errors import InputError
from metarl.core.trainer import Callback, Progressed, Trainer
from metarl.runs import checkpoint
from metarl.runs.config import from_dict
from metarl.runs.tracking import read_metrics
from metarl.runs.train import train

SAVED_TWICE = ("--iterations=3", "--evaluation.every=2", "--checkpoint-every=2")


def events(run_dir: Path) -> EventAccumulator:
    return EventAccumulator(str(run_dir), size_guidance={"images": 0, "scalars": 0, "tensors": 0}).Reload()


def untimed(run_dir: Path) -> list[dict[str, Any]]:
    rows = read_metrics(run_dir)
    return [{tag: row[tag] for tag in row if tag != "wall_s" and not tag.startswith("time/")} for row in rows]


def trained_sha256(run_dir: Path) -> str:
    newest = checkpoint.latest(run_dir).manifest["parameters_sha256"]
    assert isinstance(newest, str)
    return newest


class DiskFullError(Exception):
    pass


@dataclass
class Failing(Callback):
    iteration: int

    def on_iteration(self, trainer: Trainer, progressed: Progressed) -> None:
        if progressed.iteration == self.iteration:
            raise DiskFullError


def one_line(error: pytest.ExceptionInfo[InputError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.usefixtures("_blank_pictures")
def test_a_resumed_run_is_the_uninterrupted_one(config: Any, tmp_path: Path) -> None:
    flags = (
        "--evaluation.every",
        "3",
        "--evaluation.no-controls",
        "--task.horizon",
        "5",
        "--task.test-goals=sampled",
        "--agent.curvature-every=1",
    )
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    reports = [train(config(*flags, "--iterations", "6", task="point-nav"), whole)]
    train(config(*flags, "--iterations", "3", task="point-nav"), parts)
    assert trained_sha256(parts) != trained_sha256(whole)
    resumed = parse_train(["--resume", str(parts), "--iterations", "6"])
    reports.append(train(resumed.config, parts, resume=True))
    assert trained_sha256(parts) == trained_sha256(whole)
    assert untimed(parts) == untimed(whole)
    assert reports[0] == reports[1]
    assert [row["time/env_steps"] for row in read_metrics(parts)] == [
        row["time/env_steps"] for row in read_metrics(whole)
    ]
    record = events(parts)
    steps = {tag: [event.step for event in record.Scalars(tag)] for tag in record.Tags()["scalars"]}
    assert {tag: found for tag, found in steps.items() if found != sorted({*found})} == {}
    assert steps["adapt/step_1"] == [1, 2, 3, 4, 5, 6]
    assert steps["meta_test/step_1"] == [3, 6]


@pytest.mark.usefixtures("_blank_pictures")
@pytest.mark.parametrize("checkpoint_is_lost", [False, True])
def test_a_broken_run_can_be_resumed(config: Any, checkpoint_is_lost: bool, tmp_path: Path, run_dir: Path) -> None:
    if checkpoint_is_lost:  # as after a kill before it was saved: iteration 3 is recorded, but must be repeated
        train(config(*SAVED_TWICE), tmp_path)
        (tmp_path / "checkpoints" / "iteration_000003" / "state.pt").unlink()
    else:
        with pytest.raises(DiskFullError):
            train(config(*SAVED_TWICE), tmp_path, callbacks=(Failing(3),))
    assert checkpoint.latest(tmp_path).iteration == 2
    report = train(parse_train(["--resume", str(tmp_path)]).config, tmp_path, resume=True)
    assert report == json.loads((run_dir / "adaptation.json").read_text())
    assert trained_sha256(tmp_path) == trained_sha256(run_dir)
    assert untimed(tmp_path) == untimed(run_dir)


def test_a_folder_with_a_trained_run_is_not_trained_into_again(config: Any, run_dir: Path) -> None:
    before = (run_dir / "metrics.jsonl").read_bytes()
    with pytest.raises(InputError, match=r"^run_dir = '.*': holds a trained run; go on with metarl train --resume"):
        train(config("--iterations", "1"), run_dir)
    assert (run_dir / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--agent.inner-lr=0.5", "agent.inner_lr = 0.5: must be 1.0, as in the run"),
        ("--task.num-arms=6", "task.num_arms = 6: must be 5, as in the run"),
        ("--seed=4", "trainer.seed = 4: must be 3, as in the run"),
        ("--meta-batch-size=3", "trainer.meta_batch_size = 3: must be 2, as in the run"),
    ],
)
def test_a_resumed_run_keeps_what_its_results_depend_on(flag: str, said: str, run_dir: Path) -> None:
    before = (run_dir / "config.json").read_bytes()
    with pytest.raises(InputError) as error:
        train(parse_train(["--resume", str(run_dir), flag, "--iterations=9"]).config, run_dir, resume=True)
    assert one_line(error).startswith(said)
    assert (run_dir / "config.json").read_bytes() == before


@pytest.mark.usefixtures("_blank_pictures")
def test_a_resumed_run_may_change_how_long_and_how_often(run_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(run_dir, tmp_path / "run")
    flags = "--iterations=4 --max-minutes=5 --checkpoint-every=3 --trainer.keep-last=1 --trainer.num-threads=1"
    others = "--trainer.act-device=learner --evaluation.num-tasks=2 --evaluation.no-controls"
    resumed = parse_train(["--resume", str(tmp_path / "run"), *flags.split(), *others.split()]).config
    train(resumed, tmp_path / "run", resume=True)
    assert from_dict(json.loads((tmp_path / "run" / "config.json").read_text())) == resumed
