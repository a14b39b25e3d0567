"""Checks of an RL agent or few-shot learner. `metarl check-agent` runs them; tests run them on all built-in ones."""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from metarl.core.episode import run_episodes
from metarl.core.errors import InputError, RunError, one_line, raised, require
from metarl.core.learner import AnyLearner, ScoreName
from metarl.core.seeds import Purpose, Seeds, generator
from metarl.core.tasks import AnyDistribution, Tasks
from metarl.core.trees import tensors_in, tree_map
from metarl.fewshot.base.examples import ExampleCollector
from metarl.rl.rollout import RolloutCollector
from metarl.rl.task_in_observation import TaskInObservation
from metarl.rl.tasks import EnvTaskDistribution
from metarl.runs import checkpoint, registry
from metarl.runs.load import misfit
from metarl.testing.watched import CheckFailedError, Watched, copied, differences, listed, same, seeded_globally

NUM_TASKS = 4
SUBSET = [2, 0]


def check_agent(
    kind: type[Any], *, config: Any = None, tasks: Mapping[str, AnyDistribution] | None = None, seed: int = 0
) -> list[str]:
    """Lists the faults of the class of an RL agent or few-shot learner, one line each; empty if there are none.

    The checks:
        - All methods and attributes exist.
        - Results have the task axis first, and the result for a task does not depend on the other tasks.
        - Methods do not change their arguments and do not use the global random generators.
        - `state_dict` is a copy of everything that a resumed run needs. The check saves and loads it, then trains on.
        - `parameters` holds everything that is trained.

    Args:
        kind: the class; it is an RL agent if it has `act` or `observe`.
        config: its settings; None = the defaults of `kind.Config`.
        tasks: the task distributions for the checks, by name; None = small built-in ones. The class may refuse some of
            them with `InputError`.
        seed: of all random numbers.

    Raises:
        InputError: `tasks` has RL tasks for a few-shot learner, or the reverse.
    """
    acting = any(callable(getattr(kind, method, None)) for method in ("act", "observe"))
    problems = [f"lacks {part}" for part in registry.missing_parts(kind, acting=acting)]
    if problems:
        return problems
    try:
        config = kind.Config() if config is None else config
    except (Exception, SystemExit) as error:
        return [f"Config() raised {raised(error)}: give every setting a default"]
    if acting and not hasattr(config, "num_trajectories"):
        return ["Config lacks num_trajectories, the number of trajectories to collect for each task"]
    refusals: list[str] = []
    chosen = (_acting_tasks() if acting else _example_tasks()) if tasks is None else tasks
    for name, distribution in chosen.items():
        needed = "an RL agent" if isinstance(distribution, EnvTaskDistribution) else "a few-shot learner"
        given = "is an RL agent" if acting else "has neither act nor observe"
        require(acting == (needed == "an RL agent"), "task", name, f"another one: it needs {needed}, and this {given}")
        try:
            problems = _problems_on(_Bench(kind, config, distribution, seed))
        except InputError as error:
            refusals.append(f"{name}: {error}")
        if problems:
            return list(dict.fromkeys(problems))
    if len(refusals) == len(chosen):
        return [f"refuses all tasks that it was tried on ({'; '.join(refusals)}); name a suitable one with --task"]
    return []


def _acting_tasks() -> dict[str, AnyDistribution]:
    settings = {"point-nav": {"horizon": 8}, "tabular-mdp": {"num_states": 3, "num_actions": 2, "horizon": 5}}
    return {name: registry.load_task(name)(**values) for name, values in settings.items()}


def _example_tasks() -> dict[str, AnyDistribution]:
    sinusoid: Any = registry.load_task("sinusoid")
    glyphs: Any = registry.load_task("glyphs")
    images = glyphs(num_ways=3, num_shots=2, num_queries=2)
    described: Any = registry.load_task("metarl.fewshot.data.described:DescribedTasks")
    descriptions = np.random.default_rng(0).normal(size=(len(images.data.counts), 5))
    waves = sinusoid(num_shots=4, num_queries=5, train_queries=5)
    return {"sinusoid": waves, "glyphs": images, "described glyphs": described(images, descriptions)}


def _problems_on(bench: _Bench) -> list[str]:
    """The problems that the first failing check finds. Later checks need the earlier ones to pass."""
    first: list[AnyLearner] = []
    for check in (_attribute_faults, _adaptation_faults, _update_faults, _resume_faults):
        try:
            first = first or [bench.new()]
            problems = list(check(bench, first[0]))
        except CheckFailedError as fault:
            problems = [str(fault)]
        except RunError as error:
            problems = [one_line(error)]
        if problems:
            return problems
    return []


