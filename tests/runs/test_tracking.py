from __future__ import annotations

import io
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2

from metarl.core.errors import InputError
from metarl.runs import tracking
from metarl.runs.config import flatten
from metarl.runs.tracking import Tracker, read_metrics

CONFIG = {"task_name": "bandit", "agent": {"inner_lr": 0.1, "hidden_sizes": [64, 64], "odd": "a|b", "none": None}}


def tracker(run_dir: Path, **settings: Any) -> Tracker:
    return Tracker(run_dir, config=CONFIG, num_adaptation_steps=1, **settings)


def log(tracker: Tracker, iteration: int, **scalars: float) -> None:
    tracker.log(iteration, scalars, env_steps=100 * iteration, wall_s=0.5 * iteration)


def evaluated(tracker: Tracker, iteration: int, scores: dict[str, float]) -> None:
    tracker.evaluation(iteration, scores, env_steps=100 * iteration, wall_s=0.5 * iteration)


def events(run_dir: Path) -> EventAccumulator:
    return EventAccumulator(str(run_dir), size_guidance={"images": 0, "scalars": 0, "tensors": 0}).Reload()


def scalars(run_dir: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events(run_dir).Scalars(tag)]


def tensor(run_dir: Path, tag: str) -> list[bytes]:
    return [event.tensor_proto.string_val[0] for event in events(run_dir).Tensors(tag)]


def test_both_records_hold_the_same_scalars(tmp_path: Path) -> None:
    with tracker(tmp_path / "a" / "run") as record:
        for iteration in (1, 2, 3):
            record.log(iteration, {"train/kl": iteration / 8}, env_steps=100 * iteration, wall_s=0.5 * iteration)
        assert [row["iteration"] for row in read_metrics(tmp_path / "a" / "run")] == [1, 2, 3]
    rows = read_metrics(tmp_path / "a" / "run")
    assert rows[1] == {"iteration": 2, "env_steps": 200, "wall_s": 1.0, "train/kl": 0.25}
    assert scalars(tmp_path / "a" / "run", "train/kl") == [(1, 0.125), (2, 0.25), (3, 0.375)]


def test_what_is_not_finite_is_null_and_a_gap(tmp_path: Path) -> None:
    with tracker(tmp_path) as record:
        for iteration, value in enumerate((1.0, math.nan, math.inf, -math.inf)):
            log(record, iteration, x=value)
    assert [row["x"] for row in read_metrics(tmp_path)] == [1.0, None, None, None]
    assert scalars(tmp_path, "x") == [(0, 1.0)]


def test_lines_may_hold_different_scalars(tmp_path: Path) -> None:
    with tracker(tmp_path) as record:
        log(record, 0, x=1.0)
        log(record, 1, y=2.0)
    first, second = read_metrics(tmp_path)
    assert ("y" in first, "x" in second) == (False, False)


def test_the_configuration_is_written(tmp_path: Path) -> None:
    tracker(tmp_path).close()
    assert json.loads((tmp_path / "config.json").read_text()) == CONFIG
    (text,) = tensor(tmp_path, "config/text_summary")
    assert b"| agent.inner_lr | 0.1 |" in text
    assert b"| agent.odd | a\\|b |" in text


def test_a_layout_draws_each_curves_steps_in_one_chart(tmp_path: Path) -> None:
    tracker(tmp_path, num_evaluation_steps=3).close()
    (data,) = tensor(tmp_path, "custom_scalars__config__")
    (category,) = layout_pb2.Layout.FromString(data).category
    charts = {chart.title: list(chart.multiline.tag) or list(chart.margin.series) for chart in category.chart}
    bands = charts.pop("test tasks, 95 % intervals")
    assert charts == {
        "training tasks": ["adapt/step_0", "adapt/step_1"],
        "test tasks": [f"meta_test/step_{step}" for step in range(4)],
    }
    assert [(band.value, band.lower, band.upper) for band in bands] == [
        (f"meta_test/step_{step}", f"meta_test_ci/low_step_{step}", f"meta_test_ci/high_step_{step}")
        for step in range(4)
    ]


def test_a_figure_arrives_as_a_picture(tmp_path: Path) -> None:
    figure = Figure(figsize=(2, 1), dpi=50)
    with tracker(tmp_path) as record:
        record.figure("meta_test/adaptation_curve", figure, 7)
    (event,) = events(tmp_path).Images("meta_test/adaptation_curve")
    picture = Image.open(io.BytesIO(event.encoded_image_string))
    assert (event.step, event.width, event.height, picture.size) == (7, 100, 50, (100, 50))


