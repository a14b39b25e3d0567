"""Small problems that the tests of all few-shot learners share, as fixtures that give functions and classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from metarl.core.data import Episodes
from metarl.core.trees import tree_map
from metarl.fewshot.base.examples import ExampleSpaces
from metarl.fewshot.base.learner import ExampleBatch
from metarl.fewshot.data.classes import ImageSet, ImageTasks

SIDE = 16


@dataclass(frozen=True)
class Characters(ImageTasks):
    """Patterns of 5 by 5 cells that stand somewhere in an image of 16 by 16, with noise: comparing pixels helps little,
    since places differ; 40 classes to train on, 10 and 30 held out."""

    def load(self) -> ImageSet:
        rng = np.random.default_rng(7)
        classes, instances = 80, 20
        patterns = (rng.random((classes, 5, 5)) < 0.5).astype(np.uint8).repeat(2, axis=1).repeat(2, axis=2)
        images = np.zeros((classes * instances, 1, SIDE, SIDE), np.uint8)
        for number, image in enumerate(images):
            down, right = rng.integers(0, SIDE - 10 + 1, 2)
            image[0, down : down + 10, right : right + 10] = 215 * patterns[number // instances]
        images += rng.integers(0, 40, images.shape, dtype=np.uint8)
        cut = {"train": np.arange(40), "val": np.arange(40, 50), "test": np.arange(50, 80)}
        names = tuple(str(number) for number in range(classes))
        return ImageSet(images, np.full(classes, instances), names, cut, maximum=255)


@pytest.fixture
def characters() -> type[Characters]:
    return Characters


def make_learner(
    kind: Any,
    spaces: ExampleSpaces,
    *,
    dtype: torch.dtype = torch.float32,
    shaken: float = 0.0,
    seed: int = 0,
    **settings: Any,
) -> Any:
    """A learner of class `kind`, its parameters moved by normal numbers of size `shaken`: scales of normalisations and
    biases are then no longer 1 and 0."""
    learner = kind(kind.Config(**settings), spaces, generator=torch.Generator().manual_seed(seed))
    state = tree_map(lambda v: v.to(dtype) if v.is_floating_point() else v, learner.state_dict())
    rng = torch.Generator().manual_seed(seed + 1)
    for name, value in state["parameters"].items():
        state["parameters"][name] = value + shaken * torch.randn(value.shape, generator=rng, dtype=dtype)
    learner.load_state_dict(state)
    return learner


@pytest.fixture
def new_learner() -> Callable[..., Any]:
    return make_learner


def make_batches(
    *,
    tasks: int = 2,
    ways: int = 3,
    shots: int = 2,
    queries: int = 4,
    shape: tuple[int, ...] = (6,),
    dtype: torch.dtype = torch.float32,
    noise: float = 0.3,
    seed: int = 0,
) -> tuple[ExampleBatch, ExampleBatch]:
    """Support and query of tasks with classes about random centres, in random order; classes are numbered throughout
    from 0, those of task i from i * ways."""
    rng = torch.Generator().manual_seed(seed)
    centres = torch.randn(tasks, ways, *shape, generator=rng, dtype=dtype)

    def part(count: int) -> ExampleBatch:
        labels = torch.stack([torch.randperm(ways * count, generator=rng) % ways for _ in range(tasks)])
        classes = labels + ways * torch.arange(tasks).unsqueeze(1)
        chosen = torch.stack([own[row] for own, row in zip(centres, labels, strict=True)])
        return ExampleBatch(chosen + noise * torch.randn(chosen.shape, generator=rng, dtype=dtype), labels, classes)

    return part(shots), part(queries)


@pytest.fixture
def new_batches() -> Callable[..., tuple[ExampleBatch, ExampleBatch]]:
    return make_batches


def episodes_of(support: ExampleBatch, query: ExampleBatch, *, num_steps: int = 1) -> Episodes[Any, ExampleBatch]:
    """What `run_episodes(adapting=False)` makes of them."""
    slots = tuple(range(len(query.targets)))
    return Episodes(slots, slots, (support,) * num_steps, query, None, (), 0, (0.0,))


@pytest.fixture
def as_episodes() -> Callable[..., Episodes[Any, ExampleBatch]]:
    return episodes_of


@pytest.fixture
def logits_of() -> Callable[..., Tensor]:
    """[N, E, W] of a learner's state and a query: what `score` compares with the targets."""

    def logits(learner: Any, state: Any, query: ExampleBatch) -> Tensor:
        with torch.no_grad():
            found: Tensor = learner.predict(state, query.inputs)
        return found

    return logits


def one_task(tree: Any, number: int = 0) -> Any:
    return tree_map(lambda tensor: tensor[number], tree)


@pytest.fixture
def task_of() -> Callable[..., Any]:
    """Of a tree of tensors with the task axis leading, that of one task."""
    return one_task


@pytest.fixture
def same_bits() -> Callable[[Any, Any], bool]:
    def same(left: Any, right: Any) -> bool:
        parts: list[list[Tensor]] = [[], []]
        for tree, found in zip((left, right), parts, strict=True):
            tree_map(lambda tensor, found=found: (found.append(tensor), tensor)[1], tree)  # type: ignore[misc]
        return len(parts[0]) == len(parts[1]) and all(map(torch.equal, *parts))

    return same
