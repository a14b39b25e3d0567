"""The inner losses and the exploration term against their own targets, every trajectory of a tiny MDP enumerated.

The MDP has two states, two actions and a fixed horizon; the policy is a softmax of a table. What is tested is what MAML
trains with: `inner_loss` and the outer step's gradient, on batches that hold one support set per task.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from metarl.agents.maml import MAML, MAMLConfig
from metarl.core.data import Episodes
from metarl.core.learner import Spaces
from metarl.gradients.lifting import over_tasks
from metarl.gradients.vectors import flatten, unflatten
from metarl.rl.policy_gradient import PolicyBatch

INNER_LR = 0.7


class MDP(NamedTuple):
    """start [2], moves [2, 2, 2] from (state, action) to state, rewards [2, 2], baseline [H, 2]; its horizon is H."""

    start: Tensor
    moves: Tensor
    rewards: Tensor
    baseline: Tensor

    @property
    def horizon(self) -> int:
        return len(self.baseline)


class Path(NamedTuple):
    states: tuple[int, ...]
    actions: tuple[int, ...]


def make_mdp(seed: int, horizon: int, *, certain: bool = False) -> MDP:
    """A random MDP. If `certain`, it starts in state 0 and is deterministic, so that few trajectories are possible."""
    rng = torch.Generator().manual_seed(seed)
    start, moves = (torch.rand(shape, generator=rng, dtype=torch.float64) + 0.1 for shape in ((2,), (2, 2, 2)))
    start, moves = start / start.sum(), moves / moves.sum(-1, keepdim=True)
    if certain:
        one = torch.tensor([1.0, 0.0], dtype=torch.float64)
        start, moves = one, torch.stack([torch.stack([one, one.flip(0)]), torch.stack([one.flip(0), one])])
    rewards, baseline = (torch.randn(shape, generator=rng, dtype=torch.float64) for shape in ((2, 2), (horizon, 2)))
    return MDP(start, moves, rewards, baseline)


def make_learner(**settings: Any) -> MAML:
    config = MAMLConfig(hidden_sizes=(), inner_lr=INNER_LR, **settings)
    spaces = Spaces(observation_size=2, action_size=2, discrete=True)
    learner = MAML(config, spaces, generator=torch.Generator().manual_seed(0))
    learner.load_state_dict({"parameters": {name: value.double() for name, value in learner.parameters.items()}})
    return learner


def log_policy(vector: Tensor) -> Tensor:
    """[state, action] log-probabilities of the flat parameters: weights [action, state], then biases [action]."""
    return (vector[:4].reshape(2, 2).T + vector[4:]).log_softmax(-1)


def paths(mdp: MDP) -> list[Path]:
    """All possible trajectories."""
    found = []
    for states in itertools.product((0, 1), repeat=mdp.horizon):
        for actions in itertools.product((0, 1), repeat=mdp.horizon):
            path = Path(states, actions)
            if float(luck(mdp, path)) > 0.0:
                found.append(path)
    return found


def luck(mdp: MDP, path: Path) -> Tensor:
    """The environment's part of a trajectory's probability."""
    value = mdp.start[path.states[0]]
    for t in range(mdp.horizon - 1):
        value = value * mdp.moves[path.states[t], path.actions[t], path.states[t + 1]]
    return value


def probability(mdp: MDP, path: Path, vector: Tensor) -> Tensor:
    policy = log_policy(vector)
    return luck(mdp, path) * torch.stack([policy[s, a] for s, a in zip(*path, strict=True)]).sum().exp()


def values(mdp: MDP, vector: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The expected return by dynamic programming, and [state, action] values from the first step to the last."""
    policy, following, found = log_policy(vector).exp(), torch.zeros(2, dtype=torch.float64), []
    for _ in range(mdp.horizon):
        found.append(mdp.rewards + mdp.moves @ following)
        following = (policy * found[-1]).sum(-1)
    return mdp.start @ following, found[::-1]


