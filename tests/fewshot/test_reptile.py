"""Reptile's inner Adam against torch's, and its move against means written out."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from metarl.core.errors import InputError
from metarl.core.trees import tree_map
from metarl.fewshot.base.examples import ExampleSpaces
from metarl.fewshot.base.learner import ExampleBatch
from metarl.fewshot.reptile import Reptile, ReptileConfig, mini_batch

SPACES = ExampleSpaces((6,), 3, True, train_ways=3)
IMAGES = ExampleSpaces((1, 16, 16), 3, True, train_ways=3)
SHOTS = 3  # 9 examples


def make(new_learner: Any, **settings: Any) -> Reptile:
    settings = {"hidden_sizes": (5,), "num_adaptation_steps": 3, "inner_batch_size": 4, "inner_lr": 0.01, **settings}
    learner: Reptile = new_learner(Reptile, SPACES, dtype=torch.float64, shaken=0.3, **settings)
    return learner


def logits(weights: dict[str, Tensor], inputs: Tensor) -> Tensor:
    hidden = torch.relu(inputs @ weights["encoder.layers.layers.0.weight"].mT + weights["encoder.layers.layers.0.bias"])
    return hidden @ weights["head.weight"].mT + weights["head.bias"]


class Plain:
    """ONE task's training by torch's Adam, whose second moments may be those of another."""

    def __init__(self, learner: Reptile, adam_state: dict[int, dict[str, Tensor]] | None = None) -> None:
        self.weights = {name: value.clone().requires_grad_() for name, value in learner.parameters.items()}
        self.adam = torch.optim.Adam(self.weights.values(), lr=learner.config.inner_lr, betas=(0.0, 0.999))
        if adam_state is not None:
            state = self.adam.state_dict()
            self.adam.load_state_dict({**state, "state": copy.deepcopy(adam_state)})

    def train(self, support: ExampleBatch, steps: int, size: int, *, first: int = 0) -> Plain:
        count = len(support.targets)
        for step in range(first, first + steps):
            rows = [(step * size + i) % count for i in range(min(size, count))]
            loss = functional.cross_entropy(logits(self.weights, support.inputs[rows]), support.targets[rows])
            self.adam.zero_grad()
            loss.backward()
            self.adam.step()
        return self

    @property
    def moments(self) -> dict[int, dict[str, Tensor]]:
        found: dict[int, dict[str, Tensor]] = self.adam.state_dict()["state"]
        return found


def mean_moments(plains: list[Plain]) -> dict[int, dict[str, Tensor]]:
    return {
        place: {key: torch.stack([p.moments[place][key] for p in plains]).mean(0) for key in state}
        for place, state in plains[0].moments.items()
    }


@pytest.mark.parametrize("reset", [False, True])
def test_an_update_is_torchs_adam_per_task_then_the_mean(
    reset: bool, new_learner: Any, new_batches: Any, as_episodes: Any, task_of: Any
) -> None:
    """Theta goes half way to the mean of the trained weights; second moments are carried as their mean, or reset."""
    learner = make(new_learner, reset_moments=reset, meta_step_size=0.5)
    carried = None
    for seed in range(3):
        support, query = new_batches(shots=SHOTS, seed=seed, dtype=torch.float64)
        before = dict(learner.parameters)
        plains = [Plain(learner, carried).train(task_of(support, i), 3, 4) for i in range(2)]
        metrics = learner.meta_update(as_episodes(support, query, num_steps=3))
        squares = 0.0
        for name, old in before.items():
            mean = (plains[0].weights[name].detach() + plains[1].weights[name].detach()) / 2
            torch.testing.assert_close(learner.parameters[name], old - 0.5 * (old - mean))
            squares += float((0.5 * (old - mean)).square().sum())
        assert metrics["move_norm"] == pytest.approx(squares**0.5)
        scores = [
            (logits(p.weights, task_of(query, i).inputs).argmax(-1) == task_of(query, i).targets).double().mean()
            for i, p in enumerate(plains)
        ]
        assert metrics["adapt/step_3"] == pytest.approx(float(sum(scores) / 2))
        carried = None if reset else mean_moments(plains)
        kept = learner.state_dict()["carried"]
        assert int(kept["num_steps"]) == (0 if reset else 3 * (seed + 1))
        for place, name in enumerate(learner.parameters):
            expected = torch.zeros(()) if carried is None else carried[place]["exp_avg_sq"]
            torch.testing.assert_close(kept[f"second.{name}"], expected.double().expand_as(before[name]))


def test_adapting_goes_on_from_the_carried_moments_and_changes_none(
    new_learner: Any, new_batches: Any, as_episodes: Any, task_of: Any, same_bits: Any
) -> None:
    learner = make(new_learner, test_batch_size=2)
    support, query = new_batches(shots=SHOTS, dtype=torch.float64)
    plains = [Plain(learner).train(task_of(support, i), 3, 4) for i in range(2)]
    learner.meta_update(as_episodes(support, query, num_steps=3))
    before = tree_map(Tensor.clone, learner.state_dict())
    for _ in range(2):  # the second evaluation is the first once more
        state = learner.begin(2)
        for step in range(5):
            state = learner.adapt(state, support, step=step)
            learner.score(state, query)
        for task in range(2):
            plain = Plain(learner, mean_moments(plains)).train(task_of(support, task), 5, 2)
            for name, leaf in plain.weights.items():
                torch.testing.assert_close(state.parameters[name][task], leaf.detach())
        assert int(state.parameters["num_steps"][0]) == 8
        assert same_bits(learner.state_dict(), before)


def test_later_steps_are_scaled_and_those_of_meta_training_are_not(
    new_learner: Any, new_batches: Any, same_bits: Any
) -> None:
    """Adam without momentum: a step is its learning rate times something that does not depend on it."""
    support, _ = new_batches(shots=SHOTS, dtype=torch.float64)
    plain, scaled = (make(new_learner, later_step_scale=scale) for scale in (1.0, 0.25))
    state = plain.begin(2)
    for step in range(5):
        before, after, other = state, plain.adapt(state, support, step=step), scaled.adapt(state, support, step=step)
        for name in plain.parameters:
            moved, less = (new.parameters[name] - before.parameters[name] for new in (after, other))
            torch.testing.assert_close(less, moved * (1.0 if step < 3 else 0.25))
        state = after


def test_there_is_no_meta_gradient_to_compile() -> None:
    with pytest.raises(InputError, match=r"^agent.execution = 'compiled': must be one of 'auto', 'loop', 'vmap'$"):
        ReptileConfig(execution="compiled")  # type: ignore[arg-type]


def test_a_state_with_other_moments_is_refused(new_learner: Any) -> None:
    learner = make(new_learner)
    state = learner.state_dict()
    carried = {name: value for name, value in state["carried"].items() if name != "second.head.bias"}
    with pytest.raises(ValueError, match="carried moments do not fit the network"):
        learner.load_state_dict({**state, "carried": carried})


def test_one_inner_step_is_joint_training(new_learner: Any, new_batches: Any, as_episodes: Any, task_of: Any) -> None:
    """With moments that the batch hardly moves, the same for all weights, the move is a step of gradient descent on the
    mean of the tasks' losses: Adam then divides every gradient by 10."""
    learner = make(new_learner, num_adaptation_steps=1, inner_batch_size=9, inner_lr=0.01)
    state = learner.state_dict()
    many = torch.tensor(10**9)  # the correction of the bias is then 1
    state["carried"] = {n: many if n == "num_steps" else torch.full_like(v, 1e2) for n, v in state["carried"].items()}
    learner.load_state_dict(state)
    support, query = new_batches(shots=SHOTS, dtype=torch.float64)
    weights = {name: value.clone().requires_grad_() for name, value in learner.parameters.items()}
    joint = functional.cross_entropy(logits(weights, support.inputs.flatten(0, 1)), support.targets.flatten())
    gradients = torch.autograd.grad(joint, list(weights.values()))
    learner.meta_update(as_episodes(support, query))
    for (name, old), gradient in zip(weights.items(), gradients, strict=True):
        moved = (learner.parameters[name] - old).detach()
        torch.testing.assert_close(moved, -0.01 * gradient / 10.0, rtol=1e-3, atol=1e-9)


