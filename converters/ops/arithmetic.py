"""Binary and variadic arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from dns_onnx.converters.ops.widths import PLAIN, in_int64, ordered, plain
from dns_onnx.converters.registry import Arg, Call, Direct, op


def aligned(a: Tensor, b: Tensor, axis: int | None, broadcast: int) -> Tensor:
    """B as the first schemas broadcast it: its axes stand at `axis` of A's.

    Later schemas, and broadcast = 0, leave B as it is.
    """
    if not broadcast or axis is None or b.dim() == 0:
        return b
    start = axis + a.dim() if axis < 0 else axis
    return b.reshape(tuple(b.shape) + (1,) * (a.dim() - start - b.dim()))


@op("Add", 1, 6, 7, 13, 14, direct=plain(torch.add))
def add(a: Tensor, b: Tensor, *, axis: int | None = None, broadcast: int = 0) -> Tensor:
    """A + B.

    a, b: broadcast to each other.  Source: ONNX operators, Add 1-14.
    """
    return in_int64(torch.add, a, aligned(a, b, axis, broadcast))  # type: ignore[no-any-return]


@op("Sub", 1, 6, 7, 13, 14, direct=plain(torch.sub))
def sub(a: Tensor, b: Tensor, *, axis: int | None = None, broadcast: int = 0) -> Tensor:
    """A - B.  Source: ONNX operators, Sub 1-14."""
    return in_int64(torch.sub, a, aligned(a, b, axis, broadcast))  # type: ignore[no-any-return]


@op("Mul", 1, 6, 7, 13, 14, direct=plain(torch.mul))
def mul(a: Tensor, b: Tensor, *, axis: int | None = None, broadcast: int = 0) -> Tensor:
    """A * B.  Source: ONNX operators, Mul 1-14."""
    return in_int64(torch.mul, a, aligned(a, b, axis, broadcast))  # type: ignore[no-any-return]


def _truncated(a: Tensor, b: Tensor) -> Tensor:
    return torch.div(a, b, rounding_mode="trunc")


def div_direct(a: Arg, b: Arg, **attributes: Any) -> Call | None:
    """torch.div, where the operands are known to be floating."""
    floating = a.elem in (1, 10, 11, 16) and b.elem in (1, 10, 11, 16)
    return Call(torch.div, (a, b)) if floating and not attributes else None


@op("Div", 1, 6, 7, 13, 14, direct=div_direct)
def div(a: Tensor, b: Tensor, *, axis: int | None = None, broadcast: int = 0) -> Tensor:
    """A / B; integers are divided towards zero.  Source: ONNX operators, Div 1-14."""
    b = aligned(a, b, axis, broadcast)
    if a.is_floating_point() or a.is_complex():
        return torch.div(a, b)
    if a.dtype is torch.uint64:
        return _unsigned_quotient(a, b)
    return in_int64(_truncated, a, b)  # type: ignore[no-any-return]


def _unsigned_quotient(a: Tensor, b: Tensor) -> Tensor:
    """uint64 division by int64 arithmetic: half the dividend, then correct the last bit."""
    x, y = torch.broadcast_tensors(a.view(torch.int64), b.view(torch.int64))
    half = torch.bitwise_and(x >> 1, 2**63 - 1)
    quotient = torch.div(half, y, rounding_mode="trunc") << 1
    rest = x - quotient * y
    fits = torch.ge(rest ^ -(2**63), y ^ -(2**63))
    small = torch.where(y < 0, torch.zeros_like(x), quotient + fits)
    large = torch.ge(x ^ -(2**63), y ^ -(2**63)).to(torch.int64)
    return torch.where(y < 0, large, small).view(torch.uint64)


@op("Pow", 1, 7, 12, 13, 15)
def pow_(x: Tensor, y: Tensor, *, axis: int | None = None, broadcast: int = 0) -> Tensor:
    """X to the power of Y, in X's type.

    The gradient in Y is X^Y ln X where X > 0 and zero elsewhere, where the logarithm is not real.
    Source: ONNX operators, Pow 1-15.
    """
    y = aligned(x, y, axis, broadcast)
    if x.dtype in (torch.int32, torch.int64) and y.is_floating_point():
        return torch.pow(x.to(torch.float64), y).to(x.dtype)
    if x.is_floating_point():
        return _float_power(x, y.to(x.dtype))
    return torch.pow(x.to(torch.int64), y.to(torch.int64)).to(x.dtype)


def _float_power(x: Tensor, y: Tensor) -> Tensor:
    if not (y.requires_grad and torch.is_grad_enabled()):
        return torch.pow(x, y)
    positive = x > 0
    real = torch.pow(torch.where(positive, x, 1), y)
    return torch.where(positive, real, torch.pow(torch.where(positive, 1, x), y.detach()))


@op("Mod", 10, 13, 28)
def mod(a: Tensor, b: Tensor, *, fmod: int = 0) -> Tensor:
    """Remainder of A / B, with the sign of B, or of A if fmod = 1.

    Source: ONNX operators, Mod 10-28.
    """
    if a.dtype is torch.uint64:
        quotient = _unsigned_quotient(a, b).view(torch.int64)
        return (a.view(torch.int64) - quotient * b.view(torch.int64)).view(torch.uint64)
    return in_int64(torch.fmod if fmod else torch.remainder, a, b)  # type: ignore[no-any-return]


def _folded(function: Callable[..., Tensor]) -> Callable[..., Direct]:
    """A `direct` rule for variadic operators: the binary torch function, from left to right."""

    def rule(*operands: Arg, **attributes: Any) -> Direct:
        if any(o.elem not in PLAIN for o in operands) or len(operands) < 2:
            return None
        result: Any = operands[0]
        for operand in operands[1:]:
            result = Call(function, (result, operand))
        return result  # type: ignore[no-any-return]

    return rule


@op("Max", 1, 6, 8, 12, 13, direct=_folded(torch.maximum))
def max_(*data_0: Tensor) -> Tensor:
    """Largest of the operands, entry by entry.  Source: ONNX operators, Max 1-13."""
    return reduce(lambda a, b: ordered(torch.maximum, a, b), data_0)


@op("Min", 1, 6, 8, 12, 13, direct=_folded(torch.minimum))
def min_(*data_0: Tensor) -> Tensor:
    """Smallest of the operands, entry by entry.  Source: ONNX operators, Min 1-13."""
    return reduce(lambda a, b: ordered(torch.minimum, a, b), data_0)


@op("Sum", 1, 6, 8, 13, direct=_folded(torch.add))
def sum_(*data_0: Tensor) -> Tensor:
    """Sum of the operands.  Source: ONNX operators, Sum 1-13."""
    return reduce(torch.add, data_0)


@op("Mean", 1, 6, 8, 13)
def mean(*data_0: Tensor) -> Tensor:
    """Mean of the operands.  Source: ONNX operators, Mean 1-13."""
    return reduce(torch.add, data_0) / len(data_0)