def marginals(mdp: MDP, vector: Tensor) -> list[Tensor]:
    """[state] probabilities at every step."""
    policy, found = log_policy(vector).exp(), [mdp.start]
    for _ in range(mdp.horizon - 1):
        found.append(torch.einsum("s,sa,sat->t", found[-1], policy, mdp.moves))
    return found


def make_batch(mdp: MDP, sets: list[tuple[Path, ...]], vectors: Tensor) -> PolicyBatch:
    """One task per set of trajectories, acted by `vectors` [num_sets, size]; advantages are returns less the baseline,
    not standardised."""
    rows: dict[str, list[Any]] = {"states": [], "actions": [], "log_probs": [], "advantages": [], "starts": []}
    totals = []
    for paths_, vector in zip(sets, vectors, strict=True):
        policy = log_policy(vector)
        row: dict[str, list[Any]] = {name: [] for name in rows}
        for number, path in enumerate(paths_):
            rewards = [mdp.rewards[s, a] for s, a in zip(*path, strict=True)]
            for t, (s, a) in enumerate(zip(*path, strict=True)):
                row["states"].append(s)
                row["actions"].append(a)
                row["log_probs"].append(policy[s, a].detach())
                row["advantages"].append(torch.stack(rewards[t:]).sum() - mdp.baseline[t, s])
                row["starts"].append(number * mdp.horizon)
        for name in ("log_probs", "advantages"):
            row[name] = torch.stack(row[name])  # type: ignore[assignment]
        for name, value in row.items():
            rows[name].append(value)
        totals.append(torch.stack([mdp.rewards[list(p.states), list(p.actions)].sum() for p in paths_]).mean())
    log_probs = torch.stack(rows["log_probs"])
    return PolicyBatch(
        observations=torch.eye(2, dtype=torch.float64)[torch.tensor(rows["states"])],
        actions=torch.tensor(rows["actions"]),
        log_probs=log_probs,
        advantages=torch.stack(rows["advantages"]),
        mask=torch.ones_like(log_probs),
        starts=torch.tensor(rows["starts"]),
        mean_return=torch.stack(totals),
        return_scale=torch.full((len(sets),), float(mdp.horizon), dtype=torch.float64),
    )


def expected_loss(estimator: str, mdp: MDP, num_trajectories: int) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """The expectation of the inner loss over support sets that the returned parameters act, as a function of those it
    is evaluated at; times the horizon, since losses are means over steps and returns are sums."""
    learner = make_learner(estimator=estimator)
    old = flatten(learner.parameters)
    sets = list(itertools.product(paths(mdp), repeat=num_trajectories))
    weights = torch.stack([torch.stack([probability(mdp, path, old) for path in s]).prod() for s in sets])
    assert float(weights.sum()) == pytest.approx(1.0, abs=1e-12)
    batch = make_batch(mdp, sets, old.expand(len(sets), -1))

    def loss(vector: Tensor) -> Tensor:
        state = learner.begin(len(sets), parameters=unflatten(vector, learner.parameters))
        return mdp.horizon * (weights * over_tasks(learner.inner_loss, state, batch)).sum()

    return loss, old


def derivatives(function: Callable[[Tensor], Tensor], at: Tensor) -> tuple[Tensor, Tensor]:
    gradient: Tensor = torch.autograd.functional.jacobian(function, at)
    hessian: Tensor = torch.autograd.functional.hessian(function, at)
    return gradient, hessian


def objective(mdp: MDP) -> Callable[[Tensor], Tensor]:
    return lambda vector: values(mdp, vector)[0]


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("horizon", "num_trajectories"), [(3, 1), (2, 2)])
def test_dice_has_the_gradient_and_the_hessian_of_the_return(horizon: int, num_trajectories: int) -> None:
    mdp = make_mdp(1, horizon, certain=num_trajectories > 1)
    loss, old = expected_loss("dice", mdp, num_trajectories)
    for found, expected in zip(derivatives(loss, old), derivatives(objective(mdp), old), strict=True):
        close(-found, expected)


