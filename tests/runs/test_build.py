"""The process keeps the memory that it frees."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from metarl.runs.build import keep_freed_memory

PAGES_TOUCHED_ANEW = """
import resource, sys, torch
from metarl.runs.build import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def faults(repeats):
    for _ in range(repeats):
        torch.empty(10, 2**20).fill_(1.0)  # 40 MB, 10,240 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = faults(20)  # warm-up: other allocations settle in the first rounds
print(faults(5) - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
@pytest.mark.parametrize(("how", "least", "most"), [("keep", 0, 2_000), ("as it is", 20_000, 10**9)])
def test_large_tensors_are_made_of_pages_that_are_there(how: str, least: int, most: int) -> None:
    command = [sys.executable, "-c", PAGES_TOUCHED_ANEW, how]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert least <= int(done.stdout) <= most


def test_nothing_is_done_where_there_is_no_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()
