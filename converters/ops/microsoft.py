"""com.microsoft operators that ONNX Runtime's quantiser writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dns_onnx.converters.dtypes import element_type
from dns_onnx.converters.ops.pool import average_pool
from dns_onnx.converters.ops.quantize import (
    dequantize_linear,
    dynamic_quantize_linear,
    exact_type,
    matmul_integer,
    quantize_linear,
    quantized,
    spread,
)
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
    a: Tensor,
    a_scale: Tensor,
    a_zero_point: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero_point: Tensor,
    c_scale: Tensor,
    c_zero_point: Tensor,
) -> Tensor:
    """The quantised sum of two quantised tensors.  Source: ONNX Runtime contrib operators."""
    total = _real(a, a_scale, a_zero_point) + _real(b, b_scale, b_zero_point)
    return _like(total, c_scale, c_zero_point)


@op("QLinearMul", 1, domain=_DOMAIN, schema=False, differentiable=False)
def qlinear_mul(
    a: Tensor,
    a_scale: Tensor,
    a_zero_point: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero_point: Tensor,
    c_scale: Tensor,
    c_zero_point: Tensor,
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
    """Alpha * A' @ B' + C of quantised matrices; float unless an output scale is given.

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


def _unary(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor | None,
    y_scale: Tensor,
    y_zero_point: Tensor | None,
    function: Callable[[Tensor], Tensor],
) -> Tensor:
    """A function of the values that quantised data stand for, quantised again."""
    zero = torch.zeros((), dtype=x.dtype, device=x.device)
    y = function(_real(x, x_scale, x_zero_point))
    return _like(y, y_scale, zero if y_zero_point is None else y_zero_point)


@op("QLinearSigmoid", 1, domain=_DOMAIN, schema=False, differentiable=False)
def qlinear_sigmoid(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor | None,
    y_scale: Tensor,
    y_zero_point: Tensor | None = None,
) -> Tensor:
    """The quantised sigmoid of quantised data.  Source: ONNX Runtime contrib operators."""
    return _unary(x, x_scale, x_zero_point, y_scale, y_zero_point, torch.sigmoid)


@op("QLinearLeakyRelu", 1, domain=_DOMAIN, schema=False, differentiable=False)
def qlinear_leaky_relu(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor | None,
    y_scale: Tensor,
    y_zero_point: Tensor | None = None,
    *,
    alpha: float = 0.01,
) -> Tensor:
    """The quantised LeakyRelu of quantised data.  Source: ONNX Runtime contrib operators."""

    def function(real: Tensor) -> Tensor:
        return torch.where(real >= 0, real, alpha * real)

    return _unary(x, x_scale, x_zero_point, y_scale, y_zero_point, function)


@op("QLinearSoftmax", 1, domain=_DOMAIN, schema=False, differentiable=False)
def qlinear_softmax(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor | None,
    y_scale: Tensor,
    y_zero_point: Tensor | None = None,
    *,
    axis: int = -1,
    opset: int = 13,
) -> Tensor:
    """The quantised softmax of quantised data.  Source: ONNX Runtime contrib operators."""

    def function(real: Tensor) -> Tensor:
        if opset >= 13:
            return torch.softmax(real, axis)
        return torch.softmax(real.flatten(axis % real.dim()), -1).reshape(real.shape)

    return _unary(x, x_scale, x_zero_point, y_scale, y_zero_point, function)


@op("QLinearConcat", 1, domain=_DOMAIN, schema=False, differentiable=False)
def qlinear_concat(
    y_scale: Tensor, y_zero_point: Tensor, *tensors: Tensor, axis: int = 0
) -> Tensor:
    """Quantised tensors joined in one scale.

    tensors: data, scale and zero point of each in turn.  Source: ONNX Runtime contrib operators.
    """
    triples = zip(tensors[0::3], tensors[1::3], tensors[2::3], strict=True)
    joined = torch.cat([_real(x, scale, zero) for x, scale, zero in triples], axis)
    return _like(joined, y_scale, y_zero_point)


@op("QLinearGlobalAveragePool", 1, domain=_DOMAIN, schema=False, differentiable=False)
def qlinear_global_average_pool(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor,
    y_scale: Tensor,
    y_zero_point: Tensor,
    *,
    channels_last: int = 0,
) -> Tensor:
    """The quantised mean over all spatial axes.  Source: ONNX Runtime contrib operators."""
    axes = tuple(range(1, x.dim() - 1)) if channels_last else tuple(range(2, x.dim()))
    mean = _real(x, x_scale, x_zero_point).mean(axes, keepdim=True)
    return _like(mean, y_scale, y_zero_point)


@op("QLinearAveragePool", 1, domain=_DOMAIN, schema=False, differentiable=False)
def qlinear_average_pool(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor | None,
    y_scale: Tensor,
    y_zero_point: Tensor | None = None,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    channels_last: int = 0,
    count_include_pad: int = 0,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """The quantised AveragePool of quantised data.  Source: ONNX Runtime contrib operators."""

    def function(real: Tensor) -> Tensor:
        real = real.movedim(-1, 1) if channels_last else real
        y = average_pool(
            real,
            kernel_shape=kernel_shape,
            auto_pad=auto_pad,
            ceil_mode=ceil_mode,
            count_include_pad=count_include_pad,
            pads=pads,
            strides=strides,
        )
        return y.movedim(1, -1) if channels_last else y

    return _unary(x, x_scale, x_zero_point, y_scale, y_zero_point, function)


@op(
    "MatMulIntegerToFloat",
    1,
    domain=_DOMAIN,
    schema=False,
    differentiable=False,
    bias="bias",
    prunable=("b",),
)
def matmul_integer_to_float(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    a_zero_point: Tensor | None = None,
    b_zero_point: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """The real product of two quantised matrices.  Source: ONNX Runtime contrib operators."""
    total = matmul_integer(a, b, a_zero_point, b_zero_point).float()
    y = total * (a_scale * b_scale)
    return y if bias is None else y + bias


@op(
    "DynamicQuantizeMatMul",
    1,
    domain=_DOMAIN,
    schema=False,
    differentiable=False,
    bias="bias",
    prunable=("b",),
)
def dynamic_quantize_matmul(
    a: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero_point: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """A, quantised by its own range, times a quantised matrix.

    Source: ONNX Runtime contrib operators.
    """
    small, scale, zero = dynamic_quantize_linear(a)
    return matmul_integer_to_float(small, b, scale, b_scale, zero, b_zero_point, bias)


@op("QuantizeLinear", 1, domain=_DOMAIN, schema=False, differentiable=False)
def quantize_linear_microsoft(
    x: Tensor,
    y_scale: Tensor,
    y_zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    types_: tuple[int, ...] = (),
) -> Tensor:
    """As ai.onnx QuantizeLinear, with more types.  Source: ONNX Runtime contrib operators."""
    return quantize_linear(x, y_scale, y_zero_point, axis=axis, types_=types_)


@op("DequantizeLinear", 1, domain=_DOMAIN, schema=False)
def dequantize_linear_microsoft(
    x: Tensor, x_scale: Tensor, x_zero_point: Tensor | None = None, *, axis: int = 1
) -> Tensor:
    """As ai.onnx DequantizeLinear, with more types.  Source: ONNX Runtime contrib operators."""
    return dequantize_linear(x, x_scale, x_zero_point, axis=axis)
