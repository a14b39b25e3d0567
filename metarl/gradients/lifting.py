"""Lifts a function that is written for one task over the meta-batch.

On a CPU, the tasks are computed in chunks of a few, so that activations fit into the cache. The chunks run side by side
on threads. All chunks have one size, so a task's numbers do not depend on its place in the meta-batch. A chunk of one
task is not lifted: derivatives of plain matrix products take a third less time than those of batched ones.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from metarl.core.threads import Threads
from metarl.core.trees import tree_map, tree_zip

Result = TypeVar("Result")
Tree = TypeVar("Tree")


def over_tasks(function: Callable[..., Result], *arguments: object, chunk_size: int | None = None) -> Result:
    """Lifts `function`, written for one task, over the leading axis of every tensor in `arguments`.

    The result is differentiable. Do not call this inside another `torch.func` transform: chunks may run on other
    threads.

    Args:
        function: takes the trees of tensors of one task and returns one.
        *arguments: trees of tensors, task axis leading.
        chunk_size: tasks per pass at most; None for all at once.

    Returns:
        The results of all tasks, task axis leading.
    """
    return over_chunks(lifted(function), *arguments, chunk_size=chunk_size)


def over_chunks(function: Callable[..., Result], *arguments: object, chunk_size: int | None = None) -> Result:
    """As `over_tasks`, for a `function` of several tasks: the task axis leads in its arguments and in its result."""
    return rejoined(chunkwise(function, *arguments, chunk_size=chunk_size))


def chunkwise(function: Callable[..., Result], *arguments: object, chunk_size: int | None = None) -> list[Result]:
    """As `over_chunks`; returns the results of the chunks, in the order of the tasks."""
    return side_by_side(
        [partial(function, *take(arguments, chunk)) for chunk in chunk_slices(arguments[0], chunk_size)]
    )


def rejoined(parts: list[Tree]) -> Tree:
    """One tree of tensors of all tasks from the trees of the chunks, task axis leading."""
    return parts[0] if len(parts) == 1 else tree_zip(torch.cat, parts)


def lifted(function: Callable[..., Result]) -> Callable[..., Result]:
    """Turns a `function` of one task into one of several. The task axis leads in its arguments and its result."""
    batched: Callable[..., Result] = torch.func.vmap(function)

    def of_chunk(*arguments: object) -> Result:
        if num_tasks_of(arguments) > 1:
            return batched(*arguments)
        return tree_map(lambda tensor: tensor.unsqueeze(0), function(*tree_map(operator.itemgetter(0), arguments)))

    return of_chunk


def num_tasks_of(tree: object) -> int:
    """The length of the task axis, which leads in every tensor of `tree`."""
    return _first_tensor(tree).shape[0]


def chunk_length(num_tasks: int, limit: int | None) -> int:
    """The largest divisor of `num_tasks` that is not above `limit`."""
    if limit is None or limit >= num_tasks:
        return num_tasks
    return max(size for size in range(1, limit + 1) if num_tasks % size == 0)


def take(tree: Tree, chunk: slice) -> Tree:
    """The tasks of `chunk`, for every tensor of `tree`."""
    return tree_map(operator.itemgetter(chunk), tree)


def chunk_slices(tree: object, limit: int | None) -> Iterator[slice]:
    """The chunks as slices of the task axis, each of at most `limit` tasks. On a GPU there is one chunk."""
    first = _first_tensor(tree)
    num_tasks = first.shape[0]
    length = chunk_length(num_tasks, limit if first.device.type == "cpu" else None)
    return (slice(start, start + length) for start in range(0, num_tasks, length))


def _first_tensor(tree: Any) -> Tensor:
    while not isinstance(tree, Tensor):
        tree = next(iter(tree.values() if isinstance(tree, Mapping) else tree))
    return tree


def side_by_side(jobs: Sequence[Callable[[], Result]]) -> list[Result]:
    """Runs the jobs of the chunks side by side, each on one core.

    This is faster than threads inside torch's operations. They wait for each other at every operation, which takes long
    if another program uses a core. A chunk's bits do not depend on the number of threads.
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
