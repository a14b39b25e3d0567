"""The parts of the benchmarks that depend on MetaRL: they find its methods and agents, and compare equal work."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from metarl.envs.bandit import Bandit
from metarl.networks.memories import MemoryName
from metarl.runs import registry

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module


@pytest.mark.parametrize("family", ["ant-goal", "walker2d-params", "point-maze-layout", "ant-maze-goal"])
def test_a_replay_is_the_physics_of_its_collection(script: Any, family: str) -> None:
    """The replay itself compares the final states, bit by bit; a walker that fell would have stopped."""
    sampling = script("benchmark_sampling")
    assert family in sampling.FAMILIES
    kind = sampling.FallingWalkers if family == "walker2d-params" else registry.load_task(family)
    collection = sampling.Collection.of(1, kind(horizon=40))
    sampling.Replay(collection)()
    assert len(sampling.Recording(collection).controls) == 40


def test_every_agent_is_measured_with_each_of_its_memories(script: Any) -> None:
    cases = script("benchmark_agents").cases()
    assert {agent for agent, _ in cases.values()} == set(registry.AGENTS)
    assert {f"rl2, {memory}" for memory in get_args(MemoryName)} <= cases.keys()
    assert cases["maml"] == ("maml", {})


def test_the_methods_that_the_profile_times_are_there(script: Any) -> None:
    iteration = script("benchmark_iteration")
    for owner, method, stage in iteration.stages():
        assert callable(getattr(owner, method, None)), (owner, method)
        assert stage in iteration.STAGES


def test_an_epoch_and_torchs_own_network_have_gradients(script: Any) -> None:
    epoch, bare = script("benchmark_memory").epoch_and_bare("gru", Bandit(num_arms=3, num_pulls=4), 3, 2, 2)
    assert all(torch.isfinite(step["gradient_norm"]) for step in epoch())
    assert all(gradient.isfinite().all() for gradient in bare())


def test_every_contender_has_the_same_meta_gradient(script: Any) -> None:
    fewshot = script("benchmark_fewshot")
    contenders = fewshot.Case("stride 2, 1 query", 2, torch.device("cpu"), torch.float64).contenders()
    expected = contenders["plain"]()
    assert {"ours, loop", "ours, vmap"} <= contenders.keys()
    for run in contenders.values():
        assert fewshot.largest_difference(run(), expected) < 1e-9
