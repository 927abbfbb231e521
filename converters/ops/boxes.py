"""Regions of images and detection boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dns_onnx.converters.ops.widths import scalar
from dns_onnx.converters.registry import op


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
