"""The optimiser of meta-training: Adam, with a step size that may be halved and a gradient that may be clipped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from metarl.core.learner import loaded
from metarl.core.trees import to_device
from metarl.gradients.adam import Moments, adam_step, no_moments
from metarl.gradients.adaptation import Parameters


class MetaAdam:
    """Adam on the meta-parameters.

    Args:
        parameters: the meta-parameters before the first step.
        lr: first step size.
        halve_every: steps after which the step size is halved, again and again; None = never.
        clip: elements of the gradient are clipped to plus and minus this; None = they are not.
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], *, lr: float, halve_every: int | None, clip: float | None
    ) -> None:
        self._lr, self._halve_every, self._clip = lr, halve_every, clip
        self._moments = no_moments(parameters)
        self._num_updates = 0

    def step(self, parameters: Parameters, gradients: Parameters) -> Parameters:
        """The parameters after one step down `gradients`; parameters without a gradient stay as they are."""
        if self._clip is not None:
            gradients = {name: value.clamp(-self._clip, self._clip) for name, value in gradients.items()}
        lr = self._lr * 0.5 ** (0 if self._halve_every is None else self._num_updates // self._halve_every)
        moving = {name: parameters[name] for name in gradients}
        stepped, self._moments = adam_step(moving, gradients, self._moments, lr)
        self._num_updates += 1
        return {**parameters, **stepped}

    def to(self, device: torch.device | str) -> None:
        self._moments = to_device(self._moments, device)

    def state_dict(self) -> dict[str, Any]:
        return {"adam": self._moments._asdict(), "num_updates": self._num_updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        saved = state["adam"]
        first = loaded(self._moments.first, saved["first"], what="first moments")
        second = loaded(self._moments.second, saved["second"], what="second moments")
        self._moments = Moments(saved["num_steps"].to(self._moments.num_steps.device, copy=True), first, second)
        self._num_updates = int(state["num_updates"])
