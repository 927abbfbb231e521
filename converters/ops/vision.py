"""Crops, sampling grids and deformable convolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dns_onnx.converters.ops.windows import window
from dns_onnx.converters.registry import op

_TORCH_MODE = {"linear": "bilinear", "bilinear": "bilinear", "nearest": "nearest"}


def _unnormalised(place: Tensor, size: int, align: int) -> Tensor:
    """[-1, 1] as places among `size` entries."""
    return (place + 1) / 2 * (size - 1) if align else ((place + 1) * size - 1) / 2


def _reflected(place: Tensor, size: int, align: int) -> Tensor:
    low, high = (0.0, size - 1.0) if align else (-0.5, size - 0.5)
    span = high - low
    if span == 0:
        return torch.zeros_like(place)
    folded = (place - low).abs() % (2 * span)
    return low + torch.where(folded > span, 2 * span - folded, folded)


def _picked(x: Tensor, places: Sequence[Tensor], padding_mode: str, align: int) -> Tensor:
    """Entries of X at integer places: [N, C, *places.shape[1:]]."""
    inside: Tensor | None = None
    flat: Tensor | None = None
    for axis, place in enumerate(places):
        size = x.shape[2 + axis]
        if padding_mode == "zeros":
            within = (place >= 0) & (place <= size - 1)
            inside = within if inside is None else inside & within
        elif padding_mode == "reflection":
            place = _reflected(place, size, align)
        index = place.clamp(0, size - 1).round().to(torch.int64)
        flat = index if flat is None else flat * size + index
    assert flat is not None
    n, c = x.shape[:2]
    rows = flat.reshape(n, 1, -1).expand(n, c, -1)
    y = x.reshape(n, c, -1).gather(2, rows).reshape(n, c, *flat.shape[1:])
    return y if inside is None else y * inside.unsqueeze(1)


def _cubic_weights(t: Tensor, a: float = -0.75) -> list[Tensor]:
    """Weights of the four neighbours of a point at distance t from the second."""
    far = [((a * d - 5 * a) * d + 8 * a) * d - 4 * a for d in (t + 1, 2 - t)]
    near = [((a + 2) * d - (a + 3)) * d * d + 1 for d in (t, 1 - t)]
    return [far[0], near[0], near[1], far[1]]


@op("Crop", 1, schema=False)
def crop(x: Tensor, *, border: Sequence[int], scale: Sequence[int] | None = None) -> Tensor:
    """X without its borders, or the window of size `scale` that begins after the first two.

    x: [N, C, H, W].  border: left, top, right, bottom.  scale: height, width.
    Source: experimental operator of ONNX 1.2.
    """
    left, top, right, bottom = border
    height, width = scale or (x.shape[2] - top - bottom, x.shape[3] - left - right)
    return x.narrow(2, top, height).narrow(3, left, width)


@op("GridSample", 16, 20, 22)
def grid_sample(
    x: Tensor,
    grid: Tensor,
    *,
    align_corners: int = 0,
    mode: str = "linear",
    padding_mode: str = "zeros",
) -> Tensor:
    """X read at the places of a grid.

    x: [N, C, d1, ..., dn].  grid: [N, o1, ..., on, n], in [-1, 1], last axis of x first.
    Source: ONNX operators, GridSample 16-22.
    """
    rank = x.dim() - 2
    kind = _TORCH_MODE.get(mode, "cubic")
    if kind != "cubic" and rank in (2, 3):
        wide = torch.promote_types(x.dtype, grid.dtype)  # the two operands' types are free
        read = F.grid_sample(x.to(wide), grid.to(wide), kind, padding_mode, bool(align_corners))
        return read.to(x.dtype)
    places = [
        _unnormalised(grid[..., rank - 1 - axis], x.shape[2 + axis], align_corners)
        for axis in range(rank)
    ]
    return _sampled(x, places, kind, padding_mode, align_corners)


def _sampled(
    x: Tensor, places: list[Tensor], kind: str, padding_mode: str, align_corners: int
) -> Tensor:
    """[N, C, d1, ..., dn] read at real places (one [N, ...] an axis): [N, C, ...]."""
    rank = len(places)
    if kind == "nearest":
        return _picked(x, [torch.round(p) for p in places], padding_mode, align_corners)
    if padding_mode == "border" and kind == "bilinear":
        places = [p.clamp(0, x.shape[2 + i] - 1) for i, p in enumerate(places)]
    lefts = [torch.floor(p) for p in places]
    if kind == "cubic":
        taps = [_cubic_weights(p - left) for p, left in zip(places, lefts, strict=True)]
        first = -1
    else:
        taps = [[1 - (p - left), p - left] for p, left in zip(places, lefts, strict=True)]
        first = 0
    total: Tensor | None = None
    for corner in _corners([len(t) for t in taps]):
        at = [left + (k + first) for left, k in zip(lefts, corner, strict=True)]
        weight = taps[0][corner[0]]
        for axis in range(1, rank):
            weight = weight * taps[axis][corner[axis]]
        part = _picked(x, at, padding_mode, align_corners) * weight.unsqueeze(1).to(x.dtype)
        total = part if total is None else total + part
    assert total is not None
    return total


def _corners(counts: Sequence[int]) -> list[tuple[int, ...]]:
    made: list[tuple[int, ...]] = [()]
    for count in counts:
        made = [(*corner, k) for corner in made for k in range(count)]
    return made


@op("AffineGrid", 20, static=("size",))
def affine_grid(theta: Tensor, size: Sequence[int], *, align_corners: int = 0) -> Tensor:
    """The grid that an affine map makes of an image's own places.

    theta: [N, n, n + 1].  size: [N, C, d1, ..., dn].  Returns [N, d1, ..., dn, n].
    Source: ONNX operators, AffineGrid 20.
    """
    axes = []
    for length in size[2:]:
        places = torch.arange(length, dtype=theta.dtype, device=theta.device)
        if align_corners:
            axes.append(-1 + places * (2 / (length - 1) if length > 1 else 0.0))
        else:
            axes.append((2 * places + 1) / length - 1)
    mesh = torch.meshgrid(*axes, indexing="ij")
    points = torch.stack([*reversed(mesh), torch.ones_like(mesh[0])], -1)
    flat = points.reshape(1, -1, points.shape[-1]) @ theta.transpose(1, 2)
    return flat.reshape(size[0], *size[2:], len(size) - 2)


@op("DeformConv", 19, 22, prunable=("w",), bias="b")
def deform_conv(
    x: Tensor,
    w: Tensor,
    offset: Tensor,
    b: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    offset_group: int = 1,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """Convolution whose taps are moved by offsets and weighted by a mask.

    x: [N, C, H, W].  w: [M, C / group, kh, kw].  offset: [N, offset_group * kh * kw * 2, oh, ow].
    b: [M].  mask: [N, offset_group * kh * kw, oh, ow].  Source: ONNX operators, DeformConv 19-22.
    """
    n, c = x.shape[:2]
    kh, kw = w.shape[2:]
    oh, ow = offset.shape[2:]
    found = window(x.shape[2:], w.shape[2:], strides=strides, dilations=dilations, pads=pads)
    assert found is not None
    base = []
    for axis, count in ((0, oh), (1, ow)):
        taps = torch.arange(w.shape[2 + axis], device=x.device) * found.dilations[axis]
        steps = torch.arange(count, device=x.device) * found.strides[axis] - found.begin[axis]
        base.append((taps.reshape(-1, 1) + steps).to(x.dtype))
    moved = offset.reshape(n, offset_group, kh, kw, 2, oh, ow)
    y = moved[:, :, :, :, 0] + base[0].reshape(1, 1, kh, 1, oh, 1)
    x_at = moved[:, :, :, :, 1] + base[1].reshape(1, 1, 1, kw, 1, ow)
    source = x.reshape(n * offset_group, c // offset_group, *x.shape[2:])
    flat = (n * offset_group, kh * kw * oh, ow)
    places = [y.reshape(flat), x_at.reshape(flat)]
    taps = _sampled(source, places, "bilinear", "zeros", 0)
    taps = taps.reshape(n, offset_group, c // offset_group, kh * kw, oh, ow)
    if mask is not None:
        taps = taps * mask.reshape(n, offset_group, 1, kh * kw, oh, ow)
    columns = taps.reshape(n, group, c // group * kh * kw, oh * ow)
    result = torch.einsum("gmk,ngkp->ngmp", w.reshape(group, w.shape[0] // group, -1), columns)
    result = result.reshape(n, w.shape[0], oh, ow)
    return result if b is None else result + b.reshape(1, -1, 1, 1)
