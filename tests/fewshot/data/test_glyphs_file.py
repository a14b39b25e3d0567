"""The embedded `glyphs` file is what its manifest says, and its classes are apart."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
from numpy.typing import NDArray

FOLDER = Path(__file__).resolve().parents[3] / "metarl/fewshot/data/glyphs"
FILE = FOLDER / "glyphs.npz"
MANIFEST: dict[str, Any] = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))
# The build drops characters whose mean designs are above 0.93; the maps baked in afterwards blur the means a little.
MAX_COSINE = 0.95


@pytest.fixture(scope="module")
def arrays() -> dict[str, NDArray[Any]]:
    with np.load(FILE, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


@pytest.fixture(scope="module")
def pictures(arrays: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
    """[num_classes, 20, 784] of zeros and ones."""
    return np.unpackbits(arrays["images"], axis=-1).astype(np.float32)


def test_the_file_is_the_manifests() -> None:
    data = FILE.read_bytes()
    assert hashlib.sha256(data).hexdigest() == MANIFEST["sha256"]
    assert len(data) == MANIFEST["bytes"] <= 500_000
    assert (FOLDER / "manifest.json").stat().st_size <= 300_000


def test_entries_are_undated_and_hold_no_pickles() -> None:
    with ZipFile(FILE) as archive:
        assert {entry.filename for entry in archive.infolist()} == {
            "images.npy",
            "alphabet.npy",
            "character.npy",
            "split.npy",
        }
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_shapes_are_packed_omniglots(arrays: dict[str, NDArray[Any]]) -> None:
    number = MANIFEST["num_classes"]
    assert arrays["images"].dtype == np.uint8
    assert arrays["images"].shape == (number, 20, 98)
    for name in ("alphabet", "character", "split"):
        assert arrays[name].shape == (number,)
        assert arrays[name].dtype.kind == "U"


def test_counts_are_the_manifests(arrays: dict[str, NDArray[Any]]) -> None:
    assert len(arrays["images"]) >= 350
    assert Counter(arrays["split"].tolist()) == MANIFEST["splits"]
    counts = {script: entry["classes"] for script, entry in MANIFEST["scripts"].items()}
    assert Counter(arrays["alphabet"].tolist()) == counts
    assert MANIFEST["splits"]["test"] >= 100  # 20-way episodes that do not all ask the same classes


def test_classes_are_sorted_and_named_once(arrays: dict[str, NDArray[Any]]) -> None:
    names = list(zip(arrays["alphabet"].tolist(), arrays["character"].tolist(), strict=True))
    assert names == sorted(set(names))
    assert all(re.fullmatch(r"U\+[0-9A-F]{4}", character) for _, character in names)


def test_a_script_lies_in_one_split(arrays: dict[str, NDArray[Any]]) -> None:
    found = set(zip(arrays["alphabet"].tolist(), arrays["split"].tolist(), strict=True))
    assert found == {(script, entry["split"]) for script, entry in MANIFEST["scripts"].items()}
    assert {split for _, split in found} == {"train", "val", "test"}
    shared = ("Latin", "Digits", "Greek", "Cyrillic"), ("Hiragana", "Katakana", "Kanji")
    for scripts in shared:
        assert len({MANIFEST["scripts"][script]["split"] for script in scripts}) == 1


def test_a_class_has_twenty_distinct_pictures(arrays: dict[str, NDArray[Any]], pictures: NDArray[np.float32]) -> None:
    for images in arrays["images"]:
        assert len({image.tobytes() for image in images}) == MANIFEST["num_instances"] == 20
    assert pictures.sum(-1).min() >= 10
    assert pictures.mean((1, 2)).max() < 0.5  # ink is 1


def test_no_two_classes_look_alike(arrays: dict[str, NDArray[Any]], pictures: NDArray[np.float32]) -> None:
    means = normalised(normalised(pictures).mean(1))
    cosines = means @ means.T - 2 * np.eye(len(means))
    first, second = np.unravel_index(cosines.argmax(), cosines.shape)
    assert cosines.max() <= MAX_COSINE, (arrays["character"][first], arrays["character"][second])


def test_every_face_is_under_the_ofl_by_its_own_words() -> None:
    for face in MANIFEST["faces"]:
        words = f"{face['licence']} {face['licence_url']}"
        assert re.search(r"open font licen[sc]e|openfontlicense|\bofl\b", words, re.IGNORECASE), face
        assert face["family"], face
        assert face["foundry"], face
        assert face["package"].startswith(("fonts-", "@fontsource/")), face
        assert face["version"], face


def test_every_picture_is_credited() -> None:
    credited: Counter[str] = Counter()
    for face in MANIFEST["faces"]:
        credited.update(face["instances"])
    assert credited == {script: 20 * entry["classes"] for script, entry in MANIFEST["scripts"].items()}


def test_pixels_alone_do_as_on_omniglot(arrays: dict[str, NDArray[Any]], pictures: NDArray[np.float32]) -> None:
    """5-way 1-shot, cosine to the one support picture: 48 % on real Omniglot's evaluation characters."""
    rows = normalised(pictures[arrays["split"] == "test"])
    rng = np.random.default_rng(0)
    right = []
    for _ in range(600):
        members = rng.choice(len(rows), 5, replace=False)
        episode = rows[members][:, rng.permutation(20)[:6]]
        answers = (episode[:, 1:] @ episode[:, 0].T).argmax(-1)
        right.append((answers == np.arange(5)[:, None]).mean())
    assert 0.45 <= np.mean(right) <= 0.52


def normalised(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)
