"""How near collection comes to the physics engine's own speed.

Full collection on half-cheetah-dir (policy acting, resets and recording included; 64x64 tanh, 40 tasks x 20
trajectories x 200 steps), against an open-loop replay of the very same controls from the very same states through
`mujoco.rollout` with one thread per core; beside gymnasium's vector environments and SB3's SubprocVecEnv with the same
policy; its growth with the number of tasks; and the same ratio for other families, with as many tasks, each simulation
with the model of its own task (nothing terminates here, so that collection and replay are of equally many steps), also
against the replay and then the policy's own work, which weighs more where the physics is cheap; and 200 mazes in one
batch against 200 copies of one of them, all with equally many walls, under the same controls.

    python scripts/benchmark_sampling.py                 ten minutes on two cores
    python scripts/benchmark_sampling.py --quick         a noisier answer within four minutes
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
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
from metarl.rl.rollout import RolloutCollector, one_torch_thread
from metarl.runs.registry import load_task

WIDTH, TASKS, GROWTH = 20, 40, (10, 20, 40, 80, 160)
PROCESSES, ROUNDS = 8, 4
NUM_LAYOUTS = 200
FAMILIES = ("ant-goal", "walker2d-params", "point-maze-layout", "ant-maze-goal")


@dataclass
class Collection:
    """A collection that can be run again and again, always the same."""

    num_tasks: int
    horizon: int
    collector: RolloutCollector
    learner: MAML

    @staticmethod
    def of(num_tasks: int, horizon: int, *, family: Callable[..., Any] = HalfCheetahDir) -> Collection:
        collector = RolloutCollector(family(horizon=horizon), num_trajectories=WIDTH)
        collector._env(num_tasks * WIDTH)._terminated = lambda _: False  # type: ignore[attr-defined]
        config = MAMLConfig(hidden_sizes=(64, 64), activation="tanh")
        learner = MAML(config, collector.spaces, generator=torch.Generator().manual_seed(0))
        return Collection(num_tasks, horizon, collector, learner)

    def __call__(self) -> None:
        tasks = self.collector.tasks.sample(self.num_tasks, np.random.default_rng(0))
        seeds = Seeds.first(self.num_tasks, seed=0, iteration=0)
        self.collector.query(tasks, self.learner, self.learner.begin(self.num_tasks), seeds)

    @property
    def num_steps(self) -> int:
        return self.num_tasks * WIDTH * self.horizon


class Replay:
    """The physics of a collection and nothing else."""

    def __init__(self, collection: Collection) -> None:
        env: Any = collection.collector._env(collection.num_tasks * WIDTH)
        self._simulator = env.simulator
        controls = self._record(collection)
        models = [self._simulator.snapshot(index)[0] for index in range(len(controls))]
        self._pool = Rollout(nthread=num_cores())
        num_steps = collection.horizon * env.frame_skip
        self._inputs: dict[str, Any] = {
            "model": models,
            "data": [mujoco.MjData(models[0]) for _ in range(num_cores())],
            "initial_state": self._initial,
            "control": np.ascontiguousarray(controls.repeat(env.frame_skip, axis=1)),
            "nstep": num_steps,
            "initial_warmstart": self._warmstart,
            "state": np.zeros((len(controls), num_steps, self._initial.shape[1])),
            "sensordata": np.zeros((len(controls), num_steps, models[0].nsensordata)),
            "skip_checks": True,
        }
        self()
        final = self._inputs["state"][:, -1, 1:]
        assert (final == np.concatenate((self._simulator.qpos, self._simulator.qvel), 1)).all(), "not the same physics"

    def __call__(self) -> None:
        self._pool.rollout(**self._inputs)

    def _record(self, collection: Collection) -> NDArray[np.float64]:
        """Runs the collection once, keeping its initial states; returns its controls [simulations, steps, nu]."""
        simulator, controls = self._simulator, []
        warmstart, step = simulator.bind("qacc_warmstart"), simulator.step

        def recorded(*given: Any) -> Any:
            if not controls:
                time = np.zeros((len(simulator.qpos), 1))
                self._initial = np.concatenate((time, simulator.qpos, simulator.qvel), 1)
                self._warmstart = warmstart.copy()
            controls.append(simulator.ctrl.copy())
            return step(*given)

        simulator.step = recorded
        collection()
        del simulator.step
        return np.stack(controls, axis=1)


def closed_loop(
    collection: Collection, reset: Callable[[], Any], step: Callable[[Any], tuple[Any, ...]], rounds: int
) -> Callable[[], None]:
    """`rounds` times a horizon with the same policy on a vector environment of PROCESSES environments."""
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
    """Gymnasium's own half cheetah; the time limit is the loop's."""
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
    collection = Collection.of(TASKS, horizon, family=load_task(name))
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
    """What the policy computes in a collection, on equal inputs in every step: one thread, nothing else in between."""
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
    collections = {str(size): Collection.of(size, horizon) for size in sizes}
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
    collection = Collection.of(TASKS, 50 if parsed.quick else 200)
    compare(lines, collection, Replay(collection), repeats, 1 if parsed.quick else ROUNDS)
    grow(lines, 20 if parsed.quick else 100, repeats, GROWTH[::2] if parsed.quick else GROWTH)
    for family in FAMILIES:
        compare_family(lines, family, 10 if parsed.quick else 50, repeats)
    compare_layouts(lines, repeats)
    lines.close()


if __name__ == "__main__":
    main()
