"""A learner's networks: functions of parameters and batch statistics."""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from metarl.core.learner import loaded
from metarl.core.trees import to_device
from metarl.fewshot.base.batch_norm import BatchNorm, Record
from metarl.fewshot.base.encoders import SHAREABLE, Convolution
from metarl.gradients.adaptation import Parameters

Statistics = dict[str, Tensor]


class _Copy(threading.local):
    """A copy of a module for each thread: Python calls the constructor again in every thread that reads it."""

    def __init__(self, module: nn.Module) -> None:
        self.module = copy.deepcopy(module)


class Network:
    """A module as a function of parameters and batch statistics, for ONE task.

    A call puts the parameters into the module, so each thread has its own copy of the module.

    Args:
        module: the network.
        name: prefix of the names of its parameters and batch norms: "encoder.blocks.0.norm".

    Attributes:
        parameters: the module's initial parameters by name. A parameter that is used twice has one name.
        buffers: constants by name: the module's buffers, and parameters that require no gradient.
        statistics: [2, C] for every batch norm by name: mean and variance before any training.
        momenta: share of a new batch in the running average of each batch norm, by name.
        can_share: all layers have a correct second derivative when several tasks share their weights under `vmap`.
        shares: several tasks share the weights under `vmap`.
        multiplies: MetaRL's own convolutions are computed as matrix products.
    """

    def __init__(self, module: nn.Module, *, name: str) -> None:
        self._copy = _Copy(module)
        self._norms: dict[str, str] = {}
        self._names: dict[str, str] = {}
        self.parameters: Parameters = {}
        self.buffers: Parameters = {}
        self.statistics: Statistics = {}
        self.momenta: dict[str, float] = {}
        self.can_share = all(type(part) in SHAREABLE for part in module.modules())
        self.shares = self.multiplies = False
        known: dict[int, str] = {}
        for place, part in module.named_modules():
            here = f"{place}." if place else ""
            for own, value in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)):
                self._names[here + own] = known.setdefault(id(value), f"{name}.{here}{own}")
                kept = self.parameters if value.requires_grad else self.buffers
                kept[self._names[here + own]] = value.detach().clone()
            if isinstance(part, BatchNorm):
                self._norms[f"{name}.{place}"] = place
                self.statistics[f"{name}.{place}"] = part.initial.clone()
                self.momenta[f"{name}.{place}"] = part.momentum

    def __call__(
        self, parameters: Mapping[str, Tensor], *inputs: Tensor, statistics: Statistics | None = None
    ) -> Tensor:
        """The module's output.

        Args:
            parameters: by name; those of other networks are ignored.
            *inputs: of the module.
            statistics: [2, C] for every batch norm; None = the batch's own.
        """
        return self._run(parameters, inputs, statistics, record="no")[0]

    def recorded(
        self, parameters: Mapping[str, Tensor], *inputs: Tensor, differentiable: bool = False
    ) -> tuple[Tensor, Statistics]:
        """The module's output, normalised by the batch's own statistics, and these statistics.

        The statistics are constants unless `differentiable`.
        """
        return self._run(parameters, inputs, None, record="differentiable" if differentiable else "constants")

    def _run(
        self, parameters: Mapping[str, Tensor], inputs: tuple[Tensor, ...], given: Statistics | None, *, record: Record
    ) -> tuple[Tensor, Statistics]:
        module = self._copy.module
        norms = {
            name: norm
            for name, place in self._norms.items()
            if isinstance(norm := module.get_submodule(place), BatchNorm)
        }
        for name, norm in norms.items():
            norm.given, norm.record = None if given is None else given[name], record
            norm.elementary = self.shares
        for part in module.modules():
            if isinstance(part, Convolution):
                part.as_product = self.multiplies
        values = {**parameters, **self.buffers}
        own = {place: values[name] for place, name in self._names.items()}
        output: Tensor = torch.func.functional_call(module, own, inputs, tie_weights=False)
        output = output.to(inputs[0].dtype)  # a user's module may compute in another precision
        used = {name: norm.used for name, norm in norms.items() if norm.used is not None}
        for norm in norms.values():
            norm.given = norm.used = None
        return output, used


class Networks:
    """All networks of a learner, with their parameters and statistics.

    Attributes:
        members: the networks, in the order in which they were added.
        parameters: everything that is meta-learned, by name. A learner may add parameters that belong to no network.
        statistics: [2, C] for every batch norm by name: running averages of mean and variance.
    """

    def __init__(self) -> None:
        self.members: list[Network] = []
        self.parameters: Parameters = {}
        self.statistics: Statistics = {}

    def add(self, network: Network) -> Network:
        """Adds the network, its parameters and its statistics; returns it."""
        self.members.append(network)
        self.parameters |= network.parameters
        self.statistics |= network.statistics
        return network

    @property
    def buffers(self) -> Parameters:
        """Constant tensors of all networks, by name."""
        return {name: value for network in self.members for name, value in network.buffers.items()}

    @property
    def device(self) -> torch.device:
        return next(iter(self.parameters.values())).device

    def move_averages(self, statistics: Statistics) -> None:
        """Moves the running averages towards `statistics` of some tasks, task axis leading.

        Both variances are biased (divided by the number of values). torch's own layers keep the unbiased one.
        """
        momenta = {name: momentum for network in self.members for name, momentum in network.momenta.items()}
        for name, value in statistics.items():
            share = momenta[name]
            self.statistics[name] = (1.0 - share) * self.statistics[name] + share * value.mean(0)

    def to(self, device: torch.device | str) -> None:
        self.parameters, self.statistics = to_device((self.parameters, self.statistics), device)
        for network in self.members:
            network.buffers = to_device(network.buffers, device)

    def state_dict(self) -> dict[str, Any]:
        return {"parameters": dict(self.parameters), "statistics": dict(self.statistics), "buffers": self.buffers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        buffers = loaded(self.buffers, state.get("buffers", {}), what="buffers")  # earlier versions saved none
        parameters = loaded(self.parameters, state["parameters"], what="parameters")
        self.statistics = loaded(self.statistics, state["statistics"], what="statistics")
        self.parameters = parameters
        for network in self.members:
            network.buffers = {name: buffers[name] for name in network.buffers}


def expanded(values: Mapping[str, Tensor], num_tasks: int) -> dict[str, Tensor]:
    """The same values for each of `num_tasks` tasks, task axis leading, without a copy."""
    return {name: value.expand(num_tasks, *value.shape) for name, value in values.items()}
