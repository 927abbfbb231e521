"""Cases of pooling, resampling and boxes."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.converters.importer_models import floats

from .case import Case, Maker, fixed


def _windows(x: np.ndarray, kernel: int, stride: int) -> np.ndarray:
    """[N, C, H, W] to [N, C, h, w, kernel, kernel]."""
    view = np.lib.stride_tricks.sliding_window_view(x, (kernel, kernel), (2, 3))
    return view[:, :, ::stride, ::stride]


def _pool(version: int) -> dict[str, Any]:
    return {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}


def _average_pool(version: int) -> list[Case]:
    def expected(x: np.ndarray) -> np.ndarray:
        ones = np.pad(np.ones_like(x), [(0, 0), (0, 0), (1, 1), (1, 1)])
        x = np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)])
        return _windows(x, 3, 2).sum((-1, -2)) / _windows(ones, 3, 2).sum((-1, -2))

    x = floats(2, 3, 7, 7)
    cases = [Case([x], _pool(version), expected=expected)]
    if version >= 7:
        cases.append(Case([x], {**_pool(version), "count_include_pad": 1}))
    if version >= 10:
        how = {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}
        cases.append(Case([floats(1, 2, 5, 5)], how))
    if version >= 19:
        cases.append(Case([x], {"kernel_shape": [2, 2], "dilations": [2, 3]}))
    same = Case([floats(1, 2, 5)], {"kernel_shape": [3], "strides": [2], "auto_pad": "SAME_LOWER"})
    return cases if version == 1 else [*cases, same]


def _max_pool(version: int) -> list[Case]:
    x = floats(2, 3, 7, 7)
    cases = [Case([x], _pool(version))]
    if version >= 8:
        cases.append(Case([x], {**_pool(version), "storage_order": 1}, outputs=2))
    if version >= 10:
        how = {"kernel_shape": [2, 2], "strides": [2, 2], "dilations": [1, 2], "ceil_mode": 1}
        cases.append(Case([x], how))
    if version >= 12:
        whole = (np.arange(25) * 7 % 25).reshape(1, 1, 5, 5).astype(np.int8)
        cases.append(Case([whole], {"kernel_shape": [2, 2]}))
    same = Case([floats(1, 2, 5)], {"kernel_shape": [3], "strides": [2], "auto_pad": "SAME_UPPER"})
    return [*cases, same]


def _lp_pool(version: int) -> list[Case]:
    def expected(x: np.ndarray) -> np.ndarray:
        return (np.abs(_windows(x, 3, 1)) ** 3).sum((-1, -2)) ** np.float32(1 / 3)

    power = 3.0 if version == 1 else 3
    cases = [Case([floats(2, 3, 7, 7)], {"kernel_shape": [3, 3], "p": power}, expected=expected)]
    if version >= 18:
        how = {"kernel_shape": [2, 2], "strides": [2, 2], "dilations": [1, 2], "ceil_mode": 1}
        cases.append(Case([floats(2, 3, 7, 7)], how))
    return cases


def _global_lp(version: int) -> Case:
    def expected(x: np.ndarray) -> np.ndarray:
        return (np.abs(x) ** 3).sum((2, 3), keepdims=True) ** np.float32(1 / 3)

    power = 3.0 if version == 1 else 3
    return Case([floats(2, 3, 4, 4)], {"p": power}, expected=expected)


def _upsample(version: int) -> list[Case]:
    x = floats(1, 2, 3, 3)
    if version == 1:
        how = {"height_scale": 2.0, "width_scale": 3.0}
        nearest = Case([x], how, expected=lambda x: x.repeat(2, 2).repeat(3, 3))
        return [nearest, Case([x], {**how, "mode": "bilinear"}, expected=_bilinear)]
    modes = ("nearest", "linear")
    if version == 7:
        return [Case([x], {"scales": [1.0, 1.0, 2.0, 3.0], "mode": m}) for m in modes]
    scales = np.array([1, 1, 2, 3], np.float32)
    return [Case([x, scales], {"mode": m}, held=(1,)) for m in modes]


def _bilinear(x: np.ndarray) -> np.ndarray:
    """Twice the rows and three times the columns, each entry at i / scale of the input."""
    for axis, scale in ((2, 2), (3, 3)):
        place = np.minimum(np.arange(3 * scale) / scale, 2)
        left = place.astype(int)
        right, part = np.minimum(left + 1, 2), (place - left).astype(np.float32)
        shape = [-1 if a == axis else 1 for a in range(4)]
        a, b = x.take(left, axis), x.take(right, axis)
        x = a + (b - a) * part.reshape(shape)
    return x


def _resize(version: int) -> list[Case]:
    x, scales = floats(1, 2, 4, 4), np.array([1, 1, 1.5, 0.75], np.float32)
    if version == 10:
        return [Case([x, scales], {"mode": m}, held=(1,)) for m in ("nearest", "linear")]
    roi = np.zeros(0, np.float32) if version == 11 else None
    held = (1, 2) if version == 11 else (2,)
    modes = ("nearest", "linear", "cubic")
    cases = [Case([x, roi, scales], {"mode": m}, held=held) for m in modes]
    none = np.zeros(0, np.float32) if version == 11 else None
    sizes = Case(
        [x, roi, none, np.array([1, 2, 7, 3])],
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
        held=(1, 2, 3) if version == 11 else (3,),
    )
    crop = Case(
        [x, np.float32([0, 0, 0.2, 0.1, 1, 1, 0.9, 1.2]), None, np.array([1, 2, 3, 3])]
        if version > 11
        else [x, np.float32([0, 0, 0.2, 0.1, 1, 1, 0.9, 1.2]), none, np.array([1, 2, 3, 3])],
        {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize"},
        held=(1, 2, 3) if version == 11 else (1, 3),
    )
    return [*cases, sizes, crop]


def _roi_align(version: int) -> list[Case]:
    operands = [floats(1, 2, 8, 8), np.array([[0.5, 0.5, 5.5, 6.5]], np.float32), np.array([0])]
    how = {"output_height": 2, "output_width": 3, "sampling_ratio": 2}
    mean = Case(operands, how, idle=(1,), expected=_roi_means if version == 22 else None)
    largest = Case(operands, {**how, "mode": "max"}, idle=(1,))
    return [mean] if version == 22 else [mean, largest]


def _roi_means(x: np.ndarray, rois: np.ndarray, _: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 bilinear samples in each of 2 x 3 bins of the box 0..5 by 0..6."""
    rows = (np.arange(4) + 0.5) * 6 / 4
    columns = (np.arange(6) + 0.5) * 5 / 6
    hat_r = np.maximum(0, 1 - np.abs(rows[:, None] - np.arange(8)))
    hat_c = np.maximum(0, 1 - np.abs(columns[:, None] - np.arange(8)))
    samples = np.einsum("rh,cw,nkhw->nkrc", hat_r, hat_c, x)
    return samples.reshape(1, 2, 2, 2, 3, 2).mean((3, 5)).astype(np.float32)


