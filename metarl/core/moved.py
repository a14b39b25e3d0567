"""Earlier names of modules. Code that imports them, and dumps that name them, still load.

`metarl.__init__` puts `Finder` at the end of Python's import system, which asks it for modules that it does not find.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED: dict[str, tuple[str, ...]] = {
    "metarl.adam": ("metarl.gradients.adam",),
    "metarl.checkpoint": ("metarl.runs.checkpoint",),
    "metarl.collect": ("metarl.core.episode",),
    "metarl.config": ("metarl.core.config", "metarl.runs.config"),
    "metarl.episodes": ("metarl.core.data", "metarl.core.trees"),
    "metarl.errors": ("metarl.core.errors",),
    "metarl.evaluation": ("metarl.core.evaluation", "metarl.core.curve", "metarl.core.controls"),
    "metarl.examples": ("metarl.fewshot.base.examples",),
    "metarl.fewshot.batch_norm": ("metarl.fewshot.base.batch_norm",),
    "metarl.fewshot.encoders": ("metarl.fewshot.base.encoders",),
    "metarl.fewshot.gradient": ("metarl.fewshot.base.gradient",),
    "metarl.fewshot.learner": ("metarl.fewshot.base.learner",),
    "metarl.fewshot.metric": ("metarl.fewshot.base.metric",),
    "metarl.gymnasium_tasks": ("metarl.rl.environments", "metarl.rl.gymnasium_tasks", "metarl.rl.task_in_observation"),
    "metarl.inner_loop": ("metarl.gradients.adaptation", "metarl.gradients.lifting", "metarl.gradients.curvature"),
    "metarl.learner": ("metarl.core.learner",),
    "metarl.memory": ("metarl.networks.memories",),
    "metarl.networks": ("metarl.networks.policies",),
    "metarl.nonfinite": ("metarl.core.nonfinite",),
    "metarl.normalization": ("metarl.rl.normalization",),
    "metarl.paths": ("metarl.rl.routes",),
    "metarl.plots": ("metarl.report.plots",),
    "metarl.policy_gradient": ("metarl.rl.policy_gradient",),
    "metarl.registry": ("metarl.runs.registry",),
    "metarl.returns": ("metarl.rl.returns",),
    "metarl.rollout": ("metarl.rl.rollout",),
    "metarl.seeds": ("metarl.core.seeds",),
    "metarl.statistics": ("metarl.core.statistics",),
    "metarl.tasks": ("metarl.core.tasks", "metarl.rl.tasks"),
    "metarl.tracking": ("metarl.runs.tracking",),
    "metarl.trainer": ("metarl.core.trainer",),
    "metarl.trust_region": ("metarl.gradients.trust_region",),
    "metarl.video": ("metarl.report.film",),
}
"""The modules that now hold what a module of an earlier version held."""


class Finder(MetaPathFinder):
    """Finds modules by their earlier names."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, _Loader()) if fullname in MOVED else None


class _Loader(Loader):
    """Makes a module whose names are those of the modules that replace it."""

    def exec_module(self, module: ModuleType) -> None:
        homes = MOVED[module.__name__]
        advice = f"{module.__name__} is now {' and '.join(homes)}; import public names from metarl itself"
        warnings.warn(advice, DeprecationWarning, stacklevel=2)

        def attribute(name: str) -> object:
            for home in homes:
                names = vars(importlib.import_module(home))
                if name in names:
                    return names[name]
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}; {advice}")

        module.__getattr__ = attribute  # type: ignore[method-assign]
