from __future__ import annotations

import json
import math
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

import metarl
from metarl.cli import main as cli
from metarl.cli.flags import parse_train
from metarl.core.errors import InputError, RunError
from metarl.core.learner import Traits
from metarl.core.trainer import Callback, Progressed, Trainer
from metarl.report import plots
from metarl.runs import checkpoint
from metarl.runs import folder as run_folder
from metarl.runs import reports as runs
from metarl.runs.best import best_iteration
from metarl.runs.build import build
from metarl.runs.config import RunConfig, from_dict
from metarl.runs.folder import new_run_dir
from metarl.runs.load import load, load_trainer
from metarl.runs.recorder import RunRecorder
from metarl.runs.tracking import read_metrics
from metarl.runs.train import train

TINY = [
    "--meta-batch-size=2",
    "--seed=3",
    "--device=cpu",
    "--agent.num-trajectories=2",
    "--agent.hidden-sizes=4",
    "--evaluation.num-tasks=4",
    "--evaluation.num-adaptation-steps=2",
]
SAVED_TWICE = ("--iterations=3", "--evaluation.every=2", "--checkpoint-every=2")
STEPS_PER_ITERATION = 2 * 2 * 2  # tasks, trajectories, support and query; a bandit's trajectory is one pull


def config(*flags: str, task: str = "bandit") -> RunConfig:
    return parse_train([task, *TINY, *flags]).config


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three iterations that also evaluated after the second."""
    folder = tmp_path_factory.mktemp("runs") / "one"
    report = train(config(*SAVED_TWICE), folder)
    assert report == json.loads((folder / "adaptation.json").read_text())
    return folder


@pytest.fixture
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def _blank_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing is most of a tiny run's time."""
    monkeypatch.setattr(plots, "adaptation_figure", lambda report: Figure())


def events(run_dir: Path) -> EventAccumulator:
    return EventAccumulator(str(run_dir), size_guidance={"images": 0, "scalars": 0, "tensors": 0}).Reload()


def untimed(run_dir: Path) -> list[dict[str, Any]]:
    rows = read_metrics(run_dir)
    return [{tag: row[tag] for tag in row if tag != "wall_s" and not tag.startswith("time/")} for row in rows]


def trained_sha256(run_dir: Path) -> str:
    newest = checkpoint.latest(run_dir).manifest["parameters_sha256"]
    assert isinstance(newest, str)
    return newest


def test_a_run_folder_holds_all_its_parts_and_nothing_else(run_dir: Path) -> None:
    files = {str(path.relative_to(run_dir)) for path in run_dir.rglob("*") if path.is_file()}
    (event_file,) = {name for name in files if name.startswith("events.out.tfevents.")}
    checkpoints = {f"checkpoints/iteration_00000{i}/{name}" for i in (2, 3) for name in ("state.pt", "manifest.json")}
    plain = {"config.json", "metrics.jsonl", "adaptation.json", "adaptation.png"}
    assert files == {event_file} | checkpoints | plain


def test_the_saved_configuration_is_the_resolved_one(run_dir: Path) -> None:
    saved = json.loads((run_dir / "config.json").read_text())
    assert (saved["task_name"], saved["agent_name"], saved["trainer"]["iterations"]) == ("bandit", "maml", 3)
    expected = config(*SAVED_TWICE)
    assert from_dict(saved) == expected


TAGS = {
    "rollout/pre_adapt/ep_rew_mean", "rollout/post_adapt/ep_rew_mean", "adapt/gain", "adapt/step_0", "adapt/step_1",
    "time/fps", "time/sample_s", "time/learn_s", "time/env_steps", "health/diverged_sims",
    "train/surrogate_improvement", "train/approx_kl",
}  # fmt: skip
TEST_TAGS = {"meta_test/step_0", "meta_test/step_1", "meta_test/step_2"}
INTERVAL_TAGS = {f"meta_test_ci/{end}_step_{step}" for end in ("low", "high") for step in range(3)}


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


