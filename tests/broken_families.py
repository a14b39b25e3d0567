"""Task families that each break one thing; tests/cli/test_bad_input.py copies this file into a user's folder."""

from dataclasses import dataclass

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, Text

import metarl


@dataclass(frozen=True)
class Shift:
    size: float


class Drifting(gymnasium.Env):
    observation_space = Box(-np.inf, np.inf, (2,), np.float32)
    action_space = Box(-1.0, 1.0, (1,), np.float32)
    shift = 0.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = self.np_random.random(self.observation_space.shape).astype(np.float32)
        return self.position, {}

    def step(self, action):
        self.position = self.position + np.float32(self.shift)
        return self.position, float(self.position[0]), False, False, {}


class Sound(metarl.EnvTaskDistribution):
    horizon = 3

    def sample(self, num_tasks, rng, *, split="train"):
        return [Shift(float(size)) for size in rng.random(num_tasks)]

    def make_env(self):
        return Drifting()

    def set_task(self, env, task):
        env.shift = task.size


class NoSample(metarl.EnvTaskDistribution):
    def make_env(self):
        return Drifting()

    def set_task(self, env, task):
        pass


class Foreign:
    def sample(self, num_tasks):
        return []


class NeedsArguments(Sound):
    def __init__(self, low, high):
        self.low = low


@dataclass(frozen=True)
class NeedsSetting(Sound):
    low: float


@dataclass(frozen=True)
class Particular(Sound):
    low: float = 0.0

    def __post_init__(self):
        if self.low < 0.0:
            raise ValueError("low is below zero")


class RaisesInit(Sound):
    def __init__(self):
        raise KeyError("no map")


class LeavesInit(Sound):
    def __init__(self):
        raise SystemExit(0)


class RaisesSample(Sound):
    def sample(self, num_tasks, rng, *, split="train"):
        return rng.uniform("a", 1.0)


class TooMany(Sound):
    def sample(self, num_tasks, rng, *, split="train"):
        return super().sample(num_tasks + 1, rng)


class NoList(Sound):
    def sample(self, num_tasks, rng, *, split="train"):
        return None


class IgnoresGenerator(Sound):
    def sample(self, num_tasks, rng, *, split="train"):
        return [Shift(float(number)) for number in range(num_tasks)]


class Overlapping(Sound):
    splits = "disjoint"

    def sample(self, num_tasks, rng, *, split="train"):
        return [Shift(float(size)) for size in rng.integers(5, size=num_tasks)]


class NotFinite(Sound):
    def sample(self, num_tasks, rng, *, split="train"):
        return [Shift(float("nan"))] * num_tasks


class NoTasks(Sound):
    def all_tasks(self, split="test"):
        return []


class NoHorizon(Sound):
    horizon = None


class NoEnv(Sound):
    def make_env(self):
        pass


class Unbuilt(Sound):
    def make_env(self):
        return gymnasium.make("CartPool-v1")


class OtherSpaces(Sound):
    def set_task(self, env, task):
        env.observation_space = Box(-1.0, 1.0, (2 + int(10 * task.size),), np.float32)


class Longer(Sound):
    horizon = 501

    def make_env(self):
        return gymnasium.make("CartPole-v1")


class Spaces(Drifting):
    def __init__(self, observation_space=Drifting.observation_space, action_space=Drifting.action_space):
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample(), {}


class Words(Sound):
    def make_env(self):
        return Spaces(Dict(position=Box(-1.0, 1.0, (2,)), words=Text(9)))


class Mixed(Sound):
    def make_env(self):
        return Spaces(action_space=Dict(gear=Discrete(3, start=1), pedal=Box(-1.0, 1.0, (1,))))


class Keys(Sound):
    def make_env(self):
        return Spaces(action_space=MultiBinary(88))


class Unbounded(Sound):
    def make_env(self):
        env = Drifting()
        env.action_space = Box(-np.inf, np.inf, (1,))
        return env


class WordsForRewards(Sound):
    def make_env(self):
        env = Drifting()
        env.step = lambda action: (np.zeros(2, np.float32), "much", False, False, {})
        return env


class ForgetsItsSeed(Sound):
    def make_env(self):
        env = Drifting()
        env.reset = lambda *, seed=None, options=None: Drifting.reset(env)
        return env


class LosesItsTask(Sound):
    def set_task(self, env, task):
        pass
