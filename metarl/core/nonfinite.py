"""Finds updates with numbers that are not finite, names their tasks, and dumps them for inspection.

`torch.load(path, weights_only=True)` reads a dump. It is a dict with "state" (of the learner before the update),
"episodes", "iteration", "seed", "metrics" and "finding". `reproduce` runs the update again:

    learner = metarl.load("runs/point-nav")
    metrics = metarl.core.nonfinite.reproduce(learner, "runs/point-nav/nonfinite/iteration_000012.pt")
"""

from __future__ import annotations

import io
import logging
import math
import pickle
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metarl.core.data import AnyEpisodes, Episodes
from metarl.core.errors import InputError, one_line, text_of
from metarl.core.files import write_atomically
from metarl.core.learner import AnyLearner
from metarl.core.moved import MOVED
from metarl.core.trees import children, is_named_tuple, tensors_in

_logger = logging.getLogger(__name__)

MAX_DUMPS = 3
MAX_TASKS = 3
_CLASS = "__class__"


@dataclass(frozen=True)
class Finding:
    """The parts of an update that are not finite.

    Attributes:
        term: the first of them in the order of computation.
        tasks: such as "slot 3 Goal(x=0.1, y=0.2)", for every task with such a number among its scores, its adapted
            state, or the log_probs and advantages of its batches.
    """

    term: str
    tasks: tuple[str, ...]

    def __str__(self) -> str:
        more = len(self.tasks) - MAX_TASKS
        named = [*self.tasks[:MAX_TASKS], *([f"{more} more"] if more > 0 else [])]
        return f"{self.term} ({', '.join(named)})" if named else self.term


@dataclass(frozen=True)
class UndoneUpdate:
    """An update that was undone because something about it was not finite.

    Attributes:
        finding: what was not finite.
        state: the learner's `state_dict` before the update.
        episodes: the data of the update.
        metrics: what `meta_update` returned.
        iteration: the number of the update, from 1.
        seed: the run's.
    """

    finding: Finding
    state: Mapping[str, Any]
    episodes: AnyEpisodes
    metrics: Mapping[str, float]
    iteration: int
    seed: int


def find(learner: AnyLearner, episodes: AnyEpisodes, metrics: Mapping[str, float]) -> Finding | None:
    """What is not finite after the update of `learner` on `episodes`, or None.

    Checks the numbers of each task (see `Finding.tasks`), the metrics, the parameters and the learner's state.
    """
    trees = {"parameters": learner.parameters, "state": learner.state_dict()}
    numbers = [value for value in metrics.values() if not math.isfinite(value)]
    if not numbers and all_finite(value for _, value in (*_per_task(episodes), *tensors_in(trees, ""))):
        return None
    terms, indices = [], set()
    for name, value in _per_task(episodes):
        finite = value.isfinite().unsqueeze(-1).flatten(1).all(1)
        if bad := torch.nonzero(~finite).flatten().tolist():
            terms.append(name)
            indices.update(bad)
    terms += [f"train/{name} = {value}" for name, value in metrics.items() if not math.isfinite(value)]
    terms += nonfinite_tensors(trees)
    slots = (f"slot {episodes.slots[i]} {one_line(episodes.tasks[i], max_length=100)}" for i in sorted(indices))
    return Finding(terms[0], tuple(slots))


def nonfinite_tensors(tree: object) -> Iterator[str]:
    """The places of the tensors in `tree` (see `metarl.core.trees`) that are not finite."""
    return (name for name, value in tensors_in(tree, "") if not bool(value.isfinite().all()))


def report(folder: Path | None, update: UndoneUpdate) -> None:
    """Logs `update` in one line, and dumps it into `folder` if that is given."""
    where = ""
    if folder is not None:
        try:
            path = dump(folder, update)
            where = f"; dumped to {path}" if path else f"; not dumped: {MAX_DUMPS} of this run are there"
        except OSError as error:
            where = f"; not dumped: {error.strerror}"
    _logger.warning("iteration %d: the update was undone, not finite: %s%s", update.iteration, update.finding, where)


