"""Distributions against torch's own, initial weights, and modules as functions on several threads."""

from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metarl.core.errors import InputError
from metarl.core.learner import Spaces
from metarl.networks.policies import MLP, Categorical, Gaussian, GaussianPolicy, Stateless, make_policy

VECTOR = Spaces(observation_size=3, action_size=2, discrete=False)
DISCRETE = Spaces(observation_size=3, action_size=4, discrete=True)
SETTINGS: dict[str, Any] = {"hidden_sizes": (8,), "activation": "tanh", "initial_std": 0.5, "min_std": 1e-6}


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussians() -> tuple[Gaussian, Gaussian, torch.distributions.Independent, torch.distributions.Independent]:
    ours = [Gaussian(normal(6, 2, seed=s), 0.5 * normal(2, seed=s + 10)) for s in (0, 1)]
    theirs = [torch.distributions.Independent(torch.distributions.Normal(g.mean, g.log_std.exp()), 1) for g in ours]
    return ours[0], ours[1], theirs[0], theirs[1]


def test_gaussian_equals_torch() -> None:
    ours, other, theirs, their_other = gaussians()
    actions = normal(6, 2, seed=3)
    torch.testing.assert_close(ours.log_prob(actions), theirs.log_prob(actions))
    torch.testing.assert_close(ours.kl(other), torch.distributions.kl_divergence(theirs, their_other))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    assert ours.kl(ours).abs().max() == 0.0


def test_gaussian_samples_are_scaled_noise() -> None:
    ours, _, _, _ = gaussians()
    noise = normal(6, 2, seed=4)
    torch.testing.assert_close(ours.sample(noise), ours.mean + noise * ours.log_std.exp())
    assert torch.equal(ours.sample(torch.zeros(6, 2)), ours.mean)


def test_categorical_equals_torch() -> None:
    ours, other = (Categorical(2.0 * normal(6, 4, seed=s)) for s in (0, 1))
    theirs, their_other = (torch.distributions.Categorical(logits=c.logits) for c in (ours, other))
    for action in range(4):
        actions = torch.full((6,), action)
        torch.testing.assert_close(ours.log_prob(actions), theirs.log_prob(actions))
    torch.testing.assert_close(ours.kl(other), torch.distributions.kl_divergence(theirs, their_other))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())


def test_categorical_inverts_the_cumulative_distribution() -> None:
    policy = Categorical(torch.tensor([0.5, 0.25, 0.0, 0.25], dtype=torch.float64).log().expand(7, 4))
    noise = torch.tensor([0.0, 0.49, 0.5, 0.74, 0.75, 0.99, 1.0 - 1e-9], dtype=torch.float64)
    assert policy.sample(noise).tolist() == [0, 0, 1, 1, 3, 3, 3]


def test_categorical_never_samples_beyond_the_last_action() -> None:
    """Rounded sums may stay below 1; the largest float below 1 is still the last action."""
    logits = torch.randn(2000, 7, generator=torch.Generator().manual_seed(0))
    largest = torch.full((2000,), 1.0 - 2.0**-24)
    assert int(Categorical(logits).sample(largest).max()) == 6


@pytest.mark.parametrize("kind", ["gaussian", "categorical"])
def test_detached_distributions_carry_no_graph(kind: str) -> None:
    leaf = torch.zeros(3, 2, requires_grad=True)
    distribution = Gaussian(leaf, leaf[0]) if kind == "gaussian" else Categorical(leaf)
    assert any(tensor.requires_grad for tensor in distribution)
    assert not any(tensor.requires_grad for tensor in distribution.detach())


def test_xavier_weights_and_zero_biases() -> None:
    mlp = MLP([40, 60, 20], activation="relu", generator=torch.Generator().manual_seed(0))
    for layer, bound in zip(mlp.layers, (math.sqrt(6 / 100), math.sqrt(6 / 80)), strict=True):
        assert isinstance(layer, nn.Linear)
        assert 0.98 * bound < float(layer.weight.detach().abs().max()) <= bound
        assert float(layer.weight.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)
        assert not layer.bias.any()


