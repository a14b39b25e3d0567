"""Omniglot in its three forms: the generated ones hold few characters, and the table of alphabets is cut to these."""

from __future__ import annotations

import io
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from metarl.core.errors import InputError
from metarl.core.seeds import Seeds
from metarl.fewshot.data import omniglot, omniglot_alphabets
from metarl.fewshot.data.omniglot import Omniglot, split

DATA = Path(os.environ.get("METARL_DATA", Path(__file__).parents[3].parent / "shared" / "data"))
REAL = pytest.mark.skipif(not (DATA / "omniglot28.npz").is_file(), reason="no Omniglot here")
BACKGROUND = {"Anglo-Saxon": (3, "train"), "Hebrew": (2, "val")}
EVALUATION = {"Gurmukhi": (2, "train"), "Keble_(old)": (3, "test")}
NAMES = [
    f"{a}/character{n:02d}" for part in (BACKGROUND, EVALUATION) for a, (k, _) in part.items() for n in range(1, k + 1)
]
SETTINGS = {"num_ways": 2, "num_shots": 1, "num_queries": 2}
Layout = Callable[[Path, NDArray[np.uint8]], Path]


@pytest.fixture
def bits(monkeypatch: pytest.MonkeyPatch) -> NDArray[np.uint8]:
    """[10, 20, 28, 28], for the ten characters that the table of alphabets has for the length of the test."""
    monkeypatch.delenv("METARL_DATA", raising=False)
    monkeypatch.setattr(omniglot_alphabets, "BACKGROUND", BACKGROUND)
    monkeypatch.setattr(omniglot_alphabets, "EVALUATION", EVALUATION)
    return (np.random.default_rng(0).random((10, 20, 28, 28)) < 0.2).astype(np.uint8)