@dataclass(frozen=True)
class _Bench:
    """Learners of one class on one family of tasks."""

    kind: type[Any]
    config: Any
    tasks: AnyDistribution
    seed: int

    @functools.cached_property
    def collector(self) -> Any:
        if not isinstance(self.tasks, EnvTaskDistribution):
            return ExampleCollector(self.tasks)  # type: ignore[arg-type]
        tasks = TaskInObservation(self.tasks) if self.kind.traits.observes_task else self.tasks
        return RolloutCollector(tasks, num_trajectories=self.config.num_trajectories, num_threads=1)

    def new(self, seed: int | None = None) -> AnyLearner:
        """A learner whose weights are drawn with `seed`; None = the bench's seed.

        Raises:
            InputError: the learner refuses the tasks.
        """
        spaces = self.collector.spaces
        rng = torch.Generator().manual_seed(self.seed if seed is None else seed)
        try:
            learner: AnyLearner = self.kind(self.config, spaces, generator=rng)
        except InputError:
            raise
        except (Exception, SystemExit) as error:
            call = "(config, spaces, generator=...)"
            raise CheckFailedError(f"the constructor, called with {call}, raised {raised(error)}") from error
        moved: object = Watched(learner).to("cpu")
        if moved is not learner:
            raise CheckFailedError(f"to('cpu') returned {one_line(repr(moved))}: must return the learner itself")
        return learner

    def drawn(self, iteration: int, *, evaluation: bool = False) -> tuple[Tasks, Seeds]:
        """The tasks of an iteration and their seeds."""
        tasks = self.tasks.sample(NUM_TASKS, generator(self.seed, iteration, Purpose.TASKS))
        return tasks, Seeds.first(NUM_TASKS, seed=self.seed, iteration=iteration, evaluation=evaluation)

    def update(self, learner: Any, iteration: int) -> dict[str, float]:
        """Runs one iteration of training and returns what it logs."""
        in_update, steps = learner.traits.adapts_in_update, learner.num_adaptation_steps
        drawn = self.drawn(iteration)
        episodes = run_episodes(learner, self.collector, *drawn, num_steps=steps, adapting=not in_update)
        metrics: dict[str, float] = learner.meta_update(episodes)
        return metrics

    def scores(self, learner: Any) -> list[Tensor]:
        """The scores before and after one adaptation step. All calls use the same tasks and random numbers."""
        watched: Any = Watched(learner)
        episodes = run_episodes(watched, self.collector, *self.drawn(0, evaluation=True), num_steps=1)
        return list(episodes.scores)


def _attribute_faults(_: _Bench, learner: AnyLearner) -> Iterator[str]:
    steps = getattr(learner, "num_adaptation_steps", None)
    score = getattr(learner, "score_name", None)
    if score not in get_args(ScoreName):
        yield f"score_name = {score!r}: must be one of {', '.join(map(repr, get_args(ScoreName)))}"
    if not isinstance(steps, int) or steps < 0:
        yield f"num_adaptation_steps = {steps!r}: must be an integer >= 0"
    if not isinstance(getattr(learner, "device", None), torch.device):
        yield f"device = {getattr(learner, 'device', None)!r}: must be a torch.device"
    parameters = getattr(learner, "parameters", None)
    if not isinstance(parameters, Mapping) or not all(isinstance(value, Tensor) for value in parameters.values()):
        yield "parameters must be a property that gives the meta-learned tensors by name (a dict, no method)"


def _adaptation_faults(bench: _Bench, learner: AnyLearner) -> Iterator[str]:
    """Takes one step. Repeats it with differentiable=True, and with only two of the tasks."""
    own, (tasks, seeds) = copied(learner.state_dict()), bench.drawn(0)
    watched = Watched(learner)
    start = watched.begin(NUM_TASKS)
    data = bench.collector.support(tasks, watched, start, seeds, step=0)
    batch = watched.prepare(data)
    adapted = watched.adapt(start, batch, step=0)
    query = bench.collector.query(tasks, watched, adapted, seeds)
    score = watched.score(adapted, watched.prepare(query))
    if changed := differences(own, learner.state_dict()):
        yield f"act, observe, adapt or score changed the learner's own {changed}: keep a task's values in the state"
    yield from watched.faults
    if changed or watched.faults:
        return
    with contextlib.suppress(ValueError, NotImplementedError):  # a learner without a derivative raises one of these
        again = learner.adapt(learner.begin(NUM_TASKS), batch, step=0, differentiable=True)
        if changed := differences(adapted, again, exactly=False):
            yield f"adapt gives different numbers with differentiable=True ({changed}): only the graph may differ"
    few = [tree_map(_of_subset, part) for part in (data, query, adapted, score)]
    alone = watched.adapt(watched.begin(len(SUBSET)), watched.prepare(few[0]), step=0)
    for method, left, right in (
        ("adapt", few[2], alone),
        ("score", few[3], watched.score(few[2], watched.prepare(few[1]))),
    ):
        if changed := differences(left, right, exactly=False):
            where = f" ({changed})" if method == "adapt" else ""
            yield f"{method}: the numbers of a task depend on the other tasks or on their order{where}"


