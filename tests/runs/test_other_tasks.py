"""`metarl evaluate` of a run on tasks that it was not trained on."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from metarl.agents.maml import MAML
from metarl.cli.flags import parse_task_flags, split_task_flags
from metarl.cli.main import main
from metarl.core.errors import InputError
from metarl.envs.half_cheetah import HalfCheetahDir, HalfCheetahVel
from metarl.runs.config import RunConfig, load_config
from metarl.runs.load import load_trainer
from metarl.runs.other_tasks import Target, describe_transfer, target_family

SHORT = ["--iterations=1", "--meta-batch-size=2", "--device=cpu", "--evaluation.num-tasks=4", "--quiet"]
TINY = [
    *SHORT,
    "--task.horizon=6",
    "--task.action-limit=3",
    "--agent.num-trajectories=2",
    "--agent.hidden-sizes=4",
    "--evaluation.num-adaptation-steps=1",
    "--evaluation.no-controls",
]
DEFAULTS = {"horizon": 6, "action_limit": 3.0, "low": 0.0, "high": 2.0, "test_low": None, "test_high": None}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for family in ("half-cheetah-dir", "half-cheetah-vel"):
        assert main(["train", family, *TINY, "--run-dir", str(folder / family)]) == 0
    few_shot = ["glyphs", "--agent=proto", "--agent.num-filters=4", "--task.num-ways=3", "--task.num-queries=2"]
    assert main(["train", *few_shot, *SHORT, "--run-dir", str(folder / "glyphs")]) == 0
    return folder


@pytest.fixture(autouse=True)
def _among_the_runs(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.fixture
def evaluate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs `metarl evaluate`; returns the report and what was printed."""

    def run(command: str) -> tuple[dict[str, Any], str]:
        assert main(["evaluate", *command.split(), "--json", str(tmp_path / "a.json")]) == 0
        report: dict[str, Any] = json.loads((tmp_path / "a.json").read_text())
        return report, capsys.readouterr().out

    return run


def targets(report: dict[str, Any]) -> list[float]:
    return [float(re.fullmatch(r"Velocity\(target=(.*)\)", task)[1]) for task in report["tasks"]]  # type: ignore[index]


def test_another_family_with_the_same_spaces(evaluate: Any) -> None:
    report, said = evaluate("half-cheetah-dir --on half-cheetah-vel")
    assert report["trained_on"] == {"task_name": "half-cheetah-dir", "task": {"horizon": 6, "action_limit": 3.0}}
    assert report["evaluated_on"] == {"task_name": "half-cheetah-vel", "task": DEFAULTS}
    assert report["splits"] == "transfer"
    assert len(targets(report)) == 4
    assert said.splitlines()[0] == (
        "trained on half-cheetah-dir (horizon = 6, action_limit = 3.0), "
        "evaluated on half-cheetah-vel (horizon = 6, action_limit = 3.0, low = 0.0, high = 2.0)"
    )
    report, said = evaluate("half-cheetah-vel --on half-cheetah-dir")
    assert report["tasks"] == ["Direction(sign=-1)", "Direction(sign=1)"]
    assert "(splits: transfer)" in said
    assert "trained and tested on the same tasks" not in said


def test_the_curve_is_of_the_trained_weights_on_the_other_familys_tasks(evaluate: Any) -> None:
    saved = load_config(Path("half-cheetah-dir"))
    trainer = load_trainer("half-cheetah-dir", on=target_family(saved, "half-cheetah-vel"))
    kept = load_trainer("half-cheetah-dir").learner.parameters
    assert all(bool((value == kept[name]).all()) for name, value in trainer.learner.parameters.items())
    assert isinstance(trainer.distribution, HalfCheetahVel)
    report, _ = evaluate("half-cheetah-dir --on half-cheetah-vel")
    assert report["mean"] == trainer.evaluate().mean.tolist()
    assert report["mean"] != evaluate("half-cheetah-vel")[0]["mean"]  # weights of the other run on the same tasks
    assert targets(report) == targets(evaluate("half-cheetah-vel")[0])


def test_held_out_intervals(evaluate: Any) -> None:
    report, said = evaluate("half-cheetah-vel --task.test-low 2 --task.test-high=3")
    assert all(2.0 <= target < 3.0 for target in targets(report))
    assert report["splits"] == "disjoint"
    assert (report["trained_on"]["task"], report["evaluated_on"]["task"]) == (
        DEFAULTS,
        {**DEFAULTS, "test_low": 2.0, "test_high": 3.0},
    )
    first = "trained on half-cheetah-vel (test_low = None, test_high = None), "
    assert said.startswith(f"{first}evaluated on half-cheetah-vel (test_low = 2.0, test_high = 3.0)\n")
    assert "on 4 test tasks (splits: disjoint)" in said
    moved, _ = evaluate("half-cheetah-vel --task.low 2 --task.high 3")  # the run was not trained on this interval
    assert (targets(moved), moved["mean"]) == (targets(report), report["mean"])
    assert moved["splits"] == "transfer"
    assert evaluate("half-cheetah-vel --task.horizon 5")[0]["splits"] == "same distribution"


def test_a_plain_evaluation_says_nothing_of_transfer(evaluate: Any) -> None:
    report, said = evaluate("half-cheetah-vel")
    assert report == json.loads(Path("half-cheetah-vel/adaptation.json").read_text())
    assert "trained_on" not in report
    assert said.startswith("adaptation curve: ")


