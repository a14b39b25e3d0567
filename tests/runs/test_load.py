"""Loading of trained runs."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import metarl
from metarl.core.errors import InputError
from metarl.core.trainer import Callback, Trainer
from metarl.runs import checkpoint, reports
from metarl.runs.build import build
from metarl.runs.load import load, load_trainer
from metarl.runs.tracking import read_metrics
from metarl.runs.train import train

SAVED_TWICE = ("--iterations=3", "--evaluation.every=2", "--checkpoint-every=2")


def trained_sha256(run_dir: Path) -> str:
    newest = checkpoint.latest(run_dir).manifest["parameters_sha256"]
    assert isinstance(newest, str)
    return newest


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


@pytest.mark.usefixtures("_blank_pictures")
def test_load_returns_what_was_trained(config: Any, tmp_path: Path) -> None:
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
def test_a_best_checkpoint_that_test_tasks_chose_is_warned_of(
    config: Any, run_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load(run_dir, checkpoint="best")
    assert not caplog.records
    assert load_trainer(run_dir).evaluation.every == 0  # evaluating a trained learner needs no validation
    train(config("--iterations=2", "--evaluation.every=1", "--evaluation.validation-tasks=0"), tmp_path)
    assert not [tag for row in read_metrics(tmp_path) for tag in row if tag.startswith("meta_validation")]
    load(tmp_path, checkpoint="best")
    assert "was chosen by its score on test tasks" in caplog.text


@pytest.mark.usefixtures("_blank_pictures")
def test_a_checkpoint_that_is_not_there_is_said_with_those_that_are(config: Any, run_dir: Path, tmp_path: Path) -> None:
    for which in ("lates", "7", 7, -1, ""):
        with pytest.raises(InputError) as error:
            load(run_dir, checkpoint=which)
        assert one_line(error) == f"checkpoint = {which!r}: must be latest, best or an iteration, one of 2, 3"
    train(config("--iterations=1", "--evaluation.no-controls"), tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 1}\n')
    with pytest.raises(InputError, match=r"^checkpoint = 'best': must be one of 1: none of them was evaluated"):
        load(tmp_path, checkpoint="best")


def test_evaluating_a_run_again_gives_its_report(run_dir: Path) -> None:
    trainer = load_trainer(run_dir)
    report = json.loads((run_dir / "adaptation.json").read_text())
    assert reports.describe(trainer, trainer.evaluate(), controls=True) == report
    other = load_trainer(run_dir, seed=4, num_tasks=3, num_adaptation_steps=0)
    curve = other.evaluate()
    assert curve.values.shape == (1, 3, 1)
    assert not {str(task) for task in curve.tasks} & {*report["tasks"]}


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
def test_a_damaged_checkpoint_is_said_in_one_line(config: Any, tmp_path: Path) -> None:
    train(config("--iterations", "1", "--evaluation.no-controls"), tmp_path)
    state = tmp_path / "checkpoints" / "iteration_000001" / "state.pt"
    data = bytearray(state.read_bytes())
    data[len(data) // 2] ^= 1
    state.write_bytes(data)
    with pytest.raises(InputError) as error:
        load(tmp_path)
    assert "holds no usable checkpoint" in one_line(error)
    assert "state.pt has sha256" in one_line(error)


def test_a_checkpoint_of_another_learner_is_said_in_one_line(tmp_path: Path, run_dir: Path) -> None:
    saved = json.loads((run_dir / "config.json").read_text())
    copy_of_config(run_dir, tmp_path, agent={**saved["agent"], "hidden_sizes": [5]})
    shutil.copytree(run_dir / "checkpoints", tmp_path / "checkpoints")
    with pytest.raises(InputError) as error:
        load(tmp_path)
    assert "is of another configuration: agent.hidden_sizes = [4], the run's is [5]" in one_line(error)
    for manifest in tmp_path.glob("checkpoints/*/manifest.json"):  # as in old runs, without the settings
        rewrite_manifest(manifest, "config")
    with pytest.raises(InputError) as error:
        load(tmp_path)
    assert "is of another learner, or of an older version of its task family: state.parameters." in one_line(error)
    assert "logits.layers.0.weight is a tensor (4, 1) of torch.float32, the learner's is a" in one_line(error)
    assert "train again" in one_line(error)


@pytest.mark.usefixtures("_blank_pictures")
def test_a_run_folder_imports_code_only_if_trusted(
    config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