def test_more_inner_steps_are_not(new_learner: Any, new_batches: Any, as_episodes: Any) -> None:
    support, query = new_batches(shots=SHOTS, dtype=torch.float64)
    moves = []
    for steps in (1, 3):
        learner = make(new_learner, num_adaptation_steps=steps, inner_batch_size=9, inner_lr=0.05)
        before = learner.parameters["head.weight"]
        learner.meta_update(as_episodes(support, query, num_steps=steps))
        moves.append((learner.parameters["head.weight"] - before).flatten())
    assert float(functional.cosine_similarity(moves[0], moves[1], dim=0)) < 0.99


def test_the_first_step_of_adam_without_momentum_by_hand(new_learner: Any, new_batches: Any) -> None:
    """Its length is the step size for every weight that has a gradient, whatever the gradient's size."""
    learner = make(new_learner)
    support, _ = new_batches(shots=SHOTS, dtype=torch.float64)
    before = learner.begin(2)
    after = learner.adapt(before, support, step=0)
    moved = (after.parameters["head.bias"] - before.parameters["head.bias"]).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.01), rtol=1e-4, atol=0)


def test_the_meta_step_falls_to_zero_and_stays_there(new_learner: Any, new_batches: Any, as_episodes: Any) -> None:
    learner = make(new_learner, meta_step_size=0.8, schedule_iterations=4)
    batches = new_batches(shots=SHOTS, dtype=torch.float64)
    sizes, moves = [], []
    for _ in range(6):
        metrics = learner.meta_update(as_episodes(*batches, num_steps=3))
        sizes.append(metrics["meta_step_size"])
        moves.append(metrics["move_norm"])
    assert sizes == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.0, 0.0])
    assert moves[3] > 0.0
    assert moves[4:] == [0.0, 0.0]
    steady = make(new_learner)
    assert [steady.meta_update(as_episodes(*batches, num_steps=3))["meta_step_size"] for _ in range(2)] == [1.0, 1.0]


