"""Build the embedded `glyphs` data set: characters of living scripts, each drawn in 20 open-licensed typefaces.

Writes glyphs.npz and manifest.json into metarl/fewshot/data/glyphs, and results/glyphs-contact-sheet.png. Only this
script needs fonts; the package reads the finished file. It needs `fonttools` and `brotli` besides MetaRL. Fetching
needs npm and Debian's apt-get and dpkg-deb.

    python scripts/build_glyphs.py --cache FOLDER --fetch     download the packages (a few minutes), then build
    python scripts/build_glyphs.py --cache FOLDER             build from the folder
    python scripts/build_glyphs.py --cache FOLDER --check     build in memory; fail unless it equals the committed file
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import logging
import re
import sys
import zipfile
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from glyph_fonts import (
    CANVAS,
    HAIRLINE,
    INK_THRESHOLD,
    OVERSAMPLING,
    SCRIPTS,
    SIZE,
    TELLING,
    Bits,
    Face,
    Floats,
    binarised,
    fetch,
    load_faces,
    package_of,
    render_face,
    shrink,
)
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, features

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "metarl/fewshot/data/glyphs"
SHEET = ROOT / "results/glyphs-contact-sheet.png"

SEED = 0
NUM_INSTANCES = 20
MAX_BYTES = 500_000
# Largest cosine between the mean pictures of two characters over all their designs, before the random affine maps. Of
# the pairs from 0.93 to 0.95, a dozen look the same: 3 and the Cyrillic ze, the kanji for power and the katakana ka,
# the zeros of Devanagari and Thai.
MAX_COSINE = 0.93
MIN_DISTANCE = (
    0.10  # L1 distance between two faces' pictures of a character, as a share of their ink; below it, one design
)
# One map is drawn for each instance. The limits are tuned so that the accuracy of the pixel baseline below (5-way
# 1-shot, test scripts) is 48 %, as on real Omniglot's evaluation characters. With 8 degrees, scales from 0.8, shears of
# 0.1 and shifts of 1.5 pixels it had 53 %; with 10 degrees, 0.75, 0.12 and 2 pixels 45 %; with 15 degrees, 0.6, 0.2 and
# 3 pixels 32 %.
AFFINE = {"rotation_degrees": 9.0, "min_scale": 0.78, "shear": 0.11, "shift_pixels": 1.75}
MIN_RECOGNISED = 0.3  # least share of a face's pictures that are nearest to their own centroid
MAX_RANK = 0.25  # largest share of the script's centroids that may be nearer to a picture than its own


@dataclass(frozen=True)
class Character:
    """A candidate class: pictures by twenty faces, and the mean [784] of the normalised pictures of all its designs."""

    script: str
    character: str
    pictures: dict[int, Bits]
    centroid: Floats

    @property
    def split(self) -> str:
        return SCRIPTS[self.script][0]

    @property
    def code(self) -> str:
        return f"U+{ord(self.character):04X}"


def normalised(rows: Floats) -> Floats:
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-9)


def choose(script: str, drawn: dict[int, dict[str, Bits]]) -> list[Character]:
    """Twenty legible and distinct designs of each character of a script, chosen to be far apart.

    Args:
        script: the script's name.
        drawn: pictures by face, then by character; a character without twenty such designs is left out.
    """
    for _ in range(2):  # the second time, the misfits are no longer part of the centroids
        drawn = without_misfits(drawn)
    chosen = []
    for character in sorted({character for pictures in drawn.values() for character in pictures}):
        owners = [face for face, pictures in drawn.items() if character in pictures]
        greys = shrink(np.stack([drawn[face][character] for face in owners]))
        ink = greys.sum(1)
        apart = np.stack([np.abs(greys - grey).sum(1) for grey in greys]) * 2 / (ink + ink[:, None])
        designs: list[int] = []
        for candidate in range(len(owners)):
            if np.all(apart[candidate, designs] >= MIN_DISTANCE):
                designs.append(candidate)
        if len(designs) < NUM_INSTANCES:
            continue
        picked = [designs[int(np.argmin(apart[np.ix_(designs, designs)].sum(1)))]]
        while len(picked) < NUM_INSTANCES:
            picked.append(designs[int(np.argmax(apart[np.ix_(designs, picked)].min(1)))])
        pictures = {owners[place]: drawn[owners[place]][character] for place in sorted(picked)}
        chosen.append(Character(script, character, pictures, normalised(normalised(greys[designs]).mean(0))))
    return chosen


def without_misfits(drawn: dict[int, dict[str, Bits]]) -> dict[int, dict[str, Bits]]:
    """Drops symbol fonts in place of letters, and single pictures that look least like their own character."""
    characters = sorted({character for pictures in drawn.values() for character in pictures})
    place = {character: number for number, character in enumerate(characters)}
    rows = {face: normalised(shrink(np.stack(list(pictures.values())))) for face, pictures in drawn.items()}
    sums = np.zeros((len(characters), SIZE * SIZE), np.float32)
    for face, pictures in drawn.items():
        sums[[place[character] for character in pictures]] += rows[face]
    centroids = normalised(sums)
    kept = {}
    for face, pictures in drawn.items():
        cosines = rows[face] @ centroids.T
        own = cosines[np.arange(len(pictures)), [place[character] for character in pictures]]
        ranks = (cosines > own[:, None]).sum(1)
        if (ranks == 0).mean() >= MIN_RECOGNISED:
            legible = ranks < max(3, MAX_RANK * len(characters))
            for row, character in enumerate(pictures):
                rival = place.get(character.swapcase())
                if character.lower() in TELLING and rival is not None:
                    legible[row] &= cosines[row, rival] < own[row]
            kept[face] = {
                name: picture for (name, picture), fine in zip(pictures.items(), legible, strict=True) if fine
            }
    return {face: pictures for face, pictures in kept.items() if pictures}


def bake(picture: Bits, rng: np.random.Generator) -> NDArray[np.uint8]:
    """One-bit 28x28 picture of a canvas after a random affine map that keeps all ink inside."""
    image = Image.fromarray(picture.astype(np.uint8) * 255)
    for attempt in range(50):
        turn = np.deg2rad(rng.uniform(-1, 1) * AFFINE["rotation_degrees"])
        scale = rng.uniform(AFFINE["min_scale"], 1)
        slant = rng.uniform(-1, 1) * AFFINE["shear"]
        shift = rng.uniform(-1, 1, 2) * AFFINE["shift_pixels"] * OVERSAMPLING * (attempt < 49)
        rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        inverse = np.linalg.inv(scale * rotation @ np.array([[1, slant], [0, 1]]))
        offset = CANVAS / 2 - inverse @ (CANVAS / 2 + shift)
        data = (*inverse[0], offset[0], *inverse[1], offset[1])
        moved = image.transform((CANVAS, CANVAS), Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)
        area = np.asarray(moved)
        if not (area[[0, -1]].any() or area[:, [0, -1]].any()):
            break
    return binarised(shrink(area[None] / np.float32(255)))[0]


def candidates(faces: list[Face]) -> list[Character]:
    """The characters of all scripts that have twenty designs; a type family is represented by its best file."""
    found = []
    for script, (_, characters) in SCRIPTS.items():
        families: dict[str, int] = {}
        for number in sorted(range(len(faces)), key=lambda number: faces[number].preference(characters)):
            if any(ord(character) in faces[number].codes for character in characters):
                families.setdefault(faces[number].family.casefold(), number)
        drawn = {number: render_face(faces[number], script) for number in sorted(families.values())}
        chosen = choose(script, {number: pictures for number, pictures in drawn.items() if pictures})
        print(f"{script}: {len(families)} families, {len(chosen)} of {len(characters)} characters", flush=True)
        found += chosen
    return found


def without_twins(characters: list[Character]) -> tuple[list[Character], list[str]]:
    """Leaves out characters that look like one already kept; returns the others and lines that name the pairs."""
    # Test and validation come first. So if twins are in two splits, the training one is dropped.
    order = sorted(characters, key=lambda one: ["test", "val", "train"].index(one.split))
    kept: list[Character] = []
    twins = []
    for character in order:
        cosines = [float(character.centroid @ other.centroid) for other in kept]
        if cosines and max(cosines) > MAX_COSINE:
            other = kept[int(np.argmax(cosines))]
            twins.append(f"{character.script} {character.code} for {other.script} {other.code}")
        else:
            kept.append(character)
    return sorted(kept, key=lambda one: (one.script, one.code)), twins


def assemble(characters: list[Character]) -> dict[str, NDArray[Any]]:
    """The file's arrays: the pictures after their maps, each class in a random order."""
    images = np.zeros((len(characters), NUM_INSTANCES, SIZE * SIZE), np.uint8)
    for row, character in zip(images, characters, strict=True):
        rng = np.random.default_rng([SEED, ord(character.character)])
        baked = np.stack([bake(picture, rng) for picture in character.pictures.values()])
        assert len({picture.tobytes() for picture in baked}) == NUM_INSTANCES, character.code
        row[:] = baked[rng.permutation(NUM_INSTANCES)]
    return {
        "images": np.packbits(images, axis=-1),
        "alphabet": np.array([character.script for character in characters]),
        "character": np.array([character.code for character in characters]),
        "split": np.array([character.split for character in characters]),
    }


