"""One task after another and all tasks batched give the same results."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from metarl.core.trees import tree_map
from metarl.fewshot.base import batch_norm
from metarl.fewshot.base.examples import ExampleSpaces
from metarl.fewshot.maml import MAML
from metarl.fewshot.meta_sgd import MetaSGD
from metarl.fewshot.proto import Proto

VECTORS = ExampleSpaces((6,), 3, True, train_ways=3, train_classes=tuple(range(12)))
IMAGES = ExampleSpaces((1, 16, 16), 3, True, train_ways=3, train_classes=tuple(range(12)))


@pytest.mark.parametrize("mode", ["transductive", "support", "running", "none"])
@pytest.mark.parametrize("kind", [MAML, Proto])
def test_loop_and_vmap_agree(kind: Any, mode: Any, new_learner: Any, new_batches: Any) -> None:
    support, query = new_batches(tasks=3, shape=(1, 16, 16))
    found = []
    for execution in ("loop", "vmap"):
        learner = new_learner(kind, IMAGES, batch_norm=mode, num_filters=3, execution=execution, shaken=0.1)
        gradients, outcome = learner.meta_gradient((support,), query)
        state = learner.adapt(learner.begin(3), support, step=0)
        found.append((gradients, outcome.loss, outcome.statistics, state))
    one, other = (list(leaves(tree)) for tree in found)
    assert len(one) == len(other) > 10
    for left, right in zip(one, other, strict=True):
        torch.testing.assert_close(left, right, atol=2e-5, rtol=1e-3)


def normed_rows(shape: tuple[int, ...]) -> torch.nn.Module:
    """An encoder with a norm whose second derivative torch's vmap gets wrong when it is taken outside."""
    size = torch.Size(shape).numel()
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(size, 4), torch.nn.LayerNorm(4), torch.nn.Tanh())


@pytest.mark.parametrize("long", [False, True])
@pytest.mark.parametrize("encoder", ["conv4", "conv4-strided", f"{__name__}:normed_rows"])
@pytest.mark.parametrize("mode", ["transductive", "support", "running", "none"])
@pytest.mark.parametrize("kind", [MAML, MetaSGD])
def test_batched_tasks_have_the_loops_meta_gradient(
    kind: Any, mode: Any, encoder: str, long: bool, new_learner: Any, new_batches: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_norm, "LONG_SUM", 0 if long else 10**9)
    support, query = new_batches(tasks=4, shape=(1, 16, 16), dtype=torch.float64)
    found = {}
    for execution in ("loop", "vmap"):
        learner = new_learner(
            kind, IMAGES, encoder=encoder, batch_norm=mode, num_filters=3, execution=execution, dtype=torch.float64
        )
        monkeypatch.setattr("metarl.fewshot.base.execution.TASKS_AT_ONCE", 2)
        gradients, outcome = learner.meta_gradient((support, support), query)
        found[execution] = (gradients, outcome.loss, outcome.statistics)
        assert learner.execution.shares_weights == (execution == "vmap" and ":" not in encoder)
    one, other = (list(leaves(tree)) for tree in found.values())
    assert len(one) == len(other) >= 7
    for left, right in zip(one, other, strict=True):
        torch.testing.assert_close(left, right, atol=1e-12, rtol=1e-8)


def test_auto_batches_the_strided_network_and_loops_over_other_images(new_learner: Any) -> None:
    batched = {
        encoder: new_learner(MAML, IMAGES, encoder=encoder, num_filters=2).execution.batched
        for encoder in ("conv4", "conv4-strided", "mlp", f"{__name__}:normed_rows")
    }
    assert [encoder for encoder, yes in batched.items() if yes] == ["conv4-strided"]
    assert new_learner(MAML, VECTORS).execution.batched


@pytest.mark.parametrize("execution", ["auto", "compiled"])
def test_batched_images_are_computed_in_equal_parts_two_at_least(new_learner: Any, execution: Any) -> None:
    learner = new_learner(MAML, IMAGES, encoder="conv4-strided", num_filters=2, execution=execution)
    parts = {count: learner.execution.by_chunks(len, torch.zeros(count, 1)) for count in (2, 7, 8, 32, 33, 48)}
    assert parts == {2: [1, 1], 7: [7], 8: [4, 4], 32: [16, 16], 33: [11] * 3, 48: [16] * 3}
    assert new_learner(MAML, VECTORS, execution=execution).execution.by_chunks(len, torch.zeros(8, 1)) == [8]
    looped = new_learner(MAML, IMAGES, num_filters=2, execution=execution)
    assert looped.execution.by_chunks(len, torch.zeros(3, 1)) == [1, 1, 1]


def leaves(tree: Any) -> Iterator[Tensor]:
    found: list[Tensor] = []
    tree_map(lambda tensor: (found.append(tensor), tensor)[1], tree)
    return iter(found)


@pytest.mark.parametrize("kind", [MAML, Proto])
def test_permuting_tasks_permutes_results_and_changes_no_bit(
    kind: Any, new_learner: Any, new_batches: Any, same_bits: Any, logits_of: Any
) -> None:
    learner = new_learner(kind, IMAGES, num_filters=3, execution="loop")
    support, query = new_batches(tasks=4, shape=(1, 16, 16))
    order = [2, 0, 3, 1]
    moved_support, moved_query = (tree_map(lambda v: v[order], batch) for batch in (support, query))
    outcome, moved_outcome = (
        learner.meta_gradient((s,), q)[1] for s, q in ((support, query), (moved_support, moved_query))
    )
    assert same_bits(tree_map(lambda v: v[order], outcome), moved_outcome)
    state = learner.adapt(learner.begin(4), support, step=0)
    moved = learner.adapt(learner.begin(4), moved_support, step=0)
    assert same_bits(tree_map(lambda v: v[order], state), moved)
    assert torch.equal(logits_of(learner, state, query)[order], logits_of(learner, moved, moved_query))


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("kind", [MAML, Proto])
@pytest.mark.usefixtures("threads")
def test_one_and_two_threads_give_the_same_bits(
    kind: Any, new_learner: Any, new_batches: Any, as_episodes: Any, same_bits: Any
) -> None:
    support, query = new_batches(tasks=4, shape=(1, 16, 16))
    found = []
    for count in (1, 2):
        torch.set_num_threads(count)
        learner = new_learner(kind, IMAGES, num_filters=4, execution="loop", batch_norm="running")
        metrics = [learner.meta_update(as_episodes(support, query)) for _ in range(2)]
        state = learner.adapt(learner.begin(4), support, step=0)
        found.append((metrics, learner.state_dict(), state, learner.score(state, query)))
    assert same_bits(*found)
    assert found[0][0] == found[1][0]
