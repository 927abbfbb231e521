"""From stored rows to what a model input takes: scaled, laid out, cast; and images moved about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dns_onnx.config import Preprocess
from dns_onnx.converters.ranges import ANY, Draw
from dns_onnx.errors import DataError

Array = NDArray[Any]


@dataclass(frozen=True)
class InputSpec:
    """One model input: its name, NumPy dtype, and shape with None where the axis is free.

    axis: the one that counts rows; None where no axis does and the input is whole.
    draw: the values that it may take, as far as the model says.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...] | None
    axis: int | None = 0
    draw: Draw = ANY

    @property
    def row(self) -> tuple[int | None, ...]:
        """The shape of one row of it."""
        shape = self.shape or ()
        return shape if self.axis is None else shape[: self.axis] + shape[self.axis + 1 :]


def prepare(
    raw: Mapping[str, Array], specs: Sequence[InputSpec], preprocess: Preprocess, where: str
) -> dict[str, Array]:
    """Raw rows as the model wants them: preprocessed, cast, and reshaped where only axes differ."""
    chosen = preprocess.input or specs[0].name
    if chosen not in {s.name for s in specs}:
        raise DataError(
            f"preprocess.input: expected one of {[s.name for s in specs]}, got '{chosen}'"
        )
    ready = {}
    for spec in specs:
        x = raw[spec.name]
        if spec.name == chosen:
            x = _normalise(x, preprocess)
        ready[spec.name] = _cast(_fit(x, spec, where), spec, where)
    return ready


def _cast(x: Array, spec: InputSpec, where: str) -> Array:
    """The rows in the input's type; fractions do not become integers without a word."""
    fraction = spec.dtype.kind in "iu" and x.dtype.kind == "f" and (x % 1 != 0).any()
    if fraction:
        raise DataError(
            f"{where}: '{spec.name}': expected {spec.dtype} rows, got {x.dtype} with fractions"
        )
    return x.astype(spec.dtype, copy=False)


def _normalise(x: Array, p: Preprocess) -> Array:
    """`(x * scale - mean) / std` in float32 and channels first; untouched where p says nothing."""
    if p.layout == "nhwc":
        x = np.moveaxis(x, -1, 1)
    if (p.scale, p.mean, p.std) == (1.0, 0.0, 1.0):
        return x
    x = x.astype(np.float32) * np.float32(p.scale)
    if p.mean == 0.0 and p.std == 1.0:
        return x
    axes = (1, -1) + (1,) * (x.ndim - 2)
    mean = np.asarray(p.mean, np.float32)
    std = np.asarray(p.std, np.float32)
    for name, m in (("mean", mean), ("std", std)):
        if m.ndim and (x.ndim < 2 or len(m) != x.shape[1]):
            raise DataError(
                f"preprocess.{name}: expected one number, or one for each of "
                f"{x.shape[1] if x.ndim > 1 else 0} channels, got {len(m)}"
            )
    mean, std = (m.reshape(axes) if m.ndim else m for m in (mean, std))
    return (x - mean) / std


def _fit(x: Array, spec: InputSpec, where: str) -> Array:
    """Reshape rows to the model's input where that only adds, drops or merges axes."""
    if spec.shape is None or (len(spec.shape) == 0 and x.ndim == 1):
        return x
    want, have = spec.row, x.shape[1:]
    if len(have) == len(want) and all(w in (None, h) for h, w in zip(have, want, strict=True)):
        return x
    if None not in want and int(np.prod(have)) == int(np.prod([w or 1 for w in want])):
        return x.reshape(len(x), *[int(w or 1) for w in want])
    if len(have) == len(want) + 1 and spec.axis is not None and have[spec.axis] == 1:
        return _fit(x.squeeze(spec.axis + 1), spec, where)  # each row came as a batch of one
    wanted = ["*" if w is None else w for w in want]
    raise DataError(
        f"{where}: '{spec.name}': expected rows of shape {wanted}, got {list(have)}; "
        "reshape the data, or set preprocess.layout"
    )


def shifts(rows: int, pixels: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """How far `shifted` moves each row, drawn: [2, rows], from 0 to 2 * pixels."""
    return rng.integers(0, 2 * pixels + 1, (2, rows))


def shifted(images: Array, pixels: int, moves: NDArray[np.int64]) -> Array:
    """Each image moved by up to `pixels` along both of its last two axes, edges repeated.

    images: [N, ..., H, W].  moves: [2, N], from 0 to 2 * pixels; `pixels` leaves an image in place.
    Returns the same shape as images.
    """
    n, (height, width) = len(images), images.shape[-2:]
    pad = [(0, 0)] * (images.ndim - 2) + [(pixels, pixels)] * 2
    padded = np.pad(images, pad, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(-2, -1))
    return np.ascontiguousarray(windows[np.arange(n), ..., moves[0], moves[1], :, :])
