"""The optimizer and its learning rate policies."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from dns_onnx.config import Solver
from dns_onnx.masks import Masked, is_divided


def learning_rate(solver: Solver, iteration: int, iterations: int) -> float:
    """The learning rate of an iteration, before the factor on biases.

    Source: Caffe, solver parameter lr_policy (the formulas stand in config.Solver).
    """
    if iteration < solver.warmup:
        return _policy(solver, iteration, iterations) * (iteration + 1) / (solver.warmup + 1)
    first_of_tail = iterations - solver.tail
    if not solver.tail or iteration <= first_of_tail:
        return _policy(solver, iteration, iterations)
    descent = (iteration - first_of_tail) / solver.tail
    return _policy(solver, first_of_tail, iterations) * _half_cosine(descent)


def _policy(s: Solver, i: int, iterations: int) -> float:
    match s.policy:
        case "fixed":
            return s.lr
        case "step":
            return s.lr * math.pow(s.gamma, i // s.stepsize)
        case "exp":
            return s.lr * math.pow(s.gamma, i)
        case "inv":
            return s.lr * math.pow(1.0 + s.gamma * i, -s.power)
        case "multistep":
            return s.lr * math.pow(s.gamma, sum(i >= step for step in s.stepvalue))
        case "poly":
            return s.lr * math.pow(1.0 - i / iterations, s.power)
        case "sigmoid":
            return s.lr / (1.0 + math.exp(-s.gamma * (i - s.stepsize)))
        case "cosine":
            return s.lr * _half_cosine(i / iterations)


def _half_cosine(fraction: float) -> float:
    """1 at fraction 0, 0 at fraction 1."""
    return 0.5 * (1.0 + math.cos(math.pi * fraction))


class Optimizer:
    """SGD with momentum, or Adam, over the dense weights; biases have a learning rate of their own.

    Cut entries are in the update too: their gradient, momentum and weight decay act on the dense
    weight, which is what lets them come back.
    """

    def __init__(self, weights: Iterable[Masked], biases: Iterable[Masked], solver: Solver) -> None:
        groups: list[dict[str, Any]] = [
            {"params": [w.weight for w in weights if w.weight.requires_grad], "factor": 1.0},
            {"params": [b.weight for b in biases if b.weight.requires_grad],
             "factor": solver.bias_lr},
        ]  # fmt: skip
        self.solver = solver
        # torch has no fused update for weights that are divided over processes
        fused = not any(is_divided(w) for g in groups for w in g["params"])
        self.torch: torch.optim.Optimizer
        if solver.type == "sgd":
            self.torch = torch.optim.SGD(
                groups, lr=solver.lr, momentum=solver.momentum,
                weight_decay=solver.weight_decay, fused=fused,
            )  # fmt: skip
            # torch leaves it undefined where the very first step is skipped for an overflow
            for group in self.torch.param_groups if solver.momentum else ():
                for weight in group["params"]:
                    self.torch.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        else:
            self.torch = torch.optim.AdamW(
                groups, lr=solver.lr, weight_decay=solver.weight_decay, fused=fused
            )

    def step(
        self, iteration: int, iterations: int, scaler: torch.amp.GradScaler | None = None
    ) -> float:
        """Update the weights from their gradients; returns the learning rate.

        scaler: of the loss that they are the gradients of.
        """
        rate = learning_rate(self.solver, iteration, iterations)
        for group in self.torch.param_groups:
            group["lr"] = rate * group["factor"]
        if scaler is None:
            self.torch.step()
        else:
            scaler.step(self.torch)
            scaler.update()
        return rate
