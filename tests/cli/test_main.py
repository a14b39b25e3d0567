"""The commands of the command line. Bad input is in tests/cli/test_bad_input.py.

Most runs share this process; what needs a process of its own is at the end.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from metarl.cli.main import main
from metarl.runs import registry

METARL = Path(sys.executable).with_name("metarl")
TINY = [
    "--iterations=2",
    "--meta-batch-size=2",
    "--device=cpu",
    "--agent.num-trajectories=2",
    "--agent.hidden-sizes=4",
    "--evaluation.num-tasks=4",
    "--evaluation.num-adaptation-steps=1",
]


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "one"
    assert main(["train", "bandit", *TINY, "--run-dir", str(folder), "--quiet"]) == 0
    return folder


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*argv: str) -> Said:
        try:
            code = main(argv)
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return Said(code, captured.out, captured.err)

    return run


def words(text: str) -> str:
    """Without the frames and line breaks of a help page."""
    return " ".join(text.replace("│", " ").split())


def test_help_names_the_commands(say: Any) -> None:
    for argv, code in ((["--help"], 0), (["-h"], 0), ([], 2)):
        said = say(*argv)
        assert (said.code, said.err) == (code, "")
        for command in ("train", "evaluate", "plot", "video", "list", "check-tasks", "check-agent"):
            assert f"\n  {command} " in said.out


@pytest.mark.parametrize("command", ["evaluate", "plot", "video", "list", "check-tasks", "check-agent"])
def test_every_command_has_help(command: str, say: Any) -> None:
    said = say(command, "--help")
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith(f"usage: metarl {command} ")


def test_help_of_train_shows_the_resolved_defaults(say: Any) -> None:
    said = say("train", "bandit", "--preset", "quick", "--agent.inner-lr", "0.25", "--help")
    assert (said.code, said.err) == (0, "")
    text = words(said.out)
    assert "counts those before it too. Allowed: an integer >= 1. (default: 30)" in text  # the preset's iterations
    assert "--task.num-arms INT" in text
    assert "--evaluation.num-tasks INT" in text
    assert "(default: 400)" in text


def test_list_as_json_names_everything_registered(say: Any) -> None:
    said = say("list", "--json")
    assert (said.code, said.err) == (0, "")
    entries = json.loads(said.out)
    assert [*entries] == ["tasks", "agents", "learners"]
    for kind, registered in zip(entries, (registry.TASKS, registry.AGENTS, registry.LEARNERS), strict=True):
        assert {*registered} <= {entry["name"] for entry in entries[kind]}
    (bandit,) = (entry for entry in entries["tasks"] if entry["name"] == "bandit")
    assert bandit["presets"]["maml"] == ["default", "quick"]
    assert bandit["summary"]


def test_list_as_text_shows_names_summaries_and_presets(say: Any) -> None:
    out = say("list").out
    lines = out.splitlines()
    (line,) = (line for line in lines if line.split()[:1] == ["bandit"])
    assert "Bernoulli bandits" in line
    listed = lines[lines.index(line) + 1 :][: len(registry.AGENTS)]
    assert any("presets for maml: default, quick" in line for line in listed)
    assert "agents:" in lines


def test_training_quietly_says_nothing(say: Any, tmp_path: Path) -> None:
    said = say("train", "bandit", *TINY, "--evaluation.no-controls", "--quiet")
    assert said == Said(0, "", "")
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("bandit-maml-")
    assert (folder / "adaptation.png").is_file()


@pytest.mark.parametrize("folder", [[], ["--run-dir", "new/run"]], ids=["own name", "given"])
@pytest.mark.parametrize("tasks", ["omniglot", "mini-imagenet", "image-folder"])
def test_without_data_no_folder_is_named_or_left(
    tasks: str, folder: list[str], say: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("METARL_DATA", raising=False)
    said = say("train", tasks, "--agent", "proto", *folder)
    assert said.code == 2
    assert said.err.startswith("metarl: task.root: missing; must be a folder that holds ")
    assert said.err.count("\n") == 1
    assert "run folder" not in said.out
    assert "tensorboard" not in said.out
    assert list(tmp_path.iterdir()) == []


def test_a_run_can_be_resumed(run_dir: Path, say: Any, tmp_path: Path) -> None:
    said = say("train", "bandit", *TINY, "--run-dir", "a", "--evaluation.no-controls", "--quiet")
    said = say("train", "--resume", "a", "--iterations", "3")
    assert said.code == 0
    assert [line.split("  ")[0] for line in said.out.splitlines() if "  eta " in line] == ["iteration 3/3"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    rows = [json.loads(row) for row in Path("a", "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [1, 2, 3]


def test_evaluate_repeats_the_runs_own_report(run_dir: Path, say: Any) -> None:
    said = say("evaluate", str(run_dir), "--json", "again.json")
    assert (said.code, said.err) == (0, "")
    report = json.loads(Path("again.json").read_text())
    assert report == json.loads((run_dir / "adaptation.json").read_text())
    assert f"{report['mean'][1]:.3f}" in said.out


def test_evaluate_takes_another_checkpoint(run_dir: Path, say: Any) -> None:
    assert say("evaluate", str(run_dir), "--checkpoint", "2").out == say("evaluate", str(run_dir)).out
    said = say("evaluate", str(run_dir), "--checkpoint", "1")
    assert said == Said(2, "", "metarl: checkpoint = '1': must be latest, best or an iteration, one of 2\n")


def test_evaluate_takes_other_tasks_steps_and_seeds(run_dir: Path, say: Any) -> None:
    before = (run_dir / "adaptation.json").read_bytes()
    said = say("evaluate", str(run_dir), "--tasks", "3", "--adaptation-steps", "2", "--seed", "9", "--json", "a.json")
    report = json.loads(Path("a.json").read_text())
    assert (report["num_tasks"], report["steps"]) == (3, [0, 1, 2])
    assert not {*report["tasks"]} & {*json.loads(before)["tasks"]}
    assert "after 0..2 gradient steps on 3 test tasks" in said.out
    assert (run_dir / "adaptation.json").read_bytes() == before


def test_evaluate_imports_a_runs_own_code_only_if_trusted(say: Any) -> None:
    Path("cli_own_family.py").write_text("from metarl.envs.bandit import Bandit as Own\n")
    flags = [*TINY, "--evaluation.no-controls", "--quiet"]
    assert say("train", "cli_own_family:Own", *flags, "--run-dir", "own").code == 0
    said = say("evaluate", "own")
    assert said.code == 2
    assert "task_name = 'cli_own_family:Own': must be a registered name" in said.err
    assert say("evaluate", "own", "--trust").code == 0


@pytest.mark.parametrize("count", [1, 2])
def test_plot_draws_one_run_or_several(count: int, run_dir: Path, say: Any) -> None:
    Path("two").symlink_to(run_dir)
    folders = [str(run_dir), "two"][:count]
    assert say("plot", *folders, "--out", "pictures/a.png") == Said(0, "pictures/a.png\n", "")
    assert Path("pictures/a.png").read_bytes().startswith(b"\x89PNG")


def test_plot_draws_the_agents_ways_into_a_picture_beside(run_dir: Path, say: Any) -> None:
    way = [[0.0, 0.0], [1.0, 2.0]]
    scene = {"walls": [[0, 0, 1, 1]], "start": [0, 0], "goal": None, "goal_radius": 0.0, "extent": None}
    tasks = [{"task": "Goal(x=1)", "scene": scene, "ways": [[way], [way]]}]
    for name in ("seen", "again"):
        shutil.copytree(run_dir, name)
        paths = {"schema_version": 1, "unit": "trajectories", "steps": [0, 1], "tasks": tasks}
        Path(name, "paths.json").write_text(json.dumps(paths))
    assert say("plot", "seen", "--out", "a.b.svg") == Said(0, "a.b.svg\na.b.paths.svg\n", "")
    assert "gradient steps" in Path("a.b.svg").read_text()
    assert "last trajectory" in Path("a.b.paths.svg").read_text()
    assert say("plot", "seen", "again", "--out", "c.svg") == Said(0, "c.svg\n", "")  # of one run only
    Path("seen", "paths.json").write_text("{")
    said = say("plot", "seen", "--out", "d.svg")
    assert said.code == 2
    assert said.err.startswith("metarl: seen/paths.json: is damaged: ")


def test_plot_draws_a_run_without_a_report(run_dir: Path, say: Any) -> None:
    Path("young").mkdir()
    Path("young", "metrics.jsonl").write_bytes((run_dir / "metrics.jsonl").read_bytes())
    assert say("plot", "young", "--out", "a.svg").code == 0
    assert "environment steps" in Path("a.svg").read_text()


FAMILIES = """
from dataclasses import dataclass
from metarl.envs.bandit import Arms, Bandit

