"""Fine-tuning and multi-task learning: joint training by plain loops, and a new head that alone is tuned."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from metarl.core.errors import InputError
from metarl.fewshot.base.examples import ExampleSpaces
from metarl.fewshot.base.learner import ExampleBatch
from metarl.fewshot.fine_tune import FineTune, FineTuneConfig
from metarl.fewshot.multi_task import MultiTask

NUMBERS = (0, 1, 2, 3, 4, 5, 8)  # of training classes, not one after another
SPACES = ExampleSpaces((6,), 3, True, train_ways=3, train_classes=NUMBERS)
IMAGES = ExampleSpaces((1, 16, 16), 3, True, train_ways=3, train_classes=NUMBERS)
VALUES = ExampleSpaces((6,), 2, False)
BOTH = pytest.mark.parametrize("kind", [FineTune, MultiTask])
HEADS = pytest.mark.parametrize("head", ["linear", "cosine"])


def make(new_learner: Any, kind: type[FineTune] = FineTune, spaces: ExampleSpaces = SPACES, **settings: Any) -> Any:
    few: dict[str, Any] = {"hidden_sizes": (16,), "num_filters": 2}
    return new_learner(kind, spaces, dtype=torch.float64, **{**few, **settings})


def labelled(batches: tuple[ExampleBatch, ExampleBatch]) -> tuple[ExampleBatch, ExampleBatch]:
    """With global numbers of training classes: task 0 has 8, 1 and 4, task 1 has 0, 5 and 2."""
    chosen = torch.tensor([[8, 1, 4], [0, 5, 2]])
    support, query = (part._replace(classes=chosen.gather(1, part.targets)) for part in batches)
    return support, query


def plain_logits(features: Tensor, weight: Tensor, bias: Tensor, head: str, scale: float) -> Tensor:
    rows = []
    for row in features:
        if head == "linear":
            rows.append(torch.stack([row @ w + b for w, b in zip(weight, bias, strict=True)]))
        else:
            rows.append(torch.stack([scale * (row @ w) / (row.norm() * w.norm()) for w in weight]))
    return torch.stack(rows)


@HEADS
@BOTH
def test_joint_training_is_the_plain_loop(
    kind: type[FineTune], head: Any, new_learner: Any, new_batches: Any, task_of: Any
) -> None:
    """All classes of the training split compete; in multi-task learning those of the own task alone, which are
    (0, 1, 2), (3, 4, 5) and (8)."""
    learner = make(new_learner, kind, head=head, cosine_scale=4.0, shaken=0.3)
    support, query = (task_of(part) for part in labelled(new_batches(dtype=torch.float64)))
    loss, outcome = learner.episode_loss(learner.parameters, (support,), query)
    inputs = torch.cat([support.inputs, query.inputs])
    features = learner.encoder(learner.parameters, inputs)
    weights = (learner.parameters["classes.weight"], learner.parameters["classes.bias"])
    losses, hits = [], []
    numbers = [*support.classes.tolist(), *query.classes.tolist()]
    for row, number in zip(plain_logits(features, *weights, head, 4.0).tolist(), numbers, strict=True):
        column = NUMBERS.index(number)
        group = column // 3
        rivals = range(len(row)) if kind is FineTune else [c for c in range(len(row)) if c // 3 == group]
        losses.append(math.log(sum(math.exp(row[c] - row[column]) for c in rivals)))
        hits.append(max(rivals, key=lambda c, row=row: row[c]) == column)  # type: ignore[misc]
    assert float(loss) == pytest.approx(sum(losses) / len(losses))
    assert float(outcome.score) == pytest.approx(sum(hits) / len(hits))


def test_other_tasks_heads_get_no_gradient(new_learner: Any, new_batches: Any) -> None:
    learner = make(new_learner, MultiTask, shaken=0.3)
    support, query = labelled(new_batches(dtype=torch.float64))
    chosen = torch.tensor([0, 1, 2])  # the first of the fixed tasks
    support, query = (part._replace(classes=chosen[part.targets]) for part in (support, query))
    gradients, _ = learner.meta_gradient((support,), query)
    rows = gradients["classes.weight"].abs().sum(1)
    assert (rows[:3] > 0).all()
    assert rows[3:].tolist() == [0.0] * 4
    joint, _ = make(new_learner, FineTune, shaken=0.3).meta_gradient((support,), query)
    assert (joint["classes.weight"].abs().sum(1) > 0).all()


@HEADS
@BOTH
def test_tuning_leaves_every_bit_but_the_heads(
    kind: type[FineTune], head: Any, new_learner: Any, new_batches: Any
) -> None:
    learner = make(new_learner, kind, IMAGES, head=head, batch_norm="running")
    support, _ = new_batches(shape=(1, 16, 16), dtype=torch.float64)
    state = learner.begin(2)
    for step in range(4):
        state = learner.adapt(state, support, step=step)
    changed = {n for n, v in learner.parameters.items() if not torch.equal(state.parameters[n], v.expand(2, *v.shape))}
    assert changed == ({"head.weight", "head.bias"} if head == "linear" else {"head.weight"})
    assert not torch.equal(state.parameters["head.weight"][0], state.parameters["head.weight"][1])
    moved = learner.state_dict()["statistics"]
    assert all(torch.equal(v, u) for v, u in zip(moved.values(), learner.encoder.statistics.values(), strict=True))


@BOTH
def test_the_new_head_starts_from_zero_in_every_episode(
    kind: type[FineTune], new_learner: Any, new_batches: Any, as_episodes: Any, logits_of: Any
) -> None:
    learner = make(new_learner, kind, outer_lr=0.05)
    support, query = labelled(new_batches(dtype=torch.float64))
    for _ in range(5):
        learner.meta_update(as_episodes(support, query))
        learner.adapt(learner.begin(2), support, step=0)
    state = learner.begin(2)
    assert float(state.parameters["head.weight"].abs().max()) == 0.0
    assert float(state.parameters["head.bias"].abs().max()) == 0.0
    assert float(logits_of(learner, state, query).abs().max()) == 0.0


def test_the_cosine_head_starts_alike_in_every_episode_and_is_not_trained(
    new_learner: Any, new_batches: Any, as_episodes: Any
) -> None:
    learner = make(new_learner, head="cosine", outer_lr=0.05)
    start = learner.parameters["head.weight"].clone()
    assert float(start.norm(dim=1).min()) > 0  # at zero a cosine has no gradient
    learner.meta_update(as_episodes(*labelled(new_batches(dtype=torch.float64))))
    assert torch.equal(learner.parameters["head.weight"], start)
    assert torch.equal(learner.begin(2).parameters["head.weight"], start.expand(2, *start.shape))


@HEADS
def test_tuning_is_plain_gradient_descent_on_the_supports_features(
    head: Any, new_learner: Any, new_batches: Any, task_of: Any
) -> None:
    learner = make(new_learner, head=head, cosine_scale=4.0, inner_lr=0.3)
    support, query = new_batches(dtype=torch.float64)
    state = learner.begin(2)
    for step in range(3):
        state = learner.adapt(state, support, step=step)
    for task in range(2):
        known, asked = task_of(support, task), task_of(query, task)
        features = learner.encoder(learner.parameters, known.inputs)
        weight, bias = (learner.parameters[f"head.{end}"].clone() for end in ("weight", "bias"))
        for _ in range(3):
            leaves = [weight.requires_grad_(), bias.requires_grad_()]
            loss = functional.cross_entropy(plain_logits(features, weight, bias, head, 4.0), known.targets)
            slopes = torch.autograd.grad(loss, leaves, allow_unused=True)
            weight, bias = (v.detach() - 0.3 * (0.0 if g is None else g) for v, g in zip(leaves, slopes, strict=True))
        torch.testing.assert_close(state.parameters["head.weight"][task], weight)
        torch.testing.assert_close(state.parameters["head.bias"][task], bias)
        guesses = plain_logits(learner.encoder(learner.parameters, asked.inputs), weight, bias, head, 4.0).argmax(-1)
        expected = (guesses == asked.targets).double().mean()
        assert float(learner.score(state, query)[task]) == pytest.approx(float(expected))


@pytest.mark.parametrize(
    ("tuned", "spaces", "everything"),
    [
        ("auto", SPACES, False),
        ("head", SPACES, False),
        ("all", SPACES, True),
        ("auto", VALUES, True),
        ("head", VALUES, False),
    ],
)
def test_what_is_tuned(tuned: Any, spaces: ExampleSpaces, everything: bool, new_learner: Any, new_batches: Any) -> None:
    learner = make(new_learner, spaces=spaces, tuned=tuned)
    support, _ = new_batches(dtype=torch.float64)
    if not spaces.discrete:
        support = support._replace(targets=support.inputs[..., :2])
    state = learner.begin(2)
    for step in range(2):  # behind a head of zeros, the first step leaves the encoder alone
        state = learner.adapt(state, support, step=step)
    changed = {n.split(".")[0] for n, v in learner.parameters.items() if not torch.equal(state.parameters[n][0], v)}
    assert changed == ({"encoder", "head"} if everything else {"head"})


def test_for_values_all_points_are_trained_on_together(new_learner: Any, new_batches: Any) -> None:
    """The pretrained baseline: the loss is the mean squared error of support and query."""
    learner = make(new_learner, spaces=VALUES)
    support, query = (p._replace(targets=p.inputs[..., 1:3]) for p in new_batches(dtype=torch.float64))
    gradients, outcome = learner.meta_gradient((support,), query)
    leaves = {name: value.clone().requires_grad_() for name, value in learner.parameters.items()}
    inputs, targets = (
        torch.cat([getattr(support, n), getattr(query, n)], 1).flatten(0, 1) for n in ("inputs", "targets")
    )
    errors = (learner.head(leaves, learner.encoder(leaves, inputs)) - targets).square()
    slopes = torch.autograd.grad(errors.mean(), list(leaves.values()))
    assert float(outcome.loss.mean()) == pytest.approx(float(errors.mean().detach()))
    for (name, found), slope in zip(gradients.items(), slopes, strict=True):
        torch.testing.assert_close(found, slope, msg=name)


def test_a_few_support_images_do_not_move_the_running_statistics(
    new_learner: Any, new_batches: Any, as_episodes: Any
) -> None:
    learner = make(new_learner, spaces=IMAGES)
    support, query = labelled(new_batches(shape=(1, 16, 16), dtype=torch.float64))
    learner.meta_update(as_episodes(support, query))
    before = {name: value.clone() for name, value in learner.state_dict()["statistics"].items()}
    assert all(float(value[0].abs().max()) > 0 for value in before.values())  # training moved them
    state = learner.adapt(learner.begin(2), support, step=0)
    learner.score(state, query)
    assert all(torch.equal(value, before[name]) for name, value in learner.state_dict()["statistics"].items())


def test_training_with_other_ways_than_testing(new_learner: Any, new_batches: Any, as_episodes: Any) -> None:
    spaces = ExampleSpaces((6,), 3, True, train_ways=5, train_classes=tuple(range(10)))
    learner = make(new_learner, spaces=spaces)
    assert learner.meta_update(as_episodes(*new_batches(ways=5, dtype=torch.float64)))["loss"] > 0
    assert learner.parameters["classes.weight"].shape == (10, 16)
    assert learner.parameters["head.weight"].shape == (3, 16)


@pytest.mark.parametrize("setting", ["num_adaptation_steps", "later_step_scale"])
def test_joint_training_has_no_inner_steps_to_set(setting: str) -> None:
    with pytest.raises(TypeError, match=setting):
        FineTuneConfig(**{setting: 2})


def test_misfits_are_refused(new_learner: Any) -> None:
    with pytest.raises(InputError, match=r"^agent.head = 'cosine': must be 'linear' for regression$"):
        make(new_learner, spaces=VALUES, head="cosine")
    with pytest.raises(InputError, match=r"^agent = 'multi-task': .*this one needs classes$"):
        make(new_learner, MultiTask, VALUES)
    with pytest.raises(InputError, match=r"^agent.head = 'dot': must be one of 'linear', 'cosine'$"):
        FineTuneConfig(head="dot")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"^agent.tuned = 'body': must be one of 'auto', 'head', 'all'$"):
        FineTuneConfig(tuned="body")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"^agent.cosine_scale = 0.0: must be a positive number$"):
        FineTuneConfig(cosine_scale=0.0)
