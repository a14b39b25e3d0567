"""How the tasks of a meta-batch are computed: one by one or in batched operations, compiled or not.

Learners write their functions for ONE task. `Execution` computes them for many. All choices give the same numbers up to
rounding. Results are bit-identical for any number of CPU cores.
"""

from __future__ import annotations

import contextlib
import logging
import operator
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor

from metarl.core.errors import InputError, require
from metarl.core.trees import tree_map, tree_zip
from metarl.fewshot.base.compiled import Compiled
from metarl.fewshot.base.foreign import Trial, calling, is_foreign
from metarl.fewshot.base.networks import Network, Networks
from metarl.gradients.adaptation import Parameters
from metarl.gradients.lifting import chunk_length, chunkwise, lifted, num_tasks_of, rejoined, take

_logger = logging.getLogger(__name__)

ExecutionMode = Literal["auto", "loop", "vmap", "compiled"]
# Number of image tasks in one batch on a CPU. Smaller batches need more operations; larger ones exceed the CPU's cache.
TASKS_AT_ONCE = 16
Result = TypeVar("Result")


class Execution:
    """Computes functions of tasks for all tasks of a meta-batch.

    Args:
        mode: the setting `agent.execution`.
        encoder: the setting `agent.encoder`. The user's own class (module:Class) is tried before training.
        networks: of the learner; the first one is the encoder.
        input_shape: of one input.
        second_order: training takes second derivatives of the encoder.

    Attributes:
        compiles: meta-gradients are compiled.
        batched: several tasks are computed in batched operations.
        shares_weights: batched tasks read the same weights in training. Otherwise each task has a copy.
    """

    def __init__(
        self,
        mode: ExecutionMode,
        encoder: str,
        networks: Networks,
        input_shape: Sequence[int],
        *,
        second_order: bool,
    ) -> None:
        self._mode, self._encoder, self._networks = mode, encoder, networks
        self._input_shape, self._second_order = tuple(input_shape), second_order
        self.compiles = mode == "compiled"
        self.choose()

    def choose(self) -> None:
        """Chooses for the device where the parameters are.

        Raises:
            InputError: the user's own encoder lacks the derivatives that training needs.
        """
        images = len(self._input_shape) > 1
        slow = self._networks.device.type == "cpu" and images and self._encoder != "conv4-strided"
        self.batched = self._mode == "vmap" or (self._mode != "loop" and not slow)
        encoder = self._networks.members[0]
        if is_foreign(self._encoder) and encoder.parameters:
            self._try(encoder)
        self.shares_weights = self.batched and all(network.can_share for network in self._networks.members)
        for network in self._networks.members:
            network.shares = self.shares_weights

    def require_device(self, device: torch.device | str) -> None:
        """Refuses a device that "compiled" does not support."""
        fits = not self.compiles or torch.device(device).type in ("cpu", "cuda")
        require(fits, "agent.execution", self._mode, f"'auto', 'loop' or 'vmap' on {device}")

    def over_tasks(self, function: Callable[..., Result], *arguments: object) -> Result:
        """Applies `function`, written for one task, to all tasks.

        Args:
            function: of trees of tensors.
            *arguments: the same trees, task axis leading.
        """
        result: Result = rejoined(self.by_chunks(lifted(function), *arguments))
        return result

    def by_chunks(self, function: Callable[..., Result], *arguments: object) -> list[Result]:
        """Applies `function`, written for several tasks, to each chunk of tasks."""
        num_tasks = num_tasks_of(arguments)
        with self._foreign_code():
            if self.batched or self._networks.device.type == "cpu":
                return chunkwise(function, *arguments, chunk_size=self._tasks_at_once(num_tasks))
            return [function(*take(arguments, slice(i, i + 1))) for i in range(num_tasks)]

    def compile(self, function: Compiled[Result], parameters: Parameters, *data: object) -> None:
        """Compiles `function` for `parameters` and for as many tasks of `data` as will be computed at once."""
        num_tasks = num_tasks_of(data)
        at_once = slice(chunk_length(num_tasks, self._tasks_at_once(num_tasks)))
        # Batched on a GPU, matrix products are faster than grouped convolutions, but only in a compiled graph.
        for network in self._networks.members:
            network.multiplies = self.batched and self._networks.device.type != "cpu"
        with self._foreign_code():
            function.prepare(parameters, *take(data, at_once))
        for network in self._networks.members:
            network.multiplies = False

    def _foreign_code(self) -> contextlib.AbstractContextManager[None]:
        """The context for calls of the encoder, which may be the user's own."""
        return calling(self._encoder, plain=self._second_order or self.batched)

    def _tasks_at_once(self, num_tasks: int) -> int | None:
        """The largest number of tasks that are computed at once; None = all of `num_tasks`.

        It must not depend on the number of cores, since the size of a batch changes the last bits of its results.
        """
        if not self.batched:
            return 1
        if self._networks.device.type != "cpu" or len(self._input_shape) == 1:
            return None
        return min(TASKS_AT_ONCE, num_tasks if num_tasks % 2 else num_tasks // 2)  # two equal parts, for two cores

    def _try(self, encoder: Network) -> None:
        """Refuses an encoder whose derivatives do not work with the mode; "auto" runs tasks one by one instead."""
        name, mode = self._encoder, self._mode
        own = {key: self._networks.parameters[key] for key in encoder.parameters}
        trial = Trial(encoder, own, self._input_shape, twice=self._second_order)
        fault = trial.fault()
        order = "second derivative" if self._second_order else "derivative"
        if fault:
            raise InputError(f"agent.encoder = {name!r}: must be a module that has a {order}: {fault}")
        if self.batched and (fault := trial.fault(batched=True)):
            if mode == "vmap":
                raise InputError(f"agent.execution = 'vmap': must be 'loop' or 'auto' for {name}: {fault}")
            _logger.warning("agent.execution = %r: tasks run one by one, %s cannot be batched: %s", mode, name, fault)
            self.batched = False
        if self.compiles and (fault := trial.fault(batched=self.batched, traced=True)):
            raise InputError(f"agent.execution = 'compiled': must be 'auto', 'loop' or 'vmap' for {name}: {fault}")


class MetaGradient(Generic[Result]):
    """The gradient of a loss, averaged over a meta-batch.

    Args:
        function: of parameters and the data of some tasks, task axis leading in the data. It returns the gradient,
            summed over these tasks, and a tree with other results for each of them. Besides its arguments, it may read
            only what does not change.
        execution: how tasks are computed.
    """

    def __init__(self, function: Callable[..., tuple[Parameters, Result]], execution: Execution) -> None:
        self._function, self._execution = function, execution
        self._compiled = Compiled(function)

    def __call__(self, parameters: Parameters, *data: object) -> tuple[Parameters, Result]:
        """The mean gradient, and the other results, task axis leading."""
        if self._execution.compiles:
            self._execution.compile(self._compiled, parameters, *data)
        function = self._compiled if self._execution.compiles else self._function
        parts = self._execution.by_chunks(partial(function, parameters), *data)
        total = tree_zip(partial(reduce, operator.add), [part for part, _ in parts])
        rest: Result = rejoined([rest for _, rest in parts])
        num_tasks = num_tasks_of(data)
        return {name: value / num_tasks for name, value in total.items()}, tree_map(Tensor.detach, rest)

    def forget_graphs(self) -> None:
        """Drops compiled graphs, which hold the networks' buffers as constants. Call it after buffers have changed."""
        self._compiled = Compiled(self._function)
