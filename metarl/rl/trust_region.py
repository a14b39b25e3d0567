"""Policies that are meta-trained by trust-region steps: the outer loop that MAML and joint training share."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, Protocol

from torch import Tensor

from metarl.core.bounds import AtLeast, Below, Positive
from metarl.core.data import Episodes
from metarl.gradients.adaptation import Parameters
from metarl.gradients.trust_region import trust_region_step
from metarl.gradients.vectors import flatten, unflatten
from metarl.networks.policies import action_std
from metarl.rl.policy_gradient import AdaptivePolicy, BasePolicyConfig, PolicyBatch


@dataclass(frozen=True)
class TrustRegionConfig(BasePolicyConfig):
    """Settings of a policy and of its trust-region outer step."""

    max_kl: Annotated[float, Positive] = 0.01
    """Trust region of the outer step: mean KL between old and new adapted policies, nats."""
    cg_iterations: Annotated[int, AtLeast(1)] = 10
    """Conjugate-gradient iterations of the outer step."""
    cg_damping: Annotated[float, AtLeast(0)] = 1e-5
    """Added to the diagonal of the curvature."""
    max_backtracks: Annotated[int, AtLeast(1)] = 15
    """Line-search candidates of the outer step."""
    backtrack_ratio: Annotated[float, Positive, Below(1)] = 0.8
    """Size of each line-search candidate relative to the one before."""
    curvature_every: Annotated[int, AtLeast(1)] = 1
    """Estimate the curvature on every n-th step of the data; 1 is exact. Gradients and adaptation use all data."""


class OuterProblem(Protocol):
    """An objective of the meta-parameters, which are a flat vector, for one meta-batch."""

    def value(self) -> float:
        """The objective at the present meta-parameters."""

    def gradient(self) -> Tensor:
        """Its gradient there."""

    def product(self, vector: Tensor) -> Tensor:
        """The curvature of the KL at the present meta-parameters, times `vector`."""

    def evaluate(self, vector: Tensor) -> tuple[float, float]:
        """The objective at the meta-parameters `vector`, and their KL from the present ones."""


class TrustRegionPolicy(AdaptivePolicy):
    """A learner without its `outer_problem`."""

    config: TrustRegionConfig

    @abstractmethod
    def outer_problem(self, episodes: Episodes[Parameters, PolicyBatch]) -> OuterProblem:
        """The objective that a meta-update on `episodes` maximises."""

    def meta_update(self, episodes: Episodes[Parameters, PolicyBatch]) -> dict[str, float]:
        """One TRPO step."""
        problem, config = self.outer_problem(episodes), self.config
        gradient = problem.gradient()
        result = trust_region_step(
            flatten(self._parameters),
            problem.value(),
            gradient,
            problem.product,
            problem.evaluate,
            max_kl=config.max_kl,
            cg_iterations=config.cg_iterations,
            cg_damping=config.cg_damping,
            max_backtracks=config.max_backtracks,
            backtrack_ratio=config.backtrack_ratio,
        )
        # Cloned: memory alignment can change the last bits, and the tensors of a resumed run are aligned.
        self._parameters = {name: part.clone() for name, part in unflatten(result.vector, self._parameters).items()}
        self.see(episodes)
        return {
            "surrogate_improvement": result.improvement,
            "approx_kl": result.kl,
            "accepted": float(result.accepted),
            "backtracks": float(result.backtracks),
            "gradient_norm": float(gradient.norm()),
            **action_std(self._parameters),
        }