@pytest.mark.parametrize("spaces", [VECTOR, DISCRETE])
def test_the_output_gain_scales_the_last_layers_weights_alone(spaces: Spaces) -> None:
    plain, scaled = (
        make_policy(spaces, **SETTINGS, generator=torch.Generator().manual_seed(0), output_gain=gain).state_dict()
        for gain in (1.0, 0.25)
    )
    last = {name for name in plain if name.endswith("layers.1.weight")}
    assert len(last) == 1
    for name, value in plain.items():
        torch.testing.assert_close(scaled[name], value * (0.25 if name in last else 1.0))


def test_weights_come_from_the_generator_alone() -> None:
    def weights(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        module = make_policy(VECTOR, **SETTINGS, generator=generator)
        return torch.cat([value.detach().flatten() for value in module.parameters()])

    first = weights(1)
    with torch.random.fork_rng(devices=[]):
        torch.rand(5)  # changes the global generator, which must have no effect
        assert torch.equal(weights(1), first)
    assert not torch.equal(weights(2), first)


def test_layers_are_linear_and_activations_stand_between_them() -> None:
    mlp = MLP([2, 3, 1], activation="tanh", generator=torch.Generator().manual_seed(0))
    first, second = mlp.layers
    inputs = torch.tensor([[30.0, -20.0], [1.0, 0.5]])
    torch.testing.assert_close(mlp(inputs), second(torch.tanh(first(inputs))))
    relu = MLP([2, 3, 1], activation="relu", generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(relu(inputs), relu.layers[1](relu.layers[0](inputs).clamp_min(0.0)))


def test_no_layer_may_be_empty() -> None:
    with pytest.raises(InputError, match=r"hidden_sizes = \(8, 0\): must be positive integers"):
        MLP([2, 8, 0, 1], activation="tanh", generator=torch.Generator())


def test_policies_fit_their_spaces() -> None:
    observations = torch.zeros(5, 3)
    gaussian = make_policy(VECTOR, **SETTINGS, generator=torch.Generator())(observations)
    assert gaussian.mean.shape == (5, 2)
    assert gaussian.log_std.exp().tolist() == pytest.approx([0.5, 0.5])
    categorical = make_policy(DISCRETE, **SETTINGS, generator=torch.Generator())(observations)
    assert categorical.logits.shape == (5, 4)


def test_the_standard_deviation_has_a_floor() -> None:
    policy = make_policy(VECTOR, **{**SETTINGS, "min_std": 0.1}, generator=torch.Generator())
    assert isinstance(policy, GaussianPolicy)
    with torch.no_grad():
        policy.log_std.copy_(torch.tensor([-50.0, 0.0]))
    assert policy(torch.zeros(1, 3)).log_std.exp().tolist() == pytest.approx([0.1, 1.0])


_BOTH_INSIDE = threading.Barrier(2)


class Meeting(nn.Module):
    """Reads its parameter once two threads are inside `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        _BOTH_INSIDE.wait(timeout=10.0)
        result: Tensor = self.value + inputs
        _BOTH_INSIDE.wait(timeout=10.0)
        return result


def test_two_threads_do_not_see_each_others_parameters() -> None:
    function = Stateless(Meeting())

    def call(number: float) -> float:
        return float(function({"value": torch.tensor(number)}, torch.tensor(0.5)))

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(call, [1.0, 2.0])) == [1.5, 2.5]


def test_stateless_leaves_the_module_alone() -> None:
    module = nn.Linear(1, 1)
    before = module.weight.detach().clone()
    function = Stateless(module)
    output = function({"weight": torch.full((1, 1), 3.0), "bias": torch.ones(1)}, torch.full((1, 1), 2.0))
    assert float(output) == 7.0
    assert torch.equal(module.weight, before)
