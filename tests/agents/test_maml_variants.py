"""First-order MAML, Meta-SGD, ANIL, CAVIA and MAML's options: each outer step against plain autograd and finite
differences of a policy and an adaptation that are written out here, in float64, one task at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from metarl.agents.anil import ANIL
from metarl.agents.cavia import CAVIA
from metarl.agents.fomaml import FOMAML
from metarl.agents.maml import MAML, credits_of
from metarl.agents.meta_sgd import MetaSGD
from metarl.core.data import Episodes, Trajectories
from metarl.core.errors import InputError
from metarl.core.learner import Spaces
from metarl.gradients.adaptation import Parameters
from metarl.gradients.lifting import over_tasks
from metarl.gradients.vectors import flatten, unflatten
from metarl.rl.policy_gradient import PolicyBatch
from metarl.rl.returns import discounted_returns, linear_baseline

NUM_TASKS, NUM_STEPS, INNER_LR = 4, 30, 0.3
GAUSSIAN = Spaces(observation_size=3, action_size=2, discrete=False)
CATEGORICAL = Spaces(observation_size=3, action_size=4, discrete=True)
SPACES = pytest.mark.parametrize("spaces", [GAUSSIAN, CATEGORICAL], ids=["gaussian", "categorical"])


class Case(NamedTuple):
    kind: type[MAML]
    settings: dict[str, Any]


CASES = {
    "fomaml": Case(FOMAML, {}),
    "meta-sgd": Case(MetaSGD, {}),
    "anil": Case(ANIL, {}),
    "cavia": Case(CAVIA, {"context_size": 3}),
    "likelihood-ratio": Case(MAML, {"estimator": "likelihood-ratio"}),
    "dice": Case(MAML, {"estimator": "dice"}),
    "e-maml": Case(MAML, {"exploration_term": True}),
    "e-fomaml": Case(FOMAML, {"exploration_term": True}),
    "e-meta-sgd, dice": Case(MetaSGD, {"exploration_term": True, "estimator": "dice"}),
    "e-cavia, likelihood-ratio": Case(
        CAVIA, {"context_size": 3, "exploration_term": True, "estimator": "likelihood-ratio"}
    ),
}
ALL = pytest.mark.parametrize("name", CASES)
STEPS = pytest.mark.parametrize("num_steps", [1, 2])


def make_learner(name: str, spaces: Spaces, **settings: Any) -> MAML:
    kind, own = CASES[name]
    given = {"hidden_sizes": (5,), "activation": "tanh", "inner_lr": INNER_LR, "chunk_steps": 60, **own, **settings}
    learner = kind(kind.Config(**given), spaces, generator=torch.Generator().manual_seed(0))
    rng = torch.Generator().manual_seed(11)
    shaken = {
        key: value.double() + 0.1 * torch.randn(value.shape, generator=rng, dtype=torch.float64)
        for key, value in learner.parameters.items()
    }
    learner.load_state_dict({"parameters": shaken})
    return learner


def make_batch(learner: MAML, state: Parameters, seed: int) -> PolicyBatch:
    """Three trajectories of different lengths per task; random observations and advantages."""
    rng = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([[10, 5, 15], [7, 12, 3], [1, 20, 4], [8, 8, 8]])
    mask = (torch.arange(NUM_STEPS) < lengths.sum(1, keepdim=True)).double()
    begins = [
        [b for n, b in zip(row, [0, row[0], row[0] + row[1]], strict=True) for _ in range(n)]
        for row in lengths.tolist()
    ]
    starts = torch.tensor([[*row, *[0] * (NUM_STEPS - len(row))] for row in begins])
    observations = torch.randn(NUM_TASKS, NUM_STEPS, 3, generator=rng, dtype=torch.float64)
    shape = (NUM_TASKS, NUM_STEPS) if learner.spaces.discrete else (NUM_TASKS, NUM_STEPS, 2)
    draw = torch.rand if learner.spaces.discrete else torch.randn
    acted, _ = learner.act(state, observations, draw(shape, generator=rng, dtype=torch.float64))
    advantages = torch.randn(NUM_TASKS, NUM_STEPS, generator=rng, dtype=torch.float64) * mask
    returns = torch.randn(NUM_TASKS, generator=rng, dtype=torch.float64)
    scale = 5.0 + torch.rand(NUM_TASKS, generator=rng, dtype=torch.float64)
    return PolicyBatch(observations, acted.actions, acted.log_probs, advantages, mask, starts, returns, scale)


def make_episodes(learner: MAML, num_steps: int) -> Episodes[Parameters, PolicyBatch]:
    state, support = learner.begin(NUM_TASKS), []
    for step in range(num_steps):
        support.append(make_batch(learner, state, seed=step))
        state = learner.adapt(state, support[-1], step=step)
    slots = tuple(range(NUM_TASKS))
    query = make_batch(learner, state, seed=99)
    return Episodes(slots, slots, tuple(support), query, state, (), 0, ())


def reference_distribution(weights: Parameters, inputs: Tensor) -> torch.distributions.Distribution:
    """One tanh layer, torch's own distributions."""
    named = {name.split(".", 1)[-1]: value for name, value in weights.items()}
    hidden = torch.tanh(inputs @ named["layers.0.weight"].T + named["layers.0.bias"])
    output = hidden @ named["layers.1.weight"].T + named["layers.1.bias"]
    if "log_std" not in weights:
        return torch.distributions.Categorical(logits=output)
    return torch.distributions.Independent(torch.distributions.Normal(output, weights["log_std"].exp()), 1)


