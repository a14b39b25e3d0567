"""References for learners of small MDPs: the optimum of a known MDP, and planners that use the experience so far.

The planners use the prior of the family `tabular-mdp`: flat Dirichlet next-state probabilities, mean rewards from
N(1, 1), rewards with standard normal noise. Everything runs over many MDPs at once. Play every policy with the same
MDPs, `uniforms` and `noise`, so that only the policies differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from metarl.envs.tabular_mdp import MDP

Floats: TypeAlias = NDArray[np.float64]
Numbers: TypeAlias = NDArray[np.int64]

PRIOR_MEAN = 1.0


@dataclass(frozen=True)
class Play:
    """The information that a policy has before a step. S is the number of states, A the number of actions.

    Attributes:
        transitions: how often each next state has followed so far, [num_mdps, S, A, S].
        reward_sums: rewards received so far, [num_mdps, S, A].
        episode: number of the episode, from 0.
        step: number of the next step in the episode, from 0.
        horizon: steps per episode.
        states: current state of each MDP, [num_mdps].
        last_actions: [num_mdps]; 0 before the first step of the trial.
        last_rewards: [num_mdps]; 0 before the first step of the trial.
    """

    transitions: Floats
    reward_sums: Floats
    episode: int
    step: int
    horizon: int
    states: Numbers
    last_actions: Numbers
    last_rewards: Floats


Policy: TypeAlias = Callable[[Play], Numbers]
"""Returns the actions, [num_mdps]. A policy with a memory must clear it at step 0 of episode 0."""
Model: TypeAlias = Callable[[Play], tuple[Floats, Floats]]
"""Returns next-state probabilities [num_mdps, S, A, S] and mean rewards [num_mdps, S, A] to plan with."""


def stack(mdps: Sequence[MDP]) -> tuple[Floats, Floats]:
    """Next-state probabilities [num_mdps, S, A, S] and mean rewards [num_mdps, S, A]."""
    transitions, mean_rewards = zip(*(mdp.arrays for mdp in mdps), strict=True)
    return np.stack(transitions), np.stack(mean_rewards)


def simulate(policy: Policy, transitions: Floats, mean_rewards: Floats, uniforms: Floats, noise: Floats) -> Floats:
    """Plays whole trials. Every episode starts in state 0.

    Args:
        policy: chooses the actions.
        transitions: next-state probabilities, [num_mdps, S, A, S].
        mean_rewards: [num_mdps, S, A].
        uniforms: uniform numbers in [0, 1), [num_mdps, num_episodes, horizon]; the next state is the first one whose
            cumulative probability exceeds the number.
        noise: standard normal numbers of the same shape, added to the mean rewards.

    Returns:
        Rewards, [num_mdps, num_episodes, horizon].
    """
    num_mdps, num_episodes, horizon = uniforms.shape
    rows = np.arange(num_mdps)
    cumulative = np.cumsum(transitions, -1)[..., :-1]
    seen, reward_sums = np.zeros_like(transitions), np.zeros_like(mean_rewards)
    rewards = np.zeros((num_episodes, horizon, num_mdps))
    actions, received = np.zeros(num_mdps, np.int64), np.zeros(num_mdps)
    for episode in range(num_episodes):
        states = np.zeros(num_mdps, np.int64)
        for step in range(horizon):
            actions = policy(Play(seen, reward_sums, episode, step, horizon, states, actions, received))
            received = mean_rewards[rows, states, actions] + noise[:, episode, step]
            followed = (cumulative[rows, states, actions] <= uniforms[:, episode, step, np.newaxis]).sum(1)
            seen[rows, states, actions, followed] += 1.0
            reward_sums[rows, states, actions] += received
            rewards[episode, step] = received
            states = followed
    return rewards.transpose(2, 0, 1)


def value_iteration(transitions: Floats, mean_rewards: Floats, horizon: int) -> tuple[Floats, Numbers]:
    """The optimum of known MDPs with a finite horizon.

    Returns:
        Expected return of an episode from each state, [num_mdps, S], and the best action at each step in each state,
        [horizon, num_mdps, S].
    """
    num_mdps, num_states, num_actions = mean_rewards.shape
    # One matrix product per MDP and step.
    flat = transitions.reshape(num_mdps, num_states * num_actions, num_states)
    values = np.zeros((num_mdps, num_states))
    actions = np.zeros((horizon, num_mdps, num_states), np.int64)
    for step in reversed(range(horizon)):
        action_values = mean_rewards + (flat @ values[..., np.newaxis]).reshape(mean_rewards.shape)
        actions[step] = action_values.argmax(-1)
        values = action_values.max(-1)
    return values, actions


def planner(model: Model, *, every_step: bool = False) -> Policy:
    """Plans the rest of an episode by value iteration with `model`: once before it, or again at `every_step`."""
    plan = np.zeros((0, 0, 0), np.int64)

    def policy(play: Play) -> Numbers:
        nonlocal plan
        planned = 0 if every_step else play.step
        if planned == 0:
            _, plan = value_iteration(*model(play), play.horizon - play.step)
        actions: Numbers = plan[planned, np.arange(len(play.states)), play.states]
        return actions

    return policy


def uniform(rng: np.random.Generator) -> Policy:
    """Acts at random."""
    return lambda play: rng.integers(play.reward_sums.shape[2], size=len(play.states))


def posterior_mean(play: Play) -> tuple[Floats, Floats]:
    """The greedy model: the means of the posterior."""
    pulls = play.transitions.sum(-1)
    transitions = (play.transitions + 1.0) / (pulls[..., np.newaxis] + play.transitions.shape[-1])
    return transitions, (play.reward_sums + PRIOR_MEAN) / (pulls + 1.0)


def bonus(scale: float = 0.5) -> Model:
    """Posterior means; a state and action tried n times has a bonus of scale / sqrt(1 + n) on its reward."""

    def model(play: Play) -> tuple[Floats, Floats]:
        transitions, mean_rewards = posterior_mean(play)
        return transitions, mean_rewards + scale / np.sqrt(1.0 + play.transitions.sum(-1))

    return model


def posterior_sample(rng: np.random.Generator) -> Model:
    """An MDP drawn from the posterior.

    Source: Strens, "A Bayesian Framework for Reinforcement Learning", ICML 2000; Osband, Russo, Van Roy, "(More)
    Efficient Reinforcement Learning via Posterior Sampling", 2013, arXiv:1306.0940.
    """

    def model(play: Play) -> tuple[Floats, Floats]:
        _, mean_rewards = posterior_mean(play)
        # Gamma numbers, divided by their sum, are a draw from the Dirichlet distribution.
        transitions = rng.standard_gamma(play.transitions + 1.0)
        transitions /= transitions.sum(-1, keepdims=True)
        deviation = 1.0 / np.sqrt(1.0 + play.transitions.sum(-1))
        return transitions, mean_rewards + deviation * rng.standard_normal(mean_rewards.shape)

    return model
