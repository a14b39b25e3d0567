"""Gradient adaptation of named parameters, and the derivatives through it.

Losses are written for ONE task, `loss(parameters, batch) -> scalar`, and lifted over the meta-batch here. Nothing in
this module knows about reinforcement learning. A task's parameters are a dict of tensors; of the meta-batch, the same
dict with the task axis leading. Beside the parameters may stand learned step sizes, one for every element: those of
"w" are called "step_size.w". They are part of what is meta-learned, and no adaptation changes them.

On a CPU, whatever walks the data does so a few tasks at a time, so that activations stay in the cache, and the chunks
run side by side on threads. A chunk of one task needs no lifting: the derivatives of plain matrix products take a third
less time than those of batched ones. All chunks have one size, so that a task's numbers do not depend on its place in
the meta-batch.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from metarl.episodes import tree_map, tree_zip
from metarl.threads import Threads

Parameters = dict[str, Tensor]
TaskLoss = Callable[[Parameters, Any], Tensor]
StepSize = float | Mapping[str, float]
Result = TypeVar("Result")
Tree = TypeVar("Tree")

LEARNED_STEP_SIZE = "step_size."


def gradient_step(
    loss: TaskLoss, parameters: Parameters, batch: Any, step_size: StepSize, *, first_order: bool = False
) -> Parameters:
    """theta' = theta - step_size * grad loss(theta), for ONE task; differentiable in `parameters`.

    Args:
        loss: scalar loss of one task.
        parameters: that task's parameters, and learned step sizes, which multiply `step_size`.
        batch: that task's data.
        step_size: one number for all parameters; or one per name, and parameters that are not named stay as they are.
        first_order: treat the gradient as a constant. Only the gradient is detached: d theta'/d theta is the identity.

    Reference: Finn et al. 2017, arXiv:1703.03400, equation 1; Li et al. 2017, arXiv:1707.09835 for learned step sizes.
    """
    scales = _scales(parameters, step_size)

    def of_adapted(adapted: Parameters) -> Tensor:
        return loss({**parameters, **adapted}, batch)

    gradients = torch.func.grad(of_adapted)({name: parameters[name] for name in scales})
    if first_order:
        gradients = {name: gradient.detach() for name, gradient in gradients.items()}
    steps = {name: _scaled(gradients[name], scale, parameters, name) for name, scale in scales.items()}
    return {**parameters, **{name: parameters[name] - step for name, step in steps.items()}}


def adapt(
    loss: TaskLoss,
    parameters: Parameters,
    batch: Any,
    step_size: StepSize,
    *,
    first_order: bool = False,
    chunk_size: int | None = None,
) -> Parameters:
    """`gradient_step` for every task of a meta-batch.

    Args:
        loss: scalar loss of one task.
        parameters: task axis leading.
        batch: a tree of tensors, task axis leading.
        step_size: as in `gradient_step`, shared by the tasks.
        first_order: as in `gradient_step`.
        chunk_size: tasks per pass at most; None for all at once.

    Returns:
        The adapted parameters, task axis leading.
    """

    def one_task(task_parameters: Parameters, task_batch: Any) -> Parameters:
        return gradient_step(loss, task_parameters, task_batch, step_size, first_order=first_order)

    return over_tasks(one_task, parameters, batch, chunk_size=chunk_size)  # type: ignore[no-any-return]


def over_tasks(function: Callable[..., Any], *arguments: Any, chunk_size: int | None = None) -> Any:
    """Lifts `function`, written for one task, over the leading axis of every tensor in `arguments`.

    Differentiable; not to be called inside another `torch.func` transform, since chunks may run on other threads.

    Args:
        function: of one task's trees of tensors.
        *arguments: trees of tensors, task axis leading.
        chunk_size: tasks per pass at most; None for all at once.

    Returns:
        What `function` returns, task axis leading.
    """
    return over_chunks(lifted(function), *arguments, chunk_size=chunk_size)


def over_chunks(function: Callable[..., Any], *arguments: Any, chunk_size: int | None = None) -> Any:
    """As `over_tasks`, for a `function` that is written for several tasks itself."""
    return rejoined(chunkwise(function, *arguments, chunk_size=chunk_size))


def chunkwise(function: Callable[..., Any], *arguments: Any, chunk_size: int | None = None) -> list[Any]:
    """As `over_chunks`; returns what `function` returns for each chunk of tasks, in their order."""
    return _run([partial(function, *_part(arguments, chunk)) for chunk in _chunks(arguments[0], chunk_size)])


def rejoined(parts: list[Any]) -> Any:
    """Trees of tensors of some tasks each as one of all of them, task axis leading."""
    return parts[0] if len(parts) == 1 else tree_zip(torch.cat, parts)


def lifted(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, which is written for one task, of several tasks: the task axis leads in what it takes and returns."""
    batched = torch.func.vmap(function)

    def of_chunk(*arguments: Any) -> Any:
        if num_tasks_of(arguments) > 1:
            return batched(*arguments)
        return tree_map(lambda tensor: tensor.unsqueeze(0), function(*tree_map(operator.itemgetter(0), arguments)))

    return of_chunk


