"""Time of one MAML meta-gradient, compared with a plain loop over tasks and with TorchOpt and higher.

The setting is Omniglot's 5-way 1-shot with 32 tasks and 64 filters, on images of noise. One network is Conv-4 with
max-pooling and 15 queries a class, the other has stride 2 and one query a class. Every contender computes the same
meta-gradient on the same cores:

- plain: torch's autograd over one task after another; a convolution uses all cores;
- ours: each value of `--agent.execution`;
- compiled: the plain loss of one task through torch.compile, if there is a C++ compiler;
- peers: if they are installed (pip install torchopt higher).

Further rows give our rate as a share of the machine's rate for matrix products, the time to draw episodes, and the
time of two of Proto's training episodes of 60 ways. Freed memory is kept, as in `metarl train`; `--memory-back` returns
it to the system. With `--device cuda` everything runs on the GPU, in float32 without TensorFloat-32.

    python scripts/benchmark_fewshot.py                    ten minutes on two cores, four of them to compile
    python scripts/benchmark_fewshot.py --quick            8 tasks, without compiling: a noisier answer within a minute
"""

from __future__ import annotations

import importlib.util
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from benchmarking import Lines, alternate, arguments, ratio, repeats_of
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from metarl.core.episode import run_episodes
from metarl.core.seeds import Purpose, Seeds, generator
from metarl.core.trees import to_device, tree_map
from metarl.fewshot.base.examples import ExampleCollector, ExampleSpaces
from metarl.fewshot.base.learner import ExampleBatch
from metarl.fewshot.data.packed import Glyphs
from metarl.fewshot.maml import MAML, MAMLConfig
from metarl.fewshot.proto import Proto, ProtoConfig
from metarl.runs.build import keep_freed_memory
from metarl.runs.device import select_device

WAYS, FILTERS, INNER_LR = 5, 64, 0.4
NETWORKS = {"max-pool, 15 queries": ("conv4", 15), "stride 2, 1 query": ("conv4-strided", 1)}
PROTO_WAYS, PROTO_QUERIES = 60, 5
Gradient = list[Tensor]
FewShot = TypeVar("FewShot", MAML, Proto)


