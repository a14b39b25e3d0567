"""The message and the exit code for an error that ended a command."""

from __future__ import annotations

import re
import signal
from pathlib import Path

from metarl.cli.console import complain, complain_at_length
from metarl.cli.stopping import Stopped
from metarl.core.errors import InputError, RunError, described, one_line, raised, text_of


def code_after(error: BaseException, *, helped: bool) -> int:
    """Prints one line on what ended a command, and returns its exit code. Unforeseen errors print a traceback first.

    Args:
        error: the error that ended the command.
        helped: whether the command got `--help`, which ends it with SystemExit.
    """
    if isinstance(error, SystemExit):
        if helped and error.code == 0:
            return 0
        complain_at_length(error)
        complain(f"ended by SystemExit({error.code!r}) before it was done")
        return 1
    interrupt = _interrupt_behind(error)
    if interrupt is not None:
        number = interrupt.number if isinstance(interrupt, Stopped) else signal.SIGINT
        complain(f"stopped by {signal.Signals(number).name}")
        return 128 + number
    if isinstance(error, InputError):
        complain(error)
        return 2
    if isinstance(error, RunError):
        if error.__cause__ is not None:
            complain_at_length(error.__cause__)
        complain(error)
    elif _lacks_memory(error):
        complain(_without_memory(error))
    elif isinstance(error, OSError):
        complain(_of_the_system(error))
    else:  # an agent of the user's, or a fault of MetaRL's
        complain_at_length(error)
        complain(one_line(described(error)))
    return 1


def _interrupt_behind(error: BaseException | None) -> KeyboardInterrupt | None:
    """`error` if it is an interrupt, or the interrupt that caused it: a C module may raise ImportError instead."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error


def _lacks_memory(error: BaseException) -> bool:
    of_torch = isinstance(error, RuntimeError) and re.search("allocate memory|out of memory", text_of(error))
    return isinstance(error, MemoryError) or bool(of_torch)


def _of_the_system(error: OSError) -> str:
    try:
        Path.cwd()
    except OSError:
        return "the working directory does not exist any more; change into one that does"
    return raised(error)


def _without_memory(error: BaseException) -> str:
    acting = "agent.num_trajectories, task.horizon, agent.hidden_sizes"
    given = "or for few-shot tasks task.train_ways, task.train_queries, agent.num_filters"
    advice = f"lower trainer.meta_batch_size, {acting}, {given}"
    return f"out of memory: {one_line(error)}; {advice}"
