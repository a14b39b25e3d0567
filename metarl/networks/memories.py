"""Memories: sequence models that run one step at a time, or over whole sequences at once.

Agents act with `step` and learn with `forward`; both give the same outputs. A state is a tuple of tensors. Their first
axis is the sequence, so states can be sliced, moved and selected by sequence.

Shape legend: B sequences, T steps, I input_size, O output_size.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from metarl.core.errors import require

MemoryName = Literal["lstm", "gru", "transformer", "mann"]
State = tuple[Tensor, ...]


class Memory(nn.Module, ABC):
    """The interface of all memories.

    Attributes:
        output_size: O.
    """

    output_size: int

    @abstractmethod
    def initial(self, num_sequences: int) -> State:
        """The state before the first step, each tensor [B, ...]."""

    @abstractmethod
    def step(self, inputs: Tensor, state: State, *, live: Tensor | None = None) -> tuple[Tensor, State]:
        """One step.

        Args:
            inputs: [B, I].
            state: of the steps before.
            live: [B] bool. Where false, the state does not change, and the outputs have no meaning. None: all are live.

        Returns:
            Outputs [B, O], and the next state as a new value.
        """

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs [B, T, O] for inputs [B, T, I], from the initial state."""
        state = self.initial(inputs.shape[0])
        outputs = []
        for t in range(inputs.shape[1]):
            output, state = self.step(inputs[:, t], state)
            outputs.append(output)
        return torch.stack(outputs, dim=1)


