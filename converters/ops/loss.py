"""Losses, and the optimiser steps of ai.onnx.preview.training."""

from __future__ import annotations

import torch
from torch import Tensor

from dns_onnx.converters.registry import op


def _nll(
    scores: Tensor, target: Tensor, weight: Tensor | None, ignore: int | None, reduction: str
) -> Tensor:
    """Minus the score of the target class, weighted and reduced.

    scores: [N, C, d1, ..., dk].  target: [N, d1, ..., dk].  weight: [C].
    """
    whole = target.to(torch.int64)
    ignored = torch.zeros_like(whole, dtype=torch.bool) if ignore is None else whole == ignore
    index = whole.masked_fill(ignored, 0)
    picked = -scores.gather(1, index.unsqueeze(1)).squeeze(1)
    factor = torch.ones_like(picked) if weight is None else weight[index]
    factor = factor.masked_fill(ignored, 0)
    loss = picked * factor
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    return loss.sum() / factor.sum()


@op("NegativeLogLikelihoodLoss", 12, 13, 22, constant=("weight",))
def negative_log_likelihood_loss(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Minus the logarithm of the target class's probability.

    x: [N, C, d1, ..., dk], logarithms.  target: [N, d1, ..., dk].
    Source: ONNX operators, NegativeLogLikelihoodLoss 12-22.
    """
    return _nll(x, target, weight, ignore_index, reduction)


@op("SoftmaxCrossEntropyLoss", 12, 13, constant=("weights",))
def softmax_cross_entropy_loss(
    scores: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    *,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> tuple[Tensor, Tensor]:
    """Cross entropy of the softmax of the scores, and the logarithm of that softmax.

    scores: [N, C, d1, ..., dk].  labels: [N, d1, ..., dk].
    Source: ONNX operators, SoftmaxCrossEntropyLoss 12-13.
    """
    logarithms = torch.log_softmax(scores, 1)
    return _nll(logarithms, labels, weights, ignore_index, reduction), logarithms


_TRAINING = "ai.onnx.preview.training"


@op("Momentum", 1, domain=_TRAINING)
def momentum(
    r: Tensor,
    t: Tensor,
    *tensors: Tensor,
    alpha: float,
    beta: float,
    mode: str,
    norm_coefficient: float,
) -> tuple[Tensor, ...]:
    """One step of gradient descent with (standard or Nesterov) momentum.

    tensors: all weights, then all gradients, then all momenta.
    Returns the new weights, then the new momenta.  Source: ONNX training operators, Momentum 1.
    """
    count = len(tensors) // 3
    weights, momenta = [], []
    for x, g, v in zip(
        tensors[:count], tensors[count : 2 * count], tensors[2 * count :], strict=True
    ):
        slope = norm_coefficient * x + g
        moved = alpha * v + torch.where(t > 0, beta, 1.0) * slope
        step = slope + alpha * moved if mode == "nesterov" else moved
        weights.append((x - r * step).to(x.dtype))
        momenta.append(moved.to(v.dtype))
    return (*weights, *momenta)


@op("Adagrad", 1, domain=_TRAINING)
def adagrad(
    r: Tensor,
    t: Tensor,
    *tensors: Tensor,
    decay_factor: float = 0.0,
    epsilon: float = 0.0,
    norm_coefficient: float = 0.0,
) -> tuple[Tensor, ...]:
    """One step of Adagrad.

    tensors: all weights, then all gradients, then all sums of squares.
    Returns the new weights, then the new sums.  Source: ONNX training operators, Adagrad 1.
    """
    count = len(tensors) // 3
    rate = r / (1 + t * decay_factor)
    weights, sums = [], []
    for x, g, h in zip(
        tensors[:count], tensors[count : 2 * count], tensors[2 * count :], strict=True
    ):
        slope = norm_coefficient * x + g
        total = h + slope * slope
        weights.append((x - rate * slope / (torch.sqrt(total) + epsilon)).to(x.dtype))
        sums.append(total)
    return (*weights, *sums)


@op("Adam", 1, domain=_TRAINING)
def adam(
    r: Tensor,
    t: Tensor,
    *tensors: Tensor,
    alpha: float = 0.9,
    beta: float = 0.999,
    epsilon: float = 0.0,
    norm_coefficient: float = 0.0,
    norm_coefficient_post: float = 0.0,
) -> tuple[Tensor, ...]:
    """One step of Adam.

    tensors: all weights, gradients, averages of gradients, averages of their squares.
    Returns the new weights and averages.  Source: ONNX training operators, Adam 1.
    """
    count = len(tensors) // 4
    groups = [tensors[i * count : (i + 1) * count] for i in range(4)]
    correction = torch.where(t > 0, torch.sqrt(1 - beta**t) / (1 - alpha**t), 1.0)
    weights, firsts, seconds = [], [], []
    for x, g, v, h in zip(*groups, strict=True):
        slope = norm_coefficient * x + g
        first = alpha * v + (1 - alpha) * slope
        second = beta * h + (1 - beta) * slope * slope
        moved = x - r * correction * first / (torch.sqrt(second) + epsilon)
        weights.append(((1 - norm_coefficient_post) * moved).to(x.dtype))
        firsts.append(first)
        seconds.append(second)
    return (*weights, *firsts, *seconds)
