"""N-way K-shot tasks from images that are sorted into classes.

Shape legend: N num_tasks, W ways, E examples of a task, C channels, H height, X width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarl.episodes import Examples
from metarl.errors import InputError, require
from metarl.examples import ExampleSpaces, ExampleTaskDistribution
from metarl.seeds import Seeds
from metarl.tasks import Split, Splits

QUARTER_TURNS = 4


@dataclass(frozen=True)
class ImageSet:
    """Images sorted by class.

    Attributes:
        images: [num_images, C, H, X] uint8, the images of a class one after another, the classes in order.
        counts: images of each class.
        names: of the classes, for people.
        splits: class numbers of "train", "val" and "test"; no class is in two of them.
        maximum: the value that becomes 1.0: 1 for one-bit images, 255 for others.
    """

    images: NDArray[np.uint8]
    counts: NDArray[np.int64]
    names: tuple[str, ...]
    splits: Mapping[str, NDArray[np.int64]]
    maximum: int = 255

    def __post_init__(self) -> None:
        shape, total = self.images.shape, int(self.counts.sum())
        if len(shape) != 4 or self.images.dtype != np.uint8:
            raise ValueError(f"images are {self.images.dtype} {shape}; expected uint8 [num_images, C, H, X]")
        if total != shape[0] or len(self.names) != len(self.counts):
            raise ValueError(f"{len(self.names)} names and counts that sum to {total} do not fit {shape[0]} images")
        used = np.concatenate([*self.splits.values(), np.zeros(0, np.int64)])
        if len(np.unique(used)) != len(used):
            raise ValueError("a class is in two splits, or twice in one")

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """The place of each class's first image."""
        return np.asarray(np.cumsum(self.counts) - self.counts)


@dataclass(frozen=True)
class Classes:
    """A task: tell these classes apart.

    Attributes:
        ids: global class numbers; a class's place here is its label. Of n classes, c + k n is class c turned by k
            quarters.
    """

    ids: tuple[int, ...]


