from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from metarl.core.curve import AdaptationCurve
from metarl.report.text import report_lines


@dataclass(frozen=True)
class Direction:
    sign: int


@dataclass(frozen=True)
class Long:
    probabilities: tuple[float, float, float]


FORWARD, BACK = Direction(1), Direction(-1)


def report_of(values: Any, *tasks: Any, **settings: Any) -> dict[str, Any]:
    array = np.asarray(values, dtype=float)
    defaults: dict[str, Any] = {"unit": "gradient steps", "score": "return", "splits": "identical"}
    return AdaptationCurve(
        tasks=tasks, values=array, env_steps=tuple(40.0 * k for k in range(len(array))), **{**defaults, **settings}
    ).to_json()


def finite(num_steps: int = 2, *tasks: Any) -> dict[str, Any]:
    tasks = tasks or (FORWARD, BACK)
    values = np.random.default_rng(0).normal(size=(num_steps + 1, len(tasks), 5))
    return report_of(values + 300.0 * np.arange(num_steps + 1)[:, None, None], *tasks)


def infinite(num_steps: int = 2) -> dict[str, Any]:
    tasks = [Long((0.1, 0.25, i / 7)) for i in range(6)]
    values = np.random.default_rng(0).normal(size=(num_steps + 1, 6, 1))
    return report_of(values, *tasks, splits="same distribution", score="mse")


def controls(*tasks: Any) -> dict[str, Any]:
    count = len(tasks)
    return {
        "tasks": [str(task) for task in tasks],
        "num_adaptation_steps": 1,
        "num_replicates": 2,
        "matrix": [[1.0 + row + column / 8 for column in range(count)] for row in range(count)],
        "before": [0.5 + column for column in range(count)],
        "zero_reward": [-20.0 - column for column in range(count)],
    }


def cells(line: str) -> list[str]:
    return re.split(r"  +", line.strip())


def number(value: float) -> str:
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def bounds(low: float, high: float) -> str:
    return f"[{number(low)}, {number(high)}]"


@pytest.mark.parametrize("report", [finite(), infinite()])
def test_every_point_of_the_curve_is_a_row(report: dict[str, Any]) -> None:
    lines = [*report_lines(report)]
    assert cells(lines[1])[:6] == [
        "step",
        "examples" if report["score"] == "mse" else "env steps",
        "mean",
        "95 % interval",
        "IQM",
        "worst decile",
    ]
    for k, line in enumerate(lines[2:5]):
        assert cells(line)[:6] == [
            str(k),
            str(40 * k),
            number(report["mean"][k]),
            bounds(report["ci_low"][k], report["ci_high"][k]),
            number(report["iqm"][k]),
            number(report["worst_decile"][k]),
        ]
    assert len({len(line) for line in lines[1:5]}) == 1  # columns stand under each other


def test_a_finite_family_is_told_task_by_task() -> None:
    report = finite()
    lines = [*report_lines(report)]
    assert lines[0] == (
        "adaptation curve: return after 0..2 gradient steps, all 2 tasks of a finite family, 5 replicates each "
        "(trained and tested on the same tasks: adaptation, not generalisation)"
    )
    disjoint = next(report_lines({**report, "splits": "disjoint"}))
    assert disjoint.endswith("5 replicates each (splits: disjoint)")
    assert cells(lines[1])[6:] == ["Direction(sign=1)", "Direction(sign=-1)"]
    low, high = report["per_task_ci_low"], report["per_task_ci_high"]
    for k in range(3):
        expected = [f"{number(report['per_task'][k][i])} {bounds(low[k][i], high[k][i])}" for i in range(2)]
        assert cells(lines[2 + k])[6:] == expected
    gain, per_task = report["gain"], report["per_task_gain"]
    assert lines[5:] == [
        f"paired gain of step 1 over step 0: {gain['mean'][1]:+.3g} {bounds(gain['ci_low'][1], gain['ci_high'][1])}",
        *(
            f"  {task}: {per_task['mean'][1][i]:+.3g} {bounds(per_task['ci_low'][1][i], per_task['ci_high'][1][i])}"
            for i, task in enumerate(report["tasks"])
        ),
        f"worst task after 2 steps: {report['worst_task']}",
    ]


