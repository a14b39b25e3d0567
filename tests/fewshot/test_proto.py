"""Prototypical networks against worked numbers and plain loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from metarl.core.errors import InputError
from metarl.fewshot.base.examples import ExampleSpaces
from metarl.fewshot.base.learner import ExampleBatch
from metarl.fewshot.proto import Proto, ProtoConfig, class_means, squared_distances

PLANE = ExampleSpaces((2,), 2, True, train_ways=2)


def raw_learner(new_learner: Any, **settings: Any) -> Any:
    """Features are the inputs, where these are not negative."""
    learner = new_learner(Proto, PLANE, hidden_sizes=(2,), **settings)
    names = list(learner.parameters)
    learner.load_state_dict(
        {**learner.state_dict(), "parameters": dict(zip(names, (torch.eye(2), torch.zeros(2)), strict=True))}
    )
    return learner


def batch(points: list[list[float]], labels: list[int]) -> ExampleBatch:
    inputs, targets = torch.tensor([points]), torch.tensor([labels])
    return ExampleBatch(inputs, targets, targets)


# Class 0 at (0, 0) and (2, 0), class 1 at (0, 4) and (4, 4): prototypes (1, 0) and (2, 4).
# (1, 1) has squared distances 1 and 10; (4, 2) has 13 and 8.
SUPPORT = batch([[0.0, 4.0], [0.0, 0.0], [4.0, 4.0], [2.0, 0.0]], [1, 0, 1, 0])
QUERY = batch([[1.0, 1.0], [4.0, 2.0]], [0, 1])


def test_two_classes_by_hand(new_learner: Any, logits_of: Any) -> None:
    learner = raw_learner(new_learner)
    state = learner.adapt(learner.begin(1), SUPPORT, step=0)
    assert state.memory.tolist() == [[[1.0, 0.0], [2.0, 4.0]]]
    logits = logits_of(learner, state, QUERY)[0]
    torch.testing.assert_close(logits, torch.tensor([[-1.0, -10.0], [-13.0, -8.0]]))  # squares, not their roots
    assert learner.score(state, QUERY).tolist() == [1.0]
    assert learner.score(state, QUERY._replace(targets=torch.tensor([[1, 1]]))).tolist() == [0.5]
    loss, outcome = learner.episode_loss(learner.parameters, (batch_of_one(SUPPORT),), batch_of_one(QUERY))
    expected = (math.log(1.0 + math.exp(-9.0)) + math.log(1.0 + math.exp(-5.0))) / 2
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert float(outcome.score) == 1.0


def batch_of_one(whole: ExampleBatch) -> ExampleBatch:
    return ExampleBatch(*(part[0] for part in whole))


def test_the_cosine_has_a_scale(new_learner: Any, logits_of: Any) -> None:
    learner = raw_learner(new_learner, distance="cosine", cosine_scale=5.0)
    state = learner.adapt(learner.begin(1), SUPPORT, step=0)
    cosines = [
        [(1 * 1 + 1 * 0) / math.sqrt(2), (1 * 2 + 1 * 4) / math.sqrt(2 * 20)],
        [4 / math.sqrt(20), (4 * 2 + 2 * 4) / 20],
    ]
    torch.testing.assert_close(logits_of(learner, state, QUERY)[0], 5.0 * torch.tensor(cosines))


def test_prototypes_are_of_the_support_alone(new_learner: Any, new_batches: Any, task_of: Any) -> None:
    """In training too: the loss of one query example does not depend on the others."""
    spaces = ExampleSpaces((6,), 3, True, train_ways=3)
    learner = new_learner(Proto, spaces, hidden_sizes=(4,), batch_norm="none")
    support, query = (task_of(part) for part in new_batches())
    whole, _ = learner.episode_loss(learner.parameters, (support,), query)
    each = [
        learner.episode_loss(learner.parameters, (support,), ExampleBatch(*(part[i : i + 1] for part in query)))[0]
        for i in range(len(query.targets))
    ]
    assert float(whole) == pytest.approx(float(sum(each) / len(each)), rel=1e-5)
    assert len({round(float(loss), 4) for loss in each}) > 5


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_an_episode_is_the_plain_loop(distance: Any, new_learner: Any, new_batches: Any, task_of: Any) -> None:
    spaces = ExampleSpaces((6,), 3, True, train_ways=4)  # more ways in training than in testing
    learner = new_learner(Proto, spaces, hidden_sizes=(5,), distance=distance, cosine_scale=3.0, shaken=0.3)
    support, query = (task_of(part) for part in new_batches(ways=4, shots=3))
    loss, outcome = learner.episode_loss(learner.parameters, (support,), query)

    def embedded(rows: Tensor) -> Tensor:
        found: Tensor = learner.encoder(learner.parameters, rows)
        return found

    prototypes = []
    for label in range(4):
        members = [
            embedded(row.unsqueeze(0))[0] for row, y in zip(support.inputs, support.targets, strict=True) if y == label
        ]
        prototypes.append(sum(members) / len(members))
    losses, hits = [], []
    for row, target in zip(embedded(query.inputs), query.targets.tolist(), strict=True):
        if distance == "euclidean":
            scores = [-sum((a - b) ** 2 for a, b in zip(row.tolist(), p.tolist(), strict=True)) for p in prototypes]  # type: ignore
        else:
            scores = [float(3.0 * (row @ p) / (row.norm() * p.norm())) for p in prototypes]  # type: ignore
        losses.append(math.log(sum(math.exp(s - scores[target]) for s in scores)))
        hits.append(scores.index(max(scores)) == target)
    assert float(loss) == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert float(outcome.score) == pytest.approx(sum(hits) / len(hits))


def test_more_ways_in_training_than_in_testing(new_learner: Any, new_batches: Any, as_episodes: Any) -> None:
    learner = new_learner(Proto, ExampleSpaces((6,), 3, True, train_ways=7), hidden_sizes=(8,), outer_lr=0.01)
    metrics = [learner.meta_update(as_episodes(*new_batches(ways=7, noise=1.0))) for _ in range(30)]
    assert metrics[-1]["loss"] < 0.8 * metrics[0]["loss"]
    support, query = new_batches(ways=3, tasks=20, seed=5)
    state = learner.adapt(learner.begin(20), support, step=0)
    assert state.memory.shape == (20, 3, 8)
    assert float(learner.score(state, query).mean()) > 0.8


def test_shots_add_up(new_learner: Any, new_batches: Any) -> None:
    learner = new_learner(Proto, ExampleSpaces((6,), 3, True, train_ways=3), hidden_sizes=(4,))
    support, _ = new_batches(shots=3)
    whole = learner.adapt(learner.begin(2), support, step=0)
    state = learner.begin(2)
    for step, rows in enumerate((slice(0, 4), slice(4, 5), slice(5, 9))):
        state = learner.adapt(state, ExampleBatch(*(part[:, rows] for part in support)), step=step)
    torch.testing.assert_close(state.memory, whole.memory)


def test_before_any_support_one_class_is_as_good_as_another(new_learner: Any, new_batches: Any) -> None:
    learner = new_learner(Proto, ExampleSpaces((6,), 3, True, train_ways=3), hidden_sizes=(4,))
    scores = learner.score(learner.begin(2), new_batches(queries=4)[1])
    torch.testing.assert_close(scores, torch.full((2,), 1 / 3))


def test_means_and_distances_by_plain_loops() -> None:
    rng = torch.Generator().manual_seed(0)
    left, right = (torch.randn(count, 3, generator=rng, dtype=torch.float64) for count in (4, 5))
    found = squared_distances(left, right)
    for i in range(4):
        for j in range(5):
            assert float(found[i, j]) == pytest.approx(sum(float(left[i, d] - right[j, d]) ** 2 for d in range(3)))
    means = class_means(left, torch.tensor([2, 0, 2, 2]), 3)
    torch.testing.assert_close(means, torch.stack([left[1], torch.zeros(3).double(), left[[0, 2, 3]].mean(0)]))


def test_misfits_are_refused(new_learner: Any) -> None:
    with pytest.raises(InputError, match=r"^agent.distance = 'manhattan': must be one of 'euclidean', 'cosine'$"):
        ProtoConfig(distance="manhattan")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"^agent.cosine_scale = 0.0: must be a positive number$"):
        ProtoConfig(cosine_scale=0.0)
    with pytest.raises(
        InputError, match=r"^agent = 'Proto': must be a learner for regression: this one needs classes$"
    ):
        new_learner(Proto, ExampleSpaces((1,), 1, False))
    with pytest.raises(InputError, match=r"^agent.encoder = 'torch.nn:Identity': must be one that has parameters"):
        new_learner(Proto, PLANE, encoder="torch.nn:Identity")


@pytest.mark.parametrize("mode", ["transductive", "support", "running", "none"])
def test_the_modes_statistics_normalise_the_support_too(
    mode: Any, new_learner: Any, new_batches: Any, as_episodes: Any
) -> None:
    """Running averages where these are kept, so that a class's prototype does not depend on the other classes; else the
    support's own."""
    spaces = ExampleSpaces((1, 16, 16), 3, True, train_ways=3)
    learner = new_learner(Proto, spaces, num_filters=3, batch_norm=mode)
    support, query = new_batches(shape=(1, 16, 16))
    learner.meta_update(as_episodes(support, query))
    state = learner.adapt(learner.begin(2), support, step=0)
    statistics = learner.state_dict()["statistics"] if mode == "running" else None
    for task in range(2):
        features = learner.encoder(learner.parameters, support.inputs[task], statistics=statistics)
        expected = [features[support.targets[task] == label].mean(0) for label in range(3)]
        torch.testing.assert_close(state.memory[task], torch.stack(expected), atol=1e-5, rtol=1e-4)
