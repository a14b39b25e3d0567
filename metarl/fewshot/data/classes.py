"""N-way K-shot tasks from images (or vectors) that are sorted into classes.

The images are copied once to the learner's device. Episodes select them by index. Support and query share one random
order of each class's images. The query takes the first images, and the support takes the next ones. So they are
disjoint for any number of shots, and more shots change no query.

Shape legend: N num_tasks, W ways, E examples of a task, C channels, H height, X width.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarl.core.bounds import AtLeast
from metarl.core.data import Examples
from metarl.core.errors import InputError, require
from metarl.core.seeds import Seeds
from metarl.core.tasks import Split
from metarl.fewshot.base.examples import ExampleSpaces, ExampleTaskDistribution

QUARTER_TURNS = 4
SPLITS = ("train", "val", "test")
SHARES = (0.64, 0.16, 0.2)  # of mini-ImageNet's classes
SIZES = ("ways", "shots", "queries")
NUM_NAMED = 8  # classes with too few images that an error names


@dataclass(frozen=True)
class ImageSet:
    """Images, vectors or other arrays, sorted by class.

    Attributes:
        images: [num_images, C, H, X] or [num_images, ...], uint8 or float32, the images of a class one after another,
            the classes in order.
        counts: images of each class.
        names: of the classes, for messages.
        splits: class numbers of "train", "val" and "test"; no class is in two of them.
        maximum: the value that becomes 1.0: 255 for bytes, 1 for one-bit images and for floats.
    """

    images: NDArray[np.uint8] | NDArray[np.float32]
    counts: NDArray[np.int64]
    names: tuple[str, ...]
    splits: Mapping[str, NDArray[np.int64]]
    maximum: int = 255

    def __post_init__(self) -> None:
        shape, total = self.images.shape, int(self.counts.sum())
        if len(shape) < 2 or self.images.dtype not in (np.uint8, np.float32):
            raise ValueError(f"images are {self.images.dtype} {shape}; expected uint8 or float32 [num_images, ...]")
        if total != shape[0] or len(self.names) != len(self.counts):
            raise ValueError(f"{len(self.names)} names and counts that sum to {total} do not fit {shape[0]} images")
        if not self.splits.keys() <= set(SPLITS):
            raise ValueError(f"splits are {', '.join(self.splits)}; expected {', '.join(SPLITS)}")
        used = np.concatenate([*self.splits.values(), np.zeros(0, np.int64)])
        if len(used) and not 0 <= used.min() <= used.max() < len(self.counts):
            raise ValueError(f"a split holds class {used.min()} or {used.max()} of {len(self.counts)}")
        if len(np.unique(used)) != len(used):
            raise ValueError("a class is in two splits, or twice in one")

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """The index of each class's first image."""
        return np.asarray(np.cumsum(self.counts) - self.counts)


@dataclass(frozen=True)
class Classes:
    """A task: classify among these classes.

    Attributes:
        ids: global class numbers. The place of a class here is its label. With n classes in all, number c + k n is
            class c turned k times by 90 degrees.
    """

    ids: tuple[int, ...]


