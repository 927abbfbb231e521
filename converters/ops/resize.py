"""Resampling: Resize and Upsample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dns_onnx.converters.registry import op

Floats = Sequence[float]


@dataclass(frozen=True)
class Rule:
    """How the axes of a Resize node are sampled; hashable, so that its taps can be kept."""

    mode: str
    transform: str
    nearest: str
    cubic_a: float
    exclude_outside: bool
    antialias: bool
    extrapolation: float


@op("Upsample", 7, 9, 10, static=("scales",))
def upsample(x: Tensor, scales: Floats, *, mode: str = "nearest") -> Tensor:
    """X with each axis sampled `scale` times as densely.  Source: ONNX operators, Upsample 7-10."""
    return resize_10(x, scales, mode=mode)


@op("Upsample", 1)
def upsample_1(
    x: Tensor, *, width_scale: float, height_scale: float, mode: str = "nearest"
) -> Tensor:
    """[N, C, H, W] with the last two axes sampled more densely.

    Source: ONNX operators, Upsample 1.
    """
    kind = "linear" if mode == "bilinear" else mode
    return resize_10(x, [1.0, 1.0, height_scale, width_scale], mode=kind)


@op("Resize", 10, static=("scales",))
def resize_10(x: Tensor, scales: Floats, *, mode: str = "nearest") -> Tensor:
    """X with each axis sampled `scale` times as densely.

    mode: "nearest" (the entry before, or the one after on an axis that shrinks) or "linear".
    Source: ONNX operators, Resize 10.
    """
    rule = Rule(mode, "asymmetric", "simple", -0.75, False, False, 0.0)
    sizes = [math.floor(d * s) for d, s in zip(x.shape, scales, strict=True)]
    return _resample(x, list(range(x.dim())), sizes, list(scales), None, rule)


@op("Resize", 11, 13, 18, 19, static=("roi", "scales", "sizes"))
def resize(
    x: Tensor,
    roi: Floats | None = None,
    scales: Floats | None = None,
    sizes: Sequence[int] | None = None,
    *,
    antialias: int = 0,
    axes: Sequence[int] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Tensor:
    """X sampled anew along its axes, to the given scales or sizes.

    Source: ONNX operators, Resize 11-19.
    """
    chosen = list(range(x.dim())) if axes is None else [a % x.dim() for a in axes]
    given = [x.shape[a] for a in chosen]
    if sizes:
        wanted, factors = _aspect(given, list(sizes), keep_aspect_ratio_policy)
    else:
        factors = [float(s) for s in scales or ()]
        wanted = [math.floor(d * s) for d, s in zip(given, factors, strict=True)]
    rule = Rule(
        mode,
        coordinate_transformation_mode,
        nearest_mode,
        cubic_coeff_a,
        bool(exclude_outside),
        bool(antialias),
        extrapolation_value,
    )
    return _resample(x, chosen, wanted, factors, roi, rule)


def _aspect(given: list[int], sizes: list[int], policy: str) -> tuple[list[int], list[float]]:
    """Output sizes and scales for the wanted sizes."""
    scales = [w / d if d else 1.0 for w, d in zip(sizes, given, strict=True)]
    if policy == "stretch":
        return sizes, scales
    scale = min(scales) if policy == "not_larger" else max(scales)
    return [math.floor(scale * d + 0.5) for d in given], [scale] * len(given)


def _resample(
    x: Tensor,
    axes: list[int],
    sizes: list[int],
    scales: list[float],
    roi: Floats | None,
    rule: Rule,
) -> Tensor:
    quick = _by_torch(x, axes, sizes, scales, rule)
    if quick is not None:
        return quick
    crop = rule.transform == "tf_crop_and_resize"
    dtype = x.dtype
    work = x if rule.mode == "nearest" or x.is_floating_point() else x.float()
    outside: Tensor | None = None
    for i, axis in enumerate(axes):
        box = (float(roi[i]), float(roi[i + len(axes)])) if crop and roi else (0.0, 1.0)
        if sizes[i] == x.shape[axis] and scales[i] == 1.0 and not crop:
            continue
        places, weights, lost = _on_device(x.shape[axis], sizes[i], scales[i], box, rule, x.device)
        shape = [1] * x.dim()
        shape[axis] = -1
        parts = [
            work.index_select(axis, places[k])
            if rule.mode == "nearest"
            else work.index_select(axis, places[k]) * weights[k].to(work.dtype).reshape(shape)
            for k in range(places.shape[0])
        ]
        work = sum(parts[1:], parts[0])
        if crop:
            gone = lost.reshape(shape)
            outside = gone if outside is None else outside | gone
    if outside is not None:
        work = torch.where(outside, torch.full_like(work, rule.extrapolation), work)
    return work if work.dtype == dtype else torch.round(work).to(dtype)


def _by_torch(
    x: Tensor, axes: list[int], sizes: list[int], scales: list[float], rule: Rule
) -> Tensor | None:
    """Torch's own interpolation where it means the same."""
    fixed = [a for a, s in zip(axes, sizes, strict=True) if a < 2 and s != x.shape[a]]
    if x.dim() not in (3, 4, 5) or fixed or rule.antialias or not x.is_floating_point():
        return None
    target = list(x.shape[2:])
    for axis, size in zip(axes, sizes, strict=True):
        if axis >= 2:
            target[axis - 2] = size
    exact = all(a < 2 or s == x.shape[a] * f for a, s, f in zip(axes, sizes, scales, strict=True))
    if rule.mode == "nearest":
        whole = exact and all(f == int(f) for f in scales)
        same = rule.transform == "asymmetric" and rule.nearest in ("floor", "simple")
        return F.interpolate(x, tuple(target), mode="nearest") if whole and same else None
    if rule.mode != "linear" or rule.exclude_outside or not exact:
        return None
    if rule.transform not in ("half_pixel", "align_corners") or 1 in target:
        return None
    kind = {3: "linear", 4: "bilinear", 5: "trilinear"}[x.dim()]
    corners = rule.transform == "align_corners"
    return F.interpolate(x, tuple(target), mode=kind, align_corners=corners)


