"""The sampler of N-way K-shot tasks: what is drawn, by which seeds, and what is refused.

All images of the set below differ in every rotation, so that a test can identify each image.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from metarl.core.data import Examples
from metarl.core.errors import InputError
from metarl.core.seeds import Seeds
from metarl.fewshot.data.classes import Classes, ImageSet, ImageTasks, pixel_prototypes, split_at_random
from metarl.fewshot.data.omniglot import Omniglot

COUNTS = (9, 12, 20, 9, 15, 10, 9, 11, 13, 9)
SPLITS = {"train": (0, 2, 4, 6, 8), "val": (1,), "test": (3, 5, 7, 9)}
BYTES = np.random.default_rng(7).integers(0, 256, (sum(COUNTS), 1, 4, 4), dtype=np.uint8)
SET = ImageSet(
    images=BYTES,
    counts=np.array(COUNTS),
    names=tuple(f"class {number}" for number in range(len(COUNTS))),
    splits={name: np.array(numbers) for name, numbers in SPLITS.items()},
)
# (class, number within it, quarter turns) of an image's bytes.
IDENTITY = {
    np.rot90(BYTES[SET.starts[c] + i], turn, (-2, -1)).tobytes(): (c, i, turn)
    for c, count in enumerate(COUNTS)
    for i in range(count)
    for turn in range(4)
}


@dataclass(frozen=True)
class Known(ImageTasks):
    num_ways: int = 3
    num_shots: int = 2
    num_queries: int = 3

    def load(self) -> ImageSet:
        return SET


def identities(examples: Examples, task: int) -> list[tuple[int, int, int]]:
    images = (examples.inputs[task] * 255).round().to(torch.uint8).numpy()
    return [IDENTITY[image.tobytes()] for image in images]


def episodes(
    tasks: ImageTasks, count: int, *, seed: int = 0, iteration: int = 0, evaluation: bool = False
) -> tuple[list[Classes], Seeds, Examples, Examples]:
    drawn = tasks.sample(count, np.random.default_rng(seed), split="test" if evaluation else "train")
    seeds = Seeds.first(count, seed=seed, iteration=iteration, evaluation=evaluation)
    return drawn, seeds, tasks.support(drawn, seeds), tasks.query(drawn, seeds)


def chi_square(counts: NDArray[Any], expected: float) -> float:
    return float((np.square(counts - expected) / expected).sum())


def test_every_image_can_be_told() -> None:
    assert len(IDENTITY) == 4 * sum(COUNTS)


def test_labels_of_the_same_classes_are_uniform() -> None:
    tasks = Known(train_ways=5)  # of the five training classes
    drawn, _, support, _ = episodes(tasks, 1000)
    for number in SPLITS["train"]:
        labels = np.array([task.ids.index(number) for task in drawn])
        # 4 degrees of freedom: exceeded with probability 1e-5; the seed is fixed.
        assert chi_square(np.bincount(labels, minlength=5), 200.0) < 28.5
        given = support.targets[support.classes == number]
        assert chi_square(torch.bincount(given, minlength=5).numpy(), 400.0) < 2 * 28.5


def test_examples_are_of_the_classes_that_their_labels_stand_for() -> None:
    tasks = Known(train_rotations=True)
    drawn, _, *both = episodes(tasks, 20)
    for examples, each in zip(both, (2, 3), strict=True):
        assert examples.inputs.shape == (20, 3 * each, 1, 4, 4)
        assert examples.inputs.dtype == torch.float32
        assert examples.classes is not None
        for place, task in enumerate(drawn):
            assert torch.bincount(examples.targets[place], minlength=3).tolist() == [each] * 3
            ids = [task.ids[label] for label in examples.targets[place].tolist()]
            assert examples.classes[place].tolist() == ids
            assert [c + turn * len(COUNTS) for c, _, turn in identities(examples, place)] == ids


@pytest.mark.parametrize("evaluation", [False, True])
def test_support_and_query_share_no_image(evaluation: bool) -> None:
    tasks = Known(num_ways=4, num_shots=3, num_queries=6)  # all nine images of the smallest classes
    _, _, support, query = episodes(tasks, 300, evaluation=evaluation)
    for place in range(300):
        known, asked = identities(support, place), identities(query, place)
        assert len(set(known)) == len(known) == 12
        assert len(set(asked)) == len(asked) == 24
        assert not set(known) & set(asked)


def test_single_shots_add_up_to_the_support_and_go_on_beyond_it() -> None:
    tasks = Known()
    drawn, seeds, support, query = episodes(tasks, 50)
    shots = [tasks.support(drawn, seeds, shot=k) for k in range(6)]
    for place in range(50):
        single = [identities(shot, place) for shot in shots]
        assert all(len(images) == 3 for images in single)
        assert sorted(single[0] + single[1]) == sorted(identities(support, place))
        everything = [*itertools.chain(*single), *identities(query, place)]
        assert len(set(everything)) == len(everything) == 6 * 3 + 9
    with pytest.raises(InputError, match=r"^10 examples of a class .* class 'class 0' has 9; ask for fewer"):
        tasks.support([Classes((0, 2, 4))], Seeds.first(1), shot=6)


def test_more_shots_change_no_query() -> None:
    few, many = (episodes(Known(num_shots=shots), 10)[3] for shots in (1, 5))
    assert torch.equal(few.inputs, many.inputs)


def test_every_image_has_the_same_chance() -> None:
    tasks = Known(num_ways=2, num_shots=1)
    pair = [Classes((2, 4))] * 3000
    support = tasks.support(pair, Seeds.first(3000))
    seen = [image for place in range(3000) for image in identities(support, place)]
    for number in (2, 4):
        numbers = np.array([i for c, i, _ in seen if c == number])
        # Degrees of freedom 19 and 14: exceeded with probability 1e-5.
        assert chi_square(np.bincount(numbers, minlength=COUNTS[number]), 3000 / COUNTS[number]) < 56.0


def test_classes_are_drawn_without_replacement_from_their_split() -> None:
    tasks = Known(train_rotations=True, test_rotations=True)
    drawn = {
        split: [set(task.ids) for task in tasks.sample(400, np.random.default_rng(1), split=split)]
        for split in ("train", "test")
    }
    assert all(len(ids) == 3 for ids in (*drawn["train"], *drawn["test"]))
    seen = {split: set().union(*several) for split, several in drawn.items()}
    assert {split: {number % 10 for number in ids} for split, ids in seen.items()} == {
        "train": set(SPLITS["train"]),
        "test": set(SPLITS["test"]),
    }
    assert len(seen["train"]) == 4 * 5
    assert len(seen["test"]) == 4 * 4
    assert tasks.spaces.train_classes == tuple(sorted(seen["train"]))


def test_validation_classes_train_or_test_when_asked_to() -> None:
    both = Known(train_split="train+val")
    assert both.classes("train").tolist() == [0, 2, 4, 6, 8, 1]
    assert both.classes("test").tolist() == [3, 5, 7, 9]
    with pytest.raises(InputError, match=r"task\.num_ways = 2: must be at most 1, the number of test classes"):
        Known(num_ways=2, test_split="val")


def test_a_class_is_turned_the_same_way_throughout_an_episode() -> None:
    tasks = Known(train_ways=5, train_rotations=True)
    drawn, seeds, support, query = episodes(tasks, 60)
    plain = [Classes(tuple(number % 10 for number in task.ids)) for task in drawn]
    turned = 0
    for examples, method in ((support, tasks.support), (query, tasks.query)):
        assert examples.classes is not None
        for place in range(60):
            if len(set(plain[place].ids)) < 5:
                continue  # a class and itself, turned, are two classes
            seed = seeds.take([place])
            unturned = method([plain[place]], seed).inputs[0]
            turns = examples.classes[place] // 10
            turned += int((turns > 0).sum())
            expected = torch.stack([torch.rot90(x, int(k), (1, 2)) for x, k in zip(unturned, turns, strict=True)])
            assert torch.equal(examples.inputs[place], expected)
    assert turned > 100


@pytest.mark.parametrize("part", ["support", "query"])
def test_examples_come_in_an_order_of_chance(part: str) -> None:
    tasks = Known(num_ways=4)
    drawn = [Classes((0, 2, 4, 6))] * 1000
    examples = getattr(tasks, part)(drawn, Seeds.first(1000))
    for place in (0, 1, -1):
        # 3 degrees of freedom: exceeded with probability 1e-5.
        assert chi_square(torch.bincount(examples.targets[:, place], minlength=4).numpy(), 250.0) < 26.0


def test_an_episode_depends_on_its_slot_and_not_on_its_place() -> None:
    tasks = Known(train_rotations=True)
    drawn, seeds, support, query = episodes(tasks, 8)
    order = [5, 0, 7, 2]
    some = [drawn[place] for place in order]
    for whole, part in (
        (support, tasks.support(some, seeds.take(order))),
        (query, tasks.query(some, seeds.take(order))),
    ):
        assert torch.equal(part.inputs, whole.inputs[order])
        assert torch.equal(part.targets, whole.targets[order])


def test_the_seeds_alone_decide() -> None:
    def bits(**counters: Any) -> list[bytes]:
        _, _, support, query = episodes(Known(), 4, **counters)
        return [tensor.numpy().tobytes() for tensor in (support.inputs, support.targets, query.inputs, query.targets)]

    assert bits() == bits()
    for other in (bits(iteration=1), bits(seed=1)):
        assert all(a != b for a, b in zip(bits(), other, strict=True))
    drawn = [Classes((0, 2, 4))] * 4
    training, evaluation = (Known().support(drawn, Seeds.first(4, evaluation=e)) for e in (False, True))
    assert not torch.equal(training.inputs, evaluation.inputs)


def test_training_and_evaluation_have_sizes_of_their_own() -> None:
    tasks = Known(train_ways=5, train_shots=1, train_queries=4)
    shapes = [
        [part.inputs.shape[1] for part in episodes(tasks, 2, evaluation=evaluation)[2:]] for evaluation in (False, True)
    ]
    assert shapes == [[5, 20], [6, 9]]
    assert (tasks.spaces.train_ways, tasks.spaces.num_outputs, tasks.spaces.input_shape) == (5, 3, (1, 4, 4))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_ways": 6, "train_ways": 2}, "task.num_ways = 6: must be at most 4, the number of test classes"),
        ({"num_ways": 6}, "task.num_ways = 6: must be at most 5, the number of train classes"),
        ({"train_ways": 6}, "task.train_ways = 6: must be at most 5, the number of train classes"),
        ({"train_ways": 21, "train_rotations": True}, "task.train_ways = 21: must be at most 20"),
        (
            {"num_shots": 5, "num_queries": 5},
            "task.num_shots + task.num_queries = 5 + 5 = 10: must be at most 9, the number of images of "
            "class 'class 0' of the train split; also too small: 'class 6' (9); ask for fewer, or leave such",
        ),
        (
            {"num_shots": 5, "num_queries": 5, "train_shots": 1, "train_queries": 1},
            "task.num_shots + task.num_queries = 5 + 5 = 10: must be at most 9, the number of images of "
            "class 'class 3' of the test split; also too small: 'class 9' (9); ask for fewer, or leave such",
        ),
        ({"train_queries": 8}, "task.num_shots + task.train_queries = 2 + 8 = 10: must be at most 9"),
        ({"num_ways": 1}, "task.num_ways = 1: must be an integer >= 2"),
        ({"num_shots": 0}, "task.num_shots = 0: must be an integer >= 1"),
        ({"train_queries": 0}, "task.train_queries = 0: must be an integer >= 1, or left out"),
        ({"train_split": "train+val", "test_split": "val"}, "task.test_split = 'val': must be 'test', since"),
    ],
)
def test_what_cannot_be_drawn_is_refused_at_once(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        Known(**settings)
    assert str(caught.value).startswith(message)


@dataclass(frozen=True)
class Other(Known):
    change: str = ""

    def load(self) -> ImageSet:
        if self.change == "no validation":
            return replace(SET, splits={name: SET.splits[name] for name in ("train", "test")})
        return replace(SET, images=SET.images.reshape(-1, 1, 2, 8) if self.change == "wide" else SET.images[:, 0, 0])


def test_settings_that_the_images_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match=r"task\.test_split = 'val': must be 'test': no class is for validation"):
        Other(change="no validation", test_split="val")
    with pytest.raises(InputError, match=r"task\.train_split = 'train\+val': must be 'train': no class"):
        Other(change="no validation", train_split="train+val")
    for change, shape in (("wide", r"\(1, 2, 8\)"), ("vectors", r"\(4,\)")):
        with pytest.raises(
            InputError, match=rf"task\.train_rotations = True: must be false for inputs of shape {shape}"
        ):
            Other(change=change, train_rotations=True)
        assert episodes(Other(change=change), 2)[2].inputs.shape[:2] == (2, 6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": BYTES.astype(np.int64)}, r"images are int64 \(117, 1, 4, 4\); expected uint8 or float32"),
        ({"images": BYTES[1:]}, r"10 names and counts that sum to 117 do not fit 116 images"),
        ({"splits": {"train": np.array([0, 1]), "test": np.array([1])}}, r"a class is in two splits"),
        ({"splits": {"train": np.array([0, 10])}}, r"a split holds class 0 or 10 of 10"),
        ({"splits": {"training": np.array([0])}}, r"splits are training; expected train, val, test"),
    ],
)
def test_an_image_set_is_checked(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SET, **change)


def test_a_class_has_a_name_for_people() -> None:
    assert [Known().class_name(number) for number in (3, 33)] == ["class 3", "class 3, turned by 270 degrees"]


def by_hand(support: Examples, query: Examples) -> list[float]:
    """Accuracy of the nearest mean of unit vectors by cosine, one query at a time."""
    scores = []
    for task in range(support.num_tasks):
        prototypes: list[list[float]] = []
        for label in range(int(support.targets[task].max()) + 1):
            members = [unit(x) for x, y in zip(support.inputs[task], support.targets[task], strict=True) if y == label]
            prototypes.append([sum(column) for column in zip(*members, strict=True)])
        right = 0.0
        for image, label in zip(query.inputs[task], query.targets[task], strict=True):
            cosines = [float(np.dot(unit(image), p) / np.linalg.norm(p)) for p in prototypes]
            right += float(cosines.index(max(cosines)) == int(label))
        scores.append(right / query.targets.shape[1])
    return scores


def unit(image: torch.Tensor) -> Sequence[float]:
    vector = image.double().numpy().ravel()
    return [float(x) for x in vector / np.linalg.norm(vector)]


def test_the_baseline_compares_pixels() -> None:
    tasks = Known()
    _, _, support, query = episodes(tasks, 20, evaluation=True)
    scores = tasks.baseline(support, query)
    assert scores.tolist() == pytest.approx(by_hand(support, query))
    assert len(set(scores.tolist())) > 3
    # Two classes along two axes, the second one's support twice as bright: the length of an image does not count.
    known = Examples(torch.tensor([[[1.0, 0.0], [0.0, 2.0]]]), torch.tensor([[0, 1]]))
    asked = Examples(torch.tensor([[[3.0, 2.0], [0.1, 0.2], [0.3, 0.2]]]), torch.tensor([[0, 1, 1]]))
    assert pixel_prototypes(known, asked).tolist() == [pytest.approx(2 / 3)]


def test_the_baseline_on_omniglot_is_as_measured() -> None:
    folder = Path(os.environ.get("METARL_DATA", Path(__file__).parents[3].parent / "shared" / "data"))
    if not (folder / "omniglot28.npz").is_file():
        pytest.skip("no Omniglot here")
    tasks = Omniglot(root=folder, protocol="lake", test_rotations=False, num_shots=1, num_queries=5)
    _, _, support, query = episodes(tasks, 600, evaluation=True)
    # 47.9 +- 0.9 over 300 to 600 episodes of another sampler; this one's interval is as wide.
    assert float(tasks.baseline(support, query).mean()) == pytest.approx(0.479, abs=0.015)


def test_a_random_split_covers_every_class_once() -> None:
    parts = split_at_random(100, (0.64, 0.16), 3)
    assert [len(parts[name]) for name in ("train", "val", "test")] == [64, 16, 20]
    assert sorted(itertools.chain(*(part.tolist() for part in parts.values()))) == list(range(100))
    same, other = split_at_random(100, (0.64, 0.16), 3), split_at_random(100, (0.64, 0.16), 4)
    assert all(np.array_equal(parts[name], same[name]) for name in parts)
    assert not np.array_equal(parts["test"], other["test"])
