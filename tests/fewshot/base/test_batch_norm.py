"""Batch normalisation against torch's own, in each of the ways in which it is computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from metarl.fewshot.base import batch_norm
from metarl.fewshot.base.batch_norm import BatchNorm
from metarl.fewshot.base.networks import Network


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture(params=["torch", "long sums", "elementary"])
def made(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a batch norm of some size, in float64, that is computed in one of the ways."""
    monkeypatch.setattr(batch_norm, "LONG_SUM", 0 if request.param == "long sums" else 10**9)

    def make(size: int) -> BatchNorm:
        own = BatchNorm(size).double()
        own.elementary = request.param == "elementary"
        return own

    return make


@pytest.mark.parametrize("shape", [(7, 4), (7, 4, 3, 5)], ids=["vectors", "maps"])
def test_batch_norm_is_torchs_by_the_batch_and_by_given_statistics(shape: tuple[int, ...], made: Any) -> None:
    inputs, own = drawn(*shape, dtype=torch.float64), made(4)
    torchs: Any = (nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d)(4, dtype=torch.float64)
    with torch.no_grad():
        for module in (own, torchs):
            module.weight.copy_(drawn(4, seed=1))
            module.bias.copy_(drawn(4, seed=2))
        torchs.running_mean.copy_(drawn(4, seed=3))
        torchs.running_var.copy_(drawn(4, seed=4).square() + 0.1)
    own.given = torch.stack([torchs.running_mean.clone(), torchs.running_var.clone()])
    torch.testing.assert_close(own(inputs), torchs.eval()(inputs))
    own.given = None
    torch.testing.assert_close(own(inputs), torchs.train()(inputs))


def test_statistics_of_many_large_maps_are_summed_to_full_precision() -> None:
    """torch's own kernel for channels last is off by 0.5 % of a deviation here."""
    maps = (drawn(120, 4, 28, 28) > 2.0).float().add(0.3).contiguous(memory_format=torch.channels_last)
    expected = functional.batch_norm(maps.double(), None, None, training=True)
    own = BatchNorm(4)
    torch.testing.assert_close(own(maps).double(), expected, rtol=1e-5, atol=1e-5)
    own.record = "constants"
    own(maps)
    rows = maps.double().permute(1, 0, 2, 3).flatten(1)
    assert own.used is not None
    used = torch.stack([rows.mean(1), rows.var(1, correction=0)])
    torch.testing.assert_close(own.used.double(), used, rtol=1e-5, atol=1e-5, check_layout=False)


@pytest.mark.parametrize("affine", [True, False])
def test_first_and_second_derivatives_of_batch_norm_by_finite_differences(affine: bool, made: Any) -> None:
    own = made(2)
    if not affine:
        own.weight = own.bias = None
    else:
        own.weight, own.bias = nn.Parameter(drawn(2, seed=1).double()), nn.Parameter(drawn(2, seed=2).double())
    inputs = drawn(3, 2, 2, 2, dtype=torch.float64).requires_grad_()
    variables = (inputs, *own.parameters())

    def value(inputs: Tensor, *parameters: Tensor) -> Tensor:
        given = dict(zip([name for name, _ in own.named_parameters()], parameters, strict=True))
        output: Tensor = torch.func.functional_call(own, given, (inputs,))
        return output.sin()

    assert torch.autograd.gradcheck(value, variables)
    assert torch.autograd.gradgradcheck(value, variables)


def test_batch_norm_under_vmap_is_that_of_each_task(made: Any) -> None:
    own = made(2)
    inputs = drawn(3, 5, 2, 4, 4, dtype=torch.float64)

    def second_order(inputs: Tensor) -> Tensor:
        def first_order(inputs: Tensor) -> Tensor:
            return torch.func.grad(lambda x: own(x).pow(3).sum())(inputs).pow(2).sum()

        return torch.func.grad(first_order)(inputs)

    together = torch.func.vmap(second_order)(inputs)
    torch.testing.assert_close(together, torch.stack([second_order(task) for task in inputs]))


@pytest.mark.parametrize("record", ["constants", "differentiable"])
def test_recorded_statistics_are_mean_and_biased_variance(record: Any) -> None:
    inputs, own = drawn(7, 4, 3, 5, dtype=torch.float64).requires_grad_(), BatchNorm(4).double()
    plain = own(inputs)
    own.record = record
    torch.testing.assert_close(own(inputs), plain)
    assert own.used is not None
    rows = inputs.permute(1, 0, 2, 3).flatten(1)
    mean = rows.sum(1) / 105
    variance = (rows - mean.unsqueeze(1)).square().sum(1) / 105
    torch.testing.assert_close(own.used, torch.stack([mean, variance]), check_layout=False)
    assert own.used.requires_grad == (record == "differentiable")


def test_the_gradient_is_the_same_whether_statistics_are_recorded() -> None:
    gradients = []
    for record in ("no", "constants", "differentiable"):
        inputs, own = drawn(5, 2, 3, 3, dtype=torch.float64).requires_grad_(), BatchNorm(2).double()
        own.record = record  # type: ignore[assignment]
        gradients.append(torch.autograd.grad(own(inputs).pow(3).sum(), inputs)[0])
    torch.testing.assert_close(gradients[1], gradients[0])
    torch.testing.assert_close(gradients[2], gradients[0])


def test_the_gradient_flows_through_differentiable_statistics() -> None:
    """Finite differences of a query that is normalised by the support."""
    support, query = drawn(5, 2, dtype=torch.float64), drawn(3, 2, seed=1, dtype=torch.float64)
    network = Network(nn.Sequential(BatchNorm(2)).double(), name="net")

    def value(inputs: Tensor) -> Tensor:
        used = network.recorded(network.parameters, inputs, differentiable=True)[1]
        return network(network.parameters, query, statistics=used).pow(3).sum()

    assert torch.autograd.gradcheck(value, (support.requires_grad_(),))
