"""A network is a function of its parameters and batch statistics."""

from __future__ import annotations

import torch
from torch import Tensor

from metarl.fewshot.base.encoders import EncoderConfig, make_encoder
from metarl.fewshot.base.networks import Network


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_statistics_are_named_after_their_place_and_forgotten_after_use() -> None:
    network = Network(make_encoder(EncoderConfig(num_filters=2), (1, 16, 16), generator=rng()), name="encoder")
    inputs = drawn(6, 1, 16, 16)
    plain = network(network.parameters, inputs)
    _, used = network.recorded(network.parameters, inputs)
    assert list(used) == [f"encoder.blocks.{i}.norm" for i in range(4)] == list(network.statistics)
    assert {tuple(value.shape) for value in used.values()} == {(2, 2)}
    torch.testing.assert_close(network(network.parameters, inputs, statistics=used), plain, atol=1e-5, rtol=1e-4)
    shifted = {name: value + 1.0 for name, value in used.items()}
    assert not torch.allclose(network(network.parameters, inputs, statistics=shifted), plain, atol=1e-2)
    assert torch.equal(network(network.parameters, inputs), plain)
    unseen = network(network.parameters, inputs, statistics=network.statistics)
    assert not torch.allclose(unseen, plain, atol=1e-2)


def test_a_network_is_a_function_of_its_parameters() -> None:
    module = make_encoder(EncoderConfig(hidden_sizes=(3,)), (2,), generator=rng())
    network, inputs = Network(module, name="encoder"), drawn(4, 2)
    before = [parameter.clone() for parameter in module.parameters()]
    weight, bias = drawn(3, 2, seed=1), drawn(3, seed=2)
    assert {tuple(value.shape) for value in network.parameters.values()} == {(3, 2), (3,)}
    given = {name: weight if value.dim() == 2 else bias for name, value in network.parameters.items()}
    torch.testing.assert_close(network({**given, "another": drawn(1)}, inputs), torch.relu(inputs @ weight.mT + bias))
    assert all(map(torch.equal, before, module.parameters()))
