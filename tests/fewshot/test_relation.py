"""Relation networks: sums over shots, pairs in their order, both losses by plain loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from metarl.core.errors import InputError
from metarl.fewshot.base.examples import ExampleSpaces
from metarl.fewshot.relation import Relation, RelationConfig, RelationModule

VECTORS = ExampleSpaces((6,), 3, True, train_ways=3)
IMAGES = ExampleSpaces((1, 16, 16), 3, True, train_ways=3)


class Maps(nn.Module):
    """An encoder of one's own without batch norms, whose features are maps."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(shape[0], 2, 3, stride=4, padding=1)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.convolution(inputs)
        return out


def plain_scores(learner: Any, support: Any, query: Any, ways: int) -> list[list[float]]:
    """Logits of every query and class, the pairs made one at a time: the class's sum first, then the query."""
    known, asked = (learner.encoder(learner.parameters, part.inputs) for part in (support, query))
    rows = []
    for features in asked:
        row = []
        for label in range(ways):
            total = sum(f for f, y in zip(known, support.targets.tolist(), strict=True) if y == label)
            pair = torch.cat([total, features]).unsqueeze(0)  # type: ignore[list-item]
            row.append(float(learner.relation(learner.parameters, pair)))
        rows.append(row)
    return rows


def plain_loss(rows: list[list[float]], targets: list[int], kind: str) -> float:
    errors = []
    for row, target in zip(rows, targets, strict=True):
        if kind == "mse":
            squares = [(1 / (1 + math.exp(-s)) - (label == target)) ** 2 for label, s in enumerate(row)]
            errors.append(sum(squares) / len(squares))
        else:
            errors.append(math.log(sum(math.exp(s) for s in row)) - row[target])
    return sum(errors) / len(errors)


@pytest.mark.parametrize("loss", ["mse", "cross-entropy"])
@pytest.mark.parametrize("spaces", [VECTORS, IMAGES], ids=["vectors", "maps"])
def test_an_episode_is_the_plain_loop(
    spaces: ExampleSpaces, loss: Any, new_learner: Any, new_batches: Any, task_of: Any
) -> None:
    """Normalised example by example, so that pairs can be scored one at a time."""
    settings = {"hidden_sizes": (5,), "num_filters": 3, "batch_norm": "none", "loss": loss}
    learner = new_learner(Relation, spaces, shaken=0.2, **settings)
    support, query = (task_of(part) for part in new_batches(shape=spaces.input_shape, shots=2))
    found, outcome = learner.episode_loss(learner.parameters, (support,), query)
    rows, targets = plain_scores(learner, support, query, 3), query.targets.tolist()
    assert float(found) == pytest.approx(plain_loss(rows, targets, loss), rel=1e-4)
    hits = [row.index(max(row)) == target for row, target in zip(rows, targets, strict=True)]
    assert float(outcome.score) == pytest.approx(sum(hits) / len(hits))
    assert len({round(score, 4) for row in rows for score in row}) > 10


def test_features_may_be_rows_of_vectors(new_learner: Any, new_batches: Any, as_episodes: Any, logits_of: Any) -> None:
    """[2, 3] is no map to convolve: it is compared as six numbers are, paired along its first axis."""
    support, query = new_batches()
    learner = new_learner(Relation, VECTORS, encoder=f"{__name__}:rows")
    assert learner.feature_shape == (2, 3)
    assert learner.meta_update(as_episodes(support, query))["loss"] > 0
    state = learner.adapt(learner.begin(2), support, step=0)
    pair = torch.cat([state.memory[0, 1], query.inputs[0, 0].view(2, 3)]).flatten()
    weight, bias, last, offset = (learner.parameters[name] for name in sorted(learner.parameters, key=_place))
    by_hand = torch.relu(pair @ weight.mT + bias) @ last.mT + offset
    torch.testing.assert_close(logits_of(learner, state, query)[0, 0, 1], by_hand[0])


def rows(shape: tuple[int, ...]) -> nn.Module:
    return nn.Unflatten(1, (2, 3))


def _place(name: str) -> int:
    return ["hidden.weight", "hidden.bias", "score.weight", "score.bias"].index(name.split(".", 1)[1])


def test_a_class_is_the_sum_of_its_shots(new_learner: Any, new_batches: Any, task_of: Any) -> None:
    """Not their mean: three shots make three times the map of three equal ones."""
    learner = new_learner(Relation, IMAGES, num_filters=2, batch_norm="none")
    support, _ = new_batches(shape=(1, 16, 16), shots=1)
    once = learner.adapt(learner.begin(2), support, step=0)
    thrice = once
    for step in (1, 2):
        thrice = learner.adapt(thrice, support, step=step)
    assert once.memory.shape == (2, 3, 2, 4, 4)
    torch.testing.assert_close(thrice.memory, 3.0 * once.memory)
    features = learner.encoder(learner.parameters, support.inputs[0])
    for label in range(3):
        torch.testing.assert_close(once.memory[0, label], features[support.targets[0] == label][0])