def test_mini_batches_go_round_the_support(new_batches: Any, task_of: Any) -> None:
    support = task_of(new_batches(shots=1, ways=5)[0])
    rows = [mini_batch(support, number, 3).inputs for number in range(4)]
    places = [[0, 1, 2], [3, 4, 0], [1, 2, 3], [4, 0, 1]]
    assert all(torch.equal(found, support.inputs[place]) for found, place in zip(rows, places, strict=True))
    whole = mini_batch(support, 3, 10)
    assert sorted(whole.targets.tolist()) == [0, 1, 2, 3, 4]  # all, each once


def test_query_labels_and_inputs_do_not_reach_the_weights(
    new_learner: Any, new_batches: Any, as_episodes: Any, same_bits: Any
) -> None:
    support, query = new_batches(shots=SHOTS, dtype=torch.float64)
    ends = []
    for asked in (query, query._replace(inputs=query.inputs + 1.0, targets=query.targets.roll(1, 1))):
        learner = make(new_learner)
        learner.meta_update(as_episodes(support, asked, num_steps=3))
        ends.append(learner.state_dict())
    assert same_bits(*ends)


@pytest.mark.parametrize("mode", ["transductive", "support", "running", "none"])
def test_every_batch_norm_mode_trains(mode: Any, new_learner: Any, new_batches: Any, as_episodes: Any) -> None:
    learner = new_learner(Reptile, IMAGES, batch_norm=mode, num_filters=2, num_adaptation_steps=2)
    learner.meta_update(as_episodes(*new_batches(shape=(1, 16, 16)), num_steps=2))
    moved = [float((v[0] if v.dim() else v).abs().sum()) for v in learner.state_dict()["statistics"].values()]
    assert any(moved) == (mode == "running")


def test_settings(new_learner: Any) -> None:
    with pytest.raises(InputError, match=r"^agent.meta_step_size = 0.0: must be a positive number$"):
        ReptileConfig(meta_step_size=0.0)
    with pytest.raises(InputError, match=r"^agent.schedule_iterations = 0: must be an integer >= 1, or left out$"):
        ReptileConfig(schedule_iterations=0)
    with pytest.raises(InputError, match=r"^agent.test_batch_size = 0: must be an integer >= 1, or left out$"):
        ReptileConfig(test_batch_size=0)
    with pytest.raises(TypeError, match="outer_lr"):  # Reptile has no outer optimiser, and says so
        ReptileConfig(outer_lr=0.1)  # type: ignore[call-arg]
