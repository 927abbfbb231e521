"""Least squares within a mask, for all outputs of a layer at once.

Source: Meng, Behdin, Wang, Mazumder, "ALPS: Improved Optimization for Highly Sparse One-Shot
Pruning for Large Language Models", NeurIPS 2024 (conjugate gradients that stay within a mask).
"""

from __future__ import annotations

import torch
from torch import Tensor

DAMPING = (0.01, 0.1, 1.0)  # of the mean squared input: what a weight's change costs, in turn
STEPS, ENOUGH = 30, 1e-6  # of conjugate gradients; what is left of the squared gradient to mend


def best_fit(x: Tensor, y: Tensor, weight: Tensor, kept: Tensor) -> Tensor | None:
    """The fit whose damping does best on a fifth of the places, fitted to the others; then to all.

    None where none helps.  Shapes are those of `NormalEquations`.
    """
    split = x.shape[1] * 4 // 5
    normal, unseen = NormalEquations(x[:, :split], y[:, :split]), (x[:, split:], y[:, split:])
    best, least = None, _residual(*unseen, weight)
    for damping in DAMPING:
        left = _residual(*unseen, normal.solved(weight, kept, damping))
        if left < least:
            best, least = damping, left
        elif best is not None:
            break
    return None if best is None else NormalEquations(x, y).solved(weight, kept, best)


def _residual(x: Tensor, y: Tensor, weight: Tensor) -> float:
    return float((x @ weight.transpose(1, 2) - y).square().sum())


class NormalEquations:
    """Weights within a mask that bring x @ weight.T nearest to y, without going far.

    x: [groups, places, inputs].  y: [groups, places, outputs].
    """

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.turned = x, x.transpose(1, 2)
        self.gram = self.turned @ x if x.shape[1] >= x.shape[2] else None
        self.wanted = y.transpose(1, 2) @ x
        self.squares = x.square().sum(1, keepdim=True)

    def _curved(self, weight: Tensor) -> Tensor:
        if self.gram is None:
            return (weight @ self.turned) @ self.x
        return weight @ self.gram

    def solved(self, weight: Tensor, kept: Tensor, damping: float) -> Tensor:
        """For each output, min over its kept entries of |x w - y|^2 + d |w - weight|^2.

        By conjugate gradients from `weight` (zero where cut); d is `damping` times the mean over
        the inputs of |x|^2.  weight, kept: [groups, outputs, inputs].
        """
        tiny = torch.finfo(weight.dtype).tiny
        spring = damping * self.squares.mean(-1, keepdim=True)
        scale = kept / (self.squares + spring).clamp_min(tiny)
        left = kept * (self.wanted - self._curved(weight))
        change, ahead = torch.zeros_like(weight), scale * left
        worth = (left * ahead).sum(-1, keepdim=True)
        enough = ENOUGH * worth
        for _ in range(STEPS):
            if bool((worth <= enough).all()):
                break
            pull = kept * self._curved(ahead) + spring * ahead
            step = worth / (ahead * pull).sum(-1, keepdim=True).clamp_min(tiny)
            change += step * ahead
            left -= step * pull
            before, worth = worth, (left * scale * left).sum(-1, keepdim=True)
            ahead = scale * left + worth / before.clamp_min(tiny) * ahead
        return weight + change
