"""Adapted agents as predictors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from stable_baselines3.common.evaluation import evaluate_policy

from metarl.agents.cavia import CAVIA, CAVIAConfig
from metarl.agents.maml import MAML, MAMLConfig
from metarl.agents.rl2 import RL2, RL2Config
from metarl.agents.sb3 import AdaptedPredictor, TaskVecEnv, TrialPredictor, TrialVecEnv
from metarl.core.episode import run_episodes
from metarl.core.errors import InputError
from metarl.core.seeds import Seeds
from metarl.envs.point_nav import PointNav
from metarl.rl.rollout import RolloutCollector
from tests.agents.sb3_walks import Walk, WalkEnv, Walks
from tests.agents.sb3_walks import _sb3_seeds_globals as _sb3_seeds_globals


def adapted(learner: Any, family: Any, collector: RolloutCollector, num_tasks: int) -> tuple[Any, Any, Seeds]:
    """Tasks, the state adapted to each, and the seeds of its query."""
    tasks, seeds = family.sample(num_tasks, np.random.default_rng(0)), Seeds.first(num_tasks, seed=7)
    state = run_episodes(learner, collector, tasks, seeds, num_steps=1).state
    return tasks, state, seeds


@pytest.mark.parametrize(("agent", "config"), [(MAML, MAMLConfig), (CAVIA, CAVIAConfig)])
def test_an_adapted_agent_returns_what_it_does_in_our_own_collection(agent: Any, config: Any) -> None:
    family, width = PointNav(horizon=25), 3
    collector = RolloutCollector(family, num_trajectories=width)
    learner = agent(config(hidden_sizes=(16,)), collector.spaces, generator=torch.Generator().manual_seed(0))
    tasks, state, seeds = adapted(learner, family, collector, 3)
    own = collector.query(tasks, learner, state, seeds)
    env = TaskVecEnv(family, width, tasks=tasks[1])
    rng = seeds.query()[1]
    env._seeds = [int(seed) for seed in rng.integers(2**31, size=width)]
    predictor = AdaptedPredictor(learner, env.action_space, state=state, task=1, seed=rng)
    returns, lengths = evaluate_policy(
        predictor, env, width, deterministic=False, return_episode_rewards=True, warn=False
    )
    assert sorted(lengths) == sorted(own.mask[1].sum(1).int().tolist())
    assert sorted(returns) == pytest.approx(sorted(own.rewards[1].double().sum(1).tolist()), abs=1e-4)
    single, kept = predictor.predict(np.ones(2), state=(5,), deterministic=True)
    assert kept == (5,)
    assert single.shape == (2,)
    limit = env.action_space.high[0]
    mean = learner.policy(state, 1)(torch.ones(2)).mean.detach()
    assert single == pytest.approx(mean.clamp(-limit, limit).numpy(), abs=1e-6)
    unadapted = AdaptedPredictor(learner, env.action_space).predict(np.ones(2), deterministic=True)[0]
    assert unadapted != pytest.approx(single, abs=1e-6)
    rows = predictor.predict(np.zeros((400, 2)))[0]
    assert rows.shape == (400, 2)
    assert np.abs(rows).max() == limit, "clipped to the action space"


class Replayed(np.random.Generator):
    """Returns the sampling noise of our own collection, step by step."""

    def __init__(self, rows: Sequence[Any]) -> None:
        super().__init__(np.random.PCG64(0))
        self.rows = iter(rows)

    def random(self, *_: Any, **__: Any) -> Any:
        return next(self.rows)[None]

    standard_normal = random


def noise_of(rng: np.random.Generator, horizon: int, shape: tuple[int, ...]) -> list[Any]:
    """The noise of a collection, by step."""
    rng.integers(2**31, size=shape[0])  # the environments' seeds
    draw = rng.random if len(shape) == 1 else rng.standard_normal
    return list(draw((horizon, *shape), dtype=np.float32))


@pytest.mark.parametrize("memory", ["lstm", "gru", "transformer", "mann"])
@pytest.mark.parametrize("discrete", [True, False])
def test_rl2_remembers_as_in_our_own_collection(memory: Any, discrete: bool) -> None:
    family, width, num_trials = Walks(horizon=4, discrete=discrete), 5, 2
    config = RL2Config(memory=memory, hidden_size=8, trajectories_per_trial=3, num_trajectories=width, output_gain=3.0)
    collector = RolloutCollector(family, num_trajectories=width)
    learner = RL2(config, collector.spaces, generator=torch.Generator().manual_seed(1))
    task, own, noise = Walk(9, 1.5), [], []
    for trial in range(num_trials):
        seeds = Seeds.first(1, seed=trial)
        episodes = run_episodes(learner, collector, [task], seeds, num_steps=2)
        parts = (*episodes.support, episodes.query)
        own += sum(part.rewards[0].double().sum(1) for part in parts).tolist()  # type: ignore[union-attr]
        for rngs in (seeds.support(0), seeds.support(1), seeds.query()):
            noise += noise_of(rngs[0], 4, (width,) if discrete else (width, 1))
    env = TrialVecEnv(family, width, tasks=task, episodes_per_trial=3)
    predictor = TrialPredictor(learner, env.action_space, seed=Replayed(noise))
    returns, lengths = evaluate_policy(
        predictor, env, num_trials * width, deterministic=False, return_episode_rewards=True, warn=False
    )
    assert lengths == [12] * num_trials * width
    assert len(set(own)) > 1
    assert returns == pytest.approx(own, abs=1e-5)


def test_a_memory_is_cleared_where_a_trial_begins_and_nowhere_else() -> None:
    spaces = RolloutCollector(Walks(), num_trajectories=1).spaces
    for memory in ("lstm", "gru", "transformer", "mann"):
        config = RL2Config(memory=memory, hidden_size=8, output_gain=3.0)  # type: ignore[arg-type]
        learner = RL2(config, spaces, generator=torch.Generator().manual_seed(0))
        predictor = TrialPredictor(learner, Box(-1.0, 1.0, (1,), np.float32))
        first, second = np.random.default_rng(0).normal(size=(2, 2, 5)).astype(np.float32)

        def act(rows: Any, state: Any = None, starts: Any = None, predictor: Any = predictor) -> tuple[Any, Any]:
            return predictor.predict(rows, state, starts, deterministic=True)  # type: ignore[no-any-return]

        alone, state = act(first)
        again, _ = act(second)
        kept, _ = act(second, state)
        mixed, after = act(second, state, np.array([True, False]))
        assert not np.allclose(kept, again, atol=1e-4)
        np.testing.assert_allclose(mixed[0], again[0], atol=1e-6)
        np.testing.assert_allclose(mixed[1], kept[1], atol=1e-6)
        assert all(len(part) == 2 for part in after)
        single, _ = act(first[0])
        assert single.shape == (1,)
        np.testing.assert_allclose(single, alone[0], atol=1e-5)


def test_a_predictor_says_what_does_not_fit() -> None:
    collector = RolloutCollector(Walks(), num_trajectories=1)
    maml = MAML(MAMLConfig(), collector.spaces, generator=torch.Generator())
    rl2 = RL2(RL2Config(), collector.spaces, generator=torch.Generator())
    space = Box(-1.0, 1.0, (1,), np.float32)
    with pytest.raises(InputError, match=r"action_space = Discrete\(2\): must be a Box of shape"):
        AdaptedPredictor(maml, Discrete(2))
    with pytest.raises(InputError, match=r"task = 2: must be an integer in \[0, 2\), one of the tasks of the state"):
        AdaptedPredictor(maml, space, state=maml.begin(2), task=2)
    with pytest.raises(InputError, match=r"state = 'TrialState': must be an adapted state of this learner"):
        AdaptedPredictor(maml, space, state=rl2.begin(2))
    kinds = [
        (AdaptedPredictor, maml, "an RL agent that takes gradient steps", (rl2, "'RL2'", "write TrialPredictor")),
        (TrialPredictor, rl2, "RL2, or one derived from it", (maml, "'MAML'", "write AdaptedPredictor")),
    ]
    for kind, learner, needed, (other, name, advice) in kinds:
        wrong = [(other, f"{name}: must be {needed}; {advice}"), (None, f"'NoneType': must be {needed}")]
        wrong += [
            (path, f"'runs/x': must be {needed}; write metarl.load('runs/x')") for path in ("runs/x", Path("runs/x"))
        ]
        for given, said in wrong:
            with pytest.raises(InputError, match=re.escape(f"learner = {said}")):
                kind(given, space)
        call = f"write {kind.__name__}(learner, env.action_space)"
        with pytest.raises(InputError, match=re.escape(f"action_space: missing; {call}")):
            kind(learner)
        with pytest.raises(InputError, match=re.escape(f": must be a gymnasium space; {call}")):
            kind(learner, TaskVecEnv(Walks(), 1))
    with pytest.raises(InputError, match=r"observation: .*; must be numbers, "):
        AdaptedPredictor(maml, space).predict({"position": 1})


def test_a_predictor_in_another_environment_names_its_own() -> None:
    spaces = RolloutCollector(Walks(), num_trajectories=1).spaces
    rl2 = RL2(RL2Config(), spaces, generator=torch.Generator())
    maml = MAML(MAMLConfig(), spaces, generator=torch.Generator())
    trial = r"\[5\] or \[n, 5\]: an observation of TrialVecEnv\(distribution, num_envs, episodes_per_trial=...\)$"
    for env in (WalkEnv(discrete=False), TaskVecEnv(Walks(), 1)):
        with pytest.raises(InputError, match=rf"observation.shape = \(1, 2\): must be {trial}"):
            evaluate_policy(TrialPredictor(rl2, env.action_space), env, warn=False)  # type: ignore[arg-type]
    own = TrialVecEnv(Walks(), 1, episodes_per_trial=2)
    with pytest.raises(InputError, match=r"\(1, 5\): must be \[2\] or \[n, 2\]: an observation of TaskVecEnv$"):
        evaluate_policy(AdaptedPredictor(maml, own.action_space), own, warn=False)  # type: ignore[arg-type]
