"""com.microsoft operators that ONNX Runtime's optimiser and quantiser write."""

from __future__ import annotations

import torch
from torch import Tensor

from dns_onnx.converters.dtypes import element_type
from dns_onnx.converters.ops.quantize import exact_type, quantized, spread
from dns_onnx.converters.registry import op

_DOMAIN = "com.microsoft"


def _real(x: Tensor, scale: Tensor, zero: Tensor | None, axis: int = 1) -> Tensor:
    """The values that quantised data stand for."""
    wide = x.float()
    if zero is not None:
        wide = wide - spread(zero.float(), x, axis)
    return wide * spread(scale, x, axis)


def _like(y: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    return quantized(y, scale.reshape(()), zero.reshape(()), element_type(zero.dtype))


@op("QLinearAdd", 1, domain=_DOMAIN, schema=False, differentiable=False)
def qlinear_add(
    a: Tensor, a_scale: Tensor, a_zero_point: Tensor, b: Tensor, b_scale: Tensor,
    b_zero_point: Tensor, c_scale: Tensor, c_zero_point: Tensor,
) -> Tensor:
    """The quantised sum of two quantised tensors.  Source: ONNX Runtime contrib operators."""
    total = _real(a, a_scale, a_zero_point) + _real(b, b_scale, b_zero_point)
    return _like(total, c_scale, c_zero_point)


@op("QLinearMul", 1, domain=_DOMAIN, schema=False, differentiable=False)
def qlinear_mul(
    a: Tensor, a_scale: Tensor, a_zero_point: Tensor, b: Tensor, b_scale: Tensor,
    b_zero_point: Tensor, c_scale: Tensor, c_zero_point: Tensor,
) -> Tensor:
    """The quantised product of two quantised tensors.  Source: ONNX Runtime contrib operators."""
    product = _real(a, a_scale, a_zero_point) * _real(b, b_scale, b_zero_point)
    return _like(product, c_scale, c_zero_point)


@op("QGemm", 1, domain=_DOMAIN, schema=False, prunable=("b",), bias="c", differentiable=False)
def qgemm(
    a: Tensor,
    a_scale: Tensor,
    a_zero_point: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero_point: Tensor,
    c: Tensor | None = None,
    y_scale: Tensor | None = None,
    y_zero_point: Tensor | None = None,
    *,
    alpha: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    """alpha * A' @ B' + C of quantised matrices; float unless an output scale is given.

    c: int32, in units of alpha * a_scale * b_scale.  Source: ONNX Runtime contrib operators.
    """
    work = exact_type(a.shape[0] if transA else a.shape[1])
    left = a.to(work) - a_zero_point.to(work)
    right = b.to(work) - spread(b_zero_point.to(work), b, 0 if transB else 1)
    total = (left.t() if transA else left) @ (right.t() if transB else right)
    if c is not None:
        total = total + c.to(work)
    y = total.float() * (alpha * a_scale * b_scale)
    if y_scale is None or y_zero_point is None:
        return y
    return _like(y, y_scale, y_zero_point)
