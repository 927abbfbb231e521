"""Activation functions."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dns_onnx.converters.ops.widths import as_tensor, ordered, plain, scalar
from dns_onnx.converters.registry import Arg, Call, op


@op("Relu", 1, 6, 13, 14, direct=plain(torch.relu))
def relu(x: Tensor) -> Tensor:
    """max(x, 0).  Source: ONNX operators, Relu 1-14."""
    return torch.relu(x)


@op("Sigmoid", 1, 6, 13, direct=plain(torch.sigmoid))
def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x)).  Source: ONNX operators, Sigmoid 1-13."""
    return torch.sigmoid(x)


@op("Tanh", 1, 6, 13, direct=plain(torch.tanh))
def tanh(x: Tensor) -> Tensor:
    """Hyperbolic tangent.  Source: ONNX operators, Tanh 1-13."""
    return torch.tanh(x)


@op("LeakyRelu", 1, 6, 16)
def leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    """X where x >= 0, else alpha * x.  Source: ONNX operators, LeakyRelu 1-16."""
    return F.leaky_relu(x, alpha)


@op("PRelu", 1, 6, 7, 9, 16)
def prelu(x: Tensor, slope: Tensor, *, version_: int = 16) -> Tensor:
    """X where x >= 0, else slope * x.

    slope: broadcasts to x; schemas 1 and 6 count its entries along axis 1.
    Source: ONNX operators, PRelu 1-16.
    """
    if version_ < 7 and slope.dim() == 1 and x.dim() > 2:
        slope = slope.reshape((-1,) + (1,) * (x.dim() - 2))
    return torch.where(x >= 0, x, slope * x)


@op("Elu", 1, 6, 22)
def elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """X where x > 0, else alpha * (exp(x) - 1).  Source: ONNX operators, Elu 1-22."""
    return F.elu(x, alpha)


@op("Celu", 12, 28)
def celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """max(x, 0) + min(alpha * (exp(x / alpha) - 1), 0).  Source: ONNX operators, Celu 12-28."""
    return F.celu(x, alpha)


@op("Selu", 1, 6, 22)
def selu(
    x: Tensor, *, alpha: float | None = None, gamma: float | None = None, version_: int = 22
) -> Tensor:
    """Gamma * x where x > 0, else gamma * alpha * (exp(x) - 1).

    Schema 1 has rounder defaults than the later ones.  Source: ONNX operators, Selu 1-22.
    """
    first = version_ == 1
    alpha = (1.6732 if first else 1.67326319217681884765625) if alpha is None else alpha
    gamma = (1.0507 if first else 1.05070102214813232421875) if gamma is None else gamma
    return gamma * F.elu(x, alpha)


@op("ThresholdedRelu", 10, 22)
@op("ThresholdedRelu", 1, schema=False)
def thresholded_relu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """X where x > alpha, else 0.  Source: ONNX operators, ThresholdedRelu 10-22."""
    return torch.where(x > alpha, x, torch.zeros_like(x))


@op("HardSigmoid", 1, 6, 22)
def hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    """Alpha * x + beta, kept within [0, 1].  Source: ONNX operators, HardSigmoid 1-22."""
    return torch.clamp(alpha * x + beta, 0.0, 1.0)


@op("HardSwish", 14, 22, direct=plain(F.hardswish))
def hard_swish(x: Tensor) -> Tensor:
    """X * max(0, min(1, x / 6 + 1/2)).  Source: ONNX operators, HardSwish 14-22."""
    return F.hardswish(x)