class Reference:
    """Objective and KL of a meta-batch as plain functions of the flat meta-parameters."""

    def __init__(self, name: str, learner: MAML, episodes: Episodes[Parameters, PolicyBatch]) -> None:
        self.name, self.learner, self.episodes = name, learner, episodes
        self.kind, settings = CASES[name]
        self.estimator = settings.get("estimator", "log-likelihood")
        self.explores = "exploration_term" in settings

    def objective(self, vector: Tensor) -> Tensor:
        return self._mean(vector, self._task_objective)

    def kl(self, vector: Tensor) -> Tensor:
        return self._mean(vector, self._task_kl)

    def _mean(self, vector: Tensor, of_task: Callable[[Parameters, int], Tensor]) -> Tensor:
        with torch.enable_grad():  # the inner loop needs gradients even under no_grad
            leaf = vector if vector.requires_grad else vector.clone().requires_grad_()
            start = unflatten(leaf, self.learner.parameters)
            mean = torch.stack([of_task(start, task) for task in range(NUM_TASKS)]).mean()
        return mean if vector.requires_grad else mean.detach()

    def adapted(self, start: Parameters, task: int) -> list[Parameters]:
        """The parameters before each step and after the last; CAVIA's context has the name "context"."""
        state = {name: value for name, value in start.items() if not name.startswith("step_size.")}
        if self.kind is CAVIA:
            state["context"] = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        moving = list(state)
        if self.kind is CAVIA:
            moving = ["context"]
        if self.kind is ANIL:
            moving = [name for name in state if ".layers.1." in name or name == "log_std"]
        states = [state]
        for batch in self.episodes.support:
            loss = self._loss(state, of_task(batch, task))
            gradients = torch.autograd.grad(loss, [state[name] for name in moving], create_graph=True)
            state = dict(state)
            for name, gradient in zip(moving, gradients, strict=True):
                size = start["step_size." + name] if self.kind is MetaSGD else INNER_LR
                state[name] = state[name] - size * (gradient.detach() if self.kind is FOMAML else gradient)
            states.append(state)
        return states

    def distribution(self, state: Parameters, observations: Tensor) -> torch.distributions.Distribution:
        weights = {name: value for name, value in state.items() if name != "context"}
        if "context" in state:
            observations = torch.cat([observations, state["context"].expand(len(observations), 3)], 1)
        return reference_distribution(weights, observations)

    def _loss(self, state: Parameters, batch: PolicyBatch) -> Tensor:
        log_probs = self.distribution(state, batch.observations).log_prob(batch.actions)
        total = torch.zeros((), dtype=torch.float64)
        for t in [t for t in range(NUM_STEPS) if batch.mask[t] > 0]:
            if self.estimator == "log-likelihood":
                weight = log_probs[t]
            elif self.estimator == "likelihood-ratio":
                weight = (log_probs[t] - batch.log_probs[t]).exp()
            else:
                start = int(batch.starts[t])
                before = (log_probs[start:t] - batch.log_probs[start:t]).sum().exp()
                weight = (log_probs[start : t + 1] - batch.log_probs[start : t + 1]).sum().exp() - before
            total = total - weight * batch.advantages[t]
        return total / batch.mask.sum()

    def _task_objective(self, start: Parameters, task: int) -> Tensor:
        states, batch = self.adapted(start, task), of_task(self.episodes.query, task)
        log_probs = self.distribution(states[-1], batch.observations).log_prob(batch.actions)
        value = ((log_probs - batch.log_probs).exp() * batch.advantages)[batch.mask > 0].mean()
        if self.explores:
            returns = self.episodes.query.mean_return
            others = torch.stack([returns[i] for i in range(NUM_TASKS) if i != task]).mean()
            credit = (returns[task] - others) / batch.return_scale
            for state, support in zip(states, self.episodes.support, strict=False):
                own = of_task(support, task)
                log_ratio = self.distribution(state, own.observations).log_prob(own.actions) - own.log_probs
                value = value + credit * log_ratio[own.mask > 0].sum()
        return value

    def _task_kl(self, start: Parameters, task: int) -> Tensor:
        batch = of_task(self.episodes.query, task)
        old = self.distribution(
            {n: v[task] for n, v in self.episodes.state.items() if not n.startswith("step_size.")}, batch.observations
        )
        new = self.distribution(self.adapted(start, task)[-1], batch.observations)
        return torch.distributions.kl_divergence(old, new)[batch.mask > 0].mean()


