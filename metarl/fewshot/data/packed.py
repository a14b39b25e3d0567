"""One-bit images packed into an npz file, the format of MetaRL's own glyphs and of a packed Omniglot."""

from __future__ import annotations

import functools
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metarl.core.errors import InputError, one_line
from metarl.fewshot.data.classes import ImageSet, ImageTasks

GLYPHS = Path(__file__).parent / "glyphs" / "glyphs.npz"
SIZE = 28


@dataclass(frozen=True)
class Glyphs(ImageTasks):
    """Characters of many scripts in many typefaces, shipped with MetaRL. Whole scripts are held out for testing.

    `glyphs/manifest.json` lists the typefaces and their licences.
    """

    train_rotations: bool = True

    def load(self) -> ImageSet:
        return unpacked(read_packed(GLYPHS), "split")


@functools.lru_cache(maxsize=2)
def _read(path: Path, _changed: int) -> Mapping[str, NDArray[Any]]:
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
        return {name: file[name] for name in ("images", "alphabet", "character", "split")} | {
            name: file[name] for name in file.files if name == "subset"
        }


def read_packed(path: Path) -> Mapping[str, NDArray[Any]]:
    """The arrays of a packed file: images uint8 [num_classes, instances, 98], and alphabet, character and split of each
    class ("train", "val" or "test").

    Raises:
        InputError: missing, or not such a file.
    """
    try:
        arrays = _read(path, path.stat().st_mtime_ns)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        # TypeError: numpy also loads a file of a single array.
        raise InputError(f"{path}: is not a packed set of characters: {one_line(error)}") from error
    images = arrays["images"]
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[2] * 8 != SIZE * SIZE:
        raise InputError(
            f"{path}: images are {images.dtype} {images.shape}: must be uint8 [num_classes, instances, 98]"
        )
    for name in arrays.keys() - {"images"}:
        if arrays[name].shape != images.shape[:1]:
            raise InputError(
                f"{path}: {name} has shape {arrays[name].shape}: must be {images.shape[:1]}, as the images"
            )
    return arrays


def unpacked(arrays: Mapping[str, NDArray[Any]], split: str) -> ImageSet:
    """The images of `arrays`, with the splits of the array named `split`."""
    packed = arrays["images"]
    count, instances = packed.shape[:2]
    images = np.unpackbits(packed, axis=-1).reshape(count * instances, 1, SIZE, SIZE)
    names = tuple(f"{a}/{c}" for a, c in zip(arrays["alphabet"], arrays["character"], strict=True))
    return ImageSet(
        images=images,
        counts=np.full(count, instances),
        names=names,
        splits=by_name(arrays[split]),
        maximum=1,
    )


def by_name(labels: Sequence[str] | NDArray[Any]) -> dict[str, NDArray[np.int64]]:
    """Class numbers of each split, from the name of every class's split."""
    array = np.asarray(labels)
    return {str(name): np.flatnonzero(array == name) for name in np.unique(array)}
