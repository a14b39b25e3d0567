"""Encoders: networks that turn an input into features.

Shape legend: B examples, C channels, H height, X width, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from metarl.core.bounds import AtLeast
from metarl.core.config import LearnerConfig
from metarl.core.errors import InputError, require, unknown_name
from metarl.fewshot.base.batch_norm import BatchNorm
from metarl.fewshot.base.foreign import made_by
from metarl.networks.policies import MLP

BatchNormMode = Literal["transductive", "support", "running", "none"]


@dataclass(frozen=True)
class EncoderConfig(LearnerConfig):
    """Settings of the network that turns an input into features."""

    encoder: str = "auto"
    """conv4: four blocks of convolution, batch norm, max-pooling and ReLU (Vinyals et al. 2016). conv4-strided: with
    stride 2 instead of pooling, and a mean over space (MAML's for Omniglot). mlp: a multilayer perceptron.
    module:Class: your own, called with the input's shape; it returns a module without dropout. auto: conv4 for images,
    else mlp."""
    num_filters: Annotated[int, AtLeast(1)] = 64
    """Channels of a convolutional encoder."""
    hidden_sizes: Annotated[tuple[int, ...], AtLeast(1)] = (40, 40)
    """Widths of the mlp encoder's layers, ReLU after each."""
    batch_norm: BatchNormMode = "transductive"
    """Statistics that normalise the query. transductive: the query's own, which raises accuracy. support: the
    support's. running: averages over meta-training (training itself uses the batch's). none: layer normalisation of
    each example instead."""

    def __post_init__(self) -> None:
        super().__post_init__()
        known = ("auto", *ENCODERS)
        if ":" not in self.encoder and self.encoder not in known:
            raise InputError(f"{unknown_name('agent.encoder', self.encoder, known)}; module:Class for one of your own")


class Convolution(nn.Conv2d):
    """A convolution with square filters.

    Args:
        channels: of the inputs.
        filters: channels of the outputs.
        size: height and width of a filter.
        stride: in both directions.
        padding: zeros on every side.
        bias: add a learned number to each output channel.

    Attributes:
        as_product: compute it as one matrix product of the weights and all patches of the inputs. Under `vmap`, tasks
            with different weights then take one batched product instead of a grouped convolution.
    """

    as_product = False

    def __init__(
        self, channels: int, filters: int, size: int, *, stride: int = 1, padding: int = 0, bias: bool = True
    ) -> None:
        super().__init__(channels, filters, size, stride=stride, padding=padding, bias=bias)

    def forward(self, inputs: Tensor) -> Tensor:
        if not self.as_product:
            return super().forward(inputs)
        assert not isinstance(self.padding, str)
        settings = zip(inputs.shape[2:], self.kernel_size, self.stride, self.padding, strict=True)
        height, width = ((size + 2 * pad - kernel) // stride + 1 for size, kernel, stride, pad in settings)
        patches = functional.unfold(inputs, self.kernel_size, padding=self.padding, stride=self.stride)
        columns = patches.transpose(0, 1).flatten(1)
        outputs = self.weight.flatten(1) @ columns
        if self.bias is not None:
            outputs = outputs + self.bias.unsqueeze(1)
        return outputs.view(-1, len(inputs), height, width).transpose(0, 1)


class ConvBlock(nn.Module):
    """A 3 by 3 convolution, normalisation and ReLU, with 2 by 2 max-pooling, stride 2 or neither.

    Pooling comes before the ReLU. The order does not change the result, and the ReLU then has a quarter of the work.
    """

    def __init__(
        self, channels: int, filters: int, *, shrink: Literal["pool", "stride", "none"], norm: bool, padding: int = 1
    ) -> None:
        super().__init__()
        self.convolution = Convolution(channels, filters, 3, stride=2 if shrink == "stride" else 1, padding=padding)
        self.norm: nn.Module = BatchNorm(filters) if norm else nn.GroupNorm(1, filters)
        self.pool = shrink == "pool"

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.norm(self.convolution(inputs))
        return torch.relu(functional.max_pool2d(hidden, 2) if self.pool else hidden)


class Conv4(nn.Module):
    """Convolutional blocks. The papers have four blocks of 64 filters.

    Sources: Vinyals et al. 2016, arXiv:1606.04080; Finn et al. 2017, arXiv:1703.03400.

    Args:
        input_shape: (C, H, X).
        filters: of every block.
        batch_norm: use batch normalisation, else layer normalisation.
        shrink: how each block halves height and width, if it does.
        spatial_mean: average the features over space.
        flat: return features as a vector, else as maps.
        generator: draws the Xavier-uniform weights; biases are zero.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        filters: int,
        *,
        batch_norm: bool,
        shrink: Sequence[Literal["pool", "stride", "none"]] = ("pool",) * 4,
        spatial_mean: bool = False,
        flat: bool = True,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        sizes = [input_shape[0], *[filters] * len(shrink)]
        self.blocks = nn.ModuleList(
            ConvBlock(channels, filters, shrink=by, norm=batch_norm)
            for channels, by in zip(sizes, shrink, strict=False)
        )
        self.spatial_mean, self.flat = spatial_mean, flat
        # On a CPU, convolutions and pooling of large images are faster with channels last.
        self.channels_last = "pool" in shrink
        for block in self.blocks:
            assert isinstance(block, ConvBlock)
            nn.init.xavier_uniform_(block.convolution.weight, generator=generator)
            bias = block.convolution.bias
            assert bias is not None
            nn.init.zeros_(bias)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = inputs
        if self.channels_last:
            # A copy: an image of one channel has both layouts at once, and torch would treat it as channels first.
            hidden = inputs.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format).permute(0, 3, 1, 2)
        for block in self.blocks:
            hidden = block(hidden)
        if self.spatial_mean:
            return hidden.mean((2, 3))
        return hidden.flatten(1) if self.flat else hidden


# Layers whose second derivative is tested to be correct when several tasks share their weights under `vmap`.
SHAREABLE = (Conv4, ConvBlock, Convolution, BatchNorm, nn.Conv2d, nn.GroupNorm, nn.Linear, nn.ModuleList)


class FeatureMLP(nn.Module):
    """A multilayer perceptron with a ReLU after every layer, the last one too."""

    def __init__(self, input_shape: Sequence[int], widths: Sequence[int], *, generator: torch.Generator) -> None:
        super().__init__()
        sizes = [int(torch.Size(input_shape).numel()), *widths]
        self.layers = MLP(sizes, activation="relu", generator=generator)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.relu(self.layers(inputs.flatten(1)))


def _conv4(shape: Sequence[int], config: EncoderConfig, generator: torch.Generator) -> nn.Module:
    return Conv4(shape, config.num_filters, batch_norm=config.batch_norm != "none", generator=generator)


def _conv4_strided(shape: Sequence[int], config: EncoderConfig, generator: torch.Generator) -> nn.Module:
    norm = config.batch_norm != "none"
    shrink: tuple[Literal["stride"], ...] = ("stride",) * 4
    return Conv4(shape, config.num_filters, batch_norm=norm, shrink=shrink, spatial_mean=True, generator=generator)


def _mlp(shape: Sequence[int], config: EncoderConfig, generator: torch.Generator) -> nn.Module:
    return FeatureMLP(shape, config.hidden_sizes, generator=generator)


ENCODERS: dict[str, Callable[[Sequence[int], EncoderConfig, torch.Generator], nn.Module]] = {
    "conv4": _conv4,
    "conv4-strided": _conv4_strided,
    "mlp": _mlp,
}


def make_encoder(config: EncoderConfig, input_shape: Sequence[int], *, generator: torch.Generator) -> nn.Module:
    """The encoder that `config` names: [B, *input_shape] -> [B, D]. A user's own encoder may return maps.

    Raises:
        InputError: the input's shape does not fit; a user's own class cannot be imported or called, or has batch norms
            although `batch_norm` is none.
    """
    name = config.encoder
    if name == "auto":
        name = "conv4" if len(input_shape) == 3 else "mlp"
    if ":" in name:
        own = made_by(name, input_shape, generator=generator)
        fits = config.batch_norm != "none" or not any(isinstance(part, BatchNorm) for part in own.modules())
        require(fits, "agent.batch_norm", "none", f"another mode: {name} has batch normalisation")
        return own
    require(name == "mlp" or len(input_shape) == 3, "agent.encoder", name, f"'mlp' for inputs of shape {input_shape}")
    if name == "conv4":
        fits = min(input_shape[1:]) >= 16
        require(
            fits, "agent.encoder", name, f"another for images of {tuple(input_shape[1:])}: conv4 halves them four times"
        )
    return ENCODERS[name](input_shape, config, generator)
