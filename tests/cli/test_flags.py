from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from metarl.cli.flags import errors_in_one_line, parse_task_flags, parse_train
from metarl.core.errors import InputError
from metarl.runs import registry
from metarl.runs.config import load_config, to_dict

MODULE = '''
from __future__ import annotations
from dataclasses import dataclass, field
from typing import Annotated, Literal
from metarl.core.bounds import Finite, Positive
from metarl.core.errors import require
from metarl.core.learner import Traits
from metarl.rl.tasks import EnvTaskDistribution

@dataclass(frozen=True)
class Family(EnvTaskDistribution):
    """A toy family."""
    horizon: int = 20
    """Steps of a trajectory."""
    low: Annotated[float | None, Finite] = None
    mode: Literal["paper", "sampled"] = "paper"
    def __post_init__(self):
        require(self.horizon >= 1, "task.horizon", self.horizon, "an integer >= 1")
    def sample(self, num_tasks, rng, *, split="train"):
        return []
    def make_vector_env(self, num_envs, *, num_threads):
        return None

class Plain(EnvTaskDistribution):
    sample = Family.sample
    make_vector_env = Family.make_vector_env

@dataclass
class Thawed(Plain):
    horizon: int = 3

class Agent:
    traits = Traits(unit="gradient steps")
    @dataclass(frozen=True)
    class Config:
        inner_lr: Annotated[float, Positive] = 0.1
        hidden_sizes: tuple[int, ...] = (64, 64)
    begin = prepare = adapt = score = meta_update = state_dict = load_state_dict = to = act = observe = print

class Computing(Agent):
    @dataclass(frozen=True)
    class Config:
        """Settings of it."""
        updates: int = 5
        """Updates in all."""
        steps: int = field(default=4, init=False)
        def __post_init__(self):
            object.__setattr__(self, "steps", self.updates - 1)
'''


@pytest.fixture(autouse=True)
def _names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "arguments_family.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "arguments_family", raising=False)
    monkeypatch.setitem(registry.TASKS, "family", "arguments_family:Family")
    monkeypatch.setitem(registry.AGENTS, "maml", "arguments_family:Agent")
    monkeypatch.setitem(registry.AGENTS, "other", "arguments_family:Agent")
    folder = tmp_path / "presets" / "family"
    folder.mkdir(parents=True)
    (folder / "maml.toml").write_text("[agent]\ninner_lr = 0.2\n[trainer]\niterations = 7\n")
    (folder / "maml.quick.toml").write_text("[trainer]\niterations = 3\n")
    monkeypatch.setattr(registry.resources, "files", lambda package: tmp_path)


