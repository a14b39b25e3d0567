"""Speed of collection, compared with the physics engine alone and with other vector environments.

The main case is half-cheetah-dir with 40 tasks x 20 trajectories x 200 steps and a 64x64 tanh policy. Acting, resets
and recording are included. It is compared with:

- an open-loop replay of the same controls from the same states through `mujoco.rollout`, with one thread per core;
- gymnasium's vector environments and SB3's SubprocVecEnv with the same policy;
- itself with other numbers of tasks.

Other families are compared with their replay, and with their replay plus the policy's own work, which counts more where
the physics is cheap. Each simulation has the model of its own task. No trajectory ends early, so that collection and
replay take equally many steps. Last, 200 mazes in one batch are compared with 200 copies of one of them under the same
controls; all have equally many walls.

    python scripts/benchmark_sampling.py                 ten minutes on two cores
    python scripts/benchmark_sampling.py --quick         a noisier answer within four minutes
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import gymnasium
import mujoco
import numpy as np
import torch
from benchmarking import Lines, alternate, arguments, num_cores, ratio, repeats_of
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from mujoco.rollout import Rollout
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import SubprocVecEnv

from metarl.agents.maml import MAML, MAMLConfig
from metarl.core.seeds import Seeds
from metarl.envs.half_cheetah import HalfCheetahDir
from metarl.envs.maze_robots import wall_boxes
from metarl.envs.mazes import Layout, MazeTask
from metarl.envs.point_maze import PointMazeLayout
from metarl.envs.random_params import Walker2dParams, Walker2dParamsEnv
from metarl.rl.rollout import RolloutCollector, one_torch_thread
from metarl.rl.tasks import EnvTaskDistribution
from metarl.runs.registry import load_task

WIDTH, TASKS, GROWTH = 20, 40, (10, 20, 40, 80, 160)
PROCESSES, ROUNDS = 8, 4
NUM_LAYOUTS = 200
FAMILIES = ("ant-goal", "walker2d-params", "point-maze-layout", "ant-maze-goal")  # one of each kind of model


class FallingWalkerEnv(Walker2dParamsEnv):
    """The walker, whose trajectory goes on after a fall."""

    heights = (-math.inf, math.inf)
    max_angle = math.inf


class FallingWalkers(Walker2dParams):
    """`walker2d-params` without early ends."""

    def make_vector_env(self, num_envs: int, *, num_threads: int = 0) -> FallingWalkerEnv:
        return FallingWalkerEnv(num_envs, horizon=self.horizon, num_threads=num_threads)


@dataclass
class Collection:
    """A collection that can be run again and again, always the same."""

    num_tasks: int
    tasks: EnvTaskDistribution[Any]
    collector: RolloutCollector
    learner: MAML

    @staticmethod
    def of(num_tasks: int, tasks: EnvTaskDistribution[Any]) -> Collection:
        collector = RolloutCollector(tasks, num_trajectories=WIDTH)
        config = MAMLConfig(hidden_sizes=(64, 64), activation="tanh")
        learner = MAML(config, collector.spaces, generator=torch.Generator().manual_seed(0))
        return Collection(num_tasks, tasks, collector, learner)

    def __call__(self) -> None:
        tasks = self.tasks.sample(self.num_tasks, np.random.default_rng(0))
        seeds = Seeds.first(self.num_tasks, seed=0, iteration=0)
        self.collector.query(tasks, self.learner, self.learner.begin(self.num_tasks), seeds)

    @property
    def horizon(self) -> int:
        return self.tasks.horizon

    @property
    def num_steps(self) -> int:
        return self.num_tasks * WIDTH * self.horizon


class Recording:
    """Runs a collection once and keeps its environments, first states and controls [steps, simulations, nu]."""

    def __init__(self, collection: Collection) -> None:
        self.env: Any = None
        self.controls: list[NDArray[np.float64]] = []
        collector = RolloutCollector(collection.tasks, num_trajectories=WIDTH, watch=self._watch)
        replace(collection, collector=collector)()

    def _watch(self, env: Any, _: NDArray[np.bool_]) -> None:
        simulator = env.simulator
        if self.env is None:
            time = np.zeros((env.num_envs, 1))
            self.initial = np.concatenate((time, simulator.qpos, simulator.qvel), 1)
            self.warmstart = simulator.bind("qacc_warmstart").copy()
            self.env = env
        else:
            self.controls.append(simulator.ctrl.copy())


class Replay:
    """The physics of a collection and nothing else."""

    def __init__(self, collection: Collection) -> None:
        recording = Recording(collection)
        env = recording.env
        controls = np.stack(recording.controls, axis=1)
        models = [env.simulator.snapshot(index)[0] for index in range(env.num_envs)]
        self._pool = Rollout(nthread=num_cores())
        num_steps = collection.horizon * env.frame_skip
        self._inputs: dict[str, Any] = {
            "model": models,
            "data": [mujoco.MjData(models[0]) for _ in range(num_cores())],
            "initial_state": recording.initial,
            "control": np.ascontiguousarray(controls.repeat(env.frame_skip, axis=1)),
            "nstep": num_steps,
            "initial_warmstart": recording.warmstart,
            "state": np.zeros((env.num_envs, num_steps, recording.initial.shape[1])),
            "sensordata": np.zeros((env.num_envs, num_steps, models[0].nsensordata)),
            "skip_checks": True,
        }
        self()
        final = self._inputs["state"][:, -1, 1:]
        assert (final == np.concatenate((env.simulator.qpos, env.simulator.qvel), 1)).all(), "not the same physics"

    def __call__(self) -> None:
        self._pool.rollout(**self._inputs)


def closed_loop(
    collection: Collection, reset: Callable[[], Any], step: Callable[[Any], tuple[Any, ...]], rounds: int
) -> Callable[[], None]:
    """Runs the same policy for `rounds` horizons on a vector environment of PROCESSES environments."""
    learner = collection.learner
    state = learner.begin(1)
    noise = torch.randn(collection.horizon, 1, PROCESSES, 6, generator=torch.Generator().manual_seed(0))

    def run() -> None:
        with torch.no_grad(), one_torch_thread():
            for _ in range(rounds):
                observation = reset()
                for t in range(collection.horizon):
                    inputs = torch.as_tensor(np.asarray(observation, np.float32))[None]
                    acted, _ = learner.act(state, inputs, noise[t])
                    observation = step(np.clip(acted.actions[0].numpy(), -1.0, 1.0))[0]

    return run


def make_env() -> gymnasium.Env[Any, Any]:
    """Gymnasium's own half cheetah, without a time limit: the loop has one."""
    return gymnasium.make("HalfCheetah-v5", max_episode_steps=10**9)


