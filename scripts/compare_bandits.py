"""Trained bandit players compared with classical ones: return with intervals, and a picture of the regret per pull.

    python scripts/train_bandit.py --agent rl2 --preset 100x5 --run-dir runs/bandit-100x5
    python scripts/compare_bandits.py runs/bandit-100x5 --json compare.json --picture regret.png

All players get the same bandits with the same random numbers. Runs with the same number of arms and pulls share a
panel. For up to 10 pulls the bound is the exact Bayes optimum. For more pulls that takes too long to compute. Then the
bound is the return of the finite-horizon Gittins index, which is close to the optimum.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from comparing import Remembering, arguments, in_parts, load, scores, table
from matplotlib.figure import Figure

from metarl.core.errors import InputError, require
from metarl.envs import bandit_yardsticks as yardsticks

MOST_PULLS_FOR_EXACT = 10
ROWS = 5000
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREYS = {"Thompson": (0, (1, 1)), "tuned UCB": (0, (4, 2)), "greedy": (0, (6, 2, 1, 2)), "Gittins index": "-"}


def classical(num_pulls: int, seed: int) -> dict[str, yardsticks.Policy]:
    """The classical players by name, each with its own generator."""
    rngs = iter(np.random.default_rng(seed).spawn(8))
    return {
        "random": yardsticks.uniform(next(rngs)),
        "Thompson": yardsticks.thompson(next(rngs)),
        "UCB1": yardsticks.highest(yardsticks.ucb1, next(rngs)),
        "tuned UCB": yardsticks.highest(yardsticks.tuned_ucb, next(rngs)),
        "greedy": yardsticks.highest(yardsticks.posterior_mean, next(rngs)),
        "Gittins index": yardsticks.highest(yardsticks.gittins(num_pulls), next(rngs)),
    }


def learned(learner: Any, rng: np.random.Generator) -> yardsticks.Policy:
    """The policy of a learner with a memory; a trial is one trajectory of all pulls."""
    player = Remembering(learner, rng)

    def policy(play: yardsticks.Play) -> Any:
        if play.pull == 0:
            player.begin(len(play.successes))
        else:
            player.observe(play.last_arms, play.last_rewards, ended=False)
        return player.act(np.zeros((len(play.successes), 1)))

    return policy


def compare(runs: Mapping[str, Any], num_arms: int, num_pulls: int, num_episodes: int, seed: int) -> dict[str, Any]:
    """One panel: the return and regret of all players on the same episodes."""
    rng = np.random.default_rng([seed, num_arms, num_pulls])
    probabilities, uniforms = rng.random((num_episodes, num_arms)), rng.random((num_episodes, num_pulls))
    players = classical(num_pulls, seed) | {label: learned(run, rng.spawn(1)[0]) for label, run in runs.items()}
    returns, regrets = {}, {}
    for name, policy in players.items():

        def play(rows: slice, policy: yardsticks.Policy = policy) -> Any:
            return yardsticks.simulate(policy, probabilities[rows], uniforms[rows])

        parts = in_parts(play, num_episodes, ROWS)
        arms, rewards = (np.concatenate(field) for field in zip(*parts, strict=True))
        returns[name], regrets[name] = rewards.sum(1), yardsticks.regret(arms, probabilities).mean(0)
    bound, against = float(returns["Gittins index"].mean()), "Gittins index on the same episodes"
    if num_pulls <= MOST_PULLS_FOR_EXACT:
        bound, against = yardsticks.exact_return(num_arms, num_pulls), "exact Bayes optimum"
    panel: dict[str, Any] = {"num_pulls": num_pulls, "num_arms": num_arms, "num_episodes": num_episodes, "seed": seed}
    panel |= {"bound": round(bound, 4), "bound_is": against, "learned": list(runs), "players": scores(returns, bound)}
    for name, regret in regrets.items():
        panel["players"][name]["regret_per_pull"] = [round(float(value), 5) for value in regret]
    return panel


def draw(panels: list[dict[str, Any]]) -> Figure:
    """Regret per pull, with a panel for each number of arms and pulls."""
    figure = Figure(figsize=(5.2 * len(panels), 4.4), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        pulls = np.arange(1, panel["num_pulls"] + 1)
        for name, style in GREYS.items():
            regret = panel["players"][name]["regret_per_pull"]
            axes.plot(pulls, regret, color="#555555", linestyle=style, linewidth=1.3, label=name)
        for colour, name in zip(COLOURS, panel["learned"], strict=False):
            axes.plot(pulls, panel["players"][name]["regret_per_pull"], color=colour, linewidth=1.8, label=name)
        axes.set_title(f"{panel['num_arms']} arms, {panel['num_pulls']} pulls")
        axes.set_xlabel("pull")
        axes.set_ylabel("regret per pull")
        axes.set_ylim(bottom=0.0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    return figure


def main() -> int:
    parser = arguments(__doc__, episodes=20_000)
    parser.add_argument("--picture", type=Path)
    parsed = parser.parse_args()
    kinds: dict[tuple[int, int], dict[str, Any]] = {}
    try:
        for path in parsed.runs:
            label, config, learner = load(path, "bandit")
            length = config.agent.trajectories_per_trial
            require(length == 1, path, length, "trained on trials of one trajectory with all pulls")
            runs = kinds.setdefault((config.task.num_arms, config.task.num_pulls), {})
            require(label not in runs, "label", label, "different for each run on the same bandits")
            runs[label] = learner
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    panels = []
    for (num_arms, num_pulls), runs in kinds.items():
        panels.append(compare(runs, num_arms, num_pulls, parsed.episodes, parsed.seed))
        print(f"{num_arms} arms, {num_pulls} pulls; bound {panels[-1]['bound']} ({panels[-1]['bound_is']})")
        print("\n".join(table(panels[-1]["players"])), flush=True)
    if parsed.json is not None:
        parsed.json.write_text(json.dumps(panels) + "\n")
    if parsed.picture is not None:
        with matplotlib.rc_context({"font.size": 11}):
            draw(panels).savefig(parsed.picture, dpi=130)
    return 0


if __name__ == "__main__":
    sys.exit(main())
