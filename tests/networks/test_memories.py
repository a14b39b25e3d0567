"""Memories: single steps and whole sequences give the same outputs, which do not depend on later inputs."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from metarl.core.errors import InputError
from metarl.networks.memories import MANN, CausalTransformer, Memory, RecurrentMemory, make_memory

B, T, SIZE, HIDDEN = 3, 23, 4, 16
NAMES = ("lstm", "gru", "transformer", "mann")
ALL = pytest.mark.parametrize("name", NAMES)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def memory_of(name: Any) -> Memory:
    return make_memory(name, SIZE, HIDDEN, generator=rng()).double()


def sequences(seed: int = 1) -> Tensor:
    return torch.randn(B, T, SIZE, generator=rng(seed), dtype=torch.float64)


def stepped(memory: Memory, inputs: Tensor, live: Tensor | None = None) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Outputs of single steps, and the last state; `live` [B, T] as in `Memory.step`."""
    state, outputs = memory.initial(inputs.shape[0]), []
    for t in range(inputs.shape[1]):
        output, state = memory.step(inputs[:, t], state, live=None if live is None else live[:, t])
        outputs.append(output)
    return torch.stack(outputs, 1), state


@ALL
def test_single_steps_give_what_whole_sequences_give(name: str) -> None:
    memory = memory_of(name)
    outputs, state = stepped(memory, sequences())
    assert outputs.shape == (B, T, memory.output_size)
    assert all(part.shape[0] == B for part in state)
    torch.testing.assert_close(outputs, memory(sequences()), rtol=1e-9, atol=1e-9)


@ALL
def test_an_output_depends_on_all_inputs_so_far_and_on_none_to_come(name: str) -> None:
    memory, inputs = memory_of(name), sequences().requires_grad_()
    (slopes,) = torch.autograd.grad(memory(inputs)[1, 12].square().sum(), inputs)
    assert (slopes[1, :13].abs().sum(-1) > 0).all()
    assert not slopes[1, 13:].any()
    assert not slopes[[0, 2]].any()


@ALL
def test_a_row_that_is_not_live_keeps_its_state(name: str) -> None:
    memory, inputs = memory_of(name), sequences()
    live = torch.rand(B, T, generator=rng(2)) < 0.6
    outputs, _ = stepped(memory, inputs, live)
    for row in range(B):
        alone = memory(inputs[row : row + 1, live[row]])[0]
        torch.testing.assert_close(outputs[row, live[row]], alone, rtol=1e-9, atol=1e-9)


@ALL
def test_steps_change_no_state_in_place(name: str) -> None:
    memory, inputs = memory_of(name), sequences()
    state = stepped(memory, inputs[:, :5])[1]
    before = tuple(part.clone() for part in state)
    first = memory.step(inputs[:, 5], state)[0]
    memory.step(-inputs[:, 6], state)
    assert all(map(torch.equal, state, before))
    assert torch.equal(memory.step(inputs[:, 5], state)[0], first)


@ALL
def test_weights_come_from_the_generator_alone(name: str) -> None:
    first, second = (make_memory(name, SIZE, HIDDEN, generator=rng(5)) for _ in range(2))  # type: ignore[arg-type]
    assert all(map(torch.equal, first.parameters(), second.parameters()))
    other = make_memory(name, SIZE, HIDDEN, generator=rng(6))  # type: ignore[arg-type]
    assert not all(map(torch.equal, first.parameters(), other.parameters()))


def test_recurrent_weights_are_orthogonal_and_the_forget_gate_is_open() -> None:
    network = RecurrentMemory(SIZE, HIDDEN, kind="lstm", generator=rng()).network
    for gate in network.weight_hh_l0.split(HIDDEN):
        torch.testing.assert_close(gate @ gate.T, torch.eye(HIDDEN), atol=1e-5, rtol=0)
    # torch's order: input, forget, cell, output
    assert (network.bias_ih_l0 + network.bias_hh_l0).reshape(4, -1).mean(1).tolist() == [0.0, 1.0, 0.0, 0.0]


