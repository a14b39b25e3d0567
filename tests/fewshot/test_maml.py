"""MAML, FOMAML and Meta-SGD against hand-worked numbers, plain autograd and finite differences in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from metarl.core.errors import InputError
from metarl.core.trees import tree_map
from metarl.fewshot.base.examples import ExampleSpaces
from metarl.fewshot.base.learner import ExampleBatch
from metarl.fewshot.fomaml import FOMAML
from metarl.fewshot.maml import MAML
from metarl.fewshot.meta_sgd import MetaSGD, MetaSGDConfig

VECTORS = ExampleSpaces((4,), 3, True, train_ways=3)
IMAGES = ExampleSpaces((1, 16, 16), 3, True, train_ways=3)
LINE = ExampleSpaces((1,), 1, False)
MODES = ("transductive", "support", "running", "none")
PROBLEMS = [("mlp", "none"), *(("conv4", mode) for mode in MODES)]
PROBLEM = pytest.mark.parametrize(("encoder", "mode"), PROBLEMS, ids=["-".join(p) for p in PROBLEMS])


def line_learner(new_learner: Any, kind: type[MAML], **settings: Any) -> Any:
    """w x + b with w = 3, b = 0."""
    learner = new_learner(kind, LINE, dtype=torch.float64, encoder="torch.nn:Identity", **settings)
    state = learner.state_dict()
    state["parameters"] |= {"head.weight": torch.full((1, 1), 3.0), "head.bias": torch.zeros(1)}
    state["parameters"] = {name: value.double() for name, value in state["parameters"].items()}
    learner.load_state_dict(state)
    return learner


def point(x: float, y: float) -> ExampleBatch:
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    return ExampleBatch(x * one, y * one, torch.zeros(1, 1, dtype=torch.int64))


# One step of 0.05 on (x, y) = (2, 1): the error is 5, the gradient (2 * 5 * 2, 2 * 5) = (20, 10), so w' = 2, b' = -0.5.
# At (1, 0.5) the error is 1 and the gradient (2, 2). Through the step, dw'/dw = 1 - 0.05 * 8, dw'/db = db'/dw =
# -0.05 * 4 and db'/db = 1 - 0.05 * 2: 2 * (0.6 - 0.2) = 0.8 and 2 * (0.9 - 0.2) = 1.4.


@pytest.mark.parametrize(("kind", "slopes"), [(MAML, (0.8, 1.4)), (FOMAML, (2.0, 2.0))])
def test_a_line_by_hand(kind: type[MAML], slopes: tuple[float, float], new_learner: Any) -> None:
    learner = line_learner(new_learner, kind, inner_lr=0.05)
    adapted = learner.adapt(learner.begin(1), point(2.0, 1.0), step=0)
    assert float(adapted.parameters["head.weight"]) == pytest.approx(2.0)
    assert float(adapted.parameters["head.bias"]) == pytest.approx(-0.5)
    assert float(learner.score(adapted, point(1.0, 0.5))) == pytest.approx(1.0)
    gradients, outcome = learner.meta_gradient((point(2.0, 1.0),), point(1.0, 0.5))
    assert float(gradients["head.weight"]) == pytest.approx(slopes[0])
    assert float(gradients["head.bias"]) == pytest.approx(slopes[1])
    assert float(outcome.loss) == pytest.approx(1.0)


def test_meta_sgd_by_hand(new_learner: Any) -> None:
    """d loss / d alpha = -g_in * g_out: -20 * 2 and -10 * 2; the weights' own slopes are MAML's."""
    learner = line_learner(new_learner, MetaSGD, initial_step_sizes=(0.05, 0.05))
    gradients, _ = learner.meta_gradient((point(2.0, 1.0),), point(1.0, 0.5))
    assert float(gradients["step_size.head.weight"]) == pytest.approx(-40.0)
    assert float(gradients["step_size.head.bias"]) == pytest.approx(-20.0)
    assert float(gradients["head.weight"]) == pytest.approx(0.8)
    assert float(gradients["head.bias"]) == pytest.approx(1.4)


Weights = dict[str, Tensor]


def plain_adapted(
    learner: Any, weights: Weights, support: ExampleBatch, steps: int, sizes: Callable[[str], Any]
) -> Weights:
    """ONE task's inner loop by plain autograd, differentiable."""
    for _ in range(steps):
        logits = learner.head(weights, learner.encoder(weights, support.inputs).flatten(1))
        loss = functional.cross_entropy(logits, support.targets)
        names = [name for name in weights if not name.startswith("step_size.")]
        gradients = torch.autograd.grad(loss, [weights[name] for name in names], create_graph=True, allow_unused=True)
        moved = {name: weights[name] - sizes(name) * g for name, g in zip(names, gradients, strict=True)}
        weights = {**weights, **moved}
    return weights