def test_hyperparameters_and_results_are_recorded_in_the_runs_own_events(tmp_path: Path) -> None:
    with tracker(tmp_path) as record:
        log(record, 5, x=1.0)
        record.hparams(flatten(CONFIG), {"hparam/return": 12.5, "hparam/lost": math.nan})
    plugin = events(tmp_path).summary_metadata["_hparams_/session_start_info"].plugin_data.content
    settings = plugin_data_pb2.HParamsPluginData.FromString(plugin).session_start_info.hparams
    assert settings["agent.inner_lr"].number_value == 0.1
    assert settings["agent.hidden_sizes"].string_value == "[64, 64]"
    assert settings["agent.none"].string_value == "None"
    assert scalars(tmp_path, "hparam/return") == [(5, 12.5)]
    assert "hparam/lost" not in events(tmp_path).Tags()["scalars"]
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 1


def test_an_evaluation_joins_the_row_of_its_iteration(tmp_path: Path) -> None:
    with tracker(tmp_path) as record:
        log(record, 1, x=1.0)
        log(record, 2, x=2.0)
        evaluated(record, 2, {"meta_test/step_0": 0.5, "meta_test/step_1": math.nan})
        log(record, 3, x=3.0)
        evaluated(record, 4, {"meta_test/step_0": 1.5})  # the row was lost
        evaluated(record, 4, {"meta_test/step_0": 1.5})
    rows = read_metrics(tmp_path)
    assert [row["iteration"] for row in rows] == [1, 2, 3, 4]
    assert [row.get("meta_test/step_0") for row in rows] == [None, 0.5, None, 1.5]
    assert rows[1]["x"] == 2.0
    assert rows[3]["env_steps"] == 400
    assert scalars(tmp_path, "meta_test/step_0") == [(2, 0.5), (4, 1.5)]


def test_a_resumed_run_drops_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    with tracker(tmp_path) as record:
        for iteration in range(1, 6):
            log(record, iteration, x=float(iteration))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 6, "x": ')
    with tracker(tmp_path, start_iteration=4) as record:
        assert [row["iteration"] for row in read_metrics(tmp_path)] == [1, 2, 3]
        log(record, 4, x=40.0)
    assert [row["x"] for row in read_metrics(tmp_path)] == [1.0, 2.0, 3.0, 40.0]
    assert scalars(tmp_path, "x") == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]
    assert len(tensor(tmp_path, "custom_scalars__config__")) == 1


