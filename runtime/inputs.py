"""Inputs of the declared types and shapes, for timing."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

Array = NDArray[Any]
_DTYPES = {
    "tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16,
    "tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8, "tensor(bool)": np.bool_, "tensor(int16)": np.int16,
    "tensor(uint16)": np.uint16, "tensor(uint32)": np.uint32, "tensor(uint64)": np.uint64,
}  # fmt: skip


def random_inputs(sess: ort.InferenceSession, rows: int = 1, seed: int = 0) -> dict[str, Array]:
    """Inputs of the declared types and shapes; free axes: `rows` at the front, 1 elsewhere."""
    rng = np.random.default_rng(seed)
    feeds: dict[str, Array] = {}
    for i in sess.get_inputs():
        free = [rows] + [1] * 16
        shape = [d if isinstance(d, int) and d > 0 else free[k] for k, d in enumerate(i.shape)]
        dtype = np.dtype(_DTYPES.get(i.type, np.float32))
        if dtype.kind == "f":
            feeds[i.name] = rng.random(shape, np.float32).astype(dtype)
        else:
            feeds[i.name] = rng.integers(0, 2, shape).astype(dtype)
    return feeds


def shapes_are_known(sess: ort.InferenceSession) -> bool:
    """Whether only the first axis of every input is free, so that random inputs are typical."""
    return all(isinstance(d, int) and d > 0 for i in sess.get_inputs() for d in list(i.shape)[1:])