@lru_cache(maxsize=256)
def _on_device(
    given: int,
    size: int,
    scale: float,
    box: tuple[float, float],
    rule: Rule,
    device: torch.device,
) -> tuple[Tensor, Tensor, Tensor]:
    """The taps of one axis as tensors, made once for each device."""
    return tuple(torch.from_numpy(a).to(device) for a in _taps(given, size, scale, box, rule))  # type: ignore[return-value]


def _taps(
    given: int, size: int, scale: float, box: tuple[float, float], rule: Rule
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which entries of an axis make up each output entry, and how much.

    Returns places and weights [taps, size], and whether an output lies outside the input.
    """
    where = _coordinates(given, size, scale, box, rule.transform)
    lost = (where < 0) | (where > given - 1)
    if rule.mode == "nearest":
        kind = rule.nearest
        if kind == "simple":
            kind = "ceil" if scale < 1 else "floor"
        return _nearest(where, kind, given)[None], np.ones((1, size)), lost
    offsets, kernel = _kernel(rule, scale)
    left = np.floor(where)
    places = left[None] + offsets[:, None]
    weights = kernel(offsets[:, None] - (where - left)[None])
    if rule.antialias:
        weights = weights / weights.sum(0)
    if rule.exclude_outside:
        weights = np.where((places < 0) | (places >= given), 0.0, weights)
        weights = weights / weights.sum(0)
    return np.clip(places, 0, given - 1).astype(np.int64), weights, lost


def _coordinates(
    given: int, size: int, scale: float, box: tuple[float, float], transform: str
) -> np.ndarray:
    """Where each output entry lies in the input."""
    x = np.arange(size, dtype=np.float64)
    if transform == "asymmetric":
        return x / scale
    if transform == "align_corners":
        # the specification's own code does not round the resized length down here
        length = scale * given
        return x * (given - 1) / (length - 1) if length != 1 else np.zeros(size)
    if transform == "tf_half_pixel_for_nn":
        return (x + 0.5) / scale
    if transform == "tf_crop_and_resize":
        start, end = box
        if size == 1:
            return np.full(1, 0.5 * (start + end) * (given - 1))
        return start * (given - 1) + x * (end - start) * (given - 1) / (size - 1)
    if transform == "pytorch_half_pixel" and size == 1:
        return np.zeros(1)
    where = (x + 0.5) / scale - 0.5
    if transform == "half_pixel_symmetric":
        where = where + given / 2 * (1 - size / (scale * given))
    return where


def _nearest(where: np.ndarray, mode: str, given: int) -> np.ndarray:
    if mode == "round_prefer_floor":
        rounded = np.ceil(where - 0.5)
    elif mode == "round_prefer_ceil":
        rounded = np.floor(where + 0.5)
    else:
        rounded = np.floor(where) if mode == "floor" else np.ceil(where)
    return np.asarray(np.clip(rounded, 0, given - 1)).astype(np.int64)


def _kernel(rule: Rule, scale: float) -> tuple[np.ndarray, Any]:
    """Offsets of the taps from the entry to the left, and their weight at a distance."""
    stretch = min(scale, 1.0) if rule.antialias else 1.0
    reach = 1 if rule.mode == "linear" else 2
    start = math.floor(-reach / stretch) + 1
    offsets = np.arange(start, 2 - start)

    def linear(distance: np.ndarray) -> np.ndarray:
        return np.asarray(np.clip(1 - np.abs(distance * stretch), 0, 1))

    def cubic(distance: np.ndarray) -> np.ndarray:
        a, d = rule.cubic_a, np.abs(distance * stretch)
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        return np.where(d <= 1, near, np.where(d < 2, far, 0.0))

    return offsets, linear if rule.mode == "linear" else cubic
