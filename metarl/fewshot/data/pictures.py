"""Reading picture files. An error is one line that names the file."""

from __future__ import annotations

import contextlib
import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Literal

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from metarl.core.errors import InputError, one_line
from metarl.core.files import UNFINISHED, made_folder, sync_folder, write_error

VARIABLE = "METARL_DATA"
# Pillow's formats of pictures, with their suffixes. Others are not read: PostScript would start Ghostscript.
FORMATS = {
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "GIF": (".gif",),
    "JPEG": (".jfif", ".jpe", ".jpeg", ".jpg", ".mpo"),
    "JPEG2000": (".j2c", ".j2k", ".jp2", ".jpc", ".jpf", ".jpx"),
    "PNG": (".apng", ".png"),
    "PPM": (".pbm", ".pgm", ".pnm", ".ppm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)
WORD_PER_BYTE = 257  # 65535 / 255
Mode = Literal["L", "RGB"]


def data_folder(root: Path | None) -> Path | None:
    """`root`, or else the folder in the environment variable METARL_DATA; None if neither is set."""
    if root is not None:
        return root
    return Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None


def shown(path: Path | str) -> str:
    """A printable file name: bytes that are not UTF-8 and unprintable characters are escaped."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def folders_in(folder: Path) -> list[Path]:
    """The folders in `folder`, by name, without hidden ones.

    Raises:
        InputError: it cannot be listed.
    """
    return [path for path in entries(folder) if _visible(path) and path.is_dir()]


def pictures_in(folder: Path) -> list[Path]:
    """The picture files in `folder`, by name; hidden files and those with another suffix do not count.

    Raises:
        InputError: it cannot be listed.
    """
    return [path for path in entries(folder) if _visible(path) and path.suffix.lower() in SUFFIXES and path.is_file()]


def entries(folder: Path) -> list[Path]:
    """All that is in `folder`, by name.

    Raises:
        InputError: it cannot be listed.
    """
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"{shown(folder)}: cannot be listed: {error.strerror or error}") from error


def _visible(path: Path) -> bool:
    return not path.name.startswith(".")


def read_picture(
    source: Path | IO[bytes],
    mode: Mode,
    size: int | None = None,
    *,
    name: str | None = None,
    filter: Image.Resampling = Image.Resampling.LANCZOS,
) -> NDArray[np.uint8]:
    """The picture in `source` as uint8 [C, H, X], as viewers show it: upright, with transparent parts on white.

    An animation gives its first picture.

    Args:
        source: a file, or an open one.
        mode: "L" for one channel of grey, "RGB" for three of colour. Pictures of other modes are converted.
        size: new height and width; None = as in the file. Proportions are not kept.
        name: of the source in messages; None = `source`.
        filter: for resizing.

    Raises:
        InputError: missing, empty, cut short, huge, no picture, or of more than 16 bits a channel.
    """
    name = name or (shown(source) if isinstance(source, Path) else str(source))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about small defects; Pillow still reads the file
            with Image.open(source, formats=tuple(FORMATS)) as picture:
                picture.load()
                flat = _opaque(_of_bytes(_upright(picture), picture.format, name))
            plain = flat if flat.mode == mode else flat.convert(mode)
            if size is not None and plain.size != (size, size):
                plain = plain.resize((size, size), filter)
            pixels = np.array(plain, dtype=np.uint8)
    except (InputError, MemoryError):
        raise
    except UnidentifiedImageError:  # its message names the source by its address in memory
        raise InputError(f"{name}: cannot be read as a picture: it is empty, or of no known format") from None
    except Exception as error:  # Pillow has no common error for damaged files: each format raises its own
        raise InputError(f"{name}: cannot be read as a picture: {one_line(error)}") from error
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(np.moveaxis(pixels, -1, 0))


def _of_bytes(picture: Image.Image, form: str | None, name: str) -> Image.Image:
    """`picture`, from a file of the format `form`, with 8 bits a channel: 16 bits of grey are converted."""
    if not picture.mode.startswith(("I", "F")):
        return picture
    # Pillow keeps the 16 bits of some formats in 32.
    if not picture.mode.startswith("I;16") and (picture.mode, form) not in (("I", "PNG"), ("I", "PPM")):
        raise InputError(f"{name}: has pixels of mode {picture.mode!r}: must have at most 16 bits a channel")
    return Image.fromarray((np.asarray(picture).astype(np.uint32) // WORD_PER_BYTE).astype(np.uint8))


def _upright(picture: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # the orientation tag is damaged: the picture stays as stored
        return picture


def _opaque(picture: Image.Image) -> Image.Image:
    if not picture.has_transparency_data:
        return picture
    colours = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours)


def fingerprint(root: Path, paths: Sequence[Path], *settings: object) -> str:
    """Sixteen characters that depend on each file's place below `root`, size and time of change, and on the settings.

    Raises:
        InputError: a file is missing.
    """
    digest = hashlib.sha256(repr(settings).encode())
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:
            raise InputError(f"{shown(path)}: cannot be read: {error.strerror or error}") from error
        digest.update(os.fsencode(path.relative_to(root)))
        digest.update(f"\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def read_through_cache(cache: Path, paths: Sequence[Path], mode: Mode, size: int) -> NDArray[np.uint8]:
    """The pictures at `paths`, uint8 [num_images, C, size, size], from the file `cache`, which is made if missing.

    The array is mapped: each part is read when it is used, and writing to it changes no file. If several processes
    need the same file, the first one makes it and the others wait.

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
    """Waits until no other process holds the lock file `path`, and deletes the file at the end."""
    lock = FileLock(path)
    with lock:
        try:
            yield
        finally:
            # Delete the file while the lock is held: a waiting process then detects that, and makes a new file.
            path.unlink(missing_ok=True)


def _write_cache(cache: Path, paths: Sequence[Path], mode: Mode, shape: tuple[int, ...]) -> None:
    # Not through a memory map: on a full disk, a signal would end the process.
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