def test_a_memory_is_judged_by_its_last_trajectory() -> None:
    report = {**finite(), "unit": "trajectories"}
    gain, per_task = report["gain"], report["per_task_gain"]
    expected = [line for line in report_lines(report) if line.startswith(("paired gain", "  Direction"))]
    interval = bounds(gain["ci_low"][2], gain["ci_high"][2])
    assert expected[0] == f"paired gain of the last trajectory over the first: {gain['mean'][2]:+.3g} {interval}"
    assert expected[1].startswith(f"  Direction(sign=1): {per_task['mean'][2][0]:+.3g} [")
    (shots,) = (line for line in report_lines({**report, "unit": "shots"}) if line.startswith("paired gain"))
    assert shots.startswith("paired gain of step 2 over step 0: ")


def test_an_infinite_family_says_what_its_splits_are() -> None:
    report = infinite()
    lines = [*report_lines(report)]
    assert lines[0] == ("adaptation curve: mse after 0..2 gradient steps on 6 test tasks (splits: same distribution)")
    assert len(cells(lines[1])) == 6
    gain = report["gain"]
    assert lines[5:] == [
        f"paired gain of step 1 over step 0: {gain['mean'][1]:+.3g} {bounds(gain['ci_low'][1], gain['ci_high'][1])}"
    ]


@pytest.mark.parametrize("report", [finite(), infinite()])
def test_success_is_a_column_where_it_is_known(report: dict[str, Any]) -> None:
    rates = {"success": [0.0, 0.25, 1.0], "success_ci_low": [0.0, 0.1, 1.0], "success_ci_high": [0.0, 0.5, 1.0]}
    lines, plain = ([*report_lines(known)] for known in (report | rates, report))
    assert cells(lines[1])[6] == "success"
    expected = ["0.000 [0.000, 0.000]", "0.250 [0.100, 0.500]", "1.000 [1.000, 1.000]"]
    assert [cells(line)[6] for line in lines[2:5]] == expected
    assert [cells(line)[:6] + cells(line)[7:] for line in lines[1:5]] == [cells(line) for line in plain[1:5]]


def test_many_tasks_get_no_column_each_but_a_line_for_their_gain() -> None:
    tasks = [Direction(i) for i in range(9)]
    lines = [*report_lines(finite(2, *tasks))]
    assert len(cells(lines[1])) == 6
    assert [line.split(":")[0].strip() for line in lines[6:15]] == [str(task) for task in tasks]


@pytest.mark.parametrize("report", [finite(0), infinite(0)])
def test_without_adaptation_there_is_one_row_and_no_gain(report: dict[str, Any]) -> None:
    lines = [*report_lines(report)]
    assert "after 0..0 gradient steps" in lines[0]
    assert len(lines) == 3
    assert cells(lines[2])[2] == number(report["mean"][0])


def test_the_controls_are_a_table_adapted_on_by_scored_on() -> None:
    report = finite()
    plain = [*report_lines(report)]
    lines = [*report_lines({**report, "cross_adaptation": controls(FORWARD, BACK)})]
    assert lines[: len(plain)] == plain
    assert [cells(line) for line in lines[len(plain) :]] == [
        ["cross-adaptation after 1 step(s), return (row: adapted on, column: scored on):"],
        ["Direction(sign=1)", "Direction(sign=-1)"],
        ["Direction(sign=1)", "1.000", "1.125"],
        ["Direction(sign=-1)", "2.000", "2.125"],
        ["zero-reward support", "-20.0", "-21.0"],
        ["before adaptation", "0.500", "1.500"],
    ]


def test_tasks_with_long_names_are_numbered() -> None:
    tasks = [Long((0.1, 0.2, 0.3)), Long((0.4, 0.5, 0.6))]
    lines = [*report_lines({**infinite(), "cross_adaptation": controls(*tasks)})]
    assert [cells(line) for line in lines[-7:]] == [
        ["task 1: Long(probabilities=(0.1, 0.2, 0.3))"],
        ["task 2: Long(probabilities=(0.4, 0.5, 0.6))"],
        ["task 1", "task 2"],
        ["task 1", "1.000", "1.125"],
        ["task 2", "2.000", "2.125"],
        ["zero-reward support", "-20.0", "-21.0"],
        ["before adaptation", "0.500", "1.500"],
    ]
