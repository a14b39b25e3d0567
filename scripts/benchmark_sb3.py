"""PPO of stable-baselines3 on MetaRL's batched environments, compared with SB3's own SubprocVecEnv.

The task is fixed: the half cheetah that runs forward for 200 steps, in 8 environments. SubprocVecEnv runs gymnasium's
HalfCheetah-v5 with the same reward and time limit, one process per environment. The script measures the deterministic
policy's return after training, with intervals, and the speed of training; hyper-parameters are equal, and there are 3
seeds. Then it measures the speed of stepping alone.

    python scripts/benchmark_sb3.py                  about ten minutes on two cores
    python scripts/benchmark_sb3.py --quick          a noisier answer within a minute
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch
from benchmarking import Lines, alternate, arguments, num_cores, ratio
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecMonitor

from metarl.agents.sb3 import TaskVecEnv
from metarl.core.seeds import Purpose, generator
from metarl.core.statistics import crossed_interval
from metarl.envs.half_cheetah import CONTROL_COST, Direction, HalfCheetahDir
from metarl.rl.rollout import one_torch_thread

HORIZON, NUM_ENVS, SEEDS, EPISODES = 200, 8, 3, 40
STEPS, QUICK_STEPS = 196_608, 4096
OURS, THEIRS, SERIAL = "TaskVecEnv", "SB3 SubprocVecEnv", "SB3 DummyVecEnv"
FORWARD = Direction(1)


class Forward(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Gymnasium's half cheetah with the reward of half-cheetah-dir for running forward."""

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, _, terminated, truncated, infos = self.env.step(action)
        cost = CONTROL_COST * np.square(np.asarray(action, np.float64)).sum()
        return observation, infos["x_velocity"] - cost, terminated, truncated, infos


def gymnasiums_own() -> gymnasium.Env[Any, Any]:
    HalfCheetahDir().make_vector_env(1).close()  # sends MuJoCo's messages to a logger; needed in every process
    return Forward(gymnasium.make("HalfCheetah-v5", max_episode_steps=HORIZON))


def environments() -> dict[str, Callable[[], VecEnv]]:
    return {
        OURS: lambda: TaskVecEnv(HalfCheetahDir(horizon=HORIZON), NUM_ENVS, tasks=FORWARD),
        THEIRS: lambda: SubprocVecEnv([gymnasiums_own] * NUM_ENVS),
        SERIAL: lambda: DummyVecEnv([gymnasiums_own] * NUM_ENVS),
    }


def returns_of(model: PPO) -> list[float]:
    """Returns of the deterministic policy, always from the same initial states."""
    env = TaskVecEnv(HalfCheetahDir(horizon=HORIZON), EPISODES, tasks=FORWARD, split="test", seed=10_000)
    found, _ = evaluate_policy(model, env, EPISODES, return_episode_rewards=True, warn=False)
    env.close()
    return [float(value) for value in found]  # type: ignore[union-attr]


def train(make: Callable[[], VecEnv], seed: int, steps: int) -> tuple[float, PPO]:
    """Seconds of learning, without the start of the processes, and the trained model."""
    env = VecMonitor(make())
    model = PPO("MlpPolicy", env, n_steps=256, batch_size=256, seed=seed, device="cpu")
    start = time.perf_counter()
    model.learn(steps)
    seconds = time.perf_counter() - start
    env.close()
    return seconds, model


def compare_training(lines: Lines, num_seeds: int, steps: int) -> None:
    makers = environments()
    seconds: dict[str, list[float]] = {OURS: [], THEIRS: []}
    returns: dict[str, list[list[float]]] = {OURS: [], THEIRS: []}
    identical = []
    for seed in range(num_seeds):
        weights = {}
        for name in [OURS, THEIRS] if seed % 2 == 0 else [THEIRS, OURS]:
            duration, model = train(makers[name], seed, steps)
            seconds[name].append(duration)
            returns[name].append(returns_of(model))
            weights[name] = torch.nn.utils.parameters_to_vector(model.policy.parameters())
        identical.append(bool(torch.equal(weights[OURS], weights[THEIRS])))
    values = np.asarray([returns[OURS], returns[THEIRS], np.subtract(returns[OURS], returns[THEIRS])])
    by_task = values[:, :, None]  # one task, the same initial states for all
    low, high = crossed_interval(by_task, generator(0, 0, Purpose.BOOTSTRAP))
    means = values.mean((1, 2))
    for row, name in enumerate((OURS, THEIRS)):
        other = (THEIRS, OURS)[row]
        more: dict[str, object] = {
            "ci_low": round(float(low[row]), 2),
            "ci_high": round(float(high[row]), 2),
            "per_seed": values[row].mean(1).round(2).tolist(),
            "work": f"PPO, {steps} steps",
        }
        if name == OURS:
            difference = [round(float(part[2]), 4) for part in (means, low, high)]
            more |= {"difference_mean_low_high": difference, "same_bits_of_all_weights": identical}
        lines.add(
            f"return after training, {name}",
            float(means[row]),
            "return",
            against=other,
            ratio=float(means[row] / means[1 - row]),
            repeats=num_seeds,
            **more,
        )
    lines.add(
        f"training, {OURS}",
        statistics.median(steps / second for second in seconds[OURS]),
        "environment steps/s",
        against=THEIRS,
        ratio=ratio(seconds[THEIRS], seconds[OURS]),
        repeats=num_seeds,
        work=f"PPO, {steps} steps",
        seconds=[round(second, 1) for second in seconds[OURS]],
        seconds_against=[round(second, 1) for second in seconds[THEIRS]],
        cores=num_cores(),
        load_average=round(os.getloadavg()[1], 1),
    )


def compare_stepping(lines: Lines, repeats: int, num_steps: int) -> None:
    envs = {name: make() for name, make in environments().items()}
    actions = np.random.default_rng(0).uniform(-1.0, 1.0, (num_steps, NUM_ENVS, 6)).astype(np.float32)

    def stepped(env: VecEnv, actions: NDArray[np.float32]) -> Callable[[], None]:
        def run() -> None:
            env.reset()
            for action in actions:
                env.step(action)

        return run

    seconds = alternate({name: stepped(env, actions) for name, env in envs.items()}, repeats)
    for name in (THEIRS, SERIAL):
        lines.add(
            f"stepping, {OURS}",
            statistics.median(num_steps * NUM_ENVS / second for second in seconds[OURS]),
            "environment steps/s",
            against=name,
            ratio=ratio(seconds[name], seconds[OURS]),
            repeats=repeats,
            work=f"{num_steps * NUM_ENVS} steps",
            cores=num_cores(),
            load_average=round(os.getloadavg()[1], 1),
        )
    for env in envs.values():
        env.close()


def main() -> None:
    parsed = arguments(__doc__ or "").parse_args()
    with one_torch_thread():
        compare_training(lines := Lines(parsed.json), parsed.repeats or SEEDS, QUICK_STEPS if parsed.quick else STEPS)
        compare_stepping(lines, 3 if parsed.quick else 7, 200 if parsed.quick else 1000)
    lines.close()


if __name__ == "__main__":
    main()