def compare(lines: Lines, collection: Collection, replay: Replay, repeats: int, rounds: int) -> None:
    makers = [make_env] * PROCESSES
    settings: dict[str, Any] = {"autoreset_mode": AutoresetMode.DISABLED}
    sync, asynchronous = SyncVectorEnv(makers, **settings), AsyncVectorEnv(makers, **settings)
    subproc = SubprocVecEnv(makers)
    loops = {
        "gymnasium SyncVectorEnv": closed_loop(collection, lambda: sync.reset(seed=0)[0], sync.step, rounds),
        "gymnasium AsyncVectorEnv": closed_loop(
            collection, lambda: asynchronous.reset(seed=0)[0], asynchronous.step, rounds
        ),
        "SB3 SubprocVecEnv": closed_loop(collection, subproc.reset, subproc.step, rounds),
    }
    ours, raw = "metarl collection", "mujoco.rollout, one thread per core"
    seconds = alternate({ours: collection, raw: replay, **loops}, repeats)
    steps = dict.fromkeys(loops, rounds * PROCESSES * collection.horizon) | dict.fromkeys(
        (ours, raw), collection.num_steps
    )
    rates = {name: [steps[name] / second for second in measured] for name, measured in seconds.items()}
    for name, measured in rates.items():
        against, others = (raw, rates[raw]) if name in (ours, raw) else (ours, rates[ours])
        lines.add(
            name,
            statistics.median(measured),
            "environment steps/s",
            against=against,
            ratio=ratio(measured, others),
            repeats=repeats,
            work=f"{steps[name]} steps",
        )
    for env in (sync, asynchronous, subproc):
        env.close()


