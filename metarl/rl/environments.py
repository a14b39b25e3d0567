"""The environments of a task distribution, and the properties of their spaces that a learner needs."""

from __future__ import annotations

import gymnasium

from metarl.core.errors import InputError, users_code
from metarl.core.learner import Spaces
from metarl.rl.gymnasium_tasks import GymnasiumTasks
from metarl.rl.spaces import Fit
from metarl.rl.tasks import EnvTasks, TaskVectorEnv, TaskVectorWrapper, metadata_of
from metarl.rl.wrappers import FittedVectorEnv


def vector_env_of(
    tasks: EnvTasks, num_envs: int, *, num_threads: int = 0, timeout: float | None = None
) -> TaskVectorEnv:
    """`num_envs` environments of `tasks`, with spaces for a policy.

    They step together if the distribution has `make_vector_env`, otherwise one after another (`GymnasiumTasks`).

    Args:
        tasks: the distribution.
        num_envs: number of environments.
        num_threads: of the simulator, 0 for all cores; does not change the results.
        timeout: seconds that one call of one of gymnasium's environments may take, > 0; None for no limit.
    """
    with users_code("make_vector_env"):
        together = tasks.make_vector_env(num_envs, num_threads=num_threads)
    if together is None:
        return GymnasiumTasks(tasks, num_envs, timeout=timeout)
    try:
        fit = Fit(together.single_observation_space, together.single_action_space, metadata_of(together))
    except InputError:
        together.close()
        raise
    return FittedVectorEnv(together, fit) if fit.changes else together


def fit_of(env: TaskVectorEnv) -> Fit | None:
    """How `vector_env_of` converted the spaces of `env` for a policy; None if it did not convert them."""
    if isinstance(env, (GymnasiumTasks, FittedVectorEnv)):
        return env.fit
    return fit_of(env.env) if isinstance(env, TaskVectorWrapper) else None


def spaces_of(env: TaskVectorEnv) -> Spaces:
    """The sizes of the spaces of `env`, which `vector_env_of` made."""
    observations, actions = env.single_observation_space, env.single_action_space
    assert isinstance(observations, gymnasium.spaces.Box)
    if isinstance(actions, gymnasium.spaces.Discrete):
        return Spaces(observations.shape[0], int(actions.n), discrete=True)
    assert isinstance(actions, gymnasium.spaces.Box)
    return Spaces(observations.shape[0], actions.shape[0], discrete=False)
