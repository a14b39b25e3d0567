"""Task distributions: what a task is and how tasks are drawn.

A task is plain data, such as a frozen dataclass of numbers: comparable, printable, picklable. A distribution draws
tasks from an explicit generator and has a `train` and a `test` split.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from typing import Any, ClassVar, Generic, Literal, TypeAlias, TypeGuard, TypeVar

import numpy as np
from numpy.typing import NDArray

from metarl.core.errors import DISTRIBUTION, InputError, environment_fault, one_line, text_of, users_code
from metarl.core.settings import check

Split = Literal["train", "test"]
Splits = Literal["disjoint", "identical", "same distribution"]
Task = TypeVar("Task")
Array = NDArray[Any]
Tasks: TypeAlias = Sequence[Any]
"""A list of tasks. A task is plain data of any type."""
Tables: TypeAlias = Mapping[str, Mapping[str, Any]]
"""Settings by table, such as {"trainer": {"seed": 1}}."""


class TaskDistribution(ABC, Generic[Task]):
    """Draws tasks.

    A family of RL tasks derives from `EnvTaskDistribution`, one of few-shot tasks from `ExampleTaskDistribution`. It
    implements `sample`, and `all_tasks` if it has few tasks.

    Attributes:
        splits: how test tasks differ from training tasks. "disjoint": no test task can be drawn in training, so a test
            score measures generalisation. "identical": the tasks of a finite family are the same in both splits, so it
            measures only adaptation. "same distribution": both are drawn from one continuous distribution.
        defaults: settings of [trainer] and [evaluation] that suit these tasks better than the usual ones. The defaults
            of a learner's traits, presets, files and flags override them.
    """

    splits: Splits = "same distribution"
    defaults: ClassVar[Tables] = {}

    def __post_init__(self) -> None:
        check(self, "task")

    @abstractmethod
    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> list[Task]:
        """Draws `num_tasks` tasks of `split`. All randomness comes from `rng`."""

    def all_tasks(self, split: Split = "test") -> list[Task] | None:
        """Every task of a finite split, in a fixed order; None if the split is infinite.

        An evaluation runs each task of a finite split equally often instead of sampling.
        """
        return None

    def for_validation(self) -> TaskDistribution[Task]:
        """The distribution whose training tasks are the validation tasks. By default, this one."""
        return self


AnyDistribution: TypeAlias = TaskDistribution[Any]


def draw(distribution: TaskDistribution[Task], num_tasks: int, rng: np.random.Generator, *, split: Split) -> list[Task]:
    """Calls `distribution.sample(num_tasks, rng, split=split)` and checks the result.

    Raises:
        EnvironmentFaultError: it raised, or returned something else than `num_tasks` tasks.
    """
    call = f"sample({num_tasks}, split={split!r})"
    with users_code(call):
        tasks: object = distribution.sample(num_tasks, rng, split=split)
    return _listed(tasks, call, num_tasks)


def list_tasks(distribution: TaskDistribution[Task], split: Split) -> list[Task] | None:
    """Calls `distribution.all_tasks(split)` and checks the result.

    Raises:
        EnvironmentFaultError: it raised, or returned neither None nor tasks.
    """
    call = f"all_tasks({split!r})"
    with users_code(call):
        tasks: object = distribution.all_tasks(split)
    return None if tasks is None else _listed(tasks, call, None)


def are_listed(tasks: object) -> TypeGuard[Tasks]:
    """Whether `tasks` is a list of tasks, another sequence or an array; text, a named tuple or a dict is one task."""
    if isinstance(tasks, np.ndarray):
        return tasks.ndim > 0
    one = isinstance(tasks, (str, bytes, bytearray)) or hasattr(tasks, "_fields")
    return isinstance(tasks, Sequence) and not one


def require_tasks(tasks: object) -> Tasks:
    """`tasks`. Raises `InputError` unless it is a list of tasks; a number, a dict or an array without axes is one."""
    if not are_listed(tasks):
        raise InputError(f"tasks = {one_line(tasks)}: must be a list of tasks; write [task] for one task")
    return tasks


def _listed(tasks: object, call: str, num_tasks: int | None) -> list[Any]:
    """`tasks` as a list of `num_tasks`, or of any number above 0."""
    returned = f"{text_of(tasks, repr):.80}"
    if are_listed(tasks):
        if len(tasks) == num_tasks if num_tasks else len(tasks) > 0:
            return list(tasks)
        returned = f"{len(tasks)} tasks"
    what = f"{call} returned {returned}: must be a list of {num_tasks or 'one or more'} tasks"
    raise environment_fault(what, task=None, seed=None, step=None, whose=DISTRIBUTION)


def parts_of(task: object, name: str = "task") -> Iterator[tuple[str, Any]]:
    """The name and value of every part of `task`, at any depth; an array or a tensor is one part."""
    task = _as_array(task)
    if isinstance(task, Mapping):
        for key, value in task.items():
            yield from parts_of(value, str(key))
    elif isinstance(task, Sequence) and not isinstance(task, (str, bytes, bytearray)):
        for value in task:
            yield from parts_of(value, name)
    elif is_dataclass(task) and not isinstance(task, type):
        for field in fields(task):
            yield from parts_of(getattr(task, field.name), field.name)
    else:
        yield name, task


def same_task(left: object, right: object) -> bool:
    """Whether two tasks have the same content. All comparisons of tasks use it, since `==` may raise or give an array.

    Arrays, tensors and numbers are compared by value, and NaN equals NaN. Containers and dataclasses are compared part
    by part. Other objects are the same if `==` says so, or if they have one type and pickle to equal parts.
    """
    try:
        return _same(left, right, set())
    except RecursionError:  # nested too deeply to compare or to pickle
        return False


def distinct_tasks(tasks: Iterable[Task], most: int) -> list[Task]:
    """The first tasks of different content, at most `most` of them."""
    found: list[Task] = []
    for task in tasks:
        if len(found) == most:
            break
        if not any(same_task(task, other) for other in found):
            found.append(task)
    return found


def _same(left: Any, right: Any, comparing: set[tuple[int, int]]) -> bool:
    """`same_task`; `comparing` holds the pairs that are being compared, for objects that hold themselves."""
    left, right = _as_array(left), _as_array(right)
    pair = (id(left), id(right))
    if left is right or pair in comparing:
        return True
    if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
        return left.shape == right.shape and _same_arrays(left, right, comparing)
    if isinstance(left, np.ndarray) or isinstance(right, np.ndarray):
        return False
    try:
        equal = left == right
        if isinstance(equal, (bool, np.bool_)) and equal:
            return True
        if isinstance(left, _NUMBERS) and isinstance(right, _NUMBERS) and left != left and right != right:
            return True  # both are NaN
    except Exception:
        pass  # the parts decide
    if type(left) is not type(right):
        return False
    inner = comparing | {pair}
    if isinstance(left, Mapping):
        if len(left) != len(right):
            return False
        if all(key in right for key in left):
            return all(_same(value, right[key], inner) for key, value in left.items())
        return _same(list(left.items()), list(right.items()), inner)
    if isinstance(left, Set):
        return len(left) == len(right) and all(any(_same(one, other, inner) for other in right) for one in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(_same(*both, inner) for both in zip(left, right, strict=True))
    if is_dataclass(left) and not isinstance(left, type):
        compared = [field.name for field in fields(left) if field.compare]
        return all(_same(getattr(left, name, None), getattr(right, name, None), inner) for name in compared)
    return _same_pickled(left, right, inner)


_NUMBERS = (float, complex, np.generic)


def _same_arrays(left: Array, right: Array, comparing: set[tuple[int, int]]) -> bool:
    """Whether two arrays of one shape hold the same."""
    if left.dtype.names is not None or right.dtype.names is not None:
        names = left.dtype.names or ()
        return names == right.dtype.names and all(_same_arrays(left[name], right[name], comparing) for name in names)
    if left.dtype.kind == "O" or right.dtype.kind == "O":
        return all(_same(*both, comparing) for both in zip(left.ravel(), right.ravel(), strict=True))
    if left.size and not _equal_entries(left.ravel()[:1], right.ravel()[:1]):
        return False  # quick: most large arrays that differ have another first entry
    return _equal_entries(left, right)


def _equal_entries(left: Array, right: Array) -> bool:
    numbers = left.dtype.kind in "fcmM" and right.dtype.kind in "fcmM"
    return np.array_equal(left, right, equal_nan=numbers)


def _same_pickled(left: object, right: object, comparing: set[tuple[int, int]]) -> bool:
    """Whether two objects of one type consist of equal parts, as pickle sees them: attributes, slots, items."""
    if isinstance(left, (str, bytes, int, float, complex, np.generic, type)):
        return False  # values without parts were compared above
    try:
        parts = [whole.__reduce_ex__(4) for whole in (left, right)]
    except Exception:  # an object that cannot be pickled, such as a generator or a lock
        return False
    one, other = ([list(part) if isinstance(part, Iterator) else part for part in whole] for whole in parts)
    return _same(one, other, comparing)


def _as_array(value: Any) -> Any:
    """A tensor as an array, everything else as it is. (Environments use this module without torch.)"""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(value, torch.Tensor):
        return value
    dense = value.detach().to_dense().cpu().resolve_conj().resolve_neg()
    return dense.numpy() if dense.element_size() > 1 and dense.dtype != torch.bfloat16 else dense.double().numpy()
