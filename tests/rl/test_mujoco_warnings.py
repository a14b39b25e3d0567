"""Plain MuJoCo environments whose simulation diverges: nothing on the terminal, no file, and counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest

from metarl.core.seeds import Seeds
from metarl.core.tasks import Split
from metarl.rl.gymnasium_tasks import GymnasiumTasks
from metarl.rl.mujoco_warnings import caught
from metarl.rl.rollout import RolloutCollector
from metarl.rl.tasks import EnvTaskDistribution
from metarl.testing.environments import _RandomLearner


class Pendulums(EnvTaskDistribution[float]):
    """A task is the speed that the pole has after three steps: one that is too large breaks the simulation."""

    horizon = 8

    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> list[float]:
        return rng.uniform(0.0, 1.0, num_tasks).tolist()

    def make_env(self) -> gymnasium.Env[Any, Any]:
        env: Any = gymnasium.make("InvertedPendulum-v5")
        inner = env.unwrapped.step
        env.unwrapped.steps = 0

        def step(action: Any) -> Any:
            env.unwrapped.steps += 1
            if env.unwrapped.steps == 4:
                env.unwrapped.data.qvel[:] = env.unwrapped.speed
            return inner(action)

        env.unwrapped.step = step
        return env

    def set_task(self, env: Any, task: float) -> None:
        env.unwrapped.speed, env.unwrapped.steps = task, 0


def test_a_simulation_that_diverges_is_counted_and_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    collector = RolloutCollector(Pendulums(), num_trajectories=2)
    data = collector.query([0.0, 1e20], _RandomLearner(collector.spaces, 1), None, Seeds.first(2))
    assert data.diverged.tolist() == [[False] * 2, [True] * 2]
    assert data.mask.sum(-1)[1].tolist() == [3.0, 3.0]
    assert bool(data.observations.isfinite().all())
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_the_handler_from_before_hears_the_warnings_and_is_back_afterwards() -> None:
    heard: list[str] = []
    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(heard.append)
    try:
        envs = GymnasiumTasks(Pendulums(), 1)
        envs.set_tasks([1e20])
        envs.reset(seed=[0])
        diverged = [bool(envs.step(np.zeros((1, 1)))[4]["diverged"][0]) for _ in range(5)]
        assert diverged == [False, False, False, True, False]
        assert any("simulation is unstable" in text for text in heard)
        heard.clear()
        with pytest.raises(KeyError), caught():
            raise KeyError
        model = mujoco.MjModel.from_xml_string(
            "<mujoco><worldbody><body><joint/><geom size='1'/></body></worldbody></mujoco>"
        )
        data = mujoco.MjData(model)
        data.qvel[:] = 1e20
        mujoco.mj_step(model, data)
        assert heard
    finally:
        mujoco.set_mju_user_warning(before)
