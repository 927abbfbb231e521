from __future__ import annotations

import math

import pytest
import torch

from dns_onnx.config import Solver
from dns_onnx.masks import Masked
from dns_onnx.solver import Optimizer, learning_rate


@pytest.mark.parametrize(
    ("settings", "iteration", "expected"),
    [
        ({"policy": "fixed", "lr": 0.3}, 77, 0.3),
        ({"policy": "step", "lr": 1.0, "gamma": 0.1, "stepsize": 10}, 25, 0.01),
        ({"policy": "exp", "lr": 1.0, "gamma": 0.5}, 3, 0.125),
        ({"policy": "inv", "lr": 0.01, "gamma": 1e-4, "power": 0.75}, 10_000, 0.01 * 2**-0.75),
        ({"policy": "multistep", "lr": 1.0, "gamma": 0.1, "stepvalue": (5, 8)}, 8, 0.01),
        ({"policy": "poly", "lr": 1.0, "power": 2.0}, 25, 0.5625),
        ({"policy": "sigmoid", "lr": 1.0, "gamma": -1.0, "stepsize": 50}, 50, 0.5),
        ({"policy": "cosine", "lr": 1.0}, 50, 0.5),
        ({"policy": "fixed", "lr": 1.0, "tail": 40}, 60, 1.0),
        ({"policy": "fixed", "lr": 1.0, "tail": 40}, 80, 0.5),
        ({"policy": "fixed", "lr": 1.0, "tail": 40}, 100, 0.0),
    ],
)
def test_learning_rate(settings: dict, iteration: int, expected: float) -> None:
    assert learning_rate(Solver(**settings), iteration, 100) == pytest.approx(expected, abs=1e-12)


def test_biases_learn_at_their_own_rate() -> None:
    weight, bias = Masked("w", torch.ones(1)), Masked("b", torch.ones(1))
    optimizer = Optimizer([weight], [bias], Solver(lr=0.1, policy="fixed", weight_decay=0))
    (weight() + bias()).sum().backward()
    assert optimizer.step(0, 10) == 0.1
    assert weight.weight.item() == pytest.approx(0.9)
    assert bias.weight.item() == pytest.approx(0.8)


def test_frozen_weights_are_left_alone() -> None:
    weight, other = Masked("w", torch.ones(1)), Masked("mean", torch.ones(1), trainable=False)
    optimizer = Optimizer([weight, other], [], Solver(weight_decay=0.5))
    (weight() * other()).sum().backward()
    optimizer.step(0, 10)
    assert other.weight.item() == 1.0
    assert weight.weight.item() < 1.0


def test_adam_moves_by_the_learning_rate_at_first() -> None:
    weight = Masked("w", torch.ones(3))
    optimizer = Optimizer(
        [weight], [], Solver(type="adam", lr=0.01, policy="fixed", weight_decay=0)
    )
    (weight() * torch.tensor([1.0, 10.0, -5.0])).sum().backward()
    optimizer.step(0, 10)
    moved = (weight.weight.detach() - 1).tolist()
    assert moved == pytest.approx([-0.01, -0.01, 0.01], rel=1e-3)
    assert math.isfinite(sum(moved))
