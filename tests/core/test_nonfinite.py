"""Numbers that are not finite, from the step that brings them to the update that is undone for them."""

from __future__ import annotations

import json
import logging
import math
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

import metarl
from metarl.agents.maml import MAML, MAMLConfig
from metarl.core import nonfinite
from metarl.core.config import TrainerConfig
from metarl.core.data import Episodes, Examples, Trajectories
from metarl.core.errors import EnvironmentFaultError, InputError, NonFiniteError
from metarl.core.learner import ScoreName, Traits
from metarl.core.nonfinite import MAX_DUMPS, reproduce
from metarl.core.seeds import Seeds
from metarl.core.tasks import Split, TaskDistribution
from metarl.core.trainer import Callback, Progressed, Trainer
from metarl.envs.half_cheetah import HalfCheetahDir, HalfCheetahDirEnv
from metarl.envs.point_nav import PointNav, PointNavEnv
from metarl.rl.checks import check_step
from metarl.rl.rollout import RolloutCollector
from metarl.runs import checkpoint
from metarl.runs.checkpoint import parameters_sha256
from metarl.runs.tracking import read_metrics

METARL = str(Path(sys.executable).with_name("metarl"))


@dataclass(frozen=True)
class Level:
    value: float


class Levels(TaskDistribution[Level]):
    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> list[Level]:
        return [Level(float(value)) for value in rng.normal(3.0, 1.0, num_tasks)]


class Lesson(NamedTuple):
    examples: Examples
    advantages: Tensor


class Collector:
    acts = True

    def support(self, tasks: Sequence[Level], learner: Any, state: Any, seeds: Seeds, *, step: int) -> Examples:
        return Examples(torch.zeros(len(tasks), 1), torch.tensor([[task.value] for task in tasks]))

    def query(self, tasks: Sequence[Level], learner: Any, state: Any, seeds: Seeds) -> Examples:
        return self.support(tasks, learner, state, seeds, step=0)


