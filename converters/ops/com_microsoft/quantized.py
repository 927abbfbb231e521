"""Operators from quantised data to quantised data: QLinear*, and their NHWC forms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dns_onnx.converters.dtypes import element_type
from dns_onnx.converters.ops.com_microsoft.base import contrib
from dns_onnx.converters.ops.pool import average_pool, max_pool
from dns_onnx.converters.ops.quantize import (
    dequantize_direct,
    dequantize_linear,
    qlinear_conv,
    quantize_linear,
    quantized,
    spread,
)

# as in ai.onnx, with more types
contrib("QuantizeLinear", constant=("y_scale",))(quantize_linear)
contrib("DequantizeLinear", direct=dequantize_direct)(dequantize_linear)


def _real(x: Tensor, scale: Tensor, zero: Tensor | None, axis: int = 1) -> Tensor:
    """The values that quantised data stand for."""
    wide = x.float()
    if zero is not None:
        wide = wide - spread(zero.float(), x, axis)
    return wide * spread(scale, x, axis)


def requantized(y: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """Real values in the scale and type of another tensor."""
    return quantized(y, scale.reshape(()), zero.reshape(()), element_type(zero.dtype))


def _unary(operands: Sequence[Any], function: Callable[[Tensor], Tensor]) -> Tensor:
    """A function of quantised data, followed by scale and zero point, as is the result's."""
    x, x_scale, x_zero, y_scale, y_zero = (*operands, None)[:5]
    zero = torch.zeros((), dtype=x.dtype, device=x.device) if y_zero is None else y_zero
    return requantized(function(_real(x, x_scale, x_zero)), y_scale, zero)


def _binary(operands: Sequence[Any], function: Callable[..., Tensor]) -> Tensor:
    """A function of two quantised tensors, each followed by scale and zero point, as is y's."""
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = (*operands, None)[:8]
    y = function(_real(a, a_scale, a_zero), _real(b, b_scale, b_zero))
    zero = torch.zeros((), dtype=a.dtype, device=a.device) if y_zero is None else y_zero
    return requantized(y, y_scale, zero)


@contrib("QLinearAdd", differentiable=False)
def qlinear_add(*operands: Tensor) -> Tensor:
    """The quantised sum of two quantised tensors.

    operands: a, its scale and zero point; b, the same; the result's scale and zero point.
    Source: ONNX Runtime contrib operators, QLinearAdd.
    """
    return _binary(operands, torch.add)


@contrib("QLinearMul", differentiable=False)
def qlinear_mul(*operands: Tensor) -> Tensor:
    """The quantised product of two quantised tensors; operands as in QLinearAdd.

    Source: ONNX Runtime contrib operators, QLinearMul.
    """
    return _binary(operands, torch.mul)


@contrib("QLinearWhere", differentiable=False)
def qlinear_where(condition: Tensor, *operands: Tensor) -> Tensor:
    """X where the condition holds, else Y, quantised anew; operands as in QLinearAdd.

    Source: ONNX Runtime contrib operators, QLinearWhere.
    """
    return _binary(operands, lambda x, y: torch.where(condition, x, y))


@contrib("QLinearSigmoid", differentiable=False)
def qlinear_sigmoid(*operands: Tensor) -> Tensor:
    """The quantised sigmoid of quantised data.

    operands: x, its scale and zero point; the result's scale and zero point.
    Source: ONNX Runtime contrib operators, QLinearSigmoid.
    """
    return _unary(operands, torch.sigmoid)


@contrib("QLinearLeakyRelu", differentiable=False)
def qlinear_leaky_relu(*operands: Tensor, alpha: float = 0.01) -> Tensor:
    """The quantised LeakyRelu of quantised data.  Source: ONNX Runtime contrib operators."""

    def function(real: Tensor) -> Tensor:
        return torch.where(real >= 0, real, alpha * real)

    return _unary(operands, function)


@contrib("QLinearSoftmax", differentiable=False)
def qlinear_softmax(*operands: Tensor, axis: int = -1, opset: int = 13) -> Tensor:
    """The quantised softmax of quantised data.  Source: ONNX Runtime contrib operators."""

    def function(real: Tensor) -> Tensor:
        if opset >= 13:
            return torch.softmax(real, axis)
        return torch.softmax(real.flatten(axis % real.dim()), -1).reshape(real.shape)

    return _unary(operands, function)


@contrib("QLinearConcat", differentiable=False)
def qlinear_concat(
    y_scale: Tensor, y_zero_point: Tensor, *tensors: Tensor, axis: int = 0
) -> Tensor:
    """Quantised tensors joined in one scale.

    tensors: data, scale and zero point of each in turn.  Source: ONNX Runtime contrib operators.
    """
    triples = zip(tensors[0::3], tensors[1::3], tensors[2::3], strict=True)
    joined = torch.cat([_real(x, scale, zero) for x, scale, zero in triples], axis)
    return requantized(joined, y_scale, y_zero_point)


@contrib("QLinearGlobalAveragePool", differentiable=False)
def qlinear_global_average_pool(*operands: Tensor, channels_last: int = 0) -> Tensor:
    """The quantised mean over all spatial axes.  Source: ONNX Runtime contrib operators."""

    def function(real: Tensor) -> Tensor:
        axes = range(1, real.dim() - 1) if channels_last else range(2, real.dim())
        return real.mean(tuple(axes), keepdim=True)

    return _unary(operands, function)


@contrib("QLinearAveragePool", differentiable=False)
def qlinear_average_pool(*operands: Tensor, channels_last: int = 0, **attributes: Any) -> Tensor:
    """The quantised AveragePool of quantised data; attributes: those of AveragePool.

    Source: ONNX Runtime contrib operators, QLinearAveragePool.
    """

    def function(real: Tensor) -> Tensor:
        if channels_last:
            return average_pool(real.movedim(-1, 1), **attributes).movedim(1, -1)
        return average_pool(real, **attributes)

    return _unary(operands, function)


@contrib("QLinearConv", prunable=("w",), bias="b", differentiable=False)
def qlinear_conv_nhwc(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor,
    w: Tensor,
    w_scale: Tensor,
    w_zero_point: Tensor,
    y_scale: Tensor,
    y_zero_point: Tensor,
    b: Tensor | None = None,
    *,
    channels_last: int = 0,
    **attributes: Any,
) -> Tensor:
    """As ai.onnx QLinearConv, also over [N, d1, ..., dn, C] if channels_last is set.

    w: [M, C / group, k1, ..., kn] in both.  Source: ONNX Runtime contrib operators, QLinearConv.
    """
    scales = (x_scale, x_zero_point, w, w_scale, w_zero_point, y_scale, y_zero_point, b)
    if channels_last:
        return qlinear_conv(x.movedim(-1, 1), *scales, **attributes).movedim(1, -1)
    return qlinear_conv(x, *scales, **attributes)


@contrib("NhwcMaxPool", differentiable=False)
def nhwc_max_pool(x: Tensor, **attributes: Any) -> Tensor:
    """MaxPool of [N, d1, ..., dn, C].  Source: ONNX Runtime contrib operators, NhwcMaxPool."""
    return max_pool(x.movedim(-1, 1), **attributes)[0].movedim(1, -1)
