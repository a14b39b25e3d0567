"""Images in folders of one's own."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from metarl.core.errors import InputError
from metarl.fewshot.data.image_folder import ImageFolder

SETTINGS: dict[str, Any] = {"num_ways": 2, "num_shots": 1, "num_queries": 2, "image_size": 6}


def fill(folder: Path, colour: int, *, count: int = 3) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        suffix = (".png", ".JPG", ".bmp")[number % 3]
        Image.new("RGB", (6 + number, 6), (colour, 0, 0)).save(folder / f"{number}{suffix}", quality=100)
    (folder / ".hidden.png").write_bytes(b"x")
    (folder / "notes.txt").write_text("no picture")


def classes(root: Path, count: int = 10) -> Path:
    for number in range(count):
        fill(root / f"class {number}", 20 * number, count=3 + number % 2)
    (root / ".git").mkdir()
    (root / "readme.txt").write_text("no class")
    return root


def split(root: Path) -> Path:
    for number, place in enumerate(("train/c", "train/a", "val/d", "test/e", "test/b")):
        fill(root / place, 20 * number)
    return root


def refused(root: Path, **settings: Any) -> str:
    with pytest.raises(InputError) as caught:
        ImageFolder(root=root, **{**SETTINGS, **settings})
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(root), "ROOT")


def test_folders_are_classes_split_at_random_by_a_seed(tmp_path: Path) -> None:
    data = ImageFolder(root=classes(tmp_path), **SETTINGS).data
    assert list(data.names) == [f"class {number}" for number in range(10)]
    assert data.counts.tolist() == [3, 4] * 5
    assert data.images.shape == (35, 3, 6, 6)
    firsts = data.images[data.starts].mean((-1, -2))
    assert np.array_equal(firsts, [[20 * number, 0, 0] for number in range(10)])
    assert {name: len(part) for name, part in data.splits.items()} == {"train": 6, "val": 2, "test": 2}
    seeds = [ImageFolder(root=tmp_path, split_seed=seed, **SETTINGS).data.splits for seed in (0, 1)]
    assert all(np.array_equal(seeds[0][name], data.splits[name]) for name in data.splits)
    assert any(not np.array_equal(seeds[1][name], data.splits[name]) for name in data.splits)
    halves = ImageFolder(root=tmp_path, shares=(0.5, 0.0, 0.5), **SETTINGS).data.splits
    assert {name: len(part) for name, part in halves.items()} == {"train": 5, "val": 0, "test": 5}


def test_folders_may_say_the_split(tmp_path: Path) -> None:
    data = ImageFolder(root=split(tmp_path), grey=True, **SETTINGS).data
    assert list(data.names) == ["a", "c", "d", "b", "e"]
    assert {name: part.tolist() for name, part in data.splits.items()} == {"train": [0, 1], "val": [2], "test": [3, 4]}
    assert data.images.shape == (15, 1, 6, 6)
    assert data.images[:, 0, 0, 0].tolist() == pytest.approx(np.repeat([20, 0, 40, 80, 60], 3) * 0.299, abs=1)
    for name, value in (("shares", (0.5, 0.0, 0.5)), ("split_seed", 1)):
        message = refused(tmp_path, **{name: value})
        assert (
            message == f"task.{name} = {value}: must be left out: "
            "the folders train and test decide which classes are for training"
        )


def test_validation_may_be_missing_but_not_testing(tmp_path: Path) -> None:
    split(tmp_path)
    (tmp_path / "val").rename(tmp_path / ".val")
    assert ImageFolder(root=tmp_path, **SETTINGS).data.splits.keys() == {"train", "test"}
    assert "task.test_split = 'val': must be 'test': no class is for validation" in refused(tmp_path, test_split="val")
    (tmp_path / "test").rename(tmp_path / ".test")
    names = "folders train, test and perhaps val (or valid, validation)"
    assert refused(tmp_path) == f"task.root = 'ROOT': holds train but no test: must hold {names}"


def test_what_is_there_is_read_anew_when_it_changes(tmp_path: Path) -> None:
    before = ImageFolder(root=classes(tmp_path), **SETTINGS).data.images
    assert ImageFolder(root=tmp_path, **SETTINGS).data.images is before
    Image.new("RGB", (60, 60), (255, 255, 255)).save(tmp_path / "class 0" / "0.png")
    assert ImageFolder(root=tmp_path, **SETTINGS).data.images[0].min() == 255


def test_what_cannot_be_used_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    assert refused(root).startswith("task.root = 'ROOT': must be a folder that holds a folder for each class")
    root.mkdir()
    assert refused(root).startswith("task.root = 'ROOT': holds no folders: must hold a folder for each class")
    classes(root)
    expected = r"= 3 \+ 2 = 5: must be at most 3, the number of images of class 'class \d' of the t"
    assert re.search(expected, refused(root, num_shots=3))
    (root / "class 11" / "inside").mkdir(parents=True)
    message = (
        r"^ROOT/class 11: holds no pictures \(\.apng, .*\.webp\); pictures in folders within it do not count; remove"
    )
    assert re.search(message, refused(root))
    (root / "class 11" / "inside").rmdir()
    (root / "class 3" / "1.JPG").write_bytes(b"")
    assert refused(root) == ("ROOT/class 3/1.JPG: cannot be read as a picture: it is empty, or of no known format")
    Image.fromarray(np.zeros((6, 6), np.float32)).save(root / "class 3" / "1.tif")
    (root / "class 3" / "1.JPG").unlink()
    most = re.search(r"^task\.image_size = 10000000: must be at most (\d+): the ", refused(root, image_size=10**7))
    assert most
    assert int(most[1]) < 10**7
    assert refused(root) == "ROOT/class 3/1.tif: has pixels of mode 'F': must have at most 16 bits a channel"


def test_a_class_in_two_splits_is_refused(tmp_path: Path) -> None:
    fill(split(tmp_path) / "test" / "a", 3)
    assert refused(tmp_path) == "ROOT/test/a: the class is in two splits, also as ROOT/train/a"


def test_settings_are_checked(tmp_path: Path) -> None:
    assert refused(tmp_path, image_size=0) == "task.image_size = 0: must be an integer >= 1"
    assert refused(tmp_path, split_seed=-1) == "task.split_seed = -1: must be an integer >= 0"
    for shares in ((0.5, 0.5, 0.5), (1.5, -0.5, 0.0), (0.5, 0.5)):
        assert refused(tmp_path, shares=shares).startswith(
            f"task.shares = {shares}: must be three numbers >= 0 that sum"
        )
    assert not ImageFolder().available()
    with pytest.raises(InputError, match=r"^task\.root: missing; must be a folder that holds a folder for each class"):
        ImageFolder().load()


@pytest.mark.parametrize("names", [("Train", "valid", "TEST"), ("training", "Validation", "testing")])
def test_folders_of_splits_have_other_names_too(tmp_path: Path, names: tuple[str, ...]) -> None:
    split(tmp_path)
    for old, new in zip(("train", "val", "test"), names, strict=True):
        (tmp_path / old).rename(tmp_path / "renamed")
        (tmp_path / "renamed").rename(tmp_path / new)
    data = ImageFolder(root=tmp_path, **SETTINGS).data
    assert {name: part.tolist() for name, part in data.splits.items()} == {"train": [0, 1], "val": [2], "test": [3, 4]}
    (tmp_path / "val").mkdir()
    assert re.search(r"^ROOT/\w+: is for val, as ROOT/\w+ is; must be one folder$", refused(tmp_path))
    (tmp_path / "val").rename(tmp_path / "extra")
    assert refused(tmp_path).startswith(
        "task.root = 'ROOT': holds extra beside train and test: must hold folders train"
    )


def test_classes_with_too_few_pictures_are_listed_or_left_out(tmp_path: Path) -> None:
    classes(tmp_path)
    for number in range(12, 23):
        fill(tmp_path / f"class {number}", 0, count=1 + number // 22)
    listed = r"must be at most 1, .* of class 'class \d\d' of the t\w+ split; also too small: 'class \d\d' \(1\), .*"
    assert re.search(listed + "; ask for fewer, or set task.skip_small_classes$", refused(tmp_path))
    data = ImageFolder(root=tmp_path, skip_small_classes=True, **SETTINGS).data
    assert list(data.names) == [f"class {number}" for number in range(10)]
    assert sum(len(part) for part in data.splits.values()) == 10
    message = refused(tmp_path, skip_small_classes=True, num_queries=9)
    assert message == "task.skip_small_classes = True: must be left out: no class has 10 pictures"


def test_what_is_left_out_is_counted_and_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    classes(tmp_path, count=8)
    (tmp_path / "empty").mkdir()
    (tmp_path / "class 1" / "inside").mkdir()
    (tmp_path / "class 1" / "gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "class 2" / "Thumbs.db").write_bytes(b"")
    (tmp_path / "class 8").symlink_to(tmp_path / "class 0")
    for _ in range(2):
        assert len(ImageFolder(root=tmp_path, **SETTINGS).data.names) == 9
    assert [record.getMessage().replace(str(tmp_path), "ROOT") for record in caplog.records] == [
        "task.root = 'ROOT': 24 entries are left out: .hidden.png (9), notes.txt (9), .git, Thumbs.db, empty, ..."
    ]


def test_names_need_not_be_utf8(tmp_path: Path) -> None:
    root = classes(tmp_path)
    folder = root / os.fsdecode(b"caf\xe9")
    try:
        (root / "class 0").rename(folder)
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    assert ImageFolder(root=root, **SETTINGS).data.names[0] == r"caf\xe9"
    (folder / "0.png").rename(folder / os.fsdecode(b"\xff\n.png")).write_bytes(b"")
    assert refused(root) == r"ROOT/caf\xe9/\xff\n.png: cannot be read as a picture: it is empty, or of no known format"