@pytest.mark.parametrize("clock", [[5.0, 5.0, 5.0], [5.0, 7.0, 3.0]])
def test_event_files_are_read_in_the_order_in_which_they_were_written(
    clock: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are read in the order of their names, also within one second and after the clock was set back."""
    for start, now in zip((0, 2, 3), clock, strict=True):
        monkeypatch.setattr(tracking.time, "time", lambda now=now: now)
        with tracker(tmp_path, start_iteration=start) as record:
            for iteration in range(start + 1, start + 3):
                log(record, iteration, x=0.0)
    assert [step for step, _ in scalars(tmp_path, "x")] == [1, 4, 5]


def test_a_torn_end_of_an_event_file_hides_nothing_that_comes_after_it(tmp_path: Path) -> None:
    with tracker(tmp_path) as record:
        log(record, 1, x=1.0)
        log(record, 2, x=2.0)
    (path,) = tmp_path.glob("events.out.tfevents.*")
    path.write_bytes(path.read_bytes()[:-7])
    with tracker(tmp_path, start_iteration=2) as record:
        log(record, 2, x=2.0)
        log(record, 3, x=3.0)
    assert scalars(tmp_path, "x") == [(1, 1.0), (2, 2.0), (3, 3.0)]


FULL = """
import resource, sys
from pathlib import Path
from metarl.core.errors import RunError
from metarl.runs.tracking import Tracker

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

folder = Path(sys.argv[1])
for name in ("metrics.jsonl", "events.out.tfevents.*"):
    limit(resource.RLIM_INFINITY)
    config = {"long": "x" * 5000} if name == "metrics.jsonl" else {}
    record = Tracker(folder / name[:7], config=config, num_adaptation_steps=1)
    tags = 1 if name == "metrics.jsonl" else 99
    record.log(1, {f"tag_{number}": 1.0 for number in range(tags)}, env_steps=1, wall_s=1.0)
    (path,) = (folder / name[:7]).glob(name)
    limit(path.stat().st_size + 20)
    try:
        if name == "metrics.jsonl":
            record.log(2, {"tag_0": 1.0, "tag_1": 2.0}, env_steps=2, wall_s=2.0)
        else:  # the larger of the two files
            record.evaluation(1, {"meta_test/step_0": 0.5}, env_steps=1, wall_s=1.0)
    except RunError as error:
        print(error)
    record.close()
    record.close()
"""


def test_a_disk_that_is_full_is_said_where_it_happens_with_the_files_name(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    first, second = done.stdout.splitlines()
    assert first == f"{tmp_path}/metrics/metrics.jsonl: cannot be written: File too large"
    assert re.fullmatch(f"{tmp_path}/events\\./events\\.out\\.tfevents.*: cannot be written: File too large", second)
    (row,) = read_metrics(tmp_path / "events.")
    assert "meta_test/step_0" not in row, "an evaluation in the metrics is in TensorBoard, too"


def test_a_resumed_run_that_is_already_done_can_still_be_evaluated(tmp_path: Path) -> None:
    with tracker(tmp_path) as record:
        log(record, 1, x=1.0)
    with tracker(tmp_path, start_iteration=2) as record:
        evaluated(record, 1, {"meta_test/step_0": 0.5})
    (row,) = read_metrics(tmp_path)
    assert (row["x"], row["meta_test/step_0"]) == (1.0, 0.5)


@pytest.mark.parametrize("in_metrics", [True, False])
def test_an_evaluation_that_a_kill_broke_off_is_recorded_once_when_it_is_done_again(
    in_metrics: bool, tmp_path: Path
) -> None:
    figure = Figure(figsize=(2, 1), dpi=50)
    with tracker(tmp_path) as record:
        log(record, 1, x=1.0)
        log(record, 2, x=2.0)
        record.figure("curve", figure, 2)
        (path,) = tmp_path.glob("events.out.tfevents.*")
        before = path.read_bytes()
        evaluated(record, 2, {"meta_test/step_0": 0.5, "meta_test_ci/low_step_0": 0.4})
        record.hparams({}, {"hparam/return": 0.5})
    if in_metrics:  # and lost in TensorBoard
        path.write_bytes(before)
    with tracker(tmp_path, start_iteration=3, evaluated_again=True) as record:
        assert read_metrics(tmp_path)[1].keys() == read_metrics(tmp_path)[0].keys()
        record.figure("curve", figure, 2)
        evaluated(record, 2, {"meta_test/step_0": 0.5})
        record.hparams({}, {"hparam/return": 0.5})
    assert read_metrics(tmp_path)[1]["meta_test/step_0"] == 0.5
    assert scalars(tmp_path, "x") == [(1, 1.0), (2, 2.0)]
    assert scalars(tmp_path, "meta_test/step_0") == scalars(tmp_path, "hparam/return") == [(2, 0.5)]
    assert [image.step for image in events(tmp_path).Images("curve")] == [2]


def test_a_run_repeated_from_its_beginning_starts_clean(tmp_path: Path) -> None:
    with tracker(tmp_path) as record:
        log(record, 1, x=1.0)
        log(record, 2, x=2.0)
    with tracker(tmp_path) as record:
        log(record, 1, x=10.0)
    assert [row["x"] for row in read_metrics(tmp_path)] == [10.0]
    assert scalars(tmp_path, "x") == [(1, 10.0)]


def test_a_torn_last_line_is_ignored_and_a_damaged_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"iteration": 1}\n{"iteration": 2')
    assert read_metrics(tmp_path) == [{"iteration": 1}]
    deep = '{"iteration": ' + "[" * 100_000
    for line in (
        '{"iteration": 1',
        "[]",
        '"x"',
        '{"step": 1}',
        '{"iteration": true}',
        '{"iteration": 1, "x": []}',
        deep,
    ):
        path.write_text(f'{line}\n{{"iteration": 2}}\n')
        with pytest.raises(InputError, match=r"metrics\.jsonl:1: is damaged"):
            read_metrics(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_metrics(tmp_path)


def test_closing_twice_is_harmless(tmp_path: Path) -> None:
    record = tracker(tmp_path)
    record.close()
    record.close()
