"""The comparing scripts, on tiny runs: what they report is what the agents did."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metarl.cli.flags import parse_train
from metarl.core.curve import AdaptationCurve
from metarl.core.errors import InputError
from metarl.runs.load import load
from metarl.runs.train import train

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
TINY = "--iterations=1 --meta-batch-size=4 --device=cpu --trainer.num-threads=1 --evaluation.num-tasks=2"
RL2 = "--agent=rl2 --agent.hidden-size=8 --agent.num-trajectories=2"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a script, and gives it arguments."""
    monkeypatch.syspath_prepend(str(SCRIPTS))

    def run(name: str, *arguments: Any) -> Any:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        module = importlib.import_module(name)
        return module.main() if arguments else module

    return run


def trained(folder: Path, flags: str) -> Path:
    train(parse_train([*flags.split(), *TINY.split()]).config, folder)
    return folder


@pytest.fixture(scope="module")
def bandit_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    flags = f"bandit {RL2} --preset=10x5 --evaluation.num-adaptation-steps=0"
    return trained(tmp_path_factory.mktemp("bandit"), flags)


def test_bandits(bandit_run: Path, script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, picture = tmp_path / "out.json", tmp_path / "out.png"
    assert script("compare_bandits", f"mine={bandit_run}", "--episodes", 300, "--json", out, "--picture", picture) == 0
    (panel,) = json.loads(out.read_text())
    assert (panel["num_arms"], panel["num_pulls"], panel["learned"]) == (5, 10, ["mine"])
    assert panel["bound"] == 6.66
    assert picture.stat().st_size > 10_000
    printed = capsys.readouterr().out
    for name, player in panel["players"].items():
        assert name in printed
        assert player["share_of_bound"] == pytest.approx(player["return"]["mean"] / 6.65999, abs=1e-4)
        # pulls lose what their arms pay less than the best: both are expectations of the same play
        expected = 10 * 5 / 6 - sum(player["regret_per_pull"])
        assert player["return"]["mean"] == pytest.approx(expected, abs=0.5)
    assert panel["players"]["greedy"]["above_greedy"]["mean"] == 0.0


def test_a_player_remembers_as_its_learner_does(bandit_run: Path, script: Any) -> None:
    learner = load(bandit_run)
    player = script("comparing").Remembering(learner, np.random.default_rng(3))
    observations = np.zeros((6, 1))
    rng, rewards = np.random.default_rng(3), np.random.default_rng(4).random((5, 6))
    player.begin(6)
    state = learner.begin(6)
    for step in range(5):
        actions = player.act(observations)
        noise = torch.from_numpy(rng.random((6, 1), dtype=np.float32))
        with torch.no_grad():
            acted, state = learner.act(state, torch.zeros(6, 1, 1), noise)
        assert actions.tolist() == acted.actions[:, 0].tolist()
        ended = step % 2 == 1
        player.observe(actions, rewards[step], ended=ended)
        told = torch.from_numpy(rewards[step].astype(np.float32)).unsqueeze(1)
        done = torch.full((6, 1), ended)
        state = learner.observe(state, acted.actions, told, torch.zeros_like(done), done)
        state = state._replace(over=torch.zeros_like(done))
        torch.testing.assert_close(player.state.memory, state.memory)
        assert player.state.done.tolist() == [[float(ended)]] * 6


def test_tabular_mdps(script: Any, tmp_path: Path) -> None:
    flags = f"tabular-mdp {RL2} --agent.trajectories-per-trial=3 --evaluation.num-adaptation-steps=2"
    run, out = trained(tmp_path / "run", flags), tmp_path / "out.json"
    assert script("compare_tabular_mdps", f"mine={run}", "--episodes", 60, "--json", out) == 0
    result = json.loads(out.read_text())
    assert result["num_episodes"] == 3
    means = {name: player["return"]["mean"] for name, player in result["players"].items()}
    assert means["random"] < means["greedy"] < result["bound"]
    assert result["players"]["mine"]["above_bonus"]["mean"] == pytest.approx(
        means["mine"] - means["tuned bonus"], abs=1e-3
    )


def test_agents_at_equal_budgets(script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    point = "point-nav --task.horizon=3 --task.test-goals=sampled --evaluation.num-adaptation-steps=1"
    gradient = "--agent.num-trajectories=10 --agent.hidden-sizes=4"
    folders = [
        trained(tmp_path / "maml0", f"{point} {gradient} --seed=0"),
        trained(tmp_path / "maml1", f"{point} {gradient} --seed=1"),
        trained(tmp_path / "rl2", f"{point} {RL2} --agent.trajectories-per-trial=2"),
    ]
    out, picture = tmp_path / "out.json", tmp_path / "out.png"
    assert script("compare_agents", *folders, "--tasks", 3, "--json", out, "--picture", picture) == 0
    found = json.loads(out.read_text())
    maml, rl2 = found["summary"]
    assert (maml["label"], maml["seeds"], rl2["label"]) == ("maml", [0, 1], "rl2 (lstm)")
    assert maml["budgets"] == rl2["budgets"] == [0, 1, 2, 20, 40, 60]
    # horizon 3, and nothing ends before it: a trajectory is three steps on the task, for both
    assert maml["env_steps"] == rl2["env_steps"] == [0, 3, 6, 60, 120, 180]
    for row in found["summary"]:
        assert all(
            low <= mean <= high for low, mean, high in zip(row["ci_low"], row["mean"], row["ci_high"], strict=True)
        )
        assert set(row["controls"]) == {"own task", "another task", "no reward", "nothing"}
    assert maml["mean"] == pytest.approx(np.mean(maml["per_seed"], axis=0), abs=2e-3)
    first, again = picture.stat().st_size, tmp_path / "again.png"
    assert script("compare_agents", "--from", out, "--picture", again) == 0
    assert again.stat().st_size == first
    assert "maml" in capsys.readouterr().out


def measured(script: Any, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Any], list[Any]]:
    """A run's row, and each evaluation that it is made of: learner, collector, settings and curve."""
    agents = script("compare_agents")
    evaluate, asked = agents.evaluate, []

    def spy(learner: Any, collector: Any, tasks: Any, **settings: Any) -> Any:
        asked.append((learner, collector, settings, evaluate(learner, collector, tasks, **settings)))
        return asked[-1][-1]

    monkeypatch.setattr(agents, "evaluate", spy)
    return agents.measure(run_dir, 4, 7), asked


def widths_of(asked: list[Any]) -> list[tuple[int, int, int]]:
    """Of each evaluation: trajectories to learn from in a step, to be scored on, and steps."""
    found = []
    for _, collector, settings, _ in asked:
        own = (getattr(part, "__self__", collector) for part in (collector.support, collector.query))
        support, query = (part.num_trajectories for part in own)
        found.append((support, query, settings["num_steps"]))
    return found


def test_a_budget_is_learned_from_in_steps_of_the_chosen_size(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(tmp_path, "point-nav --task.horizon=3 --agent.num-trajectories=10 --agent.hidden-sizes=4")
    agents = script("compare_agents")
    chosen: dict[str, Any] = {}

    def choose(learner: Any, *_: Any, **settings: Any) -> Any:
        chosen.update(settings, learner=learner.with_step_scale(2.0))
        return chosen["learner"], {1.0: -3.0, 2.0: -1.0, 4.0: -2.0}

    monkeypatch.setattr(agents, "choose_step_scale", choose)
    config = replace(agents.load_config(run), preset="paper")
    monkeypatch.setattr(agents, "load_config", lambda _: config)
    row, asked = measured(script, run, monkeypatch)
    assert (row["label"], row["step_scale"]) == ("maml (paper)", 2.0)
    assert row["validation"] == {"1.0": -3.0, "2.0": -1.0, "4.0": -2.0}
    assert (chosen["num_tasks"], chosen["num_steps"]) == (2, 2)
    for learner, _, settings, _ in asked:
        assert learner is chosen["learner"]
        assert (settings["num_tasks"], settings["seed"]) == (4, 7)
    assert widths_of(asked) == [(10, 10, 6), (1, 10, 1), (2, 10, 1)]
    whole, one, two = (curve.values for *_, curve in asked)
    for scores, curve in zip(row["values"], (whole[0], one[1], two[1], whole[2], whole[4], whole[6]), strict=True):
        assert scores == pytest.approx(curve.ravel(), abs=1e-3)


def test_no_budget_is_exceeded_where_it_is_no_multiple_of_a_step(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(tmp_path, "point-nav --task.horizon=3 --agent.num-trajectories=15 --agent.hidden-sizes=4")
    row, asked = measured(script, run, monkeypatch)
    assert widths_of(asked) == [(15, 15, 4), (1, 15, 1), (2, 15, 1), (10, 15, 2), (13, 15, 3)]
    assert row["env_steps"] == pytest.approx([0.0, 3.0, 6.0, 60.0, 117.0, 180.0], rel=0.01)  # a goal ends some early


def test_a_memory_is_scored_in_trials_side_by_side(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(tmp_path, f"point-nav --task.horizon=3 {RL2} --agent.trajectories-per-trial=2")
    row, [(_, collector, settings, _)] = measured(script, run, monkeypatch)
    assert (collector.num_trajectories, settings["num_steps"]) == (5, 60)
    assert (row["validation"], row["step_scale"]) == ({}, 1.0)


def test_controls_and_summaries_name_what_they_hold(script: Any) -> None:
    agents = script("compare_agents")
    cross = {"matrix": [[1.0, 2.0], [3.0, 5.0]], "zero_reward": [7.0], "before": [9.0], "tasks": ["a", "b"]}
    controls = agents.controls_of({"cross_adaptation": cross})
    named = {"own task": 3.0, "another task": 2.5, "no reward": 7.0, "nothing": 9.0}
    assert controls == {**named, "matrix": cross["matrix"], "tasks": ["a", "b"]}
    assert agents.controls_of({}) is None
    runs = [
        {
            "label": label,
            "seed": seed,
            "trained_on_env_steps": 10,
            "budgets": [0, 1],
            "env_steps": [0.0, 5.0],
            "tasks": ["a", "b"],
            "values": [[0.0, 2.0], [more + 4.0 + seed, more + 6.0 + seed]],
            "controls": controls,
        }
        for label, more, seeds in (
            ("maml", 0.0, (0, 2)),
            ("rl2", 7.0, (0, 2)),
            ("anil", 7.0, (2, 3)),
            ("promp", 0.0, (4,)),
        )
        for seed in seeds
    ]
    maml, rl2, anil, promp = agents.summarise(runs)
    assert (maml["mean"], maml["per_seed"]) == ([1.0, 6.0], [[1.0, 5.0], [1.0, 7.0]])
    # Student's t: 12.706 for two tasks or seeds, whose means have standard errors of one.
    assert (maml["ci_low"][0], maml["ci_high"][0]) == pytest.approx((1.0 - 12.706, 1.0 + 12.706), abs=2e-3)
    assert maml["ci_high"][1] - 6.0 == pytest.approx(12.706 * 2**0.5, abs=2e-3)
    assert maml["controls"] == named
    assert maml["above_first"] is None
    paired = {"mean": [0.0, 7.0], "ci_low": [0.0, 7.0], "ci_high": [0.0, 7.0]}
    assert rl2["above_first"] == {"label": "maml", **paired}
    assert anil["above_first"] == {"label": "maml", **paired}  # on the seed that both have
    assert promp["above_first"] is None
    printed = agents.table([maml, rl2, anil, promp])
    assert printed[5] == "minus maml, paired by task and seed"
    assert [line.split()[0] for line in printed[6:]] == ["rl2", "anil"]
    assert printed[6].endswith("7.0 [7.0, 7.0]")
    with pytest.raises(InputError, match=r"tasks of maml, seed 2 = \['c', 'd'\]: must be those of seed 0"):
        agents.summarise([runs[0], runs[1] | {"tasks": ["c", "d"]}])
    [_, other] = agents.summarise([runs[0], runs[2] | {"tasks": ["c", "d"]}])
    assert other["above_first"] is None


def test_a_cells_tasks_and_scores_are_of_the_same_curves(script: Any) -> None:
    agents = script("compare_agents")

    def curve(*tasks: str) -> Any:
        values = np.arange(2.0 * len(tasks) * 2).reshape(2, len(tasks), 2)
        return AdaptationCurve(
            unit="trajectories", score="return", tasks=tasks, values=values, env_steps=(0.0, 5.0), splits="identical"
        )

    points = {budget: (curve("a", "b"), int(budget > 2)) for budget in agents.BUDGETS}
    cell = agents.scores_at(points)
    assert cell["tasks"] == ["a", "b"]
    assert cell["values"] == [[0.0, 1.0, 2.0, 3.0]] * 3 + [[4.0, 5.0, 6.0, 7.0]] * 3
    assert cell["env_steps"] == [0.0] * 3 + [5.0] * 3
    with pytest.raises(ValueError, match="different tasks"):
        agents.scores_at({**points, 40: (curve("b", "a"), 1)})


def test_what_does_not_fit_is_refused_in_one_line(
    bandit_run: Path, script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    maml = trained(tmp_path / "maml", "bandit --agent.num-trajectories=2 --agent.hidden-sizes=4")
    mixed = tmp_path / "mixed.json"
    mixed.write_text(json.dumps({"runs": [{"task": "bandit"}, {"task": "ant-vel"}]}))
    run = {"task": "bandit", "label": "maml", "values": [[1.0], [2.0]], "controls": None, "trained_on_env_steps": 1}
    run |= {"budgets": [0, 1], "env_steps": [0.0, 1.0]}
    others, untold = tmp_path / "others.json", tmp_path / "untold.json"
    others.write_text(json.dumps({"runs": [run | {"seed": i, "tasks": [f"task {i}"]} for i in (0, 1)]}))
    untold.write_text(json.dumps({"runs": [run | {"seed": 3}]}))
    for name, arguments, said in (
        ("compare_bandits", [maml], "must be an agent with a memory"),
        ("compare_tabular_mdps", [bandit_run], "must be a run on tabular-mdp"),
        ("compare_agents", [bandit_run, "--from", "x"], "runs = 1: must be run folders, or --from FILE"),
        ("compare_agents", ["--from", mixed], "runs = ['ant-vel', 'bandit']: must be runs on one task family"),
        ("compare_agents", ["--from", others], "tasks of maml, seed 1 = ['task 1']: must be those of seed 0"),
        ("compare_agents", ["--from", untold], "tasks of maml, seed 3 = None: must be a list of tasks"),
    ):
        assert script(name, *arguments) == 2
        captured = capsys.readouterr().err
        assert said in captured
        assert len(captured.splitlines()) == 1