def png(ink: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(ink == 0).save(file, "png")  # mode "1": ink is black, 0
    return file.getvalue()


def pictures(bits: NDArray[np.uint8]) -> dict[str, bytes]:
    """Content by name, as the official files have it."""
    return {
        f"images_{'background' if place < 5 else 'evaluation'}/{name}/{place + 1:04d}_{drawing + 1:02d}.png": png(ink)
        for place, name in enumerate(NAMES)
        for drawing, ink in enumerate(bits[place])
    }


def tree(root: Path, bits: NDArray[np.uint8]) -> Path:
    for name, content in pictures(bits).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (root / "images_background" / ".DS_Store").write_bytes(b"x")
    (root / "images_background" / "Hebrew" / "character01" / "._0004_01.png").write_bytes(b"x")
    return root


def torchvision_tree(root: Path, bits: NDArray[np.uint8]) -> Path:
    tree(root / "omniglot-py", bits)
    return root


def zips(root: Path, bits: NDArray[np.uint8]) -> Path:
    for subset in ("images_background", "images_evaluation"):
        with zipfile.ZipFile(root / f"{subset}.zip", "w") as file:
            file.writestr(f"{subset}/", b"")
            for name, content in reversed(pictures(bits).items()):
                if name.startswith(subset):
                    file.writestr(name, content)
            file.writestr(f"__MACOSX/{subset}/Hebrew/character01/._0004_01.png", b"x")
    return root


def packed(root: Path, bits: NDArray[np.uint8], *, order: NDArray[np.int64] | None = None) -> Path:
    order = np.arange(10) if order is None else order
    np.savez(
        root / "omniglot28.npz",
        images=np.packbits(bits.reshape(len(bits), -1, 784), axis=-1)[order],
        alphabet=np.array([name.split("/")[0] for name in NAMES])[order],
        character=np.array([name.split("/")[1] for name in NAMES])[order],
        split=np.array(["train"] * 10)[order],
    )
    return root


def packed_in_another_order(root: Path, bits: NDArray[np.uint8]) -> Path:
    return packed(root, bits, order=np.random.default_rng(1).permutation(10))


LAYOUTS = [tree, torchvision_tree, zips, packed, packed_in_another_order]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_form_gives_the_same_pictures(layout: Layout, tmp_path: Path, bits: NDArray[np.uint8]) -> None:
    before = sorted(layout(tmp_path, bits).rglob("*"))
    data = Omniglot(root=tmp_path, **SETTINGS).data
    assert np.array_equal(data.images, bits.reshape(-1, 1, 28, 28))
    assert data.maximum == 1
    assert data.counts.tolist() == [20] * 10
    assert list(data.names) == NAMES
    assert {name: part.tolist() for name, part in data.splits.items()} == {
        "train": [0, 1, 2, 5, 6],
        "val": [3, 4],
        "test": [7, 8, 9],
    }
    assert sorted(tmp_path.rglob("*")) == before, "a file was written"


def test_ink_is_one_and_a_thin_stroke_survives_the_resizing(tmp_path: Path, bits: NDArray[np.uint8]) -> None:
    for offset in range(8):
        ink = np.zeros((105, 105), np.uint8)
        ink[10:95, 40 + offset : 43 + offset] = 1  # a stroke is three pixels wide
        small = omniglot.read_drawing(io.BytesIO(png(ink)), "stroke")[0]
        assert small.shape == (28, 28)
        assert (small[4:24].sum(1) >= 1).all()
        assert small[4:24].sum(1).max() <= 2
        assert not small[:, :9].any()


def test_the_folder_comes_from_the_environment_too(
    tmp_path: Path, bits: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not Omniglot(**SETTINGS).available()
    with pytest.raises(
        InputError, match=r"^task\.root: missing; .* omniglot28\.npz, or .* images_background and images_"
    ):
        Omniglot(**SETTINGS).load()
    monkeypatch.setenv("METARL_DATA", str(packed(tmp_path, bits)))
    assert Omniglot(**SETTINGS).data.images.shape == (200, 1, 28, 28)
    assert Omniglot(root=tmp_path / "omniglot28.npz", **SETTINGS).data.images.shape == (200, 1, 28, 28)


def refused(root: Path) -> str:
    with pytest.raises(InputError) as caught:
        Omniglot(root=root, **SETTINGS)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(root), "ROOT")


def test_a_folder_without_the_files_is_refused(tmp_path: Path, bits: NDArray[np.uint8]) -> None:
    wanted = "omniglot28.npz, or the folders or zips images_background and images_evaluation"
    assert refused(tmp_path / "none") == f"task.root = 'ROOT': no such folder; wanted: {wanted}"
    assert refused(tmp_path) == f"task.root = 'ROOT': holds none of {wanted}"
    (tmp_path / "images_background").mkdir()
    assert refused(tmp_path) == (
        "task.root = 'ROOT': ROOT holds images_background, but neither images_evaluation nor images_evaluation.zip"
    )


@pytest.mark.parametrize("layout", [tree, zips])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"Hebrew/character02 has 19 drawings: must be 20$"),
        (b"", r"images_background/Hebrew/character02/0005_03\.png: cannot be read as a picture: it is empty, or"),
        (b"\x89PNG\r\n\x1a\n", r"Hebrew/character02/0005_03\.png: cannot be read as a picture: "),
        (b"cut", r"Hebrew/character02/0005_03\.png: cannot be read as a picture: "),
    ],
)
def test_a_damaged_drawing_is_named(
    layout: Layout,
    content: bytes | None,
    message: str,
    tmp_path: Path,
    bits: NDArray[np.uint8],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = "images_background/Hebrew/character02/0005_03.png"
    whole = pictures(bits)
    changed = {**whole, name: whole[name][:70] if content == b"cut" else content or b""}
    if content is None:
        del changed[name]
    monkeypatch.setitem(globals(), "pictures", lambda bits: changed)
    assert re.search(message, refused(layout(tmp_path, bits)))


def test_missing_and_foreign_characters_are_named(tmp_path: Path, bits: NDArray[np.uint8]) -> None:
    tree(tmp_path, bits)
    folder = tmp_path / "images_evaluation" / "Keble_(old)"
    (folder / "character02").rename(folder / "character04")
    expected = "ROOT/images_evaluation: holds 4 of its 5 characters; the first that is missing: Keble_(old)/character02"
    assert refused(tmp_path) == expected
    (folder / "character04").rename(folder / "character02")
    (folder / "character05").mkdir()
    (folder / "character05" / "0099_01.png").write_bytes(png(bits[0, 0]))
    assert "holds 1 characters that are not Omniglot's; the first: Keble_(old)/character05" in refused(tmp_path)


def test_a_packed_file_is_counted_too(tmp_path: Path, bits: NDArray[np.uint8]) -> None:
    packed(tmp_path, bits[:, :19])
    assert refused(tmp_path) == "ROOT/omniglot28.npz: Anglo-Saxon/character01 has 19 drawings: must be 20"
    packed(tmp_path, bits, order=np.arange(9))
    assert refused(tmp_path).endswith(
        "holds 9 of its 10 characters; the first that is missing: Keble_(old)/character03"
    )


def test_another_file_is_no_packed_set(tmp_path: Path, bits: NDArray[np.uint8]) -> None:
    path = packed(tmp_path, bits) / "omniglot28.npz"
    with np.load(path) as file:
        arrays = dict(file)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert refused(tmp_path).startswith("ROOT/omniglot28.npz: is not a packed set of characters: ")
    for other in (b"", b"text", pickle.dumps(arrays)):
        path.write_bytes(other)
        assert refused(tmp_path).startswith("ROOT/omniglot28.npz: is not a packed set of characters: ")
    with path.open("wb") as file:
        np.save(file, arrays["images"])
    assert refused(tmp_path).startswith("ROOT/omniglot28.npz: is not a packed set of characters: ")
    for change, message in (
        (
            {"images": arrays["images"][..., :9]},
            "images are uint8 (10, 20, 9): must be uint8 [num_classes, instances, 98]",
        ),
        ({"alphabet": arrays["alphabet"][1:]}, "alphabet has shape (9,): must be (10,), as the images"),
    ):
        np.savez(path, **{**arrays, **change})
        assert refused(tmp_path) == f"ROOT/omniglot28.npz: {message}"
    np.savez(path, images=arrays["images"])
    assert "is not a packed set of characters: 'alphabet is not a file in the archive'" in refused(tmp_path)


def test_a_damaged_zip_is_refused(tmp_path: Path, bits: NDArray[np.uint8]) -> None:
    zips(tmp_path, bits)
    content = (tmp_path / "images_background.zip").read_bytes()
    (tmp_path / "images_background.zip").write_bytes(content[: len(content) // 2])
    assert refused(tmp_path) == "ROOT/images_background.zip: cannot be read: File is not a zip file"
    place = content.index(b"IDAT") + 10
    (tmp_path / "images_background.zip").write_bytes(content[:place] + b"\0\1\2\3" + content[place + 4 :])
    assert "images_background.zip: cannot be read: Bad CRC-32 for file" in refused(tmp_path)


def test_the_protocols_have_their_numbers() -> None:
    counts = {
        protocol: {name: len(part) for name, part in split(protocol).items()}
        for protocol in ("vinyals", "lake", "random")
    }
    assert counts == {
        "vinyals": {"train": 1028, "val": 172, "test": 423},
        "lake": {"train": 792, "val": 172, "test": 659},
        "random": {"train": 1100, "val": 100, "test": 423},
    }
    assert [c.subset for c in omniglot_alphabets.characters()] == ["images_background"] * 964 + [
        "images_evaluation"
    ] * 659
    assert np.array_equal(split("lake")["test"], np.arange(964, 1623))
    assert np.array_equal(split("lake")["val"], split("vinyals")["val"])
    assert np.array_equal(split("random", 1)["test"], split("random", 1)["test"])
    assert not np.array_equal(split("random", 1)["test"], split("random", 2)["test"])


def test_protocol_settings_are_checked() -> None:
    with pytest.raises(InputError, match=r"task\.split_seed = 3: must be left out with task\.protocol = 'vinyals'"):
        Omniglot(split_seed=3)
    with pytest.raises(InputError, match=r"task\.split_seed = -1: must be an integer >= 0"):
        Omniglot(split_seed=-1, protocol="random")
    with pytest.raises(InputError, match=r"task\.protocol = 'finn': must be one of"):
        Omniglot(protocol="finn")  # type: ignore[arg-type]


@REAL
def test_the_table_of_alphabets_is_that_of_the_real_files() -> None:
    with np.load(DATA / "omniglot28.npz", allow_pickle=False) as file:
        names = [f"{a}/{c}" for a, c in zip(file["alphabet"], file["character"], strict=True)]
        subsets = [f"images_{subset}" for subset in file["subset"]]
        rows = zip(names, subsets, file["split"].tolist(), strict=True)
        assert [tuple(character) for character in omniglot_alphabets.characters()] == list(rows)


@REAL
def test_real_tasks_hold_held_out_characters_alone() -> None:
    tasks = Omniglot(root=DATA, num_ways=20)
    assert len(tasks.spaces.train_classes) == 4 * 1028
    drawn = tasks.sample(50, np.random.default_rng(0), split="test")
    trained = {number % 1623 for number in tasks.spaces.train_classes}
    assert not trained & {number % 1623 for task in drawn for number in task.ids}
    support = tasks.support(drawn, Seeds.first(50, evaluation=True))
    assert support.inputs.shape == (50, 20, 1, 28, 28)
    assert set(support.inputs.unique().tolist()) == {0.0, 1.0}
    assert 0.05 < float(support.inputs.mean()) < 0.15  # ink is 1, paper is 0


@REAL
@pytest.mark.slow
def test_the_whole_set_is_the_same_from_zips(tmp_path: Path) -> None:
    whole = Omniglot(root=DATA).data
    bits = whole.images.reshape(1623, 20, 28, 28)
    zipped = {
        f"images_{name}": zipfile.ZipFile(tmp_path / f"images_{name}.zip", "w") for name in ("background", "evaluation")
    }
    for place, character in enumerate(omniglot_alphabets.characters()):
        for drawing, ink in enumerate(bits[place]):
            name = f"{character.subset}/{character.name}/{place + 1:04d}_{drawing + 1:02d}.png"
            zipped[character.subset].writestr(name, png(ink))
    for file in zipped.values():
        file.close()
    assert np.array_equal(Omniglot(root=tmp_path).data.images, whole.images)