def of_task(batch: PolicyBatch, task: int) -> PolicyBatch:
    return PolicyBatch(*(field[task] for field in batch))


def random_like(vector: Tensor, seed: int) -> Tensor:
    return torch.randn(vector.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@SPACES
@STEPS
@ALL
def test_the_gradient_and_the_value_of_a_candidate(name: str, num_steps: int, spaces: Spaces) -> None:
    learner = make_learner(name, spaces, num_adaptation_steps=num_steps)
    episodes = make_episodes(learner, num_steps)
    outer, reference = learner.outer_problem(episodes), Reference(name, learner, episodes)
    point = flatten(learner.parameters).requires_grad_()
    gradient = outer.gradient()
    expected = torch.autograd.grad(reference.objective(point), point)[0]
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)
    assert outer.value() == pytest.approx(float(reference.objective(point.detach())), rel=1e-12)
    start, direction = point.detach(), random_like(point, 7)
    candidate = start + 0.02 * direction
    value, kl = outer.evaluate(candidate)
    assert value == pytest.approx(float(reference.objective(candidate)), rel=1e-9)
    assert kl == pytest.approx(float(reference.kl(candidate)), rel=1e-9)
    if learner.first_order:  # the reference has second derivatives
        return
    numeric = (outer.evaluate(start + 1e-5 * direction)[0] - outer.evaluate(start - 1e-5 * direction)[0]) / 2e-5
    assert float(gradient @ direction) == pytest.approx(numeric, rel=1e-5)


@SPACES
@STEPS
@pytest.mark.parametrize("name", ["fomaml", "meta-sgd", "anil", "cavia", "dice"])
def test_the_product_is_that_of_triple_differentiation(name: str, num_steps: int, spaces: Spaces) -> None:
    learner = make_learner(name, spaces, num_adaptation_steps=num_steps)
    episodes = make_episodes(learner, num_steps)
    outer, reference = learner.outer_problem(episodes), Reference(name, learner, episodes)
    point = flatten(learner.parameters).requires_grad_()
    (slope,) = torch.autograd.grad(reference.kl(point), point, create_graph=True)
    assert float(slope.detach().abs().max()) < 1e-10
    for seed in range(3):
        direction = random_like(point, seed)
        (expected,) = torch.autograd.grad(slope, point, direction, retain_graph=True)
        torch.testing.assert_close(outer.product(direction), expected, rtol=1e-9, atol=1e-10)
        assert float(direction @ outer.product(direction)) >= 0.0


