"""Inputs drawn at random from what a model declares: what is left where a user has no data.

It is the weak mode: a net is only kept right where its inputs lie, and random ones lie elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from dns_onnx.config import Preprocess
from dns_onnx.data import Batch
from dns_onnx.errors import DataError
from dns_onnx.preprocess import InputSpec, prepare
from dns_onnx.runtime.batching import session_feeding

Array = NDArray[Any]
ROWS = 1024
# Sizes to try for what a model leaves open.  A sequence of one step, or an image of one pixel,
# would leave most of a net without a task.
LENGTHS = (16, 64, 256, 512, 1024, 4096, 16000, 8, 4, 2, 1)
SIDES = (64, 128, 224, 256, 320, 512, 32, 16, 8, 4, 2, 1)
WEAK = (
    "No training data are given: the net sees random inputs of the declared types and shapes, and "
    "without --val and --eval nothing else judges it. "
    "That is the weak mode; judge the result on inputs of the real kind before using it."
)


def sized(specs: Sequence[InputSpec], session: ort.InferenceSession) -> tuple[list[InputSpec], str]:
    """The inputs with sizes for what the model leaves open, and these in words.

    The first of some sizes that it runs on; all open axes get the same, but where a name says
    otherwise ("past + 1").
    Raises DataError where it runs on none.
    """
    if not any(is_open(s) for s in specs):
        return list(specs), ""
    names = {i.name: i.shape for i in session.get_inputs()}
    sides = any(len(s.row) > 2 and s.row.count(None) == 2 for s in specs)
    for size in SIDES if sides else LENGTHS:
        found = [_of_size(s, names[s.name], size) for s in specs]
        if _runs(session, found):
            return found, _taken(specs, found)
    wanted = {s.name: ["*" if d is None else d for d in s.shape or ()] for s in specs if is_open(s)}
    raise DataError(
        f"random: expected sizes that the model runs on for what it leaves open, {wanted}, found "
        "none; give them (--shape NAME=1x16), or real inputs (--train)"
    )


def _taken(specs: Sequence[InputSpec], found: Sequence[InputSpec]) -> str:
    shapes = [
        f"--shape {s.name}={'x'.join(str(d or 1) for d in s.shape or ())}"
        for s, before in zip(found, specs, strict=True)
        if is_open(before)
    ]
    return f"Sizes that the model leaves open were taken as {' '.join(shapes)}."


def is_open(spec: InputSpec) -> bool:
    """Whether a row of an input has axes without a size."""
    return None in spec.row


def _of_size(spec: InputSpec, names: Sequence[int | str | None], size: int) -> InputSpec:
    """An input whose open axes, but the one that counts rows, have a size."""
    if spec.shape is None:
        return spec

    def of(name: int | str | None) -> int:
        terms = [t.strip() for t in str(name).split("+")]
        return sum(int(t) if t.isdigit() else size for t in terms)

    shape = tuple(
        d if d is not None or i == spec.axis else of(names[i]) for i, d in enumerate(spec.shape)
    )
    return replace(spec, shape=shape)


def _runs(session: ort.InferenceSession, specs: Sequence[InputSpec]) -> bool:
    """Whether the model runs on a row of these shapes, and gives anything."""
    how, quiet = session_feeding(session), ort.RunOptions()
    quiet.log_severity_level = 4
    names = [s.name for s in specs]
    try:
        rows = DrawnDataset(specs, Preprocess()).take(np.arange(1)).inputs
        found = session.run(None, how.first(rows, names), quiet)
    except Exception:  # ONNX Runtime's exceptions share no base of their own
        return False
    return all(y.size for y in found if isinstance(y, np.ndarray) and y.dtype.kind == "f")


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
