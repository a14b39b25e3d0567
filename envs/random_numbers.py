"""Random numbers for many sub-environments at once. Each sub-environment has its own seed.

Creating a numpy generator takes about 10 microseconds, longer than a whole trajectory of a small environment. Here,
number j of a trajectory is a hash of (seed, number of the trajectory, j), computed for all sub-environments together.
The hash is the output function of SplitMix64: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators",
OOPSLA 2014.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

_INCREMENT = np.uint64(0x9E3779B97F4A7C15)  # of SplitMix64


class RandomNumbers(Sequence[np.random.Generator]):
    """The random numbers of sub-environments that start new trajectories.

    `uniforms` and `normals` draw for all sub-environments together. Item i of the sequence is the numpy generator of
    sub-environment i, created when it is first used. The numbers of a sub-environment depend only on its seed and on
    how many trajectories it has begun since it was seeded.

    Args:
        seeds: uint64, one per sub-environment.
        trajectories: how many trajectories each has begun since it was seeded, uint64.
        generator: returns the numpy generator of sub-environment i.
    """

    def __init__(
        self,
        seeds: NDArray[np.uint64],
        trajectories: NDArray[np.uint64],
        generator: Callable[[int], np.random.Generator],
    ) -> None:
        self._keys = _splitmix64(_splitmix64((seeds + np.uint64(1)) * _INCREMENT) + trajectories)[:, np.newaxis]
        self._generator = generator
        self._drawn = 0

    def uniforms(self, count: int) -> NDArray[np.float64]:
        """The next `count` uniform numbers in [0, 1) of each, [num_envs, count]."""
        counters = np.arange(self._drawn + 1, self._drawn + count + 1, dtype=np.uint64)
        self._drawn += count
        bits: NDArray[np.uint64] = _splitmix64(self._keys + counters * _INCREMENT) >> np.uint64(11)
        return bits.astype(np.float64) * 2.0**-53

    def normals(self, count: int) -> NDArray[np.float64]:
        """The next `count` standard normal numbers of each, [num_envs, count]; uses up 2 * `count` uniform numbers."""
        radius = np.sqrt(-2.0 * np.log1p(-self.uniforms(count)))
        normals: NDArray[np.float64] = radius * np.cos(2.0 * np.pi * self.uniforms(count))
        return normals

    def __len__(self) -> int:
        return len(self._keys)

    @overload
    def __getitem__(self, index: int) -> np.random.Generator: ...
    @overload
    def __getitem__(self, index: slice) -> list[np.random.Generator]: ...
    def __getitem__(self, index: int | slice) -> np.random.Generator | list[np.random.Generator]:
        if isinstance(index, slice):
            return [self._generator(i) for i in range(len(self))[index]]
        return self._generator(range(len(self))[index])


def _splitmix64(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
