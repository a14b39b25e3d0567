"""Train any algorithm of stable-baselines3 or sb3-contrib on one test task, or on all tasks of a family.

    python scripts/baseline_sb3.py half-cheetah-dir --task-index 1 --out runs/ppo-scratch
    python scripts/baseline_sb3.py half-cheetah-dir --steps 1000000 --out runs/ppo-all
    python scripts/baseline_sb3.py half-cheetah-dir --task-index 1 --pretrained runs/ppo-all/model.zip --out runs/ppo-on
    python scripts/baseline_sb3.py bandit --algorithm RecurrentPPO --episodes-per-trial 2 --out runs/recurrent-ppo

The first and the third command make baselines for adaptation: PPO from scratch on a test task, and PPO that was trained
on all training tasks and then on one test task. Without --task-index, every episode draws a new training task. The test
tasks are those of `metarl evaluate` with seed 0.

The folder holds model.zip, TensorBoard events and returns.json. returns.json holds the returns of the deterministic
policy on the test task, or on all of them, against environment steps; the first returns are those before training.
SB3's on-policy algorithms round the steps up to whole rollouts.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import sys
import tomllib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecMonitor

from metarl.agents.sb3 import TaskVecEnv, TrialVecEnv
from metarl.core.errors import InputError, RunError, one_line, require, unknown_name
from metarl.core.files import writing
from metarl.core.seeds import EVALUATION_ITERATION, Purpose, generator
from metarl.core.settings import from_table
from metarl.core.statistics import bootstrap
from metarl.rl.rollout import one_torch_thread
from metarl.rl.tasks import EnvTaskDistribution
from metarl.runs.registry import load_task
from metarl.runs.reports import write_json

LIBRARIES = {
    "stable_baselines3": ("A2C", "DDPG", "DQN", "PPO", "SAC", "TD3"),
    "sb3_contrib": ("ARS", "CrossQ", "QRDQN", "RecurrentPPO", "TQC", "TRPO"),
}
NUM_TEST_TASKS = 40


class Parser(argparse.ArgumentParser):
    """Raises `InputError` with one line instead of printing the usage."""

    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tasks", metavar="TASKS", help="a family's name, or module:Class")
    parser.add_argument("--algorithm", default="PPO", help=", ".join(sorted(sum(LIBRARIES.values(), ()))))
    parser.add_argument("--task-index", type=int, help="train on this test task alone, from 0")
    parser.add_argument("--pretrained", type=Path, metavar="FILE.zip", help="continue with this model")
    parser.add_argument("--episodes-per-trial", type=int, help="number of episodes that SB3 sees as one")
    parser.add_argument("--steps", type=int, default=200_000, help="environment steps (%(default)s)")
    parser.add_argument("--num-envs", type=int, default=8, help="environments that step together (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--evaluations", type=int, default=10, help="points of the curve after the first one (%(default)s)"
    )
    parser.add_argument(
        "--episodes", type=int, default=20, help="minimum number of episodes of an evaluation (%(default)s)"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="setting of the algorithm: n_steps=256"
    )
    parser.add_argument(
        "--set-task", action="append", default=[], metavar="KEY=VALUE", help="setting of the family: horizon=100"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parsed = parser.parse_args(argv)
    for name in ("steps", "num_envs", "evaluations", "episodes"):
        require(getattr(parsed, name) >= 1, f"--{name.replace('_', '-')}", getattr(parsed, name), "an integer >= 1")
    require(parsed.seed >= 0, "--seed", parsed.seed, "an integer >= 0")
    empty = not parsed.out.exists() or (parsed.out.is_dir() and not any(parsed.out.iterdir()))
    require(empty, "--out", str(parsed.out), "a new or an empty folder")
    return parsed


def settings_of(flag: str, pairs: Sequence[str]) -> dict[str, Any]:
    """The settings of KEY=VALUE pairs; values are written as in TOML."""
    settings = {}
    for pair in pairs:
        try:
            settings |= tomllib.loads(pair)
        except tomllib.TOMLDecodeError as error:
            raise InputError(f"{flag} = {pair!r}: must be KEY=VALUE, the value written as in TOML ({error})") from error
    return settings


def family_of(name: str, settings: dict[str, Any]) -> EnvTaskDistribution[Any]:
    kind = load_task(name)
    require(issubclass(kind, EnvTaskDistribution), "tasks", name, "a family of environments, not of examples")
    family: Any = from_table(kind, settings, "task")
    return family  # type: ignore[no-any-return]


def test_tasks(family: EnvTaskDistribution[Any]) -> list[Any]:
    """All tasks of a finite family; otherwise those that `metarl evaluate` draws."""
    rng = generator(0, EVALUATION_ITERATION, Purpose.EVALUATION_TASKS)
    finite = family.all_tasks("test")
    return list(family.sample(NUM_TEST_TASKS, rng, split="test") if finite is None else finite)


def algorithm_of(name: str) -> Any:
    library = next((library for library, names in LIBRARIES.items() if name in names), None)
    if library is None:
        raise unknown_name("--algorithm", name, sum(LIBRARIES.values(), ()))
    try:
        return getattr(importlib.import_module(library), name)
    except ImportError as error:
        raise InputError(f"--algorithm = {name!r}: needs the package sb3-contrib: {error}") from error


def make_env(family: Any, num_envs: int, parsed: argparse.Namespace, tasks: list[Any] | None, seed: int) -> TaskVecEnv:
    if parsed.episodes_per_trial is None:
        return TaskVecEnv(family, num_envs, tasks=tasks, seed=seed)
    return TrialVecEnv(family, num_envs, episodes_per_trial=parsed.episodes_per_trial, tasks=tasks, seed=seed)


def make_model(algorithm: Any, env: Any, settings: dict[str, Any], parsed: argparse.Namespace) -> Any:
    """A new model, or the pretrained one with the new environments."""
    known = inspect.signature(algorithm).parameters
    unknown = next((name for name in settings if name not in known), None)
    if unknown is not None:
        raise unknown_name("--set", unknown, known)
    settings = {"tensorboard_log": str(parsed.out), "seed": parsed.seed, **settings}
    if parsed.pretrained is not None:
        try:
            return algorithm.load(parsed.pretrained, env=env, device=parsed.device, **settings)
        except (OSError, zipfile.BadZipFile, ValueError, KeyError, AttributeError, TypeError, RuntimeError) as error:
            said = one_line(f"{type(error).__name__}: {error}")
            raise InputError(
                f"--pretrained = {str(parsed.pretrained)!r}: is not a {algorithm.__name__} for these tasks: {said}"
            ) from error
    try:
        policy = "MlpPolicy" if "MlpPolicy" in algorithm.policy_aliases else "MlpLstmPolicy"
        return algorithm(policy, env, device=parsed.device, **settings)
    except (AssertionError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"--algorithm = {algorithm.__name__!r}: cannot be made so: {one_line(error)}") from error


@dataclass
class Returns:
    """Returns on the test tasks, one episode in each sub-environment, always from the same initial states."""

    env: TaskVecEnv
    seed: int
    tasks: list[Any]
    steps: list[int] = field(default_factory=list)
    values: list[list[float]] = field(default_factory=list)

    def measure(self, model: Any, step: int) -> float:
        found = np.zeros(self.env.num_envs)

        def note(local: dict[str, Any], _: dict[str, Any]) -> None:
            if local["done"]:
                found[local["i"]] = local["current_rewards"][local["i"]]

        self.env.seed(self.seed)
        evaluate_policy(model, self.env, self.env.num_envs, callback=note, warn=False)
        self.steps.append(step)
        self.values.append(found.round(4).tolist())
        print(f"{step:>10} steps   return {found.mean():.2f}", flush=True)
        return float(found.mean())

    def to_json(self) -> dict[str, Any]:
        values = np.asarray(self.values)
        low, high = bootstrap(values, generator(0, 0, Purpose.BOOTSTRAP))
        lists = {"steps": self.steps, "mean": values.mean(1), "ci_low": low, "ci_high": high}
        rounded = {name: np.round(value, 4).tolist() for name, value in lists.items()}
        return {**rounded, "tasks": [one_line(task) for task in self.tasks], "returns": self.values}


class Curve(BaseCallback):
    """Measures the returns before training, then about every `every` steps between updates, and after training."""

    def __init__(self, returns: Returns, every: int) -> None:
        super().__init__()
        self._returns, self._every = returns, every

    def _on_training_start(self) -> None:
        self._measure()

    def _on_rollout_start(self) -> None:
        if self.num_timesteps >= self._returns.steps[-1] + self._every:
            self._measure()

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        if self.num_timesteps > self._returns.steps[-1]:
            self._measure()

    def _measure(self) -> None:
        mean = self._returns.measure(self.model, self.num_timesteps)
        self.logger.record("eval/mean_reward", mean)
        self.logger.dump(self.num_timesteps)


def train(parsed: argparse.Namespace) -> None:
    algorithm = algorithm_of(parsed.algorithm)
    family = family_of(parsed.tasks, settings_of("--set-task", parsed.set_task))
    tasks, task = test_tasks(family), None
    if parsed.task_index is not None:
        inside = 0 <= parsed.task_index < len(tasks)
        require(inside, "--task-index", parsed.task_index, f"in [0, {len(tasks)}), the test tasks")
        task = tasks[parsed.task_index]
        tasks = [task]
    places = tasks * -(-parsed.episodes // len(tasks))
    settings = settings_of("--set", parsed.set)
    same = None if task is None else [task] * parsed.num_envs
    env = make_env(family, parsed.num_envs, parsed, same, parsed.seed)
    model = make_model(algorithm, VecMonitor(env), settings, parsed)
    with writing(parsed.out):
        parsed.out.mkdir(parents=True, exist_ok=True)
    returns = Returns(make_env(family, len(places), parsed, places, parsed.seed), parsed.seed, places)
    every = max(1, parsed.steps // parsed.evaluations)
    with one_torch_thread():
        model.learn(parsed.steps, callback=Curve(returns, every), tb_log_name="tensorboard")
    model.save(parsed.out / "model.zip")
    content = {
        "family": parsed.tasks,
        "task": None if task is None else one_line(task),
        "algorithm": parsed.algorithm,
        "settings": settings,
        "task_settings": settings_of("--set-task", parsed.set_task),
        "episodes_per_trial": parsed.episodes_per_trial,
        "pretrained": None if parsed.pretrained is None else str(parsed.pretrained),
        "num_envs": parsed.num_envs,
        "seed": parsed.seed,
        "deterministic": True,
    }
    write_json({**content, **returns.to_json()}, parsed.out / "returns.json")
    for one in (env, returns.env):
        one.close()


def main(argv: Sequence[str] | None = None) -> int:
    try:
        train(parse(sys.argv[1:] if argv is None else argv))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except RunError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
