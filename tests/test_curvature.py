"""Drawn gradients: their squares average to the curvature of the loss to the teacher."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dns_onnx.converters.heads import Head
from dns_onnx.curvature import drawn_loss
from dns_onnx.losses import teacher_loss

HEADS = {
    "classes": Head("y", "y", "classes", 1),
    "class maps": Head("y", "y", "classes", 1),
    "probabilities": Head("y", "y", "probabilities"),
    "values": Head("y", "y", "values"),
}
SHAPES = {"classes": (6, 4), "class maps": (2, 4, 3), "probabilities": (6, 4), "values": (6, 4)}


@pytest.mark.parametrize("kind", HEADS)
def test_squares_of_drawn_gradients_average_to_the_curvature(kind: str) -> None:
    torch.manual_seed(0)
    head, shape = HEADS[kind], SHAPES[kind]
    taught = 2 * torch.randn(shape)
    scale = float(taught.square().mean().sqrt())
    loss = teacher_loss("auto", [head], 1.0, {"y": scale})

    def at(y: Tensor) -> Tensor:
        return loss([y.view(shape)], {"y": taught})

    curvature = torch.autograd.functional.hessian(at, taught.flatten()).diagonal()
    y, draws = taught.clone().requires_grad_(), 4000
    total = torch.zeros(shape)
    for _ in range(draws):
        total += torch.autograd.grad(drawn_loss([y], [head]), y)[0].square()
    torch.testing.assert_close(total.flatten() / draws, curvature, rtol=0.2, atol=2e-3)


def test_values_that_are_not_finite_are_left_out() -> None:
    y = torch.tensor([[1.0, -torch.inf], [2.0, 3.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(drawn_loss([y], [HEADS["values"]]), y)
    assert gradient.isfinite().all()
    assert gradient[0, 1] == 0
    assert (gradient != 0).sum() == 3


@pytest.mark.parametrize("kind", ["classes", "probabilities"])
def test_nothing_is_drawn_from_what_is_no_number(kind: str) -> None:
    y = torch.tensor([[torch.nan, 1.0], [-torch.inf, 2.0], [torch.inf, 3.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(drawn_loss([y], [HEADS[kind]]), y)
    assert gradient.isfinite().all()


def test_several_heads_add_up() -> None:
    y = [torch.randn(4, 3, requires_grad=True), torch.randn(4, 2, requires_grad=True)]
    gradients = torch.autograd.grad(drawn_loss(y, [HEADS["classes"], HEADS["values"]]), y)
    assert all(float(g.abs().sum()) > 0 for g in gradients)
