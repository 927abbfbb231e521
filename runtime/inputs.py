"""Inputs of the declared types and shapes, for timing and comparing."""

from __future__ import annotations

from collections.abc import Sequence
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
# (all free axes, the last one): the sizes to try.
_SIZES = ((1, 1), (8, 8), (1, 8), (64, 64), (1, 64), (1, 256), (1, 512), (1, 4096))
_SIDES = tuple((side, side) for side in (64, 128, 224, 256, 320))  # before these, for images


def random_inputs(
    sess: ort.InferenceSession, rows: int = 1, seed: int = 0, free: int = 1, last: int | None = None
) -> dict[str, Array]:
    """Inputs of the declared types and shapes.

    rows: size of a free first axis.  free: size of the other free axes.  last: of those that are
    an input's last one.
    """
    rng = np.random.default_rng(seed)
    feeds: dict[str, Array] = {}
    for i in sess.get_inputs():
        sizes = [rows, *[free] * len(i.shape)][: len(i.shape)]
        if len(i.shape) > 1 and last is not None:
            sizes[-1] = last
        shape = [
            d if isinstance(d, int) and d > 0 else size
            for d, size in zip(i.shape, sizes, strict=True)
        ]
        dtype = np.dtype(_DTYPES.get(i.type, np.float32))
        if i.type == "tensor(string)":
            feeds[i.name] = np.full(shape, "a", object)
        elif dtype.kind == "f":
            feeds[i.name] = rng.random(shape, np.float32).astype(dtype)
        else:
            feeds[i.name] = rng.integers(0, 2, shape).astype(dtype)
    return feeds


def runnable_inputs(sess: ort.InferenceSession, rows: int = 1, seed: int = 0) -> dict[str, Array]:
    """Random inputs with the smallest free sizes of a few that the model runs on.

    Sound wants hundreds of samples, an image net many pixels (it may run on one, but to no end);
    sizes that leave an output nothing are taken only where all do.  Where it runs on none of them,
    the smallest come back, and the caller meets the error.
    """
    quiet = ort.RunOptions()
    quiet.log_severity_level = 4
    runs: list[dict[str, Array]] = []
    sides = any(len(i.shape) == 4 and len(_free(i.shape)) == 2 for i in sess.get_inputs())
    sizes = (*(_SIDES if sides else ()), *_SIZES)
    for free, last in sizes if not shapes_are_known(sess) else ():
        feeds = random_inputs(sess, rows, seed, free, last)
        try:
            found = sess.run(None, feeds, quiet)
        except Exception:  # ONNX Runtime's exceptions share no base of their own
            continue
        if all(np.size(y) for y in found):
            return feeds
        runs.append(feeds)
    return runs[0] if runs else random_inputs(sess, rows, seed)


def shapes_are_known(sess: ort.InferenceSession) -> bool:
    """Whether only the first axis of every input is free, so that random inputs are typical."""
    return not any(_free(i.shape) for i in sess.get_inputs())


def _free(shape: Sequence[Any]) -> list[int]:
    """The axes behind the first that have no size."""
    return [i for i, d in enumerate(shape) if i and not (isinstance(d, int) and d > 0)]