def compare_family(lines: Lines, name: str, horizon: int, repeats: int) -> None:
    family: Any = FallingWalkers if name == "walker2d-params" else load_task(name)
    collection = Collection.of(TASKS, family(horizon=horizon))
    cases = {"ours": collection, "raw": Replay(collection), "policy": acting(collection)}
    seconds = alternate(cases, repeats)
    both = [raw + policy for raw, policy in zip(seconds["raw"], seconds["policy"], strict=True)]
    raw = "mujoco.rollout, one thread per core"
    for against, others in ((raw, seconds["raw"]), (f"{raw}, then the policy alone", both)):
        lines.add(
            f"metarl collection of {name}",
            statistics.median(collection.num_steps / second for second in seconds["ours"]),
            "environment steps/s",
            against=against,
            ratio=ratio(others, seconds["ours"]),
            repeats=repeats,
            work=f"{collection.num_steps} steps",
        )


def acting(collection: Collection) -> Callable[[], None]:
    """The policy's own work in a collection: the same inputs at every step, one thread, no simulation in between."""
    learner, num_tasks = collection.learner, collection.num_tasks
    state = learner.begin(num_tasks)
    sizes, rng = (learner.spaces.observation_size, learner.spaces.action_size), torch.Generator().manual_seed(0)
    observations, noise = (torch.randn(num_tasks, WIDTH, size, generator=rng) for size in sizes)

    def run() -> None:
        with torch.no_grad(), one_torch_thread():
            for _ in range(collection.horizon):
                learner.act(state, observations, noise)

    return run


def compare_layouts(lines: Lines, repeats: int) -> None:
    family, rng = PointMazeLayout(num_rows=9, num_columns=9), np.random.default_rng(0)
    by_walls: dict[int, dict[Layout, MazeTask]] = {}
    mazes: dict[Layout, MazeTask] = {}
    while len(mazes) < NUM_LAYOUTS:
        task = family.sample(1, rng)[0]
        mazes = by_walls.setdefault(len(wall_boxes(task.layout, 1.0, 1.0)), {})
        mazes.setdefault(task.layout, task)
    first = next(iter(mazes.values()))
    controls = rng.uniform(-1.0, 1.0, (family.horizon, NUM_LAYOUTS, 2)).astype(np.float32)

    def stepped(tasks: list[MazeTask]) -> Callable[[], None]:
        env = family.make_vector_env(NUM_LAYOUTS)
        env.set_tasks(tasks)

        def run() -> None:
            env.reset(seed=0)
            for control in controls:
                env.step(control)

        return run

    ours, one = f"{NUM_LAYOUTS} layouts in one batch", f"{NUM_LAYOUTS} copies of one layout"
    seconds = alternate({ours: stepped([*mazes.values()]), one: stepped([first] * NUM_LAYOUTS)}, repeats)
    per_step = [second / family.horizon / NUM_LAYOUTS * 1e6 for second in seconds[ours]]
    lines.add(
        ours,
        statistics.median(per_step),
        "us per environment step",
        against=one,
        ratio=ratio(seconds[ours], seconds[one]),
        repeats=repeats,
    )


def grow(lines: Lines, horizon: int, repeats: int, sizes: tuple[int, ...]) -> None:
    collections = {str(size): Collection.of(size, HalfCheetahDir(horizon=horizon)) for size in sizes}
    seconds = alternate(collections, repeats)
    smallest = sizes[0]
    for size in sizes:
        per_task = [value / size for value in seconds[str(size)]]
        lines.add(
            f"collection of {size} tasks",
            statistics.median(per_task),
            "s per task",
            against=f"{smallest} tasks",
            ratio=ratio(per_task, [value / smallest for value in seconds[str(smallest)]]),
            repeats=repeats,
        )


def main() -> None:
    parsed = arguments(__doc__ or "").parse_args()
    repeats, lines = repeats_of(parsed), Lines(parsed.json)
    collection = Collection.of(TASKS, HalfCheetahDir(horizon=50 if parsed.quick else 200))
    compare(lines, collection, Replay(collection), repeats, 1 if parsed.quick else ROUNDS)
    grow(lines, 20 if parsed.quick else 100, repeats, GROWTH[::2] if parsed.quick else GROWTH)
    for family in FAMILIES:
        compare_family(lines, family, 10 if parsed.quick else 50, repeats)
    compare_layouts(lines, repeats)
    lines.close()


if __name__ == "__main__":
    main()
