"""Counters in, numbers out."""

from __future__ import annotations

import itertools

import numpy as np

from metarl.core.seeds import Purpose, Seeds, generator


def numbers(rng: np.random.Generator) -> tuple[int, ...]:
    return tuple(rng.integers(2**62, size=4).tolist())


def test_the_same_counters_give_the_same_numbers() -> None:
    first, second = (generator(3, 14, Purpose.SUPPORT, 1, 5) for _ in range(2))
    assert numbers(first) == numbers(second)


def test_every_counter_matters() -> None:
    counters = itertools.product((0, 1), (0, 1), (Purpose.SUPPORT, Purpose.QUERY), (0, 1), (0, 1))
    streams = {numbers(generator(*counter)) for counter in counters}
    assert len(streams) == 32


def test_the_scheme_is_pinned() -> None:
    """Changing these numbers changes every recorded run."""
    assert generator(7, 11, Purpose.SUPPORT, 2, 3).integers(2**31, size=3).tolist() == [1975960621, 89482241, 947939170]
    assert [purpose.value for purpose in Purpose] == list(range(len(Purpose)))
    assert list(Purpose) == [
        Purpose.INITIALISE,
        Purpose.TASKS,
        Purpose.SUPPORT,
        Purpose.QUERY,
        Purpose.UPDATE,
        Purpose.EVALUATION_TASKS,
        Purpose.EVALUATION_SUPPORT,
        Purpose.EVALUATION_QUERY,
        Purpose.BOOTSTRAP,
    ]


def test_streams_hang_on_slots_and_steps() -> None:
    seeds = Seeds(seed=4, iteration=9, slots=(6, 2))
    for step in (0, 1):
        drawn = [numbers(rng) for rng in seeds.support(step)]
        assert drawn == [numbers(generator(4, 9, Purpose.SUPPORT, step, slot)) for slot in (6, 2)]
    assert [numbers(rng) for rng in seeds.query()] == [numbers(generator(4, 9, Purpose.QUERY, 0, s)) for s in (6, 2)]


def test_support_query_and_evaluation_never_share_a_stream() -> None:
    streams = []
    for evaluation, iteration in itertools.product((False, True), (0, 1)):
        seeds = Seeds.first(2, seed=1, iteration=iteration, evaluation=evaluation)
        streams += [numbers(rng) for rng in (*seeds.support(0), *seeds.support(1), *seeds.query())]
    assert len(set(streams)) == len(streams) == 24


def test_first_numbers_the_slots_from_zero() -> None:
    assert Seeds.first(3, seed=5, iteration=8, evaluation=True) == Seeds(5, 8, (0, 1, 2), True)
    assert Seeds.first(1) == Seeds(0, 0, (0,), False)


def test_take_keeps_each_tasks_stream() -> None:
    seeds = Seeds(seed=4, iteration=9, slots=(6, 2, 8), evaluation=True)
    taken = seeds.take([2, 0])
    assert taken == Seeds(4, 9, (8, 6), True)
    everyone = [numbers(rng) for rng in seeds.support(1)]
    assert [numbers(rng) for rng in taken.support(1)] == [everyone[2], everyone[0]]