class PlainConv4(nn.Module):
    """The network as torch modules: convolution, batch norm, ReLU, pooling."""

    def __init__(self, strided: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels in (1, FILTERS, FILTERS, FILTERS):
            layers += [nn.Conv2d(channels, FILTERS, 3, stride=2 if strided else 1, padding=1)]
            layers += [nn.BatchNorm2d(FILTERS, track_running_stats=False), nn.ReLU()]
            layers += [] if strided else [nn.MaxPool2d(2)]
        self.blocks, self.strided = nn.Sequential(*layers), strided
        self.head = nn.Linear(FILTERS, WAYS)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.blocks(inputs)
        return self.head(hidden.mean((2, 3)) if self.strided else hidden.flatten(1))


def in_dtype(learner: FewShot, dtype: torch.dtype) -> FewShot:
    """The learner, with its parameters in `dtype`."""
    state = learner.state_dict()
    learner.load_state_dict(tree_map(lambda part: part.to(dtype) if part.is_floating_point() else part, state))
    return learner


class Case:
    """One network, its tasks and every contender.

    Args:
        name: a key of `NETWORKS`.
        num_tasks: size of the meta-batch.
        device: where everything runs.
        dtype: of all numbers.
    """

    def __init__(self, name: str, num_tasks: int, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        encoder, queries = NETWORKS[name]
        self.spaces = ExampleSpaces((1, 28, 28), WAYS, discrete=True, train_ways=WAYS)
        self.encoder, self.num_tasks, self.device, self.dtype = encoder, num_tasks, device, dtype
        random = torch.Generator().manual_seed(0)
        self.support, self.query = (self._batch(count, random) for count in (1, queries))
        self.module = PlainConv4(encoder == "conv4-strided").to(device, dtype)
        ours = dict(self._learner("loop").parameters)
        names = [name for name, _ in self.module.named_parameters()]
        self.module.load_state_dict(dict(zip(names, ours.values(), strict=True)))

    def _batch(self, count: int, random: torch.Generator) -> ExampleBatch:
        images = torch.rand(self.num_tasks, WAYS * count, 1, 28, 28, generator=random).to(self.dtype)
        labels = torch.arange(WAYS).repeat(count).expand(self.num_tasks, -1).contiguous()
        return to_device(ExampleBatch(images, labels, torch.zeros_like(labels)), self.device)

    def _learner(self, execution: Any) -> MAML:
        config = MAMLConfig(encoder=self.encoder, inner_lr=INNER_LR, execution=execution)
        learner = MAML(config, self.spaces, generator=torch.Generator().manual_seed(0)).to(self.device)
        return in_dtype(learner, self.dtype)

    def contenders(self) -> dict[str, Callable[[], Gradient]]:
        """The contenders that can be measured here, without the compiled ones."""
        peers = installed("torchopt", "higher")
        ours = {f"ours, {execution}": self.ours(execution) for execution in ("loop", "vmap")}
        return {"plain": self.plain, **ours, **{peer: getattr(self, peer) for peer in peers}}

    def ours(self, execution: str) -> Callable[[], Gradient]:
        """The learner's own meta-gradient."""
        learner = self._learner(execution)
        return lambda: list(learner.meta_gradient((self.support,), self.query)[0].values())

    def plain(self) -> Gradient:
        """Meta-gradient by autograd over one task after another."""
        parameters = dict(self.module.named_parameters())
        return self._summed(lambda i: self._task_gradient(parameters, i))

    def compiled(self) -> Callable[[], Gradient]:
        """The plain loss of one task with its inner gradient, through torch.compile."""
        parameters = {name: value.detach() for name, value in self.module.named_parameters()}

        def loss(parameters: dict[str, Tensor], *task: Tensor) -> Tensor:
            inputs, targets, queries, answers = task
            inner = torch.func.grad(self._loss)(parameters, inputs, targets)
            adapted = {name: parameters[name] - INNER_LR * inner[name] for name in parameters}
            return self._loss(adapted, queries, answers)

        gradient = torch.compile(torch.func.grad(loss))
        return lambda: self._summed(lambda i: list(gradient(parameters, *self._task(i)).values()))

    def torchopt(self) -> Gradient:
        """TorchOpt's differentiable SGD."""
        import torchopt

        optimizer = torchopt.MetaSGD(self.module, lr=INNER_LR)
        start = torchopt.extract_state_dict(self.module, by="reference")
        parameters = list(self.module.parameters())

        def of_task(i: int) -> Gradient:
            inputs, targets, queries, answers = self._task(i)
            optimizer.step(functional.cross_entropy(self.module(inputs), targets))
            gradient = torch.autograd.grad(functional.cross_entropy(self.module(queries), answers), parameters)
            torchopt.recover_state_dict(self.module, start)
            return list(gradient)

        return self._summed(of_task)

    def higher(self) -> Gradient:
        """higher's functional modules and differentiable SGD."""
        import higher

        optimizer = torch.optim.SGD(self.module.parameters(), lr=INNER_LR)

        def of_task(i: int) -> Gradient:
            inputs, targets, queries, answers = self._task(i)
            with higher.innerloop_ctx(self.module, optimizer, copy_initial_weights=False) as (network, steps):
                steps.step(functional.cross_entropy(network(inputs), targets))
                loss = functional.cross_entropy(network(queries), answers)
                return list(torch.autograd.grad(loss, list(self.module.parameters())))

        return self._summed(of_task)

    def _task(self, i: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.support.inputs[i], self.support.targets[i], self.query.inputs[i], self.query.targets[i]

    def _loss(self, parameters: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(torch.func.functional_call(self.module, parameters, (inputs,)), targets)

    def _task_gradient(self, parameters: dict[str, Tensor], i: int) -> Gradient:
        inputs, targets, queries, answers = self._task(i)
        loss = self._loss(parameters, inputs, targets)
        inner = torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
        adapted = {name: value - INNER_LR * g for (name, value), g in zip(parameters.items(), inner, strict=True)}
        return list(torch.autograd.grad(self._loss(adapted, queries, answers), list(parameters.values())))

    def _summed(self, of_task: Callable[[int], Gradient]) -> Gradient:
        total = of_task(0)
        for i in range(1, self.num_tasks):
            total = [a + b for a, b in zip(total, of_task(i), strict=True)]
        return [value / self.num_tasks for value in total]


def installed(*names: str) -> list[str]:
    """The packages among `names` that can be imported."""
    found = []
    for name in names:
        try:
            importlib.import_module(name)
            found.append(name)
        except Exception as error:  # a peer may not fit this version of torch
            print(f"{name} is not measured: {type(error).__name__}: {error}".splitlines()[0], file=sys.stderr)
    return found


def timed(contenders: dict[str, Callable[[], Any]], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """`alternate`; each time includes the wait for the device."""
    return alternate({who: partial(finished, run, device) for who, run in contenders.items()}, repeats)


def finished(run: Callable[[], Any], device: torch.device) -> None:
    """Calls `run` and waits for the device."""
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()


def matrix_rate(device: torch.device) -> float:
    """Floating-point operations per second of a product of 2048 by 2048 matrices on all cores."""
    left, right = torch.rand(2, 2048, 2048, device=device)
    seconds = timed({"product": lambda: left @ right}, 5, device)["product"]
    return 2 * 2048**3 / statistics.median(seconds)


def largest_difference(left: Gradient, right: Gradient) -> float:
    """The largest difference between two gradients, relative to the largest element."""
    largest = max(float(b.abs().max()) for b in right)
    return float(f"{max(float((a - b).abs().max()) for a, b in zip(left, right, strict=True)) / largest:.1e}")


def measure(name: str, num_tasks: int, lines: Lines, *, device: torch.device, repeats: int, compiling: bool) -> float:
    """Measures all contenders on one network; returns the seconds of our fastest."""
    exact = Case(name, 2, device, torch.float64).contenders()
    reference = exact["plain"]()
    # Compared in float64: in float32, a number near zero before a ReLU may change its sign, and the gradient with it.
    more = {who: {"difference_in_float64": largest_difference(run(), reference)} for who, run in exact.items()}
    case = Case(name, num_tasks, device)
    contenders = case.contenders()
    if compiling:
        for who, run in (
            ("ours, compiled", case.ours("compiled")),
            ("torch.compile of the plain loss", case.compiled()),
        ):
            start = time.perf_counter()
            finished(run, device)
            contenders[who], more[who] = run, {"compiling_s": round(time.perf_counter() - start, 1)}
    seconds = timed(contenders, repeats, device)
    add_rows(lines, f"meta-gradient, {name}, {num_tasks} tasks", "plain autograd loop", seconds, more)
    with FlopCounterMode(display=False) as counter:
        case.plain()
    best = min((who for who in seconds if who.startswith("ours")), key=lambda who: statistics.median(seconds[who]))
    rate, mine = matrix_rate(device), statistics.median(seconds[best])
    reached = counter.get_total_flops() / mine
    against = f"{rate / 1e9:.0f} GFLOP/s of a matrix product"
    lines.add(f"rate, {name}: {best}", reached / 1e9, "GFLOP/s", against=against, ratio=reached / rate, repeats=repeats)
    return mine


def add_rows(
    lines: Lines, case: str, plain: str, seconds: dict[str, list[float]], more: dict[str, dict[str, float]]
) -> None:
    """A row for each contender, compared with the one called "plain"."""
    for who, taken in seconds.items():
        against, factor = f"{plain}: how many times as fast", ratio(seconds["plain"], taken)
        median = statistics.median(taken)
        lines.add(f"{case}: {who}", median, "s", against=against, ratio=factor, repeats=len(taken), **more[who])


def sampling(
    lines: Lines, num_tasks: int, meta_gradient_s: float, queries: int, repeats: int, device: torch.device
) -> None:
    """Time to draw the episodes of one meta-batch of characters."""
    tasks = Glyphs(num_queries=queries)
    collector = ExampleCollector(tasks, device=device)
    learner = MAML(MAMLConfig(), tasks.spaces, generator=torch.Generator().manual_seed(0)).to(device)
    numbers = iter(range(10**9))

    def draw() -> object:
        number = next(numbers)
        drawn = tasks.sample(num_tasks, generator(0, number, Purpose.TASKS))
        seeds = Seeds.first(num_tasks, iteration=number)
        return run_episodes(learner, collector, drawn, seeds, num_steps=1, adapting=False)

    seconds = statistics.median(timed({"draw": draw}, 3 * repeats, device)["draw"])
    case = f"episodes of {num_tasks} tasks, {queries} queries"
    lines.add(case, seconds, "s", against="one meta-gradient", ratio=seconds / meta_gradient_s, repeats=3 * repeats)


def prototypes(lines: Lines, repeats: int, device: torch.device) -> None:
    """Proto compared with torch's own layers: seconds, and the gradient's distance from that in double precision."""
    shapes = {"support": PROTO_WAYS, "query": PROTO_WAYS * PROTO_QUERIES}
    random = torch.Generator().manual_seed(0)
    strokes = functional.avg_pool2d(torch.rand(PROTO_WAYS, 1, 28, 28, generator=random), 5, 1, 2).gt(0.53).float()

    def batch(size: int, dtype: torch.dtype) -> ExampleBatch:
        noise = torch.rand(2, size, 1, 28, 28, generator=torch.Generator().manual_seed(size))
        images = strokes.repeat(size // PROTO_WAYS, 1, 1, 1) * (noise > 0.1)
        labels = torch.arange(PROTO_WAYS).repeat(size // PROTO_WAYS).expand(2, -1).contiguous()
        return to_device(ExampleBatch(images.to(dtype), labels, labels), device)

    def ours(dtype: torch.dtype) -> Callable[[], Gradient]:
        learner = Proto(ProtoConfig(), spaces, generator=torch.Generator().manual_seed(0)).to(device)
        in_dtype(learner, dtype)
        support, query = (batch(size, dtype) for size in shapes.values())
        return lambda: list(learner.meta_gradient((support,), query)[0].values())

    def plain(dtype: torch.dtype, *, channels_last: bool = False) -> Callable[[], Gradient]:
        blocks = PlainConv4(strided=False).blocks.to(device, dtype)
        if channels_last:
            blocks = blocks.to(memory_format=torch.channels_last)
        blocks.load_state_dict(dict(zip(blocks.state_dict(), start, strict=True)))
        support, query = (batch(size, dtype) for size in shapes.values())

        def gradient() -> Gradient:
            total = torch.zeros((), dtype=dtype, device=device)
            for i in range(2):
                inputs = torch.cat([support.inputs[i], query.inputs[i]])
                if channels_last:  # with one channel, the two layouts differ only in their strides
                    inputs = inputs.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format).permute(0, 3, 1, 2)
                features = blocks(inputs).flatten(1)
                distances = torch.cdist(features[PROTO_WAYS:], features[:PROTO_WAYS]).square()
                total = total + functional.cross_entropy(-distances, query.targets[i]) / 2
            return list(torch.autograd.grad(total, list(blocks.parameters())))

        return gradient

    spaces = ExampleSpaces((1, 28, 28), WAYS, discrete=True, train_ways=PROTO_WAYS)
    start = list(Proto(ProtoConfig(), spaces, generator=torch.Generator().manual_seed(0)).parameters.values())
    exact = plain(torch.float64)()
    last = plain(torch.float32, channels_last=True)
    contenders = {"plain": plain(torch.float32), "plain, channels last": last, "ours": ours(torch.float32)}
    off = {who: distance(run(), exact) for who, run in contenders.items()}
    seconds = timed(contenders, repeats, device)
    more = {who: {"distance_from_float64": value} for who, value in off.items()}
    add_rows(lines, f"two Proto episodes of {PROTO_WAYS} ways", "torch's own layers", seconds, more)


def distance(gradient: Gradient, exact: Gradient) -> float:
    """Distance of the whole gradient from the exact one, relative to the length of the exact one."""
    off = sum(float((a - b).double().square().sum()) for a, b in zip(gradient, exact, strict=True))
    return float(f"{(off / sum(float(b.double().square().sum()) for b in exact)) ** 0.5:.1e}")


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--memory-back", action="store_true", help="return freed memory to the system")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parsed = parser.parse_args()
    device = select_device(parsed.device)
    if not parsed.memory_back:
        keep_freed_memory()
    repeats, lines = repeats_of(parsed), Lines(parsed.json)
    num_tasks = 8 if parsed.quick else 32
    compiling = not parsed.quick and any(map(shutil.which, ("g++", "clang++", "c++")))
    for name, (_, queries) in NETWORKS.items():
        taken = measure(name, num_tasks, lines, device=device, repeats=repeats, compiling=compiling)
        sampling(lines, num_tasks, taken, queries, repeats, device)
    prototypes(lines, repeats, device)
    lines.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