@dataclass(frozen=True)
class ImageTasks(ExampleTaskDistribution[Classes]):
    """Settings of N-way K-shot tasks; a subclass says where the images come from."""

    num_ways: int = 5
    """Classes of a task."""
    num_shots: int = 1
    """Support examples of each class."""
    num_queries: int = 15
    """Query examples of each class."""
    train_ways: int | None = None
    """Classes of a training task; None = num_ways. Metric learners gain from more."""
    train_shots: int | None = None
    """Support examples of each class in training; None = num_shots."""
    train_queries: int | None = None
    """Query examples of each class in training; None = num_queries."""
    train_split: Literal["train", "train+val"] = "train"
    """Classes to train on: validation classes too, once settings are chosen."""
    test_split: Literal["test", "val"] = "test"
    """Classes to test on: validation classes, while settings are chosen."""
    train_rotations: bool = False
    """Count every training class turned by 90, 180 and 270 degrees as a class of its own."""
    test_rotations: bool = False
    """The same for test classes."""
    _loaded: list[ImageSet] = field(default_factory=list, init=False, repr=False, compare=False)
    _tensors: dict[torch.device, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    splits: ClassVar[Splits] = "disjoint"
    baseline_name: ClassVar[str] = "pixel prototypes"

    def __post_init__(self) -> None:
        for name, least in (("num_ways", 2), ("num_shots", 1), ("num_queries", 1)):
            require(getattr(self, name) >= least, f"task.{name}", getattr(self, name), f"an integer >= {least}")
            train = name.replace("num", "train")
            value = getattr(self, train)
            require(value is None or value >= least, f"task.{train}", value, f"an integer >= {least}, or left out")
        both = self.train_split == "train+val" and self.test_split == "val"
        require(not both, "task.test_split", self.test_split, "'test' where validation classes are trained on")
        if self.available():
            self._require_enough()

    def available(self) -> bool:
        """Whether it is known where the images are; then they are read and counted at once."""
        return True

    @abstractmethod
    def load(self) -> ImageSet:
        """Reads the images.

        Raises:
            InputError: they are not there, or damaged; names the files wanted.
        """

    @property
    def data(self) -> ImageSet:
        """The images, read on first use."""
        if not self._loaded:
            self._loaded.append(self.load())
        return self._loaded[0]

    def classes(self, split: Split) -> NDArray[np.int64]:
        """The global numbers of all classes of `split`, turned ones included."""
        chosen = self.train_split if split == "train" else self.test_split
        plain = np.concatenate([self.data.splits.get(part, np.zeros(0, np.int64)) for part in chosen.split("+")])
        turns = QUARTER_TURNS if (self.train_rotations if split == "train" else self.test_rotations) else 1
        return np.concatenate([plain + turn * len(self.data.counts) for turn in range(turns)])

    def class_name(self, number: int) -> str:
        """For people: "Hebrew/U+05D0, turned by 90 degrees"."""
        turns, plain = divmod(number, len(self.data.counts))
        return self.data.names[plain] + (f", turned by {90 * turns} degrees" if turns else "")

    @property
    def spaces(self) -> ExampleSpaces:
        return ExampleSpaces(
            input_shape=self.data.images.shape[1:],
            num_outputs=self.num_ways,
            discrete=True,
            train_ways=self._sizes("train")[0],
            train_classes=tuple(self.classes("train").tolist()),
        )

    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> list[Classes]:
        """Classes without replacement, in an order, and so with labels, of chance."""
        pool, ways = self.classes(split), self._sizes(split)[0]
        return [Classes(tuple(rng.choice(pool, ways, replace=False).tolist())) for _ in range(num_tasks)]

    def support(
        self, tasks: Sequence[Classes], seeds: Seeds, *, shot: int | None = None, device: torch.device | str = "cpu"
    ) -> Examples:
        _, shots, queries = self._sizes(_split(seeds))
        columns = range(queries, queries + shots) if shot is None else range(queries + shot, queries + shot + 1)
        return self._examples(tasks, seeds, columns, shuffled_by=seeds.support(1), device=device)

    def query(self, tasks: Sequence[Classes], seeds: Seeds, *, device: torch.device | str = "cpu") -> Examples:
        queries = self._sizes(_split(seeds))[2]
        return self._examples(tasks, seeds, range(queries), shuffled_by=seeds.query(), device=device)

    def baseline(self, support: Examples, query: Examples) -> Tensor:
        return pixel_prototypes(support, query)

    def _sizes(self, split: Split) -> tuple[int, int, int]:
        """Ways, shots and queries."""
        sizes = (self.num_ways, self.num_shots, self.num_queries)
        if split == "test":
            return sizes
        train = (self.train_ways, self.train_shots, self.train_queries)
        ways, shots, queries = (b if a is None else a for a, b in zip(train, sizes, strict=True))
        return ways, shots, queries

    def _require_enough(self) -> None:
        splits: tuple[Split, Split] = ("train", "test")
        for split in splits:
            prefix, pool = "train" if split == "train" else "num", self.classes(split)
            ways, shots, queries = self._sizes(split)
            name, value = (f"{prefix}_ways", ways)
            if getattr(self, name) is None:
                name = "num_ways"
            there = f"at most {len(pool)}, the number of {split} classes"
            require(ways <= len(pool), f"task.{name}", value, there)
            counts = self.data.counts[pool % len(self.data.counts)]
            fewest = int(counts.argmin())
            if shots + queries > counts[fewest]:
                label = f"class {self.class_name(int(pool[fewest]))!r} of the {split} split"
                raise InputError(
                    f"task.{prefix}_shots + task.{prefix}_queries = {shots} + {queries} = {shots + queries}: must be at "
                    f"most {counts[fewest]}, the number of images of {label}; ask for fewer, or leave the class out"
                )

    def _examples(
        self,
        tasks: Sequence[Classes],
        seeds: Seeds,
        columns: range,
        *,
        shuffled_by: Sequence[np.random.Generator],
        device: torch.device | str,
    ) -> Examples:
        """Of every class the images that stand in `columns` of its order in this episode, in an order of chance."""
        count = len(columns)
        places, labels, classes = [], [], []
        for task, rng, shuffling in zip(tasks, seeds.support(0), shuffled_by, strict=True):
            ids = np.asarray(task.ids)
            plain = ids % len(self.data.counts)
            rows = _orders(self.data.counts[plain], rng)
            if columns.stop > rows.shape[1] or columns.stop > self.data.counts[plain].min():
                fewest = int(self.data.counts[plain].min())
                raise InputError(f"{columns.stop} examples of a class are asked for, and one of {task} has {fewest}")
            chosen = (self.data.starts[plain][:, None] + rows[:, columns.start : columns.stop]).ravel()
            order = shuffling.permutation(len(chosen))
            places.append(chosen[order])
            labels.append(np.repeat(np.arange(len(ids)), count)[order])
            classes.append(np.repeat(ids, count)[order])
        numbers = torch.from_numpy(np.stack(classes))
        return Examples(
            self._inputs(torch.from_numpy(np.stack(places)), numbers, torch.device(device)),
            torch.from_numpy(np.stack(labels)).to(device),
            numbers.to(device),
        )

    def _inputs(self, places: Tensor, classes: Tensor, device: torch.device) -> Tensor:
        """[N, E, C, H, X] float32, turned as the classes say."""
        if device not in self._tensors:
            self._tensors[device] = torch.from_numpy(self.data.images).to(device)
        images = self._tensors[device][places.to(device)]
        turns = classes // len(self.data.counts)
        for turn in range(1, QUARTER_TURNS):
            turned = (turns == turn).to(device)
            if bool((turns == turn).any()):
                images[turned] = torch.rot90(images[turned], turn, (-2, -1))
        return images.float() / self.data.maximum


def _split(seeds: Seeds) -> Split:
    return "test" if seeds.evaluation else "train"


def _orders(counts: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """A random order of each class's images, one row per class; what is beyond a class's number comes last."""
    keys = rng.random((len(counts), int(counts.max())))
    keys[np.arange(keys.shape[1]) >= counts[:, None]] = np.inf
    return np.asarray(np.argsort(keys, axis=1))


def pixel_prototypes(support: Examples, query: Examples) -> Tensor:
    """[N]: accuracy of comparing pixels: cosine to the mean of the normalised support images of each class."""
    ways = int(max(support.targets.max(), query.targets.max())) + 1
    known, asked = (torch.nn.functional.normalize(data.inputs.flatten(2), dim=-1).double() for data in (support, query))
    members = (support.targets.unsqueeze(-1) == torch.arange(ways, device=known.device)).double()
    prototypes = torch.nn.functional.normalize(members.mT @ known, dim=-1)
    guesses = (asked @ prototypes.mT).argmax(-1)
    return (guesses == query.targets).double().mean(-1)


def split_at_random(num_classes: int, shares: tuple[float, float], seed: int) -> dict[str, NDArray[np.int64]]:
    """Class numbers of train, val and test: a random order of `seed`, cut after the given shares of train and val."""
    order = np.random.default_rng(seed).permutation(num_classes)
    first = round(shares[0] * num_classes)
    second = first + round(shares[1] * num_classes)
    parts: dict[str, Any] = {"train": order[:first], "val": order[first:second], "test": order[second:]}
    return {name: np.sort(part) for name, part in parts.items()}
