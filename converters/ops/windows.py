"""Padding and window arithmetic that convolution and pooling share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from dns_onnx.converters.registry import Arg


@dataclass(frozen=True)
class Window:
    """Sliding windows over the spatial axes of one tensor.

    begin, end: cells of padding before and after, per axis (end may be negative: cells unused).
    given: the end padding that the node itself asks for, without what rounding up adds.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]
    given: tuple[int, ...]

    @property
    def symmetric(self) -> bool:
        return self.begin == self.end


def window(
    size: Sequence[int | None],
    kernel: Sequence[int],
    *,
    strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
) -> Window | None:
    """The windows of a node over axes of these sizes; None if an unknown size matters.

    pads: ONNX order, all begins and then all ends.  A window that would start in the end padding
    is left out, also when the output size is rounded up.
    Source: ONNX operators, Conv-22, MaxPool-22, AveragePool-22.
    """
    rank = len(kernel)
    strides = tuple(strides or (1,) * rank)
    dilations = tuple(dilations or (1,) * rank)
    begin, end, given = [], [], []
    for axis in range(rank):
        span = (kernel[axis] - 1) * dilations[axis] + 1
        before, after = _padding(size[axis], span, strides[axis], auto_pad, pads, axis, rank)
        if before is None or after is None:
            return None
        given.append(after)
        if ceil_mode and auto_pad in ("NOTSET", ""):
            if size[axis] is None:
                return None
            after = _rounded_up(size[axis] or 0, span, strides[axis], before, after)
        begin.append(before)
        end.append(after)
    return Window(tuple(kernel), strides, dilations, tuple(begin), tuple(end), tuple(given))


def window_over(x: Tensor, kernel: Sequence[int], **attributes: Any) -> Window:
    """The windows over the spatial axes of a tensor, [N, C, d1, ..., dn]."""
    found = window(x.shape[2:], kernel, **attributes)
    assert found is not None  # no size of a tensor is unknown
    return found


def _padding(
    size: int | None,
    span: int,
    stride: int,
    auto_pad: str,
    pads: Sequence[int] | None,
    axis: int,
    rank: int,
) -> tuple[int | None, int | None]:
    if auto_pad in ("NOTSET", ""):
        return (pads[axis], pads[axis + rank]) if pads else (0, 0)
    if auto_pad == "VALID":
        return 0, 0
    if stride == 1:
        total = span - 1
    elif size is None:
        return None, None
    else:
        total = max((-(-size // stride) - 1) * stride + span - size, 0)
    small, large = total // 2, total - total // 2
    return (small, large) if auto_pad == "SAME_UPPER" else (large, small)


def _rounded_up(size: int, span: int, stride: int, before: int, after: int) -> int:
    count = -(-(size + before + after - span) // stride) + 1
    if (count - 1) * stride >= size + before:
        count -= 1
    return (count - 1) * stride + span - size - before


def padded(x: Tensor, begin: Sequence[int], end: Sequence[int], value: float = 0.0) -> Tensor:
    """X with cells added before and after its last axes (negative: taken away)."""
    if not any(begin) and not any(end):
        return x
    return F.pad(x, torch_pads(begin, end), value=value)


def torch_pads(begin: Sequence[int], end: Sequence[int]) -> list[int]:
    """The pads in torch's order: last axis first, begin and end side by side."""
    return [p for pair in zip(reversed(begin), reversed(end), strict=True) for p in pair]


def spatial(x: Arg) -> tuple[int | None, ...] | None:
    """Sizes of the axes after batch and channel, as far as they are known."""
    return None if x.shape is None else x.shape[2:]
