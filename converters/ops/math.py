"""Functions of one operand, entry by entry."""

from __future__ import annotations

import torch
from torch import Tensor

from dns_onnx.converters.ops.widths import in_int64, plain
from dns_onnx.converters.registry import op


@op("Abs", 1, 6, 13, direct=plain(torch.abs))
def abs_(x: Tensor) -> Tensor:
    """|x|.  Source: ONNX operators, Abs 1-13."""
    return in_int64(torch.abs, x)  # type: ignore[no-any-return]


@op("Neg", 1, 6, 13, direct=plain(torch.neg))
def neg(x: Tensor) -> Tensor:
    """-x.  Source: ONNX operators, Neg 1-13."""
    return torch.neg(x)


@op("Reciprocal", 1, 6, 13, direct=plain(torch.reciprocal))
def reciprocal(x: Tensor) -> Tensor:
    """1 / x.  Source: ONNX operators, Reciprocal 1-13."""
    return torch.reciprocal(x)


@op("Sqrt", 1, 6, 13, direct=plain(torch.sqrt))
def sqrt(x: Tensor) -> Tensor:
    """Square root.  Source: ONNX operators, Sqrt 1-13."""
    return torch.sqrt(x)


@op("Exp", 1, 6, 13, direct=plain(torch.exp))
def exp(x: Tensor) -> Tensor:
    """E to the power of x.  Source: ONNX operators, Exp 1-13."""
    return torch.exp(x)


@op("Log", 1, 6, 13, direct=plain(torch.log))
def log(x: Tensor) -> Tensor:
    """Natural logarithm.  Source: ONNX operators, Log 1-13."""
    return torch.log(x)


@op("Ceil", 1, 6, 13, differentiable=False, direct=plain(torch.ceil))
def ceil(x: Tensor) -> Tensor:
    """Smallest integer not below x.  Source: ONNX operators, Ceil 1-13."""
    return torch.ceil(x)


@op("Floor", 1, 6, 13, differentiable=False, direct=plain(torch.floor))
def floor(x: Tensor) -> Tensor:
    """Largest integer not above x.  Source: ONNX operators, Floor 1-13."""
    return torch.floor(x)


@op("Round", 11, 22, differentiable=False, direct=plain(torch.round))
def round_(x: Tensor) -> Tensor:
    """Nearest integer; halves go to the even one.  Source: ONNX operators, Round 11-22."""
    return torch.round(x)


@op("Sign", 9, 13, differentiable=False)
def sign(x: Tensor) -> Tensor:
    """-1, 0 or 1.  Source: ONNX operators, Sign 9-13."""
    return in_int64(torch.sign, x)  # type: ignore[no-any-return]


@op("Erf", 9, 13)
def erf(x: Tensor) -> Tensor:
    """Error function, in x's type.  Source: ONNX operators, Erf 9-13."""
    return torch.erf(x) if x.is_floating_point() else torch.erf(x.double()).to(x.dtype)


@op("Sin", 7, 22, direct=plain(torch.sin))
def sin(x: Tensor) -> Tensor:
    """Sine of radians.  Source: ONNX operators, Sin 7-22."""
    return torch.sin(x)


@op("Cos", 7, 22, direct=plain(torch.cos))
def cos(x: Tensor) -> Tensor:
    """Cosine of radians.  Source: ONNX operators, Cos 7-22."""
    return torch.cos(x)


@op("Tan", 7, 22, direct=plain(torch.tan))
def tan(x: Tensor) -> Tensor:
    """Tangent of radians.  Source: ONNX operators, Tan 7-22."""
    return torch.tan(x)


@op("Asin", 7, 22, direct=plain(torch.asin))
def asin(x: Tensor) -> Tensor:
    """Arc sine in radians.  Source: ONNX operators, Asin 7-22."""
    return torch.asin(x)


@op("Acos", 7, 22, direct=plain(torch.acos))
def acos(x: Tensor) -> Tensor:
    """Arc cosine in radians.  Source: ONNX operators, Acos 7-22."""
    return torch.acos(x)


@op("Atan", 7, 22, direct=plain(torch.atan))
def atan(x: Tensor) -> Tensor:
    """Arc tangent in radians.  Source: ONNX operators, Atan 7-22."""
    return torch.atan(x)


@op("Sinh", 9, 22, direct=plain(torch.sinh))
def sinh(x: Tensor) -> Tensor:
    """Hyperbolic sine.  Source: ONNX operators, Sinh 9-22."""
    return torch.sinh(x)


@op("Cosh", 9, 22, direct=plain(torch.cosh))
def cosh(x: Tensor) -> Tensor:
    """Hyperbolic cosine.  Source: ONNX operators, Cosh 9-22."""
    return torch.cosh(x)


@op("Asinh", 9, 22, direct=plain(torch.asinh))
def asinh(x: Tensor) -> Tensor:
    """Inverse hyperbolic sine.  Source: ONNX operators, Asinh 9-22."""
    return torch.asinh(x)


@op("Acosh", 9, 22, direct=plain(torch.acosh))
def acosh(x: Tensor) -> Tensor:
    """Inverse hyperbolic cosine.  Source: ONNX operators, Acosh 9-22."""
    return torch.acosh(x)


@op("Atanh", 9, 22, direct=plain(torch.atanh))
def atanh(x: Tensor) -> Tensor:
    """Inverse hyperbolic tangent.  Source: ONNX operators, Atanh 9-22."""
    return torch.atanh(x)


@op("IsNaN", 9, 13, 20, differentiable=False)
def isnan(x: Tensor) -> Tensor:
    """Whether x is not a number.  Source: ONNX operators, IsNaN 9-20."""
    return torch.isnan(x.float() if x.itemsize == 1 else x)


@op("IsInf", 10, 20, differentiable=False)
def isinf(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    """Whether x is one of the infinities asked for.  Source: ONNX operators, IsInf 10-20."""
    x = x.float() if x.itemsize == 1 else x
    found = torch.zeros_like(x, dtype=torch.bool)
    if detect_negative:
        found = found | torch.isneginf(x)
    if detect_positive:
        found = found | torch.isposinf(x)
    return found
