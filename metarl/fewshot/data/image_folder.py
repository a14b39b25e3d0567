"""Images of your own: a folder for each class."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metarl.errors import InputError, require
from metarl.fewshot.data.classes import SHARES, SPLITS, ImageSet, ImageTasks, require_shares, split_at_random
from metarl.fewshot.data.pictures import Mode, fingerprint, folders_in, pictures_in, read_picture

LAYOUT = "a folder for each class, or folders train, test and perhaps val that hold them"


@dataclass(frozen=True)
class ImageFolder(ImageTasks):
    """Images of your own, a folder for each class; all are read into memory, as bytes, once.

    Hidden files and files that are no pictures by their suffix do not count; classes and images are ordered by name.
    """

    root: Path | None = None
    """Folder that holds a folder for each class, or folders train, test and perhaps val that hold them."""
    image_size: int = 84
    """Height and width that every image is resized to; proportions are not kept."""
    grey: bool = False
    """One channel of grey instead of three of colour."""
    shares: tuple[float, float, float] = SHARES
    """Shares of the classes to train on, for validation and to test on, drawn at random; left out where folders say
    which are which."""
    split_seed: int = 0
    """Seed of that draw."""

    def __post_init__(self) -> None:
        require(self.image_size >= 1, "task.image_size", self.image_size, "an integer >= 1")
        require(self.split_seed >= 0, "task.split_seed", self.split_seed, "an integer >= 0")
        require_shares(self.shares)
        super().__post_init__()

    def available(self) -> bool:
        return self.root is not None

    def load(self) -> ImageSet:
        root = self.root
        if root is None:
            raise InputError(f"task.root: missing; must be a folder that holds {LAYOUT}")
        require(root.is_dir(), "task.root", str(root), f"a folder that holds {LAYOUT}")
        classes, splits = self._classes(root)
        files = [pictures_in(folder) for folder in classes]
        for folder, paths in zip(classes, files, strict=True):
            if not paths:
                raise InputError(f"{folder}: holds no pictures; fill it, or remove it if it is no class")
        every = tuple(path for several in files for path in several)
        return ImageSet(
            images=_read(every, "L" if self.grey else "RGB", self.image_size, fingerprint(root, every)),
            counts=np.array([len(several) for several in files]),
            names=tuple(folder.name for folder in classes),
            splits=splits,
        )

    def _classes(self, root: Path) -> tuple[list[Path], dict[str, NDArray[np.int64]]]:
        """The folder of every class, and the split that each class is in."""
        found = folders_in(root)
        names = {folder.name for folder in found}
        if not found:
            raise InputError(f"task.root = {str(root)!r}: holds no folders: must hold {LAYOUT}")
        if not names <= set(SPLITS):
            return found, split_at_random(len(found), self.shares[:2], self.split_seed)
        for split in ("train", "test"):
            if split not in names:
                raise InputError(f"task.root = {str(root)!r}: holds {', '.join(sorted(names))} but no {split}")
        left_out = "left out where the folders train and test say what is for training"
        require(self.shares == SHARES, "task.shares", self.shares, left_out)
        require(self.split_seed == 0, "task.split_seed", self.split_seed, left_out)
        classes = {split: folders_in(root / split) for split in SPLITS if split in names}
        seen: dict[str, Path] = {}
        for folder in (folder for folders in classes.values() for folder in folders):
            if folder.name in seen:
                raise InputError(f"{folder}: the class is in two splits, also as {seen[folder.name]}")
            seen[folder.name] = folder
        stops = np.cumsum([len(folders) for folders in classes.values()])
        ends = zip(classes, stops, strict=True)
        return list(seen.values()), {split: np.arange(stop - len(classes[split]), stop) for split, stop in ends}


@functools.lru_cache(maxsize=1)
def _read(paths: tuple[Path, ...], mode: Mode, size: int, _fingerprint: str) -> NDArray[np.uint8]:
    images = np.empty((len(paths), len(mode), size, size), np.uint8)
    for place, path in enumerate(paths):
        images[place] = read_picture(path, mode, size)
    return images
