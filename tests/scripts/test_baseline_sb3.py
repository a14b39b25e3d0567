"""scripts/baseline_sb3.py on tiny runs, and the environments that scripts/benchmark_sb3.py compares."""

from __future__ import annotations

import importlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from metarl.agents.maml import MAML, MAMLConfig
from metarl.agents.sb3 import TaskVecEnv
from metarl.core.evaluation import evaluate
from metarl.envs.half_cheetah import Direction, HalfCheetahDir
from metarl.envs.point_nav import PointNav
from metarl.rl.rollout import RolloutCollector

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
FLAGS = "--steps 128 --num-envs 2 --episodes 3 --evaluations 2 --set n_steps=32 --set batch_size=32"
FEW = FLAGS.split()


@pytest.fixture(autouse=True)
def _sb3_seeds_globals(_globals_untouched: None) -> Iterator[None]:
    """SB3 seeds the global generators, which no test may leave changed."""
    numpy_state, python_state, torch_state = np.random.get_state(), random.getstate(), torch.get_rng_state()  # noqa: NPY002
    yield
    np.random.set_state(numpy_state)  # noqa: NPY002
    random.setstate(python_state)
    torch.set_rng_state(torch_state)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("baseline_sb3")


def report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "returns.json").read_text())
    return found


def test_from_scratch_and_pretrained(script: Any, tmp_path: Path) -> None:
    scratch, everything, onward = (tmp_path / name for name in ("scratch", "all", "on"))
    family = ["point-nav", "--set-task", "horizon=10", *FEW]
    assert script.main([*family, "--task-index", "3", "--out", str(scratch)]) == 0
    assert script.main([*family, "--out", str(everything)]) == 0
    model = str(everything / "model.zip")
    assert script.main([*family, "--task-index", "3", "--pretrained", model, "--out", str(onward)]) == 0

    tasks = script.test_tasks(PointNav(horizon=10))
    assert len(tasks) == 40
    for folder, learned_on in ((scratch, tasks[3]), (everything, None), (onward, tasks[3])):
        found = report(folder)
        assert found["task"] == (None if learned_on is None else str(learned_on))
        assert found["steps"] == [0, 64, 128]
        assert found["tasks"] == [str(task) for task in (tasks if learned_on is None else [learned_on] * 3)]
        assert found["mean"] == pytest.approx(np.mean(found["returns"], axis=1), abs=1e-3)
        assert all(
            low <= mean <= high
            for low, mean, high in zip(*(found[k] for k in ("ci_low", "mean", "ci_high")), strict=True)
        )
        env = TaskVecEnv(PointNav(horizon=10), len(found["tasks"]), tasks=tasks if learned_on is None else learned_on)
        mean, _ = evaluate_policy(PPO.load(folder / "model.zip", device="cpu"), env, env.num_envs, warn=False)
        assert found["mean"][-1] == pytest.approx(mean, abs=1e-3)
    # the pretrained model starts on the test task as it left the training tasks, the other one at random
    env = TaskVecEnv(PointNav(horizon=10), 3, tasks=tasks[3])
    pretrained, _ = evaluate_policy(PPO.load(model, device="cpu"), env, 3, warn=False)
    assert report(onward)["mean"][0] == pytest.approx(pretrained, abs=1e-3)
    assert report(scratch)["mean"][0] != pytest.approx(pretrained, abs=1e-3)
    events = EventAccumulator(str(scratch / "tensorboard_1"))
    events.Reload()
    assert [event.step for event in events.Scalars("eval/mean_reward")] == [0, 64, 128]


def test_test_tasks_are_those_of_metarls_evaluation(script: Any) -> None:
    family = PointNav(horizon=2)
    collector = RolloutCollector(family, num_trajectories=2)
    learner = MAML(MAMLConfig(hidden_sizes=(4,)), collector.spaces, generator=torch.Generator().manual_seed(0))
    assert script.test_tasks(family) == list(evaluate(learner, collector, family, num_tasks=40, num_steps=0).tasks)
    assert script.test_tasks(HalfCheetahDir()) == [Direction(-1), Direction(1)]


