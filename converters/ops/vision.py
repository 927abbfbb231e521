"""Regions, grids and boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dns_onnx.converters.ops.widths import scalar
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
        return F.grid_sample(x, grid, kind, padding_mode, bool(align_corners))
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


def _linear_read(x: Tensor, batch: Tensor, y: Tensor, x_at: Tensor) -> Tensor:
    """Entries of [N, C, H, W] at real places by linear interpolation: [R, C, ...].

    batch: [R].  y, x_at: [R, ...].  More than one cell outside the image reads zero.
    """
    height, width = x.shape[2:]
    empty = (y < -1) | (y > height) | (x_at < -1) | (x_at > width)
    y, x_at = y.clamp(min=0), x_at.clamp(min=0)
    top, left = y.floor().clamp(max=height - 1), x_at.floor().clamp(max=width - 1)
    below, right = (top + 1).clamp(max=height - 1), (left + 1).clamp(max=width - 1)
    y = torch.where(top >= height - 1, top, y)
    x_at = torch.where(left >= width - 1, left, x_at)
    dy, dx = y - top, x_at - left
    rows = batch.reshape((-1,) + (1,) * (y.dim() - 1))

    def read(a: Tensor, b: Tensor) -> Tensor:
        picked = x[rows, :, a.long(), b.long()]
        return picked.movedim(-1, 1)

    def spread(weight: Tensor) -> Tensor:
        return weight.masked_fill(empty, 0).unsqueeze(1)

    corners = [
        (read(top, left), (1 - dy) * (1 - dx)),
        (read(top, right), (1 - dy) * dx),
        (read(below, left), dy * (1 - dx)),
        (read(below, right), dy * dx),
    ]
    return torch.stack([value * spread(weight) for value, weight in corners])


@op("RoiAlign", 10, 16, 22, constant=("rois",))
def roi_align(
    x: Tensor,
    rois: Tensor,
    batch_indices: Tensor,
    *,
    coordinate_transformation_mode: str | None = None,
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
    version_: int = 22,
) -> Tensor:
    """Regions of an image resampled to one size.

    x: [N, C, H, W].  rois: [R, 4] (x1, y1, x2, y2).  Returns [R, C, output_height, output_width].
    Source: ONNX operators, RoiAlign 10-22.
    """
    pixel = coordinate_transformation_mode or (
        "output_half_pixel" if version_ < 16 else "half_pixel"
    )
    shift = 0.5 if pixel == "half_pixel" else 0.0
    boxes = rois * spatial_scale - shift
    pieces = []
    for index in range(rois.shape[0]):
        x1, y1, x2, y2 = boxes[index].unbind()
        width, height = x2 - x1, y2 - y1
        if pixel != "half_pixel":
            width, height = width.clamp(min=1.0), height.clamp(min=1.0)
        bin_h, bin_w = height / output_height, width / output_width
        rows = sampling_ratio or max(int(torch.ceil(bin_h)), 1)
        columns = sampling_ratio or max(int(torch.ceil(bin_w)), 1)
        ys = y1 + _samples(output_height, rows, bin_h, x)
        xs = x1 + _samples(output_width, columns, bin_w, x)
        grid_y = ys.reshape(1, -1, 1).expand(1, ys.numel(), xs.numel())
        grid_x = xs.reshape(1, 1, -1).expand(1, ys.numel(), xs.numel())
        corners = _linear_read(x, batch_indices[index : index + 1], grid_y, grid_x)
        values = corners.amax(0) if mode == "max" else corners.sum(0)
        cells = values.reshape(1, x.shape[1], output_height, rows, output_width, columns)
        pieces.append(cells.amax((3, 5)) if mode == "max" else cells.mean((3, 5)))
    if not pieces:
        return x.new_zeros(0, x.shape[1], output_height, output_width)
    return torch.cat(pieces)


def _samples(count: int, each: int, size: Tensor, like: Tensor) -> Tensor:
    """Places of `each` samples in each of `count` bins of a size."""
    bins = torch.arange(count, device=like.device, dtype=like.dtype).reshape(-1, 1)
    inner = (torch.arange(each, device=like.device, dtype=like.dtype) + 0.5) / each
    return ((bins + inner) * size).reshape(-1)


@op("MaxRoiPool", 1, 22, constant=("rois",))
def max_roi_pool(
    x: Tensor, rois: Tensor, *, pooled_shape: Sequence[int], spatial_scale: float = 1.0
) -> Tensor:
    """The largest entry of each cell of each region.

    x: [N, C, H, W].  rois: [R, 5] (batch, x1, y1, x2, y2).  Returns [R, C, *pooled_shape].
    Source: ONNX operators, MaxRoiPool 1-22.
    """
    height, width = x.shape[2:]
    pieces = []
    for roi in rois.detach().cpu().tolist():
        x1, y1, x2, y2 = (_half_up(v * spatial_scale) for v in roi[1:])
        image = x[int(roi[0])]
        rows = _cells(y1, y2, pooled_shape[0], height)
        columns = _cells(x1, x2, pooled_shape[1], width)
        pieces.append(
            torch.stack(
                [torch.stack([_largest(image, r, c) for c in columns], -1) for r in rows], -2
            )
        )
    return torch.stack(pieces) if pieces else x.new_zeros(0, x.shape[1], *pooled_shape)


def _half_up(value: float) -> int:
    return int(value + 0.5) if value >= 0 else -int(-value + 0.5)


def _cells(low: int, high: int, count: int, size: int) -> list[tuple[int, int]]:
    length = max(high - low + 1, 1)
    edges = []
    for i in range(count):
        start = low + (i * length) // count
        end = low + -(-(i + 1) * length // count)
        edges.append((min(max(start, 0), size), min(max(end, 0), size)))
    return edges


def _largest(image: Tensor, rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
    cell = image[:, rows[0] : rows[1], columns[0] : columns[1]]
    return cell.amax((1, 2)) if cell.numel() else image.new_zeros(image.shape[0])


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


@op(
    "NonMaxSuppression",
    10,
    11,
    static=("max_output_boxes_per_class", "iou_threshold", "score_threshold"),
    differentiable=False,
)
def non_max_suppression(
    boxes: Tensor,
    scores: Tensor,
    max_output_boxes_per_class: Any = 0,
    iou_threshold: Any = 0.0,
    score_threshold: Any = None,
    *,
    center_point_box: int = 0,
) -> Tensor:
    """The best boxes of each class that do not overlap a better one.

    boxes: [B, N, 4].  scores: [B, C, N].  Returns [selected, 3] (batch, class, box), int64.
    Source: ONNX operators, NonMaxSuppression 10-11.
    """
    most = int(scalar(max_output_boxes_per_class) or 0)
    overlap = float(scalar(iou_threshold) or 0.0)
    least = None if score_threshold is None else float(scalar(score_threshold))
    rows: list[tuple[int, int, int]] = []
    data, values = boxes.detach().cpu(), scores.detach().cpu()
    for batch in range(values.shape[0]):
        corners = _corner_boxes(data[batch], center_point_box)
        for label in range(values.shape[1]):
            kept = _suppressed(corners, values[batch, label], most, overlap, least)
            rows.extend((batch, label, box) for box in kept)
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, 3).to(boxes.device, non_blocking=True)


def _corner_boxes(boxes: Tensor, centred: int) -> Tensor:
    """Boxes as (low, low, high, high)."""
    if centred:
        middle, half = boxes[:, :2], boxes[:, 2:] / 2
        return torch.cat([middle - half, middle + half], 1)
    low = torch.minimum(boxes[:, :2], boxes[:, 2:])
    return torch.cat([low, torch.maximum(boxes[:, :2], boxes[:, 2:])], 1)


def _suppressed(
    boxes: Tensor, scores: Tensor, most: int, overlap: float, least: float | None
) -> list[int]:
    order = scores.sort(descending=True, stable=True).indices
    if least is not None:
        order = order[scores[order] > least]
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept: list[int] = []
    while order.numel() and len(kept) < most:
        best = int(order[0])
        kept.append(best)
        rest = order[1:]
        low = torch.maximum(boxes[rest, :2], boxes[best, :2])
        high = torch.minimum(boxes[rest, 2:], boxes[best, 2:])
        common = (high - low).clamp(min=0).prod(1)
        ratio = common / (area[rest] + area[best] - common)
        order = rest[~(ratio > overlap)]
    return kept
