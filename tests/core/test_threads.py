"""Threads that compute."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
import torch

from metarl.core.threads import Threads
from metarl.gradients.lifting import side_by_side


def raises(error: BaseException) -> Callable[[], int]:
    def job() -> int:
        raise error

    return job


def own_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("metarl_")}


@pytest.mark.parametrize(
    "error", [ValueError("no"), KeyboardInterrupt(), SystemExit(0), MemoryError(), GeneratorExit()]
)
def test_whatever_a_job_raises_arrives_when_no_job_runs_any_more(error: BaseException) -> None:
    """Afterwards the threads are there as before, and let the process end without them: a thread that ends after an
    error may abort it."""
    before, threads = own_threads(), Threads(2)
    made = own_threads() - before
    started, ended = [], []

    def slow() -> int:
        started.append(True)
        time.sleep(0.05)
        ended.append(True)
        return 1

    with pytest.raises(type(error)) as caught:
        threads.run([slow, raises(error), *[slow] * 20])
    assert caught.value is error
    assert len(started) == len(ended) < 21
    assert threads.run([slow, slow, slow]) == [1, 1, 1]
    assert len(made) == 2
    assert all(thread.is_alive() and thread.daemon for thread in made)


def test_results_come_in_the_order_of_the_jobs() -> None:
    threads = Threads(2)
    names = {threading.current_thread().name}

    def job(number: int) -> int:
        names.add(threading.current_thread().name)
        time.sleep(0.01 * (number == 0))
        return number

    assert threads.run([lambda number=number: job(number) for number in range(9)]) == list(range(9))  # type: ignore[misc]
    assert len(names) == 3


def test_at_the_end_of_the_process_a_running_job_is_waited_for() -> None:
    """A daemon that needs Python while Python shuts down may abort the process."""
    threads, order, begun = Threads(1), [], threading.Event()

    def job() -> None:
        begun.set()
        time.sleep(0.1)
        order.append("done")

    caller = threading.Thread(target=threads.run, args=([job],))
    caller.start()
    begun.wait()
    threads.rest()
    order.append("at rest")
    caller.join()
    assert order == ["done", "at rest"]


def test_a_thread_that_was_idle_keeps_to_one_core() -> None:
    """Torch gives a thread the process's number of threads at its first operation, not when it is made."""
    before, threads = torch.get_num_threads(), Threads(1)
    try:
        threads.run([lambda: None])
        torch.set_num_threads(2)
        assert threads.run([torch.get_num_threads]) == [1]
    finally:
        torch.set_num_threads(before)


def test_chunks_run_on_threads_where_torch_has_several() -> None:
    """And their errors are those of the jobs."""
    before, names = torch.get_num_threads(), set()

    def job() -> None:
        names.add(threading.current_thread().name)

    torch.set_num_threads(2)
    try:
        side_by_side([job] * 4)
        with pytest.raises(SystemExit):
            side_by_side([job, raises(SystemExit(0))])
    finally:
        torch.set_num_threads(before)
    assert names <= {"metarl_0", "metarl_1"}
