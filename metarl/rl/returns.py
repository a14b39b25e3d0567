"""Returns, baselines and advantages, batched over tasks. Steps with mask 0 do not count.

Shape legend: N num_tasks, K num_trajectories, H horizon. Subscripts in names are times: `values_t` is V(s_t). One row
of the last axis is one trajectory: live steps first (mask 1), then padding (mask 0).
"""

from __future__ import annotations

import torch
from torch import Tensor

LONG_OBSERVATION = 1000


def discounted_returns(rewards_t: Tensor, mask_t: Tensor, *, gamma: float, last_return: Tensor | None = None) -> Tensor:
    """R_t = r_t + gamma R_{t+1} over live steps.

    Args:
        rewards_t: [..., H].
        mask_t: [..., H].
        gamma: discount in [0, 1].
        last_return: [...], the return after the last live step (a bootstrap); zero if None.

    Returns:
        [..., H], zero on dead steps.
    """
    if rewards_t.shape != mask_t.shape:
        raise ValueError(f"rewards {tuple(rewards_t.shape)} and mask {tuple(mask_t.shape)} must have one shape")
    following = torch.zeros_like(rewards_t[..., 0]) if last_return is None else last_return
    returns_t = torch.empty_like(rewards_t)
    for t in reversed(range(rewards_t.shape[-1])):
        live = mask_t[..., t]
        following = torch.where(live > 0, rewards_t[..., t] + gamma * following, following)
        returns_t[..., t] = following * live
    return returns_t


def generalized_advantages(
    rewards_t: Tensor, values_t: Tensor, mask_t: Tensor, *, gamma: float, gae_lambda: float, last_values: Tensor
) -> Tensor:
    """A_t = delta_t + gamma lambda A_{t+1}, with delta_t = r_t + gamma V(s_{t+1}) - V(s_t), over live steps.

    Args:
        rewards_t: [..., H].
        values_t: [..., H], V(s_t).
        mask_t: [..., H].
        gamma: discount in [0, 1].
        gae_lambda: in [0, 1]; 1 gives the return minus the value, 0 the one-step temporal difference.
        last_values: [...], the value after the last live step. It is zero if the MDP terminated. If the trajectory was
            truncated, it is the critic's value, or zero for a finite-horizon objective.

    Returns:
        [..., H], zero on dead steps.

    Reference: Schulman et al. 2016, arXiv:1506.02438, equations 11-16.
    """
    if not rewards_t.shape == values_t.shape == mask_t.shape:
        shapes = tuple(tuple(tensor.shape) for tensor in (rewards_t, values_t, mask_t))
        raise ValueError(f"rewards, values and mask have shapes {shapes}; they must have one shape")
    next_value = last_values
    advantage = torch.zeros_like(last_values)
    advantages_t = torch.empty_like(rewards_t)
    for t in reversed(range(rewards_t.shape[-1])):
        live = mask_t[..., t]
        delta = rewards_t[..., t] + gamma * next_value - values_t[..., t]
        advantage = torch.where(live > 0, delta + gamma * gae_lambda * advantage, advantage)
        next_value = torch.where(live > 0, values_t[..., t], next_value)
        advantages_t[..., t] = advantage * live
    return advantages_t


def standardize(values: Tensor, mask: Tensor, *, epsilon: float = 1e-8) -> Tensor:
    """Zero mean and unit variance over each task's live steps.

    The statistics are per task. With those of the whole meta-batch, tasks with large returns would dominate the others.

    Args:
        values: [N, ...].
        mask: same shape.
        epsilon: added to the standard deviation; a constant input becomes zero.

    Returns:
        Same shape, zero on dead steps.
    """
    axes = tuple(range(1, values.dim()))
    count = mask.sum(axes, keepdim=True).clamp_min(1.0)
    centred = (values - (values * mask).sum(axes, keepdim=True) / count) * mask
    variance = centred.square().sum(axes, keepdim=True) / count
    return centred / (variance.sqrt() + epsilon)


def mean_of_live(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over all live steps of all rows; zero if there are none."""
    return (values * mask).sum() / mask.sum().clamp_min(1.0)


def variance_of_live(values: Tensor, mask: Tensor) -> Tensor:
    """Variance over all live steps of all rows."""
    return mean_of_live((values - mean_of_live(values, mask)).square(), mask)


def baseline_features(observations: Tensor) -> Tensor:
    """Features of the linear baseline: o, o^2, t/100, (t/100)^2, (t/100)^3, 1, with o clipped to [-10, 10].

    Observations of more than `LONG_OBSERVATION` numbers, such as pictures, are left out: with more features than steps,
    the regression fits every return exactly, and all advantages are zero.

    Args:
        observations: [..., H, observation_size].

    Returns:
        [..., H, 2 observation_size + 4] float64, or [..., H, 4] where the observations are left out.
    """
    used = observations if observations.shape[-1] <= LONG_OBSERVATION else observations[..., :0]
    clipped = used.double().clamp(-10.0, 10.0)
    horizon = observations.shape[-2]
    time = torch.arange(horizon, dtype=torch.float64, device=observations.device).unsqueeze(-1) / 100.0
    times = torch.cat([time, time.square(), time**3, torch.ones_like(time)], dim=-1)
    return torch.cat([clipped, clipped.square(), times.expand(*observations.shape[:-1], 4)], dim=-1)


def linear_baseline(
    observations: Tensor, returns_t: Tensor, mask_t: Tensor, *, ridge: float = 1e-5, attempts: int = 8
) -> Tensor:
    """Values of a ridge regression of returns on `baseline_features`, one regression per task, live steps only.

    It is fitted on the batch it is evaluated on, as in the authors' code of MAML, ProMP and rllab. With few
    trajectories and long observations it overfits, and the advantages become too small.

    Args:
        observations: [N, K, H, observation_size].
        returns_t: [N, K, H], the targets.
        mask_t: [N, K, H].
        ridge: regularisation. It is multiplied by ten for tasks whose normal equations cannot be factored.
        attempts: number of tries, each with a larger `ridge` than the last.

    Returns:
        [N, K, H] in the dtype of `returns_t`, zero on dead steps. A task that cannot be fitted gets zeros.

    Reference: Duan et al. 2016, arXiv:1604.06778 (the linear feature baseline).
    """
    features = baseline_features(observations).flatten(1, 2) * mask_t.flatten(1).unsqueeze(-1)
    targets = (returns_t * mask_t).double().flatten(1).unsqueeze(-1)
    gram = features.mT @ features
    moment = features.mT @ targets
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    weights = torch.zeros_like(moment)
    unsolved = torch.ones(gram.shape[0], dtype=torch.bool, device=gram.device)
    for _ in range(attempts):
        factor, info = torch.linalg.cholesky_ex(gram + ridge * identity)
        solution = torch.cholesky_solve(moment, factor)
        good = unsolved & (info == 0) & solution.isfinite().flatten(1).all(-1)
        weights = torch.where(good[:, None, None], solution, weights)
        unsolved = unsolved & ~good
        if not bool(unsolved.any()):
            break
        ridge *= 10.0
    return (features @ weights).reshape(returns_t.shape).to(returns_t.dtype)
