"""Omniglot: 1,623 characters of 50 alphabets, each drawn by 20 people.

Brenden Lake, Ruslan Salakhutdinov, Joshua Tenenbaum: Human-level concept learning through probabilistic program
induction. Science 2015. The files are at https://github.com/brendenlake/omniglot (MIT licence), under `python/`.
"""

from __future__ import annotations

import functools
import io
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray

from metarl.core.bounds import AtLeast
from metarl.core.errors import InputError, one_line, require
from metarl.fewshot.data.classes import ImageSet, ImageTasks, split_at_random
from metarl.fewshot.data.omniglot_alphabets import characters
from metarl.fewshot.data.packed import SIZE, by_name, read_packed
from metarl.fewshot.data.pictures import VARIABLE, data_folder, read_picture

PACKED = "omniglot28.npz"
SUBSETS = ("images_background", "images_evaluation")
FOLDERS = (".", "omniglot-py", "omniglot")
DRAWINGS = 20
# Finn et al. 2017 train on 1,200 characters. The usual split keeps 100 of these for validation.
RANDOM_SHARES = (1100 / 1623, 100 / 1623)
# Pixels of at least this darkness (255 = black) are ink in the smaller picture. A stroke is three of 105 pixels wide,
# which is less than one of 28. With a threshold of half of 255, a stroke that lies between two pixels would break.
INK = 102


@dataclass(frozen=True)
class Omniglot(ImageTasks):
    """Handwritten characters of 50 alphabets, 20 drawings each. You provide the files.

    All forms of the files give the same class numbers and one-bit pictures of 28 by 28, with ink 1 on 0.
    """

    root: Path | None = None
    """Folder with images_background and images_evaluation (folders, or the official zip files; also under omniglot-py,
    where torchvision puts them) or with omniglot28.npz; or that file. None = the folder METARL_DATA."""
    protocol: Literal["vinyals", "lake", "random"] = "vinyals"
    """Numbers of characters for training, validation and test. vinyals (Vinyals et al. 2016): 1028, 172 and 423, mostly
    by alphabet. lake (Lake et al. 2015): 792 and 172 of the background alphabets (Vinyals' five are for validation),
    and 659 of the evaluation alphabets. random: 1100, 100 and 423 of all."""
    split_seed: Annotated[int, AtLeast(0)] = 0
    """Seed of the random protocol. Scores with different seeds are not comparable."""
    train_rotations: bool = True
    """Add every training class turned by 90, 180 and 270 degrees, as classes of their own."""
    test_rotations: bool = True
    """The same for test classes, as in the papers of matching and prototypical networks."""

    def __post_init__(self) -> None:
        allowed = f"left out with task.protocol = {self.protocol!r}: only the random protocol has one"
        require(self.split_seed == 0 or self.protocol == "random", "task.split_seed", self.split_seed, allowed)
        super().__post_init__()

    @property
    def caption(self) -> str:
        return f"{super().caption}, {self.protocol} split"

    def available(self) -> bool:
        return data_folder(self.root) is not None

    def load(self) -> ImageSet:
        count = len(characters())
        return ImageSet(
            images=_read(data_folder(self.root)),
            counts=np.full(count, DRAWINGS),
            names=tuple(character.name for character in characters()),
            splits=split(self.protocol, self.split_seed),
            maximum=1,
        )


def split(protocol: str, seed: int = 0) -> dict[str, NDArray[np.int64]]:
    """Class numbers of train, val and test, as `Omniglot.protocol` says."""
    if protocol == "random":
        return split_at_random(len(characters()), RANDOM_SHARES, seed)
    if protocol == "vinyals":
        return by_name([character.split for character in characters()])
    # All of Vinyals' validation alphabets are in Lake's background.
    background = [character.subset == SUBSETS[0] for character in characters()]
    names = zip(background, characters(), strict=True)
    return by_name([("val" if c.split == "val" else "train") if known else "test" for known, c in names])