@dataclass(frozen=True)
class ImageTasks(ExampleTaskDistribution[Classes]):
    """Settings of N-way K-shot tasks. A subclass loads the images."""

    num_ways: Annotated[int, AtLeast(2)] = 5
    """Classes of a task."""
    num_shots: Annotated[int, AtLeast(1)] = 1
    """Support examples of each class."""
    num_queries: Annotated[int, AtLeast(1)] = 15
    """Query examples of each class."""
    train_ways: Annotated[int | None, AtLeast(2)] = None
    """Classes of a training task; None = num_ways. More are better for metric learners."""
    train_shots: Annotated[int | None, AtLeast(1)] = None
    """Support examples of each class in training; None = num_shots."""
    train_queries: Annotated[int | None, AtLeast(1)] = None
    """Query examples of each class in training; None = num_queries."""
    train_split: Literal["train", "train+val"] = "train"
    """Classes to train on. train+val is for the last run, after settings have been chosen on validation classes."""
    test_split: Literal["test", "val"] = "test"
    """Classes to test on. val is for choosing settings."""
    train_rotations: bool = False
    """Add every training class turned by 90, 180 and 270 degrees, as classes of their own."""
    test_rotations: bool = False
    """The same for test classes."""

    splits = "disjoint"
    baseline_name: ClassVar[str] = "pixel prototypes"
    leaving_out: ClassVar[str] = "leave such classes out"

    def __post_init__(self) -> None:
        super().__post_init__()
        both = self.train_split == "train+val" and self.test_split == "val"
        require(
            not both,
            "task.test_split",
            self.test_split,
            "'test', since task.train_split = 'train+val' trains on validation classes",
        )
        if self.available():
            self._require_enough()

    def available(self) -> bool:
        """Whether it is known where the images are. If so, the constructor reads and counts them."""
        return True

    @abstractmethod
    def load(self) -> ImageSet:
        """Reads the images.

        Raises:
            InputError: they are missing or damaged; names the files that are needed.
        """

    @cached_property
    def data(self) -> ImageSet:
        """The images, read on first use."""
        return self.load()

    @cached_property
    def _tensors(self) -> dict[torch.device, Tensor]:
        """The images on each device that needs them."""
        return {}

    def classes(self, split: Split) -> NDArray[np.int64]:
        """The global numbers of all classes of `split`, with turned ones."""
        chosen = self.train_split if split == "train" else self.test_split
        plain = np.concatenate([self.data.splits.get(part, np.zeros(0, np.int64)) for part in chosen.split("+")])
        turns = QUARTER_TURNS if (self.train_rotations if split == "train" else self.test_rotations) else 1
        return np.concatenate([plain + turn * len(self.data.counts) for turn in range(turns)])

    def class_name(self, number: int) -> str:
        """The name of class `number` for messages: "Hebrew/U+05D0, turned by 90 degrees"."""
        turns, plain = divmod(number, len(self.data.counts))
        return self.data.names[plain] + (f", turned by {90 * turns} degrees" if turns else "")

    @property
    def caption(self) -> str:
        parts = [f"{self.num_ways}-way {self.num_shots}-shot", f"{self.num_queries} queries a class"]
        parts += ["validation classes"] * (self.test_split == "val") + ["turned classes too"] * self.test_rotations
        return ", ".join(parts)

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
        """Draws classes without replacement. Their order, and so their labels, are random."""
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

    def for_validation(self) -> Self:
        """The same tasks with `num_ways` classes in training, if there are enough. The images are shared."""
        if len(self.classes("train")) < self.num_ways:
            return self
        tasks = copy.copy(self)
        object.__setattr__(tasks, "train_ways", None)
        return tasks

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
        """Refuses settings that need more images or classes than there are."""
        shape = self.data.images.shape[1:]
        square = len(shape) == 3 and shape[1] == shape[2]
        for name, turned in (("train_rotations", self.train_rotations), ("test_rotations", self.test_rotations)):
            require(square or not turned, f"task.{name}", True, f"false for inputs of shape {shape}")
        validation = len(self.data.splits.get("val", ())) > 0
        fits = validation or self.train_split == "train"
        require(fits, "task.train_split", self.train_split, "'train': no class is for validation")
        fits = validation or self.test_split == "test"
        require(fits, "task.test_split", self.test_split, "'test': no class is for validation")
        splits: tuple[Split, Split] = ("train", "test")
        for split in splits:
            self._require_enough_of(split)

    def _require_enough_of(self, split: Split) -> None:
        pool, (ways, shots, queries) = self.classes(split), self._sizes(split)
        own = (self.train_ways, self.train_shots, self.train_queries) if split == "train" else (None, None, None)
        prefixes = ("num" if size is None else "train" for size in own)
        names = {name: f"task.{prefix}_{name}" for name, prefix in zip(SIZES, prefixes, strict=True)}
        require(ways <= len(pool), names["ways"], ways, f"at most {len(pool)}, the number of {split} classes")
        counts = self.data.counts[pool % len(self.data.counts)]
        small = np.flatnonzero(counts < shots + queries)
        if len(small):
            fewest, *others = small[np.argsort(counts[small], kind="stable")].tolist()
            label = f"class {self.class_name(int(pool[fewest]))!r} of the {split} split"
            named = [f"{self.class_name(int(pool[place]))!r} ({counts[place]})" for place in others[:NUM_NAMED]]
            more = f" and {len(others) - NUM_NAMED} more" if len(others) > NUM_NAMED else ""
            too = f"; also too small: {', '.join(named)}{more}" if others else ""
            raise InputError(
                f"{names['shots']} + {names['queries']} = {shots} + {queries} = {shots + queries}: must be at most "
                f"{counts[fewest]}, the number of images of {label}{too}; ask for fewer, or {self.leaving_out}"
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
        """The images at places `columns` in each class's order for this episode, shuffled."""
        count = len(columns)
        places, labels, classes = [], [], []
        plains = [np.asarray(task.ids) % len(self.data.counts) for task in tasks]
        orders = _orders(tuple(tuple(self.data.counts[plain].tolist()) for plain in plains), seeds)
        for task, plain, rows, shuffling in zip(tasks, plains, orders, shuffled_by, strict=True):
            ids, counts = np.asarray(task.ids), self.data.counts[plain]
            if columns.stop > counts.min():
                raise InputError(
                    f"{columns.stop} examples of a class are asked for, queries included, and class "
                    f"{self.class_name(task.ids[counts.argmin()])!r} has {counts.min()}; ask for fewer shots or queries"
                )
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
        """[N, E, C, H, X] float32, each image turned if its class is a turned one."""
        if device not in self._tensors:
            self._tensors[device] = torch.from_numpy(self.data.images).to(device)
        images = self._tensors[device].index_select(0, places.flatten().to(device))  # copies row by row
        turns = (classes // len(self.data.counts)).flatten()
        for turn in range(1, QUARTER_TURNS):
            # Counted on the classes' own device: counting on a GPU would make the CPU wait for it.
            where = (turns == turn).nonzero().flatten()
            if len(where):
                where = where.to(device)
                images.index_copy_(0, where, torch.rot90(images.index_select(0, where), turn, (-2, -1)))
        return images.view(*places.shape, *images.shape[1:]).float() / self.data.maximum


def _split(seeds: Seeds) -> Split:
    return "test" if seeds.evaluation else "train"


@lru_cache(maxsize=1)  # an episode's support and query use the same orders
def _orders(counts: tuple[tuple[int, ...], ...], seeds: Seeds) -> tuple[NDArray[np.int64], ...]:
    """A random order of the images of each class, one row per class, for each task.

    All rows of a task have the same length. In the row of a class with fewer images, indices beyond its last image
    come last.

    Args:
        counts: images of each class of each task.
        seeds: of the episode.
    """
    orders = []
    for numbers, rng in zip(counts, seeds.support(0), strict=True):
        keys = rng.random((len(numbers), max(numbers)))
        keys[np.arange(keys.shape[1]) >= np.array(numbers)[:, None]] = np.inf
        orders.append(np.argsort(keys, axis=1))
    return tuple(orders)


def pixel_prototypes(support: Examples, query: Examples) -> Tensor:
    """[N]: accuracy of comparing pixels, by the cosine to the mean of each class's normalised support images."""
    ways = int(max(support.targets.max(), query.targets.max())) + 1
    known, asked = (torch.nn.functional.normalize(data.inputs.flatten(2), dim=-1).double() for data in (support, query))
    members = (support.targets.unsqueeze(-1) == torch.arange(ways, device=known.device)).double()
    prototypes = torch.nn.functional.normalize(members.mT @ known, dim=-1)
    guesses = (asked @ prototypes.mT).argmax(-1)
    return (guesses == query.targets).double().mean(-1)


def require_shares(shares: tuple[float, ...], field: str = "task.shares") -> None:
    """Refuses anything but three numbers, none negative, that sum to 1."""
    fits = len(shares) == 3 and all(share >= 0 for share in shares) and abs(sum(shares) - 1) < 1e-6
    require(fits, field, shares, "three numbers >= 0 that sum to 1: for train, val and test")


def split_at_random(num_classes: int, shares: tuple[float, float], seed: int) -> dict[str, NDArray[np.int64]]:
    """Class numbers of train, val and test: a random order, cut after the shares of train and val."""
    order = np.random.default_rng(seed).permutation(num_classes)
    first = round(shares[0] * num_classes)
    second = first + round(shares[1] * num_classes)
    parts: dict[str, NDArray[np.int64]] = {"train": order[:first], "val": order[first:second], "test": order[second:]}
    return {name: np.sort(part) for name, part in parts.items()}