def num_tasks_of(tree: Any) -> int:
    """The length of the task axis, which leads in every tensor of `tree`."""
    return _first_tensor(tree).shape[0]


def chunk_length(num_tasks: int, limit: int | None) -> int:
    """The largest divisor of `num_tasks` that is not above `limit`."""
    if limit is None or limit >= num_tasks:
        return num_tasks
    return max(size for size in range(1, limit + 1) if num_tasks % size == 0)


class TaskHessians:
    """v -> H_i v for every task i, H_i the Hessian of task i's loss, from gradient graphs that are built once.

    Attributes:
        losses: [num_tasks].
        gradients: of each task's loss, task axis leading.
        parameters: where the Hessian was taken.
    """

    def __init__(self, loss: TaskLoss, parameters: Parameters, batch: Any, *, chunk_size: int | None = None) -> None:
        """Builds the graphs.

        Args:
            loss: scalar loss of one task.
            parameters: where the Hessian is taken, task axis leading; learned step sizes are passed over.
            batch: data, task axis leading.
            chunk_size: tasks per graph at most.
        """
        self.parameters = parameters
        self._loss = lifted(loss)
        self._names = _adaptable(parameters)
        chunks = list(_chunks(parameters, chunk_size))
        built = _run([partial(self._graph, *_part((parameters, batch), chunk)) for chunk in chunks])
        self._chunks = [(chunk, points, gradients) for chunk, (_, points, gradients) in zip(chunks, built, strict=True)]
        self.losses = torch.cat([losses for losses, _, _ in built])
        self.gradients = _joined(self._names, [[g.detach() for g in gradients] for _, _, gradients in self._chunks])

    def __call__(self, vectors: Parameters) -> Parameters:
        """The products, task axis leading."""
        return _joined(self._names, _run([partial(self._product, vectors, *chunk) for chunk in self._chunks]))

    def _graph(self, parameters: Parameters, batch: Any) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        points = [parameters[name].detach().contiguous().requires_grad_() for name in self._names]
        with torch.enable_grad():
            losses = self._loss(dict(zip(self._names, points, strict=True)), batch)
            gradients = torch.autograd.grad(losses.sum(), points, create_graph=True)
        return losses.detach(), points, list(gradients)

    def _product(
        self, vectors: Parameters, chunk: slice, points: list[Tensor], gradients: list[Tensor]
    ) -> tuple[Tensor, ...]:
        outputs = [vectors[name][chunk] for name in self._names]
        return torch.autograd.grad(gradients, points, outputs, retain_graph=True, materialize_grads=True)