@op("Softplus", 1, 22)
def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)).  Source: ONNX operators, Softplus 1-22."""
    return torch.logaddexp(x, torch.zeros_like(x))


@op("Softsign", 1, 22)
def softsign(x: Tensor) -> Tensor:
    """X / (1 + |x|).  Source: ONNX operators, Softsign 1-22."""
    return F.softsign(x)


@op("Mish", 18, 22)
def mish(x: Tensor) -> Tensor:
    """X * tanh(softplus(x)).  Source: ONNX operators, Mish 18-22."""
    return F.mish(x)


@op("Swish", 24)
def swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """X * sigmoid(alpha * x).  Source: ONNX operators, Swish 24."""
    return F.silu(x) if alpha == 1.0 else x * torch.sigmoid(alpha * x)


@op("Gelu", 20)
def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """X times the normal distribution function at x, exact or by tanh.

    Source: ONNX operators, Gelu 20.
    """
    return F.gelu(x, approximate=approximate)


@op("Shrink", 9)
def shrink(x: Tensor, *, bias: float = 0.0, lambd: float = 0.5) -> Tensor:
    """X + bias below -lambd, x - bias above lambd, else 0.  Source: ONNX operators, Shrink 9."""
    work = x if x.is_floating_point() else x.double()
    zero = torch.zeros_like(work)
    result = torch.where(work < -lambd, work + bias, torch.where(work > lambd, work - bias, zero))
    return result.to(x.dtype)


def _clip_direct(x: Arg, min: Any = None, max: Any = None) -> Call | None:
    bounds = [None if b is None else scalar(b) if not isinstance(b, Arg) else b for b in (min, max)]
    if x.elem not in (1, 10, 11) or any(isinstance(b, Arg) for b in bounds):
        return None
    return None if bounds == [None, None] else Call(torch.clamp, (x, *bounds))


@op("Clip", 1, 6, 11, 12, 13, literal=("min", "max"), direct=_clip_direct)
def clip(
    x: Tensor,
    min: Tensor | float | None = None,
    max: Tensor | float | None = None,
) -> Tensor:
    """X kept within [min, max]; max where the bounds cross.

    min, max: scalars.  Source: ONNX operators, Clip 1-13.
    """
    if min is not None:
        x = ordered(torch.maximum, x, as_tensor(min, x))
    return x if max is None else ordered(torch.minimum, x, as_tensor(max, x))


def _softmax_direct(x: Arg, *, axis: int = -1) -> Call:
    return Call(torch.softmax, (x, axis))


def _softmax_flat_direct(x: Arg, *, axis: int = 1) -> Call | None:
    last = x.rank is not None and axis % x.rank == x.rank - 1
    return Call(torch.softmax, (x, axis)) if last else None


@op("Softmax", 13, direct=_softmax_direct)
def softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """exp(x), divided by its sum along one axis.  Source: ONNX operators, Softmax 13."""
    return torch.softmax(x, axis)


@op("LogSoftmax", 13)
def log_softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """Logarithm of Softmax along one axis.  Source: ONNX operators, LogSoftmax 13."""
    return torch.log_softmax(x, axis)


@op("Softmax", 1, 11, direct=_softmax_flat_direct)
def softmax_flat(x: Tensor, *, axis: int = 1) -> Tensor:
    """Softmax over all axes from `axis` on together.  Source: ONNX operators, Softmax 1-11."""
    return torch.softmax(x.flatten(_start(x, axis)), -1).reshape(x.shape)


@op("LogSoftmax", 1, 11)
def log_softmax_flat(x: Tensor, *, axis: int = 1) -> Tensor:
    """Logarithm of the Softmax of schemas 1-11.  Source: ONNX operators, LogSoftmax 1-11."""
    return torch.log_softmax(x.flatten(_start(x, axis)), -1).reshape(x.shape)


def _start(x: Tensor, axis: int) -> int:
    start = axis + x.dim() if axis < 0 else axis
    return start


@op("Hardmax", 13, differentiable=False)
def hardmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """1 at the first largest entry along one axis, else 0.  Source: ONNX operators, Hardmax 13."""
    where = x.argmax(axis, keepdim=True)
    return torch.zeros_like(x).scatter(axis, where, 1)


@op("Hardmax", 1, 11, differentiable=False)
def hardmax_flat(x: Tensor, *, axis: int = 1) -> Tensor:
    """Hardmax over all axes from `axis` on together.  Source: ONNX operators, Hardmax 1-11."""
    return hardmax(x.flatten(_start(x, axis)), axis=-1).reshape(x.shape)


@op("ParametricSoftplus", 1, schema=False)
def parametric_softplus(x: Tensor, *, alpha: float = 1.0, beta: float = 1.0) -> Tensor:
    """Alpha * log(1 + exp(beta * x)).  Source: experimental operator of ONNX 1.2."""
    return alpha * softplus(beta * x)


@op("ScaledTanh", 1, schema=False)
def scaled_tanh(x: Tensor, *, alpha: float = 1.0, beta: float = 1.0) -> Tensor:
    """Alpha * tanh(beta * x).  Source: experimental operator of ONNX 1.2."""
    return alpha * torch.tanh(beta * x)


@op("Affine", 1, schema=False)
def affine(x: Tensor, *, alpha: float = 1.0, beta: float = 0.0) -> Tensor:
    """Alpha * x + beta.  Source: experimental operator of ONNX 1.2."""
    return alpha * x + beta


@op("ImageScaler", 1, schema=False)
def image_scaler(x: Tensor, *, bias: list[float], scale: float = 1.0) -> Tensor:
    """Scale * x + bias, one bias a channel.

    x: [N, C, H, W].  Source: experimental operator of ONNX 1.2.
    """
    if len(set(bias)) == 1:
        return x * scale + bias[0]
    shift = torch.tensor(bias, dtype=x.dtype).to(x.device, non_blocking=True)
    return x * scale + shift.reshape(1, -1, 1, 1)
