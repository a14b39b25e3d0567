"""Controls: does the learner use the data of the task, or does a further step improve it on any task?

Shape legend: T distinct tasks, R replicates of each task.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from metarl.core.episode import Collector, run_episodes
from metarl.core.errors import one_line
from metarl.core.evaluation import Batch, Data, State, score_rows
from metarl.core.learner import Learner
from metarl.core.schema import Controls
from metarl.core.seeds import CONTROLS_ITERATION, Purpose, Seeds, generator
from metarl.core.statistics import Array, bootstrap
from metarl.core.tasks import Tasks, require_tasks


def adaptation_controls(
    learner: Learner[State, Data, Batch],
    collector: Collector[State, Data],
    tasks: Tasks,
    *,
    num_replicates: int = 20,
    num_steps: int | None = None,
    seed: int = 0,
) -> Controls:
    """Measures the cross-adaptation matrix and the zero-reward control.

    The matrix adapts on the support of task i and scores on the query of task j. A learner that uses its data is best
    on the diagonal. The zero-reward control adapts on support without rewards or targets, so neither explains a gain.
    All entries of a column share the random numbers of their query: they differ only by the task of the support.

    Args:
        learner: any learner.
        collector: collects its data.
        tasks: T distinct tasks.
        num_replicates: R.
        num_steps: adaptation steps; None = the learner's own number.
        seed: as in `evaluate`.

    Returns:
        The scores, as JSON-ready data.

    Raises:
        InputError: `tasks` is not a list of tasks.
    """
    require_tasks(tasks)
    count, total = len(tasks), len(tasks) * num_replicates
    num_steps = learner.num_adaptation_steps if num_steps is None else num_steps
    adapted_on = [task for task in tasks for _ in range(num_replicates)]
    seeds = Seeds(seed, CONTROLS_ITERATION, tuple(range(total)), evaluation=True)
    episodes = run_episodes(learner, collector, adapted_on, seeds, num_steps=num_steps)
    silent = run_episodes(
        learner, collector, adapted_on, seeds, num_steps=num_steps, transform_support=lambda data: data.without_signal()
    )
    before = run_episodes(learner, collector, adapted_on, seeds, num_steps=0)

    def by_task(scores: Tensor) -> Array:
        last: Array = score_rows((scores,))[-1].reshape(count, num_replicates)
        return last

    matrix = np.empty((count, count, num_replicates))
    for shift in range(count):
        order = [(i + shift * num_replicates) % total for i in range(total)]
        query = collector.query([adapted_on[i] for i in order], learner, episodes.state, seeds.take(order))
        rows = by_task(learner.score(episodes.state, learner.prepare(query)))
        for i in range(count):
            matrix[i, (i + shift) % count] = rows[i]
    low, high = bootstrap(matrix, generator(seed, 0, Purpose.BOOTSTRAP))
    return {
        "tasks": [one_line(task) for task in tasks],
        "num_adaptation_steps": num_steps,
        "num_replicates": num_replicates,
        "matrix": matrix.mean(2).tolist(),
        "matrix_ci_low": low.tolist(),
        "matrix_ci_high": high.tolist(),
        "before": by_task(before.scores[-1]).mean(1).tolist(),
        "zero_reward": by_task(silent.scores[-1]).mean(1).tolist(),
    }
