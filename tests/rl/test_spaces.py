"""Spaces of environments are made into what a policy needs, it is said, and what cannot be made so is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from metarl.agents.maml import MAML, MAMLConfig
from metarl.agents.sb3 import AdaptedPredictor, TaskVecEnv
from metarl.cli import main as cli
from metarl.core.errors import EnvironmentFaultError, InputError
from metarl.core.learner import Spaces
from metarl.core.seeds import Seeds
from metarl.core.tasks import Split
from metarl.rl.environments import fit_of, vector_env_of
from metarl.rl.rollout import RolloutCollector
from metarl.rl.spaces import MOST_CHOICES, ActionFit, Fit, ObservationFit, PolicyBox
from metarl.rl.task_in_observation import TaskInObservation
from metarl.rl.tasks import EnvTaskDistribution, Scene
from metarl.rl.wrappers import FittedVectorEnv, fitted
from metarl.runs.load import load
from metarl.testing.tasks import check_task_distribution

INF = np.inf
INT64 = np.iinfo(np.int64)
FLOAT32 = np.finfo(np.float32)


def box(low: Any, high: Any, shape: tuple[int, ...] | None = None, dtype: Any = np.float32) -> spaces.Box:
    return spaces.Box(np.asarray(low, dtype), np.asarray(high, dtype), shape, dtype)


@pytest.mark.parametrize(
    ("space", "pairs", "note"),
    [
        (spaces.Box(5, 50, (1,)), {(-1,): (5,), (0,): (27.5,), (3,): (50,)}, "rescaled from [-1, 1]"),
        (spaces.Box(-2, 2, (1,)), {(-0.5,): (-1,)}, "rescaled from [-1, 1]"),
        (box([-2, 0], [2, 1]), {(-1, -1): (-2, 0), (1, 1): (2, 1)}, "rescaled from [-1, 1]"),
        (spaces.Box(0, INF, (1,)), {(-1,): (0,), (-2,): (0,), (0,): (1,), (4,): (5,)}, "one bound"),
        (spaces.Box(500, INF, (1,)), {(-1,): (500,), (0,): (1000,)}, "one bound"),
        (spaces.Box(0, FLOAT32.max, (1,)), {(0,): (1,)}, "one bound"),
        (spaces.Box(-INF, -7, (1,)), {(1,): (-7,), (2,): (-7,), (0,): (-14,)}, "one bound"),
        (box([3, -1], [3, 1]), {(0.5, 0.5): (3, 0.5)}, "1 of 2 cannot vary"),
        (spaces.Box(0, 9, (2,), np.int64), {(-1, 0.2): (0, 5), (1, 0.5): (9, 7)}, "rescaled from [-1, 1]; integers"),
        (spaces.Box(INT64.min, INT64.max, (1,), np.int64), {(-3.4,): (-3,)}, "integers are rounded"),
        (spaces.Box(-1, 1, (2, 2)), {(0, 1, -1, 2): ((0, 1), (-1, 1))}, "flattened to 4 numbers"),
        (spaces.Box(-3, 3, ()), {(0.5,): 1.5}, "flattened to 1 number; rescaled"),
        (spaces.Dict(a=spaces.Box(0, 1, (2,)), b=spaces.Box(-1, 1, ())), {(1, -1, 2): {"a": (1, 0), "b": 1}}, "3 num"),
        (spaces.Discrete(3, start=-1), {0: -1, 2: 1}, "0 stands for -1"),
        (spaces.MultiDiscrete([3, 4]), {0: (0, 0), 5: (1, 1), 11: (2, 3)}, "all 12 combinations"),
        (spaces.MultiDiscrete([2, 2], start=[1, 5]), {3: (2, 6)}, "all 4 combinations"),
        (spaces.MultiBinary((2, 2)), {9: ((1, 0), (0, 1))}, "all 16 combinations"),
        (
            spaces.Tuple((spaces.Discrete(2), spaces.Dict(b=spaces.MultiBinary(1)))),
            {1: (0, {"b": (1,)}), 2: (1, {"b": (0,)})},
            "all 4 combinations",
        ),
    ],
)
def test_actions_are_what_the_environment_takes(space: spaces.Space[Any], pairs: dict[Any, Any], note: str) -> None:
    fit = ActionFit(space)
    assert fit.changes
    assert note in fit.note
    assert fit.note.startswith("action ")
    for action, expected in pairs.items():
        taken = fit(np.asarray(action))
        assert space.contains(taken)
        np.testing.assert_equal(taken, expected) if not isinstance(space, spaces.Box) else np.testing.assert_allclose(
            taken, expected, rtol=1e-6
        )
    rng = np.random.default_rng(0)
    drawn: NDArray[Any] = rng.normal(size=(50, *fit.space.shape))  # type: ignore[misc]
    if isinstance(fit.space, spaces.Discrete):
        drawn = np.arange(50) % fit.space.n
    many = fit(drawn, batch=True)
    assert batch_space(space, 50).contains(many)
    for action, single in zip(drawn, gymnasium.vector.utils.iterate(batch_space(space, 50), many), strict=True):
        np.testing.assert_equal(fit(action), single)
    if isinstance(space, spaces.Box):
        assert isinstance(fit.space, spaces.Box)
        varied = space.low.ravel() < space.high.ravel()
        assert (np.ptp(many.reshape(50, -1).astype(float), axis=0) > 0)[varied].all(), "all are clipped to one bound"


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-1, 1, (3,)),
        spaces.Box(-1, 1, (3,), np.float64),
        spaces.Box(-INF, INF, (3,)),
        spaces.Box(FLOAT32.min, FLOAT32.max, (3,)),
        PolicyBox(-10, 10, (3,)),  # fitted before, or in the policy's units from the beginning
        PolicyBox(-1, INF, (3,)),
        spaces.Discrete(4),
    ],
)
def test_actions_that_fit_are_left(space: spaces.Space[Any]) -> None:
    fit = ActionFit(space)
    assert fit.space is space
    assert not fit.changes
    assert fit.note == ""


@pytest.mark.parametrize(
    ("space", "said"),
    [
        (spaces.Tuple((spaces.Discrete(2), spaces.Box(-1, 1, (1,)))), "must hold only Box or only discrete parts"),
        (spaces.Sequence(spaces.Discrete(2)), "not Sequence; in make_env, wrap .* gymnasium.ActionWrapper .* Box"),
        (spaces.Text(4), "not Text"),
        (spaces.Graph(spaces.Box(0, 1, (1,)), None), "not Graph"),
        (spaces.OneOf([spaces.Discrete(2)]), "not OneOf"),
        (spaces.Tuple(()), "not nothing"),
        (spaces.Box(0, 1, (0,)), "must be one that holds at least one number"),
        (spaces.MultiBinary(13), f"has 8192 combinations; .* at most {MOST_CHOICES}; .* a Box with .* 13 choices"),
        (None, "must be a gymnasium space"),
    ],
)
def test_actions_that_cannot_be_served_name_the_next_step(space: Any, said: str) -> None:
    with pytest.raises(InputError, match=rf"^action_space = .*{said}"):
        ActionFit(space)


OBSERVATIONS = [
    (spaces.Box(-1, 1, (2,), np.float16), 2, "taken as float32"),
    (spaces.Box(-9, 9, (2, 3)), 6, "flattened to 6 numbers"),
    (spaces.Box(-1, 1, ()), 1, "flattened to 1 number"),
    (spaces.Box(-1e300, 1e300, (1, 2), np.float64), 2, "flattened"),
    (spaces.Box(INT64.min, INT64.max, (2,), np.int64), 2, "taken as float32"),
    (spaces.Discrete(5, start=3), 5, "flattened to 5 numbers"),
    (spaces.MultiDiscrete([3, 4]), 7, "flattened to 7 numbers"),
    (spaces.MultiBinary((2, 2)), 4, "flattened to 4 numbers"),
    (spaces.Dict(b=spaces.Discrete(2), a=spaces.Tuple((spaces.Box(0, 1, (2, 2)), spaces.MultiBinary(1)))), 7, "flatt"),
]


@pytest.mark.parametrize(("space", "size", "note"), OBSERVATIONS)
def test_observations_are_gymnasiums_flattened_ones(space: spaces.Space[Any], size: int, note: str) -> None:
    fit = ObservationFit(space)
    assert note in fit.note
    assert fit.changes
    space.seed(0)
    seen = [space.sample() for _ in range(5)]
    if space.dtype == np.float64:
        seen = [np.array([[1e300, -2.0]])]
    with np.errstate(over="ignore"):
        expected = [spaces.utils.flatten(space, one).astype(np.float32) for one in seen]
    for one, flat in zip(seen, expected, strict=True):
        np.testing.assert_array_equal(fit(one), flat)
        assert fit.space.shape == (size,) == flat.shape
        assert fit(one).dtype == fit.space.dtype == np.float32
    empty = gymnasium.vector.utils.create_empty_array(space, len(seen))
    together = gymnasium.vector.utils.concatenate(space, seen, empty)
    np.testing.assert_array_equal(fit(together, batch=True), expected)


@pytest.mark.parametrize(
    ("space", "pairs"),
    [
        (spaces.Box(0, 255, (1, 3), np.uint8), {((0, 255, 51),): (-1, 1, -0.6)}),
        (box([0, -5], [4, 5], dtype=np.int32), {(0, 0): (-1, 0), (3, 5): (0.5, 1)}),
        (box([2, 0], [2, 4], dtype=np.int32), {(2, 4): (0, 1)}),
        (box([0, 0], [INT64.max, 4], dtype=np.int64), {(7, 4): (7, 1)}),
        (spaces.Discrete(MOST_CHOICES + 1, start=10), {10: (-1,), 10 + MOST_CHOICES: (1,)}),
    ],
)
def test_integers_are_rescaled_by_their_bounds_and_back(space: spaces.Space[Any], pairs: dict[Any, Any]) -> None:
    fit = ObservationFit(space)
    assert "integers rescaled to [-1, 1] by their bounds" in fit.note
    for seen, expected in pairs.items():
        flat = fit(np.asarray(seen, space.dtype))
        np.testing.assert_allclose(flat, expected, atol=1e-6)
        told = np.concatenate([flat, np.float32([0.25])])
        np.testing.assert_array_equal(fit.in_own_units(told), [*np.ravel(seen), 0.25])
    kept = ObservationFit(space, rescale=False) if isinstance(space, spaces.Box) else fit
    assert ("rescaled" in kept.note) == isinstance(space, spaces.Discrete)


def test_pixels_say_that_there_are_no_convolutions() -> None:
    assert "no convolutions" in ObservationFit(spaces.Box(0, 255, (84, 84, 3), np.uint8)).note
    assert "no convolutions" not in ObservationFit(spaces.Box(0, 255, (8, 8, 3), np.uint8)).note


@pytest.mark.parametrize(
    "space",
    [
        spaces.Sequence(spaces.Box(-1, 1, (2,))),
        spaces.Text(4),
        spaces.Graph(spaces.Box(0, 1, (1,)), None),
        spaces.OneOf([spaces.Discrete(2)]),
        spaces.Dict(a=spaces.Dict(b=spaces.Sequence(spaces.Discrete(2)))),
    ],
)
def test_observations_that_have_no_fixed_size_are_refused(space: spaces.Space[Any]) -> None:
    said = r"^observation_space = .*(Sequence|Text|Graph|OneOf) has no fixed .*gymnasium.ObservationWrapper .* a Box$"
    with pytest.raises(InputError, match=said) as raised:
        ObservationFit(space)
    assert "Flatten" not in str(raised.value), "it would give the same space back"


class Echo(gymnasium.Env[Any, Any]):
    """Pays minus the distance of the action from the task, in the action's own units, and remembers actions."""

    observation_space: spaces.Space[Any] = spaces.Dict(place=spaces.Box(0, 8, (2,), np.int64), on=spaces.Discrete(2))
    action_space: spaces.Space[Any] = spaces.Box(5, 50, (1,), np.float32)
    goal = 0.0

    def __init__(self) -> None:
        self.taken: list[Any] = []

    def observe(self) -> Any:
        return {"place": np.array([2, len(self.taken)]), "on": 1}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.taken = []
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.taken.append(action)
        return self.observe(), -abs(float(action[0]) - self.goal), False, False, {}