def test_the_losses_by_hand(new_learner: Any) -> None:
    """Scores of 1/2 and 3/4 for the right class and a wrong one; logits of 0 and log 3."""
    logits, targets = torch.tensor([[0.0, math.log(3.0)]]), torch.tensor([0])
    for loss, expected in (("mse", (0.5**2 + 0.75**2) / 2), ("cross-entropy", math.log(4.0))):
        learner = new_learner(Relation, VECTORS, loss=loss, hidden_sizes=(2,))
        assert float(learner.loss(logits, targets)) == pytest.approx(expected)


def test_the_relation_module_is_two_blocks_a_hidden_layer_and_a_score() -> None:
    module = RelationModule((2, 7, 7), RelationConfig(num_filters=3), batch_norm=True, generator=torch.Generator())
    pairs = torch.randn(5, 4, 7, 7, generator=torch.Generator().manual_seed(0))
    hidden = pairs
    for block in module.blocks.blocks:
        hidden = functional.conv2d(hidden, block.convolution.weight, block.convolution.bias, padding=1)  # type: ignore
        hidden = functional.max_pool2d(torch.relu(functional.batch_norm(hidden, None, None, training=True)), 2)
    assert hidden.shape == (5, 3, 1, 1)
    hidden = torch.relu(hidden.flatten(1) @ module.layers.hidden.weight.mT + module.layers.hidden.bias)
    expected = hidden @ module.layers.score.weight.mT + module.layers.score.bias
    torch.testing.assert_close(module(pairs), expected, atol=1e-5, rtol=1e-4)
    assert module.layers.hidden.out_features == 8


def test_the_encoder_keeps_maps() -> None:
    learner = Relation(
        RelationConfig(num_filters=2), ExampleSpaces((1, 28, 28), 5, True, train_ways=5), generator=torch.Generator()
    )
    assert learner.feature_shape == (2, 7, 7)  # pooled twice


@pytest.mark.parametrize("mode", ["support", "running"])
def test_the_relation_modules_norms_use_the_modes_statistics(
    mode: Any, new_learner: Any, new_batches: Any, as_episodes: Any, logits_of: Any
) -> None:
    learner = new_learner(Relation, IMAGES, num_filters=2, batch_norm=mode)
    support, query = new_batches(shape=(1, 16, 16))
    metrics = learner.meta_update(as_episodes(support, query))
    assert math.isfinite(metrics["loss"])
    statistics = learner.state_dict()["statistics"]
    assert {name.split(".")[0] for name in statistics} == {"encoder", "relation"}
    moved = [bool(value[0].abs().max() > 0) for value in statistics.values()]
    assert set(moved) == {mode == "running"}
    state = learner.adapt(learner.begin(2), support, step=0)
    if mode == "support":
        assert state.statistics.keys() == statistics.keys()
        known = _pairs_of(state.memory[0], learner.encoder(learner.parameters, support.inputs[0]))
        first = "relation.blocks.blocks.0"
        maps = functional.conv2d(
            known,
            learner.parameters[f"{first}.convolution.weight"],
            learner.parameters[f"{first}.convolution.bias"],
            padding=1,
        )
        rows = maps.permute(1, 0, 2, 3).flatten(1)
        expected = torch.stack([rows.mean(1), rows.var(1, correction=0)])
        torch.testing.assert_close(state.statistics[f"{first}.norm"][0], expected, atol=1e-5, rtol=1e-4)


def _pairs_of(memory: Tensor, features: Tensor) -> Tensor:
    return torch.stack([torch.cat([known, asked]) for asked in features for known in memory])


@pytest.mark.parametrize("mode", ["transductive", "support", "running"])
def test_behind_an_encoder_without_batch_norms(
    mode: Any, new_learner: Any, new_batches: Any, as_episodes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nn, "MapsOfMine", Maps, raising=False)
    learner = new_learner(Relation, IMAGES, encoder="torch.nn:MapsOfMine", num_filters=2, batch_norm=mode)
    assert learner.settings == {"batch_norm": mode}
    support, query = new_batches(shape=(1, 16, 16))
    assert math.isfinite(learner.meta_update(as_episodes(support, query))["loss"])
    learner.score(learner.adapt(learner.begin(2), support, step=0), query)


def test_misfits_are_refused(new_learner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"^agent.loss = 'hinge': must be one of 'mse', 'cross-entropy'$"):
        RelationConfig(loss="hinge")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"^agent.relation_size = 0: must be an integer >= 1$"):
        RelationConfig(relation_size=0)
    with pytest.raises(InputError, match=r"^agent.encoder = 'auto': must be another: feature maps of \(3, 3\) are too"):
        new_learner(Relation, ExampleSpaces((1, 12, 12), 3, True, train_ways=3), num_filters=2)
