"""A compiled meta-gradient is the one that the loop computes."""

from __future__ import annotations

import logging
import sys
import types
from typing import Any

import pytest
import torch

from metarl.core.errors import InputError
from metarl.fewshot.base import networks
from metarl.fewshot.base.compiled import Compiled, _key
from metarl.fewshot.base.examples import ExampleSpaces
from metarl.fewshot.base.learner import ExampleBatch
from metarl.fewshot.maml import MAML, MAMLConfig
from metarl.fewshot.meta_sgd import MetaSGD, MetaSGDConfig
from metarl.fewshot.proto import Proto, ProtoConfig


class Shifted(torch.nn.Module):
    """An encoder with a buffer."""

    shift: torch.Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("shift", torch.ones(shape))
        self.layer = torch.nn.Linear(shape[0], 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = torch.tanh(self.layer(inputs * self.shift))
        return out


SPACES = ExampleSpaces((3,), 2, discrete=True, train_ways=2)
IMAGES = ExampleSpaces((1, 16, 16), 2, discrete=True, train_ways=2)


def batch(count: int, shape: tuple[int, ...], seed: int) -> ExampleBatch:
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(2).repeat(count).expand(3, -1).contiguous()
    inputs = torch.rand(3, 2 * count, *shape, generator=random, dtype=torch.float64)
    return ExampleBatch(inputs, labels, torch.zeros_like(labels))


def gradient(kind: Any, config: Any, spaces: ExampleSpaces, **settings: Any) -> tuple[Any, Any]:
    learner = kind(config(**settings), spaces, generator=torch.Generator().manual_seed(0))
    learner.load_state_dict(
        {**learner.state_dict(), "parameters": {name: value.double() for name, value in learner.parameters.items()}}
    )
    shape = spaces.input_shape
    results = []
    for count in (1, 2, 1):  # the shapes change and come back
        results.append(learner.meta_gradient((batch(count, shape, 1),), batch(3, shape, 2)))
    return learner, results


CASES = [
    (MAML, MAMLConfig, SPACES, {"hidden_sizes": (4,)}),
    (MetaSGD, MetaSGDConfig, SPACES, {"hidden_sizes": (4,)}),
    (MAML, MAMLConfig, IMAGES, {"num_filters": 2, "batch_norm": "support"}),
    (MAML, MAMLConfig, IMAGES, {"num_filters": 2, "encoder": "conv4-strided"}),
    (Proto, ProtoConfig, IMAGES, {"num_filters": 2, "batch_norm": "running"}),
]


IDS = ["maml", "meta-sgd", "maml-support", "maml-strided", "proto-running"]


def assert_equal_to_the_loop(kind: Any, config: Any, spaces: ExampleSpaces, settings: dict[str, Any]) -> None:
    _, compiled = gradient(kind, config, spaces, execution="compiled", **settings)
    _, looped = gradient(kind, config, spaces, execution="loop", **settings)
    for (here, outcome), (there, expected) in zip(compiled, looped, strict=True):
        for name, value in there.items():
            torch.testing.assert_close(here[name], value, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(outcome.loss, expected.loss)
        assert outcome.statistics.keys() == expected.statistics.keys()
        for name, value in expected.statistics.items():
            torch.testing.assert_close(outcome.statistics[name], value)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_a_traced_gradient_is_the_loops(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda graph, **_: (graphs.append(graph), graph)[1])
    assert_equal_to_the_loop(*case)
    assert len(graphs) == 2  # one for each shape


@pytest.mark.parametrize("shareable", [True, False])
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_on_a_gpu_all_tasks_are_one_graph_without_convolutions(
    case: Any, shareable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graph is made here on the CPU by a learner that takes itself to be on a GPU."""
    graphs: list[Any] = []
    kind, config, spaces, settings = case
    monkeypatch.setattr(torch, "compile", lambda graph, **_: (graphs.append(graph), graph)[1])
    if not shareable:
        monkeypatch.setattr(networks, "SHAREABLE", ())
    _, looped = gradient(kind, config, spaces, execution="loop", **settings)
    monkeypatch.setattr(networks.Networks, "device", property(lambda _: torch.device("cuda")))
    _, fused = gradient(kind, config, spaces, execution="compiled", **settings)
    for (here, outcome), (there, expected) in zip(fused, looped, strict=True):
        assert outcome.loss.shape == (3,)
        torch.testing.assert_close(outcome, expected)
        for name, value in there.items():
            torch.testing.assert_close(here[name], value, rtol=1e-9, atol=1e-12)
    inputs = [node for graph in graphs for node in graph.graph.nodes if node.op == "placeholder"]
    assert {len(node.meta["val"]) for node in inputs if node.meta["val"].dim() > 2} >= {3}  # of all three tasks
    assert not any("convolution" in str(node.target) for graph in graphs for node in graph.graph.nodes)


def test_what_a_graph_holds_is_made_anew_where_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device, and buffers that are loaded."""
    monkeypatch.setattr(torch, "compile", lambda graph, **_: graph)
    own = types.ModuleType("encoder_that_shifts")
    vars(own).update(Shifted=Shifted)
    monkeypatch.setitem(sys.modules, own.__name__, own)
    learners = [
        MAML(
            MAMLConfig(encoder="encoder_that_shifts:Shifted", execution=execution),
            SPACES,
            generator=torch.Generator().manual_seed(0),
        )
        for execution in ("compiled", "loop")
    ]
    data = ExampleBatch(*(part.float() if part.is_floating_point() else part for part in batch(2, (3,), 0)))
    for shift in (0.0, 2.0):
        for learner in learners:
            state = learner.state_dict()
            learner.load_state_dict({**state, "buffers": {"encoder.shift": torch.full((3,), shift)}})
        compiled, looped = (learner.meta_gradient((data,), data)[0] for learner in learners)
        torch.testing.assert_close(compiled, looped)
    keys = [_key([torch.zeros(1, device=device)], None) for device in ("cpu", "meta")]  # type: ignore[arg-type]
    assert keys[0] != keys[1]


def test_parameters_are_no_constants_of_the_graph(monkeypatch: pytest.MonkeyPatch, as_episodes: Any) -> None:
    monkeypatch.setattr(torch, "compile", lambda graph, **settings: graph)
    learner = MAML(MAMLConfig(execution="compiled"), SPACES, generator=torch.Generator().manual_seed(0))
    data = ExampleBatch(*(part.float() if part.is_floating_point() else part for part in batch(2, (3,), 0)))
    first, _ = learner.meta_gradient((data,), data)
    learner.meta_update(as_episodes(data, data))
    second, _ = learner.meta_gradient((data,), data)
    assert not torch.equal(first["head.weight"], second["head.weight"])


def test_without_a_compiler_the_traced_graph_serves_and_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(leaves: Any) -> Any:
        raise RuntimeError("no C++\ncompiler")

    monkeypatch.setattr(torch, "compile", lambda graph, **settings: fail)
    with caplog.at_level(logging.WARNING):
        assert_equal_to_the_loop(*CASES[0])
    told = "agent.execution = 'compiled': not compiled, the tasks run slower: no C++ compiler"
    assert [record.getMessage() for record in caplog.records] == [told] * 2


def test_the_number_of_threads_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(torch, "compile", lambda graph, **settings: graph)
    compiled = Compiled(lambda value: (seen.append(torch.get_num_threads()), value * 2.0)[1])
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    compiled.prepare(torch.ones(2))
    assert seen == [1]
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)
    assert torch.equal(compiled(torch.full((2,), 3.0)), torch.full((2,), 6.0))


def test_it_is_for_cpus_and_gpus() -> None:
    learner = MAML(MAMLConfig(execution="compiled"), SPACES, generator=torch.Generator())
    with pytest.raises(InputError, match=r"^agent.execution = 'compiled': must be 'auto', 'loop' or 'vmap' on meta$"):
        learner.to("meta")


def test_on_a_cpu_small_tasks_are_a_graph_of_all_with_its_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda graph, **_: (graphs.append(graph), graph)[1])
    num_tasks = {}
    for case, name in zip(CASES, IDS, strict=True):
        gradient(*case[:3], execution="compiled", **case[3])
        nodes = [node for graph in graphs for node in graph.graph.nodes]
        graphs.clear()
        values = [node.meta["val"] for node in nodes if node.op == "placeholder"]
        num_tasks[name] = {len(value) for value in values if value.dtype == torch.int64}
        convolves = any("convolution" in str(node.target) for node in nodes)
        assert convolves == (case[2] is IMAGES)
    assert num_tasks == {"maml": {3}, "meta-sgd": {3}, "maml-support": {1}, "maml-strided": {3}, "proto-running": {1}}


@pytest.mark.slow
def test_a_compiled_gradient_is_the_loops() -> None:
    assert_equal_to_the_loop(*CASES[0])