class TaskOutputs:
    """What a function of parameters and data gives for every task, and products with its Jacobian J_i.

    The graphs are built once, so a loss of the outputs costs no further pass through the function: its gradient is
    `pull(d loss / d outputs)`, and its Gauss-Newton product J_i^T M_i J_i v (the Hessian, where the loss is at its
    minimum over the outputs) one pass forward and one back.

    Attributes:
        values: the outputs, detached, task axis leading.
    """

    def __init__(
        self,
        function: Callable[[Parameters, Any], Any],
        parameters: Parameters,
        batch: Any,
        *,
        chunk_size: int | None = None,
    ) -> None:
        """Runs the function.

        Args:
            function: of ONE task's parameters and data; returns a tuple or named tuple of tensors.
            parameters: where its Jacobian is taken, task axis leading; learned step sizes are passed over.
            batch: data, task axis leading.
            chunk_size: tasks per graph at most.
        """
        self._function = lifted(function)
        self._names = _adaptable(parameters)
        self._slices = list(_chunks(parameters, chunk_size))
        self._graphs = _run([partial(self._graph, *_part((parameters, batch), c)) for c in self._slices])
        values = [tree_map(Tensor.detach, outputs) for _, outputs in self._graphs]
        self.values = values[0] if len(values) == 1 else tree_zip(torch.cat, values)

    def pull(self, cotangents: Any) -> Parameters:
        """J^T u for `cotangents` u of the outputs' structure; task axis leading."""
        jobs = [
            partial(_pull, *graph, _part(tuple(cotangents), chunk))
            for graph, chunk in zip(self._graphs, self._slices, strict=True)
        ]
        return _joined(self._names, _run(jobs))

    def gauss_newton(self, loss: Callable[[Any, Any], Tensor], batch: Any) -> Callable[[Parameters], Parameters]:
        """v -> J^T M J v, M the Hessian of one task's `loss(outputs, batch)` in the outputs; task axis leading."""
        of_chunk = lifted(loss)
        jobs = [
            partial(_gauss_newton, *graph, of_chunk, _part(batch, chunk))
            for graph, chunk in zip(self._graphs, self._slices, strict=True)
        ]
        products = _run(jobs)

        def product(vectors: Parameters) -> Parameters:
            parts = ([vectors[name][chunk] for name in self._names] for chunk in self._slices)
            return _joined(self._names, _run([partial(f, part) for f, part in zip(products, parts, strict=True)]))

        return product

    def _graph(self, parameters: Parameters, batch: Any) -> tuple[list[Tensor], Any]:
        points = [parameters[name].detach().contiguous().requires_grad_() for name in self._names]
        with torch.enable_grad():
            return points, self._function(dict(zip(self._names, points, strict=True)), batch)


class AdaptationJacobian:
    """J_i = d theta_i' / d theta_i of a whole inner loop, as the product of its steps' factors (I - A_k H_ik).

    A_k is the diagonal of step sizes and H_ik the Hessian of task i's loss at the parameters before step k. Where the
    parameters hold learned step sizes a, which all steps share, every factor has two more blocks: it takes (theta, a)
    to itself by [[I - A_k H_ik, -G_ik], [0, I]], with G_ik the diagonal of the gradient times the step's own scale.

    A Gauss-Newton product through the inner loop is `pull(F(push(v)))`: positive semi-definite whenever F is, whatever
    part of the data H was estimated on. With no factors (first order) it is the identity.
    """

    def __init__(self, hessians: Sequence[TaskHessians], step_sizes: Sequence[StepSize]) -> None:
        self._factors = [
            (hessian, _scales(hessian.parameters, step_size))
            for hessian, step_size in zip(hessians, step_sizes, strict=True)
        ]

    def first(self, num_steps: int) -> AdaptationJacobian:
        """Of the first `num_steps` steps alone."""
        part = AdaptationJacobian([], [])
        part._factors = self._factors[:num_steps]
        return part

    def push(self, tangents: Parameters) -> Parameters:
        """J v, task axis leading."""
        for hessian, scales in self._factors:
            curved, moved = hessian(tangents), {}
            for name, scale in scales.items():
                moved[name] = tangents[name] - _scaled(curved[name], scale, hessian.parameters, name)
                learned = LEARNED_STEP_SIZE + name
                if learned in hessian.parameters:
                    moved[name] = moved[name] - scale * hessian.gradients[name] * tangents[learned]
            tangents = {**tangents, **moved}
        return tangents

    def pull(self, cotangents: Parameters) -> Parameters:
        """J^T u, task axis leading; learned step sizes that `cotangents` lacks are taken to be zero there."""
        for hessian, scales in reversed(self._factors):
            still = [name for name in _adaptable(hessian.parameters) if name not in scales]
            stepped, moved = {name: torch.zeros_like(cotangents[name]) for name in still}, {}
            for name, scale in scales.items():
                stepped[name] = _scaled(cotangents[name], scale, hessian.parameters, name)
                learned = LEARNED_STEP_SIZE + name
                if learned in hessian.parameters:
                    step = scale * hessian.gradients[name] * cotangents[name]
                    moved[learned] = cotangents[learned] - step if learned in cotangents else -step
            products = hessian(stepped)
            moved |= {name: cotangents[name] - products[name] for name in products}
            cotangents = {**cotangents, **moved}
        return cotangents


