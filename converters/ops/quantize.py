"""Quantised operators of ai.onnx."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dns_onnx.converters.dtypes import element_type, torch_dtype
from dns_onnx.converters.ops.cast import to_element
from dns_onnx.converters.ops.conv import conv
from dns_onnx.converters.registry import Arg, Call, op

RANGES = {
    2: (0, 255),
    3: (-128, 127),
    4: (0, 65535),
    5: (-32768, 32767),
    21: (0, 15),
    22: (-8, 7),
    25: (0, 3),
    26: (-2, 1),
    6: (-(2**31), 2**31 - 1),
}
# float32 holds every integer up to here exactly
_EXACT = 2**24


def spread(values: Tensor, x: Tensor, axis: int, block_size: int = 0) -> Tensor:
    """Scales or zero points in a shape that broadcasts to X.

    values: a scalar, one for each entry of the axis, or (block_size > 0) one for each block of
    entries along it.
    """
    if values.dim() == 0 or values.numel() == 1:
        return values.reshape(())
    axis = axis % x.dim()
    if block_size:
        return values.repeat_interleave(block_size, axis).narrow(axis, 0, x.shape[axis])
    shape = [1] * x.dim()
    shape[axis] = -1
    return values.reshape(shape)


def quantized(x: Tensor, scale: Tensor, zero: Tensor | None, elem: int) -> Tensor:
    """round(x / scale) + zero, kept within the range of the element type."""
    low, high = RANGES[elem]
    y = torch.round(x / scale)
    if zero is not None:
        y = y + zero.to(y.dtype)
    return y.clamp(low, high).to(torch_dtype(elem))


@op("QuantizeLinear", 10, 13, 19, 21, 23, 24, 25, 28, constant=("y_scale",))
def quantize_linear(
    x: Tensor,
    y_scale: Tensor,
    y_zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
    saturate: int = 1,
    types_: tuple[int, ...] = (),
) -> Tensor:
    """round(x / scale) + zero point, in a small type.

    y_scale, y_zero_point: scalars, one an entry of `axis`, or one a block of entries along it.
    The gradient passes it straight through, in the DequantizeLinear that reads it.
    Source: ONNX operators, QuantizeLinear 10-28.
    """
    elem = output_dtype or (types_[2] if len(types_) > 2 else 0) or 2
    work = y_scale.dtype if y_scale.is_floating_point() and y_scale.itemsize > 1 else torch.float32
    work = torch_dtype(precision) if precision else work
    if not x.is_floating_point():
        work = torch.float32
    scale = spread(y_scale.to(work), x, axis, block_size)
    zero = None if y_zero_point is None else y_zero_point
    if elem in RANGES:
        if zero is not None:
            zero = spread(zero, x, axis, block_size)
        return quantized(x.to(work), scale, zero, elem)
    y: Tensor = to_element(x.to(work) / scale, elem, saturate)
    return y


def dequantize_direct(
    x: Arg, x_scale: Arg, x_zero_point: Arg | None = None, **attributes: Any
) -> Call | None:
    """A pair of QuantizeLinear and DequantizeLinear, through which models are trained."""
    if x.node.op != "call_function" or x.node.target is not quantize_linear:
        return None
    source, scale = x.node.args[:2]
    attributes.setdefault("axis", x.node.kwargs.get("axis", 1))
    return Call(straight_through, (source, scale, x, x_scale, x_zero_point), attributes)


@op("DequantizeLinear", 10, 13, 19, 21, 23, 24, 25, 28, direct=dequantize_direct)
def dequantize_linear(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> Tensor:
    """(x - zero point) * scale, in the scale's type.

    Source: ONNX operators, DequantizeLinear 10-28.
    """
    out = torch_dtype(output_dtype) if output_dtype else x_scale.dtype
    work = x_scale.dtype if x_scale.itemsize > 1 else torch.float32
    y = _difference(x, x_zero_point, axis, block_size).to(work)
    return (y * spread(x_scale.to(work), x, axis, block_size)).to(out)


def straight_through(
    source: Tensor,
    scale: Tensor,
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> Tensor:
    """DequantizeLinear of X = QuantizeLinear(source, scale), differentiable in the source.

    The derivative of the rounding is taken as 1 inside the quantised range and 0 outside; that
    of the scales follows.  Source: Bengio et al. 2013 (arXiv 1308.3432); for the scales, Esser
    et al. 2020 (arXiv 1902.08153), equation 3.
    """
    y = dequantize_linear(
        x, x_scale, x_zero_point, axis=axis, block_size=block_size, output_dtype=output_dtype
    )
    if not torch.is_grad_enabled():
        return y
    steps = source / spread(scale.to(source.dtype), source, axis, block_size)
    step = spread(x_scale.detach().to(y.dtype), source, axis, block_size)
    # what was cut off at the ends of the range lies further than half a step from its value
    inside = (source - y).detach().abs() <= step.abs() * (0.5 + 1e-3)
    return y + torch.where(inside, steps - steps.detach(), 0).to(y.dtype) * step


def _difference(x: Tensor, zero: Tensor | None, axis: int, block_size: int = 0) -> Tensor:
    """X - zero in a type wide enough for it."""
    if x.is_floating_point():
        return x.float()
    wide = x.to(torch.int64 if x.itemsize > 2 else torch.int32)
    return wide if zero is None else wide - spread(zero.to(wide.dtype), x, axis, block_size)


@op("DynamicQuantizeLinear", 11, differentiable=False)
def dynamic_quantize_linear(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """X as uint8 with the scale and zero point that fit its range: y, scale, zero point.

    Source: ONNX operators, DynamicQuantizeLinear 11.
    """
    low = x.min().clamp(max=0.0)
    high = x.max().clamp(min=0.0)
    scale = (high - low) / 255.0
    zero = torch.round((0.0 - low / scale).clamp(0, 255))
    return quantized(x, scale, zero, 2), scale, zero.to(torch.uint8)


def exact_type(terms: int) -> torch.dtype:
    """The float type that sums this many products of bytes without rounding."""
    return torch.float32 if terms * 255 * 255 < _EXACT else torch.float64


def _integer_matmul(a: Tensor, b: Tensor) -> Tensor:
    work = exact_type(a.shape[-1])
    return torch.matmul(a.to(work), b.to(work))


def _row_zero(zero: Tensor, a: Tensor) -> Tensor:
    # one zero point for each row of A
    if zero.dim() == 1 and zero.numel() > 1 and a.dim() > 1:
        return zero.unsqueeze(-1)
    return zero if zero.dim() > 1 else zero.reshape(()) if zero.numel() == 1 else zero


@op("MatMulInteger", 10, differentiable=False)
def matmul_integer(
    a: Tensor,
    b: Tensor,
    a_zero_point: Tensor | None = None,
    b_zero_point: Tensor | None = None,
) -> Tensor:
    """(A - a_zero_point) @ (B - b_zero_point) as int32.

    a_zero_point: a scalar or one a row.  b_zero_point: a scalar or one a column.
    Source: ONNX operators, MatMulInteger 10.
    """
    a32, b32 = a.to(torch.int32), b.to(torch.int32)
    if a_zero_point is not None:
        a32 = a32 - _row_zero(a_zero_point.to(torch.int32), a)
    if b_zero_point is not None:
        b32 = b32 - b_zero_point.to(torch.int32)
    return _integer_matmul(a32, b32).to(torch.int32)


@op("QLinearMatMul", 10, 21, differentiable=False)
def qlinear_matmul(
    a: Tensor,
    a_scale: Tensor,
    a_zero_point: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero_point: Tensor,
    y_scale: Tensor,
    y_zero_point: Tensor,
    *,
    types_: tuple[int, ...] = (),
) -> Tensor:
    """The quantised product of two quantised matrices.

    Source: ONNX operators, QLinearMatMul 10-21.
    """
    elem = types_[7] if len(types_) > 7 and types_[7] else 2
    total = _integer_matmul(
        a.to(torch.int32) - _row_zero(a_zero_point.to(torch.int32), a),
        b.to(torch.int32) - b_zero_point.to(torch.int32),
    ).float()
    scale = _row_zero(a_scale.float(), a) * b_scale.float() / _row_zero(y_scale.float(), a)
    zero = _row_zero(y_zero_point, a)
    low, high = RANGES[elem]
    y = torch.round(total * scale) + zero.float()
    return y.clamp(low, high).to(torch_dtype(elem))


def integer_conv(
    x: Tensor, w: Tensor, x_zero: Tensor | None, w_zero: Tensor | None, **attributes: Any
) -> Tensor:
    """Convolution of integers, exact, in a float type."""
    work = exact_type(w[0].numel())
    xs = x.to(work) if x_zero is None else x.to(work) - x_zero.to(work).reshape(())
    ws = w.to(work) if w_zero is None else w.to(work) - spread(w_zero.to(work), w, 0)
    return conv(xs, ws, **attributes)


@op("ConvInteger", 10, differentiable=False)
def conv_integer(
    x: Tensor,
    w: Tensor,
    x_zero_point: Tensor | None = None,
    w_zero_point: Tensor | None = None,
    **attributes: Any,
) -> Tensor:
    """Convolution of integers less their zero points, as int32.

    attributes: those of Conv.  Source: ONNX operators, ConvInteger 10.
    """
    return integer_conv(x, w, x_zero_point, w_zero_point, **attributes).to(torch.int32)


@op("QLinearConv", 10, prunable=("w",), bias="b", differentiable=False)
def qlinear_conv(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor,
    w: Tensor,
    w_scale: Tensor,
    w_zero_point: Tensor,
    y_scale: Tensor,
    y_zero_point: Tensor,
    b: Tensor | None = None,
    **attributes: Any,
) -> Tensor:
    """The quantised convolution of quantised data and weights.

    b: int32 [M], in units of x_scale * w_scale.  attributes: those of Conv.
    Source: ONNX operators, QLinearConv 10.
    """
    total = integer_conv(x, w, x_zero_point, w_zero_point, **attributes)
    shape = (1, -1) + (1,) * (x.dim() - 2)
    if b is not None:
        total = total + b.to(total.dtype).reshape(shape)
    scale = (x_scale * w_scale / y_scale).reshape(-1)
    scale = scale.reshape(shape) if scale.numel() > 1 else scale.reshape(())
    low, high = RANGES[element_type(y_zero_point.dtype)]
    y = torch.round(total.float() * scale) + y_zero_point.float().reshape(())
    return y.clamp(low, high).to(y_zero_point.dtype)
