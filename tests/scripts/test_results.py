"""The results table: cells are what their runs did, and the README's tables are what the cells hold."""

from __future__ import annotations

import importlib
import json
import re
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metarl.core.errors import InputError, RunError
from metarl.core.seeds import EVALUATION_ITERATION, Purpose, generator
from metarl.core.statistics import crossed_interval
from metarl.core.tags import POST_ADAPT
from metarl.runs import registry

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a script, or runs it with arguments."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))

    def run(name: str, *arguments: Any) -> Any:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        module = importlib.import_module(name)
        return module.main() if arguments else module

    return run


def cell(column: str, scores: list[float], *, family: str = "point-nav", seed: int = 0, **more: Any) -> dict[str, Any]:
    """Two test tasks that score one below and one above `scores`."""
    return {
        "column": column,
        "label": column,
        "task": family,
        "seed": seed,
        "trained_on_env_steps": 1000,
        "step_scale": 1.0,
        "budgets": [0, 1, 2, 20, 40, 60],
        "env_steps": [0.0, 100.0, 200.0, 2000.0, 4000.0, 6000.0],
        "values": [[score - 1.0, score + 1.0] for score in scores],
        "tasks": ["Direction(sign=-1)", "Direction(sign=1)"],
        "controls": None,
        "flat": True,
        **more,
    }


def cells_of(*cells: dict[str, Any]) -> Any:
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for one in cells:
        found.setdefault((one["task"], one["column"]), []).append(one)
    return found


EXAMPLE = cells_of(
    cell("task-blind", [0.0] * 6),
    cell("oracle", [10.0] * 6, flat=False),
    cell("maml", [2.0, 3.0, 4.0, 6.0, 7.0, 8.0]),
    cell("maml", [2.0, 3.0, 4.0, 8.0, 9.0, 10.0], seed=1),
    cell("rl2", [5.0] * 6),
    cell("cavia", [5.0] * 6, family="half-cheetah-dir"),
)


