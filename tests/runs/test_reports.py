"""The report of an evaluation and its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from metarl.core.errors import InputError
from metarl.runs import reports
from metarl.runs.train import train


def events(run_dir: Path) -> EventAccumulator:
    return EventAccumulator(str(run_dir), size_guidance={"images": 0, "scalars": 0, "tensors": 0}).Reload()


def test_the_report_holds_the_curve_and_the_controls(run_dir: Path) -> None:
    report = json.loads((run_dir / "adaptation.json").read_text())
    assert (report["unit"], report["score"], report["steps"]) == ("gradient steps", "return", [0, 1, 2])
    assert report["env_steps"] == [0.0, 2.0, 4.0]
    assert (report["num_tasks"], report["num_replicates"], len(report["per_task"][2])) == (4, 1, 4)
    controls = report["cross_adaptation"]
    assert controls["tasks"] == report["tasks"]
    assert [len(row) for row in controls["matrix"]] == [4] * 4
    assert {len(controls["before"]), len(controls["zero_reward"])} == {4}


def test_the_picture_is_a_png(run_dir: Path) -> None:
    with Image.open(run_dir / "adaptation.png") as image:
        image.verify()
        assert image.format == "PNG"
        assert min(image.size) > 300


def test_where_tasks_have_scenes_the_agents_routes_are_kept_and_drawn(config: Any, tmp_path: Path) -> None:
    train(config("--iterations=1", "--evaluation.no-controls", "--task.horizon=3", task="point-nav"), tmp_path)
    paths = json.loads((tmp_path / "paths.json").read_text())
    assert (paths["unit"], paths["steps"], len(paths["tasks"])) == ("gradient steps", [0, 2], 4)
    report = json.loads((tmp_path / "adaptation.json").read_text())
    for task in paths["tasks"]:
        assert task["task"] in report["tasks"]
        assert [[len(way) for way in ways] for ways in task["ways"]] == [[4, 4]] * 2  # three steps, two trajectories
    with Image.open(tmp_path / "paths.png") as image:
        assert image.height > image.width > 500
    assert [image.step for image in events(tmp_path).Images("meta_test/paths")] == [1]
    assert reports.read_routes(tmp_path) == paths


@pytest.mark.usefixtures("_blank_pictures")
def test_controls_can_be_left_out_and_are_at_most_five_tasks(config: Any, tmp_path: Path) -> None:
    short = ("--iterations", "1", "--evaluation.num-tasks", "7", "--evaluation.num-adaptation-steps", "1")
    assert "cross_adaptation" not in train(config(*short, "--evaluation.no-controls"), tmp_path / "a")
    report = train(config(*short), tmp_path / "b")
    assert report["cross_adaptation"]["tasks"] == report["tasks"][: reports.MAX_CONTROL_TASKS]


def test_a_report_that_cannot_be_read_or_written_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written: No such file or directory"):
        reports.write_json({}, tmp_path / "absent" / "a.json")
    with pytest.raises(InputError, match="cannot be read: No such file or directory"):
        reports.read_report(tmp_path)
    (tmp_path / "adaptation.json").write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        reports.read_report(tmp_path)
