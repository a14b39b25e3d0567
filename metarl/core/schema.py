"""What the JSON files of an evaluation hold: `adaptation.json` and `paths.json`.

Shape legend: K the last adaptation step, T distinct tasks, R replicates of each task.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NotRequired, TypedDict

from metarl.core.files import Json

if TYPE_CHECKING:  # it imports torch
    from metarl.core.learner import ScoreName, Unit


class Gain(TypedDict):
    """By how much each step is better than step 0, and its 95 % interval, each [K + 1]."""

    mean: list[float]
    ci_low: list[float]
    ci_high: list[float]


class TaskGain(TypedDict):
    """`Gain` of every task, each [K + 1][T]."""

    mean: list[list[float]]
    ci_low: list[list[float]]
    ci_high: list[list[float]]


class Baseline(TypedDict):
    """The score of a method that learns nothing, on the same episodes."""

    name: str
    mean: float
    ci_low: float
    ci_high: float


class Controls(TypedDict):
    """Scores that show whether the learner uses the task's data.

    Attributes:
        tasks: names of the T tasks.
        num_adaptation_steps: steps before scoring.
        num_replicates: R.
        matrix: [T][T]; row: adapted on, column: scored on.
        matrix_ci_low: [T][T], low end of the 95 % interval.
        matrix_ci_high: [T][T], high end.
        before: [T], without adaptation.
        zero_reward: [T], adapted to data without rewards or labels.
    """

    tasks: list[str]
    num_adaptation_steps: int
    num_replicates: int
    matrix: list[list[float]]
    matrix_ci_low: list[list[float]]
    matrix_ci_high: list[list[float]]
    before: list[float]
    zero_reward: list[float]


class Family(TypedDict):
    """The name of a task family, and its settings."""

    task_name: str
    task: dict[str, Json]


class Report(TypedDict):
    """The content of `adaptation.json`.

    Attributes:
        unit: what one step consumes.
        score: what is measured.
        splits: the family's splits, or "transfer" where other tasks than the run's are evaluated.
        steps: 0 to K.
        env_steps: [K + 1], steps (or examples) spent on one task by then.
        mean: [K + 1]. `iqm` (interquartile mean), `worst_decile`, `ci_low` and `ci_high` (95 % interval) likewise.
        per_task: [K + 1][T].
        tasks: names of the T tasks.
        num_replicates: R: 1, or more for a finite family, whose report has an interval and a gain for each task.
        resampling: what the intervals resample.
        success: [K + 1], success rate, where environments report it.
        settings: of a few-shot learner, what a score depends on besides the tasks.
        protocol: of few-shot tasks: "5-way 1-shot".
        step_scale: the chosen factor on the test-time step size; `validation` has the score of each factor.
        trained_on: with `evaluated_on`, if other tasks than the run's are evaluated.
    """

    schema_version: int
    unit: Unit
    score: ScoreName
    higher_is_better: bool
    splits: str
    steps: list[int]
    env_steps: list[float]
    mean: list[float]
    iqm: list[float]
    worst_decile: list[float]
    ci_low: list[float]
    ci_high: list[float]
    gain: Gain
    per_task: list[list[float]]
    tasks: list[str]
    num_tasks: int
    num_replicates: int
    resampling: str
    success: NotRequired[list[float]]
    success_ci_low: NotRequired[list[float]]
    success_ci_high: NotRequired[list[float]]
    per_task_ci_low: NotRequired[list[list[float]]]
    per_task_ci_high: NotRequired[list[list[float]]]
    per_task_gain: NotRequired[TaskGain]
    worst_task: NotRequired[str]
    settings: NotRequired[dict[str, Json]]
    protocol: NotRequired[str]
    baseline: NotRequired[Baseline]
    cross_adaptation: NotRequired[Controls]
    step_scale: NotRequired[float]
    validation: NotRequired[dict[str, float]]
    trained_on: NotRequired[Family]
    evaluated_on: NotRequired[Family]


class SceneView(TypedDict):
    """A task seen from above; see `metarl.rl.tasks.Scene`."""

    walls: list[list[float]]
    start: list[float] | None
    goal: list[float] | None
    goal_radius: float
    extent: list[float] | None


class RoutesOfTask(TypedDict):
    """The routes of one task.

    Attributes:
        task: its name.
        scene: what the routes are drawn on.
        ways: positions [steps][trajectories][points][2].
    """

    task: str
    scene: SceneView
    ways: list[list[list[list[float]]]]


class Routes(TypedDict):
    """The content of `paths.json`: the agent's routes before the first and after the last adaptation step."""

    schema_version: int
    unit: Unit
    steps: list[int]
    tasks: list[RoutesOfTask]