class Motors(EnvTaskDistribution[float]):
    horizon = 4
    kind: ClassVar[type[Echo]] = Echo

    def sample(self, num_tasks: int, rng: np.random.Generator, *, split: Split = "train") -> list[float]:
        return [float(goal) for goal in rng.uniform(10, 45, num_tasks)]

    def make_env(self) -> gymnasium.Env[Any, Any]:
        return self.kind()

    def set_task(self, env: Any, task: float) -> None:
        assert type(env) is self.kind, "as make_env made it"
        env.goal = task

    def scene(self, task: float) -> Scene:
        return Scene()

    def positions(self, observations: NDArray[np.float32]) -> NDArray[np.float32]:
        return observations[..., :2]


class Both:
    """Several environments that step together, as gymnasium puts them together."""

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs
        self.envs = [Echo() for _ in range(num_envs)]
        self.single_observation_space, self.single_action_space = Echo.observation_space, Echo.action_space
        self.closed = False

    def set_tasks(self, tasks: Any) -> None:
        for env, task in zip(self.envs, tasks, strict=True):
            env.goal = task

    def _together(self, seen: list[Any]) -> Any:
        space = self.single_observation_space
        empty = gymnasium.vector.utils.create_empty_array(space, self.num_envs)
        return gymnasium.vector.utils.concatenate(space, seen, empty)

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return self._together([env.reset()[0] for env in self.envs]), {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        steps = [env.step(action) for env, action in zip(self.envs, actions, strict=True)]
        nothing = np.zeros(self.num_envs, bool)
        return self._together([s[0] for s in steps]), np.array([s[1] for s in steps]), nothing, nothing, {}

    def close(self) -> None:
        self.closed = True


class Together(Motors):
    def make_vector_env(self, num_envs: int, *, num_threads: int) -> Any:
        return Both(num_envs)


def learner_of(collector: RolloutCollector, **settings: Any) -> MAML:
    config = MAMLConfig(hidden_sizes=(8,), num_trajectories=collector.num_trajectories, **settings)
    return MAML(config, collector.spaces, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", [Motors, Together])
def test_a_policy_acts_in_own_environments_whoever_steps_them(family: type[Motors]) -> None:
    collector = RolloutCollector(family(), num_trajectories=20)
    assert collector.spaces == Spaces(4, 1, discrete=False)
    assert [note.split(" ")[0] for note in collector.space_notes] == ["action", "observation"]
    learner = learner_of(collector)
    data = collector.query([20.0], learner, learner.begin(1), Seeds.first(1))
    paid = -(27.5 + 22.5 * data.actions.squeeze(-1).clamp(-1.0, 1.0) - 20.0).abs()
    torch.testing.assert_close(data.rewards, paid)
    np.testing.assert_allclose(data.observations[0, 0].numpy(), [[-0.5, t / 4 - 1, 0, 1] for t in range(4)])
    # What draws the way is given flat observations in the environment's own units.
    np.testing.assert_array_equal(collector.positions(data.observations[0, 0].numpy()), [[2, t] for t in range(4)])
    told = RolloutCollector(TaskInObservation(family()), num_trajectories=2)
    assert told.spaces.observation_size == 5
    assert told.space_notes == collector.space_notes
    data = told.query([20.0], learner_of(told), learner_of(told).begin(1), Seeds.first(1))
    assert (data.observations[..., 4] == 20.0).all()
    np.testing.assert_array_equal(told.positions(data.observations[0, 0].numpy()), [[2, t] for t in range(4)])


def test_stable_baselines_and_predictors_meet_the_same_spaces() -> None:
    family = Motors()
    collector = RolloutCollector(family, num_trajectories=2)
    learner = learner_of(collector)
    vec_env = TaskVecEnv(family, 2, tasks=30.0)
    assert (vec_env.observation_space.shape, vec_env.action_space) == ((4,), spaces.Box(-1, 1, (1,)))
    rows = vec_env.reset()
    np.testing.assert_allclose(rows, [[-0.5, -1, 0, 1]] * 2)
    # The same policy in the units of SB3's environment, in those of the user's, and in a fitted one.
    own = fitted(Echo())
    predictors = [
        AdaptedPredictor(learner, s, seed=3) for s in (vec_env.action_space, Echo.action_space, own.action_space)
    ]
    to_vec, to_own, to_fitted = (predictor.predict(rows)[0] for predictor in predictors)
    np.testing.assert_allclose(to_own, 27.5 + 22.5 * to_vec, rtol=1e-6)
    np.testing.assert_array_equal(to_vec, to_fitted)
    assert (np.abs(to_vec) <= 1).all()
    assert Echo.action_space.contains(predictors[1].predict(rows[0])[0])
    vec_env.step(to_vec)
    np.testing.assert_allclose(np.concatenate(vec_env.get_attr("taken")), to_own, rtol=1e-6)
    # Units that are the policy's already stay.
    limited = TaskVecEnv(OwnUnits(), 1)
    likeliest = learner.distribution(learner.begin(1), torch.from_numpy(rows)[None]).mode()[0].detach().numpy()
    taken = AdaptedPredictor(learner, limited.action_space).predict(rows, deterministic=True)[0]
    np.testing.assert_array_equal(taken, likeliest.clip(-3.0, 3.0))


class Kept(Echo):
    observation_space = spaces.Dict(place=spaces.Box(0, 8, (2,), np.int64), on=spaces.Discrete(2))
    action_space = spaces.Box(-3, 3, (1,), np.float32)
    metadata: ClassVar[dict[str, Any]] = {"own_units": True}


class OwnUnits(Motors):
    kind = Kept


def test_an_environment_may_keep_its_own_units() -> None:
    collector = RolloutCollector(OwnUnits(), num_trajectories=2)
    assert [note.endswith("): flattened to 4 numbers") for note in collector.space_notes] == [True]
    learner = learner_of(collector)
    data = collector.query([0.0], learner, learner.begin(1), Seeds.first(1))
    torch.testing.assert_close(data.rewards, -data.actions.squeeze(-1).clamp(-3.0, 3.0).abs())
    assert data.observations[0, 0, 0].tolist() == [2.0, 0.0, 0.0, 1.0]


def test_a_batch_of_the_users_is_closed_when_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Both] = []

    class Odd(Together):
        def make_vector_env(self, num_envs: int, *, num_threads: int) -> Any:
            made.append(Both(num_envs))
            made[-1].single_action_space = spaces.Text(3)
            return made[-1]

    with pytest.raises(InputError, match=r"^action_space = Text"):
        vector_env_of(Odd(), 2)
    assert [env.closed for env in made] == [True]


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        ({"place": np.zeros(2, int)}, "an observation with keys place: must be a dict with place, on"),
        (np.zeros(3), "an observation with ndarray: must be a dict with place, on"),
        ({"place": np.zeros(3, int), "on": 1}, r"an observation \[0 0 0\]: must be of Box"),
        ({"place": np.array(["a", "b"]), "on": 1}, "must be of Box"),
        ({"place": np.zeros(2, int), "on": 2}, r"must be of Discrete\(2\)"),
        ({"place": np.zeros(2, int), "on": None}, r"must be of Discrete\(2\)"),
    ],
)
def test_an_observation_that_is_not_of_its_space(seen: Any, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    collector = RolloutCollector(Motors(), num_trajectories=1)
    monkeypatch.setattr(Echo, "observe", lambda env: seen if env.taken else {"place": np.zeros(2, int), "on": 0})
    with pytest.raises(EnvironmentFaultError, match=rf"step returned .*{said}.* \(task 20.0, seed \d+, step 1\)$"):
        collector.query([20.0], learner_of(collector), learner_of(collector).begin(1), Seeds.first(1))


def test_families_that_step_all_tasks_at_once_and_plain_spaces_are_untouched() -> None:
    from metarl.envs.half_cheetah import HalfCheetahDir
    from metarl.runs import registry

    for name in registry.TASKS:
        family = registry.load_task(name)
        if (
            issubclass(family, EnvTaskDistribution)
            and family.make_vector_env is not EnvTaskDistribution.make_vector_env
        ):
            env = vector_env_of(family(), 1)
            assert fit_of(env) is None
            assert not isinstance(env, FittedVectorEnv), name
            env.close()
    limited = vector_env_of(HalfCheetahDir(action_limit=10.0), 1)  # the limit is the policy's own unit
    assert limited.single_action_space == spaces.Box(-10, 10, (6,))
    assert not isinstance(limited, FittedVectorEnv)
    plain = gymnasium.make("CartPole-v1")
    assert fitted(plain) is plain


def test_check_tasks_notes_what_is_done_and_sizes() -> None:
    notes: list[str] = []
    assert check_task_distribution(Motors(), on_note=notes.append) == []
    assert [note.split(":")[0].split(" ")[0] for note in notes] == ["action", "observation"]

    class Loud(Kept):
        action_space = spaces.Box(5, 50, (1,), np.float32)
        observation_space = spaces.Box(-INF, INF, (2,), np.float32)

        def observe(self) -> Any:
            return np.array([0.5, 1000.0 + len(self.taken)], np.float32)

    class Louds(Motors):
        kind = Loud

        def scene(self, task: float) -> Any:
            return None

    notes.clear()
    assert check_task_distribution(Louds(), on_note=notes.append) == []
    assert len(notes) == 2
    assert re.search(
        r"larger than 10 .*observation\[1\] ranges from 1000 to 1003: .*agent.normalize_observations", notes[0]
    )
    assert re.search(r"100% of .*action\[0\] outside \[5, 50\]", notes[1])


def test_the_record_is_said_once_and_kept_and_a_change_is_told(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    tiny = (
        f"train {__name__}:Motors --run-dir {run} --iterations 1 --meta-batch-size 2 --agent.num-trajectories 2 "
        "--agent.hidden-sizes 4 --evaluation.num-tasks 2 --evaluation.num-adaptation-steps 1 --evaluation.no-controls"
    )
    assert cli.main(tiny.split()) == 0
    said = capsys.readouterr().err
    notes = json.loads((run / "config.json").read_text())["spaces"]
    assert said.splitlines() == [f"metarl: note: {note}" for note in notes]
    assert notes[0] == "action Box(5.0, 50.0, (1,), float32): rescaled from [-1, 1]"
    load(run, trusted=True)
    assert caplog.text == ""
    # A run folder of a MetaRL that clipped, or whose environment has changed since.
    plain = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({key: value for key, value in plain.items() if key != "spaces"}))
    load(run, trusted=True)
    (line,) = caplog.messages
    assert "In training: nothing changed. Now: action Box(5.0, 50.0" in line
    (run / "config.json").write_text(json.dumps({**plain, "spaces": 7}))
    with pytest.raises(InputError, match="spaces = 7: must be"):
        load(run, trusted=True)


def test_fits_of_batches_and_of_metadata() -> None:
    fit = Fit(Echo.observation_space, Echo.action_space, {"own_units": True})
    assert fit.action.space is Echo.action_space
    assert fit.changes
    assert not Fit(spaces.Box(0, 1, (2,)), spaces.Discrete(2), {}).changes
