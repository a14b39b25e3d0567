"""Encoders against torch's own layers."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from metarl.core.errors import InputError
from metarl.fewshot.base.batch_norm import BatchNorm, with_own_batch_norm
from metarl.fewshot.base.encoders import Conv4, ConvBlock, Convolution, EncoderConfig, make_encoder
from metarl.fewshot.base.examples import ExampleSpaces
from metarl.fewshot.base.networks import Network
from metarl.fewshot.proto import Proto


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


class Foreign(nn.Module):
    """An encoder of one's own: convolution, torch's batch norm inside a container, a mean over space."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(shape[0], 3, 3), nn.BatchNorm2d(3), nn.ReLU())

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.body(inputs).mean((2, 3))
        return out


def refuses(shape: tuple[int, ...]) -> nn.Module:
    raise OSError(f"no weights for\n{shape}")


def number(shape: tuple[int, ...]) -> int:
    return 3


class Norms(nn.Module):
    """Batch norms of all kinds, whose running averages and settings are not torch's defaults."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm1d(shape[0], eps=0.3, momentum=0.4),
            nn.BatchNorm1d(shape[0], eps=0.2, momentum=0.2, affine=False),
            nn.BatchNorm1d(shape[0], eps=0.5, bias=False, momentum=0.05, track_running_stats=False),
        )
        self.body[0].running_mean.copy_(torch.arange(shape[0]))
        self.body[1].running_var.fill_(4.0)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.body(inputs)
        return out


class Constant(nn.Module):
    """A buffer that the constructor draws, a layer that is frozen, and a weight that stands in two places."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("shift", torch.randn(shape))
        self.register_buffer("scale", torch.randn(shape), persistent=False)
        self.frozen = nn.Linear(shape[0], shape[0]).requires_grad_(False)
        self.first, self.second = (nn.Linear(shape[0], shape[0], bias=False) for _ in range(2))
        self.second.weight = self.first.weight

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.second(torch.relu(self.first(self.frozen(inputs * self.scale + self.shift))))
        return out


class Dropping(nn.Module):
    def __init__(self, shape: tuple[int, ...], p: float = 0.5) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(shape[0], 4), nn.Dropout(p))

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.layers(inputs)
        return out


class Undecided(nn.Module):
    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()

    def forward(self, inputs: Tensor) -> Tensor:
        return functional.dropout(inputs, training=self.training)


class Counting(nn.Module):
    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        return inputs


class SumsUp(nn.Module):
    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.sum(1)