def test_where_tasks_have_scenes_the_agents_ways_are_kept_and_drawn(tmp_path: Path) -> None:
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
    assert runs.read_report(tmp_path, "paths.json") == paths


@pytest.mark.usefixtures("_blank_pictures")
def test_controls_can_be_left_out_and_are_at_most_five_tasks(tmp_path: Path) -> None:
    short = ("--iterations", "1", "--evaluation.num-tasks", "7", "--evaluation.num-adaptation-steps", "1")
    assert "cross_adaptation" not in train(config(*short, "--evaluation.no-controls"), tmp_path / "a")
    report = train(config(*short), tmp_path / "b")
    assert report["cross_adaptation"]["tasks"] == report["tasks"][: runs.MAX_CONTROL_TASKS]


@pytest.mark.usefixtures("_blank_pictures")
def test_load_returns_what_was_trained(tmp_path: Path) -> None:
    seen: list[str] = []

    class Watch(Callback):
        def on_end(self, trainer: Trainer) -> None:
            seen.append(checkpoint.parameters_sha256(trainer.learner.parameters))

    short = config("--iterations", "2", "--evaluation.no-controls")
    train(short, tmp_path, callbacks=(Watch(),))
    untrained = checkpoint.parameters_sha256(build(short).learner.parameters)
    for path in (tmp_path, str(tmp_path)):
        learner = metarl.load(path)
        assert checkpoint.parameters_sha256(learner.parameters) == trained_sha256(tmp_path) == seen[0] != untrained
    assert checkpoint.latest(tmp_path).iteration == 2


@pytest.mark.usefixtures("_blank_pictures")
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
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


class DiskFullError(Exception):
    pass


@dataclass
class Failing(Callback):
    iteration: int

    def on_iteration(self, trainer: Trainer, progressed: Progressed) -> None:
        if progressed.iteration == self.iteration:
            raise DiskFullError


@pytest.mark.usefixtures("_blank_pictures")
@pytest.mark.parametrize("checkpoint_is_lost", [False, True])
def test_a_broken_run_can_be_resumed(checkpoint_is_lost: bool, tmp_path: Path, run_dir: Path) -> None:
    if checkpoint_is_lost:  # as if a kill had come before it: iteration 3 is recorded, but must be done again
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


def test_a_folder_with_a_trained_run_is_not_trained_into_again(run_dir: Path) -> None:
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


class Moving(Callback):
    def on_iteration(self, trainer: Trainer, progressed: Progressed) -> None:
        if progressed.iteration == 2:
            Path("run").rename("moved")


@pytest.mark.usefixtures("_elsewhere", "_blank_pictures")
def test_a_run_folder_that_is_moved_away_ends_the_run_and_goes_on_from_its_new_place() -> None:
    saved = config("--iterations=4", "--checkpoint-every=1", "--evaluation.no-controls")
    with pytest.raises(RunError, match=r"^run: was moved or deleted while the run wrote to it$"):
        train(saved, Path("run"), callbacks=(Moving(),))
    assert not Path("run").exists()
    assert cli.main(["train", "--resume", "moved", "--quiet"]) == 0
    assert checkpoint.latest(Path("moved")).iteration == 4


@dataclass
class Scores(Callback):
    """Puts other scores on test tasks in the place of the measured ones."""

    scores: list[float]

    def on_evaluation(self, trainer: Trainer, curve: Any) -> None:
        score = self.scores[trainer.iteration - 1]
        trainer.validation = score
        curve.values[:] = -score  # test tasks would choose another one