def dump(folder: Path, update: UndoneUpdate) -> Path | None:
    """Writes `folder`/iteration_000012.pt, whole or not at all. Makes `folder` if it is missing.

    Returns:
        The file, or None if `folder` already holds `MAX_DUMPS` of these large files.

    Raises:
        OSError: the disk is full or not writable.
    """
    path = folder / f"iteration_{update.iteration:06d}.pt"
    if len({*folder.glob("iteration_*.pt")} - {path}) >= MAX_DUMPS:
        return None
    content = {
        "finding": str(update.finding),
        "iteration": update.iteration,
        "seed": update.seed,
        "metrics": {name: float(value) for name, value in update.metrics.items()},
        "state": dict(update.state),
        "episodes": _plain(update.episodes),
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, buffer.getvalue())
    return path


def reproduce(learner: AnyLearner, path: Path | str) -> dict[str, float]:
    """Restores `learner` to its state before a dumped update, and runs the update again.

    Args:
        learner: the run's learner on the CPU: `metarl.load(run_dir)`.
        path: the dump.

    Returns:
        The metrics of the update.

    Raises:
        InputError: the file cannot be read, or is not a dump of such a learner.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        learner.load_state_dict(content["state"])
        episodes = _restored(content["episodes"], type(learner).__module__)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: is not a dump of this learner: {one_line(error)}") from error
    return learner.meta_update(episodes)


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all numbers are finite. The CPU reads one result per device, because each read waits for the GPU."""
    answers: dict[torch.device, list[Tensor]] = {}
    for tensor in {id(tensor): tensor for tensor in tensors}.values():
        once = tensor[tuple(slice(1) if stride == 0 else slice(None) for stride in tensor.stride())]  # expanded axes
        answers.setdefault(tensor.device, []).append(once.isfinite().all())
    return all(bool(torch.stack(there).all()) for there in answers.values())


def _per_task(episodes: AnyEpisodes) -> Iterator[tuple[str, Tensor]]:
    """The tensors of each task that decide the update, in the order of an episode."""
    batches = [*((f"support {k}", batch) for k, batch in enumerate(episodes.support)), ("query", episodes.query)]
    for k, (name, batch) in enumerate(batches):
        if name == "query":
            adapted = tensors_in(episodes.state, "the adapted state")
            yield from ((part, value) for part, value in adapted if value.shape[:1] == (len(episodes.slots),))
        for field in ("log_probs", "advantages"):
            value = (children(batch) or {}).get(field)
            if isinstance(value, Tensor):
                yield f"{field} of {name}", value
        if k < len(episodes.scores):  # a learner that adapts in its update has its scores among the metrics
            yield f"the score after {k} steps", episodes.scores[k]


def _plain(value: Any) -> Any:
    """`value` as plain data: a class becomes a dict that names it, and anything else, such as a task, becomes text."""
    if isinstance(value, Episodes):
        value = replace(value, tasks=tuple(map(one_line, value.tasks)))
    if value is None:
        return None
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    parts = children(value)
    if parts is None:
        return text_of(value)
    plain = {key: _plain(part) for key, part in parts.items()}
    if isinstance(value, Mapping):
        return plain
    if type(value) in (list, tuple):
        return type(value)(plain.values())
    return {_CLASS: f"{type(value).__module__}:{type(value).__qualname__}", **plain}


def _restored(value: Any, module: str) -> Any:
    """The inverse of `_plain`. It creates only data classes of `module` and MetaRL, and refuses others."""
    if isinstance(value, (list, tuple)):
        return type(value)(_restored(part, module) for part in value)
    if not isinstance(value, Mapping):
        return value
    parts = {key: _restored(part, module) for key, part in value.items() if key != _CLASS}
    return _data_class(value[_CLASS], module)(**parts) if _CLASS in value else parts


def _data_class(reference: str, module: str) -> type:
    home, _, name = reference.partition(":")
    known = home == module or home.startswith("metarl.")
    homes = MOVED.get(home, (home,)) if known else ()
    found = next((there for place in homes if (there := getattr(sys.modules.get(place), name, None))), None)
    if not (isinstance(found, type) and (is_dataclass(found) or is_named_tuple(found))):
        raise ValueError(f"{reference!r} is not a data class of MetaRL or of the learner's module")
    return found
