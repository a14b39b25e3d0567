"""Learners run on the device of their parameters.

The tests need no accelerator: the device is "meta", whose tensors have no content. `Watch` refuses operations that mix
it with the CPU.
"""

from __future__ import annotations

import sys
import types
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import metarl.rl.rollout
from metarl.agents.fomaml import FOMAML
from metarl.agents.maml import MAML, MAMLConfig
from metarl.agents.rl2 import RL2, RL2Config
from metarl.core.data import Episodes, Examples, Trajectories
from metarl.core.episode import run_episodes
from metarl.core.learner import Spaces
from metarl.core.seeds import Purpose, Seeds, generator
from metarl.core.trees import to_device, tree_map
from metarl.envs.point_nav import PointNav
from metarl.fewshot.base.examples import ExampleCollector, ExampleSpaces
from metarl.fewshot.data.packed import Glyphs
from metarl.gradients.adaptation import Parameters
from metarl.gradients.curvature import TaskHessians
from metarl.gradients.lifting import over_tasks
from metarl.rl.policy_gradient import PolicyBatch, kl_from, surrogate
from metarl.rl.rollout import RolloutCollector
from metarl.runs import registry

N, K, H = 2, 2, 3
GAUSSIAN = Spaces(observation_size=3, action_size=2, discrete=False)
CATEGORICAL = Spaces(observation_size=3, action_size=4, discrete=True)
BOTH = pytest.mark.parametrize("spaces", [GAUSSIAN, CATEGORICAL], ids=["gaussian", "categorical"])


