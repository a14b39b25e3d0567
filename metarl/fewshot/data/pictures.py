"""Picture files: where they lie, in what order, and what is wrong with them, in one line that names the file."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Literal

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from metarl.errors import InputError, one_line
from metarl.files import UNFINISHED, made_folder, sync_folder, write_error

VARIABLE = "METARL_DATA"
SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
Mode = Literal["L", "RGB"]


def data_folder(root: Path | None) -> Path | None:
    """`root`, or else the folder that the environment variable METARL_DATA names; None where neither is set."""
    if root is not None:
        return root
    return Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None


def folders_in(folder: Path) -> list[Path]:
    """The folders in `folder`, by name, without hidden ones.

    Raises:
        InputError: it cannot be listed.
    """
    return [path for path in _visible(folder) if path.is_dir()]


def pictures_in(folder: Path) -> list[Path]:
    """The picture files in `folder`, by name; hidden files and those with another suffix do not count.

    Raises:
        InputError: it cannot be listed.
    """
    return [path for path in _visible(folder) if path.suffix.lower() in SUFFIXES and path.is_file()]


def _visible(folder: Path) -> list[Path]:
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed: {error.strerror or error}") from error
    return [path for path in paths if not path.name.startswith(".")]


def read_picture(
    source: Path | IO[bytes],
    mode: Mode,
    size: int | None = None,
    *,
    name: str | None = None,
    filter: Image.Resampling = Image.Resampling.LANCZOS,
) -> NDArray[np.uint8]:
    """The picture in `source` as uint8 [C, H, X].

    Args:
        source: a file, or what it holds.
        mode: "L" for one channel of grey, "RGB" for three of colour; others are converted.
        size: height and width; None = as it is. Proportions are not kept.
        name: for messages; None = `source`.
        filter: to resize by.

    Raises:
        InputError: missing, empty, cut short, no picture, or of more than eight bits a channel.
    """
    name = name or str(source)
    try:
        with Image.open(source) as picture:
            picture.load()
            if picture.mode.startswith(("I", "F")):
                raise InputError(f"{name}: has pixels of mode {picture.mode!r}: must have 8 bits a channel")
            shown = picture if picture.mode == mode else picture.convert(mode)
            if size is not None and shown.size != (size, size):
                shown = shown.resize((size, size), filter)
            pixels = np.array(shown, dtype=np.uint8)
    except InputError:
        raise
    except UnidentifiedImageError:  # its message names the source by its address in memory
        raise InputError(f"{name}: cannot be read as a picture: it is empty, or of no known format") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # Pillow has no error of its own for a damaged file: each format raises what it likes.
        raise InputError(f"{name}: cannot be read as a picture: {one_line(error)}") from error
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(np.moveaxis(pixels, -1, 0))


def fingerprint(root: Path, paths: Sequence[Path], *settings: object) -> str:
    """Sixteen characters that change when a file's place below `root`, size or time of change does, or a setting.

    Raises:
        InputError: a file is missing.
    """
    digest = hashlib.sha256(repr(settings).encode())
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
        digest.update(f"{path.relative_to(root)}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def read_through_cache(cache: Path, paths: Sequence[Path], mode: Mode, size: int) -> NDArray[np.uint8]:
    """The pictures at `paths`, uint8 [num_images, C, size, size], from the file `cache`, which is made if missing.

    The array is mapped: what is used of it is read when it is used, and writing to it changes no file. Processes that
    want the same file wait for the first of them.

    Raises:
        InputError: a picture or the cache is damaged, or the cache cannot be written.
        WriteError: the disk is full.
    """
    shape = (len(paths), len(mode), size, size)
    if not cache.exists():
        try:
            with made_folder(cache.parent), _locked(cache.with_name(f".{cache.name}.lock")):
                if not cache.exists():
                    _write_cache(cache, paths, mode, shape)
        except OSError as error:
            raise write_error(f"{cache}: cannot be written", error, "; task.cache names another folder") from error
    try:
        pictures = np.load(cache, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{cache}: is damaged; delete it, and it is made again: {one_line(error)}") from error
    if pictures.shape != shape or pictures.dtype != np.uint8:
        raise InputError(f"{cache}: holds {pictures.dtype} {pictures.shape}, not uint8 {shape}; delete it")
    return np.asarray(pictures)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Waits until no other process holds the lock file `path`, which is gone at the end."""
    lock = FileLock(path)
    with lock:
        try:
            yield
        finally:
            # While it is held: who waits for this file sees that it has no name, and makes another.
            path.unlink(missing_ok=True)


def _write_cache(cache: Path, paths: Sequence[Path], mode: Mode, shape: tuple[int, ...]) -> None:
    # Not through a memory map: on a full disk, that ends the process by a signal.
    temporary = cache.with_name(f"{UNFINISHED}{cache.name}")
    try:
        with temporary.open("wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for path in paths:
                file.write(read_picture(path, mode, shape[-1]).tobytes())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(cache)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(cache.parent)
