from __future__ import annotations

from typing import Any

import pytest
import torch

from metarl.core.data import Examples, Trajectories
from metarl.core.trees import to_device

N, K, H = 2, 3, 4


def trajectories(**changes: Any) -> Trajectories:
    fields = {
        "observations": torch.zeros(N, K, H, 5),
        "actions": torch.zeros(N, K, H, 2),
        "rewards": torch.arange(N * K * H).reshape(N, K, H).float(),
        "terminated": torch.zeros(N, K, H, dtype=torch.bool),
        "truncated": torch.zeros(N, K, H, dtype=torch.bool),
        "mask": torch.ones(N, K, H),
        "log_probs": torch.zeros(N, K, H),
        "last_observations": torch.zeros(N, K, 5),
        "diverged": torch.zeros(N, K, dtype=torch.bool),
        "state": None,
    }
    return Trajectories(**{**fields, **changes})


def test_to_device_moves_nested_data() -> None:
    moved = to_device(trajectories(state={"memory": torch.zeros(2)}), "meta")
    assert moved.state["memory"].device.type == moved.rewards.device.type == moved.diverged.device.type == "meta"


@pytest.mark.parametrize("name", ["observations", "actions", "terminated", "truncated", "mask", "log_probs"])
def test_trajectories_name_the_field_that_does_not_fit(name: str) -> None:
    wrong = torch.zeros(N, K, H + 1)
    with pytest.raises(ValueError, match=rf"^{name} has shape \(2, 3, 5\); .* must be \(2, 3, 4\)$"):
        trajectories(**{name: wrong})


def test_trajectories_need_three_axes_of_rewards() -> None:
    with pytest.raises(ValueError, match=r"rewards has shape \(2, 3\); expected \[num_tasks, num_trajectories"):
        trajectories(rewards=torch.zeros(N, K))


def test_success_rates_leave_trajectories_that_do_not_count_out() -> None:
    mask = torch.ones(N, K, H)
    mask[0, 1] = 0.0
    mask[1] = 0.0
    data = trajectories(mask=mask, success=torch.tensor([[True, True, False], [True, True, True]]))
    rates = data.success_rates()
    assert rates is not None
    assert rates.tolist() == [0.5, 0.0]
    assert trajectories().success_rates() is None
    assert data.without_signal().success is None  # it would tell of the task


def test_mean_returns_leave_dead_steps_and_masked_trajectories_out() -> None:
    mask = torch.ones(N, K, H)
    mask[0, 1] = 0.0  # this trajectory does not count
    mask[0, 2, 2:] = 0.0  # this one ended after two steps
    mask[1] = 0.0  # this task has none
    data = trajectories(mask=mask)
    assert data.mean_returns().tolist() == [((0 + 1 + 2 + 3) + (8 + 9)) / 2, 0.0]
    assert data.num_steps == 6
    assert data.num_tasks == N


def test_diverged_simulations_are_counted() -> None:
    diverged = torch.zeros(N, K, dtype=torch.bool)
    diverged[0, 1] = diverged[1, 2] = True
    assert trajectories(diverged=diverged).num_diverged == 2


def test_trajectories_without_signal_keep_all_but_the_rewards() -> None:
    data = trajectories(observations=torch.ones(N, K, H, 5))
    silent = data.without_signal()
    assert not silent.rewards.any()
    assert silent.rewards.shape == data.rewards.shape
    assert silent.observations is data.observations
    assert data.rewards.any()


def test_examples() -> None:
    inputs, targets = torch.ones(2, 5, 7), torch.ones(2, 5, dtype=torch.int64)
    data = Examples(inputs, targets, classes=targets)
    assert (data.num_tasks, data.num_steps, data.num_diverged) == (2, 10, 0)
    silent = data.without_signal()
    assert not silent.targets.any()
    assert silent.targets.dtype == torch.int64
    assert silent.inputs is inputs
    assert silent.classes is targets
    with pytest.raises(ValueError, match=r"inputs \(2, 5, 7\) and targets \(2, 4\) must agree"):
        Examples(inputs, targets[:, :4])