class Watch(TorchDispatchMode):
    """Refuses operations on tensors of several devices (a CPU scalar goes with any, as in torch).

    Meta tensors have no values: where the code asks for one (line search, retries, number of live steps) it gets 1,
    which leads through every branch that touches tensors. The mode holds for its own thread, hence `one_thread`.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        devices = {tensor.device.type for tensor in tensors if tensor.dim() > 0 or tensor.device.type != "cpu"}
        if len(devices) > 1:
            raise RuntimeError(f"{func} mixes {' and '.join(sorted(devices))}")
        if func is torch.ops.aten._local_scalar_dense.default and args[0].device.type == "meta":
            return 1.0 if args[0].is_floating_point() else 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_learner(spaces: Spaces, kind: type[MAML] = MAML, **settings: Any) -> MAML:
    few = {"cg_iterations": 2, "max_backtracks": 2, "num_adaptation_steps": 2}
    settings = {"hidden_sizes": (5,), "chunk_steps": 1, **few, **settings}
    learner = kind(MAMLConfig(**settings), spaces, generator=torch.Generator().manual_seed(0))
    return learner.to("meta")


def make_data(learner: MAML, state: Parameters) -> Trajectories:
    discrete = learner.spaces.discrete
    observations = torch.zeros(N, K, H, 3)
    noise = torch.zeros((N, K, H) if discrete else (N, K, H, 2), device="meta")
    acted, _ = learner.act(state, observations.flatten(1, 2).to("meta"), noise.flatten(1, 2))
    rest = {name: torch.zeros(N, K, H, dtype=torch.bool) for name in ("terminated", "truncated")}
    data = Trajectories(
        observations=observations,
        actions=acted.actions.unflatten(1, (K, H)),
        rewards=torch.zeros(N, K, H),
        mask=torch.ones(N, K, H),
        log_probs=acted.log_probs.unflatten(1, (K, H)),
        last_observations=torch.zeros(N, K, 3),
        diverged=torch.zeros(N, K, dtype=torch.bool),
        state=state,
        **rest,
    )
    return to_device(data, "meta")


def make_episodes(learner: MAML) -> Episodes[Parameters, PolicyBatch]:
    state, support, scores = learner.begin(N), [], []
    for step in range(2):
        support.append(learner.prepare(make_data(learner, state)))
        scores.append(learner.score(state, support[-1]))
        state = learner.adapt(state, support[-1], step=step)
    query = learner.prepare(make_data(learner, state))
    scores.append(learner.score(state, query))
    slots = tuple(range(N))
    return Episodes(slots, slots, tuple(support), query, state, tuple(scores), 0, (0.0,))


def devices_of(tree: Any) -> set[str]:
    found: set[str] = set()

    def note(tensor: Tensor) -> Tensor:
        found.add(tensor.device.type)
        return tensor

    tree_map(note, tree)
    return found


@BOTH
@pytest.mark.usefixtures("one_thread")
def test_episodes_stay_where_the_learner_is(spaces: Spaces) -> None:
    learner = make_learner(spaces)
    assert learner.device.type == "meta"
    assert devices_of(learner.state_dict()) == {"meta"}
    with Watch():
        episodes = make_episodes(learner)
    for part in (episodes.support, episodes.query, episodes.state, episodes.scores):
        assert devices_of(part) == {"meta"}


@pytest.mark.parametrize(
    ("spaces", "settings"),
    [(GAUSSIAN, {}), (CATEGORICAL, {}), (GAUSSIAN, {"kind": FOMAML}), (GAUSSIAN, {"curvature_every": 2})],
    ids=["gaussian", "categorical", "first-order", "coarse-curvature"],
)
@pytest.mark.usefixtures("one_thread")
def test_the_outer_step_stays_where_the_learner_is(spaces: Spaces, settings: dict[str, Any]) -> None:
    learner = make_learner(spaces, **settings)
    with Watch():
        episodes = make_episodes(learner)
        metrics = learner.meta_update(episodes)
    assert devices_of(learner.parameters) == {"meta"}
    assert metrics["gradient_norm"] == 1.0
    assert metrics["backtracks"] == 2.0  # the whole line search was walked


@BOTH
@pytest.mark.usefixtures("one_thread")
def test_derivatives_through_the_adaptation_stay_where_the_learner_is(spaces: Spaces) -> None:
    learner = make_learner(spaces)
    with Watch():
        episodes = make_episodes(learner)
        leaves = {name: value.clone().requires_grad_() for name, value in learner.parameters.items()}
        state = learner.begin(N, parameters=leaves)
        for step, batch in enumerate(episodes.support):
            state = learner.adapt(state, batch, step=step, differentiable=True)
        old = over_tasks(learner.distribution, episodes.state, episodes.query.observations)
        new = over_tasks(learner.distribution, state, episodes.query.observations, chunk_size=1)
        gained = over_tasks(surrogate, new, episodes.query, chunk_size=1).mean()
        distance = over_tasks(kl_from, new, (episodes.query, old), chunk_size=1).mean()
        gradients = torch.autograd.grad(gained + distance, list(leaves.values()))
        hessians = TaskHessians(learner.inner_loss, episodes.state, episodes.support[0], chunk_size=1)
        products = hessians(episodes.state)
    assert devices_of([gradients, old, hessians.losses, hessians.gradients, products]) == {"meta"}


@pytest.mark.parametrize("name", ["observations", "actions", "log_probs", "advantages", "mask"])
@pytest.mark.usefixtures("one_thread")
def test_the_watch_sees_a_tensor_that_was_left_behind(name: str) -> None:
    learner = make_learner(GAUSSIAN)
    with Watch():
        episodes = make_episodes(learner)
    query = episodes.query._replace(**{name: torch.zeros(getattr(episodes.query, name).shape)})
    with pytest.raises(RuntimeError, match="mixes cpu and meta"), Watch():
        learner.meta_update(replace(episodes, query=query))


@pytest.mark.parametrize("memory", ["lstm", "gru", "transformer", "mann"])
@BOTH
@pytest.mark.usefixtures("one_thread")
def test_a_memory_acts_remembers_and_learns_where_it_is(memory: Any, spaces: Spaces) -> None:
    config = RL2Config(memory=memory, hidden_size=8, trajectories_per_trial=2, epochs=1, num_minibatches=1)
    learner = RL2(config, spaces, generator=torch.Generator().manual_seed(0)).to("meta")
    assert devices_of(learner.state_dict()) == {"meta"}
    observations = torch.zeros(N, K, 3, device="meta")
    noise = torch.zeros((N, K) if spaces.discrete else (N, K, 2), device="meta")
    no = torch.zeros(N, K, dtype=torch.bool, device="meta")
    rewards = torch.zeros(N, K, device="meta")
    with Watch():
        state, parts = learner.begin(N), []
        for step in range(2):
            steps = []
            for _ in range(H):
                acted, state = learner.act(state, observations, noise)
                state = learner.observe(state, acted.actions, rewards, no, no)
                steps.append(acted)
            actions, log_probs, values = (torch.stack(field, 2) for field in zip(*steps, strict=True))
            flags = torch.zeros(N, K, H, dtype=torch.bool, device="meta")
            parts.append(
                Trajectories(
                    observations=observations.unsqueeze(2).expand(N, K, H, 3),
                    actions=actions,
                    rewards=torch.zeros(N, K, H, device="meta"),
                    terminated=flags,
                    truncated=flags,
                    mask=torch.ones(N, K, H, device="meta"),
                    log_probs=log_probs.detach(),
                    last_observations=observations,
                    diverged=no,
                    state=state,
                    values=values.detach(),
                )
            )
            state = learner.adapt(state, parts[-1] if step else parts[-1].without_signal(), step=step)
        metrics = learner.meta_update(Episodes((0, 1), (0, 1), (parts[0],), parts[1], state, (), 0, (0.0,)))
    assert devices_of([state, learner.parameters]) == {"meta"}
    assert metrics["gradient_norm"] == 1.0


@pytest.fixture
def crossings(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts tensors that are sent to "meta" (they really stay on the CPU), and trees that the collector moves."""
    counted: Counter[str] = Counter()
    move, move_tree = torch.Tensor.to, to_device

    def to(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if str(args[0]) != "meta":
            return move(tensor, *args, **kwargs)
        counted["tensors"] += 1
        return tensor

    def counting(tree: Any, device: torch.device | str) -> Any:
        counted["data" if isinstance(tree, Trajectories) else "state"] += 1
        counted["fields"] += len(tree_leaves(tree if isinstance(tree, dict) else list(vars(tree).values())))
        return move_tree(tree, device)

    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(metarl.rl.rollout, "to_device", counting)
    return counted


def collect_once(horizon: int, crossings: Counter[str], **devices: Any) -> Counter[str]:
    collector = RolloutCollector(PointNav(horizon=horizon), num_trajectories=2, **devices)
    learner = MAML(MAMLConfig(hidden_sizes=(4,)), collector.spaces, generator=torch.Generator().manual_seed(0))
    tasks = PointNav().sample(2, np.random.default_rng(0))
    crossings.clear()
    collector.query(tasks, learner, learner.begin(2), Seeds.first(2))
    return Counter(crossings)


def test_acting_on_the_cpu_data_crosses_once_per_collection(crossings: Counter[str]) -> None:
    short, long = (collect_once(horizon, crossings, device="meta") for horizon in (3, 6))
    assert (short["state"], short["data"]) == (1, 1)
    assert short["tensors"] == 14  # ten arrays, values left out, and the four parameters of the final state
    assert long == short


def test_acting_elsewhere_data_crosses_at_every_step(crossings: Counter[str]) -> None:
    counts = [collect_once(horizon, crossings, device="meta", act_device="meta") for horizon in (3, 6, 9)]
    per_step = (counts[1]["tensors"] - counts[0]["tensors"]) // 3
    assert counts[2]["tensors"] - counts[1]["tensors"] == 3 * per_step
    assert 0 < per_step <= 5  # observation, noise, reward, terminated, truncated
    assert all((count["state"], count["data"]) == (1, 1) for count in counts)


def one_iteration(device: str) -> tuple[Tensor, Tensor]:
    """All parameters before and after it."""
    family = PointNav(horizon=20)
    collector = RolloutCollector(family, num_trajectories=5, device=device)
    config = MAMLConfig(hidden_sizes=(16,), activation="tanh")
    learner = MAML(config, collector.spaces, generator=torch.Generator().manual_seed(0)).to(device)
    assert learner.device.type == device
    tasks = family.sample(6, generator(0, 0, Purpose.TASKS))
    before = torch.cat([value.flatten().cpu() for value in learner.parameters.values()])
    episodes = run_episodes(learner, collector, tasks, Seeds.first(6), num_steps=1)
    assert learner.meta_update(episodes)["accepted"] == 1.0
    return before, torch.cat([value.flatten().cpu() for value in learner.parameters.values()])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_an_iteration_on_cuda_equals_one_on_the_cpu() -> None:
    """To two hundredths of the step: conjugate gradients amplify differences in rounding."""
    (before, here), (same, there) = one_iteration("cpu"), one_iteration("cuda")
    assert torch.equal(before, same)
    assert float((there - here).norm()) < 0.02 * float((here - before).norm())


class Offset(torch.nn.Module):
    """A user's encoder, with a buffer and a frozen layer."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("offset", torch.ones(shape))
        self.frozen, self.layer = torch.nn.Linear(shape[0], 5).requires_grad_(False), torch.nn.Linear(5, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.layer(self.frozen(inputs + self.offset))
        return out


@pytest.mark.usefixtures("one_thread")
def test_a_foreign_encoders_buffers_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    own = types.ModuleType("encoder_with_buffers")
    vars(own).update(Offset=Offset)
    monkeypatch.setitem(sys.modules, own.__name__, own)
    kind = registry.load_learner("proto")
    config = kind.Config(encoder="encoder_with_buffers:Offset")
    spaces = ExampleSpaces((6,), 3, discrete=True, train_ways=3)
    learner = kind(config, spaces, generator=torch.Generator().manual_seed(0))
    assert devices_of(learner.state_dict()["buffers"]) == {"cpu"}
    learner.to("meta")
    labels = torch.zeros(N, 6, dtype=torch.int64)
    batch = learner.prepare(to_device(Examples(torch.zeros(N, 6, 6), labels, labels), "meta"))
    with Watch():
        learner.meta_update(Episodes((0, 1), (0, 1), (batch,), batch, None, (), 0, (0.0,)))
    assert devices_of(learner.state_dict()) == {"meta"}


class Crossings(Watch):
    """Counts the numbers that cross from the CPU to "meta", by their type."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[torch.dtype, list[int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._to_copy.default and args[0].device.type == "cpu":
            self.sizes.setdefault(args[0].dtype, []).append(args[0].numel())
        return super().__torch_dispatch__(func, types, args, kwargs)


@pytest.mark.usefixtures("one_thread")
def test_images_are_gathered_where_the_learner_is() -> None:
    """The images cross once. Then only places, labels, classes and rotations of each episode cross."""
    tasks = Glyphs(num_ways=3, num_shots=2, num_queries=2, train_rotations=True)
    drawn = tasks.sample(4, generator(0, 0, Purpose.TASKS))
    with Crossings() as crossings:
        for iteration in range(3):
            examples = tasks.support(drawn, Seeds.first(4, iteration=iteration), device="meta")
    assert devices_of(examples) == {"meta"}
    assert examples.inputs.shape == (4, 6, 1, 28, 28)
    assert crossings.sizes[torch.uint8] == [tasks.data.images.size]
    assert set(crossings.sizes) == {torch.uint8, torch.int64}
    assert sum(crossings.sizes[torch.int64]) <= 3 * (3 * 4 * 6 + 2 * 4 * 6)


def few_shot_updates(name: str, device: str, execution: Any) -> tuple[dict[str, Tensor], list[float]]:
    """The first meta-gradient, and the losses of three updates.

    Tasks are batched on every device. In the layout of the loop on a CPU, torch sums gradients of batch norms less
    exactly (see `Conv4.forward`).
    """
    tasks = Glyphs(num_ways=5, num_shots=1, num_queries=5, train_rotations=True)
    kind = registry.load_learner(name)
    collector = ExampleCollector(tasks, device=device)
    learner = kind(
        kind.Config(num_filters=16, execution=execution), tasks.spaces, generator=torch.Generator().manual_seed(0)
    ).to(device)
    gradients: dict[str, Tensor] = {}
    losses = []
    for iteration in range(3):
        drawn = tasks.sample(4, generator(0, iteration, Purpose.TASKS))
        seeds = Seeds.first(4, iteration=iteration)
        episodes = run_episodes(learner, collector, drawn, seeds, num_steps=1, adapting=False)
        gradients = gradients or learner.meta_gradient(episodes.support, episodes.query)[0]
        losses.append(learner.meta_update(episodes)["loss"])
    assert learner.device.type == episodes.query.inputs.device.type == device
    return {key: value.cpu() for key, value in gradients.items()}, losses


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("execution", ["vmap", "compiled"])
@pytest.mark.parametrize("name", ["proto", "maml"])
def test_few_shot_updates_on_cuda_equal_those_on_the_cpu(
    name: str, execution: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With TensorFloat-32 off: torch uses it in convolutions by default, and it keeps 10 bits of the factors."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    here, losses = few_shot_updates(name, "cpu", "vmap")
    there, others = few_shot_updates(name, "cuda", execution)
    largest = max(float(value.abs().max()) for value in here.values())
    for key, value in here.items():
        torch.testing.assert_close(there[key], value, rtol=0, atol=1e-3 * largest, msg=key)
    assert others == pytest.approx(losses, rel=1e-2)


@pytest.mark.parametrize("execution", ["vmap", "loop"])
@pytest.mark.parametrize("name", sorted(set(registry.LEARNERS) - {"proto-zero-shot"}))
@pytest.mark.usefixtures("one_thread")
def test_a_few_shot_learner_stays_where_it_is(name: str, execution: str) -> None:
    kind = registry.load_learner(name)
    image_spaces = ExampleSpaces((1, 28, 28), 3, discrete=True, train_ways=3, train_classes=(0, 1, 2, 3))
    config = kind.Config(num_filters=4, execution=execution)
    learner = kind(config, image_spaces, generator=torch.Generator().manual_seed(0)).to("meta")

    def examples(count: int) -> Any:
        labels = torch.zeros(N, count, dtype=torch.int64)
        return learner.prepare(to_device(Examples(torch.zeros(N, count, 1, 28, 28), labels, labels), "meta"))

    support, query = examples(6), examples(9)
    with Watch():
        before = learner.begin(N)
        state = learner.adapt(before, support, step=0)
        scores = (learner.score(before, query), learner.score(state, query))
        learner.meta_update(Episodes(tuple(range(N)), tuple(range(N)), (support,), query, before, (), 0, (0.0,)))
    assert devices_of((state, scores)) == {"meta"}
    assert devices_of(learner.state_dict()) == {"meta"}