@pytest.mark.parametrize("name", ["meta-sgd", "anil", "cavia"])
def test_coarse_curvature_is_positive_and_updates_improve_within_the_trust_region(name: str) -> None:
    learner = make_learner(name, GAUSSIAN, num_adaptation_steps=2, curvature_every=3)
    episodes = make_episodes(learner, 2)
    outer, reference = learner.outer_problem(episodes), Reference(name, learner, episodes)
    before = flatten(learner.parameters)
    for seed in range(10):
        direction = random_like(before, seed)
        assert float(direction @ outer.product(direction)) >= 0.0
    metrics = learner.meta_update(episodes)
    after = flatten(learner.parameters)
    gained = float(reference.objective(after) - reference.objective(before))
    assert metrics["surrogate_improvement"] == pytest.approx(gained, rel=1e-9)
    assert gained > 0.0
    assert metrics["approx_kl"] == pytest.approx(float(reference.kl(after)), rel=1e-9)
    assert 0.0 < metrics["approx_kl"] <= learner.config.max_kl


def test_fomaml_takes_the_gradient_at_the_adapted_parameters() -> None:
    learner, full = (make_learner(name, GAUSSIAN) for name in ("fomaml", "likelihood-ratio"))
    episodes = make_episodes(learner, 1)
    expected = torch.zeros_like(flatten(learner.parameters))
    for task in range(NUM_TASKS):
        adapted = {name: value[task].clone().requires_grad_() for name, value in episodes.state.items()}
        batch = of_task(episodes.query, task)
        log_probs = reference_distribution(adapted, batch.observations).log_prob(batch.actions)
        value = ((log_probs - batch.log_probs).exp() * batch.advantages)[batch.mask > 0].mean()
        expected += flatten(dict(enumerate(torch.autograd.grad(value, [*adapted.values()])))) / NUM_TASKS  # type: ignore[arg-type]
    gradient = learner.outer_problem(episodes).gradient()
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)
    assert float((gradient - full.outer_problem(episodes).gradient()).norm()) > 1e-3


def test_learned_step_sizes_start_at_inner_lr_and_the_schedule_scales_them() -> None:
    learner = MetaSGD(MetaSGD.Config(hidden_sizes=(5,), inner_lr=0.25), GAUSSIAN, generator=torch.Generator())
    sizes = {name: value for name, value in learner.parameters.items() if name.startswith("step_size.")}
    assert {name.removeprefix("step_size.") for name in sizes} == learner.parameters.keys() - sizes.keys()
    assert all(bool((value == 0.25).all()) for value in sizes.values())
    learner = make_learner("meta-sgd", GAUSSIAN, num_adaptation_steps=2, later_step_scale=0.5)
    state = learner.begin(NUM_TASKS)
    batch = make_batch(learner, state, seed=0)
    moved = [flatten(learner.adapt(state, batch, step=step)) - flatten(state) for step in range(4)]
    torch.testing.assert_close(moved[0], moved[1], rtol=0, atol=0)
    torch.testing.assert_close(moved[2], 0.5 * moved[0])
    torch.testing.assert_close(moved[3], 0.5 * moved[0])


def test_meta_sgd_learns_its_step_sizes_and_says_how_they_are() -> None:
    learner = make_learner("meta-sgd", GAUSSIAN)
    before = dict(learner.parameters)
    metrics = learner.meta_update(make_episodes(learner, 1))
    names = [name for name in before if name.startswith("step_size.")]
    assert all(not torch.equal(learner.parameters[name], before[name]) for name in before)
    sizes = torch.cat([learner.parameters[name].flatten() for name in names])
    assert metrics["step_size_mean"] == pytest.approx(float(sizes.mean()))
    assert (metrics["step_size_min"], metrics["step_size_max"]) == (float(sizes.min()), float(sizes.max()))


@SPACES
def test_anil_adapts_the_last_layer_alone_and_learns_all(spaces: Spaces) -> None:
    learner = make_learner("anil", spaces)
    before = learner.begin(NUM_TASKS)
    episodes = make_episodes(learner, 1)
    changed = {name for name, value in episodes.state.items() if not torch.equal(value, before[name])}
    head = "logits" if spaces.discrete else "mean"
    own = set() if spaces.discrete else {"log_std"}
    assert changed == {f"{head}.layers.1.weight", f"{head}.layers.1.bias"} | own
    learner.meta_update(episodes)
    assert all(not torch.equal(value, before[name][0]) for name, value in learner.parameters.items())


