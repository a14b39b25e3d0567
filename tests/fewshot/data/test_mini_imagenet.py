"""mini-ImageNet from generated files: few classes and images, and the counts that are checked are cut to these."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metarl.core.errors import InputError
from metarl.core.files import WriteError
from metarl.core.seeds import Seeds
from metarl.fewshot.data import mini_imagenet, pictures
from metarl.fewshot.data.mini_imagenet import MiniImageNet

CLASSES = {"train": ("n03", "n01", "n07"), "val": ("n05", "n02"), "test": ("n06", "n04")}
ORDERED = ["n01", "n03", "n07", "n02", "n05", "n04", "n06"]
SETTINGS = {"num_ways": 2, "num_shots": 1, "num_queries": 2}


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("METARL_DATA", raising=False)
    monkeypatch.setattr(mini_imagenet, "NUM_CLASSES", {name: len(labels) for name, labels in CLASSES.items()})
    monkeypatch.setattr(mini_imagenet, "NUM_IMAGES", 4)


def save(path: Path, label: str, number: int) -> None:
    """A picture of one colour: red says the class, green the number; every second one is to be resized."""
    path.parent.mkdir(parents=True, exist_ok=True)
    size = (84, 84) if number % 2 else (120, 90)
    Image.new("RGB", size, (30 * int(label[1:]), 60 * number, 10)).save(path, "jpeg", quality=100)


def table(root: Path) -> Path:
    for split, labels in CLASSES.items():
        rows = [(f"{label}0000{number}.jpg", label) for number in range(4) for label in labels]
        for name, label in rows:
            save(root / "images" / name, label, int(name[-5]))
        lines = ["filename,label", *(",".join(row) for row in rows)]
        (root / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return root


def tree(root: Path) -> Path:
    for split, labels in CLASSES.items():
        for label in labels:
            for number in range(4):
                save(root / split / label / f"{label}0000{number}.jpg", label, number)
    (root / "train" / "n01" / ".hidden.jpg").write_bytes(b"x")
    return root


def refused(root: Path) -> str:
    with pytest.raises(InputError) as caught:
        MiniImageNet(root=root, **SETTINGS)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(root), "ROOT")


@pytest.mark.parametrize("layout", [table, tree])
def test_both_forms_give_the_same_images(layout: Callable[[Path], Path], tmp_path: Path) -> None:
    tasks = MiniImageNet(root=layout(tmp_path), **SETTINGS)
    data = tasks.data
    assert data.images.shape == (28, 3, 84, 84)
    assert data.images.dtype == np.uint8
    assert list(data.names) == ORDERED
    assert {name: part.tolist() for name, part in data.splits.items()} == {
        "train": [0, 1, 2],
        "val": [3, 4],
        "test": [5, 6],
    }
    colours = data.images.reshape(7, 4, 3, -1).mean(-1)
    expected = [[(30 * int(label[1:]), 60 * number, 10) for number in range(4)] for label in ORDERED]
    assert np.abs(colours - np.array(expected)).max() < 3  # JPEG
    drawn = tasks.sample(3, np.random.default_rng(0))
    support = tasks.support(drawn, Seeds.first(3))
    assert support.inputs.shape == (3, 2, 3, 84, 84)
    reds = [[30 * int(ORDERED[number][1:]) for number in row] for row in support.classes.tolist()]
    assert np.abs(support.inputs[:, :, 0].mean((-1, -2)).numpy() * 255 - np.array(reds)).max() < 3


def test_images_are_decoded_once_and_again_when_one_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = table(tmp_path / "data")
    first = MiniImageNet(root=root, cache=tmp_path / "cache", **SETTINGS).data.images
    assert [path.name for path in root.iterdir() if path.suffix == ".npy"] == []
    cached = list((tmp_path / "cache").iterdir())
    assert [re.sub("[0-9a-f]{16}", "X", path.name) for path in cached] == ["mini-imagenet-84-X.npy"]
    assert np.array_equal(np.load(cached[0]), first)
    first[0] = 7  # the array is writable, as torch wants it, but its file stays as it is
    with monkeypatch.context() as patch:
        patch.setattr(pictures, "read_picture", lambda *_: pytest.fail("decoded again"))
        again = MiniImageNet(root=root, cache=tmp_path / "cache", **SETTINGS).data.images
        moved = root.rename(tmp_path / "moved")
        MiniImageNet(root=moved, cache=tmp_path / "cache", **SETTINGS).load()
    assert again[0].max() != 7
    Image.new("RGB", (84, 84), (255, 255, 255)).save(moved / "images" / "n0100000.jpg")
    changed = MiniImageNet(root=moved, cache=tmp_path / "cache", **SETTINGS).data.images
    assert changed[0].min() > 250
    assert np.array_equal(changed[1:], again[1:])
    known = len(list((tmp_path / "cache").iterdir()))
    os.utime(moved / "images" / "n0100000.jpg", ns=(0, 0))  # another picture of as many bytes
    MiniImageNet(root=moved, cache=tmp_path / "cache", **SETTINGS)
    assert len(list((tmp_path / "cache").iterdir())) == known + 1


@pytest.mark.parametrize("content", [b"", b"no picture", b"cut"])
def test_a_damaged_image_is_named_and_leaves_no_cache(content: bytes, tmp_path: Path) -> None:
    path = table(tmp_path) / "images" / "n0500002.jpg"
    path.write_bytes(path.read_bytes()[:700] if content == b"cut" else content)
    assert refused(tmp_path).startswith("ROOT/images/n0500002.jpg: cannot be read as a picture: ")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images", "test.csv", "train.csv", "val.csv"]


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    (table(tmp_path) / "images" / "n0500002.jpg").unlink()
    assert refused(tmp_path) == "ROOT/images/n0500002.jpg: cannot be read: No such file or directory"


def test_a_full_disk_and_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = table(tmp_path / "data")
    (tmp_path / "file").write_text("")
    with pytest.raises(
        InputError, match=r"file/mini-imagenet-84-.*\.npy: cannot be written: .*; task\.cache names another"
    ):
        MiniImageNet(root=root, cache=tmp_path / "file", **SETTINGS)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError, match=r"\.npy: cannot be written: No space left on device"):
        MiniImageNet(root=root, cache=tmp_path / "cache", **SETTINGS)
    assert not (tmp_path / "cache").exists()


def test_a_damaged_cache_is_refused(tmp_path: Path) -> None:
    MiniImageNet(root=table(tmp_path), **SETTINGS)
    cache = next(tmp_path.glob("*.npy"))
    content = cache.read_bytes()
    cache.write_bytes(content[:-1])
    assert re.match(r"ROOT/mini-imagenet-84-\w+\.npy: is damaged; delete it, and it is made again: ", refused(tmp_path))
    np.save(cache, np.zeros((1, 3, 84, 84), np.uint8))
    assert "holds uint8 (1, 3, 84, 84), not uint8 (28, 3, 84, 84); delete it" in refused(tmp_path)


def test_wrong_counts_are_refused_with_the_numbers(tmp_path: Path) -> None:
    tree(tmp_path)
    (tmp_path / "val" / "n02" / "n0200003.jpg").unlink()
    expected = "ROOT: class n02 of the val split has 3 images: must be 4; for other images there is image-folder"
    assert refused(tmp_path) == expected
    save(tmp_path / "val" / "n02" / "n0200003.jpg", "n02", 3)
    (tmp_path / "test" / "n08").mkdir()
    assert refused(tmp_path).startswith("ROOT: the test split has 3 classes: must be 2; for other images")
    (tmp_path / "test" / "n08").rmdir()
    (tmp_path / "test" / "n04").rename(tmp_path / "test" / "n01")
    assert refused(tmp_path) == "ROOT: class n01 is in two splits"


def test_the_official_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    assert mini_imagenet.NUM_CLASSES == {"train": 64, "val": 16, "test": 20}
    assert mini_imagenet.NUM_IMAGES == 600
    monkeypatch.delenv("METARL_DATA", raising=False)
    assert "the train split has 3 classes: must be 64" in refused(tree(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name,label\nx,y\n", r"^ROOT/val\.csv: columns are \['name', 'label'\]: must be filename, label$"),
        ("", r"^ROOT/val\.csv: columns are None: must be filename, label$"),
        ("filename,label\n../x.jpg,n02\n", r"^ROOT/val\.csv:2: must be the name of a file in ROOT/images and a label$"),
        ("filename,label\nx.jpg\n", r"^ROOT/val\.csv:2: must be the name of a file in ROOT/images and a label$"),
        ("filename,label\nx.jpg,n02\nx.jpg,n02\n", r"^ROOT/val\.csv: names an image of class n02 twice$"),
        (None, r"^task\.root = 'ROOT': lacks val\.csv; must hold train\.csv, val\.csv and test\.csv"),
    ],
)
def test_a_faulty_table_is_refused(content: str | None, message: str, tmp_path: Path) -> None:
    path = table(tmp_path) / "val.csv"
    path.unlink() if content is None else path.write_text(content)
    assert re.search(message, refused(tmp_path))


def test_other_folders_are_refused(tmp_path: Path) -> None:
    assert refused(tmp_path / "none").startswith(
        "task.root = 'ROOT': must be a folder that holds train.csv, val.csv and"
    )
    assert refused(tmp_path).startswith(
        "task.root = 'ROOT': must hold train.csv, val.csv and test.csv (filename,label)"
    )
    (tmp_path / "train").mkdir()
    assert "lacks val, test; must hold" in refused(tmp_path)


def test_pickles_are_never_read(tmp_path: Path) -> None:
    path = tmp_path / "mini-imagenet-cache-train.pkl"
    path.write_bytes(b"cos\nsystem\n(S'touch executed'\ntR.")  # whoever unpickles it runs `touch executed`
    assert refused(tmp_path).endswith(
        "folders train, val and test of classes; mini-imagenet-cache-train.pkl is not read: a pickle can run any code"
    )
    assert list(tmp_path.iterdir()) == [path]


def test_the_folder_comes_from_the_environment_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METARL_DATA", str(tmp_path))
    assert not MiniImageNet(**SETTINGS).available()
    with pytest.raises(InputError, match=r"^task\.root: missing; must be a folder that holds train\.csv"):
        MiniImageNet(**SETTINGS).load()
    table(tmp_path / "mini-imagenet")
    assert MiniImageNet(**SETTINGS).data.images.shape == (28, 3, 84, 84)
