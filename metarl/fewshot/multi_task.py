"""Multi-task learning with hard parameter sharing, then a new head: a baseline.

Rich Caruana: Multitask Learning. Machine Learning 28, 1997. The list of training classes is cut into fixed tasks of
`num_ways` classes. All tasks share the encoder. Each task has an output layer of its own, for its own classes. A test
task gets a new output layer, as in fine-tuning.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from metarl.core.errors import require
from metarl.fewshot.base.learner import score_of
from metarl.fewshot.fine_tune import FineTune


class MultiTask(FineTune):
    """A shared encoder with a head for each of many fixed tasks."""

    def _require_fit(self) -> None:
        super()._require_fit()
        require(self.spaces.discrete, "agent", "multi-task", "a learner for regression: this one needs classes")

    def class_loss(self, logits: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and accuracy within each example's own task."""
        ways = self.spaces.num_outputs
        groups = torch.arange(logits.shape[-1], device=logits.device) // ways
        foreign = groups.unsqueeze(0) != (rows // ways).unsqueeze(1)
        own = logits.masked_fill(foreign, -torch.inf)
        return functional.cross_entropy(own, rows), score_of(own, rows)
