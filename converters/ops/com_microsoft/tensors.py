"""Operators that ai.onnx took over later, or never did."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dns_onnx.converters.ops.com_microsoft.base import contrib
from dns_onnx.converters.ops.conv import conv_transpose
from dns_onnx.converters.ops.index import gather_nd, trilu
from dns_onnx.converters.ops.tensor import pad, range_
from dns_onnx.converters.ops.vision import grid_sample
from dns_onnx.converters.ops.widths import scalar

# the same functions as in ai.onnx
contrib("GatherND")(gather_nd)
contrib("GridSample")(grid_sample)
contrib("Pad", static=("pads",), literal=("constant_value",))(pad)
contrib("Range", static=("start", "limit", "delta"), differentiable=False)(range_)
contrib("Trilu", static=("k",))(trilu)


@contrib("ExpandDims", static=("axis",))
def expand_dims(x: Tensor, axis: Any) -> Tensor:
    """X with an axis of size 1 more.  Source: ONNX Runtime contrib operators, ExpandDims."""
    return x.unsqueeze(int(scalar(axis)))


@contrib("Unique", multiple=True, differentiable=False)
def unique(x: Tensor, *, outputs_: int = 1) -> tuple[Tensor, ...]:
    """The different entries in order of appearance, each entry's place among them, the counts.

    x: [N].  Source: ONNX Runtime contrib operators, Unique.
    """
    values, inverse, counts = torch.unique(x, return_inverse=True, return_counts=True)
    places = torch.arange(x.shape[0], device=x.device)
    first = torch.full_like(counts, x.shape[0]).scatter_reduce(0, inverse, places, "amin")
    order = first.argsort()
    return (values[order], order.argsort()[inverse], counts[order])[:outputs_]


@contrib("Inverse")
def inverse(x: Tensor) -> Tensor:
    """The inverses of square matrices.  Source: ONNX Runtime contrib operators, Inverse."""
    y: Tensor = torch.linalg.inv(x)
    return y


@contrib("CDist")
def cdist(a: Tensor, b: Tensor, *, metric: str = "sqeuclidean") -> Tensor:
    """Distances (squared: metric "sqeuclidean") of each row of A to each row of B.

    a: [M, K].  b: [N, K].  Source: ONNX Runtime contrib operators, CDist.
    """
    squares = (a.unsqueeze(1) - b).square().sum(-1)
    return squares if metric == "sqeuclidean" else squares.sqrt()


@contrib("UnfoldTensor")
def unfold_tensor(x: Tensor, *, size: int, dim: int = -1, step: int = 1) -> Tensor:
    """Windows along an axis, as a further last axis.

    Source: ONNX Runtime contrib operators, UnfoldTensor.
    """
    return x.unfold(dim, size, step)


@contrib("MatMulInteger16", differentiable=False)
def matmul_integer16(a: Tensor, b: Tensor) -> Tensor:
    """A @ B of 16-bit integers as int32.  Source: ONNX Runtime contrib operators."""
    return (a.double() @ b.double()).to(torch.int32)


@contrib("ConvTransposeWithDynamicPads", prunable=("w",), bias="b", static=("pads",))
def conv_transpose_with_dynamic_pads(
    x: Tensor,
    w: Tensor,
    pads: Sequence[int] | None = None,
    b: Tensor | None = None,
    **attributes: Any,
) -> Tensor:
    """ConvTranspose with its padding as an operand; attributes: those of ConvTranspose.

    Source: ONNX Runtime contrib operators, ConvTransposeWithDynamicPads.
    """
    return conv_transpose(x, w, b, pads=pads, **attributes)


@contrib("CropAndResize", static=("crop_size",), constant=("rois",))
def crop_and_resize(
    x: Tensor,
    rois: Tensor,
    batch_indices: Tensor,
    crop_size: Sequence[int],
    *,
    extrapolation_value: float = 0.0,
    mode: str = "bilinear",
) -> Tensor:
    """Boxes of images, sampled to one size.

    x: [N, C, H, W].  rois: [R, 4], y1, x1, y2, x2 in units of the image.  Returns [R, C, *crop].
    Source: ONNX Runtime contrib operators, CropAndResize.
    """
    picked = x[batch_indices.long()]
    lost: Any = False
    for axis, crop in ((2, int(crop_size[0])), (3, int(crop_size[1]))):
        start, end = rois[:, axis - 2], rois[:, axis]
        steps = torch.arange(crop, device=x.device) / max(crop - 1, 1)
        part = steps if crop > 1 else torch.full_like(steps, 0.5)
        last = x.shape[axis] - 1
        where = (start[:, None] + (end - start)[:, None] * part) * last
        outside = (where < 0) | (where > last)
        shape = [where.shape[0], 1, 1, 1]
        shape[axis] = crop
        lost = lost | outside.reshape(shape)
        picked = _sampled(picked, where.clamp(0, last).reshape(shape), axis, mode)
    return torch.where(lost, torch.full_like(picked, extrapolation_value), picked)


def _sampled(x: Tensor, where: Tensor, axis: int, mode: str) -> Tensor:
    """X read at places between the entries of an axis; where: broadcasts to the result."""
    shape = list(x.shape)
    shape[axis] = where.shape[axis]

    def at(places: Tensor) -> Tensor:
        return x.gather(axis, places.long().expand(shape))

    if mode != "bilinear":
        return at(where.round())
    left = where.floor()
    before, after = at(left), at(where.ceil())
    return before + (after - before) * (where - left)