@pytest.mark.usefixtures("_blank_pictures")
@pytest.mark.parametrize(
    ("scores", "every", "last", "kept"),
    [
        ([1, 5, 2, 3, 4, 0], 6, 1, [2, 6]),  # saved because it is the best, though none is due
        ([5, 5, 2, 3, 4, 0], 6, 1, [1, 6]),  # of equal ones the earliest
        ([1, 5, 2, 3, 4, 6], 6, 1, [6]),  # the last evaluation comes after the last checkpoint
        ([6, 5, 4, 3, 2, 1], 1, 3, [1, 4, 5, 6]),
        ([math.nan, 1, 0, 0, 0, 0], 1, 3, [2, 4, 5, 6]),
    ],
)
def test_the_newest_checkpoints_stay_and_the_best(
    scores: list[float], every: int, last: int, kept: list[int], tmp_path: Path
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


@pytest.mark.parametrize(
    ("score_name", "steps", "others", "best"),
    [
        ("return", 1, {}, 2),
        ("accuracy", 5, {}, 3),
        ("mse", 1, {}, 3),
        ("mse", 0, {}, 2),
        ("accuracy", 1, {"support": "shot"}, 3),
        ("accuracy", 1, {"trains_jointly": True}, 3),
    ],
)
def test_the_best_is_by_the_learners_own_steps_and_direction(
    score_name: str, steps: int, others: dict[str, Any], best: int, tmp_path: Path
) -> None:
    """Iteration 1 has no checkpoint, 4 no evaluation, and step 2 is the last evaluated one, which counts for a learner
    of shots and one that trains jointly."""
    scores = {1: (9, 9, 9), 2: (1, 3, 1), 3: (2, 1, 3)}
    rows = [{"iteration": i, **{f"meta_test/step_{k}": x for k, x in enumerate(row)}} for i, row in scores.items()]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in [*rows, {"iteration": 4}]))
    for iteration in (2, 3, 4):
        (tmp_path / "checkpoints" / f"iteration_00000{iteration}").mkdir(parents=True)
    traits = Traits(unit="gradient steps", **others)
    learner: Any = SimpleNamespace(traits=traits, num_adaptation_steps=steps, score_name=score_name)
    assert best_iteration(tmp_path, learner) == best  # as in a run from before there were validation scores
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"iteration": 4, "meta_validation/score": 0.0, "meta_test/step_0": 0.0}) + "\n")
    assert best_iteration(tmp_path, learner) == 4  # scores on test tasks no longer count


