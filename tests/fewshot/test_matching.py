"""Matching networks against plain loops and torch's LSTM."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metarl.core.errors import InputError
from metarl.fewshot.base.examples import ExampleSpaces
from metarl.fewshot.base.learner import ExampleBatch
from metarl.fewshot.matching import AttentionLSTM, LSTMCell, Matching, MatchingConfig, SupportContext

SPACES = ExampleSpaces((6,), 3, True, train_ways=3)
SIZE = 4


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cosine(left: Tensor, right: Tensor) -> float:
    return float(left @ right / (left.norm() * right.norm()))


def plain_probabilities(asked: Tensor, known: Tensor, labels: list[int], ways: int, scale: float) -> list[list[float]]:
    """Attention over ALL support examples, summed for each label."""
    rows = []
    for query in asked:
        weights = [math.exp(scale * cosine(query, support)) for support in known]
        row = [0.0] * ways
        for weight, label in zip(weights, labels, strict=True):
            row[label] += weight / sum(weights)
        rows.append(row)
    return rows


def make(new_learner: Any, **settings: Any) -> Matching:
    learner: Matching = new_learner(Matching, SPACES, hidden_sizes=(8, SIZE), **{"shaken": 0.3, **settings})
    return learner


def unbalanced(support: ExampleBatch) -> ExampleBatch:
    """Without the first two examples: classes then differ in size, which softmaxes over classes would not see."""
    return ExampleBatch(*(part[2:] for part in support))


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_an_episode_is_the_plain_loop(scale: float, new_learner: Any, new_batches: Any, task_of: Any) -> None:
    learner = make(new_learner, scale=scale)
    support, query = (task_of(part) for part in new_batches(shots=3))
    support = unbalanced(support)
    counts = [support.targets.tolist().count(label) for label in range(3)]
    assert len(set(counts)) > 1
    features = [learner.encoder(learner.parameters, part.inputs) for part in (support, query)]
    expected = plain_probabilities(features[1], features[0], support.targets.tolist(), 3, scale)
    memory = learner.remember(learner.parameters, features[0], support.targets, 3)
    logits = learner.compare(learner.parameters, memory, features[1], None)
    torch.testing.assert_close(logits.exp(), torch.tensor(expected), atol=1e-5, rtol=1e-4)
    loss, outcome = learner.episode_loss(learner.parameters, (support,), query)
    targets = query.targets.tolist()
    nll = [-math.log(row[target]) for row, target in zip(expected, targets, strict=True)]
    assert float(loss) == pytest.approx(sum(nll) / len(nll), abs=1e-5)
    hits = [row.index(max(row)) == target for row, target in zip(expected, targets, strict=True)]
    assert float(outcome.score) == pytest.approx(sum(hits) / len(hits))


def test_a_probability_has_a_floor(new_learner: Any) -> None:
    """Cosines of 1 and -1 at scale 20: the other class's probability is exp(-40), and counts as 1e-6."""
    learner = new_learner(Matching, ExampleSpaces((2,), 2, True, train_ways=2), scale=20.0, hidden_sizes=(2,))
    known, labels = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([0, 1])
    memory = learner.remember({}, known, labels, 2)
    logits = learner.compare({}, memory, torch.tensor([[3.0, 0.0]]), None)
    torch.testing.assert_close(logits, torch.tensor([[0.0, math.log(1e-6)]]))
    assert float(learner.loss(logits, torch.tensor([1]))) == pytest.approx(-math.log(1e-6), abs=1e-5)


def test_without_a_scale_the_softmax_is_nearly_flat(new_learner: Any) -> None:
    """The best possible probability of 5 classes is e / (e + 4 / e) = 0.65, as the module says."""
    spaces = ExampleSpaces((5,), 5, True, train_ways=5)
    best = []
    for scale in (1.0, 10.0):
        learner = new_learner(Matching, spaces, scale=scale, hidden_sizes=(5,))
        known = torch.cat([torch.eye(5)[:1], -torch.eye(5)[:1].expand(4, 5)])
        memory = learner.remember({}, known, torch.arange(5), 5)
        best.append(float(learner.compare({}, memory, known[:1], None).exp()[0, 0]))
    assert best[0] == pytest.approx(math.e / (math.e + 4 / math.e), abs=1e-4)
    assert round(best[0], 2) == 0.65
    assert best[1] > 0.999


def test_a_scale_can_be_learned(new_learner: Any, new_batches: Any, as_episodes: Any) -> None:
    learner = make(new_learner, learn_scale=True, scale=2.0, outer_lr=0.05, shaken=0.0)
    before = float(learner.parameters["log_scale"])
    assert before == pytest.approx(math.log(2.0))
    episodes = as_episodes(*new_batches())
    gradients, _ = learner.meta_gradient(episodes.support, episodes.query)
    ends = []
    for step in (1e-2, -1e-2):
        state = learner.state_dict()
        moved = {**state["parameters"], "log_scale": state["parameters"]["log_scale"] + step}
        other = make(new_learner, learn_scale=True, scale=2.0)
        other.load_state_dict({**state, "parameters": moved})
        ends.append(float(other.meta_gradient(episodes.support, episodes.query)[1].loss.double().mean()))
    assert float(gradients["log_scale"]) == pytest.approx((ends[0] - ends[1]) / 2e-2, rel=1e-2)
    learner.meta_update(episodes)
    assert float(learner.parameters["log_scale"]) != before
    assert "log_scale" not in make(new_learner).parameters


