"""Functions that the benchmark scripts share: alternating measurements, reported as one JSON object per line."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path


def arguments(description: str) -> argparse.ArgumentParser:
    """A parser with the flags that every benchmark has."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a noisier answer within a minute")
    parser.add_argument("--repeats", type=int, default=None, help="alternations; 7 by default, 3 with --quick")
    parser.add_argument("--json", type=Path, help="also write the lines to this file, as one list")
    return parser


def repeats_of(parsed: argparse.Namespace) -> int:
    """How often each case is measured."""
    return int(parsed.repeats or (3 if parsed.quick else 7))


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def alternate(cases: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every case. The cases alternate, so that a slow phase of the machine affects all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for run in cases.values():
        run()
    for _ in range(repeats):
        for name, run in cases.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(numerators: list[float], denominators: list[float]) -> float:
    """Median of the ratios of measurements that followed one another."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


class Lines:
    """Prints results at once and keeps them for a file."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._lines: list[dict[str, object]] = []

    def add(
        self, case: str, value: float, unit: str, *, against: str, ratio: float, repeats: int, **more: object
    ) -> None:
        """One result; `value` and `ratio` are medians over `repeats`."""
        line = {"case": case, "value": round(value, 4), "unit": unit, "against": against}
        self._lines.append({**line, "ratio": round(ratio, 4), "repeats": repeats, **more})
        print(json.dumps(self._lines[-1]), flush=True)

    def close(self) -> None:
        """Writes the file if one was given."""
        if self._file is not None:
            self._file.write_text("[\n" + ",\n".join(json.dumps(line) for line in self._lines) + "\n]\n")
