"""Pooling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dns_onnx.converters.ops.windows import Window, padded, spatial, window, window_over
from dns_onnx.converters.registry import Arg, Call, op

_MAX: dict[int, Callable[..., Any]] = {
    1: torch.max_pool1d,
    2: torch.max_pool2d,
    3: torch.max_pool3d,
}
_MAX_INDICES: dict[int, Callable[..., Any]] = {
    1: torch.max_pool1d_with_indices,
    2: torch._C._nn.max_pool2d_with_indices,
    3: torch._C._nn.max_pool3d_with_indices,
}
_AVERAGE: dict[int, Callable[..., Any]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _expressible(found: Window) -> bool:
    half = all(0 <= 2 * p <= k for p, k in zip(found.begin, found.kernel, strict=True))
    return found.symmetric and half


def _max_pool_direct(x: Arg, **attributes: Any) -> Call | None:
    """Torch's max pooling, where its padding can express the node's."""
    size = spatial(x)
    attributes.pop("storage_order", None)
    if size is None or len(size) not in _MAX or x.elem not in (1, 10, 11, 16):
        return None
    if attributes.pop("outputs_", 1) > 1:
        return None
    found = window(size, attributes.pop("kernel_shape"), **attributes)
    if found is None or not _expressible(found):
        return None
    return Call(_MAX[len(size)], (x, found.kernel, found.strides, found.begin, found.dilations))


@op("MaxPool", 1, 8, 10, 11, 12, 22, direct=_max_pool_direct)
def max_pool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    storage_order: int = 0,
    outputs_: int = 1,
    **attributes: Any,
) -> tuple[Tensor, ...]:
    """Largest entry of each window, and its position in the flattened input.

    x: [N, C, d1, ..., dn].  Returns y and, if asked for, int64 indices of the same shape;
    storage_order = 1 counts the spatial axes in column-major order.  attributes: strides,
    dilations, pads, auto_pad, ceil_mode, as `window` takes them.
    Source: ONNX operators, MaxPool 1-22.
    """
    found = window_over(x, kernel_shape, **attributes)
    rank = len(kernel_shape)
    work = x if x.is_floating_point() else x.to(torch.float32)
    extended = padded(work, found.begin, found.end, float("-inf"))
    shape = (found.kernel, found.strides, (0,) * rank, found.dilations)
    if outputs_ == 1:
        return (_MAX[rank](extended, *shape).to(x.dtype),)
    y, indices = _MAX_INDICES[rank](extended, *shape)
    return y.to(x.dtype), _positions(indices, x.shape, extended.shape, found, storage_order)


def _positions(
    indices: Tensor, shape: Sequence[int], extended: Sequence[int], found: Window, order: int
) -> Tensor:
    """Positions within one padded plane as positions in the whole unpadded input."""
    rank = len(found.kernel)
    coordinates: list[Tensor] = []
    for axis in reversed(range(rank)):
        coordinates.insert(0, indices % extended[2 + axis] - found.begin[axis])
        indices = indices // extended[2 + axis]
    flat = torch.zeros_like(coordinates[0])
    for axis in reversed(range(rank)) if order else range(rank):
        flat = flat * shape[2 + axis] + coordinates[axis]
    planes = torch.arange(shape[0] * shape[1], device=flat.device)
    plane = int(torch.Size(shape[2:]).numel())
    return flat + (planes * plane).reshape((shape[0], shape[1]) + (1,) * rank)


def sliding_sum(x: Tensor, found: Window) -> Tensor:
    """Sum over each window of an input that is already padded.

    x: [N, C, d1, ..., dn].
    """
    for axis, (kernel, stride, step) in enumerate(
        zip(found.kernel, found.strides, found.dilations, strict=True)
    ):
        span = (kernel - 1) * step + 1
        x = x.unfold(2 + axis, span, stride)[..., ::step].sum(-1)
    return x


def _average_direct(x: Arg, **attributes: Any) -> Call | None:
    """Torch's average pooling, where its padding can express the node's."""
    size = spatial(x)
    include = bool(attributes.pop("count_include_pad", 0))
    if size is None or len(size) not in _AVERAGE or x.elem not in (1, 10, 11, 16):
        return None
    found = window(size, attributes.pop("kernel_shape"), **attributes)
    if found is None or not _expressible(found) or any(d != 1 for d in found.dilations):
        return None
    if found.given != found.end:
        return None
    args = (x, found.kernel, found.strides, found.begin, False, include)
    return Call(_AVERAGE[len(size)], args)


@op("AveragePool", 1, 7, 10, 11, 19, 22, direct=_average_direct)
def average_pool(
    x: Tensor, *, kernel_shape: Sequence[int], count_include_pad: int = 0, **attributes: Any
) -> Tensor:
    """Mean of each window; cells of padding count if count_include_pad is set.

    x: [N, C, d1, ..., dn].  attributes: as in MaxPool.  Source: ONNX operators, AveragePool 1-22.
    """
    found = window_over(x, kernel_shape, **attributes)
    total = sliding_sum(padded(x, found.begin, found.end), found)
    ones = x.new_ones((1, 1, *x.shape[2:]))
    if count_include_pad:
        ones = padded(ones, found.begin, found.given, 1.0)
        rest = [e - g for e, g in zip(found.end, found.given, strict=True)]
        ones = padded(ones, [0] * len(rest), rest)
    else:
        ones = padded(ones, found.begin, found.end)
    return total / sliding_sum(ones, found)


@op("LpPool", 1, 2, 11, 18, 22)
def lp_pool(
    x: Tensor, *, kernel_shape: Sequence[int] | None = None, p: float = 2.0, **attributes: Any
) -> Tensor:
    """p-norm of each window.

    x: [N, C, d1, ..., dn].  attributes: as in MaxPool.  Source: ONNX operators, LpPool 1-22.
    """
    found = window_over(x, kernel_shape or x.shape[2:], **attributes)
    powers = padded(x.abs() ** p, found.begin, found.end)
    return sliding_sum(powers, found) ** (1.0 / p)


def _global_average_direct(x: Arg) -> Call | None:
    if x.rank is None or x.rank < 3:
        return None
    return Call(torch.mean, (x, tuple(range(2, x.rank)), True))


@op("GlobalAveragePool", 1, 22, direct=_global_average_direct)
def global_average_pool(x: Tensor) -> Tensor:
    """Mean over all spatial axes, which stay with size 1.

    Source: ONNX operators, GlobalAveragePool 1-22.
    """
    return x.mean(tuple(range(2, x.dim())), keepdim=True) if x.dim() > 2 else x


@op("GlobalMaxPool", 1, 22)
def global_max_pool(x: Tensor) -> Tensor:
    """Largest entry over all spatial axes, which stay with size 1.

    Source: ONNX operators, GlobalMaxPool 1-22.
    """
    return x.amax(tuple(range(2, x.dim())), keepdim=True) if x.dim() > 2 else x


@op("GlobalLpPool", 1, 2, 22)
def global_lp_pool(x: Tensor, *, p: float = 2.0) -> Tensor:
    """p-norm over all spatial axes, which stay with size 1.

    Source: ONNX operators, GlobalLpPool 1-22.
    """
    return (x.abs() ** p).sum(tuple(range(2, x.dim())), keepdim=True) ** (1.0 / p)
