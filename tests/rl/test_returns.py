"""Hand-worked returns, advantages and baselines, with padding and both kinds of end."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from metarl.rl.returns import (
    LONG_OBSERVATION,
    baseline_features,
    discounted_returns,
    generalized_advantages,
    linear_baseline,
    standardize,
)


def test_discounted_returns_stop_at_the_end_of_the_trajectory() -> None:
    rewards = torch.tensor([[1.0, 2.0, 4.0], [1.0, 2.0, 99.0]])
    mask = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    returns = discounted_returns(rewards, mask, gamma=0.5)
    torch.testing.assert_close(returns, torch.tensor([[3.0, 4.0, 4.0], [2.0, 2.0, 0.0]]))


def test_discounted_returns_bootstrap_from_the_last_live_step() -> None:
    returns = discounted_returns(
        torch.tensor([[1.0, 1.0, 7.0]]), torch.tensor([[1.0, 1.0, 0.0]]), gamma=0.5, last_return=torch.tensor([8.0])
    )
    torch.testing.assert_close(returns, torch.tensor([[3.5, 5.0, 0.0]]))


def test_generalized_advantages_worked_by_hand() -> None:
    # delta = r + 0.5 V' - V = [1 + 1 - 1, 2 + 2 - 2, 3 + 0.5 * last - 4]; A_t = delta_t + 0.25 A_{t+1}.
    rewards, values = torch.tensor([[1.0, 2.0, 3.0]]).repeat(2, 1), torch.tensor([[1.0, 2.0, 4.0]]).repeat(2, 1)
    mask = torch.ones(2, 3)
    terminated_then_truncated = torch.tensor([0.0, 10.0])
    advantages = generalized_advantages(
        rewards, values, mask, gamma=0.5, gae_lambda=0.5, last_values=terminated_then_truncated
    )
    torch.testing.assert_close(advantages, torch.tensor([[1.4375, 1.75, -1.0], [1.75, 3.0, 4.0]]))


def test_generalized_advantages_ignore_padding() -> None:
    rewards = torch.tensor([[1.0, 2.0, 50.0]])
    values = torch.tensor([[1.0, 2.0, 60.0]])
    mask = torch.tensor([[1.0, 1.0, 0.0]])
    advantages = generalized_advantages(
        rewards, values, mask, gamma=0.5, gae_lambda=1.0, last_values=torch.tensor([4.0])
    )
    torch.testing.assert_close(advantages, torch.tensor([[2.0, 2.0, 0.0]]))


def test_lambda_one_is_return_minus_value() -> None:
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(2, 3, 7, generator=generator), torch.randn(2, 3, 7, generator=generator)
    lengths = torch.tensor([[7, 3, 1], [5, 7, 2]])
    mask = (torch.arange(7) < lengths.unsqueeze(-1)).float()
    advantages = generalized_advantages(rewards, values, mask, gamma=0.9, gae_lambda=1.0, last_values=torch.zeros(2, 3))
    expected = (discounted_returns(rewards, mask, gamma=0.9) - values) * mask
    torch.testing.assert_close(advantages, expected)


def test_standardize_is_per_task_and_over_live_steps() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2, 4, 5, generator=generator) * torch.tensor([1.0, 100.0])[:, None, None]
    mask = (torch.rand(2, 4, 5, generator=generator) < 0.7).float()
    values = torch.where(mask > 0, values, torch.full_like(values, 1e6))
    result = standardize(values, mask)
    for task in range(2):
        live = result[task][mask[task] > 0]
        assert live.mean().abs() < 1e-6
        assert abs(live.std(correction=0) - 1.0) < 1e-5
    assert bool((result[mask == 0] == 0).all())


def test_standardize_turns_a_constant_into_zero() -> None:
    assert bool((standardize(torch.full((2, 3), 5.0), torch.ones(2, 3)) == 0).all())


def test_baseline_features_clip_and_count_time() -> None:
    observations = torch.tensor([[[20.0], [-3.0]]])
    features = baseline_features(observations)
    np.testing.assert_allclose(features[0, 0], [10.0, 100.0, 0.0, 0.0, 0.0, 1.0])
    np.testing.assert_allclose(features[0, 1], [-3.0, 9.0, 0.01, 1e-4, 1e-6, 1.0])


def test_linear_baseline_is_ridge_regression_on_live_steps() -> None:
    rng = np.random.default_rng(0)
    observations = torch.from_numpy(rng.normal(size=(2, 4, 6, 2)).astype(np.float32))
    returns = torch.from_numpy(rng.normal(size=(2, 4, 6)).astype(np.float32))
    mask = torch.from_numpy((np.arange(6) < rng.integers(2, 7, size=(2, 4, 1))).astype(np.float32))
    values = linear_baseline(observations, returns * mask, mask, ridge=1e-5)
    for task in range(2):
        live = mask[task].bool().numpy()
        design = baseline_features(observations[task]).numpy()[live]
        target = returns[task].double().numpy()[live]
        weights = np.linalg.solve(design.T @ design + 1e-5 * np.eye(design.shape[1]), design.T @ target)
        np.testing.assert_allclose(values[task].numpy()[live], design @ weights, atol=1e-5)
        assert not values[task].numpy()[~live].any()


def test_linear_baseline_survives_a_degenerate_task() -> None:
    observations = torch.zeros(2, 2, 3, 4)
    observations[0] = float("nan")
    returns = torch.ones(2, 2, 3)
    values = linear_baseline(observations, returns, torch.ones(2, 2, 3))
    assert bool((values[1] - 1.0).abs().max() < 1e-3)


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match="one shape"):
        discounted_returns(torch.zeros(2, 3), torch.zeros(2, 4), gamma=0.9)


def test_a_baseline_of_pictures_knows_the_time_alone() -> None:
    rng = np.random.default_rng(0)
    returns = torch.from_numpy(rng.normal(size=(1, 4, 6)).astype(np.float32))
    pictures = torch.from_numpy(rng.normal(size=(1, 4, 6, LONG_OBSERVATION + 1)).astype(np.float32))
    mask = torch.ones_like(returns)
    values = linear_baseline(pictures, returns, mask)
    torch.testing.assert_close(values, linear_baseline(torch.zeros(1, 4, 6, 1), returns, mask))
    assert (returns - values).abs().mean() > 0.3, "more features than steps would meet every return"