@dataclass(frozen=True)
class Good(Bandit):
    pass

@dataclass(frozen=True)
class Bad(Bandit):
    def sample(self, num_tasks, rng, *, split="train"):
        return [Arms((0.5,) * self.num_arms)] * num_tasks
"""


def test_check_tasks_judges_a_distribution_of_the_users_own(say: Any) -> None:
    Path("cli_families.py").write_text(FAMILIES)
    assert say("check-tasks", "cli_families:Good") == Said(0, "cli_families:Good: fine\n", "")
    said = say("check-tasks", "cli_families:Bad")
    assert said.code == 2
    assert "it ignores `rng`" in said.out
    assert all(line.startswith("cli_families:Bad: ") for line in said.out.splitlines())


def shell(command: str) -> subprocess.CompletedProcess[str]:
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    env = {**inherited, "PATH": f"{METARL.parent}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    return subprocess.run(["bash", "-c", command], env=env, capture_output=True, text=True, timeout=120)


def test_training_from_a_shell(tmp_path: Path) -> None:
    done = shell(f"metarl train bandit {' '.join(TINY)} --evaluation.no-controls --run-dir out --seed 5")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[:3] == [
        "maml on bandit (preset default), seed 5, device cpu",
        "run folder: out",
        "watch it: tensorboard --logdir out",
    ]
    progress = [line for line in lines if "  eta " in line]
    assert [line.split("  ")[0] for line in progress] == ["iteration 1/2", "iteration 2/2"]
    assert all("return before adaptation 0" in line and "after adaptation 0" in line for line in progress)
    assert lines[-2:] == ["picture: out/adaptation.png", "TensorBoard: tensorboard --logdir out"]
    assert "\x1b" not in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_reader_that_goes_away_causes_no_traceback() -> None:
    done = shell("exec 3> >(exec true); sleep 0.2; metarl --help >&3")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


@pytest.mark.parametrize(
    ("command", "searched"),
    [
        ("list", False),
        ("evaluate .", False),
        ("train bandit --help", False),
        ("check-tasks bandit", False),
        ("evaluate . --trust", True),
        ("check-tasks own:Own", True),
        ("train --agent own:Agent bandit --help", True),
        ("train absent:Own", False),
    ],
)
def test_the_working_directory_is_searched_only_for_code_that_the_user_names(
    command: str, searched: bool, say: Any, run_dir: Path, tmp_path: Path
) -> None:
    saved = json.loads((run_dir / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**saved, "task_name": "own:Own"}))
    (tmp_path / "own.py").write_text(
        "from metarl.envs.bandit import Bandit as Own\nfrom metarl.agents.maml import MAML as Agent"
    )
    before = [*sys.path]
    say(*command.split())
    assert sys.path == [*before, *[str(tmp_path)] * searched]
    sys.modules.pop("own", None)


def test_libraries_find_nothing_in_the_working_directory(tmp_path: Path) -> None:
    """Torch imports opt_einsum and dill where they are installed."""
    for name in ("opt_einsum", "dill", "tensorflow", "tqdm"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported')")
    (tmp_path / "own.py").write_text("from metarl.envs.bandit import Bandit as Own")
    command = [sys.executable, "-m", "metarl", "check-tasks", "own:Own"]  # Python searches the working directory first
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "own:Own: fine\n", "")
