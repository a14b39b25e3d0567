"""Evaluation on tasks that a run was not trained on: of another family, or of the same family with other settings."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from metarl.core.errors import InputError, require
from metarl.core.learner import Spaces
from metarl.core.schema import Family, Report
from metarl.core.settings import fields_of, from_table
from metarl.core.tasks import AnyDistribution
from metarl.fewshot.base.examples import ExampleSpaces
from metarl.rl.tasks import EnvTaskDistribution
from metarl.runs import registry
from metarl.runs.config import RunConfig, to_dict

# Settings that another family takes from the run, if it has them.
CARRIED = ("horizon", "action_limit", "contact_forces", "num_ways", "num_shots", "num_queries")


AnySpaces = Spaces | ExampleSpaces


@dataclass(frozen=True)
class Target:
    """Tasks to evaluate on.

    Attributes:
        name: of the family, as registered or module:Class.
        task: the task distribution.
    """

    name: str
    task: AnyDistribution


def target_family(config: RunConfig, on: str | None, *, trusted: bool = False) -> Target:
    """The family called `on`. It has the run's values for the settings in `CARRIED`, and its defaults for all others.

    Args:
        config: the run's.
        on: registered name, or module:Class. None or the run's family: all settings are the run's.
        trusted: accept module:Class, which imports code.

    Raises:
        InputError: no such family, or one of examples for a run on environments, or the reverse.
    """
    if on is None or on == config.task_name:
        return Target(config.task_name, config.task)
    require(trusted or ":" not in on, "--on", on, "a registered name, or with --trust module:Class")
    family = registry.load_task(on)
    acting = isinstance(config.task, EnvTaskDistribution)
    kind = "environments" if acting else "examples"
    fits = acting == issubclass(family, EnvTaskDistribution)
    require(fits, "--on", on, f"a family of {kind}, as {config.task_name}, on which the run was trained")
    known = fields_of(family)
    carried = {name: getattr(config.task, name) for name in CARRIED if name in known and hasattr(config.task, name)}
    return Target(on, from_table(family, carried, "task"))


def require_same_spaces(target: Target, there: AnySpaces, own: AnySpaces) -> None:
    """Raises `InputError` if the spaces `there` of `target` differ from `own`, which the learner was built for."""
    if _shapes(there) != _shapes(own):
        raise InputError(f"{target.name}: has {_shapes(there)}; the run was trained with {_shapes(own)}")


def describe_transfer(report: Report, config: RunConfig, target: Target) -> Report:
    """`report` with `trained_on` and `evaluated_on`: each the name of a family and its settings.

    `splits` compares the test tasks with the family's own training tasks. If the run was trained on others, `splits`
    becomes "transfer".
    """
    there = dataclasses.replace(config, task_name=target.name, task=target.task)
    trained, evaluated = (Family(task_name=c.task_name, task=to_dict(c)["task"]) for c in (config, there))
    splits = report["splits"] if _same_training(config, target) else "transfer"
    return {**report, "trained_on": trained, "evaluated_on": evaluated, "splits": splits}


def _shapes(spaces: AnySpaces) -> str:
    if isinstance(spaces, Spaces):
        actions = f"{spaces.action_size} discrete actions" if spaces.discrete else f"actions ({spaces.action_size},)"
        return f"observations ({spaces.observation_size},) and {actions}"
    outputs = f"{spaces.num_outputs} classes" if spaces.discrete else f"targets ({spaces.num_outputs},)"
    described = f", described by ({spaces.description_size},)" if spaces.description_size else ""
    return f"inputs {spaces.input_shape} and {outputs}{described}"


def _same_training(config: RunConfig, target: Target) -> bool:
    """Whether the run was trained on the training tasks of `target`: one family, with equal settings for training."""
    if target.name != config.task_name:
        return False
    own, there = (to_dict(c)["task"] for c in (config, dataclasses.replace(config, task=target.task)))
    changed = [name for name, value in there.items() if value != own[name]]
    return all(name in CARRIED or name.startswith("test_") for name in changed)
