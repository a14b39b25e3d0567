"""Tasks from arrays in memory."""

from __future__ import annotations

import dataclasses
import textwrap
from typing import Any

import numpy as np
import pytest
import torch

from metarl.core.config import EvaluationConfig, TrainerConfig
from metarl.core.errors import InputError
from metarl.core.seeds import Seeds
from metarl.core.trainer import Trainer
from metarl.fewshot.base.examples import ExampleCollector
from metarl.fewshot.data.arrays import from_arrays
from metarl.fewshot.fine_tune import FineTune
from metarl.fewshot.proto import Proto

RNG = np.random.default_rng(0)
Y = RNG.permutation(np.repeat(["ant", "bee", "cat", "dog", "eel", "fox"], 5))
BYTES = RNG.integers(0, 256, (30, 8, 8), dtype=np.uint8)
SETTINGS: dict[str, Any] = {"num_ways": 2, "num_shots": 1, "num_queries": 2}
SPLITS = {"train": ["fox", "ant", "cat"], "test": ["bee", "dog"]}


def test_the_example_of_the_documentation_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = from_arrays.__doc__ or ""
    code = textwrap.dedent(text[text.index("        import") : text.index("    Args:")])
    assert code.count("\n") <= 12
    exec(code, {})
    assert capsys.readouterr().out == "torch.Size([4, 5, 1, 28, 28])\n"


def test_examples_are_sorted_by_class_and_split_by_name() -> None:
    tasks = from_arrays(BYTES, Y, splits=SPLITS, **SETTINGS)
    assert tasks.data.names == ("ant", "bee", "cat", "dog", "eel", "fox")
    assert {name: part.tolist() for name, part in tasks.data.splits.items()} == {"train": [5, 0, 2], "test": [1, 3]}
    for place, name in enumerate(tasks.data.names):
        own = tasks.data.images[tasks.data.starts[place] :][:5]
        assert np.array_equal(own[:, 0], BYTES[name == Y])
    drawn = tasks.sample(20, np.random.default_rng(0), split="test")
    support = tasks.support(drawn, Seeds.first(20, evaluation=True))
    assert support.inputs.shape == (20, 2, 1, 8, 8)
    assert support.classes is not None
    assert set(support.classes.unique().tolist()) == {1, 3}
    originals = {(image / np.float32(255)).tobytes(): label for image, label in zip(BYTES, Y, strict=True)}
    found = [originals[image.numpy().tobytes()] for image in support.inputs.flatten(0, 1)]
    assert found == [tasks.data.names[number] for number in support.classes.flatten().tolist()]


@pytest.mark.parametrize(
    ("x", "shape", "values"),
    [
        (BYTES, (1, 8, 8), BYTES / 255),
        (torch.from_numpy(BYTES), (1, 8, 8), BYTES / 255),
        (BYTES.reshape(30, 1, 8, 8), (1, 8, 8), BYTES / 255),
        (BYTES.reshape(30, 4, 4, 4), (4, 4, 4), BYTES / 255),
        (BYTES > 100, (1, 8, 8), BYTES > 100),
        (BYTES / 7.0 - 3, (1, 8, 8), BYTES / 7.0 - 3),
        ((BYTES / 7.0).reshape(30, 64).astype(np.float32), (64,), BYTES / 7.0),
    ],
)
def test_bytes_are_scaled_and_floats_are_not(x: Any, shape: tuple[int, ...], values: Any) -> None:
    tasks = from_arrays(x, np.repeat(np.arange(6), 5), splits={"train": [0, 1], "test": [2, 3]}, **SETTINGS)
    assert tasks.spaces.input_shape == shape
    both = Seeds.first(1)
    drawn = tasks.sample(1, np.random.default_rng(0))
    given = torch.cat([tasks.support(drawn, both).inputs, tasks.query(drawn, both).inputs], 1)[0]
    assert given.dtype == torch.float32
    flat = np.asarray(values, np.float32).reshape(30, -1)
    for example in given.flatten(1).numpy():
        assert np.abs(flat[:10] - example).max(1).min() < 1e-6


