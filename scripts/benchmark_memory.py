"""Time of one PPO epoch of RL², compared with torch's own recurrent network.

One epoch trains RL² on an iteration's trials, in minibatches. It is compared with one forward and backward pass of
torch's fused LSTM or GRU of the same width over the same sequences. The sequences are bandit trials of 100 pulls, and
half-cheetah trials of two trajectories of 100 steps.

    python scripts/benchmark_memory.py                three minutes on two cores
    python scripts/benchmark_memory.py --quick        a noisier answer within a minute
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from benchmarking import Lines, alternate, arguments, ratio, repeats_of

from metarl.agents.rl2 import RL2, RL2Config
from metarl.core.episode import run_episodes
from metarl.core.seeds import Purpose, Seeds, generator
from metarl.envs.bandit import Bandit
from metarl.envs.half_cheetah import HalfCheetahDir
from metarl.rl.rollout import RolloutCollector

FAMILIES: dict[str, tuple[Any, int, int, int]] = {  # family, tasks, trials of each, trajectories per trial
    "bandit, 1,000 trials x 100": (Bandit(num_arms=5, num_pulls=100), 1000, 1, 1),
    "half-cheetah-dir, 400 trials x 200": (HalfCheetahDir(horizon=100), 20, 20, 2),
}


def epoch_and_bare(kind: Any, family: Any, num_tasks: int, width: int, length: int) -> tuple[Any, Any]:
    """One epoch on an iteration's trials, and torch's network forward and backward on the same inputs."""
    config = RL2Config(memory=kind, num_trajectories=width, trajectories_per_trial=length, learning_rate=1e-9)
    collector = RolloutCollector(family, num_trajectories=width)
    learner = RL2(config, collector.spaces, generator=torch.Generator().manual_seed(0))
    tasks = family.sample(num_tasks, generator(0, 0, Purpose.TASKS))
    episodes = run_episodes(learner, collector, tasks, Seeds.first(num_tasks), num_steps=length - 1)
    trials, _ = learner.trials((*episodes.support, episodes.query))
    inputs = trials.inputs.transpose(0, 1).contiguous()
    network = (torch.nn.LSTM if kind == "lstm" else torch.nn.GRU)(inputs.shape[2], config.hidden_size)
    weights = list(network.parameters())
    collector.close()
    order = torch.Generator().manual_seed(0)
    return lambda: learner.epoch(trials, order=order), lambda: torch.autograd.grad(network(inputs)[0].sum(), weights)


def main() -> int:
    parsed = arguments(__doc__).parse_args()
    repeats = repeats_of(parsed)
    lines = Lines(parsed.json)
    for name, setting in FAMILIES.items():
        for kind in ("lstm", "gru"):
            epoch, bare = epoch_and_bare(kind, *setting)
            seconds = alternate({"epoch": epoch, "bare": bare}, repeats)
            lines.add(
                f"one PPO epoch, {kind}, {name}",
                sorted(seconds["epoch"])[repeats // 2],
                "s",
                against=f"torch.nn.{kind.upper()} forward and backward over the same sequences",
                ratio=ratio(seconds["epoch"], seconds["bare"]),
                repeats=repeats,
            )
    lines.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
