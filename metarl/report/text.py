"""An adaptation report as text: what `metarl train` and `metarl evaluate` print."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from metarl.core.schema import Controls, Family, Report

MAX_NAMED_TASKS = 8
MAX_NAME_LENGTH = 24


def endpoints(unit: str) -> tuple[str, str]:
    """Names of the first and the last point of an adaptation curve. A memory agent adapts from its first step on."""
    if unit == "trajectories":
        return "first trajectory", "last trajectory"
    return "before adaptation", "after adaptation"


def report_lines(report: Report) -> Iterator[str]:
    """The content of `adaptation.json` as lines of text."""
    finite = report["num_replicates"] > 1
    if "trained_on" in report:
        yield _transfer(report["trained_on"], report["evaluated_on"])
    if "step_scale" in report:
        yield f"step size: {report['step_scale']:g} times the run's own, the best on validation tasks"
    yield _headline(report, finite)
    spent = "env steps" if report["score"] == "return" else "examples"
    header = ["step", spent, "mean", "95 % interval", "IQM", "worst decile"]
    rows = [
        [
            str(step),
            f"{report['env_steps'][k]:.0f}",
            _number(report["mean"][k]),
            _interval(report["ci_low"][k], report["ci_high"][k]),
            _number(report["iqm"][k]),
            _number(report["worst_decile"][k]),
        ]
        for k, step in enumerate(report["steps"])
    ]
    if "success" in report:
        header.append("success")
        for k, row in enumerate(rows):
            interval = _interval(report["success_ci_low"][k], report["success_ci_high"][k])
            row.append(f"{_number(report['success'][k])} {interval}")
    if finite and report["num_tasks"] <= MAX_NAMED_TASKS:
        names, legend = _short_names(report["tasks"])
        yield from legend
        for i, name in enumerate(names):
            header.append(name)
            for k, row in enumerate(rows):
                interval = _interval(report["per_task_ci_low"][k][i], report["per_task_ci_high"][k][i])
                row.append(f"{_number(report['per_task'][k][i])} {interval}")
    yield from _table(header, rows)
    yield from _gains(report, finite)
    if "baseline" in report:
        baseline = report["baseline"]
        interval = _interval(baseline["ci_low"], baseline["ci_high"])
        yield f"{baseline['name']} on the same episodes: {report['score']} {_number(baseline['mean'])} {interval}"
    if "cross_adaptation" in report:
        yield from _controls(report["cross_adaptation"], report["score"], endpoints(report["unit"])[0])


def _headline(report: Report, finite: bool) -> str:
    what = f"adaptation curve: {report['score']} after 0..{report['steps'][-1]} {report['unit']}"
    stated = [report["protocol"]] if report.get("protocol") else []
    stated += [f"{name} = {value}" for name, value in report.get("settings", {}).items()]
    if stated:
        what = f"{what} ({', '.join(stated)})"
    if finite:
        identical = "trained and tested on the same tasks: adaptation, not generalisation"
        splits = identical if report["splits"] == "identical" else f"splits: {report['splits']}"
        return (
            f"{what}, all {report['num_tasks']} tasks of a finite family, {report['num_replicates']} replicates each "
            f"({splits})"
        )
    return f"{what} on {report['num_tasks']} test tasks (splits: {report['splits']})"


def _transfer(trained: Family, evaluated: Family) -> str:
    """The families of training and evaluation. If they are the same, only settings that differ are listed."""
    same = trained["task_name"] == evaluated["task_name"]
    texts = []
    for one, other in ((trained, evaluated), (evaluated, trained)):
        settings = {name: value for name, value in one["task"].items() if not same or value != other["task"][name]}
        listed = ", ".join(f"{name} = {value}" for name, value in settings.items() if same or value is not None)
        texts.append(f"{one['task_name']} ({listed})" if listed else one["task_name"])
    return f"trained on {texts[0]}, evaluated on {texts[1]}"


def _gains(report: Report, finite: bool) -> Iterator[str]:
    if len(report["steps"]) < 2:
        return
    gain, step, what = report["gain"], 1, "step 1 over step 0"
    if report["unit"] != "gradient steps":  # RL2 and metric learners use all experience up to the last step
        step = len(report["steps"]) - 1
        what = f"step {report['steps'][step]} over step 0"
    if report["unit"] == "trajectories":
        what = "the last trajectory over the first"
    yield f"paired gain of {what}: {_gain(gain['mean'][step], gain['ci_low'][step], gain['ci_high'][step])}"
    if finite:
        by_task = report["per_task_gain"]
        for i, task in enumerate(report["tasks"]):
            mean, low, high = by_task["mean"][step][i], by_task["ci_low"][step][i], by_task["ci_high"][step][i]
            yield f"  {task}: {_gain(mean, low, high)}"
        yield f"worst task after {report['steps'][-1]} steps: {report['worst_task']}"


def _controls(controls: Controls, score: str, first: str) -> Iterator[str]:
    steps = controls["num_adaptation_steps"]
    yield f"cross-adaptation after {steps} step(s), {score} (row: adapted on, column: scored on):"
    names, legend = _short_names(controls["tasks"])
    yield from legend
    rows = [[name, *(_number(value) for value in row)] for name, row in zip(names, controls["matrix"], strict=True)]
    rows.append(["zero-reward support", *(_number(value) for value in controls["zero_reward"])])
    rows.append([first, *(_number(value) for value in controls["before"])])
    yield from _table(["", *names], rows)


def _short_names(names: Sequence[str]) -> tuple[Sequence[str], list[str]]:
    """Names that fit into a table's head. Long names become numbers; the lines then explain the numbers."""
    if max(len(name) for name in names) <= MAX_NAME_LENGTH:
        return names, []
    numbers = [f"task {number}" for number in range(1, len(names) + 1)]
    return numbers, [f"  {number}: {name}" for number, name in zip(numbers, names, strict=True)]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    for row in (header, *rows):
        yield "  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _interval(low: float, high: float) -> str:
    return f"[{_number(low)}, {_number(high)}]"


def _gain(mean: float, low: float, high: float) -> str:
    return f"{mean:+.3g} {_interval(low, high)}"
