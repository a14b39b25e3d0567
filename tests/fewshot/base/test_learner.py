"""What all few-shot learners share, on MAML and prototypes: running statistics, checkpoints, losses and scores."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch

from metarl.core.trees import tree_map
from metarl.fewshot.base.examples import ExampleSpaces
from metarl.fewshot.base.learner import joined, loss_of, one_hot, score_of
from metarl.fewshot.maml import MAML
from metarl.fewshot.proto import Proto

VECTORS = ExampleSpaces((6,), 3, True, train_ways=3, train_classes=tuple(range(12)))
IMAGES = ExampleSpaces((1, 16, 16), 3, True, train_ways=3, train_classes=tuple(range(12)))
SMALL = {"hidden_sizes": (5,)}


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
