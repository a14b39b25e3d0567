from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from metarl.envs.grid_nav import MOVES, GridNav
from metarl.envs.grid_nav_yardsticks import (
    _new_goals_at_every_step,
    bayes_optimal,
    known_goal,
    posterior_sampling,
    score,
)


def optimum_by_brute_force(family, num_episodes):
    """Mean return of the best policy over whole trials, by dynamic programming over beliefs.

    A state is the cell, the goals still possible, the steps left in the episode and the episodes after it.
    """
    size = family.size

    def moves(cell):
        return {(min(max(cell[0] + x, 0), size - 1), min(max(cell[1] + y, 0), size - 1)) for x, y in MOVES}

    @cache
    def known(cell, goal, left, after):
        if left == 0:
            return known((0, 0), goal, family.horizon, after - 1) if after else 0.0
        return max((1.0 if new == goal else -0.1) + known(new, goal, left - 1, after) for new in moves(cell))

    @cache
    def value(cell, possible, left, after):
        """Summed over the possible goals."""
        if not possible:
            return 0.0
        if left == 0:
            return value((0, 0), possible, family.horizon, after - 1) if after else 0.0
        best = -np.inf
        for new in moves(cell):
            others = possible - {new}
            total = -0.1 * len(others) + value(new, others, left - 1, after)
            if new in possible:
                total += 1.0 + known(new, new, left - 1, after)
            best = max(best, total)
        return best

    goals = frozenset((goal.x, goal.y) for goal in family.all_tasks())
    return value((0, 0), goals, family.horizon, num_episodes - 1) / len(goals)


@pytest.mark.parametrize(
    ("size", "horizon", "num_episodes"), [(3, 3, 1), (3, 3, 3), (3, 4, 2), (3, 6, 1), (3, 6, 2), (3, 8, 2), (4, 9, 2)]
)
def test_the_bayes_optimum_is_that_of_brute_force(size, horizon, num_episodes):
    family = GridNav(size=size, horizon=horizon)
    exact = optimum_by_brute_force(family, num_episodes)
    assert bayes_optimal(family, num_episodes).sum() == pytest.approx(exact, abs=1e-12)


def test_the_bayes_optimum_of_the_papers_grid():
    """First episode: 14 of 21 goals are met at steps 2 to 15, (14 * 15 - 1.1 * (1 + ... + 14) - 7 * 1.5) / 21 = 4.

    Later episodes meet the goal as early as walking straight does. The sum of (distance - 1) over all goals is 75.
    """
    np.testing.assert_allclose(bayes_optimal(GridNav(), 4), [4.0] + [15 - 1.1 * 75 / 21] * 3, rtol=1e-12)


def test_the_walks_searched_meet_a_new_goal_at_every_step():
    family = GridNav(size=4)
    goals = {(goal.x, goal.y) for goal in family.all_tasks()}
    walks = list(_new_goals_at_every_step(family, 6))
    assert len({tuple(walk) for walk in walks}) == len(walks) > 10
    for walk in walks:
        assert len(set(walk) & goals) == 6
        assert sum(walk[0]) == 2
        assert (np.abs(np.diff(walk, axis=0)).sum(1) == 1).all()


def test_where_the_bounds_are_not_met_it_says_so():
    family = GridNav(size=4, horizon=6)
    with pytest.raises(ValueError, match=r"size=4, horizon=6.*no first walk"):
        bayes_optimal(family, 2)


def test_scores_are_the_environments():
    """Walks straight to each goal in the environment, first along x."""
    family = GridNav()
    goals = family.all_tasks()
    env = family.make_vector_env(len(goals))
    env.set_tasks(goals)
    env.reset(seed=0)
    xs, ys = np.array([(goal.x, goal.y) for goal in goals]).T
    total = np.zeros(len(goals))
    for step in range(15):
        total += env.step(np.where(step < xs, 2, np.where(step < xs + ys, 1, 0)))[1]
    np.testing.assert_allclose(score((xs + ys).astype(float), 15), total)
    assert known_goal(family) == pytest.approx(total.mean())
    assert score(np.array([16.0]), 15) == pytest.approx(-1.5)


def posterior_sampling_by_enumeration(family):
    """Mean returns of two episodes of posterior sampling, over all goals drawn and all shortest routes to them."""
    goals = [(goal.x, goal.y) for goal in family.all_tasks()]

    def routes(cell, target):
        if cell == target:
            return [(1.0, [])]
        steps = [(target[0] - cell[0], (cell[0] + 1, cell[1])), (target[1] - cell[1], (cell[0], cell[1] + 1))]
        total = sum(missing for missing, _ in steps)
        return [
            (missing / total * chance, [new, *rest])
            for missing, new in steps
            if missing
            for chance, rest in routes(new, target)
        ]

    def episode(possible, hidden):
        for target in possible:
            for chance, route in routes((0, 0), target):
                cells = route[: family.horizon]
                time = cells.index(hidden) + 1 if hidden in cells else family.horizon + 1
                left = [hidden] if hidden in cells else [goal for goal in possible if goal not in cells]
                yield chance / len(possible), float(score(np.array(time), family.horizon)), left

    first, second = 0.0, 0.0
    for hidden in goals:
        for chance, scored, left in episode(goals, hidden):
            first += chance * scored / len(goals)
            second += chance / len(goals) * sum(p * later for p, later, _ in episode(left, hidden))
    return [first, second]


@pytest.mark.parametrize(("size", "horizon"), [(3, 4), (3, 3), (4, 7)])
def test_posterior_sampling_is_that_of_enumeration(size, horizon):
    family = GridNav(size=size, horizon=horizon)
    returns = posterior_sampling(family, 2, 20_000, np.random.default_rng(0))
    errors = returns.std(0) / np.sqrt(len(returns))
    np.testing.assert_allclose((returns.mean(0) - posterior_sampling_by_enumeration(family)) / errors, 0.0, atol=4.0)


def test_posterior_sampling_on_the_papers_grid_is_far_from_the_optimum():
    returns = posterior_sampling(GridNav(), 4, 5000, np.random.default_rng(0)).mean(0)
    assert (np.diff(returns) > 0).all()
    assert (returns < bayes_optimal(GridNav(), 4) - 3.0).all()


def test_posterior_sampling_never_walks_to_the_same_goal_in_vain():
    """With as many episodes as goals, every goal is found. In later episodes the route is straight."""
    family = GridNav(size=3, horizon=5)
    returns = posterior_sampling(family, 6, 2000, np.random.default_rng(0))
    straight = {float(score(np.array(goal.x + goal.y), 5)) for goal in family.all_tasks()}
    assert set(returns[:, -1].tolist()) <= straight
