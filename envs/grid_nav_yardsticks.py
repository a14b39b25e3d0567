"""References for learners of `grid-nav`: the known goal, the Bayes optimum, and posterior sampling.

A trial is several episodes with one goal. Each episode begins at the start, and knowledge of the goal is kept. Once the
goal is found, every policy here walks straight to it. If an episode first meets the goal at step t, its return is

    horizon - 1.1 (t - 1),    with t = horizon + 1 if it never meets the goal.

So the return depends only on t.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from metarl.envs.grid_nav import GOAL_REWARD, MOVES, STEP_REWARD, GridNav

Floats: TypeAlias = NDArray[np.float64]
Cell: TypeAlias = tuple[int, int]
START: Cell = (0, 0)


def score(times: Floats, horizon: int) -> Floats:
    """Return of episodes that first meet the goal at step `times`, each in 1 to `horizon` + 1."""
    return GOAL_REWARD * horizon - (GOAL_REWARD - STEP_REWARD) * (times - 1.0)


def known_goal(family: GridNav) -> float:
    """Mean return of an episode that walks straight to the goal."""
    return float(score(_straight(family, _goals(family)), family.horizon).mean())


def bayes_optimal(family: GridNav, num_episodes: int) -> Floats:
    """Mean return of each episode of a Bayes-optimal trial, [num_episodes]: 4.0, then 11.07 on the grid of 5 by 5.

    Two bounds hold for every policy. In the first episode, an agent can meet at most one possible goal per step, and
    none before step 2. So the first episode is at best as good as meeting a new possible goal at every step from step 2
    on. A later episode is at best as good as walking straight to the goal.

    This function searches for a first walk that meets a new possible goal at each step from step 2 to the last. All
    goals that this walk misses must lie on one shortest path from the start. A second episode along this path meets
    each of them as early as walking straight to it. Then both bounds are reached, and the trial is optimal.

    Raises:
        ValueError: this grid has no such walk, so the bounds may not be reachable.
    """
    goals = _goals(family)
    found = min(family.horizon - 1, len(goals))
    for walk in _new_goals_at_every_step(family, found):
        left = sorted(set(goals) - set(walk), key=sum)
        if all(a[0] <= b[0] and a[1] <= b[1] for a, b in zip([START, *left], left, strict=False)):
            break
    else:
        raise ValueError(f"{family}: no first walk meets the bound on the Bayes optimum")
    times = np.append(np.arange(2, found + 2), np.full(len(goals) - found, family.horizon + 1))
    first = float(score(times, family.horizon).mean())
    return np.array([first] + [known_goal(family)] * (num_episodes - 1))


def posterior_sampling(family: GridNav, num_episodes: int, num_trials: int, rng: np.random.Generator) -> Floats:
    """Returns of trials that, in each episode, draw one of the goals that are still possible, walk there and stay.

    The route is a random shortest one. If it meets the goal, the goal is found. Its other cells are then ruled out.

    Source: Strens, "A Bayesian Framework for Reinforcement Learning", ICML 2000.

    Returns:
        [num_trials, num_episodes]. Each trial has its own goal, drawn with `rng`.
    """
    goals = np.array(_goals(family))
    trials = np.arange(num_trials)
    hidden = goals[rng.integers(len(goals), size=num_trials)]
    possible = np.zeros((num_trials, family.size, family.size), bool)
    possible[:, goals[:, 0], goals[:, 1]] = True
    returns = np.zeros((num_trials, num_episodes))
    for episode in range(num_episodes):
        drawn = (rng.random((num_trials, len(goals))) * possible[:, goals[:, 0], goals[:, 1]]).argmax(1)
        targets = goals[drawn]
        cells = np.zeros((num_trials, 2), np.int64)
        times = np.full(num_trials, family.horizon + 1)
        for step in range(1, family.horizon + 1):
            missing = targets - cells
            vertical = rng.random(num_trials) * missing.sum(1) < missing[:, 1]
            moves = np.where(missing.any(1, keepdims=True), np.stack([~vertical, vertical], 1), 0)
            cells += moves
            found = (cells == hidden).all(1)
            times = np.where(found, np.minimum(times, step), times)
            possible[trials, cells[:, 0], cells[:, 1]] = False
        met = times <= family.horizon
        possible[met] = False
        possible[trials[met], hidden[met, 0], hidden[met, 1]] = True
        returns[:, episode] = score(times, family.horizon)
    return returns


def _goals(family: GridNav) -> list[Cell]:
    return [(goal.x, goal.y) for goal in family.all_tasks()]


def _straight(family: GridNav, goals: list[Cell]) -> Floats:
    """The step at which a shortest route meets each goal; horizon + 1 for goals too far away."""
    times: Floats = np.minimum(np.array(goals, np.float64).sum(1), family.horizon + 1)
    return times


def _new_goals_at_every_step(family: GridNav, number: int) -> Iterator[list[Cell]]:
    """Walks that meet a new goal at step 2 and at each of the next `number` - 1 steps, as the goals in order."""
    goals = set(_goals(family))

    def extend(walk: list[Cell]) -> Iterator[list[Cell]]:
        if len(walk) == number:
            yield walk
            return
        x, y = walk[-1]
        for dx, dy in MOVES[1:]:
            if (new := (x + dx, y + dy)) in goals and new not in walk:
                yield from extend([*walk, new])

    for first in sorted(goal for goal in goals if sum(goal) == 2):
        yield from extend([first])
