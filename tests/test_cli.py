"""The command line as a user meets it. Most runs share this process; what needs a process of its own is at the end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from metarl import registry
from metarl.cli import main

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


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["trian", "bandit"], "command = 'trian': unknown; did you mean 'train'?"),
        (["train"], "task: missing; metarl train TASKS, one of bandit,"),
        (["train", "bandti"], "task = 'bandti': unknown; did you mean 'bandit'?"),
        (["train", "point-nav", "--agent", "mmal"], "agent = 'mmal': unknown; did you mean 'maml'?"),
        (["train", "bandit", "--iteratons", "3"], "--iteratons, 3; did you mean --iterations"),
        (["train", "bandit", "--seed", "-1"], "trainer.seed = -1: must be an integer from 0 to"),
        (["train", "bandit", "--seed", "1.5"], "Error parsing --seed/--trainer.seed: invalid literal"),
        (["train", "bandit", "--seed", str(2**63)], "trainer.seed = 9223372036854775808: must be an integer from"),
        (["train", "bandit", "--iterations", "0"], "trainer.iterations = 0: must be an integer >= 1"),
        (["train", "bandit", "--meta-batch-size", "0"], "trainer.meta_batch_size = 0: must be an integer >= 1"),
        (["train", "bandit", "--max-minutes", "-1"], "trainer.max_minutes = -1.0: must be a finite number > 0"),
        (["train", "bandit", "--checkpoint-every", "0"], "trainer.checkpoint_every = 0: must be"),
        (["train", "bandit", "--agent.inner-lr", "0"], "agent.inner_lr = 0.0: must be a positive number"),
        (["train", "bandit", "--agent.inner-lr", "nan"], "agent.inner_lr = nan: must be a positive number"),
        (["train", "bandit", "--agent.gamma", "1.5"], "agent.gamma = 1.5: must be in [0, 1]"),
        (["train", "bandit", "--task.num-arms", "1"], "task.num_arms = 1: must be at least 2"),
        (["train", "point-nav", "--task.horizon", "0"], "task.horizon = 0: must be at least 1"),
        (["train", "bandit", "--evaluation.num-tasks", "0"], "evaluation.num_tasks = 0: must be an integer >= 1"),
        (["train", "bandit", "--device", "tpu"], "invalid choice 'tpu' for argument '--device"),
        (["train", "bandit", "--preset", "nonsense"], "'nonsense': unknown; known: default, quick"),
        (["train", "bandit", "--config", "absent.toml"], "absent.toml: no such file"),
        (["train", "bandit", "--config", "in/syntax.toml"], "in/syntax.toml:2:12:"),
        (["train", "bandit", "--config", "in/key.toml"], "agent.inner_rl: unknown; did you mean 'inner_lr'?"),
        (["train", "bandit", "--config", "in/type.toml"], "trainer.iterations = 'many': must be an integer"),
        (["train", "bandit", "--config", "in/table.toml"], "in/table.toml: [agnet]: unknown; did you mean 'agent'?"),
        (["train", "bandit", "--config", "in/settings.yaml"], "in/settings.yaml: is YAML; settings files are TOML"),
        (["train", "bandit", *TINY, "--run-dir", "in/file"], "run_dir = 'in/file': cannot be made: File exists"),
        (["train", "--resume", "absent"], "absent: is not a run folder"),
        (["train", "--resume", "{run}", "--preset", "quick"], "must be without --preset and --config"),
        (["train", "--resume", "{run}", "--run-dir", "new"], "--run-dir = 'new': must be left out with --resume"),
        (["train", "--resume", "{run}", "--agent.hidden-sizes", "5"], "the checkpoint is of another learner"),
        (["train", "bandit", *TINY, "--run-dir", "{run}"], "holds a trained run; go on with --resume"),
        (["evaluate"], "Missing from metarl evaluate: PATH"),
        (["evaluate", "absent"], "absent: is not a run folder"),
        (["evaluate", "in/file"], "in/file: is not a run folder"),
        (["evaluate", "{run}", "--tasks", "0"], "evaluation.num_tasks = 0: must be an integer >= 1"),
        (["evaluate", "{run}", "--adaptation-steps", "-1"], "evaluation.num_adaptation_steps = -1: must be"),
        (["evaluate", "{run}", "--seed", "-1"], "trainer.seed = -1: must be"),
        (["evaluate", "{run}", "--taks", "3"], "--taks, 3; did you mean --tasks"),
        (["evaluate", "{run}", "--json", "absent/a.json"], "absent/a.json: cannot be written: No such file"),
        (["plot", "--out", "a.png"], "run_dirs = (): must be one run folder or more"),
        (["plot", "absent", "--out", "a.png"], "absent/metrics.jsonl: cannot be read: No such file"),
        (["plot", "{run}"], "Missing from metarl plot: --out"),
        (["plot", "{run}", "--out", "a.txt"], "picture = 'a.txt': must be a file ending in .png, .pdf, .svg"),
        (["plot", "in", "--out", "a.png"], "in/adaptation.json: is damaged"),
        (["list", "--jsno"], "Unrecognized options: --jsno; did you mean --json"),
        (["check-tasks"], "Missing from metarl check-tasks"),
        (["check-tasks", "bandti"], "task = 'bandti': unknown; did you mean 'bandit'?"),
        (["check-tasks", "absent:Family"], "task = 'absent:Family': cannot import absent: ModuleNotFoundError"),
        (["check-tasks", "json:Family"], "attribute of json = 'Family': unknown"),
        (["check-tasks", "json:loads"], "function loads does not derive from metarl.TaskDistribution"),
    ],
)  # fmt: skip
def test_bad_input_is_said_in_one_line(argv: list[str], expected: str, say: Any, tmp_path: Path, run_dir: Path) -> None:
    files = {
        "file": "",
        "syntax.toml": "[agent]\ninner_lr = = 1\n",
        "key.toml": "[agent]\ninner_rl = 0.1\n",
        "type.toml": '[trainer]\niterations = "many"\n',
        "table.toml": "[agnet]\n",
        "settings.yaml": "agent:\n",
        "adaptation.json": "{",
    }
    Path("in").mkdir()
    for name, text in files.items():
        Path("in", name).write_text(text)
    before = (run_dir / "metrics.jsonl").read_bytes()
    said = say(*(word.format(run=run_dir) for word in argv))
    assert said.code == 2
    assert said.err.startswith("metarl: ")
    assert said.err.count("\n") == 1
    assert expected in said.err
    assert {path.name for path in tmp_path.iterdir()} == {"in"}
    assert {path.name for path in Path("in").iterdir()} == {*files}
    assert (run_dir / "metrics.jsonl").read_bytes() == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_device_that_is_not_there_is_said_in_one_line(say: Any, tmp_path: Path) -> None:
    for flags in ([], ["--quiet"]):
        said = say("train", "bandit", *TINY, "--device", "cuda", *flags)
        assert (said.code, said.out) == (2, "")
        assert said.err.startswith("metarl: trainer.device = 'cuda': ")
        assert said.err.endswith("; use 'auto' or 'cpu'\n")
    assert not [*tmp_path.iterdir()]


def test_help_names_the_commands(say: Any) -> None:
    for argv, code in ((["--help"], 0), (["-h"], 0), ([], 2)):
        said = say(*argv)
        assert (said.code, said.err) == (code, "")
        for command in ("train", "evaluate", "plot", "list", "check-tasks"):
            assert f"\n  {command} " in said.out


@pytest.mark.parametrize("command", ["evaluate", "plot", "list", "check-tasks"])
def test_every_command_has_help(command: str, say: Any) -> None:
    said = say(command, "--help")
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith(f"usage: metarl {command} ")


def test_help_of_train_shows_the_resolved_defaults(say: Any) -> None:
    said = say("train", "bandit", "--preset", "quick", "--agent.inner-lr", "0.25", "--help")
    assert (said.code, said.err) == (0, "")
    text = words(said.out)
    assert "counts from its beginning. (default: 30)" in text  # the preset's iterations
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
    assert "presets for maml: default, quick" in lines[lines.index(line) + 1]
    assert "agents:" in lines


def test_training_quietly_says_nothing(say: Any, tmp_path: Path) -> None:
    said = say("train", "bandit", *TINY, "--evaluation.no-controls", "--quiet")
    assert said == Said(0, "", "")
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("bandit-maml-")
    assert (folder / "adaptation.png").is_file()


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


def test_evaluate_takes_other_tasks_steps_and_seeds(run_dir: Path, say: Any) -> None:
    before = (run_dir / "adaptation.json").read_bytes()
    said = say("evaluate", str(run_dir), "--tasks", "3", "--adaptation-steps", "2", "--seed", "9", "--json", "a.json")
    report = json.loads(Path("a.json").read_text())
    assert (report["num_tasks"], report["steps"]) == (3, [0, 1, 2])
    assert not {*report["tasks"]} & {*json.loads(before)["tasks"]}
    assert "after 0..2 gradient steps on 3 test tasks" in said.out
    assert (run_dir / "adaptation.json").read_bytes() == before


def test_evaluate_imports_a_runs_own_code_only_if_trusted(run_dir: Path, say: Any) -> None:
    Path("cli_own_family.py").write_text("from metarl.envs.bandit import Bandit as Own\n")
    Path("copy").mkdir()
    saved = json.loads((run_dir / "config.json").read_text())
    Path("copy", "config.json").write_text(json.dumps({**saved, "task_name": "cli_own_family:Own"}))
    Path("copy", "checkpoints").symlink_to(run_dir / "checkpoints")
    said = say("evaluate", "copy")
    assert said.code == 2
    assert "task_name = 'cli_own_family:Own': must be a registered name" in said.err
    assert say("evaluate", "copy", "--trust").code == 0


@pytest.mark.parametrize("count", [1, 2])
def test_plot_draws_one_run_or_several(count: int, run_dir: Path, say: Any) -> None:
    Path("two").symlink_to(run_dir)
    folders = [str(run_dir), "two"][:count]
    assert say("plot", *folders, "--out", "pictures/a.png") == Said(0, "pictures/a.png\n", "")
    assert Path("pictures/a.png").read_bytes().startswith(b"\x89PNG")


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
    assert all("return before 0" in line and "after adaptation 0" in line for line in progress)
    assert lines[-2:] == ["picture: out/adaptation.png", "TensorBoard: tensorboard --logdir out"]
    assert "\x1b" not in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("command", ["metarl train bandti", "metarl check-tasks absent:Family"])
def test_bad_input_from_a_shell(command: str, tmp_path: Path) -> None:
    done = shell(command)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("metarl: task = ")
    assert done.stderr.count("\n") == 1
    assert not [*tmp_path.iterdir()]


def test_a_reader_that_goes_away_causes_no_traceback() -> None:
    done = shell("exec 3> >(exec true); sleep 0.2; metarl --help >&3")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
    train = f"metarl train bandit {' '.join(TINY)} --evaluation.no-controls --run-dir out"
    done = shell(f"PYTHONUNBUFFERED=1 {train} | head -1")
    assert (done.stdout, done.stderr) == ("maml on bandit (preset default), seed 0, device cpu\n", "")