class RecurrentMemory(Memory):
    """A gated recurrent network: Cho et al. 2014, arXiv:1406.1078 (GRU); Hochreiter, Schmidhuber 1997 (LSTM).

    Input weights are Xavier-uniform, recurrent ones orthogonal. Biases are zero, except 1 in the LSTM's forget gates.
    """

    def __init__(
        self, input_size: int, hidden_size: int, *, kind: Literal["lstm", "gru"], generator: torch.Generator
    ) -> None:
        super().__init__()
        self.output_size = hidden_size
        self.network = (nn.LSTM if kind == "lstm" else nn.GRU)(input_size, hidden_size)
        self._num_states = 2 if kind == "lstm" else 1
        for name, value in self.network.named_parameters():
            if name.startswith("bias"):
                nn.init.zeros_(value)
                continue
            for gate in value.detach().chunk(len(value) // hidden_size):
                if name.startswith("weight_ih"):
                    nn.init.xavier_uniform_(gate, generator=generator)
                else:
                    nn.init.orthogonal_(gate, generator=generator)
        if kind == "lstm":
            forget = self.network.get_parameter("bias_ih_l0").detach()[hidden_size : 2 * hidden_size]
            forget.fill_(1.0)

    def initial(self, num_sequences: int) -> State:
        weight = self.network.get_parameter("weight_hh_l0")
        return (weight.new_zeros(num_sequences, self.output_size),) * self._num_states

    def step(self, inputs: Tensor, state: State, *, live: Tensor | None = None) -> tuple[Tensor, State]:
        before = tuple(part.unsqueeze(0) for part in state)
        outputs, after = self.network(inputs.unsqueeze(0), before if self._num_states == 2 else before[0])
        parts = after if self._num_states == 2 else (after,)
        return outputs[0], _where(live, tuple(part[0] for part in parts), state)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.network(inputs.transpose(0, 1))[0]
        return outputs.transpose(0, 1)


class CausalTransformer(Memory):
    """Pre-norm self-attention over the last `window` steps, with sinusoidal positions of small amplitude.

    The key of a step is stored with the value of the next step. So a query that resembles an earlier step returns what
    followed that step: the action and the reward in a similar state. Keys start with the weights of the queries, so
    untrained attention already prefers similar steps.

    The state holds, for each layer and sequence, the last key and a ring of earlier keys and values. The ring grows up
    to `window` slots. The state also holds the number of steps so far.

    Source: Vaswani et al. 2017, arXiv:1706.03762; Xiong et al. 2020, arXiv:2002.04745 (layer norm first). Storing
    values with the key of the step before follows Ritter et al. 2018, arXiv:1805.09692. One head here does the work of
    a pair of attention heads in Olsson et al. 2022, arXiv:2209.11895.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        num_layers: int = 2,
        num_heads: int = 4,
        window: int = 512,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        require(hidden_size % (2 * num_heads) == 0, "hidden_size", hidden_size, f"a multiple of {2 * num_heads}")
        self.output_size = hidden_size
        self.window = window
        widths = (input_size, 4 * hidden_size, hidden_size)
        self.embed = nn.Sequential(nn.Linear(*widths[:2]), nn.GELU(), nn.Linear(*widths[1:]))
        self.blocks = nn.ModuleList(_Block(hidden_size, num_heads) for _ in range(num_layers))
        self.norm = nn.LayerNorm(hidden_size)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                nn.init.zeros_(module.bias)
        for block in self._blocks():
            for layer in (block.mix, block.contract):  # before training, the residual stream is nearly the input
                layer.weight.detach().mul_(1.0 / math.sqrt(2.0 * num_layers))
            queries, keys, _ = block.project.weight.detach().chunk(3)
            keys.copy_(queries)

    def initial(self, num_sequences: int) -> State:
        weight = self.norm.weight
        empty = [weight.new_zeros(shape) for block in self._blocks() for shape in block.state_shapes(num_sequences)]
        return weight.new_zeros(num_sequences, dtype=torch.int64), *empty

    def step(self, inputs: Tensor, state: State, *, live: Tensor | None = None) -> tuple[Tensor, State]:
        count, *before = state
        slots = before[1].shape[3]
        more = 0
        if slots < self.window and int(count.max()) >= slots:  # slots are used again only in a ring of full size
            more = min(self.window, max(16, 2 * slots)) - slots
        row, slot = torch.arange(len(count), device=count.device), count % self.window
        filled = torch.arange(slots + more, device=count.device) <= count.unsqueeze(1)
        hidden = self._embedded(inputs, count).unsqueeze(1)
        after: list[Tensor] = []
        for block, last_key, ring in zip(self._blocks(), before[::2], before[1::2], strict=True):
            query, key, value = block.projected(hidden)
            key, entry = key[:, :, 0], torch.stack([last_key, value[:, :, 0]], dim=1)
            ring = functional.pad(ring, (0, 0, 0, more)) if more else ring.clone()
            if live is not None:
                entry = torch.where(live[:, None, None, None], entry, ring[row, :, :, slot])
                key = torch.where(live[:, None, None], key, last_key)
            ring[row, :, :, slot] = entry
            hidden = block.finish(hidden, query, ring[:, 0], ring[:, 1], mask=filled[:, None, None])
            after += [key, ring]
        outputs: Tensor = self.norm(hidden[:, 0])
        return outputs, (count + (1 if live is None else live), *after)

    def forward(self, inputs: Tensor) -> Tensor:
        steps = torch.arange(inputs.shape[1], device=inputs.device)
        age = steps.unsqueeze(1) - steps
        mask = (age >= 0) & (age < self.window)
        hidden = self._embedded(inputs, steps)
        for block in self._blocks():
            queries, keys, values = block.projected(hidden)
            keys = functional.pad(keys, (0, 0, 1, 0))[:, :, :-1]
            hidden = block.finish(hidden, queries, keys, values, mask=mask)
        outputs: Tensor = self.norm(hidden)
        return outputs

    def _embedded(self, inputs: Tensor, positions: Tensor) -> Tensor:
        embedded: Tensor = self.embed(inputs)
        return embedded + 0.1 * _sinusoids(positions, self.output_size, inputs.dtype)

    def _blocks(self) -> list[_Block]:
        return cast(list[_Block], list(self.blocks))


class _Block(nn.Module):
    """Attention and a feed-forward layer, each added to the residual stream."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_attention = nn.LayerNorm(hidden_size)
        self.norm_feed = nn.LayerNorm(hidden_size)
        self.project = nn.Linear(hidden_size, 3 * hidden_size)
        self.mix = nn.Linear(hidden_size, hidden_size)
        self.expand = nn.Linear(hidden_size, 4 * hidden_size)
        self.contract = nn.Linear(4 * hidden_size, hidden_size)

    def state_shapes(self, num_sequences: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of the last key [B, num_heads, head_size] and an empty ring [B, 2, num_heads, slots, head_size]."""
        size = self.mix.in_features // self.num_heads
        return (num_sequences, self.num_heads, size), (num_sequences, 2, self.num_heads, 0, size)

    def projected(self, hidden: Tensor) -> list[Tensor]:
        """Queries, keys and values [B, num_heads, T, head_size] of the stream [B, T, O]."""
        parts = self.project(self.norm_attention(hidden)).chunk(3, dim=-1)
        return [part.reshape(*part.shape[:2], self.num_heads, -1).transpose(1, 2) for part in parts]

    def finish(self, hidden: Tensor, queries: Tensor, keys: Tensor, values: Tensor, *, mask: Tensor) -> Tensor:
        """The stream after attention and the feed-forward layer; `mask` is true where a query may attend to a key."""
        mixed = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        hidden = hidden + self.mix(mixed.transpose(1, 2).flatten(2))
        outputs: Tensor = hidden + self.contract(functional.gelu(self.expand(self.norm_feed(hidden))))
        return outputs


class MANN(Memory):
    """An LSTM with a memory matrix whose least recently used slots are overwritten.

    Each read head has a key. In one step, a head erases its least used slot. It writes its key with the weights
    sigmoid(gate) w_read(t-1) + (1 - sigmoid(gate)) w_least_used(t-1). It reads by cosine similarity to the key. Usage
    decays, and the weights of reading and writing are added to it.

    Head i uses the i-th least used slot, so heads do not overwrite each other; one head is the paper's rule. The choice
    of the least used slot has no gradient. A learned strength multiplies the similarities, as in Graves et al. 2014,
    arXiv:1410.5401; the paper has none.

    Source: Santoro et al. 2016, "Meta-Learning with Memory-Augmented Neural Networks", arXiv:1605.06065, section 3.2.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        num_slots: int = 64,
        slot_size: int = 32,
        num_heads: int = 2,
        usage_decay: float = 0.99,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        require(num_slots > num_heads, "num_slots", num_slots, f"more than the number of heads ({num_heads})")
        self.num_slots, self.slot_size, self.num_heads = num_slots, slot_size, num_heads
        self.usage_decay = usage_decay
        self.output_size = hidden_size + num_heads * slot_size
        read_size = num_heads * slot_size
        self.controller = RecurrentMemory(input_size + read_size, hidden_size, kind="lstm", generator=generator)
        self.keys = nn.Linear(hidden_size, read_size)
        self.gates = nn.Linear(hidden_size, num_heads)
        self.strengths = nn.Linear(hidden_size, num_heads)
        for layer in (self.keys, self.gates, self.strengths):
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)

    def initial(self, num_sequences: int) -> State:
        weight = self.keys.weight
        return (
            *self.controller.initial(num_sequences),
            weight.new_zeros(num_sequences, self.num_slots, self.slot_size),
            weight.new_zeros(num_sequences, self.num_slots),
            weight.new_zeros(num_sequences, self.num_heads, self.num_slots),
            weight.new_zeros(num_sequences, self.num_heads * self.slot_size),
        )

    def step(self, inputs: Tensor, state: State, *, live: Tensor | None = None) -> tuple[Tensor, State]:
        hidden, cell, slots, usage, read_weights, read = state
        output, controller = self.controller.step(torch.cat([inputs, read], dim=-1), (hidden, cell))
        keys = torch.tanh(self.keys(output)).reshape(-1, self.num_heads, self.slot_size)
        gates = torch.sigmoid(self.gates(output)).unsqueeze(-1)
        order = usage.detach().argsort(dim=-1, stable=True)[:, : self.num_heads]
        least_used = functional.one_hot(order, self.num_slots).to(usage.dtype)
        write_weights = gates * read_weights + (1.0 - gates) * least_used
        slots = slots * (1.0 - least_used.sum(1).unsqueeze(-1)) + write_weights.mT @ keys
        similarity = functional.normalize(keys, dim=-1, eps=1e-6) @ functional.normalize(slots, dim=-1, eps=1e-6).mT
        strengths = 1.0 + functional.softplus(self.strengths(output)).unsqueeze(-1)
        read_weights = (strengths * similarity).softmax(-1)
        usage = self.usage_decay * usage + read_weights.sum(1) + write_weights.sum(1)
        read = (read_weights @ slots).flatten(1)
        after = (*controller, slots, usage, read_weights, read)
        return torch.cat([output, read], dim=-1), _where(live, after, state)


def make_memory(name: MemoryName, input_size: int, hidden_size: int, *, generator: torch.Generator) -> Memory:
    """The memory `name` with the given hidden size; its other settings have their defaults."""
    makers: dict[str, Callable[[], Memory]] = {
        "lstm": lambda: RecurrentMemory(input_size, hidden_size, kind="lstm", generator=generator),
        "gru": lambda: RecurrentMemory(input_size, hidden_size, kind="gru", generator=generator),
        "transformer": lambda: CausalTransformer(input_size, hidden_size, generator=generator),
        "mann": lambda: MANN(input_size, hidden_size, generator=generator),
    }
    return makers[name]()


def _where(live: Tensor | None, new: State, old: State) -> State:
    """`new` for live sequences, `old` for the others."""
    if live is None:
        return new
    return tuple(
        torch.where(live.reshape(-1, *(1,) * (after.dim() - 1)), after, before)
        for after, before in zip(new, old, strict=True)
    )


def _sinusoids(positions: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """[..., size] sines and cosines of `positions` [...] at geometric frequencies."""
    half = torch.arange(size // 2, device=positions.device, dtype=dtype)
    angles = positions.to(dtype).unsqueeze(-1) * torch.exp(half * (-math.log(10_000.0) / (size // 2)))
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
