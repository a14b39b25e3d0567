from __future__ import annotations

import dataclasses
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metarl.core.config import EvaluationConfig, TrainerConfig
from metarl.core.errors import InputError
from metarl.runs import registry
from metarl.runs.config import from_dict, load_config, resolve, to_dict

MODULE = """
from __future__ import annotations
from dataclasses import dataclass
from pathlib import Path
from metarl.core.errors import require
from metarl.core.learner import Traits
from metarl.rl.tasks import EnvTaskDistribution

@dataclass(frozen=True)
class Family(EnvTaskDistribution):
    horizon: int = 20
    span: tuple[float, float] = (0.0, 1.0)
    def __post_init__(self):
        require(self.horizon >= 1, "task.horizon", self.horizon, "an integer >= 1")
    def sample(self, num_tasks, rng, *, split="train"):
        return []
    def make_vector_env(self, num_envs, *, num_threads):
        return None

class Plain(Family.__base__):
    def sample(self, num_tasks, rng, *, split="train"):
        return []
    def make_vector_env(self, num_envs, *, num_threads):
        return None

class Agent:
    @dataclass(frozen=True)
    class Config:
        inner_lr: float = 0.1
        hidden_sizes: tuple[int, ...] = (64, 64)
        data: Path | None = None
    traits = Traits(unit="gradient steps")
    begin = prepare = adapt = score = meta_update = state_dict = load_state_dict = to = act = observe = print
"""
PRESETS = {
    "agent": "[agent]\ninner_lr = 0.2\n[trainer]\niterations = 7\n",
    "agent.paper": "[agent]\ninner_lr = 0.3\nhidden_sizes = [100, 100]\n[task]\nhorizon = 200\n",
}


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A registered family with two presets, and an agent."""
    (tmp_path / "config_family.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "config_family", raising=False)
    monkeypatch.setitem(registry.TASKS, "family", "config_family:Family")
    monkeypatch.setitem(registry.AGENTS, "agent", "config_family:Agent")
    folder = tmp_path / "presets" / "family"
    folder.mkdir(parents=True)
    for name, text in PRESETS.items():
        (folder / f"{name}.toml").write_text(text)
    monkeypatch.setattr(registry.resources, "files", lambda package: tmp_path)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"iterations": 0}, "trainer.iterations = 0: must be an integer >= 1"),
        ({"iterations": 1.5}, "trainer.iterations = 1.5: must be an integer >= 1"),
        ({"iterations": True}, "trainer.iterations = True: must be an integer >= 1"),
        ({"meta_batch_size": 0}, "trainer.meta_batch_size = 0: must be an integer from 1 to 1000000"),
        ({"max_minutes": 0.0}, "trainer.max_minutes = 0.0: must be a positive number, or left out"),
        ({"max_minutes": math.nan}, "trainer.max_minutes = nan: must be a positive number, or left out"),
        ({"seed": -1}, "trainer.seed = -1: must be an integer from 0 to 9223372036854775807"),
        ({"seed": 2**63}, "trainer.seed = 9223372036854775808: must be an integer from 0 to 9223372036854775807"),
        ({"device": "gpu"}, "trainer.device = 'gpu': must be one of 'auto', 'cpu', 'cuda'"),
        ({"act_device": "cuda"}, "trainer.act_device = 'cuda': must be one of 'cpu', 'learner'"),
        ({"num_threads": -1}, "trainer.num_threads = -1: must be an integer from 0 to 4096"),
        ({"checkpoint_every": 0}, "trainer.checkpoint_every = 0: must be an integer >= 1"),
    ],
)
def test_trainer_settings_out_of_range_are_refused(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError) as caught:
        TrainerConfig(**settings)
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"every": -1}, "evaluation.every = -1: must be an integer >= 0"),
        ({"num_tasks": 0}, "evaluation.num_tasks = 0: must be an integer from 1 to 1000000"),
        ({"num_adaptation_steps": -1}, "evaluation.num_adaptation_steps = -1: must be an integer from 0 to 1000000"),
        ({"num_trajectories": 0}, "evaluation.num_trajectories = 0: must be an integer from 1 to 1000000"),
        ({"min_live_steps": 0}, "evaluation.min_live_steps = 0: must be an integer >= 1"),
        ({"min_live_steps": 9, "num_trajectories": 3}, "evaluation.min_live_steps = 9: must be left out"),
    ],
)
def test_evaluation_settings_out_of_range_are_refused(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError) as caught:
        EvaluationConfig(**settings)
    assert str(caught.value).startswith(expected)


def test_the_limits_themselves_are_allowed() -> None:
    TrainerConfig(iterations=1, meta_batch_size=1, max_minutes=1e-3, seed=2**63 - 1, num_threads=0, checkpoint_every=1)
    EvaluationConfig(every=0, num_tasks=1, num_adaptation_steps=0, num_trajectories=1)


@pytest.mark.usefixtures("names")
def test_a_file_goes_over_a_preset_and_a_preset_over_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[agent]\ninner_lr = 0.9\n[evaluation]\nnum_tasks = 3\n")
    config = resolve("family", "agent", preset="paper", config_file=file)
    assert config.preset == "paper"
    assert (config.agent.inner_lr, config.agent.hidden_sizes) == (0.9, (100, 100))
    assert (config.task.horizon, config.task.span) == (200, (0.0, 1.0))
    assert (config.evaluation.num_tasks, config.trainer.iterations) == (3, 100)


@pytest.mark.usefixtures("names")
def test_the_default_preset_is_used_where_there_is_one() -> None:
    config = resolve("family", "agent")
    assert (config.preset, config.agent.inner_lr, config.trainer.iterations) == ("default", 0.2, 7)
    config = resolve("config_family:Family", "agent")
    assert (config.preset, config.agent.inner_lr, config.trainer.iterations) == (None, 0.1, 100)


@pytest.mark.usefixtures("names")
def test_an_unknown_preset_lists_those_of_the_task_and_agent() -> None:
    with pytest.raises(InputError, match="preset for family with agent = 'nonsense': unknown; known: default, paper"):
        resolve("family", "agent", preset="nonsense")


@pytest.mark.usefixtures("names")
def test_an_error_in_a_file_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[task]\nhorizon = 0\n")
    with pytest.raises(InputError, match=r"mine\.toml: task\.horizon = 0: must be an integer >= 1"):
        resolve("family", "agent", config_file=file)


@pytest.mark.usefixtures("names")
def test_a_configuration_survives_json() -> None:
    config = resolve("family", "agent", preset="paper")
    plain = to_dict(config)
    assert plain["agent"] == {"inner_lr": 0.3, "hidden_sizes": [100, 100], "data": None}
    assert from_dict(json.loads(json.dumps(plain))) == config


@pytest.mark.usefixtures("names")
def test_a_path_is_saved_as_an_absolute_string() -> None:
    config = resolve("family", "agent")
    agent = type(config.agent)(data=Path("a/b"))
    config = dataclasses.replace(config, agent=agent)
    assert to_dict(config)["agent"]["data"] == str(Path.cwd() / "a" / "b")
    assert from_dict(to_dict(config)).agent.data == Path.cwd() / "a" / "b"


@pytest.mark.usefixtures("names")
def test_a_family_without_settings_has_an_empty_table() -> None:
    config = resolve("config_family:Plain", "agent")
    assert to_dict(config)["task"] == {}
    assert type(from_dict(to_dict(config), trusted=True).task) is type(config.task)


@pytest.mark.usefixtures("names")
@pytest.mark.parametrize("field", ["task_name", "agent_name"])
def test_a_saved_name_imports_no_code_unless_trusted(
    tmp_path: Path, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config_trap.py").write_text("raise RuntimeError('imported')\n")
    plain = {**to_dict(resolve("family", "agent")), field: "config_trap:Family"}
    with pytest.raises(InputError, match=f"{field} = 'config_trap:Family': must be a registered name"):
        from_dict(plain)
    assert "config_trap" not in sys.modules
    with pytest.raises(InputError, match="RuntimeError: imported"):
        from_dict(plain, trusted=True)


@pytest.mark.usefixtures("names")
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"tusk": {}}, "tusk: unknown; did you mean 'task'?"),
        ({"task_name": 3}, "task_name = 3: must be a string"),
        ({"preset": 3}, "preset = 3: must be a string"),
        ({"agent": {"inner_lrr": 1}}, "agent.inner_lrr: unknown; did you mean 'inner_lr'?"),
        ({"trainer": []}, "trainer = []: must be a table"),
    ],
)
def test_a_saved_configuration_is_read_strictly(change: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError) as caught:
        from_dict({**to_dict(resolve("family", "agent")), **change})
    assert str(caught.value).startswith(expected)


@pytest.mark.usefixtures("names")
def test_a_saved_configuration_must_be_whole() -> None:
    plain = to_dict(resolve("family", "agent"))
    del plain["evaluation"]
    with pytest.raises(InputError, match="evaluation: missing"):
        from_dict(plain)


@pytest.mark.usefixtures("names")
def test_a_run_folders_configuration_is_loaded(tmp_path: Path) -> None:
    config = resolve("family", "agent")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(to_dict(config)))
    assert load_config(tmp_path) == config
    for damaged in ('{"task": ', "[]"):
        path.write_text(damaged)
        with pytest.raises(InputError, match="is damaged"):
            load_config(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match="is not a run folder"):
        load_config(tmp_path)


@dataclass(frozen=True)
class Own:
    limit: Any


@pytest.mark.parametrize("value", [math.inf, math.nan, object(), {}, {1}, (1, [math.inf])])
def test_a_setting_that_cannot_be_saved_is_named(value: Any) -> None:
    config = dataclasses.replace(resolve("bandit", "maml"), task=Own(value))
    with pytest.raises(InputError, match=r"^task.limit = .*: must be a finite number, a text, true, false, None, a"):
        to_dict(config)


def test_numbers_of_numpy_are_saved_as_numbers() -> None:
    config = dataclasses.replace(resolve("bandit", "maml"), task=Own(np.int64(3)))
    assert type(to_dict(config)["task"]["limit"]) is int
