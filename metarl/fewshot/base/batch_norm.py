"""Batch normalisation without running averages of its own: statistics come from the batch or from the caller.

Shape legend: B examples, C channels.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from metarl.core.errors import require

Record = Literal["no", "constants", "differentiable"]

EPSILON = 1e-5
MOMENTUM = 0.1  # the share of a new batch in running averages
# Values per channel. Up to this number, torch's sums are faster, and their error is below 2e-4 standard deviations.
LONG_SUM = 4096


class BatchNorm(nn.Module):
    """Batch normalisation of [B, C, ...] by the batch's own statistics, or by given ones.

    Attributes:
        weight: [C], the scale; None = no scale.
        bias: [C], the shift; None = no shift.
        epsilon: added to the variance.
        momentum: share of a new batch in the running averages.
        initial: [2, C], the running averages before any training.
        given: [2, C], mean and variance to normalise by; None = the batch's own.
        elementary: use elementary operations. With torch's own batch norm under `vmap`, a second derivative taken
            outside the `vmap` is wrong (LayerNorm and InstanceNorm have the same fault).
        record: whether `used` keeps the batch's statistics, as constants (free) or differentiably.
        used: [2, C], the statistics of the last batch.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight: nn.Parameter | None = nn.Parameter(torch.ones(size))
        self.bias: nn.Parameter | None = nn.Parameter(torch.zeros(size))
        self.epsilon, self.momentum = EPSILON, MOMENTUM
        self.initial = torch.stack([torch.zeros(size), torch.ones(size)])
        self.given: Tensor | None = None
        self.elementary = False
        self.record: Record = "no"
        self.used: Tensor | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        if self.given is not None:
            shape = (1, -1, *(1,) * (inputs.dim() - 2))
            scale = (self.given[1] + self.epsilon).rsqrt()
            if self.weight is not None:
                scale = self.weight * scale
            shift = -self.given[0] * scale
            if self.bias is not None:
                shift = self.bias + shift
            return inputs * scale.view(shape) + shift.view(shape)
        if self.record != "no":
            with torch.set_grad_enabled(self.record == "differentiable" and torch.is_grad_enabled()):
                self.used = torch.stack(_moments(inputs))
        if self.elementary:
            return self._normalised(inputs)
        if inputs.device.type == "cpu" and inputs.numel() > LONG_SUM * inputs.shape[1]:
            output: Tensor = _BatchNormalised.apply(inputs, self.weight, self.bias, self.epsilon)[0]  # type: ignore[no-untyped-call]
            return output
        return functional.batch_norm(inputs, None, None, self.weight, self.bias, training=True, eps=self.epsilon)

    def _normalised(self, inputs: Tensor) -> Tensor:
        # For speed, no tensor of the inputs' size is negated or divided, neither here nor in the derivatives.
        dims, shape = (0, *range(2, inputs.dim())), (1, -1, *(1,) * (inputs.dim() - 2))
        share = inputs.shape[1] / inputs.numel()
        centred = inputs + inputs.sum(dims, keepdim=True) * -share
        scale = (centred.square().sum(dims, keepdim=True) * share + self.epsilon).rsqrt()
        if self.weight is not None:
            scale = self.weight.view(shape) * scale
        return centred * scale if self.bias is None else centred * scale + self.bias.view(shape)


class _BatchNormalised(torch.autograd.Function):
    """Batch norm by the batch's own statistics, with sums that are more precise than torch's.

    On a CPU, torch sums the statistics of channels-last images one value after another in single precision. For 360
    images of 28 by 28, the gradient of Proto is then 2 % off (`scripts/benchmark_fewshot.py`).
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        inputs: Tensor, weight: Tensor | None, bias: Tensor | None, epsilon: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        shape = (1, -1, *(1,) * (inputs.dim() - 2))
        mean, variance = _moments(inputs)
        inverse_deviation = (variance + epsilon).rsqrt()
        scale = inverse_deviation if weight is None else weight * inverse_deviation
        shift = -mean * scale if bias is None else bias - mean * scale
        return torch.addcmul(shift.view(shape), inputs, scale.view(shape)), mean, inverse_deviation

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Tensor, Tensor | None, Tensor | None, float], output: tuple[Tensor, Tensor, Tensor]
    ) -> None:
        values, weight, bias, ctx.epsilon = inputs
        ctx.has_bias = bias is not None
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(values, weight, *output[1:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        inputs, weight, mean, inverse_deviation = ctx.saved_tensors
        wanted = (True, weight is not None, ctx.has_bias)
        statistics = (None, None, mean, inverse_deviation, True, ctx.epsilon)
        of_inputs, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, inputs, weight, *statistics, wanted
        )
        return of_inputs, of_weight if wanted[1] else None, of_bias if wanted[2] else None, None


def _moments(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance [C] of [B, C, ...]."""
    dims = (0, *range(2, inputs.dim()))
    mean = inputs.mean(dims, keepdim=True)
    return mean.flatten(), (inputs - mean).square().mean(dims)


def with_own_batch_norm(module: nn.Module) -> nn.Module:
    """Replaces every torch batch norm in `module` by `BatchNorm`.

    Weights, biases, epsilon, momentum and running averages are kept. A layer without weights stays without.

    Raises:
        InputError: a batch norm has no momentum.
    """
    for name, child in module.named_children():
        # A subclass with its own forward is kept, such as one that synchronises processes.
        if isinstance(child, _BatchNorm) and type(child).forward is _BatchNorm.forward:
            setattr(module, name, _exchanged(child))
        else:
            with_own_batch_norm(child)
    return module


def _exchanged(layer: _BatchNorm) -> BatchNorm:
    require(
        layer.momentum is not None,
        "momentum of a batch norm",
        None,
        "a number: the share of a new batch in running averages",
    )
    own = BatchNorm(layer.num_features)
    own.weight, own.bias = layer.weight, layer.bias
    own.epsilon, own.momentum = layer.eps, float(layer.momentum or 0.0)
    if layer.running_mean is not None and layer.running_var is not None:
        own.initial = torch.stack([layer.running_mean, layer.running_var]).detach().clone()
    return own
