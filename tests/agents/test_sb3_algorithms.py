"""Algorithms of stable-baselines3 and sb3-contrib: equal steps, values and advantages, and what they learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sb3_contrib import TRPO, RecurrentPPO
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecMonitor
from torch import Tensor

from metarl.agents.rl2 import RL2, RL2Config
from metarl.agents.sb3 import TaskVecEnv, TrialPredictor, TrialVecEnv
from metarl.core.config import TrainerConfig
from metarl.core.trainer import Trainer
from metarl.envs.bandit import Bandit
from metarl.envs.bandit_yardsticks import exact_return
from metarl.envs.half_cheetah import HalfCheetahVel
from metarl.envs.point_nav import PointNav
from metarl.gradients.trust_region import trust_region_step
from metarl.gradients.vectors import flatten, unflatten
from metarl.networks.policies import Gaussian, make_policy
from metarl.rl.returns import discounted_returns, generalized_advantages
from metarl.rl.rollout import RolloutCollector
from tests.agents.sb3_walks import Walk, Walks
from tests.agents.sb3_walks import _sb3_seeds_globals as _sb3_seeds_globals


def in_double(monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
    """SB3 casts observations to float32; this makes the whole model compute in float64."""
    model.policy.double()
    monkeypatch.setattr(
        "stable_baselines3.common.policies.preprocess_obs", lambda observations, *_, **__: observations.double()
    )
    to_torch = model.rollout_buffer.to_torch
    model.rollout_buffer.to_torch = lambda array, copy=True: to_torch(array, copy).double()


def test_a_trust_region_step_is_that_of_sb3_contribs_trpo(monkeypatch: pytest.MonkeyPatch) -> None:
    env = TaskVecEnv(HalfCheetahVel(horizon=32), 4, seed=0)
    model = TRPO(
        "MlpPolicy", env, n_steps=64, batch_size=256, cg_damping=1e-2, cg_max_steps=10, n_critic_updates=1,
        line_search_max_iter=10, target_kl=0.02, policy_kwargs={"net_arch": [16, 16]}, seed=1, device="cpu",
    )  # fmt: skip
    in_double(monkeypatch, model)
    # its conjugate gradients start at noise, ours at zero
    monkeypatch.setattr("sb3_contrib.common.utils.th.randn_like", torch.zeros_like)
    _, callback = model._setup_learn(256)
    model.collect_rollouts(env, callback, model.rollout_buffer, n_rollout_steps=64)
    (data,) = model.rollout_buffer.get(None)
    policy, names = model.policy, {"mlp_extractor.policy_net.0": 0, "mlp_extractor.policy_net.2": 1, "action_net": 2}
    module = make_policy(
        env.spaces, hidden_sizes=(16, 16), activation="tanh", initial_std=1.0, min_std=1e-6,
        generator=torch.Generator(),
    ).double()  # fmt: skip

    def theirs() -> dict[str, Tensor]:
        state = policy.state_dict()
        layers = {
            f"mean.layers.{k}.{part}": state[f"{name}.{part}"]
            for name, k in names.items()
            for part in ("weight", "bias")
        }
        return {name: ({"log_std": state["log_std"]} | layers)[name].clone() for name, _ in module.named_parameters()}

    start = theirs()
    advantages = (data.advantages - data.advantages.mean()) / (data.advantages.std() + 1e-8)

    def distribution(vector: Tensor) -> Gaussian:
        found: Gaussian = torch.func.functional_call(module, unflatten(vector, start), (data.observations,))
        return found

    def objective(vector: Tensor) -> Tensor:
        ratio = (distribution(vector).log_prob(data.actions) - data.old_log_prob).exp()
        return (ratio * advantages).mean()

    vector = flatten(start)
    old = distribution(vector).detach()

    def divergence(candidate: Tensor) -> Tensor:
        return distribution(candidate).kl(old).mean()

    def product(direction: Tensor) -> Tensor:
        curved: Tensor = torch.func.grad(lambda point: torch.func.grad(divergence)(point) @ direction)(vector)
        return curved

    num = env.spaces.action_size  # its KL of normal actions is the mean over their dimensions, ours the sum
    step = trust_region_step(
        vector, float(objective(vector)), torch.func.grad(objective)(vector), product,
        lambda candidate: (float(objective(candidate)), float(divergence(candidate))),
        max_kl=num * 0.02, cg_iterations=10, cg_damping=num * 1e-2, max_backtracks=10, backtrack_ratio=0.8,
    )  # fmt: skip
    model.train()
    assert step.accepted
    expected = flatten(theirs())
    assert float((expected - vector).norm()) > 0.05
    torch.testing.assert_close(step.vector, expected, rtol=0, atol=1e-9)
    assert model.logger.name_to_value["train/kl_divergence_loss"] == pytest.approx(step.kl / num, rel=1e-7)
    gained = model.logger.name_to_value["train/policy_objective"] - float(objective(vector))
    assert gained == pytest.approx(step.improvement, rel=1e-7)


def recurrent(env: Any, **settings: Any) -> RecurrentPPO:
    kwargs = {"lstm_hidden_size": 8, "net_arch": [], "enable_critic_lstm": False, "shared_lstm": True}
    kwargs |= settings.pop("policy_kwargs", {})
    return RecurrentPPO("MlpLstmPolicy", env, policy_kwargs=kwargs, device="cpu", seed=2, **settings)


def test_returns_and_advantages_over_trials_are_those_of_recurrent_ppo() -> None:
    width, length, trials = 4, 9, 3
    env = TrialVecEnv(Walks(horizon=3, discrete=True), width, tasks=Walk(9, 1.0), episodes_per_trial=3)
    model = recurrent(env, n_steps=length * trials, batch_size=12, gamma=0.9, gae_lambda=0.8)
    _, callback = model._setup_learn(width * length * trials)
    buffer = model.rollout_buffer
    model.collect_rollouts(env, callback, buffer, n_rollout_steps=length * trials)

    def by_trial(array: Any) -> Tensor:
        return torch.from_numpy(array.reshape(trials, length, width).transpose(2, 0, 1).reshape(-1, length)).double()

    starts = by_trial(buffer.episode_starts)
    assert starts.sum(1).tolist() == starts[:, 0].tolist() == [1.0] * len(starts)
    rewards, values, mask = by_trial(buffer.rewards), by_trial(buffer.values), torch.ones_like(starts)
    assert float(rewards.sum()) > 0
    nothing = torch.zeros(len(rewards), dtype=torch.float64)  # is what the end of a trial is worth
    advantages = generalized_advantages(rewards, values, mask, gamma=0.9, gae_lambda=0.8, last_values=nothing)
    torch.testing.assert_close(by_trial(buffer.advantages), advantages, rtol=0, atol=1e-5)
    torch.testing.assert_close(by_trial(buffer.returns), advantages + values, rtol=0, atol=1e-5)
    whole = generalized_advantages(rewards, values, mask, gamma=0.9, gae_lambda=1.0, last_values=nothing)
    torch.testing.assert_close(whole + values, discounted_returns(rewards, mask, gamma=0.9))


def test_rl2_with_the_weights_of_a_recurrent_ppo_does_and_values_the_same() -> None:
    width = 6
    env = TrialVecEnv(Bandit(num_arms=4, num_pulls=5), width, episodes_per_trial=2, seed=1)
    model = recurrent(env, n_steps=10, batch_size=10)
    learner = RL2(RL2Config(hidden_size=8), env.spaces, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():  # so that its actions depend on its memory
        for parameter in (*model.policy.lstm_actor.parameters(), model.policy.action_net.weight):
            parameter.normal_(generator=torch.Generator().manual_seed(2))
    copied = learner.network
    copied.memory.network.load_state_dict(model.policy.lstm_actor.state_dict())  # type: ignore[union-attr]
    copied.policy.load_state_dict(model.policy.action_net.state_dict())
    copied.value.load_state_dict(model.policy.value_net.state_dict())
    predictor = TrialPredictor(learner, env.action_space)
    observations, starts = env.reset(), np.ones(width, bool)
    ours: Any = None
    theirs: Any = None
    seen = set()
    for _ in range(25):
        actions, ours = predictor.predict(observations, ours, starts, deterministic=True)
        expected, theirs = model.predict(observations, theirs, starts, deterministic=True)
        assert actions.tolist() == expected.tolist()
        for mine, other in zip(ours, theirs, strict=False):
            np.testing.assert_allclose(mine, other[0], atol=1e-6)
        seen |= {*actions.tolist()}
        observations, _, starts, _ = env.step(actions)
    assert len(seen) > 1


@pytest.mark.slow  # half a minute each
@pytest.mark.parametrize("kind", ["RecurrentPPO", "RL2"])
def test_a_memory_learns_a_bandit_over_trials(kind: str) -> None:
    """Random play pays 5 of 10 pulls; half the way from there to the exact Bayes optimum needs a memory."""
    family, seed = Bandit(num_arms=2, num_pulls=5), 0
    env = TrialVecEnv(family, 40, episodes_per_trial=2, seed=seed)
    if kind == "RecurrentPPO":
        model: Any = recurrent(
            VecMonitor(env), n_steps=50, batch_size=500, learning_rate=3e-3, gae_lambda=0.9, n_epochs=5,
            policy_kwargs={"lstm_hidden_size": 32},
        )  # fmt: skip
        model.learn(40 * 50 * 40)
    else:
        config = RL2Config(hidden_size=32, trajectories_per_trial=2, num_trajectories=1, learning_rate=3e-3)
        collector = RolloutCollector(family, num_trajectories=1)
        learner = RL2(config, collector.spaces, generator=torch.Generator().manual_seed(seed))
        trainer = Trainer(learner, collector, family, TrainerConfig(iterations=40, meta_batch_size=200, seed=seed))
        for _ in range(40):
            trainer.train_iteration()
        model = TrialPredictor(learner, env.action_space)
    test = TrialVecEnv(family, 200, episodes_per_trial=2, split="test", seed=99)
    score, spread = evaluate_policy(model, test, 4000, deterministic=True, warn=False)
    assert score - 2.0 * spread / 4000**0.5 > 0.5 * (5.0 + exact_return(2, 10))


@pytest.mark.slow  # a quarter of a minute
def test_ppo_learns_one_task() -> None:
    """A point that stands still at the start gets the first return; it is to get rid of half of that."""
    family = PointNav(horizon=50)
    (task,) = family.sample(1, np.random.default_rng(4), split="test")
    test = TaskVecEnv(family, 10, tasks=task, seed=1)
    model = PPO(
        "MlpPolicy", TaskVecEnv(family, 8, tasks=task), n_steps=128, batch_size=256, gamma=0.95, seed=0, device="cpu"
    )
    before = evaluate_policy(model, test, 10, warn=False)[0]
    model.learn(60_000)
    after = evaluate_policy(model, test, 10, warn=False)[0]
    assert before < 0.0
    assert after > 0.5 * before