def closed_form(estimator: str, mdp: MDP, old: Tensor) -> Callable[[Tensor], Tensor]:
    """The expectation of minus a biased loss: its states and values are those of the policy that acted."""
    _, action_values = values(mdp, old)
    behaviour = log_policy(old).exp()

    def function(vector: Tensor) -> Tensor:
        policy = log_policy(vector)
        weight = behaviour * policy if estimator == "log-likelihood" else policy.exp()
        advantages = [q - b.unsqueeze(-1) for q, b in zip(action_values, mdp.baseline, strict=True)]
        parts = [d @ (weight * a).sum(-1) for d, a in zip(marginals(mdp, old), advantages, strict=True)]
        return torch.stack(parts).sum()

    return function


@pytest.mark.parametrize("estimator", ["likelihood-ratio", "log-likelihood"])
@pytest.mark.parametrize(("horizon", "num_trajectories"), [(3, 1), (2, 2)])
def test_the_other_losses_have_the_gradient_and_a_hessian_of_their_own(
    estimator: str, horizon: int, num_trajectories: int
) -> None:
    mdp = make_mdp(1, horizon, certain=num_trajectories > 1)
    loss, old = expected_loss(estimator, mdp, num_trajectories)
    (gradient, hessian), (slope, curvature) = derivatives(loss, old), derivatives(closed_form(estimator, mdp, old), old)
    close(-gradient, slope)
    close(-hessian, curvature)
    true_gradient, true_hessian = derivatives(objective(mdp), old)
    close(-gradient, true_gradient)
    bias = float((hessian + true_hessian).norm() / true_hessian.norm())
    print(f"{estimator}, horizon {horizon}: the Hessian is off by {bias:.2f} of its norm")
    assert bias > 0.1