def test_flags_go_over_the_file_over_the_preset(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[agent]\ninner_lr = 0.4\n[trainer]\nseed = 5\nnum_threads = 2\n")
    flags = ["--preset", "quick", "--config", str(file), "--trainer.num-threads", "1"]
    config = parse_train(["family", *flags]).config
    assert (config.preset, config.trainer.iterations) == ("quick", 3)
    assert (config.agent.inner_lr, config.trainer.seed, config.trainer.num_threads) == (0.4, 5, 1)


def test_what_a_config_computes_is_no_flag_and_follows_the_flags(capsys: pytest.CaptureFixture[str]) -> None:
    agent = ["family", "--agent", "arguments_family:Computing"]
    config = parse_train([*agent, "--agent.updates", "3"]).config
    assert (config.agent.updates, config.agent.steps) == (3, 2)
    assert type(config.agent).__qualname__ == "Computing.Config"
    assert parse_train(agent).config.agent.steps == 4
    with pytest.raises(InputError, match=r"^--agent\.steps: unknown"):
        parse_train([*agent, "--agent.steps", "3"])
    with pytest.raises(SystemExit):
        parse_train([*agent, "--help"])
    text = capsys.readouterr().out
    assert "--agent.steps" not in text
    assert all(words in text for words in ("Settings of it.", "--agent.updates", "Updates in all."))


def test_without_flags_the_default_agent_and_preset_hold() -> None:
    arguments = parse_train(["family"])
    assert (arguments.config.agent_name, arguments.config.preset) == ("maml", "default")
    assert (arguments.config.agent.inner_lr, arguments.config.trainer.iterations) == (0.2, 7)
    assert (arguments.run_dir, arguments.resume, arguments.quiet) == (None, None, False)


@pytest.mark.parametrize("spelling", ["--{}", "--trainer.{}"])
@pytest.mark.parametrize("word", ["-", "_"])
def test_common_flags_work_with_and_without_their_table(spelling: str, word: str) -> None:
    values = {
        "iterations": 8,
        "max_minutes": 2.5,
        "meta_batch_size": 9,
        "seed": 3,
        "device": "cpu",
        "checkpoint_every": 11,
    }
    argv = [f"{spelling.format(field.replace('_', word))}={value}" for field, value in values.items()]
    trainer = parse_train(["family", *argv]).config.trainer
    assert {field: getattr(trainer, field) for field in values} == values


def test_settings_of_task_and_agent_are_flags_in_either_spelling() -> None:
    flags = ["--task.low", "-3", "--task.mode", "sampled", "--agent.hidden-sizes", "3", "4", "5", "--quiet"]
    arguments = parse_train(["family", "--agent", "other", "--agent.inner_lr", "0.3", *flags, "--run-dir", "x"])
    task, agent = arguments.config.task, arguments.config.agent
    assert (task.horizon, task.low, task.mode) == (20, -3.0, "sampled")
    assert (agent.inner_lr, agent.hidden_sizes) == (0.3, (3, 4, 5))
    assert (arguments.config.agent_name, arguments.run_dir, arguments.quiet) == ("other", Path("x"), True)
    assert parse_train(["family", "--agent.inner-lr", "0.3"]).config.agent.inner_lr == 0.3


@pytest.mark.parametrize(
    "argv",
    [
        ["--seed", "3", "family"],
        ["--quiet", "family", "--seed", "3"],
        ["--agent.hidden-sizes", "3", "4", "--seed", "3", "--quiet", "family"],
        ["--run-dir", "point-nav", "--seed=3", "family"],
        ["--evaluation.no-controls", "family", "--seed", "3"],
        ["--seed", "3", "arguments_family:Family"],
    ],
)
def test_the_task_may_stand_anywhere(argv: list[str]) -> None:
    config = parse_train(argv).config
    assert type(config.task).__name__ == "Family"
    assert config.trainer.seed == 3


def test_a_family_without_settings_and_one_that_is_not_frozen_are_parsed() -> None:
    assert type(parse_train(["arguments_family:Plain", "--seed", "3"]).config.task).__name__ == "Plain"
    assert parse_train(["arguments_family:Thawed", "--task.horizon", "4"]).config.task.horizon == 4


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["family", "--iterations", "0"], "trainer.iterations = 0: must be an integer >= 1"),
        (["family", "--max-minutes", "nan"], "trainer.max_minutes = nan: must be a positive number"),
        (["family", "--task.horizon", "0"], "task.horizon = 0: must be an integer >= 1"),
        (["family", "--agent.inner-lr", "0"], "agent.inner_lr = 0.0: must be a positive number"),
        (["family", "--task.low", "nan"], "task.low = nan: must be a finite number, or left out"),
        (["family", "--seed", "1.5"], "--seed/--trainer.seed = '1.5': must be an integer"),
        (["family", "--device", "gpu"], "--device/--trainer.device = 'gpu': must be one of 'auto', 'cpu', 'cuda'"),
        (["family", "--agent.inner-lrr", "1"], "--agent.inner-lrr: unknown; did you mean --agent.inner-lr?"),
        (["family", "--inner-lrr", "1"], "--inner-lrr: unknown; did you mean --agent.inner-lr?"),
        (["family", "--iteratons", "1"], "--iteratons: unknown; did you mean --iterations?"),
        (["family", "--task.zzzz", "1"], "--task.zzzz: unknown; known: --task.horizon"),
        (["family", "--zzz", "1"], "--zzz: unknown; metarl train TASKS --help lists what there is"),
        (["family", "--max-minutes", "soon"], "--max-minutes/--trainer.max-minutes = 'soon': must be a number"),
        (["family", "--agent", ""], "agent = '': unknown"),
        (
            ["family", "--preset", "nonsense"],
            "preset for family with maml = 'nonsense': unknown; known: default, quick",
        ),
        (["family", "--config", "absent.toml"], "absent.toml: no such file"),
        (["family", "stray"], "stray: unknown; metarl train TASKS --help lists what there is"),
        (["family", "--seed"], "--seed/--trainer.seed: needs a value"),
        (["famly"], "task = 'famly': unknown; did you mean 'family'?"),
        (["--run-dir", "x", "3", "--seed", "1"], "task = '3': unknown"),
        (["--seed", "3"], "task: missing; metarl train TASKS, one of ant-dir, ant-goal"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(argv: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError) as caught:
        parse_train(argv)
    assert str(caught.value).startswith(expected)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_message_does_not_depend_on_how_frames_are_drawn(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    for flags, expected in {
        ("--agent.inner-lrr", "1"): "--agent.inner-lrr: unknown; did you mean --agent.inner-lr?",
        ("--seed",): "--seed/--trainer.seed: needs a value",
        ("--seed", "x"): "--seed/--trainer.seed = 'x': must be an integer",
    }.items():
        with pytest.raises(InputError) as caught:
            parse_train(["family", *flags])
        assert str(caught.value) == expected


def test_help_shows_every_setting_with_the_value_it_would_have(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_train(["--help", "family", "--preset", "quick"])
    assert stop.value.code == 0
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for expected in (
        "[OPTIONS] TASKS",
        "--agent.inner-lr FLOAT",
        "Steps of a trajectory. (default: 20)",
        "--iterations INT",
    ):
        assert expected in words
    assert "counts those before it too. Allowed: an integer >= 1. (default: 3)" in words


def test_help_without_a_task_lists_the_families(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_train(["--help"])
    assert stop.value.code == 0
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "half-cheetah-dir" in words
    assert "--agent.inner-lr" not in words


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    config = parse_train(["family", "--agent", "other", "--agent.inner-lr", "0.7", "--iterations", "9"]).config
    (folder / "config.json").write_text(json.dumps(to_dict(config)))
    return folder


def test_a_resumed_run_keeps_its_settings_under_the_flags(run: Path) -> None:
    for argv in (["--resume", str(run)], ["family", f"--resume={run}"]):
        arguments = parse_train([*argv, "--iterations", "20"])
        config = arguments.config
        assert arguments.resume == run
        assert (config.task_name, config.agent_name, config.agent.inner_lr) == ("family", "other", 0.7)
        assert config.trainer.iterations == 20


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["point-nav"], "task = 'point-nav': must be 'family', as in the run"),
        (["family", "--agent", "maml"], "agent = 'maml': must be 'other', as in the run"),
        (["family", "--preset", "quick"], "must be without --preset and --config"),
    ],
)
def test_a_resumed_run_cannot_change_what_it_is(run: Path, argv: list[str], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        parse_train([*argv, "--resume", str(run)])


def test_a_resumed_run_imports_only_code_that_the_command_line_names(run: Path) -> None:
    plain = json.loads((run / "config.json").read_text())
    plain["task_name"] = "arguments_family:Family"
    (run / "config.json").write_text(json.dumps(plain))
    with pytest.raises(InputError) as error:
        parse_train(["--resume", str(run)])
    command = f"metarl train arguments_family:Family --resume {run}"
    assert str(error.value).endswith(f"given by you, since code named in a run folder is not imported: {command}")
    assert parse_train(["arguments_family:Family", "--resume", str(run)]).config.agent.inner_lr == 0.7


def test_flags_of_a_task_are_checked_even_if_its_class_does_not_check_itself() -> None:
    task = parse_train(["family"]).config.task
    assert parse_task_flags(task, ["--task.low", "3"]).low == 3.0
    with pytest.raises(InputError, match=r"^task\.low = nan: must be a finite number, or left out$"):
        parse_task_flags(task, ["--task.low", "nan"])


def test_what_tasks_say_while_they_are_made_is_not_lost(capsys: pytest.CaptureFixture[str]) -> None:
    with errors_in_one_line("metarl train"):
        print("3 entries are left out", file=sys.stderr)
    assert capsys.readouterr().err == "3 entries are left out\n"


def test_an_own_encoder_of_a_run_folder_is_imported_on_demand_only(run: Path) -> None:
    """Resuming needs the encoder's name as a flag; everything else needs trust. The printed command has the flag."""
    plain = json.loads((run / "config.json").read_text())
    plain["agent"]["encoder"] = "no.such.module:Net"
    (run / "config.json").write_text(json.dumps(plain))
    with pytest.raises(InputError) as error:
        parse_train(["--resume", str(run)])
    command = f"metarl train --resume {run} --agent.encoder no.such.module:Net"
    assert str(error.value).endswith(f"given by you, since code named in a run folder is not imported: {command}")
    with pytest.raises(InputError, match=r"^agent.encoder = 'mine:Net': must be 'no.such.module:Net', as in the run"):
        parse_train(["--resume", str(run), "--agent.encoder", "mine:Net"])
    with pytest.raises(InputError, match=r"^agent.encoder = 'no.such.module:Net': must be one of .*--trust"):
        load_config(run)