class TestTransformer:
    @pytest.mark.parametrize("window", [1, 5, 22, 23])
    def test_the_ring_holds_the_last_window_of_steps(self, window: int) -> None:
        memory = CausalTransformer(SIZE, HIDDEN, window=window, generator=rng()).double()
        outputs, (count, _, past, *_) = stepped(memory, sequences())
        assert past.shape[3] == window
        assert count.tolist() == [T] * B
        torch.testing.assert_close(outputs, memory(sequences()), rtol=1e-9, atol=1e-9)

    def test_one_layer_forgets_what_is_older_than_its_window(self) -> None:
        """Five values; the key of the oldest one comes from the step before it."""
        memory = CausalTransformer(SIZE, HIDDEN, num_layers=1, window=5, generator=rng()).double()
        inputs = sequences().requires_grad_()
        (slopes,) = torch.autograd.grad(memory(inputs)[0, 12].square().sum(), inputs)
        assert (slopes[0].abs().sum(-1) > 0).nonzero().flatten().tolist() == [7, 8, 9, 10, 11, 12]

    def test_rows_that_paused_keep_a_full_ring_right(self) -> None:
        memory = CausalTransformer(SIZE, HIDDEN, window=4, generator=rng()).double()
        live = torch.rand(B, T, generator=rng(2)) < 0.6
        outputs, _ = stepped(memory, sequences(), live)
        alone = memory(sequences()[1:2, live[1]])[0]
        torch.testing.assert_close(outputs[1, live[1]], alone, rtol=1e-9, atol=1e-9)

    def test_order_matters(self) -> None:
        memory, inputs = memory_of("transformer"), sequences()
        swapped = inputs[:, [1, 0, *range(2, T)]]
        assert not torch.allclose(memory(inputs)[:, -1], memory(swapped)[:, -1])

    def test_untrained_attention_brings_up_what_followed_the_like_of_the_present_step(self) -> None:
        """The input of step 2 comes again at step 8; the output then depends most on step 3, which followed step 2."""
        memory = CausalTransformer(SIZE, HIDDEN, num_layers=1, generator=rng()).double()
        inputs = torch.randn(200, 9, SIZE, generator=rng(1), dtype=torch.float64)
        inputs[:, 8] = inputs[:, 2]
        inputs.requires_grad_()
        (slopes,) = torch.autograd.grad(memory(inputs)[:, 8].square().sum(), inputs)
        influence = slopes.norm(dim=-1).mean(0)[:8]
        assert influence.argmax() == 3

    def test_width_must_fit_the_heads(self) -> None:
        with pytest.raises(InputError, match="hidden_size = 12: must be a multiple of 8"):
            CausalTransformer(SIZE, 12, generator=rng())


class TestMANN:
    def test_addressing_is_the_papers(self) -> None:
        """Equations of section 3.2 with numpy, one sequence and one head."""
        memory = MANN(SIZE, HIDDEN, num_slots=3, slot_size=5, num_heads=1, usage_decay=0.9, generator=rng()).double()
        inputs = sequences()[:1]
        outputs = memory(inputs)[0].detach().numpy()
        weights = {name: value.detach().numpy() for name, value in memory.named_parameters()}
        slots, usage, read_weights, read = np.zeros((3, 5)), np.zeros(3), np.zeros(3), np.zeros(5)
        state = memory.controller.initial(1)
        erased = set()
        for t in range(T):
            seen = torch.cat([inputs[:, t], torch.from_numpy(read)[None]], -1)
            controlled, state = memory.controller.step(seen, state)
            output = controlled[0].detach().numpy()

            def layer(name: str, output: Any = output) -> Any:
                return weights[f"{name}.weight"] @ output + weights[f"{name}.bias"]

            key, gate = np.tanh(layer("keys")), 1 / (1 + np.exp(-layer("gates")))
            strength = 1 + np.log1p(np.exp(layer("strengths")))
            least = int(np.argmin(usage))
            erased.add(least)
            slots[least] = 0.0
            write_weights = gate * read_weights + (1 - gate) * np.eye(3)[least]
            slots = slots + np.outer(write_weights, key)
            cosine = slots @ key / np.maximum(np.linalg.norm(slots, axis=1) * np.linalg.norm(key), 1e-12)
            read_weights = np.exp(strength * cosine) / np.exp(strength * cosine).sum()
            usage = 0.9 * usage + read_weights + write_weights
            read = read_weights @ slots
            np.testing.assert_allclose(outputs[t], np.concatenate([output, read]), rtol=1e-8, atol=1e-10)
        assert erased == {0, 1, 2}

    def test_heads_write_to_different_slots(self) -> None:
        memory = MANN(SIZE, HIDDEN, num_slots=6, slot_size=5, num_heads=2, generator=rng()).double()
        _, (_, _, slots, *_) = memory.step(sequences()[:, 0], memory.initial(B))
        assert (slots.abs().sum(-1) > 0).sum(1).tolist() == [2] * B

    def test_gradients_are_finite_from_an_empty_memory_and_right(self) -> None:
        memory = MANN(2, 3, num_slots=3, slot_size=2, num_heads=1, generator=rng()).double()
        inputs = torch.randn(1, 4, 2, generator=rng(3), dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda x: memory(x), inputs)
        memory(torch.zeros(1, 2, 2, dtype=torch.float64)).sum().backward()
        assert all(bool(value.grad.isfinite().all()) for value in memory.parameters() if value.grad is not None)

    def test_slots_must_outnumber_heads(self) -> None:
        with pytest.raises(InputError, match="num_slots = 2: must be more than the number of heads"):
            partial(MANN, num_slots=2, num_heads=2)(SIZE, HIDDEN, generator=rng())
