"""Every few-shot learner learns synthetic characters that comparing pixels does not tell apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from metarl.core.config import EvaluationConfig, TrainerConfig
from metarl.core.trainer import Trainer
from metarl.fewshot.base.baseline import evaluate_baseline
from metarl.fewshot.base.examples import ExampleCollector
from metarl.runs.registry import LEARNERS, load_learner

# Settings, meta-batch, iterations, adaptation steps at test time, and the accuracy that the lower end of the interval
# must be above: 0.1 below what seed 0 reached on 200 test episodes, which stands beside it. Chance is 0.2, and pixel
# prototypes reach 0.23.
LEARNED: dict[str, tuple[dict[str, Any], int, int, int, float]] = {
    "maml": ({"inner_lr": 0.4}, 8, 250, 3, 0.87),  # 0.97
    "fomaml": ({"inner_lr": 0.4}, 8, 250, 3, 0.46),  # 0.56
    "meta-sgd": ({"initial_step_sizes": (0.1, 0.4)}, 8, 250, 3, 0.88),  # 0.98
    "reptile": ({"inner_lr": 5e-3}, 5, 400, 20, 0.82),  # 0.92
    "proto": ({}, 4, 200, 1, 0.75),  # 0.85
    "matching": ({}, 4, 200, 1, 0.80),  # 0.90
    "relation": ({}, 4, 300, 1, 0.76),  # 0.86
    "siamese": ({}, 4, 200, 1, 0.56),  # 0.66
    "fine-tune": ({}, 4, 250, 20, 0.66),  # 0.76
    "multi-task": ({}, 4, 250, 20, 0.64),  # 0.74
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(LEARNED))
def test_a_learner_learns_characters(name: str, characters: Any) -> None:
    settings, meta_batch_size, iterations, steps, least = LEARNED[name]
    own = settings if name == "reptile" else {"outer_lr": 5e-3, **settings}
    shots = {"train_shots": 10} if name == "reptile" else {}
    distribution = characters(num_ways=5, num_shots=1, num_queries=5, **shots)
    collector, kind = ExampleCollector(distribution), load_learner(name)
    trainer = Trainer(
        kind(kind.Config(num_filters=16, **own), collector.spaces, generator=torch.Generator().manual_seed(0)),
        collector,
        distribution,
        TrainerConfig(iterations=iterations, meta_batch_size=meta_batch_size),
        EvaluationConfig(num_tasks=600, num_adaptation_steps=steps, controls=False),
    )
    curve = trainer.run()
    assert curve is not None
    baseline = evaluate_baseline(distribution, curve.tasks)
    assert baseline is not None
    assert baseline.ci_high < 0.25
    assert float(curve.interval()[0][-1]) > least
    assert curve.gain(steps)[1] > 0.2  # nothing is known before the support is seen


def test_every_learner_of_examples_is_among_them() -> None:
    """Zero-shot prototypes have a test of their own, on descriptions."""
    assert set(LEARNED) == set(LEARNERS) - {"proto-zero-shot"}