def _update_faults(bench: _Bench, learner: AnyLearner) -> Iterator[str]:
    """Takes two updates, twice: with equal seeds, but with different states of the global generators."""
    before, trainable = copied(dict(learner.parameters)), copied(_trainable(learner))
    scores = bench.scores(bench.new())
    ends = []
    for number, one in enumerate((learner, None)):
        with seeded_globally(number):
            watched = Watched(bench.new() if one is None else one)
            start = copied(dict(watched.parameters))
            metrics = [bench.update(watched, iteration) for iteration in range(2)]
            ends.append({"parameters": dict(watched.parameters), "state": watched.state_dict(), "logged": metrics})
            yield from watched.faults
    if changed := differences(before, start) or differences(ends[0], ends[1]):
        advice = "draw from the generator that the constructor is given, or from one seeded by it"
        yield f"two runs with one seed differ ({changed}): {advice}"
    after, known = _trainable(learner), list(dict(learner.parameters).values())
    moved = [name for name, value in after.items() if name in trainable and not same(value, trainable[name])]
    if left_out := [name for name in moved if not any(same(after[name], value) for value in known)]:
        yield f"parameters lacks {listed(left_out)}, which training changes: evaluation and checksums rely on it"
    elif not differences(before, dict(learner.parameters)) and differences(scores, bench.scores(learner)):
        yield "training changed the scores, but no tensor in parameters: add the trained tensors to parameters"


def _resume_faults(bench: _Bench, learner: AnyLearner) -> Iterator[str]:
    """Saves, loads into a fresh learner, and compares how both go on."""
    kept = learner.state_dict()
    copy = copied(kept)
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = checkpoint.save(Path(folder), 2, state=kept, parameters=learner.parameters, config={})
            state = tree_map(torch.clone, checkpoint.load(path).state)
        except (ValueError, TypeError, RunError) as error:
            yield f"state_dict() cannot be saved ({one_line(error)}): it holds more than plain data"
            return
    if odd := misfit(kept, bench.new().state_dict(), "state_dict()"):
        yield f"after an update, {odd} before it: no run could be resumed"
        return
    given = copied(state)
    fresh, other = Watched(bench.new()), Watched(bench.new(bench.seed + 1))
    for one in (fresh, other):
        one.load_state_dict(state)
    if changed := differences(copy, fresh.state_dict()):
        yield f"load_state_dict does not restore {changed}"
        return
    if differences(bench.scores(learner), bench.scores(other)):
        yield "a loaded learner has different scores: state_dict lacks something that the constructor draws at random"
    watched = Watched(learner)
    ends: tuple[list[object], list[object]] = ([], [])
    for iteration in (2, 3):
        for one, end in zip((watched, fresh), ends, strict=True):
            end.append(copied((bench.update(one, iteration), dict(one.parameters), one.state_dict())))
    if changed := differences(*ends):
        optimizers = [name for name, value in vars(learner).items() if isinstance(value, torch.optim.Optimizer)]
        such = f" (such as the state of {', '.join(optimizers)})" if optimizers else ""
        yield f"a resumed run differs from an uninterrupted one: state_dict lacks something that meta_update uses{such}"
    if changed := differences(copy, kept):
        yield f"state_dict() is not a copy: later updates changed {changed} in it; clone its tensors"
    if changed := differences(given, state):
        yield f"load_state_dict keeps what it is given: later updates changed {changed} in it; clone its tensors"


def _of_subset(value: Tensor) -> Tensor:
    return value[SUBSET] if value.dim() > 0 and len(value) == NUM_TASKS else value


def _trainable(learner: AnyLearner) -> dict[str, Tensor]:
    """The tensors that require gradients in the learner's modules, optimisers and containers, by name."""
    found: dict[str, Tensor] = {}
    for name, value in vars(learner).items():
        if isinstance(value, nn.Module):
            found |= {f"{name}.{place}": part for place, part in value.named_parameters()}
        elif isinstance(value, torch.optim.Optimizer):
            parts = [part for group in value.param_groups for part in group["params"]]
            found |= {f"{name}.{place}": part for place, part in enumerate(parts)}
        else:
            found |= {place: tensor for place, tensor in tensors_in(value, name) if tensor.requires_grad}
    return found
