"""Adam against torch.optim.Adam."""

from __future__ import annotations

import pytest
import torch

from metarl.gradients.adam import adam_step, no_moments
from metarl.gradients.lifting import over_tasks

SHAPES: dict[str, tuple[int, ...]] = {"weight": (3, 2), "bias": (3,), "scale": ()}


def draw(rng: torch.Generator, *leading: int) -> dict[str, torch.Tensor]:
    shapes = {name: (*leading, *shape) for name, shape in SHAPES.items()}
    return {name: torch.randn(shape, generator=rng, dtype=torch.float64) for name, shape in shapes.items()}


@pytest.mark.parametrize("momentum", [True, False])
def test_every_step_equals_torchs(momentum: bool) -> None:
    rng = torch.Generator().manual_seed(0)
    parameters = draw(rng)
    theirs = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    betas = (0.9 if momentum else 0.0, 0.999)
    optimizer = torch.optim.Adam(theirs.values(), lr=0.1, betas=betas)
    moments = no_moments(parameters, momentum=momentum)
    for _ in range(20):
        gradients = draw(rng)
        for name, value in theirs.items():
            value.grad = gradients[name]
        optimizer.step()
        parameters, moments = adam_step(parameters, gradients, moments, 0.1)
        for name, value in theirs.items():
            torch.testing.assert_close(parameters[name], value.detach(), rtol=1e-12, atol=1e-14)
    assert int(moments.num_steps) == 20
    assert bool(moments.first) is momentum


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tasks_side_by_side_equal_one_at_a_time(dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(1)
    parameters, gradients = ({name: value.to(dtype) for name, value in draw(rng, 4).items()} for _ in range(2))
    moments = no_moments(parameters)._replace(num_steps=torch.arange(4))

    def step(*state: object) -> object:
        return adam_step(*state, 0.1)  # type: ignore[arg-type]

    stepped, after = over_tasks(step, parameters, gradients, moments)
    alone, after_alone = over_tasks(step, parameters, gradients, moments, chunk_size=1)
    assert after.num_steps.tolist() == after_alone.num_steps.tolist() == [1, 2, 3, 4]
    for name in SHAPES:
        assert stepped[name].dtype == dtype
        torch.testing.assert_close(stepped[name], alone[name])
        torch.testing.assert_close(after.second[name], after_alone.second[name])


def test_a_parameter_without_axes_keeps_its_type() -> None:
    parameters = {"scale": torch.tensor(1.0)}
    stepped, moments = adam_step(parameters, {"scale": torch.tensor(2.0)}, no_moments(parameters), 0.1)
    assert {value.dtype for value in (stepped["scale"], moments.first["scale"], moments.second["scale"])} == {
        torch.float32
    }
    torch.testing.assert_close(stepped["scale"], torch.tensor(0.9))