def test_dice_weighs_every_trajectory_by_itself_and_is_the_magic_box_where_it_acted() -> None:
    mdp = make_mdp(2, 3)
    learner = make_learner(estimator="dice")
    old = flatten(learner.parameters)
    some = paths(mdp)[5:40:7]
    together = make_batch(mdp, [tuple(some)], old.unsqueeze(0))
    alone = make_batch(mdp, [(path,) for path in some], old.expand(len(some), -1))

    def loss(batch: PolicyBatch, vector: Tensor) -> Tensor:
        state = learner.begin(len(batch.mask), parameters=unflatten(vector, learner.parameters))
        return over_tasks(learner.inner_loss, state, batch).mean()  # type: ignore[no-any-return]

    def magic(vector: Tensor) -> Tensor:
        policy, total = log_policy(vector), torch.zeros((), dtype=torch.float64)
        for path in some:
            taken = torch.stack([policy[s, a] for s, a in zip(*path, strict=True)]).cumsum(0)
            boxes = (taken - taken.detach()).exp()
            for t in range(mdp.horizon):
                advantage = sum(mdp.rewards[path.states[u], path.actions[u]] for u in range(t, mdp.horizon))
                advantage = advantage - mdp.baseline[t, path.states[t]]
                total = total - (boxes[t] - (boxes[t - 1] if t else 1.0)) * advantage
        return total / (len(some) * mdp.horizon)

    elsewhere = old + 0.3 * torch.randn(6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    close(loss(together, elsewhere), loss(alone, elsewhere))
    for found, expected in zip(derivatives(lambda v: loss(together, v), old), derivatives(magic, old), strict=True):
        close(found, expected)


def expected_gradients(mdps: list[MDP], num_steps: int, **settings: Any) -> Tensor:
    """The expectation of the outer step's gradient, one trajectory in each support and query, one task per MDP."""
    learner = make_learner(num_adaptation_steps=num_steps, **settings)
    total = torch.zeros(6, dtype=torch.float64)
    for choice in itertools.product(*(itertools.product(paths(mdp), repeat=num_steps + 1) for mdp in mdps)):
        state, support, weight = learner.begin(len(mdps)), [], torch.ones((), dtype=torch.float64)
        for step in range(num_steps + 1):
            vectors = torch.stack([flatten({n: v[i] for n, v in state.items()}) for i in range(len(mdps))])
            parts = [make_batch(mdp, [(choice[i][step],)], vectors[i : i + 1]) for i, mdp in enumerate(mdps)]
            support.append(PolicyBatch(*(torch.cat(fields) for fields in zip(*parts, strict=True))))
            for i, mdp in enumerate(mdps):
                weight = weight * probability(mdp, choice[i][step], vectors[i])
            if step < num_steps:
                state = learner.adapt(state, support[-1], step=step)
        slots = tuple(range(len(mdps)))
        episodes = Episodes(slots, slots, tuple(support[:-1]), support[-1], state, (), 0, ())
        total += weight * mdps[0].horizon * learner.outer_problem(episodes).gradient()
    return total


def adapted(mdp: MDP, path: Path, vector: Tensor) -> Tensor:
    """One gradient step written out on one trajectory; differentiable."""
    policy, total = log_policy(vector), torch.zeros((), dtype=torch.float64)
    for t, (s, a) in enumerate(zip(*path, strict=True)):
        rewards = [mdp.rewards[path.states[u], path.actions[u]] for u in range(t, mdp.horizon)]
        total = total + policy[s, a] * (torch.stack(rewards).sum() - mdp.baseline[t, s]) / mdp.horizon
    return vector + INNER_LR * torch.autograd.grad(total, vector, create_graph=True)[0]


def after_adaptation(mdp: MDP, num_steps: int, vector: Tensor, *, credit: bool = True) -> Tensor:
    """The return after adaptation, in expectation over the support sets; where not `credit`, their probabilities count
    as constants."""
    if num_steps == 0:
        return values(mdp, vector)[0]
    parts = []
    for path in paths(mdp):
        weight = probability(mdp, path, vector)
        weight = weight if credit else weight.detach()
        parts.append(weight * after_adaptation(mdp, num_steps - 1, adapted(mdp, path, vector), credit=credit))
    return torch.stack(parts).sum()


@pytest.mark.parametrize(("num_steps", "horizon"), [(1, 2), (2, 1)])
def test_with_the_exploration_term_the_meta_gradient_is_that_of_the_expected_return(
    num_steps: int, horizon: int
) -> None:
    mdp = make_mdp(4, horizon, certain=True)
    old = flatten(make_learner().parameters).requires_grad_()
    (target,) = torch.autograd.grad(after_adaptation(mdp, num_steps, old), old)
    (without,) = torch.autograd.grad(after_adaptation(mdp, num_steps, old, credit=False), old)
    close(expected_gradients([mdp], num_steps, exploration_term=True), target)
    close(expected_gradients([mdp], num_steps), without)
    left_out = float((target - without).norm() / target.norm())
    print(f"{num_steps} steps, horizon {horizon}: MAML leaves out {left_out:.2f} of the meta-gradient's norm")
    assert left_out > 0.05


def test_the_baseline_of_other_tasks_leaves_the_expectation_as_it_is() -> None:
    mdps = [make_mdp(seed, 1, certain=True) for seed in (4, 5)]
    old = flatten(make_learner().parameters).requires_grad_()
    (target,) = torch.autograd.grad(torch.stack([after_adaptation(mdp, 1, old) for mdp in mdps]).mean(), old)
    close(expected_gradients(mdps, 1, exploration_term=True), target)


def test_the_advantages_own_baseline_leaves_the_exploration_term_alone() -> None:
    mdp = make_mdp(4, 2, certain=True)
    learner = make_learner(exploration_term=True)
    plain = make_learner()
    batch = make_batch(mdp, [(path,) for path in paths(mdp)], flatten(learner.parameters).expand(4, -1))
    state = learner.adapt(learner.begin(4), batch, step=0)
    episodes = Episodes((0,) * 4, (0,) * 4, (batch,), batch, state, (), 0, ())
    muted = replace(episodes, query=batch._replace(advantages=torch.zeros_like(batch.advantages)))
    difference = learner.outer_problem(episodes).gradient() - plain.outer_problem(episodes).gradient()
    close(learner.outer_problem(muted).gradient(), difference)
