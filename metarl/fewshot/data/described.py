"""Zero-shot tasks: the support of an image task is replaced by a description of each class."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from metarl.core.data import Examples
from metarl.core.seeds import Seeds
from metarl.core.tasks import Split, Splits
from metarl.fewshot.base.examples import ExampleSpaces, ExampleTaskDistribution
from metarl.fewshot.data.classes import Classes, ImageTasks


class DescribedTasks(ExampleTaskDistribution[Classes]):
    """Image tasks whose support holds descriptions of the classes instead of images.

    Args:
        images: the tasks that give the queries.
        descriptions: [num_classes, description_size], such as attributes, in the order of the class numbers.
    """

    def __init__(self, images: ImageTasks, descriptions: NDArray[np.generic]) -> None:
        if len(descriptions) != len(images.data.counts):
            raise ValueError(f"{len(descriptions)} descriptions do not fit {len(images.data.counts)} classes")
        self.images = images
        self.splits: Splits = images.splits
        self._descriptions = torch.from_numpy(np.asarray(descriptions, dtype=np.float32))

    @property
    def spaces(self) -> ExampleSpaces:
        return replace(self.images.spaces, description_size=self._descriptions.shape[1])

    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> list[Classes]:
        return self.images.sample(num_tasks, rng, split=split)

    def for_validation(self) -> DescribedTasks:
        tasks = copy.copy(self)
        tasks.images = self.images.for_validation()
        return tasks

    def support(
        self, tasks: Sequence[Classes], seeds: Seeds, *, shot: int | None = None, device: torch.device | str = "cpu"
    ) -> Examples:
        """One description of every class, in random order."""
        order = np.stack([rng.permutation(len(t.ids)) for t, rng in zip(tasks, seeds.support(0), strict=True)])
        classes = torch.from_numpy(np.take_along_axis(np.array([task.ids for task in tasks]), order, axis=1))
        described = self._descriptions[classes % len(self._descriptions)]
        return Examples(described.to(device), torch.from_numpy(order).to(device), classes.to(device))

    def query(self, tasks: Sequence[Classes], seeds: Seeds, *, device: torch.device | str = "cpu") -> Examples:
        return self.images.query(tasks, seeds, device=device)
