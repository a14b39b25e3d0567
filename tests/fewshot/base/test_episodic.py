"""Episodic training on MAML: its meta-gradient, optimiser and settings."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from metarl.core.errors import InputError
from metarl.core.trees import tree_map
from metarl.fewshot.base.episodic import EpisodicConfig
from metarl.fewshot.base.examples import ExampleSpaces
from metarl.fewshot.maml import MAML

VECTORS = ExampleSpaces((6,), 3, True, train_ways=3, train_classes=tuple(range(12)))
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