def plain_query_loss(learner: Any, weights: Weights, support: ExampleBatch, query: ExampleBatch, mode: str) -> Tensor:
    """As the batch-norm mode says, for the training of ONE task."""
    given = None
    if mode == "support":
        given = learner.encoder.recorded(weights, support.inputs, differentiable=True)[1]
    logits = learner.head(weights, learner.encoder(weights, query.inputs, statistics=given).flatten(1))
    return functional.cross_entropy(logits, query.targets)


def make(
    kind: type[MAML], encoder: str, mode: str, steps: int, new_learner: Any, new_batches: Any, **settings: Any
) -> tuple[Any, tuple[ExampleBatch, ...], ExampleBatch]:
    spaces = VECTORS if encoder == "mlp" else IMAGES
    few: dict[str, Any] = {"hidden_sizes": (5,)} if encoder == "mlp" else {"num_filters": 2}
    settings = {"encoder": encoder, "batch_norm": mode, "num_adaptation_steps": steps, **few, **settings}
    learner = new_learner(kind, spaces, dtype=torch.float64, shaken=0.3, **settings)
    support, query = new_batches(shape=spaces.input_shape, dtype=torch.float64)
    return learner, (support,) * steps, query


def mean_loss(learner: Any, weights: Weights, support: Any, query: ExampleBatch, mode: str, sizes: Any) -> float:
    """Of the meta-batch, task by task."""
    losses = []
    for task in range(len(query.targets)):
        known, asked = (tree_map(lambda v, task=task: v[task], batch) for batch in (support[0], query))  # type: ignore
        leaves = {name: value.clone().requires_grad_() for name, value in weights.items()}
        adapted = plain_adapted(learner, leaves, known, len(support), lambda name: sizes(leaves, name))  # noqa: B023
        losses.append(float(plain_query_loss(learner, adapted, known, asked, mode).detach()))
    return sum(losses) / len(losses)


def require_slopes(
    gradients: Weights, weights: Weights, loss: Callable[[Weights], float], *, every: bool, step: float = 1e-6
) -> None:
    """Central differences of `loss` along each coordinate, or along one random direction of each tensor."""
    rng = torch.Generator().manual_seed(3)
    assert gradients.keys() == weights.keys()
    for name, value in weights.items():
        if every:
            directions = list(torch.eye(value.numel(), dtype=torch.float64).view(-1, *value.shape))
        else:
            directions = [torch.randn(value.shape, generator=rng, dtype=torch.float64)]
        for direction in directions:
            ends = [loss({**weights, name: value + sign * step * direction}) for sign in (1.0, -1.0)]
            slope = (ends[0] - ends[1]) / (2.0 * step)
            assert float((gradients[name] * direction).sum()) == pytest.approx(slope, rel=1e-5, abs=2e-8), name


@pytest.mark.parametrize("steps", [1, 2])
@PROBLEM
def test_the_meta_gradient_meets_finite_differences(
    encoder: str, mode: str, steps: int, new_learner: Any, new_batches: Any
) -> None:
    learner, support, query = make(MAML, encoder, mode, steps, new_learner, new_batches)
    gradients, outcome = learner.meta_gradient(support, query)

    def loss(weights: Weights) -> float:
        return mean_loss(learner, weights, support, query, mode, lambda _, name: learner.config.inner_lr)

    weights = dict(learner.parameters)
    assert float(outcome.loss.mean()) == pytest.approx(loss(weights), rel=1e-10)
    require_slopes(gradients, weights, loss, every=encoder == "mlp")