def pixel_baseline(images: Floats, ways: int, shots: int, *, episodes: int = 2000) -> tuple[float, float]:
    """Accuracy of the cosine to the mean of a class's normalised support pixels, and half its 95 % interval.

    Args:
        images: [num_classes, 20, 784]; an episode has five queries of each class.
    """
    rng = np.random.default_rng([SEED, ways, shots])
    rows = normalised(images)
    accuracies = []
    for _ in range(episodes):
        members = rng.choice(len(rows), ways, replace=False)
        order = rng.permuted(np.tile(np.arange(NUM_INSTANCES), (ways, 1)), axis=1)[:, : shots + 5]
        picked = np.take_along_axis(rows[members], order[..., None], axis=1)
        prototypes = normalised(picked[:, :shots].mean(1))
        accuracies.append(((picked[:, shots:] @ prototypes.T).argmax(-1) == np.arange(ways)[:, None]).mean())
    return float(np.mean(accuracies)), float(1.96 * np.std(accuracies, ddof=1) / np.sqrt(episodes))


def baselines(arrays: dict[str, NDArray[Any]]) -> dict[str, dict[str, str]]:
    """Accuracy in percent and half its interval, by split and by setting."""
    images = np.unpackbits(arrays["images"], axis=-1).astype(np.float32)
    found: dict[str, dict[str, str]] = {}
    for split in ("train", "val", "test", "all"):
        members = images if split == "all" else images[arrays["split"] == split]
        for ways, shots in ((5, 1), (5, 5), (20, 1), (20, 5)):
            mean, half = pixel_baseline(members, ways, shots)
            found.setdefault(split, {})[f"{ways}-way {shots}-shot"] = f"{100 * mean:.1f} ± {100 * half:.1f}"
    return found


