"""How often 95 % intervals of three seeds cover the true mean, on data with the variances of the results table.

    python scripts/simulate_coverage.py --json results/coverage.json        # two minutes

The script estimates three variances for every cell of three seeds and every budget: of seeds, of tasks (in a family of
a few tasks: of replicates) and of the residual. It draws data sets with these variances and a true mean of zero, and
computes three intervals of each. It does the same for the differences between each agent and the first one, paired by
task and seed. The effects of tasks and the residual are normal, or exponential (skewed).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import results_table

from metarl.core.statistics import Array, crossed_interval, interval, student_quantile

ROOT = Path(__file__).resolve().parent.parent
NUM_SEEDS, NUM_RESAMPLES = 3, 500
EFFECTS: dict[str, Callable[[np.random.Generator, tuple[int, ...]], Array]] = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "exponential": lambda rng, shape: 1.0 - rng.standard_exponential(shape),
}


def tables(cells: results_table.Cells) -> Iterator[tuple[str, str, Array]]:
    """For every cell and budget: the family, "score" or "difference", and the scores [seeds, strata, units]."""
    for family in results_table.families(cells):
        there = [column for column in results_table.columns(cells) if len(cells.get((family, column), [])) == NUM_SEEDS]
        for column in there:
            own = results_table.values_of(cells[family, column])
            first = results_table.values_of(cells[family, there[0]])
            for kind, values in (("score", own), ("difference", own - first)):
                units = values.swapaxes(-1, -2) if values.shape[-1] == 1 else values
                yield from ((family, kind, table) for table in units if np.ptp(table) > 0.0)


def variances(table: Array) -> tuple[float, float, float]:
    """Variances of seeds, of units and of the residual in a table [seeds, strata, units]; never below zero."""
    num_seeds, num_strata, size = table.shape
    by_unit = table.mean(0)
    rest = table - table.mean(-1, keepdims=True) - by_unit + by_unit.mean(-1, keepdims=True)
    rest_variance = float((rest**2).sum()) / ((num_seeds - 1) * num_strata * (size - 1))
    seed = float(table.mean((1, 2)).var(ddof=1)) - rest_variance / (num_strata * size)
    unit = float(by_unit.var(-1, ddof=1).mean()) - rest_variance / num_seeds
    return max(seed, 0.0), max(unit, 0.0), rest_variance


def within_seeds(values: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Percentile interval [...] of [..., S, K, R]: resamples the seeds, then the units of each seed separately."""
    *leading, num_seeds, num_strata, size = values.shape
    total = num_strata * size
    counts = np.zeros((NUM_RESAMPLES, num_seeds, total))
    for resample in counts:
        for seed in rng.integers(num_seeds, size=num_seeds):
            resample[seed] += rng.multinomial(total, np.full(total, 1.0 / total))
    flat = values.reshape(*leading, num_seeds * total)
    return interval(flat @ counts.reshape(NUM_RESAMPLES, -1).T / (num_seeds * total))


def jointly(values: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Percentile interval [...] of [..., S, K, R]: resamples the seeds, and their common units for all seeds."""
    num_seeds, num_strata, size = values.shape[-3:]
    seeds = rng.multinomial(num_seeds, np.full(num_seeds, 1.0 / num_seeds), size=NUM_RESAMPLES) / num_seeds
    units = rng.multinomial(size, np.full(size, 1.0 / size), size=(NUM_RESAMPLES, num_strata)) / (size * num_strata)
    return interval(np.einsum("bs,...skr,bkr->...b", seeds, values, units, optimize=True))


METHODS: dict[str, Callable[[Array, np.random.Generator], tuple[Array, Array]]] = {
    "seeds, then tasks within each, resampled": within_seeds,
    "seeds and common tasks resampled jointly": jointly,
    "crossed_interval": lambda values, rng: crossed_interval(
        values.swapaxes(-1, -2) if values.shape[-2] == 1 else values, rng
    ),
}


def simulate(
    table: Array, effects: str, num_data_sets: int, rng: np.random.Generator
) -> dict[str, tuple[float, float]]:
    """Coverage and median width by method; a width is relative to that of the interval for known variances."""
    num_seeds, num_strata, size = table.shape
    seed, unit, rest = variances(table)
    draw = EFFECTS[effects]
    values = np.sqrt(seed) * rng.standard_normal((num_data_sets, num_seeds, 1, 1))
    values = values + np.sqrt(unit) * draw(rng, (num_data_sets, 1, num_strata, size))
    values = values + np.sqrt(rest) * draw(rng, (num_data_sets, num_seeds, num_strata, size))
    num_units = num_strata * size
    error = np.sqrt(seed / num_seeds + unit / num_units + rest / (num_seeds * num_units))
    least = 2.0 * student_quantile(10_000) * error
    found = {}
    for name, method in METHODS.items():
        low, high = method(values, rng)
        found[name] = float(((low <= 0.0) & (high >= 0.0)).mean()), float(np.median(high - low) / least)
    return found


def summarise(found: list[dict[str, tuple[float, float]]]) -> dict[str, dict[str, float]]:
    """By method: mean, least and greatest coverage over the tables, and the median of the widths."""
    summary = {}
    for name in METHODS:
        coverage, width = np.array([one[name] for one in found]).T
        named = {
            "mean": coverage.mean(),
            "least": coverage.min(),
            "greatest": coverage.max(),
            "width": np.median(width),
        }
        summary[name] = {key: round(float(value), 3) for key, value in named.items()}
    return summary


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=Path, default=ROOT / "results" / "cells")
    parser.add_argument("--data-sets", type=int, default=1000, help="data sets for each cell and budget")
    parser.add_argument("--json", type=Path)
    parsed = parser.parse_args()
    rng = np.random.default_rng(0)
    groups: dict[tuple[str, str, str], list[dict[str, tuple[float, float]]]] = {}
    for family, kind, table in tables(results_table.read_cells(parsed.cells)):
        for effects in EFFECTS:
            found = simulate(table, effects, parsed.data_sets, rng)
            groups.setdefault((family, kind, effects), []).append(found)
    rows: list[dict[str, Any]] = []
    for (family, kind, effects), found in groups.items():
        rows.append({"family": family, "of": kind, "effects": effects, "tables": len(found), **summarise(found)})
        print(f"{family}, {kind}, {effects} effects, {len(found)} tables")
        for name, row in summarise(found).items():
            print(
                f"  {name:42}{row['mean']:7.3f} [{row['least']:.3f}, {row['greatest']:.3f}]  width {row['width']:.2f}"
            )
    if parsed.json is not None:
        about = {"seeds": NUM_SEEDS, "nominal": 0.95, "data_sets": parsed.data_sets, "resamples": NUM_RESAMPLES}
        parsed.json.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
