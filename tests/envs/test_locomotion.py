from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest

from metarl.core.errors import InputError
from metarl.envs.locomotion import Direction, TargetTasks, unit_vectors


@dataclass(frozen=True)
class Distances(TargetTasks[float]):
    def sample(self, num_tasks, rng, *, split="train"):
        return self._draw(num_tasks, rng, split)


@pytest.mark.parametrize(
    ("settings", "splits", "train", "test"),
    [
        ({"low": 1.0, "high": 3.0}, "same distribution", (1.0, 3.0), (1.0, 3.0)),
        ({"high": 2.0, "test_low": 2.0, "test_high": 5.0}, "disjoint", (0.0, 2.0), (2.0, 5.0)),
        ({"low": 4.0, "high": 5.0, "test_low": 0.0, "test_high": 4.0}, "disjoint", (4.0, 5.0), (0.0, 4.0)),
    ],
)
def test_targets_fill_the_interval_of_their_split(settings, splits, train, test):
    family = Distances(**settings)
    assert family.splits == splits
    for split, (low, high) in (("train", train), ("test", test)):
        targets = family.sample(500, np.random.default_rng(0), split=split)
        assert low <= min(targets) < low + 0.05
        assert high - 0.05 < max(targets) < high
        assert type(targets[0]) is float
        assert targets == family.sample(500, np.random.default_rng(0), split=split)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"low": math.inf}, r"task\.low = inf: must be a finite number$"),
        ({"high": -1.0}, r"task\.high = -1\.0: must be above task\.low = 0\.0$"),
        ({"high": math.nan}, r"task\.high = nan"),
        ({"test_low": -math.inf, "test_high": 0.0}, r"task\.test_low = -inf: must be a finite number, or left out$"),
        ({"test_low": 2.0, "test_high": 1.0}, r"task\.test_high = 1\.0: must be above task\.test_low = 2\.0$"),
        ({"test_low": 0.5, "test_high": 2.0}, r"task\.test_low, task\.test_high = \(0\.5, 2\.0\): .* \[0\.0, 1\.0\)"),
        ({"test_high": 2.0}, r"task\.test_low = None: must be given with"),
        ({"horizon": 0}, r"task\.horizon = 0"),
    ],
)
def test_bad_intervals_are_named(settings, message):
    with pytest.raises(InputError, match=message):
        Distances(**settings)


def test_unit_vectors_point_along_their_angles():
    vectors = unit_vectors([Direction(0.0), Direction(math.pi / 2), Direction(math.pi)])
    np.testing.assert_allclose(vectors, [[1, 0], [0, 1], [-1, 0]], atol=1e-15)
