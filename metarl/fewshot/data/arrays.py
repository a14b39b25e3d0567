"""Tasks from images or vectors of your own that are in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from metarl.core.errors import InputError, one_line, require, unknown_name
from metarl.core.settings import from_table
from metarl.fewshot.data.classes import SHARES, SPLITS, ImageSet, ImageTasks, require_shares, split_at_random

CHANNELS = (1, 3, 4)


def from_arrays(
    x: ArrayLike,
    y: ArrayLike,
    *,
    splits: Mapping[str, Sequence[Any]] | tuple[float, float, float] = SHARES,
    split_seed: int = 0,
    **settings: Any,
) -> ImageTasks:
    """N-way K-shot tasks from examples and their classes.

        import numpy as np
        from metarl.fewshot.data.arrays import from_arrays
        from metarl.core.seeds import Seeds

        rng = np.random.default_rng(0)
        y = np.repeat(np.arange(30), 20)  # 30 classes, 20 images of each
        x = rng.normal(y[:, None, None], 1.0, (600, 28, 28))
        tasks = from_arrays(x, y, num_ways=5, num_shots=1, num_queries=10)
        batch = tasks.sample(4, rng, split="test")
        support = tasks.support(batch, Seeds.first(4, evaluation=True))
        print(support.inputs.shape)  # torch.Size([4, 5, 1, 28, 28])

    Args:
        x: images [num_images, H, X] or [num_images, C, H, X], or vectors [num_images, D]. Bytes (uint8) are divided by
            255. Bools become 0 and 1. Floats are used as they are, so scale them before. Other integers are refused.
        y: [num_images], the class of each: integers, bools or strings.
        splits: class labels of "train", "test" and perhaps "val" (other classes are left out); or shares of the classes
            for train, val and test, drawn at random.
        split_seed: seed of the random shares.
        settings: of `ImageTasks`: num_ways, num_shots, num_queries, ...

    Raises:
        InputError: shapes, values or labels cannot be used; a setting is unknown, or needs more classes or images than
            there are.
    """
    examples, maximum = _examples(_array(x, "x"))
    labels = _labels(y)
    if labels.shape != examples.shape[:1]:
        raise InputError(f"y has shape {labels.shape}: must be {examples.shape[:1]}, a label for each of x")
    require(isinstance(split_seed, int) and split_seed >= 0, "split_seed", split_seed, "an integer >= 0")
    names, numbers, counts = np.unique(labels, return_inverse=True, return_counts=True)
    images = ImageSet(
        images=examples[np.argsort(numbers, kind="stable")],
        counts=counts,
        names=tuple(str(name) for name in names),
        splits=_splits(splits, names.tolist(), split_seed),
        maximum=maximum,
    )

    # `config.json` of a run holds all settings, so the arrays are not a setting. This class holds them instead.
    @dataclass(frozen=True)
    class ArrayTasks(ImageTasks):
        """Examples that were given as arrays."""

        def load(self) -> ImageSet:
            return images

    return from_table(ArrayTasks, settings, "task")


def _array(values: ArrayLike, name: str) -> NDArray[Any]:
    """`values` as an array."""
    if isinstance(values, torch.Tensor):
        if values.requires_grad:
            raise InputError(f"{name} requires gradients: must be data; use {name}.detach()")
        if values.device.type != "cpu":
            raise InputError(f"{name} is on {values.device}: must be on the CPU; use {name}.cpu()")
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise InputError(
            f"{name} has {int(np.ma.getmaskarray(values).sum())} masked values: must have none; fill or drop them"
        )
    try:
        return np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists; tensors of dtypes that numpy lacks
        raise InputError(f"{name} cannot be read as an array: {one_line(error)}") from error


def _labels(y: ArrayLike) -> NDArray[Any]:
    """`y` as an array of integers, bools or strings."""
    if isinstance(y, list | tuple):
        # An array of objects: one of strings would turn None into "None" and nan into "nan".
        given = np.empty(len(y), object)
        given[:] = y
    else:
        given = _array(y, "y")
    if given.dtype.kind in "iubU":
        return given
    if given.dtype.kind != "O" or given.ndim != 1:
        raise InputError(f"y is {given.dtype} of shape {given.shape}: must be [num_images] integers or strings")
    plain = [
        label.item() if isinstance(label, np.generic | torch.Tensor) and label.ndim == 0 else label for label in given
    ]
    for place, label in enumerate(plain):
        if type(label) not in (bool, int, str):
            raise InputError(f"y[{place}] = {one_line(label)}: must be an integer or a string")
        if type(label) is not type(plain[0]):
            kinds = f"{type(plain[0]).__name__} and {type(label).__name__}"
            raise InputError(f"y[0] and y[{place}] are {kinds}: must be of one kind")
    return np.array(plain)


def _examples(x: NDArray[Any]) -> tuple[NDArray[np.uint8] | NDArray[np.float32], int]:
    """`x` as `ImageSet.images`, and the value that becomes 1.0."""
    if x.ndim not in (2, 3, 4) or not x.size:
        raise InputError(f"x has shape {x.shape}: must be [num_images, C, H, X], [num_images, H, X] or [num_images, D]")
    square = x.ndim == 4 and x.shape[1] == x.shape[2] > x.shape[3]
    if x.ndim == 4 and x.shape[1] not in CHANNELS and (x.shape[-1] in CHANNELS or square):
        raise InputError(f"x has shape {x.shape}: channels must come second; numpy.moveaxis(x, -1, 1) puts them there")
    shaped = x[:, None] if x.ndim == 3 else x
    if x.dtype == np.uint8:
        return shaped, 255
    if x.dtype == np.bool_:
        return shaped.astype(np.uint8), 1
    if x.dtype.kind != "f":
        raise InputError(f"x is {x.dtype}: must be uint8 (divided by 255), bool or floats (taken as they are)")
    with np.errstate(over="ignore"):  # numbers beyond float32 are refused below
        floats = shaped.astype(np.float32)
    finite = np.isfinite(floats.reshape(len(x), -1)).all(1)
    if not finite.all():
        raise InputError(f"x[{int(finite.argmin())}] holds a value that is not finite as a float32")
    return floats, 1


def _splits(
    splits: Mapping[str, Sequence[Any]] | tuple[float, float, float], names: list[Any], seed: int
) -> dict[str, NDArray[np.int64]]:
    if not isinstance(splits, Mapping):
        fits = isinstance(splits, list | tuple) and all(isinstance(share, int | float) for share in splits)
        require(fits, "splits", splits, "three shares of the classes, or the labels of train, test and perhaps val")
        require_shares(tuple(splits), "splits")
        return split_at_random(len(names), splits[:2], seed)
    if seed:
        raise InputError(f"split_seed = {seed}: must be left out, since splits names the classes")
    places = {name: place for place, name in enumerate(names)}
    taken: dict[Any, str] = {}
    for split, labels in splits.items():
        if split not in SPLITS:
            raise unknown_name("splits", split, SPLITS)
        for label in np.atleast_1d(np.asarray(labels)).tolist():
            if label not in places:
                raise InputError(f"splits[{split!r}] holds {label!r}, which is not in y")
            if label in taken:
                raise InputError(f"splits[{split!r}] holds {label!r}, which is in {taken[label]!r} already")
            taken[label] = split
    return {split: np.array([places[x] for x in taken if taken[x] == split], np.int64) for split in splits}
