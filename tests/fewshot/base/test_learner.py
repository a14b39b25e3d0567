"""What all few-shot learners share, on MAML and prototypes: the meta-optimiser, running statistics, execution."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from metarl.core.errors import InputError
from metarl.core.trees import tree_map
from metarl.fewshot.base import batch_norm
from metarl.fewshot.base.episodic import EpisodicConfig
from metarl.fewshot.base.examples import ExampleSpaces
from metarl.fewshot.base.learner import joined, loss_of, one_hot, score_of
from metarl.fewshot.maml import MAML
from metarl.fewshot.meta_sgd import MetaSGD
from metarl.fewshot.proto import Proto

VECTORS = ExampleSpaces((6,), 3, True, train_ways=3, train_classes=tuple(range(12)))
IMAGES = ExampleSpaces((1, 16, 16), 3, True, train_ways=3, train_classes=tuple(range(12)))
SMALL = {"hidden_sizes": (5,)}


def test_the_meta_optimiser_is_torchs_adam_step_for_step(new_learner: Any, new_batches: Any, as_episodes: Any) -> None:
    learner = new_learner(
        MAML, VECTORS, dtype=torch.float64, outer_lr=0.01, clip_gradient=0.05, halve_lr_every=3, **SMALL
    )
    leaves = {name: value.clone().requires_grad_() for name, value in learner.parameters.items()}
    adam = torch.optim.Adam(leaves.values(), lr=0.01)
    halving = torch.optim.lr_scheduler.StepLR(adam, step_size=3, gamma=0.5)
    for step in range(8):
        support, query = new_batches(dtype=torch.float64, seed=step)
        gradients, _ = learner.meta_gradient((support,), query)
        metrics = learner.meta_update(as_episodes(support, query))
        whole = torch.cat([g.flatten() for g in gradients.values()])
        assert metrics["gradient_norm"] == pytest.approx(float(whole.norm()))  # unclipped
        assert float(whole.abs().max()) > 0.05
        for name, leaf in leaves.items():
            leaf.grad = gradients[name].clone()
        torch.nn.utils.clip_grad_value_(leaves.values(), 0.05)
        adam.step()
        halving.step()
        for name, leaf in leaves.items():
            torch.testing.assert_close(learner.parameters[name], leaf.detach(), rtol=0, atol=1e-12)


def test_the_meta_gradient_is_the_mean_over_tasks(new_learner: Any, new_batches: Any, as_episodes: Any) -> None:
    learner = new_learner(MAML, VECTORS, dtype=torch.float64, **SMALL)
    support, query = new_batches(tasks=3, dtype=torch.float64)
    together, outcome = learner.meta_gradient((support,), query)
    alone = []
    for task in range(3):
        part = [tree_map(lambda v, task=task: v[task : task + 1], batch) for batch in (support, query)]  # type: ignore
        alone.append(learner.meta_gradient((part[0],), part[1])[0])
    for name, value in together.items():
        torch.testing.assert_close(value, sum(g[name] for g in alone) / 3)
    metrics = learner.meta_update(as_episodes(support, query))
    assert metrics["loss"] == pytest.approx(float(outcome.loss.mean()))
    assert metrics["adapt/step_1"] == pytest.approx(float(outcome.score.mean()))
    squares = sum(float(value.square().sum()) for value in together.values())
    assert metrics["gradient_norm"] == pytest.approx(squares**0.5)


@pytest.mark.parametrize("kind", [MAML, Proto])
def test_running_statistics_follow_torchs_formula(
    kind: Any, new_learner: Any, new_batches: Any, as_episodes: Any
) -> None:
    """Torch's with momentum 0.1, of the mean over tasks of what `meta_update` saw; the variance is the biased one."""
    learner = new_learner(kind, IMAGES, batch_norm="running", num_filters=2)
    first = next(iter(learner.state_dict()["statistics"]))
    torchs = torch.nn.BatchNorm2d(2)
    for seed in range(3):
        support, query = new_batches(shape=(1, 16, 16), seed=seed)
        parameters = dict(learner.parameters)
        seen = []
        for task in range(2):
            inputs = query.inputs[task]
            if kind is Proto:
                inputs = torch.cat([support.inputs[task], inputs])
                own = parameters
            else:
                part = tree_map(lambda v, task=task: v[task], support)  # type: ignore[misc]
                gradients = torch.func.grad(learner.inner_loss)(parameters, part)
                own = {n: v - learner.config.inner_lr * gradients[n] for n, v in parameters.items()}
            maps = torch.nn.functional.conv2d(
                inputs, own["encoder.blocks.0.convolution.weight"], own["encoder.blocks.0.convolution.bias"], padding=1
            )
            rows = maps.permute(1, 0, 2, 3).flatten(1)
            seen.append(torch.stack([rows.mean(1), rows.var(1, correction=0)]))
        mean = torch.stack(seen).mean(0)
        torchs.running_mean = 0.9 * torchs.running_mean + 0.1 * mean[0]  # type: ignore[operator]
        torchs.running_var = 0.9 * torchs.running_var + 0.1 * mean[1]  # type: ignore[operator]
        learner.meta_update(as_episodes(support, query))
    found = learner.state_dict()["statistics"][first]
    torch.testing.assert_close(found, torch.stack([torchs.running_mean, torchs.running_var]), atol=1e-5, rtol=1e-4)  # type: ignore[list-item]


