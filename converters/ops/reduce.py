"""Reductions over axes, and running sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dns_onnx.converters.ops.widths import in_int64, ordered
from dns_onnx.converters.registry import Arg, Call, op

Axes = Sequence[int] | int | None


def _reduced(
    function: Callable[[Tensor, tuple[int, ...], bool], Tensor],
    data: Tensor,
    axes: Axes,
    keepdims: int,
    noop: int,
) -> Tensor:
    """`function` over the axes; over all of them if none are named, unless that means none."""
    if isinstance(axes, int):
        axes = [axes]
    if not axes and (noop and data is not None):
        return function(data.unsqueeze(0), (0,), False)
    chosen = tuple(a % data.dim() for a in axes) if axes else tuple(range(data.dim()))
    if not chosen:
        return function(data.unsqueeze(0), (0,), False)
    return function(data, chosen, bool(keepdims))


def _direct(target: Callable[..., Tensor]) -> Callable[..., Call | None]:
    def rule(
        data: Arg, axes: Any = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
    ) -> Call | None:
        known = isinstance(axes, (list, tuple)) and all(isinstance(a, int) for a in axes)
        if data.elem not in (1, 10, 11, 16) or not known or not axes:
            return None
        return Call(target, (data, tuple(axes), bool(keepdims)))

    return rule


def _sum(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return x.sum(axes, keepdim=keep, dtype=x.dtype)


def _mean(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    if x.is_floating_point():
        return x.mean(axes, keepdim=keep)
    return x.double().mean(axes, keepdim=keep).to(x.dtype)


def _prod(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keepdim=keep, dtype=x.dtype)
    return x


def _max(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    if x.numel() == 0:
        return _of_nothing(x, axes, keep, largest=False)
    return ordered(torch.amax, x, dim=axes, keepdim=keep)  # type: ignore[no-any-return]


def _min(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    if x.numel() == 0:
        return _of_nothing(x, axes, keep, largest=True)
    return ordered(torch.amin, x, dim=axes, keepdim=keep)  # type: ignore[no-any-return]


def _of_nothing(x: Tensor, axes: tuple[int, ...], keep: bool, *, largest: bool) -> Tensor:
    """The neutral element of max or min, for a reduction over no entries."""
    if x.is_floating_point():
        limit: float | bool | int = float("inf") if largest else float("-inf")
    elif x.dtype is torch.bool:
        limit = largest
    else:
        info = torch.iinfo(x.dtype)
        limit = info.max if largest else info.min
    return torch.full_like(x.sum(axes, keepdim=keep), limit, dtype=x.dtype)


def _l1(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return _sum(x.abs(), axes, keep)


def _l2(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    squares = _sum_square(x if x.is_floating_point() else x.double(), axes, keep)
    # the square root has no gradient at zero: keep it out of there
    zero = squares == 0
    root = torch.where(zero, squares, torch.sqrt(torch.where(zero, 1.0, squares)))
    return root.to(x.dtype)


def _sum_square(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return _sum(x * x, axes, keep)


def _log_sum(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    if not x.is_floating_point():
        return torch.log(_sum(x.double(), axes, keep)).to(x.dtype)
    return torch.log(_sum(x, axes, keep))


def _log_sum_exp(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    if not x.is_floating_point():
        return torch.logsumexp(x.double(), axes, keepdim=keep).to(x.dtype)
    return torch.logsumexp(x, axes, keepdim=keep)


@op("ReduceSum", 1, 11, 13, static=("axes",), direct=_direct(torch.sum))
def reduce_sum(
    data: Tensor, axes: Axes = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """Sum over axes.  Source: ONNX operators, ReduceSum 1-13."""
    if noop_with_empty_axes and not axes:
        return data
    return in_int64(_reduced_by(_sum), data, axes=axes, keep=keepdims)  # type: ignore[no-any-return]


def _reduced_by(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def apply(data: Tensor, *, axes: Axes, keep: int, noop: int = 0) -> Tensor:
        return _reduced(function, data, axes, keep, noop)

    return apply


@op("ReduceMean", 1, 11, 13, 18, static=("axes",), direct=_direct(torch.mean))
def reduce_mean(
    data: Tensor, axes: Axes = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """Mean over axes.  Source: ONNX operators, ReduceMean 1-18."""
    return in_int64(  # type: ignore[no-any-return]
        _reduced_by(_mean), data, axes=axes, keep=keepdims, noop=noop_with_empty_axes
    )


@op("ReduceProd", 1, 11, 13, 18, static=("axes",))
def reduce_prod(
    data: Tensor, axes: Axes = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """Product over axes.  Source: ONNX operators, ReduceProd 1-18."""
    return in_int64(  # type: ignore[no-any-return]
        _reduced_by(_prod), data, axes=axes, keep=keepdims, noop=noop_with_empty_axes
    )


@op("ReduceMax", 1, 11, 12, 13, 18, 20, static=("axes",))
def reduce_max(
    data: Tensor, axes: Axes = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """Largest entry over axes.  Source: ONNX operators, ReduceMax 1-20."""
    return _reduced(_max, data, axes, keepdims, noop_with_empty_axes)


@op("ReduceMin", 1, 11, 12, 13, 18, 20, static=("axes",))
def reduce_min(
    data: Tensor, axes: Axes = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """Smallest entry over axes.  Source: ONNX operators, ReduceMin 1-20."""
    return _reduced(_min, data, axes, keepdims, noop_with_empty_axes)


@op("ReduceL1", 1, 11, 13, 18, static=("axes",))
def reduce_l1(
    data: Tensor, axes: Axes = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """Sum of absolute values over axes.  Source: ONNX operators, ReduceL1 1-18."""
    return in_int64(  # type: ignore[no-any-return]
        _reduced_by(_l1), data, axes=axes, keep=keepdims, noop=noop_with_empty_axes
    )


@op("ReduceL2", 1, 11, 13, 18, static=("axes",))
def reduce_l2(
    data: Tensor, axes: Axes = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """Root of the sum of squares over axes.  Source: ONNX operators, ReduceL2 1-18."""
    return in_int64(  # type: ignore[no-any-return]
        _reduced_by(_l2), data, axes=axes, keep=keepdims, noop=noop_with_empty_axes
    )


@op("ReduceSumSquare", 1, 11, 13, 18, static=("axes",))
def reduce_sum_square(
    data: Tensor, axes: Axes = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """Sum of squares over axes.  Source: ONNX operators, ReduceSumSquare 1-18."""
    return in_int64(  # type: ignore[no-any-return]
        _reduced_by(_sum_square), data, axes=axes, keep=keepdims, noop=noop_with_empty_axes
    )


@op("ReduceLogSum", 1, 11, 13, 18, 28, static=("axes",))
def reduce_log_sum(
    data: Tensor, axes: Axes = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """Logarithm of the sum over axes.  Source: ONNX operators, ReduceLogSum 1-28."""
    return in_int64(  # type: ignore[no-any-return]
        _reduced_by(_log_sum), data, axes=axes, keep=keepdims, noop=noop_with_empty_axes
    )


@op("ReduceLogSumExp", 1, 11, 13, 18, 28, static=("axes",))
def reduce_log_sum_exp(
    data: Tensor, axes: Axes = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """Logarithm of the sum of exponentials.  Source: ONNX operators, ReduceLogSumExp 1-28."""
    return in_int64(  # type: ignore[no-any-return]
        _reduced_by(_log_sum_exp), data, axes=axes, keep=keepdims, noop=noop_with_empty_axes
    )


def _extreme(
    data: Tensor, axis: int, keepdims: int, last: int, choose: Callable[..., Tensor]
) -> Tensor:
    if data.dtype is torch.uint64:
        data = data.view(torch.int64) ^ -(2**63)
    elif data.dtype in (torch.uint16, torch.uint32):
        data = data.to(torch.int64)
    if not last:
        return choose(data, axis, keepdim=bool(keepdims))
    flipped = choose(data.flip(axis), axis, keepdim=bool(keepdims))
    return data.shape[axis] - 1 - flipped


@op("ArgMax", 1, 11, 12, 13, differentiable=False)
def arg_max(
    data: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0
) -> Tensor:
    """Position of the first (or last) largest entry.  Source: ONNX operators, ArgMax 1-13."""
    return _extreme(data, axis, keepdims, select_last_index, torch.argmax)


@op("ArgMin", 1, 11, 12, 13, differentiable=False)
def arg_min(
    data: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0
) -> Tensor:
    """Position of the first (or last) smallest entry.  Source: ONNX operators, ArgMin 1-13."""
    return _extreme(data, axis, keepdims, select_last_index, torch.argmin)


def _running(
    function: Callable[..., Tensor], x: Tensor, axis: int, exclusive: int, reverse: int, first: int
) -> Tensor:
    """A running sum or product; `first` stands before the first entry of an exclusive one."""
    if reverse:
        x = x.flip(axis)
    y = function(x, axis, dtype=x.dtype)
    if exclusive:
        start = torch.full_like(y.narrow(axis, 0, 1), first)
        y = torch.cat([start, y.narrow(axis, 0, y.shape[axis] - 1)], axis)
    return y.flip(axis) if reverse else y


@op("CumSum", 11, 14, static=("axis",))
def cumsum(x: Tensor, axis: int | list[int], *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """Running sum along an axis.  Source: ONNX operators, CumSum 11-14."""
    axis = axis if isinstance(axis, int) else axis[0]
    return _running(torch.cumsum, x, axis, exclusive, reverse, 0)


@op("CumProd", 26, static=("axis",))
def cumprod(x: Tensor, axis: int | list[int], *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """Running product along an axis.  Source: ONNX operators, CumProd 26."""
    axis = axis if isinstance(axis, int) else axis[0]
    return _running(torch.cumprod, x, axis, exclusive, reverse, 1)