def _max_roi_pool(version: int) -> Case:
    def expected(x: np.ndarray, rois: np.ndarray) -> np.ndarray:
        # rows 0 to 6 and columns 0 to 5, in halves that share an entry where they do not divide
        rows, columns = ((0, 4), (3, 7)), ((0, 3), (3, 6))
        y = [[x[0, :, a:b, c:d].max((1, 2)) for c, d in columns] for a, b in rows]
        return np.array(y).transpose(2, 0, 1)[None]

    rois = np.array([[0, 0, 0, 5, 6]], np.float32)
    return Case([floats(1, 2, 8, 8), rois], {"pooled_shape": [2, 2]}, expected=expected, idle=(1,))


def _grid_sample(version: int) -> list[Case]:
    names = ("bilinear", "bicubic") if version < 20 else ("linear", "cubic")
    operands = [floats(1, 2, 4, 4), floats(1, 3, 3, 2, low=-1.0)]
    near = Case(operands, {"mode": "nearest", "padding_mode": "border"}, idle=(1,))
    linear = Case(operands, {"mode": names[0], "align_corners": 1})
    return [near, linear, Case(operands, {"mode": names[1], "padding_mode": "reflection"})]


def _deform_conv(version: int) -> Case:
    return Case(
        [floats(1, 2, 5, 5), floats(3, 2, 2, 2, seed=1), floats(1, 8, 4, 4, seed=2),
         floats(3, seed=3), floats(1, 4, 4, 4, seed=4, low=0.0)],
        {"kernel_shape": [2, 2], "pads": [0, 0, 0, 0]},
        held=(1, 3),
    )  # fmt: skip


CASES: dict[str, Maker] = {
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "LpPool": _lp_pool,
    "GlobalAveragePool": fixed(floats(2, 3, 4, 4)),
    "GlobalMaxPool": fixed(floats(2, 3, 4, 4)),
    "GlobalLpPool": _global_lp,
    "MaxUnpool": fixed(
        floats(1, 1, 2, 2), np.array([[[[0, 3], [8, 15]]]]), kernel_shape=[2, 2], strides=[2, 2]
    ),
    "Upsample": _upsample,
    "Resize": _resize,
    "GridSample": _grid_sample,
    "RoiAlign": _roi_align,
    "MaxRoiPool": _max_roi_pool,
    "NonMaxSuppression": fixed(
        floats(1, 6, 4, low=0.0), floats(1, 2, 6, low=0.0), np.array([3]), np.float32([0.3]),
        held_=(2, 3),
    ),
    "DeformConv": _deform_conv,
}  # fmt: skip
