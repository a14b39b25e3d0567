"""Trained players of random MDPs compared with planners that have the family's prior: return of a trial and intervals.

    python scripts/train_tabular_mdp.py --agent rl2 --run-dir runs/tabular-mdp
    python scripts/compare_tabular_mdps.py runs/tabular-mdp --json compare.json

All players get the same MDPs with the same random numbers. The bound is the optimum of a known MDP, which no learner
can reach. "greedy" plans with the posterior's means before each episode. "tuned bonus" adds 0.5 / sqrt(1 + n) to the
reward of a state and action that were tried n times. The players "every step" plan before every step.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from comparing import Remembering, arguments, in_parts, load, mean_and_error, scores, table

from metarl.core.errors import InputError, require
from metarl.envs import tabular_mdp_yardsticks as yardsticks

ROWS = 1000


def learned(learner: Any, rng: np.random.Generator) -> yardsticks.Policy:
    """The policy of a learner with a memory; every episode is a trajectory of its trial."""
    player = Remembering(learner, rng)

    def policy(play: yardsticks.Play) -> Any:
        if play.episode == play.step == 0:
            player.begin(len(play.states))
        else:
            player.observe(play.last_actions, play.last_rewards, ended=play.step == 0)
        return player.act(np.eye(play.reward_sums.shape[1])[play.states])

    return policy


def compare(runs: Mapping[str, Any], family: Any, num_episodes: int, num_mdps: int, seed: int) -> dict[str, Any]:
    """The returns of all players on the same MDPs."""
    rng = np.random.default_rng(seed)
    transitions, mean_rewards = yardsticks.stack(family.sample(num_mdps, rng))
    size = (num_mdps, num_episodes, family.horizon)
    uniforms, noise = rng.random(size), rng.standard_normal(size)
    rngs = iter(rng.spawn(8 + len(runs)))
    players = {
        "random": yardsticks.uniform(next(rngs)),
        "posterior sampling": yardsticks.planner(yardsticks.posterior_sample(next(rngs))),
        "greedy": yardsticks.planner(yardsticks.posterior_mean),
        "tuned bonus": yardsticks.planner(yardsticks.bonus()),
        "greedy, every step": yardsticks.planner(yardsticks.posterior_mean, every_step=True),
        "bonus, every step": yardsticks.planner(yardsticks.bonus(), every_step=True),
        **{label: learned(run, next(rngs)) for label, run in runs.items()},
    }
    returns = {}
    for name, policy in players.items():

        def play(rows: slice, policy: yardsticks.Policy = policy) -> Any:
            data = (array[rows] for array in (transitions, mean_rewards, uniforms, noise))
            return yardsticks.simulate(policy, *data).sum((1, 2))

        returns[name] = np.concatenate(in_parts(play, num_mdps, ROWS))
    values, _ = yardsticks.value_iteration(transitions, mean_rewards, family.horizon)
    bound = float(num_episodes * values[:, 0].mean())
    result: dict[str, Any] = {"num_mdps": num_mdps, "num_episodes": num_episodes, "seed": seed, "learned": list(runs)}
    result |= {"bound": round(bound, 4), "bound_is": "optimum of the known MDPs", "players": scores(returns, bound)}
    for label in runs:
        result["players"][label]["above_bonus"] = mean_and_error(returns[label] - returns["tuned bonus"])
    return result


def main() -> int:
    parsed = arguments(__doc__, episodes=10_000).parse_args()
    runs: dict[str, Any] = {}
    kind: Any = None
    try:
        for path in parsed.runs:
            label, config, learner = load(path, "tabular-mdp")
            own = (config.task, learner.num_adaptation_steps)
            require(kind in (None, own), path, own, "of the same MDPs and length of trials as the first run")
            kind, runs[label] = own, learner
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    result = compare(runs, kind[0], kind[1] + 1, parsed.episodes, parsed.seed)
    print(f"{result['num_mdps']} MDPs, {kind[1] + 1} episodes; bound {result['bound']} ({result['bound_is']})")
    print("\n".join(table(result["players"])))
    if parsed.json is not None:
        parsed.json.write_text(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