def packed(arrays: dict[str, NDArray[Any]]) -> bytes:
    """The arrays as an npz file. Its bytes depend only on the arrays and zlib; numpy's own writer adds dates."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, array in arrays.items():
            entry = io.BytesIO()
            np.save(entry, array, allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(info, entry.getvalue(), compresslevel=9)
    return stream.getvalue()


def credited(cache: Path, faces: list[Face], characters: list[Character]) -> list[dict[str, Any]]:
    """Every face in the data set, and the number of its pictures in each script."""
    used: dict[int, Counter[str]] = {}
    for character in characters:
        for number in character.pictures:
            used.setdefault(number, Counter())[character.script] += 1
    return [row_of(cache, faces[number], used[number]) for number in sorted(used)]


def manifest(
    arrays: dict[str, NDArray[Any]], twins: list[str], data: bytes, faces: list[dict[str, Any]]
) -> dict[str, Any]:
    """The manifest: contents of the file, how it was made, and the credits of its faces."""
    return {
        "file": "glyphs.npz",
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "num_classes": len(arrays["images"]),
        "num_instances": NUM_INSTANCES,
        "splits": dict(sorted(Counter(arrays["split"].tolist()).items())),
        "scripts": {
            script: {"split": split, "classes": int((arrays["alphabet"] == script).sum())}
            for script, (split, _) in SCRIPTS.items()
        },
        "build": "python scripts/build_glyphs.py --cache FOLDER --fetch",
        "seed": SEED,
        "affine": AFFINE,
        "ink_threshold": INK_THRESHOLD,
        "hairline": HAIRLINE,
        "max_centroid_cosine": MAX_COSINE,
        "min_design_distance": MIN_DISTANCE,
        "versions": {
            "pillow": version("pillow"),
            "freetype": features.version("freetype2"),
            "fonttools": version("fonttools"),
            "numpy": version("numpy"),
        },
        "pixel_baseline_percent": baselines(arrays),
        "dropped_twins": twins,
        "licence_source": "each face's own name table, IDs 13 and 14",
        "faces": faces,
    }


def row_of(cache: Path, face: Face, instances: Counter[str]) -> dict[str, Any]:
    """A face's entry, from its own name table; None for fields that the table leaves out."""
    names = {number: " ".join(text.split()) for number, text in face.names.items()}
    # Some packages have no entry for manufacturer or designer; the copyright line still names the holder.
    holder = re.sub(r"^(copyright|\(c\)|©|by|[\d\s,.-])+", "", names.get(0, ""), flags=re.IGNORECASE)
    holder = re.split(
        r"\s*[(<,]|\.?\s+(?:with reserved|all rights|copyright|this font)|\.$", holder, flags=re.IGNORECASE
    )[0]
    licence = re.search(r"[^.]*\b(open font licen[sc]e|ofl)\b.{,40}", names.get(13, ""), re.IGNORECASE)
    package, number = package_of(cache, face.path)
    return {
        "family": face.family,
        "foundry": (names.get(8) or names.get(9) or holder)[:120] or None,
        "designer": names.get(9, "")[:120] or None,
        "copyright": names.get(0, "")[:240] or None,
        "licence": licence[0].strip()[-160:] if licence else None,
        "licence_url": names.get(14),
        "package": package,
        "version": number,
        "file": face.path.name,
        "instances": dict(sorted(instances.items())),
    }