class Descender:
    """Learns a first guess in place, with momentum. What `spoils` names at an iteration (from 1) becomes NaN there."""

    traits = Traits(unit="shots", support="shot")
    score_name: ScoreName = "return"
    num_adaptation_steps = 1
    device = torch.device("cpu")

    def __init__(self, spoils: Mapping[int, str] | None = None) -> None:
        self.spoils = spoils or {}
        self.iteration = 0
        self.guess = torch.zeros(2)
        self.momentum = [{"guess": torch.zeros(2)}]
        self.updates = 0

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        return {"guess": self.guess}

    def begin(self, num_tasks: int, *, parameters: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        self.iteration += 1
        return {"fast": self.guess[0].expand(num_tasks)}

    def prepare(self, data: Examples) -> Lesson:
        advantages = data.targets.clone()
        if self._spoilt("advantages"):
            advantages[1] = math.inf
        return Lesson(data, advantages)

    def adapt(self, state: Any, support: Lesson, *, step: int, differentiable: bool = False) -> dict[str, Tensor]:
        fast = 0.5 * (state["fast"] + support.examples.targets[:, 0])
        if self._spoilt("adapted"):
            fast[2] = math.nan
        return {"fast": fast}

    def score(self, state: dict[str, Tensor], query: Lesson) -> Tensor:
        score = -(state["fast"] - query.examples.targets[:, 0]).abs()
        if self._spoilt("score"):
            score[0] = -math.inf
        return score

    def meta_update(self, episodes: Episodes[Any, Lesson]) -> dict[str, float]:
        self.updates += 1
        self.momentum[0]["guess"].mul_(0.9).add_(episodes.query.examples.targets.mean())
        self.guess.add_(0.1 * self.momentum[0]["guess"])
        loss = float(self.guess.mean())
        if self._spoilt("metric"):
            loss = math.nan
        if self._spoilt("parameter"):
            self.guess[1] = math.nan
        if self._spoilt("state"):
            self.momentum[0]["guess"][0] = math.inf
        return {"loss": loss}

    def state_dict(self) -> dict[str, Any]:
        return {"parameters": {"guess": self.guess}, "momentum": self.momentum, "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.guess, self.momentum = state["parameters"]["guess"], state["momentum"]
        self.updates = state["updates"]

    def to(self, device: torch.device | str) -> Descender:
        return self

    def _spoilt(self, what: str) -> bool:
        return self.spoils.get(self.iteration) == what


class Rows(Callback):
    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_iteration(self, trainer: Trainer, progressed: Progressed) -> None:
        self.rows.append(progressed.scalars)


class NoEvaluation(Callback):
    def on_iteration(self, trainer: Trainer, progressed: Progressed) -> None:
        if progressed.iteration == trainer.config.iterations:
            trainer.stop(evaluate=False)


def make(spoils: Mapping[int, str], *callbacks: Callback, folder: Path | None = None, **settings: Any) -> Trainer:
    config = TrainerConfig(**{"iterations": 9, "meta_batch_size": 3, **settings})
    return Trainer(
        Descender(spoils), Collector(), Levels(), config, callbacks=(*callbacks, NoEvaluation()), nonfinite_dir=folder
    )


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


TERMS = [
    ("advantages", "advantages of support 0 (slot 1 Level("),
    ("score", "the score after 0 steps (slot 0 Level("),
    ("adapted", "the adapted state.fast (slot 2 Level("),
    ("metric", "train/loss = nan; "),
    ("parameter", "parameters.guess; "),
    ("state", "state.momentum.0.guess; "),
]


@pytest.mark.parametrize(("what", "term"), TERMS)
def test_an_update_that_is_not_finite_is_undone_counted_dumped_and_told(
    what: str, term: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = Rows()
    trainer = make({3: what}, rows, folder=tmp_path / "nonfinite")
    for _ in range(2):
        trainer.train_iteration()
    before = json.dumps(trainer.learner.state_dict(), default=Tensor.tolist)
    assert trainer.train_iteration().scalars["health/nonfinite_skips"] == 1.0
    assert json.dumps(trainer.learner.state_dict(), default=Tensor.tolist) == before
    assert trainer.iteration == 3
    after = trainer.train_iteration()
    assert after.scalars["health/nonfinite_skips"] == 0.0
    assert trainer.learner.state_dict()["updates"] == 3
    (line,) = told(caplog)
    path = tmp_path / "nonfinite" / "iteration_000003.pt"
    assert line.startswith(f"iteration 3: the update was undone, not finite: {term}")
    assert line.endswith(f"; dumped to {path}")
    assert "\n" not in line
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    content = torch.load(path, weights_only=True)
    assert {*content} == {"finding", "iteration", "seed", "metrics", "state", "episodes"}
    assert content["finding"].startswith(term.removesuffix("; "))
    assert json.dumps(content["state"], default=Tensor.tolist) == before
    assert content["episodes"]["slots"] == (0, 1, 2)
    assert content["episodes"]["tasks"][0].startswith("Level(value=")
    assert content["episodes"]["query"]["advantages"].shape == (3, 1)


def test_the_rest_of_the_run_is_as_if_the_update_had_not_been() -> None:
    spoilt = make({2: "parameter"}, iterations=2)
    spoilt.run()
    clean = make({}, iterations=1)
    clean.run()
    assert torch.equal(spoilt.learner.parameters["guess"], clean.learner.parameters["guess"])
    for trainer in (spoilt, clean):
        trainer.iteration = 2
    tasks = [trainer.train_iteration().episodes.tasks for trainer in (spoilt, clean)]
    assert tasks[0] == tasks[1]
    assert torch.equal(spoilt.learner.parameters["guess"], clean.learner.parameters["guess"])


def test_a_dump_reproduces_its_update(tmp_path: Path) -> None:
    trainer = make({2: "advantages"}, folder=tmp_path, iterations=3)
    trainer.run()
    learner = Descender({0: "metric"})
    metrics = reproduce(learner, tmp_path / "iteration_000002.pt")
    assert math.isnan(metrics["loss"])
    assert learner.updates == 2
    assert bool(learner.parameters["guess"].isfinite().all())


def test_a_dump_that_names_modules_by_their_earlier_names_reproduces_its_update(tmp_path: Path) -> None:
    make({1: "metric"}, folder=tmp_path, iterations=1).run()
    path = tmp_path / "iteration_000001.pt"
    content = torch.load(path, weights_only=True)
    assert content["episodes"]["__class__"] == "metarl.core.data:Episodes"
    content["episodes"]["__class__"] = "metarl.episodes:Episodes"
    torch.save(content, path)
    assert math.isnan(reproduce(Descender({0: "metric"}), path)["loss"])


def test_what_is_no_dump_is_refused(tmp_path: Path) -> None:
    make({1: "metric"}, folder=tmp_path, iterations=1).run()
    path = tmp_path / "iteration_000001.pt"
    with pytest.raises(InputError, match=r"gone\.pt: cannot be read: No such file"):
        reproduce(Descender(), tmp_path / "gone.pt")
    content = torch.load(path, weights_only=True)
    for name in ("os:system", "metarl.core.errors:InputError", "metarl.nowhere:Thing", "urllib.parse:SplitResult"):
        content["episodes"]["query"]["__class__"] = name
        torch.save(content, path)
        with pytest.raises(InputError, match=rf"is not a dump of this learner: '{name}' is not a data class"):
            reproduce(Descender(), path)
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match="is not a dump of this learner: "):
        reproduce(Descender(), path)


def test_too_many_in_a_row_end_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = Rows()
    trainer = make(dict.fromkeys(range(3, 8), "metric"), rows, folder=tmp_path)
    with pytest.raises(NonFiniteError) as raised:
        trainer.run()
    said = "5 updates in a row were undone, the last at iteration 7, not finite: train/loss = nan; "
    assert str(raised.value).startswith(said)
    assert "\n" not in str(raised.value)
    assert [row["health/nonfinite_skips"] for row in rows.rows] == [0, 0, 1, 1, 1, 1, 1]
    assert trainer.learner.state_dict()["updates"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"iteration_00000{i}.pt" for i in (3, 4, 5)]
    assert MAX_DUMPS == 3
    assert ["; dumped to" in line for line in told(caplog)] == [True] * 3 + [False] * 2
    assert told(caplog)[-1].endswith("; not dumped: 3 of this run are there")
    trainer.run()  # what is learned since starts a new count
    assert trainer.iteration == 9


def test_fewer_in_a_row_do_not() -> None:
    rows = Rows()
    make(dict.fromkeys((1, 2, 4, 5, 7, 8), "metric"), rows, max_nonfinite=3).run()
    assert sum(row["health/nonfinite_skips"] for row in rows.rows) == 6
    with pytest.raises(NonFiniteError, match=r"^3 updates in a row"):
        make(dict.fromkeys((1, 2, 3), "metric"), max_nonfinite=3).run()


def test_a_disk_that_is_full_does_not_end_the_run_for_a_dump(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    make({1: "metric"}, folder=tmp_path / "file" / "nonfinite", iterations=2).run()
    assert told(caplog)[0].endswith("not finite: train/loss = nan; not dumped: Not a directory")


@pytest.mark.parametrize("place", ["state", "parameters"])
def test_nothing_that_is_not_finite_is_saved(place: str, tmp_path: Path) -> None:
    trees: dict[str, Any] = {"state": {"moments": [torch.zeros(2)]}, "parameters": {"w": torch.zeros(2)}}
    checkpoint.save(tmp_path, 1, **trees, config={})
    trees[place] = {"w": torch.tensor([0.0, math.nan])}
    with pytest.raises(ValueError, match=rf"^{place}\.w is not finite"):
        checkpoint.save(tmp_path, 2, **trees, config={})
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["iteration_000001"]


def test_names_of_tensors() -> None:
    bad = torch.tensor(math.nan)
    tree = {
        "a": [torch.ones(1), (bad,)],
        "b": Lesson(Examples(bad[None, None], torch.ones(1, 1)), torch.ones(1)),
        "c": 3,
    }
    assert [*nonfinite.nonfinite_tensors(tree)] == ["a.1.0", "b.examples.inputs"]
    assert str(nonfinite.Finding("x", ("a", "b", "c", "d", "e"))) == "x (a, b, c, 2 more)"


@pytest.mark.parametrize("finite", [True, False])
def test_all_are_asked_at_once(finite: bool) -> None:
    odd = torch.tensor([1.0, 2.0, 3.0 if finite else math.inf])
    tensors = [torch.tensor(3), torch.zeros(0), odd.expand(4, 3), odd[:, None, None].expand(3, 2, 5), torch.zeros(2)]
    for order in (tensors, tensors[::-1]):
        assert nonfinite.all_finite(iter(order)) == finite
    assert nonfinite.all_finite(iter(()))


def step(observations: Any, rewards: Any, live: Sequence[bool] = (True,) * 4) -> NDArray[Any]:
    tasks, seeds = [Level(1.0), Level(2.0)], [5, 6, 7, 8]
    return check_step(observations, rewards, np.array(live), observation_size=2, tasks=tasks, seeds=seeds, step=9)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e39])
def test_a_number_that_float32_cannot_hold_comes_with_its_task_seed_and_step(bad: float) -> None:
    observations, rewards = np.zeros((4, 2)), np.zeros(4)
    assert step(observations, rewards) is observations
    assert step(observations, None) is observations
    rewards[2] = bad
    allowed = "must be finite as float32, at most 3.4e+38" if math.isfinite(bad) else "must be finite"
    where = f"{allowed} (task Level(value=2.0), seed 7, step 9)"
    with pytest.raises(EnvironmentFaultError, match=re.escape(f"the environment's reward = {bad}: {where}") + "$"):
        step(observations, rewards)
    assert step(observations, rewards, (True, True, False, True)).tolist() == [[0.0, 0.0]] * 4
    observations[2, 1] = bad
    with pytest.raises(EnvironmentFaultError, match=rf"reward = {bad}".replace("+", r"\+")):
        step(observations, rewards)
    with pytest.raises(EnvironmentFaultError, match=re.escape(f"observation[1] = {bad}: {where}") + "$"):
        step(observations, None)
    assert step(observations, rewards, (True, True, False, True)).tolist() == [[0.0, 0.0]] * 4


@pytest.mark.parametrize(
    ("shape", "rewards", "said"),
    [
        ((4, 3), (4,), r"observations have shape \(4, 3\): must be \(4, 2\) \(step 9\)|must be \(4, 2\)"),
        ((4, 2), (4, 1), r"rewards have shape \(4, 1\): must be \(4,\)"),
        ((4, 2), (), r"rewards have shape \(\): must be \(4,\)"),
    ],
)
def test_a_vector_environments_shapes(shape: tuple[int, ...], rewards: tuple[int, ...], said: str) -> None:
    with pytest.raises(EnvironmentFaultError, match=said):
        step(np.zeros(shape), np.zeros(rewards))


@pytest.mark.parametrize("dtype", [object, complex, str])
def test_a_vector_environments_types(dtype: Any) -> None:
    with pytest.raises(EnvironmentFaultError, match=r"observations have dtype .*: must be numbers \(step 9\)$"):
        step(np.zeros((4, 2), dtype), np.zeros(4))
    with pytest.raises(EnvironmentFaultError, match=r"rewards have dtype .*: must be numbers \(step 9\)$"):
        step(np.zeros((4, 2)), np.zeros(4, dtype))
    with pytest.raises(EnvironmentFaultError, match=r"step raised ValueError: .* \(step 9\)$"):
        step([[0.0, 0.0], [0.0]] * 2, np.zeros(4))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Blind(PointNav):
    """Sees nothing from step `since` on."""

    since: int = 0

    def make_vector_env(self, num_envs: int, *, num_threads: int = 0) -> Any:
        class Env(PointNavEnv):
            def _observe(env) -> NDArray[Any]:  # noqa: N805
                return super()._observe() + np.where(env._elapsed < self.since, 0.0, math.nan)[:, np.newaxis]

        return Env(num_envs, horizon=self.horizon)


@pytest.mark.parametrize("since", [0, 3])
def test_a_vector_environment_that_observes_nonsense(since: int) -> None:
    said = rf"^the environment's observation\[0\] = nan: must be finite \(task Goal\(.*\), seed \d+, step {since}\)$"
    with pytest.raises(EnvironmentFaultError, match=said):
        maml(Blind(horizon=5, since=since)).train_iteration()


class Kept(RolloutCollector):
    """Keeps what it collected."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.kept: list[Trajectories] = []

    def support(self, *args: Any, **settings: Any) -> Trajectories:
        self.kept.append(super().support(*args, **settings))
        return self.kept[-1]

    def query(self, *args: Any) -> Trajectories:
        self.kept.append(super().query(*args))
        return self.kept[-1]


class Breaking(HalfCheetahDirEnv):
    """Simulations `broken` are given an impossible speed at step `at` of the first collection."""

    broken: Sequence[int] = ()
    at = 4
    resets = 0

    def reset(self, **settings: Any) -> Any:
        self.resets += 1
        return super().reset(**settings)

    def _advance(self, actions: NDArray[Any], ids: Any) -> tuple[Any, Any, Any]:
        if self.resets == 1 and self._elapsed[0] == self.at:
            self.simulator.qvel[list(self.broken)] = 1e11
        return super()._advance(actions, ids)


@dataclass(frozen=True)
class BreakingFamily(HalfCheetahDir):
    broken: tuple[int, ...] = ()
    at: int = 4

    def make_vector_env(self, num_envs: int, *, num_threads: int = 0) -> HalfCheetahDirEnv:
        env = Breaking(num_envs, horizon=self.horizon)
        env.broken, env.at = self.broken, self.at
        return env


def maml(family: Any, **settings: Any) -> Trainer:
    collector = Kept(family, num_trajectories=3)
    config = MAMLConfig(**{"hidden_sizes": (8,), "num_trajectories": 3, **settings})
    learner = MAML(config, collector.spaces, generator=torch.Generator().manual_seed(0))
    return Trainer(learner, collector, family, TrainerConfig(iterations=2, meta_batch_size=2))


def test_training_goes_on_without_a_simulation_that_diverged() -> None:
    broken, whole = maml(BreakingFamily(horizon=10, broken=(4,))), maml(BreakingFamily(horizon=10))
    start = parameters_sha256(broken.learner.parameters)
    progressed, _ = broken.train_iteration(), whole.train_iteration()
    assert progressed.scalars["health/diverged_sims"] == 1.0
    assert progressed.scalars["health/nonfinite_skips"] == 0.0
    assert all(math.isfinite(value) for value in progressed.scalars.values())
    assert progressed.scalars["train/accepted"] == 1.0
    assert parameters_sha256(broken.learner.parameters) != start
    assert all(bool(value.isfinite().all()) for value in broken.learner.parameters.values())
    support, healthy = broken.collector.kept[0], whole.collector.kept[0]  # type: ignore[attr-defined]
    lengths = support.mask.sum(-1).flatten().tolist()
    assert lengths == [10.0, 10.0, 10.0, 10.0, 4.0, 10.0]
    others = [0, 1, 2, 3, 5]
    for name in ("observations", "actions", "rewards", "log_probs", "last_observations"):
        left, right = (getattr(data, name).flatten(0, 1) for data in (support, healthy))
        assert torch.equal(left[others], right[others])
        if name in ("actions", "rewards"):
            assert torch.equal(left[4, :4], right[4, :4])
    assert broken.train_iteration().scalars["health/diverged_sims"] == 0.0


def test_simulations_that_all_diverge() -> None:
    everyone = tuple(range(6))
    midway = maml(BreakingFamily(horizon=10, broken=everyone)).train_iteration()
    assert midway.scalars["health/diverged_sims"] == 6.0
    assert midway.scalars["health/nonfinite_skips"] == 0.0
    for min_live_steps in (None, 20):
        trainer = maml(BreakingFamily(horizon=10, broken=everyone, at=0))
        trainer.collector.min_live_steps = min_live_steps  # type: ignore[attr-defined]
        with pytest.raises(EnvironmentFaultError, match=r"^every simulation diverged in its first step"):
            trainer.train_iteration()


@pytest.mark.parametrize("family", [HalfCheetahDir(horizon=5), PointNav(horizon=5)], ids=["mujoco", "numpy"])
def test_an_adaptation_that_blows_up_is_an_update_undone_and_no_fault_of_the_environment(
    family: Any, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = maml(family, inner_lr=1e38)
    start = parameters_sha256(trainer.learner.parameters)
    progressed = trainer.train_iteration()
    assert progressed.scalars["health/nonfinite_skips"] == 1.0
    assert parameters_sha256(trainer.learner.parameters) == start
    assert told(caplog)[0].startswith("iteration 1: the update was undone, not finite: log_probs of query (slot 0 ")


MODULE = """
from dataclasses import dataclass
import gymnasium, numpy as np
import metarl


@dataclass(frozen=True)
class Prize:
    size: float


class Lottery(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-9.0, 9.0, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):  # finite in float32; a sum of them is not
        return np.ones(2, np.float32), 3e38 * self.size, False, False, {}


class Prizes(metarl.EnvTaskDistribution):
    horizon = 5

    def sample(self, num_tasks, rng, *, split="train"):
        return [Prize(float(size)) for size in rng.uniform(0.9, 1.0, num_tasks)]

    def make_env(self):
        return Lottery()

    def set_task(self, env, task):
        env.size = task.size
"""
TINY = (
    "train prizes:Prizes --iterations 9 --meta-batch-size 2 --agent.num-trajectories 2 --agent.hidden-sizes 4 "
    "--evaluation.num-tasks 2 --evaluation.num-adaptation-steps 1 --trainer.max-nonfinite 4 --run-dir run --quiet"
)


def run(arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([METARL, *arguments.split()], cwd=folder, capture_output=True, text=True, timeout=120)


def test_a_run_whose_updates_are_not_finite_ends_in_one_line_and_can_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prizes.py").write_text(MODULE)
    result = run(TINY, tmp_path)
    assert result.returncode == 1, result.stderr
    *warnings, last = result.stderr.splitlines()
    assert [line.split(":")[0] for line in warnings] == [f"iteration {i}" for i in (1, 2, 3, 4)]
    assert all("not finite: advantages of support 0 (slot 0 Prize(size=" in line for line in warnings), warnings
    assert last.startswith(
        "metarl: 4 updates in a row were undone, the last at iteration 4, not finite: advantages of support 0"
    )
    folder = tmp_path / "run"
    assert len([*(folder / "nonfinite").iterdir()]) == MAX_DUMPS
    assert [row["health/nonfinite_skips"] for row in read_metrics(folder)] == [1.0] * 4
    assert checkpoint.latest(folder).iteration == 4
    monkeypatch.syspath_prepend(str(tmp_path))
    learner = metarl.load(folder, trusted=True)
    dump = folder / "nonfinite" / "iteration_000002.pt"
    metrics = reproduce(learner, dump)
    recorded = torch.load(dump, weights_only=True)["metrics"]
    assert not math.isfinite(metrics["gradient_norm"])
    assert {name: str(value) for name, value in metrics.items()} == {k: str(v) for k, v in recorded.items()}
    (tmp_path / "prizes.py").write_text(MODULE.replace("3e38", "1.0"))
    result = run("train prizes:Prizes --resume run --iterations 6 --quiet", tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert [row["health/nonfinite_skips"] for row in read_metrics(folder)] == [1.0] * 4 + [0.0] * 2
