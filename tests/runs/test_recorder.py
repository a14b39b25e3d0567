"""The recorder of a run: what its folder holds during and after training."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from metarl.cli import main as cli
from metarl.core.errors import RunError
from metarl.core.trainer import Callback, Progressed, Trainer
from metarl.runs import checkpoint
from metarl.runs.build import build
from metarl.runs.config import from_dict
from metarl.runs.load import load, load_trainer
from metarl.runs.recorder import RunRecorder
from metarl.runs.tracking import read_metrics
from metarl.runs.train import train

SAVED_TWICE = ("--iterations=3", "--evaluation.every=2", "--checkpoint-every=2")
STEPS_PER_ITERATION = 2 * 2 * 2  # tasks, trajectories, support and query; a bandit's trajectory is one pull
TAGS = {
    "rollout/pre_adapt/ep_rew_mean", "rollout/post_adapt/ep_rew_mean", "adapt/gain", "adapt/step_0", "adapt/step_1",
    "time/fps", "time/sample_s", "time/learn_s", "time/env_steps", "health/diverged_sims",
    "train/surrogate_improvement", "train/approx_kl",
}  # fmt: skip
TEST_TAGS = {"meta_test/step_0", "meta_test/step_1", "meta_test/step_2"}
INTERVAL_TAGS = {f"meta_test_ci/{end}_step_{step}" for end in ("low", "high") for step in range(3)}


def events(run_dir: Path) -> EventAccumulator:
    return EventAccumulator(str(run_dir), size_guidance={"images": 0, "scalars": 0, "tensors": 0}).Reload()


def test_a_run_folder_holds_all_its_parts_and_nothing_else(run_dir: Path) -> None:
    files = {str(path.relative_to(run_dir)) for path in run_dir.rglob("*") if path.is_file()}
    (event_file,) = {name for name in files if name.startswith("events.out.tfevents.")}
    checkpoints = {f"checkpoints/iteration_00000{i}/{name}" for i in (2, 3) for name in ("state.pt", "manifest.json")}
    plain = {"config.json", "metrics.jsonl", "adaptation.json", "adaptation.png"}
    assert files == {event_file} | checkpoints | plain


def test_the_saved_configuration_is_the_resolved_one(config: Any, run_dir: Path) -> None:
    saved = json.loads((run_dir / "config.json").read_text())
    assert (saved["task_name"], saved["agent_name"], saved["trainer"]["iterations"]) == ("bandit", "maml", 3)
    expected = config(*SAVED_TWICE)
    assert from_dict(saved) == expected


def test_metrics_hold_one_object_per_iteration(run_dir: Path) -> None:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [1, 2, 3]
    assert [row["env_steps"] for row in rows] == [STEPS_PER_ITERATION * i for i in (1, 2, 3)]
    assert 0 < rows[0]["wall_s"] < rows[1]["wall_s"] < rows[2]["wall_s"]
    for row, evaluated in zip(rows, (False, True, True), strict=True):
        assert row.keys() >= TAGS
        tested = {key for key in row if key.startswith("meta_test")}
        assert tested == (TEST_TAGS | INTERVAL_TAGS if evaluated else set())
        assert ("meta_validation/score" in row) == evaluated
        assert {key for key in row if "/" not in key} == {"iteration", "env_steps", "wall_s"}
        assert all(math.isfinite(value) for value in row.values())
    curve = json.loads((run_dir / "adaptation.json").read_text())
    tags = {"mean": "meta_test/step", "ci_low": "meta_test_ci/low_step", "ci_high": "meta_test_ci/high_step"}
    for name, tag in tags.items():
        assert [rows[2][f"{tag}_{step}"] for step in range(3)] == curve[name]


def test_tensorboard_shows_what_the_metrics_hold(run_dir: Path) -> None:
    record, rows = events(run_dir), read_metrics(run_dir)
    for tag in {tag for row in rows for tag in row if "/" in tag}:
        expected = [(row["iteration"], pytest.approx(row[tag])) for row in rows if tag in row]
        assert [(event.step, event.value) for event in record.Scalars(tag)] == expected, tag


def test_tensorboard_has_the_figure_the_layout_and_the_hyperparameters(run_dir: Path) -> None:
    record = events(run_dir)
    assert [image.step for image in record.Images("meta_test/adaptation_curve")] == [2, 3]
    (layout,) = record.Tensors("custom_scalars__config__")
    (category,) = layout_pb2.Layout.FromString(layout.tensor_proto.string_val[0]).category
    charts = {chart.title: list(chart.multiline.tag) for chart in category.chart if chart.HasField("multiline")}
    assert charts == {"training tasks": ["adapt/step_0", "adapt/step_1"], "test tasks": sorted(TEST_TAGS)}
    assert record.PluginTagToContent("hparams").keys() == {
        "_hparams_/experiment", "_hparams_/session_start_info", "_hparams_/session_end_info"
    }  # fmt: skip
    mean = json.loads((run_dir / "adaptation.json").read_text())["mean"]
    for step, value in enumerate(mean):
        assert [(e.step, e.value) for e in record.Scalars(f"hparam/step_{step}")] == [(3, pytest.approx(value))]
    assert {tag.split("/")[0] for tag in record.Tags()["scalars"]} >= {"hparam", "meta_test", "meta_test_ci"}
    assert not [tag for tag in record.Tags()["scalars"] if tag.startswith("hparam_")]


class Moving(Callback):
    def on_iteration(self, trainer: Trainer, progressed: Progressed) -> None:
        if progressed.iteration == 2:
            Path("run").rename("moved")


@pytest.mark.usefixtures("_elsewhere", "_blank_pictures")
def test_a_run_folder_that_is_moved_away_ends_the_run_and_goes_on_from_its_new_place(config: Any) -> None:
    saved = config("--iterations=4", "--checkpoint-every=1", "--evaluation.no-controls")
    with pytest.raises(RunError, match=r"^run: was moved or deleted while the run wrote to it$"):
        train(saved, Path("run"), callbacks=(Moving(),))
    assert not Path("run").exists()
    assert cli.main(["train", "--resume", "moved", "--quiet"]) == 0
    assert checkpoint.latest(Path("moved")).iteration == 4


@dataclass
class Scores(Callback):
    """Replaces the measured scores."""

    scores: list[float]

    def on_evaluation(self, trainer: Trainer, curve: Any) -> None:
        score = self.scores[trainer.iteration - 1]
        trainer.validation = score
        curve.values[:] = -score  # test tasks would choose another one


@pytest.mark.usefixtures("_blank_pictures")
@pytest.mark.parametrize(
    ("scores", "every", "last", "kept"),
    [
        ([1, 5, 2, 3, 4, 0], 6, 1, [2, 6]),  # saved because it is the best, not because it is due
        ([5, 5, 2, 3, 4, 0], 6, 1, [1, 6]),  # the earliest of equal scores
        ([1, 5, 2, 3, 4, 6], 6, 1, [6]),  # the last evaluation comes after the last checkpoint
        ([6, 5, 4, 3, 2, 1], 1, 3, [1, 4, 5, 6]),
        ([math.nan, 1, 0, 0, 0, 0], 1, 3, [2, 4, 5, 6]),
    ],
)
def test_the_newest_checkpoints_stay_and_the_best(
    config: Any, scores: list[float], every: int, last: int, kept: list[int], tmp_path: Path
) -> None:
    flags = f"--checkpoint-every={every} --trainer.keep-last={last} --evaluation.every=1 --iterations=6"
    enough = "--agent.num-trajectories=8"  # for a step of every iteration to be accepted
    train(config(*flags.split(), enough, "--evaluation.no-controls"), tmp_path, callbacks=(Scores(scores),))
    assert [*checkpoint.list_checkpoints(tmp_path)] == kept
    trainer = load_trainer(tmp_path, checkpoint="best")
    assert trainer.iteration == (kept[-1] if scores[-1] == 6 else kept[0])
    hashes = {which: checkpoint.parameters_sha256(load(tmp_path, checkpoint=which).parameters) for which in kept}
    assert checkpoint.parameters_sha256(trainer.learner.parameters) == hashes[trainer.iteration]
    assert len({*hashes.values()}) == len(kept)


def test_the_run_folder_ends_quietly_when_it_never_began(config: Any, tmp_path: Path) -> None:
    RunRecorder(tmp_path / "run", config()).on_end(build(config()))
    assert not (tmp_path / "run").exists()
