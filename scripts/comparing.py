"""Functions that the comparing scripts share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import metarl
from metarl.core.errors import require
from metarl.runs.config import RunConfig, load_config


def with_iterations(config: RunConfig, iterations: int) -> RunConfig:
    """The run with another number of iterations. If its agent has a schedule, the schedule gets the same length."""
    agent = config.agent
    if asdict(agent).get("schedule_iterations") is not None:
        agent = replace(agent, schedule_iterations=iterations)
    return replace(config, agent=agent, trainer=replace(config.trainer, iterations=iterations))


def arguments(description: str, *, episodes: int) -> argparse.ArgumentParser:
    """A parser with the flags that every comparison has."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="[LABEL=]RUN_DIR")
    parser.add_argument("--episodes", type=int, default=episodes, help="trials that every player plays (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    return parser


def load(path: str, task_name: str) -> tuple[str, RunConfig, Any]:
    """Label, configuration and learner of LABEL=RUN_DIR or RUN_DIR.

    Raises:
        InputError: not a run of an agent with a memory on `task_name`.
    """
    label, _, folder = path.rpartition("=")
    config = load_config(Path(folder))
    require(config.task_name == task_name, folder, config.task_name, f"a run on {task_name}")
    learner = metarl.load(folder)
    require(learner.traits.state_per == "trajectory", folder, config.agent_name, "an agent with a memory")
    return label or Path(folder).name, config, learner


class Remembering:
    """A learner with a memory as a player: it plays many trials at once.

    Attributes:
        state: the learner's state in all trials.
    """

    def __init__(self, learner: Any, rng: np.random.Generator) -> None:
        self._learner = learner
        self._rng = rng
        self.state: Any = None

    def begin(self, num_trials: int) -> None:
        """Starts new trials with an empty memory."""
        self.state = self._learner.begin(num_trials)

    def observe(self, actions: NDArray[Any], rewards: NDArray[Any], *, ended: bool) -> None:
        """Records the last actions and their rewards, [num_trials] each; with `ended`, a new trajectory begins."""
        paid = torch.from_numpy(rewards.astype(np.float32)).unsqueeze(1)
        done = torch.full_like(paid, ended, dtype=torch.bool)
        taken = torch.from_numpy(np.array(actions)).unsqueeze(1)
        self.state = self._learner.observe(self.state, taken, paid, torch.zeros_like(done), done)
        self.state = self.state._replace(over=torch.zeros_like(done))

    def act(self, observations: NDArray[Any]) -> NDArray[np.int64]:
        """Actions [num_trials] for observations [num_trials, observation_size]."""
        noise = torch.from_numpy(self._rng.random((len(observations), 1), dtype=np.float32))
        seen = torch.from_numpy(observations.astype(np.float32)).unsqueeze(1)
        with torch.no_grad():
            acted, self.state = self._learner.act(self.state, seen, noise)
        actions: NDArray[np.int64] = acted.actions[:, 0].numpy()
        return actions


def in_parts(play: Callable[[slice], Any], total: int, size: int) -> list[Any]:
    """The results of `play` for slices of at most `size` out of `total`; limits memory use."""
    return [play(slice(start, min(start + size, total))) for start in range(0, total, size)]


def mean_and_error(values: NDArray[Any]) -> dict[str, float]:
    """Mean and 1.96 standard errors."""
    return {"mean": round(float(values.mean()), 4), "error": round(float(1.96 * values.std() / len(values) ** 0.5), 4)}


def scores(returns: Mapping[str, NDArray[Any]], bound: float) -> dict[str, dict[str, Any]]:
    """Each player's return, its share of `bound`, and its difference from "greedy" on the same trials."""
    return {
        name: {
            "return": mean_and_error(values),
            "share_of_bound": round(float(values.mean()) / bound, 4),
            "above_greedy": mean_and_error(values - returns["greedy"]),
        }
        for name, values in returns.items()
    }


def table(players: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One line per player."""
    lines = []
    for name, player in players.items():
        value, above, share = player["return"], player["above_greedy"], 100 * player["share_of_bound"]
        score = f"{value['mean']:8.3f} ± {value['error']:.3f}   {share:6.2f} % of the bound"
        lines.append(f"  {name:18} {score}   greedy {above['mean']:+.3f} ± {above['error']:.3f}")
    return lines