@pytest.mark.parametrize("steps", [1, 2])
def test_meta_sgds_gradient_meets_finite_differences(steps: int, new_learner: Any, new_batches: Any) -> None:
    learner, support, query = make(MetaSGD, "mlp", "none", steps, new_learner, new_batches, inner_lr=0.5)
    gradients, _ = learner.meta_gradient(support, query)
    weights = dict(learner.parameters)
    assert min(float(weights[name].min()) for name in weights if name.startswith("step_size.")) < 0  # of either sign

    def loss(moved: Weights) -> float:
        return mean_loss(learner, moved, support, query, "none", lambda leaves, name: 0.5 * leaves[f"step_size.{name}"])

    require_slopes(gradients, weights, loss, every=True)


@pytest.mark.parametrize("steps", [1, 2])
@PROBLEM
def test_fomaml_is_the_gradient_at_the_adapted_weights(
    encoder: str, mode: str, steps: int, new_learner: Any, new_batches: Any, task_of: Any
) -> None:
    learner, support, query = make(FOMAML, encoder, mode, steps, new_learner, new_batches)
    found, outcome = learner.meta_gradient(support, query)
    expected = dict.fromkeys(found, torch.zeros(()))
    for task in range(2):
        known, asked = task_of(support[0], task), task_of(query, task)
        weights = {name: value.clone().requires_grad_() for name, value in learner.parameters.items()}
        adapted = plain_adapted(learner, weights, known, steps, lambda _: learner.config.inner_lr)
        leaves = {name: value.detach().requires_grad_() for name, value in adapted.items()}
        loss = plain_query_loss(learner, leaves, known, asked, mode)
        assert float(outcome.loss[task]) == pytest.approx(float(loss.detach()))
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        expected = {name: expected[name] + g / 2 for name, g in zip(leaves, gradients, strict=True)}
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name])
    second, _ = make(MAML, encoder, mode, steps, new_learner, new_batches)[0].meta_gradient(support, query)
    apart = [float((second[name] - found[name]).norm()) for name in found]
    assert max(apart) > 1e-2
    plain = torch.func.grad(lambda w: learner.query_outcome(w, task_of(support[0]), task_of(query))[0])
    joint = plain(dict(learner.parameters))  # what joint training would follow: the gradient at the meta-weights
    assert max(float((joint[name] - found[name]).norm()) for name in found) > 1e-2


@pytest.mark.parametrize("kind", [MAML, FOMAML, MetaSGD])
def test_adapting_is_the_plain_inner_loop(kind: type[MAML], new_learner: Any, new_batches: Any, task_of: Any) -> None:
    learner, support, _ = make(kind, "mlp", "none", 1, new_learner, new_batches, inner_lr=0.2)
    state = learner.begin(2)
    for step in range(3):  # beyond meta-training's own number
        state = learner.adapt(state, support[0], step=step)
    for task in range(2):
        weights = {name: value.clone().requires_grad_() for name, value in learner.parameters.items()}
        sizes = {n: 0.2 * weights.get(f"step_size.{n}", torch.ones(())).detach() for n in weights}
        expected = plain_adapted(learner, weights, task_of(support[0], task), 3, sizes.__getitem__)
        for name, value in task_of(state.parameters, task).items():
            torch.testing.assert_close(value, expected[name].detach())


def test_an_adaptation_is_differentiable_where_it_is_asked_to_be(new_learner: Any, new_batches: Any) -> None:
    learner, support, query = make(MAML, "mlp", "none", 1, new_learner, new_batches)
    leaves = {name: value.clone().requires_grad_() for name, value in learner.parameters.items()}
    state = learner.adapt(learner.begin(2, parameters=leaves), support[0], step=0, differentiable=True)
    losses = [
        plain_query_loss(learner, tree_map(lambda v, i=i: v[i], state.parameters), support[0], asked, "none")  # type: ignore
        for i, asked in enumerate(tree_map(lambda v, i=i: v[i], query) for i in range(2))  # type: ignore[misc]
    ]
    gradients = torch.autograd.grad(sum(losses) / 2, list(leaves.values()))  # type: ignore[arg-type]
    expected, _ = learner.meta_gradient(support, query)
    for name, gradient in zip(leaves, gradients, strict=True):
        torch.testing.assert_close(gradient, expected[name])
    assert not learner.adapt(learner.begin(2), support[0], step=0).parameters["head.bias"].requires_grad


