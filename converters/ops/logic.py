"""Comparisons, Boolean and bitwise operators, and choice."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dns_onnx.converters.ops.arithmetic import aligned
from dns_onnx.converters.ops.widths import in_bits, in_int64, ordered, plain
from dns_onnx.converters.registry import op


def _compared(
    function: Callable[..., Tensor], a: Tensor, b: Tensor, axis: int | None, broadcast: int
) -> Tensor:
    result: Tensor = ordered(function, a, aligned(a, b, axis, broadcast))
    return result


@op("Equal", 1, 7, 11, 13, 19, differentiable=False, direct=plain(torch.eq))
def equal(a: Tensor, b: Tensor, *, axis: int | None = None, broadcast: int = 0) -> Tensor:
    """A == B.  Strings are compared too.  Source: ONNX operators, Equal 1-19."""
    if not isinstance(a, Tensor):
        return torch.from_numpy((a == b).astype(bool))
    return _compared(torch.eq, a, b, axis, broadcast)


@op("Greater", 1, 7, 9, 13, differentiable=False, direct=plain(torch.gt))
def greater(a: Tensor, b: Tensor, *, axis: int | None = None, broadcast: int = 0) -> Tensor:
    """A > B.  Source: ONNX operators, Greater 1-13."""
    return _compared(torch.gt, a, b, axis, broadcast)


@op("GreaterOrEqual", 12, 16, differentiable=False, direct=plain(torch.ge))
def greater_or_equal(a: Tensor, b: Tensor) -> Tensor:
    """A >= B.  Source: ONNX operators, GreaterOrEqual 12-16."""
    return _compared(torch.ge, a, b, None, 0)


@op("Less", 1, 7, 9, 13, differentiable=False, direct=plain(torch.lt))
def less(a: Tensor, b: Tensor, *, axis: int | None = None, broadcast: int = 0) -> Tensor:
    """A < B.  Source: ONNX operators, Less 1-13."""
    return _compared(torch.lt, a, b, axis, broadcast)


@op("LessOrEqual", 12, 16, differentiable=False, direct=plain(torch.le))
def less_or_equal(a: Tensor, b: Tensor) -> Tensor:
    """A <= B.  Source: ONNX operators, LessOrEqual 12-16."""
    return _compared(torch.le, a, b, None, 0)


@op("And", 1, 7, differentiable=False)
def and_(a: Tensor, b: Tensor, *, axis: int | None = None, broadcast: int = 0) -> Tensor:
    """A and B.  Source: ONNX operators, And 1-7."""
    return torch.logical_and(a, aligned(a, b, axis, broadcast))


@op("Or", 1, 7, differentiable=False)
def or_(a: Tensor, b: Tensor, *, axis: int | None = None, broadcast: int = 0) -> Tensor:
    """A or B.  Source: ONNX operators, Or 1-7."""
    return torch.logical_or(a, aligned(a, b, axis, broadcast))


@op("Xor", 1, 7, differentiable=False)
def xor(a: Tensor, b: Tensor, *, axis: int | None = None, broadcast: int = 0) -> Tensor:
    """Either A or B.  Source: ONNX operators, Xor 1-7."""
    return torch.logical_xor(a, aligned(a, b, axis, broadcast))


@op("Not", 1, differentiable=False)
def not_(x: Tensor) -> Tensor:
    """Not x.  Source: ONNX operators, Not 1."""
    return torch.logical_not(x)


@op("BitwiseAnd", 18, differentiable=False)
def bitwise_and(a: Tensor, b: Tensor) -> Tensor:
    """A & B, bit by bit.  Source: ONNX operators, BitwiseAnd 18."""
    return torch.bitwise_and(a, b)


@op("BitwiseOr", 18, differentiable=False)
def bitwise_or(a: Tensor, b: Tensor) -> Tensor:
    """A | B, bit by bit.  Source: ONNX operators, BitwiseOr 18."""
    return torch.bitwise_or(a, b)


@op("BitwiseXor", 18, differentiable=False)
def bitwise_xor(a: Tensor, b: Tensor) -> Tensor:
    """A ^ B, bit by bit.  Source: ONNX operators, BitwiseXor 18."""
    return torch.bitwise_xor(a, b)


@op("BitwiseNot", 18, differentiable=False)
def bitwise_not(x: Tensor) -> Tensor:
    """~x, bit by bit.  Source: ONNX operators, BitwiseNot 18."""
    return in_bits(torch.bitwise_not, x)


@op("BitShift", 11, 28, differentiable=False)
def bit_shift(x: Tensor, y: Tensor, *, direction: str) -> Tensor:
    """X << y, or x >> y with zeros moving in.  A shift by the width or more gives 0.

    Source: ONNX operators, BitShift 11-28.
    """
    width = 8 * x.itemsize
    if direction == "LEFT":
        return in_int64(lambda a, b: _shifted_left(a, b, width), x, y)  # type: ignore[no-any-return]
    if x.dtype is torch.uint64:
        a, b = x.view(torch.int64), y.view(torch.int64)
        low = torch.where(b > 0, (a >> b) & ~(torch.full_like(b, -1) << (64 - b)), a)
        return torch.where(b >= 64, torch.zeros_like(low), low).view(torch.uint64)
    return in_int64(lambda a, b: _shifted_right(a, b, width), x, y)  # type: ignore[no-any-return]


def _shifted_left(a: Tensor, b: Tensor, width: int) -> Tensor:
    return torch.where(b >= width, torch.zeros_like(a), a << b.clamp(max=width - 1))


def _shifted_right(a: Tensor, b: Tensor, width: int) -> Tensor:
    gone = torch.where(a < 0, torch.full_like(a, -1), torch.zeros_like(a))
    return torch.where(b >= width, gone, a >> b.clamp(max=width - 1))


def _where(condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return torch.where(condition, x, y)


@op("Where", 9, 16)
def where(condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """X where the condition holds, else Y.  Source: ONNX operators, Where 9-16."""
    return _where(condition, x, y)