def test_one_batchs_running_mean_is_that_of_torchs_layer(new_learner: Any, new_batches: Any, as_episodes: Any) -> None:
    learner = new_learner(Proto, IMAGES, batch_norm="running", num_filters=2)
    support, query = new_batches(tasks=1, shape=(1, 16, 16))
    block = torch.nn.Conv2d(1, 2, 3, padding=1)
    block.load_state_dict(
        {end: learner.parameters[f"encoder.blocks.0.convolution.{end}"] for end in ("weight", "bias")}
    )
    torchs = torch.nn.BatchNorm2d(2)
    with torch.no_grad():
        inputs = torch.cat([support.inputs[0], query.inputs[0]])
        torchs(block(inputs))
    learner.meta_update(as_episodes(support, query))
    mean, variance = learner.state_dict()["statistics"]["encoder.blocks.0.norm"]
    torch.testing.assert_close(mean, torchs.running_mean)
    count = len(inputs) * 16 * 16
    assert torchs.running_var is not None
    torch.testing.assert_close(variance - 0.9, (torchs.running_var - 0.9) * (count - 1) / count)


@pytest.mark.parametrize("mode", ["transductive", "support", "none"])
def test_other_modes_keep_no_running_statistics(
    mode: Any, new_learner: Any, new_batches: Any, as_episodes: Any
) -> None:
    for kind in (MAML, Proto):
        learner = new_learner(kind, IMAGES, batch_norm=mode, num_filters=2)
        before = learner.state_dict()["statistics"]
        learner.meta_update(as_episodes(*new_batches(shape=(1, 16, 16))))
        after = learner.state_dict()["statistics"]
        assert all(torch.equal(value, after[name]) for name, value in before.items())
        assert learner.settings == ({} if mode == "none" else {"batch_norm": mode})


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


@pytest.mark.parametrize("kind", [MAML, Proto])
def test_state_goes_through_a_file_to_the_same_bits(
    kind: Any, new_learner: Any, new_batches: Any, as_episodes: Any, same_bits: Any
) -> None:
    settings = {"batch_norm": "running", "num_filters": 2, "halve_lr_every": 2}
    learner = new_learner(kind, IMAGES, **settings)
    episodes = as_episodes(*new_batches(shape=(1, 16, 16)))
    for _ in range(3):
        learner.meta_update(episodes)
    file = io.BytesIO()
    torch.save(learner.state_dict(), file)
    file.seek(0)
    other = new_learner(kind, IMAGES, seed=5, **settings)
    assert not same_bits(other.state_dict(), learner.state_dict())
    other.load_state_dict(torch.load(file, weights_only=True))
    assert same_bits(other.state_dict(), learner.state_dict())
    for one in (learner, other):  # the moments, their count and the halving go on
        one.meta_update(episodes)
    assert same_bits(other.state_dict(), learner.state_dict())
    assert other.state_dict()["num_updates"] == 4
    misfit = new_learner(kind, IMAGES, **{**settings, "num_filters": 3})
    with pytest.raises(ValueError, match="parameters do not fit the network"):
        misfit.load_state_dict(learner.state_dict())


def test_loading_takes_a_copy(new_learner: Any) -> None:
    learner, other = (new_learner(MAML, VECTORS, seed=seed, **SMALL) for seed in (0, 1))
    state = learner.state_dict()
    other.load_state_dict(state)
    state["parameters"]["head.bias"].fill_(9.0)
    assert float(other.parameters["head.bias"].max()) < 9.0


def test_losses_and_scores_by_hand() -> None:
    logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 0.0]])
    labels = torch.tensor([2, 1])
    sums = logits.exp().sum(1).log()
    assert float(loss_of(logits, labels)) == pytest.approx(float((sums[0] - 1.0 + sums[1] - 3.0) / 2))
    assert float(score_of(logits, labels)) == 0.5
    outputs, targets = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [3.0, 0.0]])
    assert float(loss_of(outputs, targets)) == float(score_of(outputs, targets)) == (1.0 + 4.0 + 9.0) / 4
    assert one_hot(torch.tensor([[1], [0]]), 3).tolist() == [[[0.0, 1.0, 0.0]], [[1.0, 0.0, 0.0]]]


def test_batches_of_one_task_are_joined_along_the_examples(new_batches: Any, task_of: Any) -> None:
    support, query = (task_of(batch) for batch in new_batches())
    both = joined([support, query])
    assert torch.equal(both.inputs, torch.cat([support.inputs, query.inputs]))
    assert both.targets.tolist() == [*support.targets.tolist(), *query.targets.tolist()]
    assert both.classes.tolist() == [*support.classes.tolist(), *query.classes.tolist()]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"outer_lr": 0.0}, "agent.outer_lr = 0.0: must be a positive number"),
        ({"halve_lr_every": 0}, "agent.halve_lr_every = 0: must be an integer >= 1, or left out"),
        ({"clip_gradient": -1.0}, "agent.clip_gradient = -1.0: must be a positive number, or left out"),
        ({"execution": "parallel"}, "agent.execution = 'parallel': must be one of 'auto', 'loop', 'vmap', 'compiled'"),
    ],
)
def test_bad_settings_are_refused_in_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as raised:
        EpisodicConfig(**settings)
    assert str(raised.value) == message
