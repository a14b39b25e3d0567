"""The command line: `metarl train | evaluate | plot | video | list | check-tasks | check-agent`.

Exit codes:
    0: done.
    1: another error. It is one line; for errors in a user's code and unforeseen errors, a traceback comes first.
       Also: standard output could not be written. A run is still finished and kept.
    2: bad input, in one line on standard error.
    130, 143, 129: stopped by SIGINT, SIGTERM or SIGHUP. Training first finishes and saves its iteration; a second
       signal stops it at once. All other commands stop at once.
"""

from __future__ import annotations

import errno
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tyro

from metarl.cli.commands import check_agent, check_tasks, list_names, plot, video
from metarl.cli.console import complain, lasting_streams
from metarl.cli.endings import code_after
from metarl.cli.evaluate import evaluate
from metarl.cli.stopping import StopSignals
from metarl.cli.train import train
from metarl.core.errors import unknown_name
from metarl.core.files import beginning_here

EPILOG = """commands:
  train TASKS            meta-train an agent on a task family
  evaluate RUN_DIR       adaptation curve of a trained run on test tasks
  plot RUN_DIR ...       draw the curves of one or more runs
  video RUN_DIR          film a trained run's agent before and after adaptation
  list                   task families, agents, learners and presets
  check-tasks MOD:CLASS  check a task distribution of your own
  check-agent MOD:CLASS  check an RL agent or few-shot learner of your own

examples:
  metarl train point-nav --preset quick
  metarl train half-cheetah-dir --preset quick --seed 1 --agent.inner-lr 0.05
  metarl evaluate runs/point-nav --tasks 40 --adaptation-steps 3
  metarl evaluate runs/half-cheetah-dir --on half-cheetah-vel --task.low 1 --task.high 2
  metarl video runs/half-cheetah-dir --out film.webp
  metarl list --json

`metarl COMMAND --help` lists every flag."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    with lasting_streams() as (out, _):
        code = _run(arguments)
        out.flush()
        if out.lost is None:
            return code
        if out.lost.errno != errno.EPIPE:  # EPIPE: the reader has closed the pipe, such as `| head`; no message
            complain(f"standard output cannot be written: {out.lost.strerror}; the rest of the output is lost")
        return code or 1


def _run(arguments: list[str]) -> int:
    """Runs one command and returns its exit code. An error becomes a message on standard error."""
    try:
        Path.cwd()  # raises if the folder was deleted; later, MKL would end the process with its own message
        with StopSignals() as signals, beginning_here():
            return _dispatch(arguments, signals)
    except BaseException as error:
        return code_after(error, helped={"-h", "--help"} & {*arguments} != set())


def _dispatch(arguments: list[str], signals: StopSignals) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: metarl COMMAND ...\n\n{EPILOG}")
        return 0 if arguments else 2
    from metarl.cli.flags import refuse_blank

    refuse_blank(arguments)
    name, rest = arguments[0], arguments[1:]
    commands: dict[str, Callable[..., int]] = {
        "evaluate": evaluate,
        "plot": plot,
        "video": video,
        "list": list_names,
        "check-tasks": check_tasks,
        "check-agent": check_agent,
    }
    if name == "train":
        return train(rest, signals)
    if name not in commands:
        raise unknown_name("command", name, ["train", *commands])
    if name != "evaluate":
        return _parsed(commands[name], rest, prog=f"metarl {name}")()
    from metarl.cli.flags import split_task_flags

    rest, task_flags = split_task_flags(rest)
    return _parsed(evaluate, rest, prog="metarl evaluate")(task_flags=tuple(task_flags))


def _parsed(command: Callable[..., int], arguments: list[str], *, prog: str) -> Callable[..., int]:
    """`command` with its arguments, ready to be called. Errors in the arguments become one line."""
    from metarl.cli.flags import errors_in_one_line

    @functools.wraps(command)
    def bind(*values: Any, **settings: Any) -> Callable[[], int]:
        return functools.partial(command, *values, **settings)

    with errors_in_one_line(prog):
        return tyro.cli(bind, args=arguments, prog=prog)
