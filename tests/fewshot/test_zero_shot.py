"""Zero-shot prototypes: a linear map of a class's description, of length one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metarl.core.errors import InputError
from metarl.fewshot.base.examples import ExampleSpaces
from metarl.fewshot.base.learner import ExampleBatch
from metarl.fewshot.zero_shot import ZeroShotProto

WAYS, ATTRIBUTES, INPUTS = 5, 4, 8
SPACES = ExampleSpaces((INPUTS,), WAYS, True, train_ways=WAYS, description_size=ATTRIBUTES)
RAW = {"encoder": "torch.nn:Identity"}


def world(tasks: int, seed: int, *, ways: int = WAYS, queries: int = 6) -> tuple[ExampleBatch, ExampleBatch]:
    """Descriptions are directions; a class's examples are a fixed linear map of its own, plus noise. All classes of all
    tasks are new."""
    rng = torch.Generator().manual_seed(seed)
    fixed = torch.randn(INPUTS, ATTRIBUTES, generator=torch.Generator().manual_seed(99))
    attributes = torch.nn.functional.normalize(torch.randn(tasks, ways, ATTRIBUTES, generator=rng), dim=-1)
    order = torch.stack([torch.randperm(ways, generator=rng) for _ in range(tasks)])
    labels = torch.stack([torch.randperm(ways * queries, generator=rng) % ways for _ in range(tasks)])
    described = attributes.gather(1, order.unsqueeze(-1).expand(-1, -1, ATTRIBUTES))
    means = (attributes @ fixed.mT).gather(1, labels.unsqueeze(-1).expand(-1, -1, INPUTS))
    inputs = means + 0.1 * torch.randn(means.shape, generator=rng)
    return ExampleBatch(described, order, order), ExampleBatch(inputs, labels, labels)


def test_a_prototype_by_hand(new_learner: Any, logits_of: Any) -> None:
    """The map takes (1, 0) to (3, 4), of which the prototype is (0.6, 0.8), and (0, 1) to (0, -2), so (0, -1)."""
    learner = new_learner(ZeroShotProto, ExampleSpaces((2,), 2, True, train_ways=2, description_size=2), **RAW)
    weight, bias = torch.tensor([[3.0, 0.0], [4.0, -2.0]]), torch.zeros(2)
    learner.load_state_dict(
        {**learner.state_dict(), "parameters": {"description.weight": weight, "description.bias": bias}}
    )
    labels = torch.tensor([[1, 0]])
    support = ExampleBatch(torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]), labels, labels)
    state = learner.adapt(learner.begin(1), support, step=0)
    torch.testing.assert_close(state.memory, torch.tensor([[[0.6, 0.8], [0.0, -1.0]]]))
    asked = torch.tensor([[[0.0, 0.0], [0.6, -0.2]]])
    logits = logits_of(learner, state, ExampleBatch(asked, labels, labels))
    # (0.6, -0.2): one away from the first; 0.36 + 0.64 from the second too. The query is not normalised.
    torch.testing.assert_close(logits, torch.tensor([[[-1.0, -1.0], [-1.0, -1.0]]]))


def trained(new_learner: Any, as_episodes: Any, tasks: Any) -> Any:
    learner = new_learner(ZeroShotProto, SPACES, outer_lr=0.01, hidden_sizes=(32,))
    for iteration in range(150):
        learner.meta_update(as_episodes(*tasks(iteration)))
    return learner


def test_a_linear_map_is_learned_and_names_unseen_classes(new_learner: Any, as_episodes: Any) -> None:
    """Classes with similar descriptions stay hard. The reference maps the query back by the true map and takes the
    nearest description. With shuffled descriptions, accuracy is chance."""
    learner = trained(new_learner, as_episodes, lambda seed: world(8, seed))
    support, query = world(200, 10_000)
    state = learner.adapt(learner.begin(200), support, step=0)
    score = float(learner.score(state, query).mean())
    oracle = oracle_score(support, query)
    assert oracle > 0.97
    assert score > 0.93
    moved = support._replace(inputs=support.inputs.roll(1, 0))  # the descriptions of another task's classes
    lost = learner.score(learner.adapt(learner.begin(200), moved, step=0), query)
    assert float(lost.mean()) == pytest.approx(1 / WAYS, abs=4 * float(lost.std()) / 200**0.5)


def oracle_score(support: ExampleBatch, query: ExampleBatch) -> float:
    fixed = torch.randn(INPUTS, ATTRIBUTES, generator=torch.Generator().manual_seed(99))
    recovered = query.inputs @ torch.linalg.pinv(fixed).mT
    nearest = torch.cdist(recovered, support.inputs).argmin(-1)
    return float((support.targets.gather(1, nearest) == query.targets).float().mean())


def test_training_on_shuffled_descriptions_leaves_chance(new_learner: Any, as_episodes: Any) -> None:
    def shuffled(seed: int) -> tuple[ExampleBatch, ExampleBatch]:
        support, query = world(8, seed)
        return support._replace(inputs=support.inputs.roll(1, 0)), query

    learner = trained(new_learner, as_episodes, shuffled)
    support, query = world(200, 10_000)
    scores: Tensor = learner.score(learner.adapt(learner.begin(200), support, step=0), query)
    assert float(scores.mean()) < 1 / WAYS + 0.1


def test_more_ways_in_training_than_in_testing(new_learner: Any, as_episodes: Any) -> None:
    spaces = ExampleSpaces((INPUTS,), WAYS, True, train_ways=9, description_size=ATTRIBUTES)
    learner = new_learner(ZeroShotProto, spaces, hidden_sizes=(8,))
    assert learner.meta_update(as_episodes(*world(2, 0, ways=9)))["loss"] > 0
    support, _ = world(2, 1)
    assert learner.adapt(learner.begin(2), support, step=0).memory.shape == (2, WAYS, 8)


def test_features_may_be_maps(new_learner: Any, as_episodes: Any, logits_of: Any) -> None:
    """[2, 4] counts as 8 numbers, as with the learners that compare features."""
    support, query = world(2, 0)
    scores = []
    for encoder in ("Identity", "Unflatten"):
        learner = new_learner(ZeroShotProto, SPACES, encoder=f"{__name__}:{encoder}")
        assert learner.parameters["description.weight"].shape == (INPUTS, ATTRIBUTES)
        learner.meta_update(as_episodes(support, query))
        scores.append(logits_of(learner, learner.adapt(learner.begin(2), support, step=0), query))
    assert torch.equal(*scores)


def Identity(shape: tuple[int, ...]) -> nn.Module:  # noqa: N802
    return nn.Identity()


def Unflatten(shape: tuple[int, ...]) -> nn.Module:  # noqa: N802
    return nn.Unflatten(1, (2, 4))


def test_misfits_are_refused(new_learner: Any) -> None:
    with pytest.raises(InputError, match=r"^agent = 'proto-zero-shot': .*this one needs descriptions"):
        new_learner(ZeroShotProto, ExampleSpaces((INPUTS,), WAYS, True, train_ways=WAYS))
    with pytest.raises(
        InputError, match=r"^agent.batch_norm = 'support': must be one of 'transductive', 'running', 'none'$"
    ):
        new_learner(ZeroShotProto, SPACES, batch_norm="support")
