"""Time of an iteration of every agent, compared with its physics.

Half-cheetah-dir with 20 tasks x 20 trajectories x 100 steps a collection and 64 units a layer; the other settings are
those of the agent's preset. The value is the time of an iteration; the ratio divides it by the time that its
collections spend in the simulator (most agents collect twice an iteration, Reptile five times). An agent that has a
choice of memories is measured with each of them.

    python scripts/benchmark_agents.py                ten minutes on two cores
    python scripts/benchmark_agents.py --quick        trajectories of 20 steps: a noisier answer within a minute or two
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import fields, replace
from typing import Any, get_args

from benchmark_iteration import Stopwatch
from benchmarking import Lines, arguments, repeats_of

from metarl.core.settings import fields_of
from metarl.envs.simulator import Simulator
from metarl.networks.memories import MemoryName
from metarl.runs.build import build
from metarl.runs.config import resolve
from metarl.runs.registry import AGENTS, load_agent

SAME: dict[str, Any] = {"hidden_sizes": (64, 64), "activation": "tanh", "hidden_size": 64, "num_trajectories": 20}


def cases() -> dict[str, tuple[str, dict[str, Any]]]:
    """Agent and settings by name."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for agent in AGENTS:
        if "memory" in (field.name for field in fields(load_agent(agent).Config)):
            found |= {f"{agent}, {memory}": (agent, {"memory": memory}) for memory in get_args(MemoryName)}
        else:
            found[agent] = (agent, {})
    return found


def make_trainer(agent: str, settings: dict[str, Any], horizon: int) -> Any:
    config = resolve("half-cheetah-dir", agent)
    own = fields_of(config.agent)
    settings = {**{name: SAME[name] for name in SAME.keys() & own}, **settings}
    trainer = replace(config.trainer, meta_batch_size=20, device="cpu")
    task = replace(config.task, horizon=horizon)
    return build(replace(config, task=task, agent=replace(config.agent, **settings), trainer=trainer))


def main() -> int:
    parsed = arguments(__doc__ or "").parse_args()
    repeats, lines = repeats_of(parsed), Lines(parsed.json)
    trainers = {name: make_trainer(*case, 20 if parsed.quick else 100) for name, case in cases().items()}
    stopwatch = Stopwatch()
    stopwatch.watch(Simulator, "step", "physics")
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    ratios: dict[str, list[float]] = {name: [] for name in trainers}
    for repeat in range(repeats + 1):  # the first is not counted
        for name, trainer in trainers.items():
            stopwatch.restart()
            trainer.train_iteration()
            stopwatch.stop()
            if repeat:
                seconds[name].append(sum(stopwatch.seconds.values()))
                ratios[name].append(seconds[name][-1] / stopwatch.seconds["physics"])
    for name in trainers:
        value, ratio = statistics.median(seconds[name]), statistics.median(ratios[name])
        lines.add(f"iteration, {name}", value, "s", against="time in the simulator", ratio=ratio, repeats=repeats)
    lines.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