def test_shares_and_a_seed_split_too() -> None:
    parts = [
        from_arrays(BYTES, Y, splits=(0.5, 0.0, 0.5), split_seed=seed, **SETTINGS).data.splits for seed in (0, 0, 1)
    ]
    assert [len(parts[0][name]) for name in ("train", "val", "test")] == [3, 0, 3]
    assert np.array_equal(parts[0]["test"], parts[1]["test"])
    assert not np.array_equal(parts[0]["test"], parts[2]["test"])


def test_settings_can_be_replaced_and_hold_no_arrays() -> None:
    tasks = from_arrays(BYTES, Y, splits=SPLITS, **SETTINGS)
    more = dataclasses.replace(tasks, num_shots=3)
    assert more.data is tasks.data
    assert all(not isinstance(value, np.ndarray) for value in dataclasses.asdict(more).values())
    assert repr(more).endswith(
        "ArrayTasks(num_ways=2, num_shots=3, num_queries=2, train_ways=None, train_shots=None, "
        "train_queries=None, train_split='train', test_split='test', train_rotations=False, test_rotations=False)"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": BYTES[0, 0]}, r"^x has shape \(8,\): must be \[num_images, C, H, X\], \[num_images, H, X\] or"),
        ({"x": BYTES[:0], "y": Y[:0]}, r"^x has shape \(0, 8, 8\): must be"),
        ({"x": np.zeros((30, 8, 8, 3))}, r"^x has shape \(30, 8, 8, 3\): channels must come second; numpy\.moveaxis"),
        ({"x": BYTES.astype(int)}, r"^x is int64: must be uint8 \(divided by 255\), bool or floats"),
        ({"x": np.where(np.arange(30) == 4, np.nan, 0.0)[:, None]}, r"^x\[4\] holds a value that is not finite"),
        ({"y": Y[1:]}, r"^y has shape \(29,\): must be \(30,\), a label for each of x"),
        ({"x": [[1.0, 2.0], [3.0]]}, r"^x cannot be read as an array: .*inhomogeneous"),
        ({"x": torch.zeros(30, 8, requires_grad=True)}, r"^x requires gradients: must be data; use x\.detach\(\)$"),
        ({"x": torch.zeros(30, 8, device="meta")}, r"^x is on meta: must be on the CPU; use x\.cpu\(\)$"),
        ({"x": torch.zeros(30, 8).bfloat16()}, r"^x cannot be read as an array: .*BFloat16"),
        ({"x": np.ma.masked_equal(BYTES, BYTES[0, 0, 0])}, r"^x has \d+ masked values: must have none; fill or drop"),
        ({"x": BYTES.astype(object)}, r"^x is object: must be uint8"),
        ({"x": BYTES.astype(complex)}, r"^x is complex128: must be uint8"),
        ({"x": np.full((30, 4), 1e300)}, r"^x\[0\] holds a value that is not finite as a float32"),
        ({"x": np.zeros((30, 20, 20, 2))}, r"^x has shape \(30, 20, 20, 2\): channels must come second"),
        ({"y": [*Y[:4], None, *Y[5:]]}, r"^y\[4\] = None: must be an integer or a string$"),
        ({"y": [*Y[:4], np.nan, *Y[5:]]}, r"^y\[4\] = nan: must be an integer or a string$"),
        ({"y": np.array([*Y[:4], None, *Y[5:]], object)}, r"^y\[4\] = None: must be an integer or a string$"),
        ({"y": [3, *Y[1:]]}, r"^y\[0\] and y\[1\] are int and str: must be of one kind$"),
        ({"y": [[str(label)] for label in Y]}, r"^y\[0\] = \['\w+'\]: must be an integer or a string$"),
        ({"y": np.ma.masked_equal(np.arange(30), 3)}, r"^y has 1 masked values: must have none"),
        ({"y": np.linspace(0, 1, 30)}, r"^y is float64 of shape \(30,\): must be \[num_images\] integers or strings"),
        ({"splits": "random"}, r"^splits = 'random': must be three shares of the classes, or the labels"),
        ({"splits": None}, r"^splits = None: must be three shares of the classes, or the labels"),
        ({"splits": {"train": "ant", "test": ["dog"]}}, r"^task\.num_ways = 2: must be at most 1, the number of train"),
        ({"splits": (0.5, 0.0, 0.5), "split_seed": -1}, r"^split_seed = -1: must be an integer >= 0"),
        ({"splits": {"train": ["ant"], "tets": ["bee"]}}, r"^splits = 'tets': unknown; did you mean 'test'"),
        ({"splits": {"train": ["ant"], "test": ["bea"]}}, r"^splits\['test'\] holds 'bea', which is not in y"),
        (
            {"splits": {"train": ["ant"], "test": ["ant"]}},
            r"^splits\['test'\] holds 'ant', which is in 'train' already",
        ),
        ({"splits": (0.5, 0.6, 0.1)}, r"^splits = \(0\.5, 0\.6, 0\.1\): must be three numbers >= 0 that sum to 1"),
        ({"split_seed": 1}, r"^split_seed = 1: must be left out, since splits names the classes"),
        ({"num_way": 3}, r"^task\.num_way: unknown; did you mean 'num_ways'\?"),
        ({"num_ways": 3}, r"^task\.num_ways = 3: must be at most 2, the number of test classes"),
        ({"num_shots": "1"}, r"^task\.num_shots = '1': must be an integer"),
        ({"num_shots": 4}, r"4 \+ 2 = 6: must be at most 5, the number of images of class 'fox' of the train split"),
    ],
)
def test_what_cannot_be_used_is_refused(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"x": BYTES, "y": Y, "splits": SPLITS, **SETTINGS, **changes}
    with pytest.raises(InputError, match=message) as caught:
        from_arrays(arguments.pop("x"), arguments.pop("y"), **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "labels",
    [
        [-3, -2, -1, 0, 1, 2],
        [np.int64(number) for number in range(6)],
        list(torch.arange(6)),
        torch.arange(6, dtype=torch.int32),
        np.array(list("abcdef"), object),
        tuple("abcdef"),
        np.ma.arange(6),
    ],
)
def test_labels_of_many_kinds(labels: Any) -> None:
    y = [label for label in labels for _ in range(5)]
    y = torch.stack(y) if isinstance(labels, torch.Tensor) else np.repeat(labels, 5) if type(labels) is not list else y
    data = from_arrays(BYTES, y, splits=(0.5, 0.0, 0.5), **SETTINGS).data
    assert data.names == tuple(str(getattr(label, "item", lambda label=label: label)()) for label in labels)
    assert data.counts.tolist() == [5] * 6


@pytest.mark.parametrize("kind", [Proto, FineTune])
def test_validation_episodes_have_the_ways_of_test_tasks_and_the_sizes_of_training(kind: Any) -> None:
    """Training classes have five images here, too few for an episode of test tasks; and joint training has a score of
    `num_ways` classes alone."""
    x, y = np.concatenate([BYTES, BYTES]), np.concatenate([Y, np.where(np.isin(Y, SPLITS["train"]), "gnu", Y)])
    settings = {**SETTINGS, "num_queries": 6, "train_queries": 2, "train_ways": 3}
    tasks = from_arrays(x, y, splits=SPLITS, **settings)
    assert tasks.for_validation().data is tasks.data
    learner = kind(kind.Config(hidden_sizes=(3,), encoder="mlp"), tasks.spaces, generator=torch.Generator())
    lengths = TrainerConfig(iterations=2, meta_batch_size=2)
    evaluation = EvaluationConfig(every=1, num_tasks=4, num_adaptation_steps=3)
    trainer = Trainer(learner, ExampleCollector(tasks), tasks, lengths, evaluation)
    trainer.run()
    assert trainer.validation is not None
    assert 0.0 <= trainer.validation <= 1.0
