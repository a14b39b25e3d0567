from __future__ import annotations

import numpy as np
import pytest

from metarl.envs.random_numbers import RandomNumbers


def numbers(seeds, trajectories=0):
    seeds = np.array(seeds, np.uint64)
    trajectories = np.broadcast_to(np.array(trajectories, np.uint64), seeds.shape)
    return RandomNumbers(seeds, trajectories, lambda i: np.random.default_rng(i))


def correlation(left, right):
    return np.corrcoef(left.ravel(), right.ravel())[0, 1] * np.sqrt(left.size)


def splitmix64(state):
    """One output of Vigna's generator, https://prng.di.unimi.it/splitmix64.c, for a state after its increment."""
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
    return state ^ (state >> 31)


def test_the_hash_is_splitmix64s():
    step = 0x9E3779B97F4A7C15
    published = ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4", "0x6c45d188009454f"]
    assert [hex(splitmix64(i * step % 2**64)) for i in (1, 2, 3)] == published
    key = splitmix64(splitmix64((7 + 1) * step % 2**64) + 5)
    expected = [(splitmix64((key + i * step) % 2**64) >> 11) * 2.0**-53 for i in (1, 2, 3)]
    assert numbers([7], 5).uniforms(3).tolist() == [expected]


@pytest.mark.parametrize("seeds", ["in a row", "drawn"])
def test_uniforms_are_uniform_and_independent(seeds):
    number, count = 2000, 100
    chosen = range(number) if seeds == "in a row" else np.random.default_rng(0).integers(2**31, size=number)
    first, again = numbers(chosen).uniforms(count), numbers(chosen, 1).uniforms(count)
    for draws in (first, again):
        assert draws.shape == (number, count)
        bins = np.bincount((draws.ravel() * 256).astype(int), minlength=256)
        chi_square = ((bins - draws.size / 256) ** 2).sum() / (draws.size / 256)
        assert abs(chi_square - 255) < 4 * np.sqrt(2 * 255)
        # Sums over a trajectory and over seeds spread as those of independent numbers do.
        assert draws.mean(1).var() * 12 * count == pytest.approx(1.0, abs=4 * np.sqrt(2 / number))
        assert draws.mean(0).var() * 12 * number == pytest.approx(1.0, abs=4 * np.sqrt(2 / count))
    assert abs(correlation(first[1:], first[:-1])) < 4, "neighbouring seeds"
    assert abs(correlation(first[:, 1:], first[:, :-1])) < 4, "neighbouring numbers"
    assert abs(correlation(first, again)) < 4, "the next trajectory"
    assert abs(correlation(first[1:], again[:-1])) < 4, "the next trajectory of the seed before"
    assert len(np.unique(np.concatenate([first, again]))) == 2 * first.size


def test_normals_are_standard_normal():
    draws = numbers(range(2000)).normals(100)
    scale = 4 / np.sqrt(draws.size)
    for power, moment, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert (draws**power).mean() == pytest.approx(moment, abs=scale * np.sqrt(spread))
    assert abs(correlation(draws[:, 1:], draws[:, :-1])) < 4
    assert (draws > 1.959964).mean() == pytest.approx(0.025, abs=scale * np.sqrt(0.025))


def test_numbers_depend_on_the_seed_and_not_on_the_others():
    together = numbers([5, 6, 2**64 - 1])
    alone = numbers([6])
    np.testing.assert_array_equal(together.uniforms(4)[1:2], alone.uniforms(4))
    np.testing.assert_array_equal(together.uniforms(4)[1:2], alone.uniforms(4))


def test_drawing_goes_on_where_it_stopped():
    once, twice = numbers([3]), numbers([3])
    np.testing.assert_array_equal(once.uniforms(5), np.hstack([twice.uniforms(2), twice.uniforms(3)]))
    assert once.uniforms(1) != numbers([3]).uniforms(1)


def test_it_is_a_sequence_of_generators_made_when_asked_for():
    made = []

    def generator(i):
        made.append(i)
        return np.random.default_rng(i)

    rngs = RandomNumbers(np.zeros(3, np.uint64), np.zeros(3, np.uint64), generator)
    assert len(rngs) == 3
    assert made == []
    assert [rng.random() for rng in rngs] == [np.random.default_rng(i).random() for i in range(3)]
    assert rngs[-1].random() == np.random.default_rng(2).random()
    assert len(rngs[1:]) == 2
    assert made == [0, 1, 2, 2, 1, 2]
    with pytest.raises(IndexError):
        rngs[3]