def _pull(points: list[Tensor], outputs: Any, cotangents: Sequence[Tensor]) -> Sequence[Tensor]:
    return torch.autograd.grad(tuple(outputs), points, cotangents, retain_graph=True, materialize_grads=True)


def _gauss_newton(
    points: list[Tensor], outputs: Any, loss: Callable[[Any, Any], Tensor], batch: Any
) -> Callable[[Sequence[Tensor]], Sequence[Tensor]]:
    """One chunk's product; every factor is the derivative of a graph that is built here."""
    duals = [torch.zeros_like(output, requires_grad=True) for output in outputs]
    at = tree_map(lambda output: output.detach().requires_grad_(), outputs)
    with torch.enable_grad():
        # J^T u as a function of u is linear: its derivative along v is J v.
        pulled = torch.autograd.grad(tuple(outputs), points, duals, create_graph=True, materialize_grads=True)
        slopes = torch.autograd.grad(loss(at, batch).sum(), tuple(at), create_graph=True, materialize_grads=True)

    def product(vectors: Sequence[Tensor]) -> Sequence[Tensor]:
        tangents = torch.autograd.grad(pulled, duals, vectors, retain_graph=True, materialize_grads=True)
        curved = torch.autograd.grad(slopes, tuple(at), tangents, retain_graph=True, materialize_grads=True)
        return _pull(points, outputs, curved)

    return product


def _part(tree: Tree, chunk: slice) -> Tree:
    return tree_map(operator.itemgetter(chunk), tree)


def _joined(names: Sequence[str], chunks: Sequence[Sequence[Tensor]]) -> Parameters:
    return {name: torch.cat(parts) for name, parts in zip(names, zip(*chunks, strict=True), strict=True)}


def _adaptable(parameters: Mapping[str, Tensor]) -> list[str]:
    return [name for name in parameters if not name.startswith(LEARNED_STEP_SIZE)]


def _scales(parameters: Mapping[str, Tensor], step_size: StepSize) -> Mapping[str, float]:
    """The step size of every parameter that is adapted, by name."""
    return step_size if isinstance(step_size, Mapping) else dict.fromkeys(_adaptable(parameters), step_size)


def _scaled(value: Tensor, scale: float, parameters: Mapping[str, Tensor], name: str) -> Tensor:
    """`value` times the step size of parameter `name`, the learned factor included."""
    learned = parameters.get(LEARNED_STEP_SIZE + name)
    return scale * value if learned is None else scale * learned * value


def _chunks(tree: Any, limit: int | None) -> Iterator[slice]:
    """The slices of the task axis; all of it at once on a device without a cache to fit into."""
    first = _first_tensor(tree)
    num_tasks = first.shape[0]
    length = chunk_length(num_tasks, limit if first.device.type == "cpu" else None)
    return (slice(start, start + length) for start in range(0, num_tasks, length))


def _first_tensor(tree: Any) -> Tensor:
    while not isinstance(tree, Tensor):
        tree = next(iter(tree.values() if isinstance(tree, Mapping) else tree))
    return tree


def _run(jobs: Sequence[Callable[[], Result]]) -> list[Result]:
    """Runs the chunks' jobs side by side, each on one core.

    Threads inside torch's operations wait for each other at every operation, and badly so when something else wants a
    core; chunks need not. A chunk's bits do not depend on the number of threads.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        return [job() for job in jobs]
    recording = torch.is_grad_enabled()

    def run(job: Callable[[], Result]) -> Result:
        with torch.set_grad_enabled(recording):
            return job()

    return _threads(threads).run([partial(run, job) for job in jobs])


_threads = cache(Threads)