@pytest.mark.usefixtures("_blank_pictures")
def test_a_best_checkpoint_that_test_tasks_chose_is_warned_of(
    run_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load(run_dir, checkpoint="best")
    assert not caplog.records
    assert load_trainer(run_dir).evaluation.every == 0  # evaluating a trained learner needs no validation
    train(config("--iterations=2", "--evaluation.every=1", "--evaluation.validation-tasks=0"), tmp_path)
    assert not [tag for row in read_metrics(tmp_path) for tag in row if tag.startswith("meta_validation")]
    load(tmp_path, checkpoint="best")
    assert "was chosen by its score on test tasks" in caplog.text


@pytest.mark.usefixtures("_blank_pictures")
def test_a_checkpoint_that_is_not_there_is_said_with_those_that_are(run_dir: Path, tmp_path: Path) -> None:
    for which in ("lates", "7", 7, -1, ""):
        with pytest.raises(InputError) as error:
            load(run_dir, checkpoint=which)
        assert one_line(error) == f"checkpoint = {which!r}: must be latest, best or an iteration, one of 2, 3"
    train(config("--iterations=1", "--evaluation.no-controls"), tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 1}\n')
    with pytest.raises(InputError, match=r"^checkpoint = 'best': must be one of 1: none of them was evaluated"):
        load(tmp_path, checkpoint="best")


@pytest.mark.usefixtures("_blank_pictures")
def test_a_folder_in_use_is_not_trained_in_but_can_be_read(run_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(run_dir, tmp_path / "run")

    class Second(Callback):
        said = ""

        def on_iteration(self, trainer: Trainer, progressed: Progressed) -> None:
            with pytest.raises(InputError) as error:
                train(again, tmp_path / "run", resume=True)
            self.said = one_line(error)
            assert load(tmp_path / "run")

    second = Second()
    again = parse_train(["--resume", str(tmp_path / "run"), "--iterations=4", "--evaluation.no-controls"]).config
    train(again, tmp_path / "run", resume=True, callbacks=(second,))
    assert second.said.startswith(f"run_dir = '{tmp_path / 'run'}': in use by process {os.getpid()} since 20")
    assert not (tmp_path / "run" / ".lock").exists()


def test_evaluating_a_run_again_gives_its_report(run_dir: Path) -> None:
    trainer = load_trainer(run_dir)
    report = json.loads((run_dir / "adaptation.json").read_text())
    assert runs.describe(trainer, trainer.evaluate(), controls=True) == report
    other = load_trainer(run_dir, seed=4, num_tasks=3, num_adaptation_steps=0)
    curve = other.evaluate()
    assert curve.values.shape == (1, 3, 1)
    assert not {str(task) for task in curve.tasks} & {*report["tasks"]}


def one_line(error: pytest.ExceptionInfo[InputError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def rewrite_manifest(path: Path, without: str) -> None:
    manifest = {key: value for key, value in json.loads(path.read_text()).items() if key != without}
    manifest["manifest_sha256"] = checkpoint.manifest_sha256(manifest)
    path.write_text(json.dumps(manifest))


def copy_of_config(run_dir: Path, target: Path, **changes: Any) -> None:
    target.mkdir(exist_ok=True)
    saved = json.loads((run_dir / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**saved, **changes}))


def test_what_is_no_run_is_said_in_one_line(tmp_path: Path, run_dir: Path) -> None:
    with pytest.raises(InputError) as error:
        load(tmp_path / "absent")
    assert "absent: is not a run folder" in one_line(error)
    with pytest.raises(InputError) as error:
        load(tmp_path)
    assert "is not a run folder" in one_line(error)
    copy_of_config(run_dir, tmp_path)
    with pytest.raises(InputError) as error:
        load(tmp_path)
    assert "holds no checkpoint" in one_line(error)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError) as error:
        load(tmp_path)
    assert "is damaged" in one_line(error)


@pytest.mark.usefixtures("_blank_pictures")
def test_a_damaged_checkpoint_is_said_in_one_line(tmp_path: Path) -> None:
    train(config("--iterations", "1", "--evaluation.no-controls"), tmp_path)
    state = tmp_path / "checkpoints" / "iteration_000001" / "state.pt"
    data = bytearray(state.read_bytes())
    data[len(data) // 2] ^= 1
    state.write_bytes(data)
    with pytest.raises(InputError) as error:
        load(tmp_path)
    assert "holds no usable checkpoint" in one_line(error)
    assert "state.pt has sha256" in one_line(error)


ODD_FILES = [
    *((name, text) for name in ("adaptation.json", "metrics.jsonl", "paths.json") for text in ("[]", "{}", "3", '"x"')),
    *(("adaptation.json", text) for text in (9999 * "[", "NaN", '{"a": 1, "a": 2}', f"{5000 * '9'}", "\x00")),
    *(("adaptation.json", {name: odd}) for name in ("steps", "per_task", "mean") for odd in (None, "x", [{}], 1)),
    ("adaptation.json", {"unit": 7}),
    ("adaptation.json", {"env_steps": ["a"]}),
    ("adaptation.json", {"num_replicates": "many"}),
    ("adaptation.json", {"cross_adaptation": {"tasks": ["x"], "matrix": 65 * [[1.0]]}}),
    ("paths.json", {"unit": "gradient steps", "steps": [0, 1], "tasks": 65 * [{}]}),
    ("metrics.jsonl", '{"iteration": 1, "env_steps": "x"}\n\n'),
    ("metrics.jsonl", '{"iteration": true}\n\n'),
]


@pytest.mark.parametrize(("name", "content"), ODD_FILES)
def test_a_run_folders_odd_files_are_named_and_nothing_is_drawn(
    name: str, content: Any, tmp_path: Path, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in ("config.json", "adaptation.json", "metrics.jsonl"):
        shutil.copy(run_dir / file, tmp_path)
    if isinstance(content, dict):
        content = json.dumps({**json.loads((run_dir / "adaptation.json").read_text()), **content})
    if name == "metrics.jsonl":
        (tmp_path / "adaptation.json").unlink()
    (tmp_path / name).write_text(content)
    assert cli.main(["plot", str(tmp_path), "--out", str(tmp_path / "a.png")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"metarl: {tmp_path}")
    assert not list(tmp_path.glob("a*.png"))


def test_a_checkpoint_of_another_learner_is_said_in_one_line(tmp_path: Path, run_dir: Path) -> None:
    saved = json.loads((run_dir / "config.json").read_text())
    copy_of_config(run_dir, tmp_path, agent={**saved["agent"], "hidden_sizes": [5]})
    shutil.copytree(run_dir / "checkpoints", tmp_path / "checkpoints")
    with pytest.raises(InputError) as error:
        load(tmp_path)
    assert "is of another configuration: agent.hidden_sizes = [4], the run's is [5]" in one_line(error)
    for manifest in tmp_path.glob("checkpoints/*/manifest.json"):  # such as it was before it held the settings
        rewrite_manifest(manifest, "config")
    with pytest.raises(InputError) as error:
        load(tmp_path)
    assert "is of another learner, or of an older version of its task family: state.parameters." in one_line(error)
    assert "logits.layers.0.weight is a tensor (4, 1) of torch.float32, the learner's is a" in one_line(error)
    assert "train again" in one_line(error)


@pytest.mark.usefixtures("_blank_pictures")
def test_a_run_folder_imports_code_only_if_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs_own_family.py").write_text("from metarl.envs.bandit import Bandit as Own\n")
    monkeypatch.syspath_prepend(tmp_path)
    train(config(*SAVED_TWICE, "--evaluation.no-controls", task="runs_own_family:Own"), tmp_path)
    monkeypatch.delitem(sys.modules, "runs_own_family")
    with pytest.raises(InputError) as error:
        load(tmp_path)
    assert one_line(error).startswith("task_name = 'runs_own_family:Own': must be a registered name")
    assert "runs_own_family" not in sys.modules
    learner = load(tmp_path, trusted=True)
    assert checkpoint.parameters_sha256(learner.parameters) == trained_sha256(tmp_path)


@pytest.mark.usefixtures("_elsewhere")
def test_a_new_run_dir_is_made_at_once_and_gone_again_if_it_stays_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "time", SimpleNamespace(strftime=lambda _: "20260102-030405"))
    with new_run_dir(config()) as first, new_run_dir(config()) as second:
        assert [str(path) for path in (first, second)] == [
            "runs/bandit-maml-20260102-030405-seed3", "runs/bandit-maml-20260102-030405-seed3-1"
        ]  # fmt: skip
        assert first.is_dir()
        (second / "config.json").write_text("{}")
    assert [*Path("runs").iterdir()] == [second]


@pytest.mark.usefixtures("_elsewhere")
def test_an_error_before_training_leaves_no_run_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"^trainer\.device"), new_run_dir(config("--device=cuda")) as path:
        train(config("--device=cuda"), path)
    assert not Path("runs").exists()
    Path("runs").write_text("")
    with pytest.raises(InputError, match=r"^run_dir = 'runs/.*': cannot be made: Not a directory$"):
        new_run_dir(config()).__enter__()


@pytest.mark.usefixtures("_elsewhere")
def test_a_new_run_dirs_name_holds_no_colon() -> None:
    with new_run_dir(config(task="metarl.envs.bandit:Bandit")) as path:
        assert ":" not in str(path)


def test_a_run_folder_that_cannot_be_made_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(InputError) as error:
            train(config("--iterations", "1"), path)
        assert one_line(error).startswith(f"run_dir = '{path}': cannot be made")
    assert (tmp_path / "file").read_text() == ""


def test_a_report_that_cannot_be_read_or_written_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written: No such file or directory"):
        runs.write_json({}, tmp_path / "absent" / "a.json")
    with pytest.raises(InputError, match="cannot be read: No such file or directory"):
        runs.read_report(tmp_path)
    (tmp_path / "adaptation.json").write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        runs.read_report(tmp_path)


def test_the_run_folder_ends_quietly_when_it_never_began(tmp_path: Path) -> None:
    RunRecorder(tmp_path / "run", config()).on_end(build(config()))
    assert not (tmp_path / "run").exists()
