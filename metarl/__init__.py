"""MetaRL: meta-reinforcement learning and few-shot learning around one episodic core.

A learner gets a batch of tasks. It collects a little experience of each task (support), adapts to the task, and is
scored on fresh experience of the same task (query). `metarl.core.episode.run_episodes` is the place to start reading.

This page lists every public name. `import metarl` is light: a name's module is imported when the name is first used.
Environments are in `metarl.envs`, RL algorithms in `metarl.agents`, few-shot learners in `metarl.fewshot`.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from metarl.core.moved import Finder

if TYPE_CHECKING:
    from metarl.core.curve import AdaptationCurve as AdaptationCurve
    from metarl.core.data import Episodes as Episodes
    from metarl.core.data import Examples as Examples
    from metarl.core.data import Trajectories as Trajectories
    from metarl.core.episode import run_episodes as run_episodes
    from metarl.core.errors import InputError as InputError
    from metarl.core.evaluation import evaluate as evaluate
    from metarl.core.learner import ActingLearner as ActingLearner
    from metarl.core.learner import Learner as Learner
    from metarl.core.learner import Traits as Traits
    from metarl.core.seeds import Seeds as Seeds
    from metarl.core.tasks import TaskDistribution as TaskDistribution
    from metarl.core.trainer import Trainer as Trainer
    from metarl.fewshot.base.examples import ExampleCollector as ExampleCollector
    from metarl.fewshot.base.examples import ExampleTaskDistribution as ExampleTaskDistribution
    from metarl.rl.rollout import RolloutCollector as RolloutCollector
    from metarl.rl.tasks import EnvTaskDistribution as EnvTaskDistribution
    from metarl.rl.tasks import Scene as Scene
    from metarl.runs.load import load as load

__version__ = "0.1.0"

_MODULE_OF = {
    "ActingLearner": "metarl.core.learner",
    "AdaptationCurve": "metarl.core.curve",
    "EnvTaskDistribution": "metarl.rl.tasks",
    "Episodes": "metarl.core.data",
    "ExampleCollector": "metarl.fewshot.base.examples",
    "ExampleTaskDistribution": "metarl.fewshot.base.examples",
    "Examples": "metarl.core.data",
    "InputError": "metarl.core.errors",
    "Learner": "metarl.core.learner",
    "RolloutCollector": "metarl.rl.rollout",
    "Scene": "metarl.rl.tasks",
    "Seeds": "metarl.core.seeds",
    "TaskDistribution": "metarl.core.tasks",
    "Trainer": "metarl.core.trainer",
    "Traits": "metarl.core.learner",
    "Trajectories": "metarl.core.data",
    "evaluate": "metarl.core.evaluation",
    "load": "metarl.runs.load",
    "run_episodes": "metarl.core.episode",
}


# A type checker does not get this function: with it, every name would count as a public one.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in _MODULE_OF:
            raise AttributeError(f"module 'metarl' has no attribute {name!r}")
        value: object = getattr(importlib.import_module(_MODULE_OF[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})


def _require_subpackages() -> None:
    """Raises ImportError in a checkout without an editable install, which maps `envs` and `agents` into this package.

    Python started at the root of a checkout imports this folder even if MetaRL is installed elsewhere.
    """
    root = Path(__file__).resolve().parent.parent
    in_checkout = (root / "pyproject.toml").is_file() and (root / "agents").is_dir()
    if in_checkout and importlib.util.find_spec("metarl.agents") is None:
        raise ImportError(
            f"the checkout {root} comes before the installed metarl, and its envs/ and agents/ are not installed as "
            "metarl.envs and metarl.agents; run `pip install -e .` in it, or start Python in another folder"
        )


_require_subpackages()
sys.meta_path.append(Finder())