@SPACES
def test_cavia_adapts_the_context_alone_and_never_learns_it(spaces: Spaces) -> None:
    learner = make_learner("cavia", spaces)
    before = learner.begin(NUM_TASKS)
    assert torch.equal(before["context"], torch.zeros(NUM_TASKS, 3, dtype=torch.float64))
    episodes = make_episodes(learner, 2)
    assert {name for name, value in episodes.state.items() if not torch.equal(value, before[name])} == {"context"}
    learner.meta_update(episodes)
    assert "context" not in learner.parameters
    assert torch.equal(learner.begin(2)["context"], torch.zeros(2, 3, dtype=torch.float64))
    assert all(not torch.equal(value, before[name][0]) for name, value in learner.parameters.items())


@SPACES
@pytest.mark.parametrize("name", ["meta-sgd", "anil", "cavia"])
def test_adapted_policies_as_modules_and_state_round_trips(name: str, spaces: Spaces) -> None:
    learner = make_learner(name, spaces)
    episodes = make_episodes(learner, 1)
    observations = episodes.query.observations
    expected = over_tasks(learner.distribution, episodes.state, observations)
    for task in range(NUM_TASKS):
        found = learner.policy(episodes.state, task).double()(observations[task])
        torch.testing.assert_close(found[0], expected[0][task], rtol=1e-5, atol=1e-6)
    fresh = type(learner)(learner.config, spaces, generator=torch.Generator().manual_seed(42))
    fresh.load_state_dict(learner.state_dict())
    assert list(fresh.parameters) == list(learner.parameters)
    assert all(torch.equal(value, fresh.parameters[key]) for key, value in learner.parameters.items())


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        (CAVIA, {"context_size": 0}, r"^agent.context_size = 0: must be an integer >= 1$"),
        (
            MAML,
            {"estimator": "lvc"},
            r"^agent.estimator = 'lvc': must be one of 'log-likelihood', 'likelihood-ratio', ",
        ),
        (MAML, {"estimator": "dice", "curvature_every": 5}, r"^agent.curvature_every = 5: must be 1 with estimator "),
    ],
)
def test_settings_out_of_range(kind: type[MAML], settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        kind.Config(**settings)


def test_credits_are_the_return_above_that_of_the_other_tasks_in_units_of_the_surrogate() -> None:
    query = make_batch(learner := make_learner("e-maml", GAUSSIAN), learner.begin(NUM_TASKS), seed=0)
    returns, scale = torch.tensor([1.0, 2.0, 6.0, 3.0]), torch.tensor([2.0, 4.0, 0.0, 1.0])
    credits = credits_of(query._replace(mean_return=returns, return_scale=scale))
    assert credits.tolist() == pytest.approx([(1 - 11 / 3) / 2, (2 - 10 / 3) / 4, 0.0, 3 - 3])
    alone = credits_of(query._replace(mean_return=returns[:1], return_scale=scale[:1]))
    assert alone.tolist() == [0.5]


def test_prepare_says_where_trajectories_start_and_what_a_unit_of_the_surrogate_is_worth() -> None:
    learner = make_learner("dice", GAUSSIAN)
    lengths = torch.tensor([[3, 0, 2], [1, 4, 1]])  # the second one diverged in its first step
    mask = (torch.arange(4) < lengths.unsqueeze(-1)).float()
    rewards = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0))
    data = Trajectories(
        observations=torch.zeros(2, 3, 4, 3),
        actions=torch.zeros(2, 3, 4, 2),
        rewards=rewards,
        terminated=torch.zeros(2, 3, 4, dtype=torch.bool),
        truncated=torch.zeros(2, 3, 4, dtype=torch.bool),
        mask=mask,
        log_probs=torch.zeros(2, 3, 4),
        last_observations=torch.zeros(2, 3, 3),
        diverged=lengths == 0,
        state=None,
    )
    batch = learner.prepare(data)
    assert batch.starts[0, :5].tolist() == [0, 0, 0, 3, 3]
    assert batch.starts[1].tolist() == [0, 1, 1, 1, 1, 5]
    returns = discounted_returns(rewards, mask, gamma=0.99)
    advantages = returns - linear_baseline(data.observations, returns, mask)
    for task, trajectories in ((0, 2), (1, 3)):
        live = advantages[task][mask[task] > 0]
        expected = float(live.std(correction=0)) * len(live) / trajectories
        assert float(batch.return_scale[task]) == pytest.approx(expected, rel=1e-4)
    thinned = batch.every(2)
    assert thinned.starts.shape == thinned.mask.shape == (2, 3)
