"""Your own images, in one folder for each class."""

from __future__ import annotations

import functools
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from metarl.core.bounds import AtLeast
from metarl.core.errors import InputError, require
from metarl.core.files import total_memory
from metarl.fewshot.data.classes import SHARES, SPLITS, ImageSet, ImageTasks, require_shares, split_at_random
from metarl.fewshot.data.pictures import (
    SUFFIXES,
    Mode,
    entries,
    fingerprint,
    folders_in,
    pictures_in,
    read_picture,
    shown,
)

LAYOUT = "a folder for each class, or folders train, test and perhaps val that hold them"
# Names of the folders that hold the classes of a split, in any capitals.
NAMES_OF_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
NUM_NAMED = 5  # files or folders that a message names

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageFolder(ImageTasks):
    """Images of your own, in a folder for each class. All are read into memory once, as bytes.

    Classes and images are ordered by name. Hidden files, files without a picture's suffix, empty folders, and folders
    inside class folders are left out, and one line names them.
    """

    root: Path | None = None
    """Folder that holds a folder for each class, or folders train, test and perhaps val that hold them."""
    image_size: Annotated[int, AtLeast(1)] = 84
    """Height and width to which every image is resized. Proportions are not kept."""
    grey: bool = False
    """One channel of grey instead of three of colour."""
    shares: tuple[float, float, float] = SHARES
    """Shares of the classes for training, validation and test, drawn at random. Leave it out if folders train and test
    exist."""
    split_seed: Annotated[int, AtLeast(0)] = 0
    """Seed of that draw."""
    skip_small_classes: bool = False
    """Leave out classes that have fewer images than shots and queries need. Otherwise they are an error."""

    leaving_out = "set task.skip_small_classes"

    def __post_init__(self) -> None:
        require_shares(self.shares)  # before the images are read
        super().__post_init__()

    def available(self) -> bool:
        return self.root is not None

    def load(self) -> ImageSet:
        root = self.root
        if root is None:
            raise InputError(f"task.root: missing; must be a folder that holds {LAYOUT}")
        require(root.is_dir(), "task.root", shown(root), f"a folder that holds {LAYOUT}")
        folders = {path: pictures_in(path) for path in self._folders(root)}
        if self.skip_small_classes:
            least = max(sum(self._sizes("train")[1:]), sum(self._sizes("test")[1:]))
            folders = {path: pictures for path, pictures in folders.items() if len(pictures) >= least}
            require(bool(folders), "task.skip_small_classes", True, f"left out: no class has {least} pictures")
        _require_pictures(folders)
        every = tuple(picture for pictures in folders.values() for picture in pictures)
        _say_what_is_left_out(root, frozenset((*folders, *every)))
        mode: Mode = "L" if self.grey else "RGB"
        memory, pixels = total_memory(), len(every) * len(mode)
        fits = f"at most {math.isqrt(memory // pixels)}: the {len(every)} pictures must fit into memory"
        require(pixels * self.image_size**2 <= memory, "task.image_size", self.image_size, fits)
        return ImageSet(
            images=_read(every, mode, self.image_size, fingerprint(root, every)),
            counts=np.array([len(pictures) for pictures in folders.values()], np.int64),
            names=tuple(shown(folder.name) for folder in folders),
            splits=self._splits(root, list(folders)),
        )

    def _folders(self, root: Path) -> list[Path]:
        """The folders of all classes that are not empty, those of train first, then of val and of test."""
        found = folders_in(root)
        if not found:
            raise InputError(f"task.root = {shown(root)!r}: holds no folders: must hold {LAYOUT}")
        splits = _splits_of(root, found)
        if not splits:
            return [path for path in found if entries(path)]
        left_out = "left out: the folders train and test decide which classes are for training"
        require(self.shares == SHARES, "task.shares", self.shares, left_out)
        require(self.split_seed == 0, "task.split_seed", self.split_seed, left_out)
        seen: dict[str, Path] = {}
        for folder in (path for split in SPLITS if split in splits for path in folders_in(splits[split])):
            if folder.name in seen:
                raise InputError(f"{shown(folder)}: the class is in two splits, also as {shown(seen[folder.name])}")
            seen[folder.name] = folder
        return [path for path in seen.values() if entries(path)]

    def _splits(self, root: Path, folders: list[Path]) -> dict[str, NDArray[np.int64]]:
        """The numbers of the classes in each split."""
        splits = _splits_of(root, folders_in(root))
        if not splits:
            return split_at_random(len(folders), self.shares[:2], self.split_seed)
        return {split: np.flatnonzero([folder.parent == path for folder in folders]) for split, path in splits.items()}


def _splits_of(root: Path, folders: Sequence[Path]) -> dict[str, Path]:
    """The folder of each split in `root`; empty if `folders` are class folders."""
    found: dict[str, Path] = {}
    others = [folder for folder in folders if folder.name.lower() not in NAMES_OF_SPLITS]
    for folder in (folder for folder in folders if folder not in others):
        split = NAMES_OF_SPLITS[folder.name.lower()]
        if split in found:
            raise InputError(f"{shown(folder)}: is for {split}, as {shown(found[split])} is; must be one folder")
        found[split] = folder
    names = "folders train, test and perhaps val (or valid, validation)"
    if others and {"train", "test"} <= found.keys():
        raise InputError(
            f"task.root = {shown(root)!r}: holds {shown(others[0].name)} beside train and test: must hold {names} alone"
        )
    if others:
        return {}
    for split in ("train", "test"):
        if split not in found:
            held = ", ".join(shown(folder.name) for folder in folders)
            raise InputError(f"task.root = {shown(root)!r}: holds {held} but no {split}: must hold {names}")
    return {split: found[split] for split in SPLITS if split in found}


def _require_pictures(folders: Mapping[Path, Sequence[Path]]) -> None:
    without = [path for path, pictures in folders.items() if not pictures]
    if without:
        named = ", ".join(map(shown, without[:NUM_NAMED]))
        more = f" and {len(without) - NUM_NAMED} more" if len(without) > NUM_NAMED else ""
        inside = "; pictures in folders within it do not count" if any(map(folders_in, without)) else ""
        holds = "holds" if len(without) == 1 else "hold"
        advice = "remove what is no class, or set task.skip_small_classes"
        raise InputError(f"{named}{more}: {holds} no pictures ({', '.join(sorted(SUFFIXES))}){inside}; {advice}")


@functools.lru_cache(maxsize=1)  # warns once, although a run makes its tasks several times
def _say_what_is_left_out(root: Path, used: frozenset[Path]) -> None:
    """Warns of entries of `root` and of its split and class folders that are not used."""
    folders = {root, *(path for path in used if path.is_dir())}
    folders |= {path.parent for path in folders if path != root}
    found = [path for folder in folders for path in entries(folder) if path not in used and path not in folders]
    if not found:
        return
    counts = sorted(Counter(shown(path.name) for path in found).items(), key=lambda pair: (-pair[1], pair[0]))
    named = ", ".join(f"{name} ({count})" if count > 1 else name for name, count in counts[:NUM_NAMED])
    more = ", ..." if len(counts) > NUM_NAMED else ""
    entry = "1 entry is" if len(found) == 1 else f"{len(found)} entries are"
    _logger.warning("task.root = %r: %s left out: %s%s", shown(root), entry, named, more)


@functools.lru_cache(maxsize=1)
def _read(paths: tuple[Path, ...], mode: Mode, size: int, _fingerprint: str) -> NDArray[np.uint8]:
    images = np.empty((len(paths), len(mode), size, size), np.uint8)
    for place, path in enumerate(paths):
        images[place] = read_picture(path, mode, size)
    return images