def test_committed_cells_list_the_tasks_that_they_were_measured_on(script: Any) -> None:
    """Every family's test tasks, drawn anew from the evaluation's seed as `evaluate` draws them."""
    reproduce, table = script("reproduce"), script("results_table")
    cells = table.read_cells(ROOT / "results" / "cells")
    assert len(cells) > 60
    drawn = {}
    for family in sorted({family for family, _ in cells}):
        distribution = reproduce.cell_config(family, "maml", 0).task
        rng = generator(table.EVALUATION_SEED, EVALUATION_ITERATION, Purpose.EVALUATION_TASKS)
        tasks = distribution.all_tasks() or distribution.sample(reproduce.TASKS, rng, split="test")
        drawn[family] = list(map(str, tasks))
    for (family, column), group in cells.items():
        tasks = drawn[family]
        for cell in group:
            assert cell["tasks"] == tasks, (family, column, cell["seed"])
            assert len(cell["values"][0]) == max(1, reproduce.TASKS // len(tasks)) * len(tasks)


def test_the_readmes_row_of_the_papers_preset_is_what_its_three_runs_hold() -> None:
    reports = [
        json.loads((ROOT / "results" / f"point-nav-paper-seed{i}" / "adaptation.json").read_text()) for i in range(3)
    ]
    assert reports[0]["tasks"] == reports[1]["tasks"] == reports[2]["tasks"]
    values = np.array([report["per_task"] for report in reports]).swapaxes(0, 1)[..., None]
    bounds = zip(values.mean((1, 2, 3)), *crossed_interval(values, np.random.default_rng(0)), strict=True)
    row = " | ".join(f"{mean:.1f} [{low:.1f}, {high:.1f}]" for mean, low, high in bounds)
    assert f"| mean of the seeds | {row} |" in (ROOT / "README.md").read_text()


def test_differences_are_paired_by_seed_and_task(script: Any) -> None:
    table = script("results_table")
    example = cells_of(
        *(cell("maml", [10.0 * seed] * 6, seed=seed) for seed in (0, 1, 2)),
        *(cell("rl2", [10.0 * seed + 3.0] * 6, seed=seed) for seed in (2, 1, 3)),
        cell("promp", [1.0] * 6, tasks=["elsewhere", "too"]),
    )
    mean, low, high = table.difference(example["point-nav", "rl2"], example["point-nav", "maml"])
    assert (mean[3], low[3], high[3]) == pytest.approx((3.0, 3.0, 3.0))
    assert table.difference(example["point-nav", "promp"], example["point-nav", "maml"]) is None
    lines = table.tables(example)["differences"].splitlines()
    assert lines[0] == "| difference | after | `point-nav` |"
    assert lines[2:] == [f"| `rl2` minus `maml` | {budget} | 3.0 [3.0, 3.0] |" for budget in (20, 60)]


def test_the_committed_coverage_is_that_of_the_committed_cells(
    script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script("simulate_coverage"), "NUM_RESAMPLES", 20)
    assert script("simulate_coverage", "--data-sets", 20, "--json", tmp_path / "coverage.json") == 0
    assert "crossed_interval" in capsys.readouterr().out
    rows = json.loads((ROOT / "results" / "coverage.json").read_text())["rows"]
    quick = json.loads((tmp_path / "coverage.json").read_text())["rows"]
    named = ("family", "of", "effects", "tables")
    assert [[row[name] for name in named] for row in quick] == [[row[name] for name in named] for row in rows]
    for few, row in zip(quick, rows, strict=True):
        found = row["crossed_interval"]
        assert 0.935 < found["mean"] < 0.97
        assert found["least"] > 0.88
        assert few["crossed_interval"]["mean"] == pytest.approx(found["mean"], abs=0.02)
        assert row["seeds, then tasks within each, resampled"]["mean"] < found["mean"]


def test_shares_lie_between_the_floor_and_the_ceiling(script: Any) -> None:
    table = script("results_table").tables(EXAMPLE)["point-nav"].splitlines()
    rows = {re.sub("[`‡]", "", line.split(" | ")[0].strip("| ")): line for line in table}
    assert re.search(r"\| 7\.0 \[\S+ \S+ \| 8\.0 \[\S+ \S+ \| 9\.0 \[\S+ \S+ \| 70 % \| 90 % \|$", rows["maml"])
    assert rows["maml"].startswith("| `maml` | 2 | 2.0 ")
    assert "‡" in rows["oracle"]  # it was still learning
    assert rows["cavia"].startswith("| `cavia` | not run |")
    assert len({line.count("|") for line in table}) == 1


def test_the_tables_find_a_new_agent_and_a_new_family(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry line and a cell are enough; the registry's line alone changes no table."""
    tables = script("results_table").tables
    before = tables(EXAMPLE)
    monkeypatch.setitem(registry.AGENTS, "newcomer", "metarl.agents.maml:MAML")
    monkeypatch.setitem(registry.TASKS, "new-land", "metarl.envs.bandit:Bandit")
    assert tables(EXAMPLE) == before
    cells = EXAMPLE | cells_of(cell("newcomer", [9.0] * 6), cell("maml", [1.0] * 6, family="new-land"))
    after = tables(cells)
    assert "| `newcomer` | 1 | 9.0 [" in after["point-nav"]
    assert "| `maml` | 1 | 1.0 [" in after["new-land"]
    assert "| `newcomer` | 9.0 |" in after["seeds"]
    assert after["seeds"].splitlines()[0].endswith(" `new-land` |")
    assert "| `newcomer` minus `maml` | 20 | 3.0 [" in after["differences"]
    assert "`oracle` minus" not in after["differences"]
    assert "newcomer" in script("reproduce").results_table.all_columns()


def test_marks_and_impossible_shares(script: Any) -> None:
    tried = {"0.25": 1.0, "0.5": 2.0, "1.0": 3.0}
    example = cells_of(
        cell("task-blind", [0.0] * 6),
        cell("oracle", [-1.0] * 6),
        cell("maml", [1.0] * 6, validation=tried, step_scale=1.0),
        cell("promp", [1.0] * 6, validation=tried, step_scale=0.5),
        cell("anil", [1.0] * 6, validation=tried, step_scale=0.25),
        cell("expert", [1.0] * 6, curve={"mean": [1.0, 2.0, 3.0, 4.0, 7.0]}),
    )
    tables = script("results_table").tables(example)
    rows = {line.split("`")[1]: line for line in tables["point-nav"].splitlines()[2:]}
    assert "§" in rows["maml"]  # the largest that was tried
    assert "§" in rows["anil"]  # the smallest
    assert "§" not in rows["promp"]
    assert rows["maml"].endswith("| none | none |")  # the ceiling lies below the floor
    assert "7.0 after 4 iterations" in rows["expert"]
    assert tables["paper"].splitlines()[2].count("not run") == 2


def test_a_mark_is_missing_only_where_no_seed_has_it_and_the_longer_oracle_is_the_ceiling(script: Any) -> None:
    tried = {"0.25": 1.0, "1.0": 3.0, "4.0": 3.0}
    example = cells_of(
        cell("task-blind", [0.0] * 6),
        cell("oracle", [5.0] * 6),
        cell("oracle", [5.0] * 6, seed=1, flat=False),
        cell("oracle-long", [10.0] * 6, trained_on_env_steps=12e6),
        cell("maml", [6.0] * 6, validation=tried),
        cell("maml", [6.0] * 6, seed=1, validation=tried, step_scale=4.0),
    )
    rows = {
        line.split("|")[1].strip(): line for line in script("results_table").tables(example)["point-nav"].splitlines()
    }
    assert rows["`maml`§"].endswith("| 60 % | 60 % |")
    assert "`oracle`‡" in rows


def test_cells_are_read_in_the_order_of_their_seeds(script: Any, tmp_path: Path) -> None:
    (tmp_path / "point-nav").mkdir()
    for seed in (10, 9):
        (tmp_path / "point-nav" / f"maml-seed{seed}.json").write_text(json.dumps(cell("maml", [1.0] * 6, seed=seed)))
    found = script("results_table").read_cells(tmp_path)
    assert [one["seed"] for one in found["point-nav", "maml"]] == [9, 10]


def test_the_papers_own_form_beside_its_figures(script: Any) -> None:
    """The shares that the reference gives: 75 and 98 %, 68 and 92, 70 and 74, 86 and 92, 95 and 95."""
    table = script("results_table").tables(EXAMPLE)["paper"].splitlines()[2:]
    shares = {line.split("|")[1].strip(" `"): re.findall(r"\d+ %", line) for line in table}
    assert shares["point-nav"] == ["75 %", "62 %", "98 %", "88 %"]  # here: (7 - 2) / 8 and (9 - 2) / 8
    assert shares["half-cheetah-vel"] == ["68 %", "92 %"]
    assert shares["half-cheetah-dir"] == ["70 %", "74 %"]
    assert shares["ant-vel"] == ["86 %", "92 %"]
    assert shares["ant-dir"] == ["95 %", "95 %"]
    assert all(line.count("not run") == 2 for line in table[1:])


def test_every_seed_is_shown(script: Any) -> None:
    seeds = script("results_table").tables(EXAMPLE)["seeds"]
    assert "| `maml` | 6.0, 8.0 | not run |" in seeds


def test_tables_stand_between_their_markers(script: Any) -> None:
    text = "before\n<!-- table point-nav -->\nold\n<!-- end -->\nafter <!-- table seeds -->"
    filled = script("results_table").filled(text, EXAMPLE)
    assert filled.startswith("before\n<!-- table point-nav -->\n| agent |")
    assert filled.endswith("|\n<!-- end -->\nafter <!-- table seeds -->")
    assert "old" not in filled
    assert script("results_table").filled(filled, EXAMPLE) == filled


def test_the_readmes_tables_are_what_the_cells_hold(script: Any) -> None:
    table = script("results_table")
    text = (ROOT / "README.md").read_text()
    assert text.count("<!-- table ") >= 5
    assert table.filled(text, table.read_cells(ROOT / "results" / "cells")) == text


def test_what_the_documents_show_is_there() -> None:
    for document in (ROOT / "README.md", ROOT / "results" / "README.md", ROOT / "CONTRIBUTING.md"):
        text = document.read_text()
        links = [*re.findall(r"\]\(([^)#]+?)\)", text), *re.findall(r'src="([^"]+)"', text)]
        assert [link for link in links if "://" not in link and not (document.parent / link).exists()] == []
        assert "@@" not in text


def test_committed_cells_are_whole() -> None:
    paths = list((ROOT / "results" / "cells").glob("*/*.json"))
    assert paths
    for path in paths:
        one = json.loads(path.read_text())
        name = f"{one['column'].replace(':', '.')}-seed{one['seed']}"
        assert (path.parent.name, path.stem) == (one["task"], name)
        assert np.isfinite(one["values"]).all()
        assert np.shape(one["values"])[0] == len(one["budgets"]) == len(one["env_steps"]) == 6
        assert one["command"]


def test_a_learning_curve_is_flat_once_it_no_longer_rises(script: Any) -> None:
    is_flat = script("reproduce").is_flat
    noise = np.random.default_rng(0).normal(0.0, 1.0, 90)
    assert is_flat(list(np.minimum(np.arange(90.0), 40.0) + noise))
    assert not is_flat(list(np.arange(90.0) + noise))
    assert is_flat([-1.0, 1.0] * 15)  # rises by more than a twentieth of all, but within its error
    assert is_flat([1.0] * 14) is None  # four points in its last third
    assert is_flat([1.0] * 15)


def test_a_cell_takes_as_many_iterations_as_its_steps_allow(script: Any) -> None:
    config_of = script("reproduce").cell_config
    for column, iterations in (("maml", 50), ("rl2", 500), ("reptile:shuffled", 20), ("oracle", 200), ("expert", 1)):
        config = config_of("half-cheetah-dir", column, 3)
        assert config.trainer.iterations == iterations
        assert config.trainer.seed == 3
        if hasattr(config.agent, "schedule_iterations"):
            assert config.agent.schedule_iterations == iterations
        assert config.evaluation.every == 0
        assert config.evaluation.num_adaptation_steps == (100 if column == "expert" else 3)
    assert config_of("half-cheetah-dir", "oracle-long", 0).trainer.iterations == 600
    assert config_of("half-cheetah-dir", "oracle-long", 0).trainer.max_minutes is None
    assert config_of("half-cheetah-dir", "maml", 0).trainer.max_minutes == 45.0
    assert config_of("half-cheetah-dir", "maml", 0, minutes=None, threads=3).trainer.max_minutes is None
    assert config_of("half-cheetah-dir", "maml", 0, threads=3).trainer.num_threads == 3
    with pytest.raises(InputError, match="'mamal'"):
        config_of("half-cheetah-dir", "mamal", 0)


def test_a_cell_is_measured_once(script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["grid-nav", "--agents", "maml", "rl2", "random-init", "--seeds", 4, "--steps", 30_000, "--tasks", 21]
    arguments += ["--runs", tmp_path / "runs", "--cells", tmp_path / "cells", "--threads", 1]
    assert script("reproduce", *arguments) == 0
    path = tmp_path / "cells" / "grid-nav" / "maml-seed4.json"
    one = json.loads(path.read_text())
    assert one["seed"] == 4
    assert one["trained_on_env_steps"] == 24_000  # two iterations of 20 tasks, 20 trajectories, 15 steps, twice
    assert set(one["validation"]) == {"0.25", "0.5", "1.0", "2.0", "4.0", "8.0"}
    assert one["validation"][str(one["step_scale"])] == max(one["validation"].values())
    assert np.shape(one["values"]) == (6, 21)
    assert one["env_steps"] == [0.0, 15.0, 30.0, 300.0, 600.0, 900.0]
    assert one["command"] == "python scripts/reproduce.py grid-nav --agents maml --seeds 4 --steps 30000 --tasks 21"
    assert len(one["paths"]["tasks"][0]["ways"]) == 2
    assert json.loads((tmp_path / "cells" / "grid-nav" / "rl2-seed4.json").read_text())["validation"] == {}
    assert capsys.readouterr().out.count("is there") == 0
    assert script("reproduce", *arguments) == 0
    assert capsys.readouterr().out.count("is there") == 3
    arguments[arguments.index(30_000)] = 60_000
    assert script("reproduce", *arguments, "--again") == 2  # the run that is there was half as long
    assert "as in the run" in capsys.readouterr().err
    assert json.loads(path.read_text()) == one
    assert script("reproduce", "--list", "--cells", tmp_path / "cells") == 0
    assert "| `maml`" in capsys.readouterr().out


def test_the_longer_oracle_goes_on_until_its_curve_is_flat(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script("reproduce"), "is_flat", lambda scores: len(scores) >= 5)
    arguments = ["grid-nav", "--agents", "oracle-long", "--seeds", 0, "--steps", 3_000, "--tasks", 21, "--threads", 1]
    arguments += ["--runs", tmp_path / "runs", "--cells", tmp_path / "cells"]
    assert script("reproduce", *arguments) == 0
    path = tmp_path / "cells" / "grid-nav" / "oracle-long-seed0.json"
    one = json.loads(path.read_text())
    assert one["trained_on_env_steps"] == 5 * 3_000  # 10 tasks, 20 trajectories, 15 steps
    assert len(one["learning_curve"]) == 5
    assert one["flat"] is True
    assert script("reproduce", *arguments, "--again") == 0  # nothing more to train
    (tmp_path / "runs" / "grid-nav" / "oracle-long-seed0" / "adaptation.json").unlink()  # stopped before its end
    assert script("reproduce", *arguments, "--again") == 0
    assert json.loads(path.read_text()) | {"minutes": 0.0} == one | {"minutes": 0.0}


@pytest.mark.parametrize(("flat_after", "lengths"), [(3, [3]), (4, [3, 4]), (100, [3, 4, 5, 6, 7, 8]), (None, [3])])
def test_the_longer_oracle_has_at_most_eight_budgets(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flat_after: int | None, lengths: list[int]
) -> None:
    reproduce = script("reproduce")
    asked: list[int] = []

    def trained(config: Any, run_dir: Path) -> Any:
        assert not (run_dir / "adaptation.json").exists()
        (run_dir / "adaptation.json").touch()
        asked.append(config.trainer.iterations)
        return config

    monkeypatch.setattr(reproduce, "trained", trained)
    monkeypatch.setattr(reproduce, "learning_curve", lambda _: [(0, 0.0)] * asked[-1])
    monkeypatch.setattr(reproduce, "is_flat", lambda scores: flat_after and len(scores) >= flat_after)
    config = reproduce.cell_config("grid-nav", "oracle-long", 0, steps=3_000)
    assert reproduce.trained_until_flat(config, tmp_path).trainer.iterations == lengths[-1]
    assert asked == lengths


def test_a_longer_oracle_says_how_long_it_was_and_where_none_is_needed(script: Any) -> None:
    def rows(*cells: dict[str, Any]) -> tuple[str, str]:
        tables = script("results_table").tables(cells_of(*cells))
        return tuple(
            next(line for line in tables[name].splitlines() if "until its curve is flat" in line)
            for name in ("point-nav", "seeds")
        )

    family, seeds = rows(cell("oracle", [5.0] * 6), cell("oracle", [5.0] * 6, seed=1))
    assert family.startswith("| `oracle`, until its curve is flat | not needed |")
    assert "| not needed | not run |" in seeds
    elsewhere = cell("oracle", [5.0] * 6, family="half-cheetah-dir", flat=False)
    for short in ([elsewhere], [cell("oracle", [5.0] * 6), cell("oracle", [5.0] * 6, seed=1, flat=False)]):
        family, seeds = rows(cell("maml", [5.0] * 6), *short)
        assert "| not run |" in family
        assert "not needed" not in seeds
    long = [cell("oracle-long", [5.0] * 6, seed=i, trained_on_env_steps=n) for i, n in enumerate((16e6, 12.01e6, 16e6))]
    family, _ = rows(*long)
    assert family.startswith("| `oracle`, until its curve is flat (12, 16 million steps) | 3 | 5.0 [")


def test_a_signal_ends_the_whole_table_with_its_exit_code(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reproduce = script("reproduce")
    resumed = []

    def stopped(config: Any, run_dir: Path, *, resume: bool, callbacks: Any) -> None:
        resumed.append(resume)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(reproduce, "train", stopped)
    for checkpoints in ({}, {3: tmp_path}):
        monkeypatch.setattr(reproduce, "list_checkpoints", lambda _, found=checkpoints: found)
        with pytest.raises(SystemExit) as stop:
            reproduce.trained(reproduce.cell_config("point-nav", "maml", 0), tmp_path)
        assert stop.value.code == 143
    assert resumed == [False, True]


@pytest.mark.parametrize(
    ("flags", "iterations", "minutes"),
    [("", 50, 45.0), ("--full", 250, None), ("--steps 800000 --minutes 2.5", 10, 2.5)],
)
def test_a_cell_keeps_the_command_that_makes_it(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, iterations: int, minutes: float | None
) -> None:
    made: dict[str, Any] = {}

    def run_cell(config: Any, run_dir: Path, *, num_tasks: int, command: str, until_flat: bool) -> dict[str, Any]:
        made.update(config=config, command=command)
        return cell("maml", [1.0] * 6)

    monkeypatch.setattr(script("reproduce"), "run_cell", run_cell)
    asked = ["half-cheetah-dir", "--agents", "maml", "--seeds", "7", *flags.split()]
    assert script("reproduce", *asked, "--cells", tmp_path) == 0
    assert made["command"] == " ".join(["python scripts/reproduce.py", *asked])
    assert (made["config"].trainer.iterations, made["config"].trainer.max_minutes) == (iterations, minutes)


def test_without_agents_a_family_has_every_column_that_it_has_a_preset_for(
    script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []
    reproduce = script("reproduce")
    monkeypatch.setattr(reproduce, "reproduce", lambda family, column, seed, parsed: asked.append((column, seed)))
    columns = script("results_table").all_columns()
    assert script("reproduce", "grid-nav", "--seeds", "2", "3") == 0
    assert asked == [(column, seed) for seed in (2, 3) for column in columns]
    asked.clear()
    assert script("reproduce", "point-maze-layout", "--seeds", "1") == 0
    assert asked == [(column, 1) for column in columns if ":" not in column]


def test_a_run_that_fails_ends_the_table_in_one_line(
    script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(*_: Any) -> None:
        raise RunError("five updates in a row were undone")

    monkeypatch.setattr(script("reproduce"), "reproduce", failing)
    assert script("reproduce", "grid-nav", "--seeds", "2") == 1
    assert capsys.readouterr().err == "five updates in a row were undone\n"


def test_a_long_learning_curve_is_thinned_and_judged_whole(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reproduce = script("reproduce")
    rows = [{"env_steps": 10 * i, "wall_s": 3.0 * i, POST_ADAPT: min(i, 120.0)} for i in range(1, 201)]
    report = dict.fromkeys(("unit", "env_steps", "mean", "ci_low", "ci_high", "per_task", "tasks"), 0)
    config = reproduce.cell_config("point-nav", "promp", 0)
    replaced = {"trained": config, "read_metrics": rows, "read_report": report}
    for name, value in replaced.items():
        monkeypatch.setattr(reproduce, name, lambda *_, value=value: value)
    monkeypatch.setattr(reproduce.compare_agents, "measure", lambda *_: {})
    made = reproduce.run_cell(config, tmp_path, num_tasks=2, command="that", until_flat=False)
    assert made["learning_curve"] == [(10 * i, min(i, 120.0)) for i in range(1, 201, 5)]
    assert made["flat"] is True
    assert made["minutes"] == 10.0
    assert made["command"] == "that"


def test_the_readme_and_its_pictures_are_made_from_cells(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "README.md").write_text("<!-- table point-nav -->\n<!-- end -->\n")
    (tmp_path / "results" / "cells" / "point-nav").mkdir(parents=True)
    (tmp_path / "results" / "cells" / "point-nav" / "maml-seed0.json").write_text(json.dumps(cell("maml", [3.0] * 6)))
    monkeypatch.setattr(script("reproduce"), "ROOT", tmp_path)
    assert script("reproduce", "--readme", "--cells", tmp_path / "results" / "cells") == 0
    assert "| `maml` | 1 | 3.0 [" in (tmp_path / "README.md").read_text()
    assert [path.name for path in (tmp_path / "results").glob("*.png")] == ["point-nav-agents.png"]
    assert "| `maml` | 1 | 3.0 [" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["half-cheetah-dri"], "half-cheetah-dir"),
        (["point-nav", "--agents", "mamal"], "maml"),
        (["point-nav", "--agents", "maml:quik"], "quick"),
        (["point-nav", "--steps", "0"], "--steps"),
        (["point-nav", "--tasks", "1"], "--tasks"),
        (["sinusoid", "--agents", "maml"], "family"),
        (["point-nav", "--agents", "maml", "promp:fast"], "fast"),
        (["--seeds", "1"], "family"),
    ],
)
def test_bad_input_is_one_line(
    script: Any, arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script("reproduce", *arguments, "--runs", tmp_path, "--cells", tmp_path) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert said in lines[0]
    assert not list(tmp_path.iterdir())


def test_figure_one_draws_what_the_cells_hold(script: Any) -> None:
    scores = [-40.0, -30.0, -20.0, -11.0, -6.0, -5.0]
    cross = {"matrix": [[5.0, -4.0], [-3.0, 6.0]], "tasks": ["Direction(sign=-1)", "Direction(sign=1)"]}
    way = [[[[0.0, 0.0], [0.1, 0.2]]], [[[0.0, 0.0], [0.3, 0.2]]]]
    scene = {"goal": [0.3, 0.2]}
    curve = {name: [-40.0, -11.0, -6.0, -5.0] for name in ("mean", "ci_low", "ci_high")}
    cells = cells_of(
        cell("maml:paper", scores, curve=curve, paths={"tasks": [{"ways": way, "scene": scene}]}),
        cell("oracle", [-2.0] * 6),
        cell("maml", scores, family="half-cheetah-dir", controls=cross),
    )
    panel = {
        "num_arms": 5,
        "num_pulls": 100,
        "learned": ["RL² (GRU)"],
        "players": {
            name: {"regret_per_pull": [0.3] * 100}
            for name in ("Thompson", "tuned UCB", "greedy", "Gittins index", "RL² (GRU)")
        },
    }
    figure = script("figure_one").draw(cells, [panel])
    navigation, bandit, cheetah = figure.axes
    lines = {line.get_label(): line for line in navigation.lines}
    assert list(lines["MAML"].get_ydata()) == curve["mean"]
    assert list(lines["oracle"].get_ydata()) == [-2.0] * 4
    assert "random init" not in lines  # not run
    assert {"RL² (GRU)", "Thompson"} <= {line.get_label() for line in bandit.lines}
    forward, backward = (list(line.get_ydata()) for line in cheetah.lines[:2])
    assert forward == [score + 1.0 for score in scores]
    assert backward == [score - 1.0 for score in scores]
    texts = [text.get_text() for text in cheetah.child_axes[0].texts]
    assert texts == ["5", "-4", "-3", "6"]


def test_figure_one_and_its_film_are_one_command(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reproduce = script("reproduce")
    asked: list[tuple[str, str, int]] = []
    filmed: list[Any] = []
    monkeypatch.setattr(reproduce, "ROOT", tmp_path)
    monkeypatch.setattr(
        reproduce, "reproduce", lambda family, column, seed, parsed: asked.append((family, column, parsed.steps))
    )
    monkeypatch.setattr(reproduce, "load_trainer", lambda run_dir: run_dir)
    monkeypatch.setattr(reproduce, "make_film", lambda trainer, settings: (trainer, settings))
    monkeypatch.setattr(reproduce, "save_film", lambda film, path: filmed.append((film, path)))
    (tmp_path / "results").mkdir()
    arguments = ["--figure", "--runs", tmp_path / "runs", "--cells", ROOT / "results" / "cells"]
    assert script("reproduce", *arguments) == 0
    assert asked[0] == ("point-nav", "maml:paper", 8_000_000)
    assert ("half-cheetah-dir", "maml", 4_000_000) in asked
    assert len(asked) == 8
    assert (tmp_path / "results" / "figure-1.png").is_file()
    assert "not drawn anew" in capsys.readouterr().out
    assert not filmed
    run_dir = tmp_path / "runs" / "half-cheetah-dir" / "maml-seed0"
    run_dir.mkdir(parents=True)
    (run_dir / "adaptation.json").touch()
    assert script("reproduce", *arguments) == 0
    film = tmp_path / "results" / "half-cheetah-dir-adaptation.webp"
    assert filmed == [((run_dir, reproduce.FILM), film)]
    assert capsys.readouterr().out.splitlines()[-1] == str(film)
