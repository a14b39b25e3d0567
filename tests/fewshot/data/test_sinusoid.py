"""Sine waves."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from metarl.core.errors import InputError
from metarl.core.seeds import Seeds
from metarl.fewshot.data.sinusoid import Sinusoid, Wave

WAVES = [Wave(2.0, 0.5), Wave(0.1, 3.0), Wave(5.0, 0.0)]


def test_waves_are_drawn_from_the_papers_ranges() -> None:
    waves = Sinusoid().sample(4000, np.random.default_rng(0))
    for values, low, high in (
        ([wave.amplitude for wave in waves], 0.1, 5.0),
        ([wave.phase for wave in waves], 0.0, math.pi),
    ):
        assert low <= min(values) < max(values) <= high
        deviation = (high - low) / math.sqrt(12 * 4000)
        assert np.mean(values) == pytest.approx((low + high) / 2, abs=4.5 * deviation)  # missed once in 150,000 draws


def test_targets_are_the_waves_values() -> None:
    tasks, seeds = Sinusoid(num_shots=4), Seeds.first(3)
    for examples in (tasks.support(WAVES, seeds), tasks.query(WAVES, seeds)):
        assert examples.inputs.shape == examples.targets.shape
        assert examples.inputs.dtype == examples.targets.dtype == torch.float32
        assert float(examples.inputs.abs().max()) <= 5.0
        for place, wave in enumerate(WAVES):
            expected = wave.amplitude * torch.sin(examples.inputs[place].double() - wave.phase)
            assert torch.allclose(examples.targets[place].double(), expected, atol=1e-5)


def test_sizes_are_those_of_the_settings() -> None:
    tasks = Sinusoid(num_shots=4, num_queries=30, train_queries=7)
    sizes = [
        (tasks.support(WAVES, seeds).inputs.shape, tasks.query(WAVES, seeds).inputs.shape)
        for seeds in (Seeds.first(3), Seeds.first(3, evaluation=True))
    ]
    assert sizes == [((3, 4, 1), (3, 7, 1)), ((3, 4, 1), (3, 30, 1))]
    with pytest.raises(InputError, match=r"task\.num_shots = 0: must be an integer >= 1"):
        Sinusoid(num_shots=0)


def test_single_shots_add_up_to_the_support_and_go_on_beyond_it() -> None:
    tasks, seeds = Sinusoid(num_shots=4), Seeds.first(3)
    shots = [tasks.support(WAVES, seeds, shot=k) for k in range(6)]
    assert all(shot.inputs.shape == (3, 1, 1) for shot in shots)
    assert torch.equal(torch.cat([shot.inputs for shot in shots[:4]], 1), tasks.support(WAVES, seeds).inputs)
    assert len(torch.cat([shot.inputs[0] for shot in shots]).unique()) == 6


def test_points_depend_on_the_slot_alone() -> None:
    tasks, seeds = Sinusoid(), Seeds.first(3)
    support, query = tasks.support(WAVES, seeds), tasks.query(WAVES, seeds)
    order = [2, 0]
    some, taken = [WAVES[place] for place in order], seeds.take(order)
    assert torch.equal(tasks.support(some, taken).inputs, support.inputs[order])
    assert torch.equal(tasks.query(some, taken).targets, query.targets[order])
    assert not set(support.inputs.flatten().tolist()) & set(query.inputs.flatten().tolist())
    for other in (Seeds.first(3, iteration=1), Seeds.first(3, seed=1), Seeds.first(3, evaluation=True)):
        assert not torch.equal(tasks.support(WAVES, other).inputs, support.inputs)


def test_an_oracle_is_told_amplitude_and_phase() -> None:
    tasks = Sinusoid(reveal=True)
    support = tasks.support(WAVES, Seeds.first(3))
    assert tasks.spaces.input_shape == (3,)
    assert support.inputs.shape == (3, 10, 3)
    assert torch.equal(
        support.inputs[:, :, 1:], torch.tensor([[w.amplitude, w.phase] for w in WAVES])[:, None].expand(3, 10, 2)
    )
    assert torch.equal(support.inputs[:, :, :1], Sinusoid().support(WAVES, Seeds.first(3)).inputs)
