"""Sine waves: the regression family of the MAML paper.

Chelsea Finn, Pieter Abbeel, Sergey Levine: Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks.
ICML 2017, arXiv:1703.03400, section 5.1: y = A sin(x - phase), A from U(0.1, 5), phase from U(0, pi), x from U(-5, 5).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray

from metarl.core.bounds import AtLeast
from metarl.core.data import Examples
from metarl.core.seeds import Seeds
from metarl.core.tasks import Split
from metarl.fewshot.base.examples import ExampleSpaces, ExampleTaskDistribution

AMPLITUDES = (0.1, 5.0)
PHASES = (0.0, math.pi)
INPUTS = (-5.0, 5.0)


@dataclass(frozen=True)
class Wave:
    """y = amplitude * sin(x - phase)."""

    amplitude: float
    phase: float


@dataclass(frozen=True)
class Sinusoid(ExampleTaskDistribution[Wave]):
    """Regression of a sine wave from a few of its points."""

    num_shots: Annotated[int, AtLeast(1)] = 10
    """Points of the support."""
    num_queries: Annotated[int, AtLeast(1)] = 100
    """Points of the query in evaluation."""
    train_queries: Annotated[int, AtLeast(1)] = 10
    """Points of the query in training; in the paper as many as in the support."""
    reveal: bool = False
    """Give amplitude and phase as inputs beside x. The learner is then an oracle, which needs no support."""

    @property
    def caption(self) -> str:
        return f"{self.num_shots} points"

    @property
    def spaces(self) -> ExampleSpaces:
        return ExampleSpaces(input_shape=(3 if self.reveal else 1,), num_outputs=1, discrete=False)

    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> list[Wave]:
        amplitudes, phases = (rng.uniform(*bounds, num_tasks) for bounds in (AMPLITUDES, PHASES))
        return [Wave(float(a), float(p)) for a, p in zip(amplitudes, phases, strict=True)]

    def support(
        self, tasks: Sequence[Wave], seeds: Seeds, *, shot: int | None = None, device: torch.device | str = "cpu"
    ) -> Examples:
        count = max(self.num_shots, 0 if shot is None else shot + 1)
        inputs = np.stack([rng.uniform(*INPUTS, count) for rng in seeds.support(0)])
        return self._examples(tasks, inputs if shot is None else inputs[:, shot : shot + 1], device)

    def query(self, tasks: Sequence[Wave], seeds: Seeds, *, device: torch.device | str = "cpu") -> Examples:
        count = self.num_queries if seeds.evaluation else self.train_queries
        return self._examples(tasks, np.stack([rng.uniform(*INPUTS, count) for rng in seeds.query()]), device)

    def _examples(self, tasks: Sequence[Wave], inputs: NDArray[np.float64], device: torch.device | str) -> Examples:
        waves = np.array([[task.amplitude, task.phase] for task in tasks])
        targets = waves[:, :1] * np.sin(inputs - waves[:, 1:])
        columns = [inputs, *(np.broadcast_to(waves[:, i : i + 1], inputs.shape) for i in range(2) if self.reveal)]
        stacked = torch.from_numpy(np.stack(columns, axis=-1)).float()
        return Examples(stacked.to(device), torch.from_numpy(targets).float().unsqueeze(-1).to(device))