class Misfit(nn.Module):
    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layer = nn.Linear(shape[0] + 1, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.layer(inputs)
        return out


def without_momentum(shape: tuple[int, ...]) -> nn.Module:
    return nn.Sequential(nn.BatchNorm1d(shape[0], momentum=None))


def almost_dropping(shape: tuple[int, ...]) -> nn.Module:
    return Dropping(shape, p=1e-6)


def no_longer_dropping(shape: tuple[int, ...]) -> nn.Module:
    return Dropping(shape, p=0.0)


MINE = (
    Norms,
    Constant,
    Dropping,
    Undecided,
    Counting,
    SumsUp,
    Misfit,
    without_momentum,
    almost_dropping,
    no_longer_dropping,
)


@pytest.fixture
def own_module(monkeypatch: pytest.MonkeyPatch) -> str:
    """A module by the name of `encoders_of_mine`, which holds the functions above."""
    module = types.ModuleType("encoders_of_mine")
    vars(module).update(Foreign=Foreign, refuses=refuses, number=number, **{made.__name__: made for made in MINE})
    monkeypatch.setitem(sys.modules, "encoders_of_mine", module)
    return "encoders_of_mine"


def test_pooling_before_the_relu_equals_after_bit_for_bit() -> None:
    block = ConvBlock(2, 5, shrink="pool", norm=True)
    inputs = drawn(6, 2, 12, 12)
    plain = functional.max_pool2d(torch.relu(block.norm(block.convolution(inputs))), 2)
    assert torch.equal(block(inputs), plain)
    assert (plain == 0).any()  # the ReLU did something
    assert plain.shape == (6, 5, 6, 6)


@pytest.mark.parametrize("mode", ["transductive", "none"])
def test_conv4_is_four_blocks_of_torchs_layers(mode: Any) -> None:
    config = EncoderConfig(encoder="conv4", num_filters=3, batch_norm=mode)
    encoder = make_encoder(config, (2, 20, 16), generator=rng())
    assert isinstance(encoder, Conv4)
    inputs = drawn(5, 2, 20, 16)
    hidden = inputs
    for block in encoder.blocks:
        hidden = functional.conv2d(hidden, block.convolution.weight, block.convolution.bias, padding=1)  # type: ignore
        if mode == "none":  # each example by its own mean and variance
            rows = hidden.flatten(1)
            centred = rows - rows.mean(1, keepdim=True)
            hidden = (centred / (rows.var(1, correction=0, keepdim=True) + 1e-5).sqrt()).view_as(hidden)
        else:
            hidden = functional.batch_norm(hidden, None, None, training=True)
        hidden = functional.max_pool2d(torch.relu(hidden), 2)
    torch.testing.assert_close(encoder(inputs), hidden.flatten(1), atol=1e-5, rtol=1e-4)
    assert hidden.shape == (5, 3, 1, 1)


@pytest.mark.parametrize(("stride", "padding", "bias"), [(1, 1, True), (2, 1, True), (1, 0, True), (2, 1, False)])
def test_a_convolution_as_one_product_is_a_convolution(stride: int, padding: int, bias: bool) -> None:
    """Values and second derivatives, the latter through a loss that is not linear in anything."""
    layer = Convolution(2, 3, 3, stride=stride, padding=padding, bias=bias).double()
    inputs = drawn(4, 2, 7, 8, dtype=torch.float64)
    results = []
    for as_product in (False, True):
        layer.as_product = as_product
        points = [inputs.clone().requires_grad_(), *layer.parameters()]
        outputs = layer(points[0])
        first = torch.autograd.grad(outputs.sin().sum(), points, create_graph=True)
        second = torch.autograd.grad(sum(value.square().sum() for value in first), points)
        results.append([outputs, *first, *second])
    assert len(results[0]) == 1 + 2 * (2 + bias)
    for product, plain in zip(*reversed(results), strict=True):
        torch.testing.assert_close(product, plain, rtol=1e-12, atol=1e-12)


def test_conv4_strided_is_mamls_network_for_omniglot() -> None:
    encoder = make_encoder(EncoderConfig(encoder="conv4-strided", num_filters=3), (1, 28, 28), generator=rng())
    assert isinstance(encoder, Conv4)
    inputs = drawn(5, 1, 28, 28)
    hidden, sizes = inputs, []
    for block in encoder.blocks:
        hidden = functional.conv2d(hidden, block.convolution.weight, None, stride=2, padding=1)  # type: ignore
        hidden = torch.relu(functional.batch_norm(hidden, None, None, training=True))
        sizes.append(hidden.shape[-1])
    assert sizes == [14, 7, 4, 2]
    torch.testing.assert_close(encoder(inputs), hidden.mean((2, 3)), atol=1e-5, rtol=1e-4)


def test_channels_last_changes_no_input_in_place_and_takes_any_layout() -> None:
    encoder = make_encoder(EncoderConfig(num_filters=2), (3, 16, 16), generator=rng())
    inputs = drawn(4, 3, 16, 16)
    before = inputs.clone()
    out = encoder(inputs)
    torch.testing.assert_close(encoder(inputs.contiguous(memory_format=torch.channels_last)), out)
    assert torch.equal(inputs, before)


def test_torchs_batch_norm_is_exchanged_weights_kept(own_module: str) -> None:
    made = Foreign((2,))
    with torch.no_grad():
        made.body[1].weight.copy_(drawn(3))
        made.body[1].bias.copy_(drawn(3, seed=1))
    inputs = drawn(4, 2, 6, 6)
    expected = made(inputs)  # in training mode: by the batch
    names = [name for name, _ in made.named_parameters()]
    exchanged = with_own_batch_norm(made)
    assert isinstance(exchanged.body[1], BatchNorm)  # type: ignore[index]
    assert [name for name, _ in exchanged.named_parameters()] == names
    torch.testing.assert_close(exchanged(inputs), expected)


def test_a_module_of_ones_own_by_name(own_module: str) -> None:
    encoder = make_encoder(EncoderConfig(encoder=f"{own_module}:Foreign"), (2, 6, 6), generator=rng())
    assert isinstance(encoder, Foreign)
    network = Network(encoder, name="encoder")
    assert list(network.statistics) == ["encoder.body.1"]
    assert network(network.parameters, drawn(4, 2, 6, 6)).shape == (4, 3)


def own(name: str, shape: tuple[int, ...], *, seed: int = 0) -> nn.Module:
    config = EncoderConfig(encoder=f"encoders_of_mine:{name}")
    return make_encoder(config, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.usefixtures("own_module")
def test_foreign_batch_norms_keep_what_they_are() -> None:
    """Epsilon, momentum, running averages, and whether there are a weight and a bias."""
    network = Network(own("Norms", (3,)), name="net")
    assert list(network.parameters) == ["net.body.0.weight", "net.body.0.bias", "net.body.2.weight"]
    assert network.momenta == {"net.body.0": 0.4, "net.body.1": 0.2, "net.body.2": 0.05}
    first, second, third = network.statistics.values()
    assert first.tolist() == [[0.0, 1.0, 2.0], [1.0, 1.0, 1.0]]
    assert second.tolist() == [[0.0, 0.0, 0.0], [4.0, 4.0, 4.0]]
    assert third.tolist() == [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]
    assert network.buffers == {}
    inputs, given = drawn(5, 3), {**network.parameters, "net.body.0.bias": drawn(3, seed=1)}
    torchs = Norms((3,))
    with torch.no_grad():
        torchs.body[0].bias.copy_(drawn(3, seed=1))  # type: ignore[operator]
    torch.testing.assert_close(network(given, inputs), torchs(inputs))
    outputs, used = network.recorded(given, inputs)
    torch.testing.assert_close(outputs, torchs(inputs))
    torch.testing.assert_close(network(given, inputs, statistics=used), outputs)
    fresh = Norms((3,)).eval()
    with torch.no_grad():
        fresh.body[0].bias.copy_(drawn(3, seed=1))  # type: ignore[operator]
    fresh.body[2].track_running_stats = True  # what has no averages starts from 0 and 1
    fresh.body[2].running_mean, fresh.body[2].running_var = torch.zeros(3), torch.ones(3)
    torch.testing.assert_close(network(given, inputs, statistics=network.statistics), fresh(inputs))


@pytest.mark.usefixtures("own_module")
def test_running_averages_move_by_the_foreign_momenta(new_learner: Any, new_batches: Any, as_episodes: Any) -> None:
    spaces = ExampleSpaces((6,), 3, True, train_ways=3)
    learner = new_learner(Proto, spaces, encoder="encoders_of_mine:Norms", batch_norm="running")
    before = learner.state_dict()["statistics"]
    assert before["encoder.body.0"][0].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    support, query = new_batches()
    seen = learner.meta_gradient((support,), query)[1].statistics
    learner.meta_update(as_episodes(support, query))
    after = learner.state_dict()["statistics"]
    for name, momentum in (("encoder.body.0", 0.4), ("encoder.body.1", 0.2), ("encoder.body.2", 0.05)):
        expected = (1 - momentum) * before[name] + momentum * (seen[name][0] + seen[name][1]) / 2
        torch.testing.assert_close(after[name], expected)


@pytest.mark.usefixtures("own_module")
def test_buffers_and_frozen_weights_are_constants(new_learner: Any, new_batches: Any, as_episodes: Any) -> None:
    """They are no parameters, and a checkpoint holds them: the constructor may draw others."""
    spaces = ExampleSpaces((6,), 3, True, train_ways=3)
    learner, other = (new_learner(Proto, spaces, encoder="encoders_of_mine:Constant", seed=seed) for seed in (0, 1))
    assert list(learner.parameters) == ["encoder.first.weight"]
    support, query = new_batches()
    learner.meta_update(as_episodes(support, query))
    buffers = learner.state_dict()["buffers"]
    names = ["shift", "scale", "frozen.weight", "frozen.bias"]
    assert list(buffers) == [f"encoder.{name}" for name in names]
    assert not torch.equal(other.state_dict()["buffers"]["encoder.shift"], buffers["encoder.shift"])
    other.load_state_dict(learner.state_dict())
    shift, scale, weight, bias = buffers.values()
    hidden = torch.relu(
        ((support.inputs[0] * scale + shift) @ weight.mT + bias) @ learner.parameters["encoder.first.weight"].mT
    )
    expected = hidden @ learner.parameters["encoder.first.weight"].mT  # both places hold the present weight
    for made in (learner, other):
        torch.testing.assert_close(made.encoder(made.parameters, support.inputs[0]), expected)
    with pytest.raises(ValueError, match="buffers do not fit the network"):
        learner.load_state_dict({**learner.state_dict(), "buffers": {}})


@pytest.mark.usefixtures("own_module")
def test_a_foreign_encoder_is_drawn_from_the_generator_and_leaves_torchs_alone() -> None:
    before = torch.get_rng_state()
    weights = [dict(own("Constant", (4,), seed=seed).state_dict()) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not any(torch.equal(weights[0][name], weights[2][name]) for name in weights[0])


@pytest.mark.usefixtures("own_module")
def test_dropout_that_drops_nothing_is_let_through() -> None:
    assert own("no_longer_dropping", (3,))(drawn(2, 3)).shape == (2, 4)


@pytest.mark.parametrize(
    ("settings", "shape", "message"),
    [
        ({"encoder": "conv5"}, (1, 28, 28), r"agent.encoder = 'conv5'.*'?conv4'?"),
        ({"encoder": "conv4"}, (1, 8, 28), r"agent.encoder = 'conv4': must be another for images of \(8, 28\)"),
        ({"encoder": "conv4"}, (5,), r"agent.encoder = 'conv4': must be 'mlp'"),
        ({"encoder": "conv4-strided"}, (5,), r"agent.encoder = 'conv4-strided': must be 'mlp'"),
        ({"num_filters": 0}, (5,), r"agent.num_filters = 0: must be an integer >= 1"),
        ({"hidden_sizes": (4, 0)}, (5,), r"agent.hidden_sizes = \(4, 0\): must be a list of integers >= 1"),
        ({"batch_norm": "eval"}, (5,), r"agent.batch_norm = 'eval': must be one of 'transductive', 'support'"),
        ({"encoder": "no.such.module:Net"}, (5,), r"agent.encoder = 'no.such.module:Net': .*No module named 'no'"),
        ({"encoder": "torch.nn:Nothing"}, (5,), r"agent.encoder = 'torch.nn:Nothing': .*Nothing"),
        ({"encoder": "encoders_of_mine:refuses"}, (5,), r"agent.encoder = .*refuses': .*no weights for"),
        ({"encoder": "encoders_of_mine:number"}, (5,), r"number': must be a torch.nn.Module"),
        ({"encoder": "encoders_of_mine:Dropping"}, (5,), r"must be a module without dropout, .* \(layers\.1\); remove"),
        ({"encoder": "encoders_of_mine:almost_dropping"}, (5,), r"must be a module without dropout"),
        (
            {"encoder": "encoders_of_mine:Undecided"},
            (5,),
            r"must be a module without dropout, other randomness or memory of calls; remove",
        ),
        (
            {"encoder": "encoders_of_mine:Counting"},
            (5,),
            r"must be a module whose calls change no buffer; they change calls; call .eval",
        ),
        ({"encoder": "encoders_of_mine:SumsUp"}, (5,), r"must be a module that maps inputs \[B, \.\.\.\]"),
        ({"encoder": "encoders_of_mine:Misfit"}, (5,), r"agent.encoder = .*: RuntimeError: mat1 and mat2 shapes"),
        ({"encoder": "encoders_of_mine:without_momentum"}, (5,), r"momentum of a batch norm = None: must be a number"),
        (
            {"encoder": "encoders_of_mine:Foreign", "batch_norm": "none"},
            (1, 8, 8),
            r"agent.batch_norm = 'none': must be another mode: encoders_of_mine:Foreign has batch normalisation",
        ),
    ],
)
def test_bad_settings_are_refused_in_one_line(
    settings: dict[str, Any], shape: tuple[int, ...], message: str, own_module: str
) -> None:
    with pytest.raises(InputError, match=message) as raised:
        make_encoder(EncoderConfig(**settings), shape, generator=rng())
    assert "\n" not in str(raised.value)
