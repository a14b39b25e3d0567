"""Checks an encoder of the user's own before training, and adds its name to the errors that it raises."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.lazy import LazyModuleMixin

from metarl.core.errors import InputError, RunError, raised
from metarl.core.imports import search_working_directory
from metarl.fewshot.base.batch_norm import with_own_batch_norm
from metarl.gradients.adaptation import Parameters
from metarl.gradients.lifting import lifted

NUM_TASKS, NUM_EXAMPLES = 2, 4


def is_foreign(encoder: str) -> bool:
    """Whether this is the name of the user's own class."""
    return ":" in encoder


@contextlib.contextmanager
def calling(encoder: str, *, plain: bool) -> Iterator[None]:
    """A context in which an encoder runs. Threads that run the encoder must finish before the context ends.

    Args:
        encoder: its name. An error in a user's encoder becomes a `RunError` with this name.
        plain: compute attention by matrix products, since torch's fused kernels have no second derivative and no rule
            for batches of tasks. The switch holds for the whole process.
    """
    try:
        with plain_attention() if plain else contextlib.nullcontext():
            yield
    except (InputError, RunError, MemoryError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a user's code may raise anything, SystemExit too
        if not is_foreign(encoder):
            raise
        raise RunError(f"agent.encoder = {encoder!r}: {raised(error)}") from error


@contextlib.contextmanager
def plain_attention() -> Iterator[None]:
    """Attention by matrix products, in all layers of torch."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


def made_by(name: str, input_shape: Sequence[int], *, generator: torch.Generator) -> nn.Module:
    """Makes the module of the class `name` (module:Class), and replaces its batch norms.

    The class can draw only from torch's global generator. That generator gets a seed from `generator` and is restored
    afterwards.

    Raises:
        InputError: the module cannot be made or called, or is not a function of parameters and inputs.
    """
    seed = int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        try:
            made = _make(name, tuple(input_shape))
            _require_function(made, torch.rand(NUM_EXAMPLES, *input_shape))
        except InputError as error:
            raise InputError(f"agent.encoder = {name!r}: {error}") from error
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a user's code may raise anything, SystemExit too
            raise InputError(f"agent.encoder = {name!r}: {raised(error)}") from error
    return made


def _make(name: str, input_shape: tuple[int, ...]) -> nn.Module:
    module_name, _, attribute = name.partition(":")
    search_working_directory(module_name)
    kind = getattr(importlib.import_module(module_name), attribute)
    _refuse(isinstance(kind, nn.Module), "a class or a function that makes a module, not a module")
    made = kind(input_shape)
    _refuse(not isinstance(made, nn.Module), "a torch.nn.Module when called with the input's shape")
    lazy = [part for part in made.modules() if isinstance(part, LazyModuleMixin)]
    if lazy:
        with torch.no_grad():
            made(torch.rand(NUM_EXAMPLES, *input_shape))
        for part in lazy:
            if isinstance(part, _BatchNorm):
                part.reset_running_stats()
    return with_own_batch_norm(made)


def _require_function(module: nn.Module, inputs: Tensor) -> None:
    """Calls a module a few times, and refuses it if it is not a function of parameters and inputs.

    Random numbers in it would depend on the number of threads. Values that it stores would be in no checkpoint.
    """
    given, buffers = inputs.clone(), {place: value.clone() for place, value in module.named_buffers()}
    with torch.no_grad():
        first, second, fewer = module(inputs), module(inputs), module(inputs[:2])
    _refuse(not torch.equal(inputs, given), "a module that does not change its inputs")
    came = f"{first.dtype} {list(first.shape)}" if isinstance(first, Tensor) else type(first).__name__
    features = isinstance(first, Tensor) and first.is_floating_point() and first.dim() > 1 and len(first) == len(inputs)
    _refuse(
        not features, f"a module that maps inputs [B, ...] to float features [B, ...]; {len(inputs)} inputs gave {came}"
    )
    _refuse(not bool(first.isfinite().all()), "a module that gives finite features for inputs from 0 to 1")
    alike = fewer.shape[1:] == first.shape[1:] and first.numel() > 0
    _refuse(not alike, f"a module with one number of features, at least 1, for 2 inputs and for {len(inputs)}")
    moved = [place for place, value in module.named_buffers() if not torch.equal(value, buffers[place])]
    advice = "; call .eval() on such a part in the constructor"
    _refuse(bool(moved), f"a module whose calls change no buffer; they change {', '.join(moved)}{advice}")
    # All registered parameters are constants here, so a gradient comes from a parameter that is not registered.
    constants = {place: value.detach() for place, value in module.named_parameters()}
    with torch.enable_grad():
        unknown = torch.func.functional_call(module, constants, inputs).requires_grad
    advice = "; it uses others: keep layers as attributes or in an nn.ModuleList, tensors as nn.Parameter"
    _refuse(unknown, f"a module that registers all its parameters{advice}")
    random = [p for p, part in module.named_modules() if isinstance(part, _DropoutNd) and part.p > 0 and part.training]
    where = f" ({random[0]})" if random else ""
    differs = bool(random) or not torch.allclose(first, second, equal_nan=True)
    _refuse(differs, f"a module without dropout, other randomness or memory of calls{where}; remove it or set p = 0")


def _refuse(condition: bool, allowed: str) -> None:
    if condition:
        raise InputError(f"must be {allowed}")


class Trial:
    """Tries out the derivatives that training needs of an encoder, on a few random inputs.

    Args:
        encoder: a function of ONE task's parameters and inputs; differentiable in the parameters.
        parameters: the encoder's.
        input_shape: of one input.
        twice: take the second derivative, else the first.
    """

    def __init__(
        self,
        encoder: Callable[[Parameters, Tensor], Tensor],
        parameters: Parameters,
        input_shape: tuple[int, ...],
        *,
        twice: bool,
    ) -> None:
        device = next(iter(parameters.values())).device
        inputs = torch.rand(NUM_TASKS, NUM_EXAMPLES, *input_shape, generator=torch.Generator().manual_seed(0))
        self._inputs = inputs.to(device)
        self._parameters = {name: value.expand(NUM_TASKS, *value.shape) for name, value in parameters.items()}

        def loss(parameters: Parameters, inputs: Tensor) -> Tensor:
            return encoder(parameters, inputs).sin().sum()  # has a slope even if features are zero, or sum to zero

        def slope(parameters: Parameters, inputs: Tensor) -> Tensor:
            gradients = torch.func.grad(loss)(parameters, inputs)
            return torch.stack([gradient.square().sum() for gradient in gradients.values()]).sum()

        self._encoder, self._twice = encoder, twice
        self._derivative = torch.func.grad(slope if twice else loss)

    def fault(self, *, batched: bool = False, traced: bool = False) -> str:
        """The reason why these derivatives cannot be taken, in one line; empty if they can.

        Args:
            batched: take them for several tasks in batched operations, else for one task.
            traced: take them in a graph of tensor operations.
        """
        number = NUM_TASKS if batched else 1
        arguments = ({name: v[:number] for name, v in self._parameters.items()}, self._inputs[:number])
        derivative = lifted(self._derivative)
        function: Callable[..., Any] = make_fx(derivative) if traced else derivative
        try:
            with plain_attention() if self._twice or batched else contextlib.nullcontext(), torch.no_grad():
                lifted(self._encoder)(*arguments)  # some layers run different code when no derivatives are taken
                derivatives = function(*arguments)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a user's code may raise anything
            return raised(error)
        known = not traced and self._inputs.device.type != "meta"
        flat = known and not any(bool((value != 0).any()) for value in derivatives.values())
        return "it is zero for every parameter" if flat else ""
