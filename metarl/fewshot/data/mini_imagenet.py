"""mini-ImageNet: 100 classes of ImageNet, 600 colour images of each.

Oriol Vinyals, Charles Blundell, Timothy Lillicrap, Koray Kavukcuoglu, Daan Wierstra: Matching Networks for One Shot
Learning. NeurIPS 2016, arXiv:1606.04080. The classes and the split that everyone uses: Sachin Ravi, Hugo Larochelle:
Optimization as a Model for Few-Shot Learning. ICLR 2017.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from metarl.core.errors import InputError, require
from metarl.fewshot.data.classes import SPLITS, ImageSet, ImageTasks
from metarl.fewshot.data.pictures import (
    VARIABLE,
    data_folder,
    fingerprint,
    folders_in,
    pictures_in,
    read_through_cache,
)

SIZE = 84
NUM_CLASSES = {"train": 64, "val": 16, "test": 20}
NUM_IMAGES = 600
COLUMNS = ("filename", "label")
WANTED = (
    "train.csv, val.csv and test.csv (filename,label) with a folder images, or folders train, val and test of classes"
)

# A split's classes with their files, both by name.
Listing = Mapping[str, Mapping[str, list[Path]]]


@dataclass(frozen=True)
class MiniImageNet(ImageTasks):
    """Natural images of 84 by 84 of 100 classes of ImageNet. You provide the files.

    The first use decodes all images into one file of 1.27 GB, `mini-imagenet-84-<fingerprint>.npy`. Later runs map it
    into memory. It is made again when an image file changes, and can be deleted at any time.
    """

    root: Path | None = None
    """Folder that holds train.csv, val.csv and test.csv (Ravi's: filename,label) and the folder images, or the folders
    train, val and test with a folder of images for each class. None = mini-imagenet in the folder METARL_DATA."""
    cache: Path | None = None
    """Folder for the file of decoded images; None = root."""

    def available(self) -> bool:
        return self._folder() is not None

    def load(self) -> ImageSet:
        root = self._folder()
        if root is None:
            raise InputError(f"task.root: missing; must be a folder that holds {WANTED}; or set {VARIABLE}")
        listing = _listing(root)
        classes = [(split, name) for split in SPLITS for name in listing[split]]
        paths = [path for split, name in classes for path in listing[split][name]]
        name = f"mini-imagenet-{SIZE}-{fingerprint(root, paths, SIZE, 'as shown')}.npy"
        return ImageSet(
            images=read_through_cache((self.cache or root) / name, paths, "RGB", SIZE),
            counts=np.full(len(classes), NUM_IMAGES),
            names=tuple(name for _, name in classes),
            splits={split: np.flatnonzero([split == s for s, _ in classes]) for split in SPLITS},
        )

    def _folder(self) -> Path | None:
        if self.root is not None:
            return self.root
        shared = data_folder(None)
        return shared / "mini-imagenet" if shared and (shared / "mini-imagenet").is_dir() else None


def _listing(root: Path) -> Listing:
    """The files of every class, from either form of `root`.

    Raises:
        InputError: files are missing; says which.
    """
    require(root.is_dir(), "task.root", str(root), f"a folder that holds {WANTED}")
    tables = {split: root / f"{split}.csv" for split in SPLITS}
    trees = {split: root / split for split in SPLITS}
    if any(path.is_file() for path in tables.values()):
        missing = [path.name for path in tables.values() if not path.is_file()]
        form = {split: _from_table(path, root / "images") for split, path in tables.items()} if not missing else {}
    elif any(path.is_dir() for path in trees.values()):
        missing = [path.name for path in trees.values() if not path.is_dir()]
        form = {split: _from_tree(path) for split, path in trees.items()} if not missing else {}
    else:
        pickles = sorted(root.glob("*.pkl")) + sorted(root.glob("*.pickle"))
        note = f"; {pickles[0].name} is not read: a pickle can run any code" if pickles else ""
        raise InputError(f"task.root = {str(root)!r}: must hold {WANTED}{note}")
    if missing:
        raise InputError(f"task.root = {str(root)!r}: lacks {', '.join(missing)}; must hold {WANTED}")
    _require_counts(root, form)
    return form


def _from_table(path: Path, images: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            if tuple(rows.fieldnames or ()) != COLUMNS:
                raise InputError(f"{path}: columns are {rows.fieldnames}: must be {', '.join(COLUMNS)}")
            for row in rows:
                name, label = row["filename"], row["label"]
                if not name or not label or Path(name).name != name:
                    raise InputError(f"{path}:{rows.line_num}: must be the name of a file in {images} and a label")
                found.setdefault(label, []).append(images / name)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    for label, files in found.items():
        if len(set(files)) < len(files):
            raise InputError(f"{path}: names an image of class {label} twice")
    return {label: sorted(found[label]) for label in sorted(found)}


def _from_tree(folder: Path) -> dict[str, list[Path]]:
    return {path.name: pictures_in(path) for path in folders_in(folder)}


def _require_counts(root: Path, listing: Listing) -> None:
    for split, classes in listing.items():
        if len(classes) != NUM_CLASSES[split]:
            raise InputError(
                f"{root}: the {split} split has {len(classes)} classes: must be {NUM_CLASSES[split]}; for other images "
                "there is image-folder"
            )
        for name, files in classes.items():
            if len(files) != NUM_IMAGES:
                raise InputError(
                    f"{root}: class {name} of the {split} split has {len(files)} images: must be {NUM_IMAGES}; for "
                    "other images there is image-folder"
                )
    names = [name for classes in listing.values() for name in classes]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"{root}: class {twice[0]} is in two splits")
