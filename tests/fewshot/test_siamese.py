"""Siamese networks against worked numbers and plain loops over pairs."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

from metarl.fewshot.base.examples import ExampleSpaces
from metarl.fewshot.base.learner import ExampleBatch
from metarl.fewshot.siamese import Siamese, pair_loss

PLANE = ExampleSpaces((2,), 2, True, train_ways=2)


def plane_learner(new_learner: Any) -> Any:
    """Log-odds of "same" are 1 - 2 |difference of x| - |difference of y|."""
    learner = new_learner(Siamese, PLANE, encoder="torch.nn:Identity")
    weights = {"verdict.weight": torch.tensor([[-2.0, -1.0]]), "verdict.bias": torch.tensor([1.0])}
    learner.load_state_dict({**learner.state_dict(), "parameters": weights})
    return learner


def batch(points: list[list[float]], labels: list[int]) -> ExampleBatch:
    inputs, targets = torch.tensor([points]), torch.tensor([labels])
    return ExampleBatch(inputs, targets, targets)


def test_the_decision_among_the_classes_by_hand(new_learner: Any, logits_of: Any) -> None:
    """(1, 1) has log-odds 1 - 2 - 1 = -2 and 1 - 2 - 0 = -1 with class 0, on average -1.5, and 1 - 4 - 1 = -4 with
    class 1."""
    learner = plane_learner(new_learner)
    support = batch([[0.0, 0.0], [3.0, 2.0], [2.0, 1.0]], [0, 1, 0])
    query = batch([[1.0, 1.0], [3.0, 2.0]], [0, 1])
    state = learner.adapt(learner.begin(1), support, step=0)
    logits = logits_of(learner, state, query)[0]
    torch.testing.assert_close(logits[0], torch.tensor([-1.5, -4.0]))
    torch.testing.assert_close(logits[1], torch.tensor([((1 - 6 - 2) + (1 - 2 - 1)) / 2, 1.0]))
    assert learner.score(state, query).tolist() == [1.0]
    assert learner.score(state, query._replace(targets=1 - query.targets)).tolist() == [0.0]


def plain_pair_loss(odds: torch.Tensor, labels: list[int]) -> float:
    """Half the mean over pairs of one class, half that over the others; nothing with itself."""
    same, apart = [], []
    for i, j in itertools.permutations(range(len(labels)), 2):
        probability = 1.0 / (1.0 + math.exp(-float(odds[i, j])))
        if labels[i] == labels[j]:
            same.append(-math.log(probability))
        else:
            apart.append(-math.log(1.0 - probability))
    return 0.5 * sum(same) / len(same) + 0.5 * sum(apart) / len(apart)


@pytest.mark.parametrize("labels", [[0, 1, 0, 1], [0, 0, 0, 0, 0, 1, 2]], ids=["balanced", "unbalanced"])
def test_pairs_of_one_class_weigh_as_much_as_all_others(labels: list[int]) -> None:
    odds = torch.randn(len(labels), len(labels), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = pair_loss(odds, torch.tensor(labels))
    assert float(found) == pytest.approx(plain_pair_loss(odds, labels))
    odds.diagonal().copy_(torch.full((len(labels),), 50.0))
    assert float(pair_loss(odds, torch.tensor(labels))) == pytest.approx(float(found))  # no pair with itself


def test_the_weights_of_the_pairs_are_half_and_half() -> None:
    odds = torch.zeros(6, 6, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 0, 0, 0, 1, 2])
    (gradient,) = torch.autograd.grad(pair_loss(odds, labels), odds)
    same = labels.unsqueeze(0) == labels.unsqueeze(1)
    assert float(gradient[same].sum()) == pytest.approx(-0.25)  # half of sigmoid(0) - 1
    assert float(gradient[~same].sum()) == pytest.approx(0.25)
    assert gradient.diagonal().tolist() == [0.0] * 6


def test_an_episodes_loss_is_over_support_and_query_together(new_learner: Any, new_batches: Any, task_of: Any) -> None:
    learner = new_learner(Siamese, ExampleSpaces((6,), 3, True, train_ways=3), hidden_sizes=(4,), shaken=0.3)
    support, query = (task_of(part) for part in new_batches())
    loss, outcome = learner.episode_loss(learner.parameters, (support,), query)
    rows = learner.encoder(learner.parameters, torch.cat([support.inputs, query.inputs]))
    weight, bias = (learner.parameters[f"verdict.{end}"] for end in ("weight", "bias"))
    odds = torch.tensor([[float(weight[0] @ (a - b).abs() + bias) for b in rows] for a in rows])
    labels = [*support.targets.tolist(), *query.targets.tolist()]
    assert float(loss) == pytest.approx(plain_pair_loss(odds, labels), rel=1e-4)
    count, hits = len(support.targets), 0
    for i, target in enumerate(query.targets.tolist(), start=count):
        means = [
            sum(float(odds[i, j]) for j in range(count) if labels[j] == label) / labels[:count].count(label)
            for label in range(3)
        ]
        hits += means.index(max(means)) == target
    assert float(outcome.score) == pytest.approx(hits / len(query.targets))


def test_a_pair_has_no_order(new_learner: Any) -> None:
    learner = plane_learner(new_learner)
    left, right = torch.randn(2, 4, 2, generator=torch.Generator().manual_seed(0))
    odds = learner.same(learner.parameters, left, right)
    torch.testing.assert_close(odds, learner.same(learner.parameters, right, left).mT)
    assert float(odds[0, 1]) == pytest.approx(
        1.0 - 2.0 * abs(float(left[0, 0] - right[1, 0])) - abs(float(left[0, 1] - right[1, 1])), rel=1e-5
    )


def test_untrained_the_nearest_is_the_likeliest(new_learner: Any, new_batches: Any) -> None:
    learner = new_learner(Siamese, ExampleSpaces((6,), 3, True, train_ways=3), hidden_sizes=(32,))
    support, query = new_batches(tasks=30)
    assert float(learner.score(learner.adapt(learner.begin(30), support, step=0), query).mean()) > 0.8