def written(entries: dict[str, Any]) -> str:
    """The manifest as JSON, with one line for each face and each twin."""
    lists = {key: value for key, value in entries.items() if isinstance(value, list)}
    text = json.dumps({**entries, **{key: [] for key in lists}}, indent=1, ensure_ascii=False)
    for key, rows in lists.items():
        lines = ",\n".join(f"  {json.dumps(row, ensure_ascii=False)}" for row in rows)
        text = text.replace(f'"{key}": []', f'"{key}": [\n{lines}\n ]')
    return text + "\n"


def contact_sheet(arrays: dict[str, NDArray[Any]], *, columns: int = 3, rows: int = 3, shown: int = 10) -> Image.Image:
    """Ten pictures of nine classes of every script, below the script's name."""
    cell, gap, title = 2 * SIZE + 4, 20, 26
    sheet = Image.new("L", (columns * (shown * cell + gap), len(SCRIPTS) * (title + rows * cell + 8)), 255)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(18)
    pictures = np.unpackbits(arrays["images"], axis=-1).reshape(-1, NUM_INSTANCES, SIZE, SIZE)
    for band, (script, (split, _)) in enumerate(SCRIPTS.items()):
        top = band * (title + rows * cell + 8)
        members = np.flatnonzero(arrays["alphabet"] == script)
        pen.text((4, top + 3), f"{script} ({split}, {len(members)} classes)", fill=0, font=font)
        spread = np.linspace(0, len(members) - 1, min(columns * rows, len(members))).astype(int)
        for number, member in enumerate(members[spread]):
            for instance in range(shown):
                tile = Image.fromarray((1 - pictures[member, instance]) * np.uint8(255)).resize((2 * SIZE, 2 * SIZE), 0)
                left = number % columns * (shown * cell + gap) + instance * cell
                sheet.paste(tile, (left, top + title + number // columns * cell))
    return sheet.convert("1", dither=Image.Dither.NONE)


def pins(record: Path) -> dict[str, str]:
    """The versions of the packages from which the committed file was made."""
    faces = json.loads(record.read_text())["faces"] if record.exists() else []
    return {face["package"]: face["version"] for face in faces}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cache", type=Path, required=True, help="folder of unpacked packages, outside the repository")
    parser.add_argument("--fetch", action="store_true", help="download missing packages, in the manifest's versions")
    parser.add_argument("--check", action="store_true", help="write nothing; compare with the committed file")
    parsed = parser.parse_args()
    logging.getLogger("fontTools").setLevel(logging.ERROR)  # some tables are padded or misdated
    record = FOLDER / "manifest.json"
    if parsed.fetch:
        fetch(parsed.cache, pins(record))
    faces = load_faces(parsed.cache)
    characters, twins = without_twins(candidates(faces))
    arrays = assemble(characters)
    data = packed(arrays)
    digest = hashlib.sha256(data).hexdigest()
    print(f"{len(arrays['images'])} classes, {len(data):,} bytes, sha256 {digest}")
    if parsed.check:
        same = digest == json.loads(record.read_text())["sha256"]
        print("equal to the committed file" if same else "differs from the committed file")
        return 0 if same else 1
    if len(data) > MAX_BYTES:
        raise SystemExit(f"{len(data):,} bytes; at most {MAX_BYTES:,}: list fewer characters in SCRIPTS")
    entries = manifest(arrays, twins, data, credited(parsed.cache, faces, characters))
    for key in ("splits", "scripts", "pixel_baseline_percent"):
        print(f"{key}:", *(f"  {name}: {value}" for name, value in entries[key].items()), sep="\n")
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "glyphs.npz").write_bytes(data)
    record.write_text(written(entries))
    contact_sheet(arrays).save(SHEET, optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