def _read(root: Path | None) -> NDArray[np.uint8]:
    """[1623 * 20, 1, 28, 28], ink 1, from any form of the files that `root` holds."""
    wanted = f"{PACKED}, or the folders or zips {' and '.join(SUBSETS)}"
    if root is None:
        raise InputError(f"task.root: missing; must be a folder that holds {wanted}; or set {VARIABLE} to it")
    places = [root / name for name in FOLDERS]
    for path in (root, *(place / PACKED for place in places)):
        if path.is_file():
            return _from_packed(path)
    for place in places:
        found = {subset: source for subset in SUBSETS if (source := _folder_or_zip(place / subset))}
        if len(found) == len(SUBSETS):
            changed = tuple(source.stat().st_mtime_ns for source in found.values())
            return _from_pictures(tuple(found.values()), changed)
        for subset in found:
            other = SUBSETS[1 - SUBSETS.index(subset)]
            raise InputError(f"task.root = {str(root)!r}: {place} holds {subset}, but neither {other} nor {other}.zip")
    raise InputError(
        f"task.root = {str(root)!r}: {'holds none of' if root.is_dir() else 'no such folder; wanted:'} {wanted}"
    )


def _folder_or_zip(path: Path) -> Path | None:
    zipped = path.with_name(f"{path.name}.zip")
    return path if path.is_dir() else zipped if zipped.is_file() else None


def _from_packed(path: Path) -> NDArray[np.uint8]:
    arrays = read_packed(path)
    names = [f"{a}/{c}" for a, c in zip(arrays["alphabet"], arrays["character"], strict=True)]
    wanted = [character.name for character in characters()]
    _require_complete(path, dict.fromkeys(names, int(arrays["images"].shape[1])), wanted)
    packed = arrays["images"][[names.index(name) for name in wanted]]
    return np.unpackbits(packed, axis=-1).reshape(-1, 1, SIZE, SIZE)


@functools.lru_cache(maxsize=1)
def _from_pictures(sources: tuple[Path, ...], _changed: tuple[int, ...]) -> NDArray[np.uint8]:
    parts = []
    for source, subset in zip(sources, SUBSETS, strict=True):
        wanted = [character.name for character in characters() if character.subset == subset]
        parts += [read_drawing(drawing, name) for name, drawing in _drawings(source, subset, wanted)]
    return np.stack(parts)


def read_drawing(source: io.BytesIO, name: str) -> NDArray[np.uint8]:
    """[1, 28, 28], ink 1, of a picture of any size with black ink on white.

    Raises:
        InputError: damaged.
    """
    grey = read_picture(source, "L", SIZE, name=name)
    return (255 - grey >= INK).astype(np.uint8)


def _drawings(source: Path, subset: str, wanted: list[str]) -> Iterator[tuple[str, io.BytesIO]]:
    """Name and content of each drawing of the characters `wanted`, in this order."""
    is_zip = source.is_file()
    try:
        with zipfile.ZipFile(source) if is_zip else nullcontext() as archive:
            found: dict[str, list[str]] = {}
            for name in sorted(archive.namelist() if archive else _paths(source)):
                parts = PurePosixPath(name).parts
                # A Mac adds a folder __MACOSX and files that begin with a dot.
                if len(parts) == 4 and parts[0] == subset and name.endswith(".png") and parts[3][0] != ".":
                    found.setdefault(f"{parts[1]}/{parts[2]}", []).append(name)
            _require_complete(source, {character: len(names) for character, names in found.items()}, wanted)
            for name in (name for character in wanted for name in found[character]):
                content = archive.read(name) if archive else (source.parent / name).read_bytes()
                yield f"{source if archive else source.parent}/{name}", io.BytesIO(content)
    except (OSError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{source}: cannot be read: {one_line(error)}") from error


def _paths(folder: Path) -> list[str]:
    return [path.relative_to(folder.parent).as_posix() for path in folder.glob("*/*/*")]


def _require_complete(source: Path, found: Mapping[str, int], wanted: list[str]) -> None:
    """Refuses a set that lacks one of the characters `wanted`, or a drawing of one, or holds another character."""
    missing = [name for name in wanted if name not in found]
    if missing:
        there = f"holds {len(wanted) - len(missing)} of its {len(wanted)} characters"
        raise InputError(f"{source}: {there}; the first that is missing: {missing[0]}")
    strange = sorted(found.keys() - set(wanted))
    if strange:
        raise InputError(f"{source}: holds {len(strange)} characters that are not Omniglot's; the first: {strange[0]}")
    for name in wanted:
        if found[name] != DRAWINGS:
            raise InputError(f"{source}: {name} has {found[name]} drawings: must be {DRAWINGS}")
