"""Inputs drawn at random from what a model declares: what is left where a user has no data.

It is the weak mode: a net is only kept right where its inputs lie, and random ones lie elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dns_onnx.config import Preprocess
from dns_onnx.data import Batch
from dns_onnx.errors import DataError
from dns_onnx.preprocess import InputSpec, prepare

Array = NDArray[Any]
ROWS = 1024
WEAK = (
    "No data were given: training and check saw random inputs of the declared types and shapes. "
    "That is the weak mode; judge the result on inputs of the real kind before using it."
)


class DrawnDataset:
    """Rows that are functions of the seed and their number.

    rows: how many there are.  low, high: the range of float inputs, where it is known better than
    the model says.
    """

    def __init__(
        self, specs: Sequence[InputSpec], preprocess: Preprocess, *, rows: int = ROWS,
        seed: int = 0, low: float | None = None, high: float | None = None,
    ) -> None:  # fmt: skip
        if rows < 1 or (low is None) != (high is None):
            raise DataError("random: expected rows above 0, and both of low and high or none")
        self.specs, self.preprocess, self.rows, self.seed = list(specs), preprocess, rows, seed
        self.range = None if low is None or high is None else (low, high)

    def __len__(self) -> int:
        return self.rows

    def take(self, rows: NDArray[np.int64]) -> Batch:
        raw = {}
        for index, spec in enumerate(self.specs):
            # an input that no axis of counts rows is drawn once: all rows of a batch share it
            numbers = rows[:1] * 0 if spec.axis is None else rows
            drawn = [self._drawn(spec, np.random.default_rng([self.seed, index, int(r)]))
                     for r in numbers]  # fmt: skip
            raw[spec.name] = np.stack(drawn)
        return Batch(prepare(raw, self.specs, self.preprocess, "random"), {})

    def _drawn(self, spec: InputSpec, rng: np.random.Generator) -> Array:
        """One row of an input."""
        shape = tuple(size or 1 for size in spec.row)
        draw = spec.draw
        if draw.value is not None:
            return np.full(shape, draw.value, spec.dtype)
        if spec.dtype.kind != "f":
            least, above = int(draw.low or 0), int(2 if draw.high is None else draw.high)
            return rng.integers(least, above, shape).astype(spec.dtype)
        low, high = self.range or (draw.low, draw.high)
        if _is_image(shape):
            low, high = (0.0, 1.0) if low is None or high is None else (low, high)
            return (low + (high - low) * _image(shape, rng)).astype(spec.dtype)
        if low is None or high is None:
            return rng.standard_normal(shape).astype(spec.dtype)
        return rng.uniform(low, high, shape).astype(spec.dtype)


def _is_image(row: tuple[int, ...]) -> bool:
    return len(row) == 3 and min(row[0], row[2]) in (1, 3, 4) and sorted(row)[1] > 4


def _image(row: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Patches of several sizes, from 0 to 1: white noise would average out in a net."""
    axes = (1, 2) if row[0] <= row[2] else (0, 1)
    total = np.zeros(row)
    for patch in (1, 4, 16):
        coarse = [-(-n // patch) if a in axes else n for a, n in enumerate(row)]
        values = rng.random(coarse)
        for a in axes:
            values = np.repeat(values, patch, axis=a)
        total += values[tuple(slice(n) for n in row)]
    return total / 3