def torchs(cell: LSTMCell, input_size: int) -> nn.LSTMCell:
    """Torch's cell of the same weights; its gates come in the same order: input, forget, cell, output."""
    made = nn.LSTMCell(input_size, cell.gates.out_features // 4)
    with torch.no_grad():
        made.weight_ih.copy_(cell.gates.weight[:, :input_size])
        made.weight_hh.copy_(cell.gates.weight[:, input_size:])
        made.bias_ih.copy_(cell.gates.bias)
        made.bias_hh.zero_()
    return made


def test_the_lstm_cell_is_torchs() -> None:
    cell = LSTMCell(3, SIZE, generator=rng())
    other = torchs(cell, 3)
    inputs, hidden, memory = (torch.randn(5, size, generator=rng(i)) for i, size in enumerate((3, SIZE, SIZE)))
    for found, expected in zip(cell(inputs, hidden, memory), other(inputs, (hidden, memory)), strict=True):
        torch.testing.assert_close(found, expected)
    assert cell.gates.bias.tolist() == [0.0] * SIZE + [1.0] * SIZE + [0.0] * 2 * SIZE  # the forget gate starts open


def test_the_support_context_is_torchs_bidirectional_lstm_and_a_skip() -> None:
    context = SupportContext(SIZE, generator=rng())
    lstm = nn.LSTM(SIZE, SIZE, bidirectional=True)
    with torch.no_grad():
        for cell, ending in ((context.forwards, ""), (context.backwards, "_reverse")):
            other = torchs(cell, SIZE)
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                getattr(lstm, f"{name}_l0{ending}").copy_(getattr(other, name))
        features = torch.randn(7, SIZE, generator=rng(1))
        both, _ = lstm(features)
        torch.testing.assert_close(context(features), features + both[:, :SIZE] + both[:, SIZE:])


@pytest.mark.parametrize("steps", [1, 3])
def test_reading_the_support_is_the_plain_loop(steps: int) -> None:
    """Equations 3 to 6 with [h, r] as the LSTM's hidden state, one query at a time, attention in plain numbers."""
    reading = AttentionLSTM(SIZE, generator=rng())
    features, support = torch.randn(5, SIZE, generator=rng(1)), torch.randn(6, SIZE, generator=rng(2))
    # An input of [f, r] and a hidden state of h is the same sum as an input of f and a hidden state of [h, r].
    cell = torchs(reading.cell, 2 * SIZE)
    expected = []
    with torch.no_grad():
        for row in features:
            hidden, memory, read = torch.zeros(1, SIZE), torch.zeros(1, SIZE), torch.zeros(SIZE)
            for _ in range(steps):
                raw, memory = cell(torch.cat([row, read]).unsqueeze(0), (hidden, memory))
                hidden = raw + row
                weights = [math.exp(float(hidden[0] @ known)) for known in support]
                read = sum(w / sum(weights) * known for w, known in zip(weights, support, strict=True))  # type: ignore
            expected.append(hidden[0])
        found = reading(features, support, torch.zeros(steps, 0))
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=1e-5)


def full(new_learner: Any, **settings: Any) -> Matching:
    return make(new_learner, full_context=True, processing_steps=2, **settings)


def test_with_full_context_each_query_is_read_on_its_own(new_learner: Any, new_batches: Any, logits_of: Any) -> None:
    learner = full(new_learner)
    support, query = new_batches()
    state = learner.adapt(learner.begin(2), support, step=0)
    whole = logits_of(learner, state, query)
    for i in range(3):
        alone = ExampleBatch(*(part[:, i : i + 1] for part in query))
        torch.testing.assert_close(logits_of(learner, state, alone), whole[:, i : i + 1], atol=1e-5, rtol=1e-4)


def test_full_context_depends_on_the_supports_order_through_the_lstm_alone(
    new_learner: Any, new_batches: Any, logits_of: Any
) -> None:
    support, query = new_batches()
    turned = ExampleBatch(*(part.flip(1) for part in support))

    def difference(learner: Matching) -> float:
        ends = [logits_of(learner, learner.adapt(learner.begin(2), s, step=0), query) for s in (support, turned)]
        return float((ends[0] - ends[1]).abs().max())

    learner = full(new_learner)
    assert difference(learner) > 1e-3
    assert difference(make(new_learner)) < 1e-5
    state = learner.state_dict()
    still = {n: v * (0.0 if n.startswith("context.") else 1.0) for n, v in state["parameters"].items()}
    learner.load_state_dict({**state, "parameters": still})  # an LSTM of zeros adds nothing
    assert difference(learner) < 1e-5


def test_full_context_learns_through_both_networks(new_learner: Any, new_batches: Any) -> None:
    support, query = new_batches()
    gradients, _ = full(new_learner).meta_gradient((support,), query)
    for part in ("context.forwards", "context.backwards", "reading.cell", "encoder"):
        assert sum(float(v.abs().sum()) for n, v in gradients.items() if n.startswith(part)) > 0, part


def test_bad_settings_are_refused() -> None:
    with pytest.raises(InputError, match=r"^agent.scale = 0.0: must be a positive number$"):
        MatchingConfig(scale=0.0)
    with pytest.raises(InputError, match=r"^agent.processing_steps = 0: must be an integer >= 1$"):
        MatchingConfig(processing_steps=0)
