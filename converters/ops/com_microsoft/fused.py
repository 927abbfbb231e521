"""Layers with what the optimiser fused into them, and elementwise operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dns_onnx.converters.ops.com_microsoft.base import contrib
from dns_onnx.converters.ops.conv import conv

# How many parameters an activation takes.
_PARAMETERS = {"LeakyRelu": 1, "Elu": 1, "ThresholdedRelu": 1, "HardSigmoid": 2, "Clip": 2}


def activated(x: Tensor, activation: str | None, params: Sequence[float] | None = None) -> Tensor:
    """X after the activation that the optimiser fused into a node."""
    values = list(params or ())
    if not activation:
        return x
    if activation == "LeakyRelu":
        return F.leaky_relu(x, values[0] if values else 0.01)
    if activation == "Clip":
        return torch.clamp(x, *values)
    if activation == "HardSigmoid":
        alpha, beta = values or (0.2, 0.5)
        return torch.clamp(alpha * x + beta, 0.0, 1.0)
    if activation == "Elu":
        return F.elu(x, values[0] if values else 1.0)
    if activation == "ThresholdedRelu":
        return torch.where(x > (values[0] if values else 1.0), x, torch.zeros_like(x))
    plain = {
        "Relu": torch.relu,
        "Tanh": torch.tanh,
        "Sigmoid": torch.sigmoid,
        "HardSwish": F.hardswish,
        "Gelu": F.gelu,
        "Softplus": F.softplus,
        "Softsign": F.softsign,
    }
    return plain[activation](x)


@contrib("FusedConv", prunable=("w",), bias="b")
def fused_conv(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    z: Tensor | None = None,
    *,
    activation: str = "",
    activation_params: Sequence[float] | None = None,
    **attributes: Any,
) -> Tensor:
    """activation(Conv(x, w, b) + z).

    attributes: those of Conv.  Source: ONNX Runtime contrib operators, FusedConv.
    """
    y = conv(x, w, b, **attributes)
    return activated(y if z is None else y + z, activation, activation_params)


@contrib("FusedGemm", prunable=("b",), bias="c")
def fused_gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    activation: str = "",
    activation_alpha: float = 0.01,
    activation_beta: float = 0.0,
    activation_gamma: float = 0.0,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    """activation(alpha * A' @ B' + beta * C).  Source: ONNX Runtime contrib operators."""
    y = alpha * ((a.t() if transA else a) @ (b.t() if transB else b))
    if c is not None:
        y = y + beta * c
    params = (activation_alpha, activation_beta, activation_gamma)
    return activated(y, activation, params[: _PARAMETERS.get(activation, 0)])


@contrib("FusedMatMul", prunable=("a", "b"))
@contrib("TransposeMatMul", prunable=("a", "b"))
def fused_matmul(
    a: Tensor,
    b: Tensor,
    *,
    alpha: float = 1.0,
    transA: int = 0,
    transB: int = 0,
    transBatchA: int = 0,
    transBatchB: int = 0,
) -> Tensor:
    """Alpha * A' @ B', batched.

    transBatch: the axis before the last goes to the front of the batch axes.
    Source: ONNX Runtime contrib operators, FusedMatMul.
    """

    def turned(x: Tensor, last: int, batch: int) -> Tensor:
        if batch:
            x = x.movedim(0, -2)
        return x.transpose(-1, -2) if last and x.dim() > 1 else x

    y = turned(a, transA, transBatchA) @ turned(b, transB, transBatchB)
    return y if alpha == 1.0 else alpha * y


@contrib("Gelu")
def gelu(x: Tensor) -> Tensor:
    """X times the normal distribution function.  Source: ONNX Runtime contrib operators."""
    return F.gelu(x)


@contrib("BiasGelu")
def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """Gelu(x + bias).  Source: ONNX Runtime contrib operators."""
    return F.gelu(x + bias)


@contrib("FastGelu")
def fast_gelu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Gelu(x + bias) by its tanh approximation.  Source: ONNX Runtime contrib operators."""
    return F.gelu(x if bias is None else x + bias, approximate="tanh")


@contrib("QuickGelu")
def quick_gelu(x: Tensor, *, alpha: float = 1.702) -> Tensor:
    """X * sigmoid(alpha * x).  Source: ONNX Runtime contrib operators."""
    return x * torch.sigmoid(alpha * x)


@contrib("BiasAdd")
def bias_add(x: Tensor, bias: Tensor, skip: Tensor) -> Tensor:
    """X + bias + skip.  Source: ONNX Runtime contrib operators."""
    return x + bias + skip
