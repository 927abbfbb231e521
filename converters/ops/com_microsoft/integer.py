"""Operators that multiply quantised matrices into real numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dns_onnx.converters.ops.com_microsoft.attention import ON_CPU, self_attention
from dns_onnx.converters.ops.com_microsoft.base import contrib
from dns_onnx.converters.ops.com_microsoft.quantized import requantized
from dns_onnx.converters.ops.quantize import (
    dequantize_linear,
    dynamic_quantize_linear,
    exact_type,
    matmul_integer,
    spread,
)
from dns_onnx.converters.ops.rnn import Layer, long_short


@contrib("QGemm", prunable=("b",), bias="c", differentiable=False)
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
    return requantized(y, y_scale, y_zero_point)


@contrib("MatMulIntegerToFloat", differentiable=False, bias="bias", prunable=("b",))
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


@contrib("DynamicQuantizeMatMul", differentiable=False, bias="bias", prunable=("b",))
def dynamic_quantize_matmul(
    a: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero_point: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """A, quantised by its own range, times a quantised matrix.

    Source: ONNX Runtime contrib operators, DynamicQuantizeMatMul.
    """
    small, scale, zero = dynamic_quantize_linear(a)
    return matmul_integer_to_float(small, b, scale, b_scale, zero, b_zero_point, bias)


@contrib(
    "QAttention",
    multiple=True,
    prunable=("weight",),
    bias="bias",
    differentiable=False,
    direct=ON_CPU,
)
def qattention(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    input_scale: Tensor,
    weight_scale: Tensor,
    mask_index: Tensor | None = None,
    input_zero_point: Tensor | None = None,
    weight_zero_point: Tensor | None = None,
    past: Tensor | None = None,
    *,
    num_heads: int,
    unidirectional: int = 0,
    mask_filter_value: float = -10000.0,
    scale: float = 0.0,
    do_rotary: int = 0,
    past_present_share_buffer: int = 0,
    outputs_: int = 1,
) -> tuple[Tensor, ...]:
    """Attention whose projections are products of quantised matrices: y, present.

    x: [B, T, I].  weight: [I, Q + K + V].  Source: ONNX Runtime contrib operators, QAttention.
    """
    mixed = matmul_integer_to_float(
        x, weight, input_scale, weight_scale, input_zero_point, weight_zero_point, bias
    )
    sizes = [weight.shape[1] // 3] * 3
    heads = num_heads, scale, mask_filter_value, unidirectional
    return self_attention(mixed, sizes, *heads, mask_index, past, None)[:outputs_]


@contrib("DynamicQuantizeLSTM", multiple=True, differentiable=False)
def dynamic_quantize_lstm(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None,
    sequence_lens: Tensor | None,
    initial_h: Tensor | None,
    initial_c: Tensor | None,
    p: Tensor | None,
    w_scale: Tensor,
    w_zero_point: Tensor,
    r_scale: Tensor,
    r_zero_point: Tensor,
    *,
    input_forget: int = 0,
    **attributes: Any,
) -> tuple[Tensor, ...]:
    """LSTM of quantised weights, data and states quantised by their own ranges.

    w: [D, I, 4 H], r: [D, H, 4 H].  Their scales: [D], or [D, 4 H].  attributes: those of LSTM.
    Source: ONNX Runtime contrib operators, DynamicQuantizeLSTM.
    """

    def real(weight: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        shape = (weight.shape[0], 1, -1)
        return ((weight.float() - zero.reshape(shape).float()) * scale.reshape(shape)).mT

    operands = real(w, w_scale, w_zero_point), real(r, r_scale, r_zero_point), b, sequence_lens
    initial: Sequence[Tensor | None] = (initial_h, initial_c)
    layer = Layer(**attributes)
    return long_short(_coarse(x), *operands, initial, p, input_forget, layer, seen=_coarse)


def _coarse(x: Tensor) -> Tensor:
    """X through a quantisation by its own range."""
    small, scale, zero = dynamic_quantize_linear(x)
    y = dequantize_linear(small, scale, zero)
    # a state of zeros has no range
    return torch.where(scale == 0, x, y)
