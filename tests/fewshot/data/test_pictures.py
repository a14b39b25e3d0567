"""Pictures are read as viewers show them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from metarl.core.errors import InputError
from metarl.fewshot.data.pictures import FORMATS, SUFFIXES, read_picture

INK = np.zeros((12, 8), bool)
INK[2:4, 1:6] = True
GREY = np.where(INK, 0, 255).astype(np.uint8)
ROTATED = 6  # EXIF: viewers turn it to the right


def saved(picture: Image.Image, form: str, **settings: Any) -> io.BytesIO:
    file = io.BytesIO()
    picture.save(file, form, **settings)
    file.seek(0)
    return file


def sheet(mode: str) -> Image.Image:
    """Black ink on a transparent sheet, whose hidden colour is black too."""
    channels = np.zeros((*INK.shape, len(mode)), np.uint8)
    channels[..., -1] = INK * 255
    return Image.fromarray(channels)


def palette(*, transparent: bool) -> Image.Image:
    picture = Image.fromarray(INK.astype(np.uint8)).convert("P")
    picture.putpalette([0, 0, 0, 0, 0, 0] if transparent else [255, 255, 255, 0, 0, 0])
    return picture


def turned(form: str) -> io.BytesIO:
    exif = Image.Exif()
    exif[0x0112] = ROTATED
    return saved(Image.fromarray(GREY).transpose(Image.Transpose.ROTATE_90), form, exif=exif)


def moving() -> io.BytesIO:
    frames = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    return saved(frames[0], "GIF", save_all=True, append_images=frames[1:])


def with_damaged_exif() -> io.BytesIO:
    return saved(Image.fromarray(GREY), "PNG", exif=b"no EXIF at all")


WORDS = GREY.astype(np.uint16) * 257
FILES: dict[str, Callable[[], io.BytesIO]] = {
    "RGBA": lambda: saved(sheet("RGBA"), "PNG"),
    "LA": lambda: saved(sheet("LA"), "PNG"),
    "WEBP": lambda: saved(sheet("RGBA"), "WEBP", lossless=True),
    "TIFF": lambda: saved(sheet("RGBA"), "TIFF"),
    "P with tRNS": lambda: saved(palette(transparent=True), "PNG", transparency=0),
    "L with tRNS": lambda: saved(Image.fromarray(np.where(INK, 0, 9).astype(np.uint8)), "PNG", transparency=9),
    "GIF with tRNS": lambda: saved(palette(transparent=True), "GIF", transparency=0),
    "P": lambda: saved(palette(transparent=False), "PNG"),
    "one bit": lambda: saved(Image.fromarray(GREY).convert("1"), "PNG"),
    "16 bits, PNG": lambda: saved(Image.fromarray(WORDS), "PNG"),
    "16 bits, TIFF": lambda: saved(Image.fromarray(WORDS), "TIFF"),
    "16 bits, PGM": lambda: saved(Image.fromarray(WORDS.astype(np.int32)), "PPM"),
    "PBM": lambda: saved(Image.fromarray(GREY).convert("1"), "PPM"),
    "CMYK": lambda: saved(Image.fromarray(GREY).convert("CMYK"), "TIFF"),
    "turned JPEG": lambda: turned("JPEG"),
    "turned PNG": lambda: turned("PNG"),
    "turned TIFF": lambda: turned("TIFF"),
    "moving": moving,
    "damaged EXIF": with_damaged_exif,
}


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("name", list(FILES))
def test_a_picture_is_read_as_it_is_shown(name: str, mode: Any) -> None:
    read = read_picture(FILES[name](), mode, name=name)
    assert read.shape == (len(mode), *GREY.shape)
    assert np.abs(read.astype(int) - GREY).max() <= (40 if "JPEG" in name else 0)


def test_half_transparent_is_half_white() -> None:
    picture = Image.new("RGBA", (2, 2), (0, 0, 100, 51))
    assert read_picture(saved(picture, "PNG"), "RGB", name="x")[:, 0, 0].tolist() == [204, 204, 224]


def test_only_decoders_of_pictures_are_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoder of PostScript would start Ghostscript."""
    script = tmp_path / "00.png"
    script.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n")
    with Image.open(script) as opened:
        assert opened.format == "EPS"
    with pytest.raises(InputError, match=r"00\.png: cannot be read as a picture: it is empty, or of no known format$"):
        read_picture(script, "L")
    Image.init()
    assert set(FORMATS) <= set(Image.OPEN)
    assert {s for s, form in Image.registered_extensions().items() if form in FORMATS} - {".pfm"} <= SUFFIXES


def damaged(kind: str) -> bytes:
    whole = saved(Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 60), np.uint8)), "PNG").getvalue()
    if kind == "cut":
        return whole[: len(whole) // 2]
    if kind == "flipped":
        return whole[:60] + b"\xff\xff\xff" + whole[63:]
    header = b"IHDR" + (60_000).to_bytes(4, "big") * 2
    assert kind == "huge"
    return whole[:12] + header + whole[24:]


@pytest.mark.parametrize("kind", ["cut", "flipped", "huge"])
def test_what_is_damaged_is_named(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(damaged(kind))
    with pytest.raises(InputError, match=r"a\.png: cannot be read as a picture: ") as caught:
        read_picture(path, "L")
    assert "\n" not in str(caught.value)


def test_a_large_picture_is_read_without_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 90)
    assert read_picture(saved(Image.fromarray(GREY), "PNG"), "L", name="x").shape == (1, 12, 8)


def test_whatever_a_decoder_raises_names_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise IndexError("no such tag")

    monkeypatch.setattr(Image.Image, "convert", fails)
    with pytest.raises(InputError, match=r"^x: cannot be read as a picture: no such tag$"):
        read_picture(saved(Image.fromarray(GREY), "PNG"), "RGB", name="x")
