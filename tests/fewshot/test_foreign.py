"""Encoders of the user's own: which ones work, and the messages for those that do not."""

from __future__ import annotations

import logging
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metarl.core.errors import InputError, RunError
from metarl.fewshot.base.examples import ExampleSpaces
from metarl.fewshot.base.foreign import made_by
from metarl.fewshot.maml import MAML
from metarl.fewshot.proto import Proto

SPACES = ExampleSpaces((6,), 3, True, train_ways=3)


class Linear(nn.Module):
    """Six numbers to four. Subclasses change `before` and `after`."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layer: nn.Module = nn.Linear(shape[0], 4)

    def before(self, inputs: Tensor) -> Tensor:
        return inputs

    def after(self, features: Tensor) -> Any:
        return features

    def forward(self, inputs: Tensor) -> Any:
        return self.after(self.layer(self.before(inputs)))


def linear(**methods: Callable[..., Any]) -> type[Linear]:
    return type("Own", (Linear,), methods)


def with_layer(change: Callable[[nn.Module], Any]) -> Callable[[tuple[int, ...]], nn.Module]:
    def make(shape: tuple[int, ...]) -> nn.Module:
        made = Linear(shape)
        made.layer = change(made.layer)
        return made

    return make


class Attention(nn.Module):
    """A transformer over the six numbers of an input."""

    def __init__(self, shape: tuple[int, ...], *, evaluating: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(1, 4)
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
        self.train(not evaluating)

    def forward(self, inputs: Tensor) -> Tensor:
        features: Tensor = self.layer(self.first(inputs.unsqueeze(-1))).mean(1)
        return features


class Half(Linear):
    def forward(self, inputs: Tensor) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(inputs)


class Recurrent(nn.Module):
    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layer = nn.GRU(1, 4, batch_first=True)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs.unsqueeze(-1))[1][0]  # type: ignore[no-any-return]


class Looking(Linear):
    """Its branch depends on the data."""

    def after(self, features: Tensor) -> Tensor:
        return features if features.sum() > 0 else -features


class Counting(Linear):
    calls = 0

    def after(self, features: Tensor) -> Tensor:
        self.calls += 1
        return features + self.calls


class OldFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        return inputs.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


class Late(Linear):
    """Raises `error` after training has started."""

    error: BaseException = ValueError("late")
    ready = False

    def after(self, features: Tensor) -> Tensor:
        if Late.ready:
            raise self.error
        return features


@torch.no_grad()
def without_derivative(self: Any, features: Tensor) -> Tensor:
    return features * 2


def tied(shape: tuple[int, ...]) -> nn.Module:
    made = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    made[2].weight = made[0].weight
    return made


def scripted(shape: tuple[int, ...]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(nn.Linear(6, 4))


def unregistered(functions: list[Callable[[Tensor], Tensor]]) -> type[Linear]:
    """A class whose modules also use parameters that torch does not find."""
    return linear(functions=functions, before=lambda self, inputs: self.functions[0](inputs))


MODULES: dict[str, Any] = {
    "Attention": Attention,
    "Evaluating": lambda shape: Attention(shape, evaluating=True),
    "Half": Half,
    "Doubled": linear(after=lambda self, features: features.double()),
    "SpectralEvaluating": with_layer(lambda layer: nn.utils.parametrizations.spectral_norm(layer).eval()),
    "Lazy": with_layer(lambda layer: nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d())),
    "Tied": tied,
    "NotDropping": with_layer(lambda layer: nn.Sequential(layer, nn.Dropout(0.5)).eval()),
    "Recurrent": Recurrent,
    "Looking": Looking,
    "Counting": Counting,
    "Late": Late,
    "Spectral": with_layer(nn.utils.parametrizations.spectral_norm),
    "Instance": lambda shape: nn.Sequential(nn.Unflatten(1, (2, 3)), nn.InstanceNorm1d(2, track_running_stats=True)),
    "Tuple": linear(after=lambda self, features: (features, features)),
    "Nothing": linear(after=lambda self, features: None),
    "Whole": linear(after=lambda self, features: features.long()),
    "Complex": linear(after=lambda self, features: torch.fft.fft(features)),
    "Square": linear(after=lambda self, features: features @ features.mT),
    "Empty": linear(after=lambda self, features: features[:, :0]),
    "Infinite": linear(after=lambda self, features: features / 0),
    "InPlace": linear(before=lambda self, inputs: inputs.mul_(2)),
    "Old": linear(after=lambda self, features: OldFunction.apply(features)),
    "Flat": linear(after=without_derivative),
    "Array": linear(before=lambda self, inputs: torch.from_numpy(inputs.detach().numpy())),
    "Listed": unregistered([nn.Linear(6, 6)]),
    "Loose": unregistered([torch.ones(6, requires_grad=True).mul]),
    "scripted": scripted,
    "Leaving": linear(__init__=lambda self, shape: sys.exit(0)),
    "made": Linear((6,)),
    "number": 3,
}


@pytest.fixture(autouse=True)
def _own_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("mine")
    vars(module).update(MODULES)
    monkeypatch.setitem(sys.modules, "mine", module)
    monkeypatch.setattr(Late, "ready", False)


def switches() -> tuple[bool, ...]:
    backends = torch.backends
    return backends.mha.get_fastpath_enabled(), backends.cuda.flash_sdp_enabled(), backends.cuda.math_sdp_enabled()


@pytest.mark.parametrize("name", list(MODULES)[:8])
def test_what_training_needs_of_an_encoder_works(
    name: str, new_learner: Any, new_batches: Any, as_episodes: Any
) -> None:
    """One by one and batched agree; every parameter gets a meta-gradient, through second derivatives."""
    support, query = new_batches()
    before, gradients = switches(), []
    for execution in ("loop", "vmap"):
        learner = new_learner(MAML, SPACES, encoder=f"mine:{name}", execution=execution)
        gradients.append(learner.meta_gradient((support,), query)[0])
        learner.meta_update(as_episodes(support, query))
        state = learner.adapt(learner.begin(2), support, step=0)
        assert learner.score(state, query).isfinite().all()
    assert switches() == before
    assert sum(bool(value.any()) for value in gradients[0].values()) > len(gradients[0]) // 2
    exact = 0.1 if name == "Half" else 1e-4
    for key, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], value, rtol=exact, atol=exact)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Counting", "must be a module without dropout, other randomness or memory of calls; remove it"),
        (
            "Spectral",
            r"calls change no buffer; they change layer\.parametrizations\.weight\.0\._u, .*\._v; call \.eval\(\)",
        ),
        ("Instance", r"calls change no buffer; they change 1\.running_mean, 1\.running_var"),
        ("Tuple", r"must be a module that maps inputs \[B, \.\.\.\] to float features .* 4 inputs gave tuple"),
        ("Nothing", "4 inputs gave NoneType"),
        ("Whole", r"4 inputs gave torch\.int64 \[4, 4\]"),
        ("Complex", r"4 inputs gave torch\.complex64 \[4, 4\]"),
        ("Square", "must be a module with one number of features, at least 1, for 2 inputs and for 4"),
        ("Empty", "must be a module with one number of features, at least 1, for 2 inputs and for 4"),
        ("Infinite", "must be a module that gives finite features"),
        ("InPlace", "must be a module that does not change its inputs"),
        ("Listed", "must be a module that registers all its parameters; it uses others: .*nn.ModuleList"),
        ("Loose", "must be a module that registers all its parameters"),
        ("scripted", "RuntimeError: The stateless API can't be used with Jitted modules"),
        ("Leaving", "SystemExit: 0"),
        ("made", "must be a class or a function that makes a module, not a module"),
        ("number", "TypeError: 'int' object is not callable$"),
    ],
)
def test_what_is_no_function_of_its_input_is_refused(name: str, message: str) -> None:
    with pytest.raises(InputError, match=f"^agent.encoder = 'mine:{name}': .*{message}") as caught:
        made_by(f"mine:{name}", (6,), generator=torch.Generator().manual_seed(0))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["Old", "Flat", "Array"])
@pytest.mark.parametrize(("kind", "order"), [(MAML, "second derivative"), (Proto, "derivative")])
def test_what_cannot_be_differentiated_is_refused(name: str, kind: Any, order: str, new_learner: Any) -> None:
    with pytest.raises(InputError, match=f"^agent.encoder = 'mine:{name}': must be a module that has a {order}: "):
        new_learner(kind, SPACES, encoder=f"mine:{name}")


@pytest.mark.parametrize("name", ["Recurrent", "Looking"])
def test_what_cannot_be_batched_runs_task_by_task(
    name: str, new_learner: Any, new_batches: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"encoder": f"mine:{name}"}
    with pytest.raises(InputError, match=r"^agent.execution = 'vmap': must be 'loop' or 'auto' for mine:"):
        new_learner(Proto, SPACES, **settings, execution="vmap")
    assert caplog.records == []
    with caplog.at_level(logging.WARNING):
        learner = new_learner(Proto, SPACES, **settings)
    assert f"tasks run one by one, mine:{name} cannot be batched" in caplog.text
    support, query = new_batches()
    alone = new_learner(Proto, SPACES, **settings, execution="loop")
    found, expected = (each.meta_gradient((support,), query)[0] for each in (learner, alone))
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_what_cannot_be_traced_is_not_compiled(new_learner: Any) -> None:
    allowed = "must be 'auto', 'loop' or 'vmap' for mine:Looking"
    with pytest.raises(InputError, match=f"^agent.execution = 'compiled': {allowed}"):
        new_learner(Proto, SPACES, encoder="mine:Looking", execution="compiled")


@pytest.mark.parametrize("error", [ValueError("late"), SystemExit(0), GeneratorExit("late")])
def test_what_it_raises_in_training_is_named(
    error: BaseException, new_learner: Any, new_batches: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = new_learner(Proto, SPACES, encoder="mine:Late", execution="loop")
    monkeypatch.setattr(Late, "error", error)
    monkeypatch.setattr(Late, "ready", True)
    support, query = new_batches()
    with pytest.raises(RunError, match=f"^agent.encoder = 'mine:Late': {type(error).__name__}: ") as caught:
        learner.meta_gradient((support,), query)
    assert caught.value.__cause__ is error


def test_an_interrupt_stays_one(new_learner: Any, new_batches: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = new_learner(Proto, SPACES, encoder="mine:Late")
    monkeypatch.setattr(Late, "error", KeyboardInterrupt())
    monkeypatch.setattr(Late, "ready", True)
    with pytest.raises(KeyboardInterrupt):
        learner.meta_gradient((new_batches()[0],), new_batches()[1])


def test_a_lazy_batch_norm_starts_from_its_own_averages() -> None:
    made = made_by("mine:Lazy", (6,), generator=torch.Generator().manual_seed(0))
    assert made.layer[1].initial.tolist() == [[0.0] * 4, [1.0] * 4]  # type: ignore[index,union-attr]


def test_a_module_in_the_working_directory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lying_here.py").write_text(
        "from torch import nn\n\n\ndef net(shape):\n    return nn.Linear(*shape, 2)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert isinstance(made_by("lying_here:net", (6,), generator=torch.Generator().manual_seed(0)), nn.Linear)