@PROBLEM
def test_query_labels_do_not_reach_the_adapted_weights(
    encoder: str, mode: str, new_learner: Any, new_batches: Any, task_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, support, query = make(MAML, encoder, mode, 2, new_learner, new_batches)
    known, asked = tuple(task_of(batch) for batch in support), task_of(query)
    seen: list[Weights] = []
    original = learner.query_outcome

    def watched(parameters: Weights, *batches: ExampleBatch) -> Any:
        seen.append(parameters)
        return original(parameters, *batches)

    monkeypatch.setattr(learner, "query_outcome", watched)
    weights = dict(learner.parameters)
    losses = []
    for labels in (asked.targets, asked.targets.roll(1)):
        losses.append(float(learner.episode_loss(weights, known, asked._replace(targets=labels))[0]))
    losses.append(float(learner.episode_loss(weights, known, asked._replace(inputs=asked.inputs + 1.0))[0]))
    assert len(set(losses)) == 3
    assert all(torch.equal(seen[0][name], other[name]) for other in seen[1:] for name in weights)


def test_a_class_stands_at_every_label_equally_often(characters: Any) -> None:
    """4,000 tasks of 5 of 40 classes: each class 100 times at each label; chi-squared with 160 degrees of freedom has
    mean 160 and deviation 18."""
    tasks = characters(num_ways=5).sample(4000, np.random.default_rng(0))
    ids = np.array([task.ids for task in tasks])
    counts = np.array([np.bincount(ids[:, label], minlength=40) for label in range(5)])
    assert (counts.sum(0) > 0).all()
    expected = counts.sum(0) / 5
    assert ((counts - expected) ** 2 / expected).sum() < 160 + 4 * 18


def test_step_sizes_start_as_configured_and_are_in_the_checkpoint(new_learner: Any) -> None:
    learner = new_learner(MetaSGD, VECTORS, hidden_sizes=(5,))
    state = learner.state_dict()
    names = [name for name in state["parameters"] if not name.startswith("step_size.")]
    sizes = [state["parameters"][f"step_size.{name}"] for name in names]
    assert all(size.shape == state["parameters"][name].shape for name, size in zip(names, sizes, strict=True))
    starts = {float(size.flatten()[0]) for size in sizes}
    assert all(float(size.min()) == float(size.max()) for size in sizes)  # one number for a tensor
    assert len(starts) == len(names)
    assert all(0.005 <= start <= 0.1 for start in starts)
    assert state["adam"]["first"].keys() == state["parameters"].keys()


def test_a_step_size_is_learned_and_may_turn_negative(new_learner: Any, as_episodes: Any) -> None:
    """Support and query say opposite things, so that the best step leads uphill on the support."""
    learner = line_learner(new_learner, MetaSGD, initial_step_sizes=(0.01, 0.01), outer_lr=0.01)
    metrics = [learner.meta_update(as_episodes(point(1.0, 9.0), point(1.0, -3.0))) for _ in range(5)]
    sizes = [float(learner.parameters[f"step_size.head.{name}"]) for name in ("weight", "bias")]
    assert max(sizes) < 0
    assert metrics[-1]["step_size_min"] == pytest.approx(min(sizes))
    assert metrics[-1]["step_size_mean"] == pytest.approx(sum(sizes) / 2)
    before = learner.begin(1)
    after = learner.adapt(before, point(1.0, 9.0), step=0)
    assert float(learner.score(after, point(1.0, 9.0))) > float(learner.score(before, point(1.0, 9.0)))


def test_misfits_are_refused(new_learner: Any) -> None:
    with pytest.raises(InputError, match=r"^task.train_ways = 20: must be task.num_ways = 5: the last layer has"):
        new_learner(MAML, ExampleSpaces((4,), 5, True, train_ways=20))
    with pytest.raises(InputError, match=r"^agent.inner_lr = 0: must be a positive number$"):
        new_learner(MAML, VECTORS, inner_lr=0)
    with pytest.raises(InputError, match=r"^agent.num_adaptation_steps = 0: must be an integer >= 1$"):
        new_learner(FOMAML, VECTORS, num_adaptation_steps=0)
    with pytest.raises(InputError, match=r"^agent.initial_step_sizes = \(0.1, 0.05\): must be two finite numbers"):
        MetaSGDConfig(initial_step_sizes=(0.1, 0.05))