def test_negative_values_and_flags_around_those_of_the_task(evaluate: Any) -> None:
    report, _ = evaluate("half-cheetah-dir --tasks 3 --on half-cheetah-vel --task.low -2 --task.high -1 --seed 7")
    assert all(-2.0 <= target < -1.0 for target in targets(report))
    assert len(targets(report)) == 3
    assert split_task_flags(["RUN", "--task.low", "-2", "--seed", "7", "--task.high=1"]) == (
        ["RUN", "--seed", "7"],
        ["--task.low", "-2", "--task.high=1"],
    )
    assert parse_task_flags(HalfCheetahVel(horizon=9), ["--task.low", "0.5"]) == HalfCheetahVel(horizon=9, low=0.5)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (
            "half-cheetah-dir --on ant-vel",
            "ant-vel: has observations (27,) and actions (8,); "
            "the run was trained with observations (17,) and actions (6,)",
        ),
        (
            "half-cheetah-dir --on bandit",
            "bandit: has observations (1,) and 5 discrete actions; "
            "the run was trained with observations (17,) and actions (6,)",
        ),
        (
            "glyphs --task.num-ways 4",
            "glyphs: has inputs (1, 28, 28) and 4 classes; the run was trained with inputs (1, 28, 28) and 3 classes",
        ),
        (
            "half-cheetah-dir --on glyphs",
            "--on = 'glyphs': must be a family of environments, as half-cheetah-dir, on which the run was trained",
        ),
        (
            "glyphs --on bandit",
            "--on = 'bandit': must be a family of examples, as glyphs, on which the run was trained",
        ),
        (
            "half-cheetah-dir --on mod:Class",
            "--on = 'mod:Class': must be a registered name, or with --trust module:Class",
        ),
        (
            "half-cheetah-dir --on half-cheetah-vek",
            "task = 'half-cheetah-vek': unknown; did you mean 'half-cheetah-vel' or 'half-cheetah-dir'?; "
            "write module:Class for one of your own",
        ),
        ("half-cheetah-vel --task.lw 1", "--task.lw: unknown; did you mean --task.low?"),
        ("half-cheetah-vel --task.low x", "--task.low = 'x': must be a number"),
        ("half-cheetah-vel --task.low", "--task.low: needs a value"),
        ("half-cheetah-vel --task.low 3", "task.high = 2.0: must be above task.low = 3.0"),
        (
            "half-cheetah-vel --task.test-low 1 --task.test-high 3",
            "task.test_low, task.test_high = (1.0, 3.0): must be such that test targets lie outside the training "
            "interval [0.0, 2.0)",
        ),
        ("--task.low 1 half-cheetah-vel", "RUN_DIR: missing; a folder that `metarl train` filled."),
    ],
)
def test_what_is_wrong_is_said_in_one_line(command: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", *command.split()]) == 2
    assert capsys.readouterr().err == f"metarl: {said}\n"


OWN = """
from dataclasses import dataclass
from metarl.envs.half_cheetah import HalfCheetahDir

@dataclass(frozen=True)
class Forward(HalfCheetahDir):
    def all_tasks(self, split="test"):
        return super().all_tasks(split)[1:]
"""


def test_a_family_of_ones_own_is_imported_if_trusted(evaluate: Any, tmp_path: Path) -> None:
    (tmp_path / "transfer_own.py").write_text(OWN)
    sys.path.append(str(tmp_path))
    report, _ = evaluate("half-cheetah-dir --on transfer_own:Forward --trust --task.horizon 5")
    assert report["tasks"] == ["Direction(sign=1)"]
    assert report["evaluated_on"] == {
        "task_name": "transfer_own:Forward",
        "task": {"horizon": 5, "action_limit": 3.0},
    }


def test_few_shot_runs_on_other_images_of_one_size(evaluate: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(12):
        (tmp_path / "images" / f"class{number}").mkdir(parents=True)
        for example in range(8):
            pixels = rng.integers(0, 256, (28, 28), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / f"class{number}" / f"{example}.png")
    sizes = "--task.image-size 28 --task.grey --task.shares 0.4 0.3 0.3"
    report, said = evaluate(f"glyphs --on image-folder --task.root {tmp_path / 'images'} {sizes}")
    assert report["evaluated_on"]["task_name"] == "image-folder"
    assert report["evaluated_on"]["task"]["root"] == str(tmp_path / "images")
    assert (report["evaluated_on"]["task"]["num_ways"], report["evaluated_on"]["task"]["num_queries"]) == (3, 2)
    assert (report["splits"], len(report["tasks"])) == ("transfer", 4)
    assert said.startswith("trained on glyphs (num_ways = 3, ")
    report, _ = evaluate("glyphs --task.train-split train+val --task.num-queries 3")
    assert report["splits"] == "transfer"
    report, _ = evaluate("glyphs --task.test-split val --task.num-queries 3")
    assert report["splits"] == "disjoint"


def test_splits_are_kept_where_training_draws_the_same_tasks() -> None:
    config = RunConfig("half-cheetah-dir", "maml", None, MAML, HalfCheetahDir(), None, None, None)  # type: ignore[arg-type]
    report = {"splits": "identical"}
    longer = describe_transfer(report, config, Target("half-cheetah-dir", HalfCheetahDir(horizon=9)))
    other = describe_transfer(report, config, Target("half-cheetah-vel", HalfCheetahVel()))
    assert (longer["splits"], other["splits"], report) == ("identical", "transfer", {"splits": "identical"})
    twin = describe_transfer(report, config, Target("other:HalfCheetahDir", HalfCheetahDir()))
    assert twin["splits"] == "transfer"


def test_the_runs_own_family_keeps_its_settings() -> None:
    config = load_config(Path("half-cheetah-vel"))
    for name in (None, "half-cheetah-vel"):
        assert target_family(config, name) == Target("half-cheetah-vel", config.task)
    with pytest.raises(InputError, match="must be a registered name, or with --trust module:Class"):
        target_family(config, "os:getcwd")
