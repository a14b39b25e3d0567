"""Every built-in agent and learner passes the checks, and each defect of a broken one is named in one line."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from metarl.cli.main import main
from metarl.core.errors import require
from metarl.core.settings import fields_of
from metarl.envs.grid_nav import GridNav
from metarl.runs import registry
from metarl.testing.tasks import check_agent
from metarl.testing.watched import global_generators

# Those settings that a class has are made small.
SMALL: dict[str, Any] = {
    "num_trajectories": 3,
    "hidden_sizes": (6,),
    "hidden_size": 8,
    "epochs": 2,
    "num_epochs": 2,
    "inner_updates": 2,
    "num_minibatches": 2,
    "num_filters": 4,
    "cg_iterations": 2,
    "max_backtracks": 2,
}
LACKING = ["prepare", "meta_update", "state_dict", "load_state_dict", "to", "observe", "Config", "traits"]
HERE = Path(__file__).parents[1]
EVERY = [("agent", name) for name in registry.AGENTS] + [("learner", name) for name in registry.LEARNERS]


@pytest.fixture(scope="module")
def broken() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(HERE)
        yield importlib.import_module("broken_agents")


def small(kind: type[Any]) -> Any:
    names = fields_of(kind.Config)
    return kind.Config(**{name: value for name, value in SMALL.items() if name in names})


@pytest.mark.parametrize(("what", "name"), EVERY)
def test_every_built_in_agent_and_learner_is_sound(what: str, name: str) -> None:
    kind = registry.load_agent(name) if what == "agent" else registry.load_learner(name)
    assert check_agent(kind, config=small(kind)) == []


def test_a_sound_agent_passes_and_the_global_generators_stay_as_they_are(broken: Any) -> None:
    before = global_generators()
    assert check_agent(broken.Sound, config=broken.Settings()) == []
    assert global_generators() == before


@pytest.mark.parametrize(
    ("name", "problems"),
    [
        ("ForgetsOptimizer", ["state_dict lacks something that meta_update uses (such as the state of optimizer)"]),
        ("ForgetsCounter", ["state_dict lacks something that meta_update uses"]),
        ("IgnoresKeys", ["load_state_dict does not restore moments.step, moments.exp_avg, moments.exp_avg_sq"]),
        ("LiveState", ["state_dict() is not a copy: later updates changed weight in it"]),
        ("ChangesType", ["after an update, state_dict().weight is a tensor (2, 2) of torch.float64, the learner's is"]),
        ("KeepsWhatItLoads", ["load_state_dict keeps what it is given: later updates changed moments."]),
        ("SavesAFunction", ["state_dict() cannot be saved ("]),
        ("UnsavedFeatures", ["state_dict lacks something that the constructor draws at random"]),
        ("AdaptsInPlace", ["adapt changes its arguments in place (state, support.state): return new tensors"]),
        ("ActsInPlace", ["act changes its arguments in place (observations)"]),
        ("ObservesInPlace", ["observe changes its arguments in place (state)"]),
        ("PreparesInPlace", ["prepare changes its arguments in place (data.rewards)"]),
        ("AdaptsItself", ["act, observe, adapt or score changed the learner's own weight"]),
        ("DrawsFromTorch", ["adapt uses the global generator of torch"]),
        ("DrawsFromNumpy", ["meta_update uses the global generator of numpy"]),
        ("DrawsFromRandom", ["act uses the global generator of random"]),
        ("SeedsTorch", ["begin uses the global generator of torch"]),
        ("StartsAnywhere", ["two runs with one seed differ (weight): draw from the generator that the constructor is"]),
        ("HasEntropy", ["two runs with one seed differ (parameters.weight"]),
        ("MixesTasks", ["adapt: the numbers of a task depend on the other tasks or on their order"]),
        ("KnowsPlaces", ["score: the numbers of a task depend on the other tasks or on their order"]),
        ("OtherDerivative", ["adapt gives different numbers with differentiable=True"]),
        ("OneState", ["begin of 4 tasks returned a tensor of shape [2, 2]: tasks come first"]),
        ("OneScore", ["score returned []: must be a tensor [num_tasks]"]),
        ("FlatActions", ["act returned actions of shape [12, 2]: must be a tensor of shape [4, 3, 2]"]),
        ("ActsAlone", ["act returned tensor("]),
        ("LogsTensors", ["meta_update returned loss = tensor("]),
        ("LogsNaN", ["meta_update returned entropy = nan on a small sound task"]),
        ("LogsNothing", ["meta_update returned None: must be a dict of floats to log"]),
        ("HidesAParameter", ["parameters lacks scale, which training changes"]),
        ("HidesAll", ["training changed the scores, but no tensor in parameters"]),
        ("ReturnsNothing", ["to('cpu') returned None: must return the learner itself"]),
        ("Raises", ["adapt raised SystemExit: no step (tests/broken_agents.py:"]),
        (
            "WrongWords",
            ["score_name =", "num_adaptation_steps = 1.5", "device =", "parameters"],
        ),
        (
            "Incomplete",
            [f"lacks {name}" for name in LACKING],
        ),
        ("NeedsSettings", ["Config() raised TypeError"]),
        ("CollectsNothing", ["Config lacks num_trajectories"]),
        ("ForgetfulProto", ["load_state_dict does not restore adam.second."]),
    ],
)
def test_what_is_wrong_is_named_in_one_line(
    name: str, problems: list[str], broken: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(HERE.parent)
    found = check_agent(getattr(broken, name))
    assert len(found) == len(problems), found
    for line, expected in zip(found, problems, strict=True):
        assert expected in line
        assert "\n" not in line


def test_an_agent_may_refuse_the_built_in_tasks_and_be_checked_on_others(broken: Any) -> None:
    class OnGrids(broken.Sound):
        def __init__(self, config: Any, spaces: Any, *, generator: torch.Generator) -> None:
            require(spaces.observation_size == 25, "agent", "OnGrids", "run on a grid of 5 x 5")
            super().__init__(config, spaces, generator=generator)

    (problem,) = check_agent(OnGrids)
    assert problem.startswith("refuses all tasks that it was tried on (point-nav: agent = 'OnGrids': must be run on")
    assert check_agent(OnGrids, tasks={"grid-nav": GridNav(horizon=4)}) == []


@pytest.mark.usefixtures("broken")
def test_the_command_names_the_problems(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-agent", "broken_agents:Sound"]) == 0
    assert capsys.readouterr().out == "broken_agents:Sound: fine\n"
    assert main(["check-agent", "broken_agents:LogsNothing", "--task", "bandit"]) == 2
    assert capsys.readouterr().out.startswith("broken_agents:LogsNothing: meta_update returned None: must be")
    assert main(["check-agent", "broken_agents:Incomplete"]) == 2
    assert capsys.readouterr().out.count("\n") == len(LACKING)
    assert main(["check-agent", "mamll"]) == 2
    assert "did you mean 'maml'" in capsys.readouterr().err
    assert main(["check-agent", "broken_agents:Settings.x"]) == 2
    assert main(["check-agent", "broken_agents:Sound", "--task", "glyphs"]) == 2
    assert "task = 'glyphs': must be another one: it needs a few-shot learner" in capsys.readouterr().err
    assert main(["check-agent", "broken_agents:random"]) == 2
    assert "module random is not a class" in capsys.readouterr().err