def test_every_point_of_a_curve_has_the_same_initial_states(script: Any) -> None:
    env = TaskVecEnv(HalfCheetahDir(horizon=5), 2, tasks=Direction(1))
    model = PPO("MlpPolicy", TaskVecEnv(HalfCheetahDir(horizon=5), 1), n_steps=8, batch_size=8, seed=0, device="cpu")
    returns = script.Returns(env, 4, [Direction(1)] * 2)
    assert returns.measure(model, 0) == returns.measure(model, 1)
    assert returns.values[0] == returns.values[1]


@pytest.mark.parametrize("algorithm", ["RecurrentPPO", "TRPO"])
def test_a_whole_trial_is_an_episode(script: Any, tmp_path: Path, algorithm: str) -> None:
    flags = ["bandit", "--algorithm", algorithm, "--episodes-per-trial", "2", "--set-task", "num_pulls=4", *FEW]
    assert script.main([*flags, "--out", str(tmp_path / "run")]) == 0
    found = report(tmp_path / "run")
    assert found["episodes_per_trial"] == 2
    assert 2.0 < found["mean"][-1] < 6.0, "of 8 pulls"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("point-naw", "task = 'point-naw': unknown; did you mean 'point-nav'"),
        ("sinusoid", "tasks = 'sinusoid': must be a family of environments, not of examples"),
        ("point-nav --algorithm POP", "--algorithm = 'POP': unknown; did you mean 'PPO'"),
        ("point-nav --algorithm DQN", "--algorithm = 'DQN': cannot be made so: The algorithm only supports"),
        ("point-nav --task-index 40", "--task-index = 40: must be in [0, 40), the test tasks"),
        ("half-cheetah-dir --task-index -1", "--task-index = -1: must be in [0, 2), the test tasks"),
        ("point-nav --steps 0", "--steps = 0: must be an integer >= 1"),
        ("point-nav --steps many", "argument --steps: invalid int value: 'many'"),
        ("point-nav --seed -1", "--seed = -1: must be an integer >= 0"),
        ("point-nav --set n_stesp=3", "--set = 'n_stesp': unknown; did you mean 'n_steps'"),
        ("point-nav --set n_steps", "--set = 'n_steps': must be KEY=VALUE, the value written as in TOML"),
        ("point-nav --set-task horizn=3", "task.horizn"),
        ("point-nav --episodes-per-trial 0", "episodes_per_trial = 0: must be an integer >= 1"),
        (
            "point-nav --pretrained nothing.zip",
            "--pretrained = 'nothing.zip': is not a PPO for these tasks: FileNotFound",
        ),
        ("point-nav --device abacus", "--algorithm = 'PPO': cannot be made so:"),
    ],
)
def test_bad_input_is_one_line(
    script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: str, message: str
) -> None:
    assert script.main([*flags.split(), "--out", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "run").exists()


def test_a_model_of_other_tasks_and_a_full_folder_are_refused(
    script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    PPO("MlpPolicy", TaskVecEnv(HalfCheetahDir(), 1), n_steps=8, batch_size=8, device="cpu").save(
        tmp_path / "other.zip"
    )
    pretrained = ["--pretrained", str(tmp_path / "other.zip")]
    assert script.main(["point-nav", *pretrained, "--out", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "is not a PPO for these tasks: ValueError: Observation spaces do not match" in line
    assert script.main(["half-cheetah-dir", "--algorithm", "SAC", *pretrained, "--out", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "is not a SAC for these tasks" in line
    assert script.main(["point-nav", "--out", str(tmp_path)]) == 2
    assert f"--out = '{tmp_path}': must be a new or an empty folder" in capsys.readouterr().err


def test_the_benchmark_compares_equal_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    benchmark = importlib.import_module("benchmark_sb3")
    makers = benchmark.environments()
    envs = [makers[name]() for name in (benchmark.OURS, benchmark.SERIAL)]
    for env in envs:
        env.seed(3)
    ours, theirs = (env.reset().astype(np.float32) for env in envs)
    assert np.array_equal(ours, theirs)
    rng = np.random.default_rng(0)
    for _ in range(benchmark.HORIZON + 5):
        actions = rng.uniform(-1.0, 1.0, (benchmark.NUM_ENVS, 6)).astype(np.float32)
        (ours, paid, over, _), (theirs, *expected, _) = (env.step(actions) for env in envs)
        assert np.array_equal(ours, theirs.astype(np.float32))
        assert np.array_equal(paid, expected[0])
        assert np.array_equal(over, expected[1])
