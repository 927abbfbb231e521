"""Figures about a model file: what is stored, how small it could be, how often it is right."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

Array = NDArray[Any]


def entropy_bound(size: int, nnz: int, bits_per_value: int = 32) -> float:
    """Bytes that a mask with this many kept entries, and their values, take at the very least.

    `(size * H(nnz / size) + nnz * bits_per_value) / 8` with H the binary entropy in bits: what an
    ideal coder reaches that knows nothing about where the kept entries lie.
    """
    if size == 0:
        return 0.0
    density = nnz / size
    bits = sum(-p * math.log2(p) for p in (density, 1.0 - density) if 0.0 < p < 1.0)
    return (size * bits + nnz * bits_per_value) / 8


def gzip_bytes(pieces: Iterable[bytes]) -> int:
    """Bytes of all pieces together after gzip at level 6, the usual way of shipping zeros."""
    stream = zlib.compressobj(6, wbits=31)  # 31: gzip's own header and window
    return sum(len(stream.compress(piece)) for piece in pieces) + len(stream.flush())


def run(
    session: ort.InferenceSession, inputs: Mapping[str, Array], names: list[str] | None = None
) -> list[Any]:
    """The session's outputs on a batch of any size, whatever batch the model fixes."""
    sizes = {i.shape[0] for i in session.get_inputs() if i.shape}
    piece = sizes.pop() if len(sizes) == 1 else None
    return in_pieces(
        lambda feed: list(session.run(names, dict(feed))),
        inputs,
        piece if isinstance(piece, int) and piece > 0 else None,
    )


def in_pieces(
    compute: Callable[[Mapping[str, Array]], list[Any]],
    inputs: Mapping[str, Array],
    piece: int | None,
) -> list[Any]:
    """Outputs of `compute` on all rows, called with `piece` rows at a time.

    The last piece is filled up with repeated rows, whose results are dropped.
    """
    rows = len(next(iter(inputs.values())))
    if piece is None or piece == rows:
        return compute(inputs)
    parts = [
        compute({k: _filled(x[start : start + piece], piece) for k, x in inputs.items()})
        for start in range(0, rows, piece)
    ]
    return [_joined([p[i] for p in parts], rows) for i in range(len(parts[0]))]


def _filled(x: Array, rows: int) -> Array:
    return x if len(x) == rows else np.concatenate([x, np.repeat(x[-1:], rows - len(x), axis=0)])


def _joined(parts: list[Any], rows: int) -> Any:
    if all(isinstance(p, np.ndarray) and p.ndim for p in parts):
        return np.concatenate(parts)[:rows]
    if all(isinstance(p, list) for p in parts):
        return [item for part in parts for item in part][:rows]
    return parts


def class_output(session: ort.InferenceSession) -> str | None:
    """Name of the output that holds class scores: the first float tensor of rank 2 or more."""
    for output in session.get_outputs():
        if output.type in ("tensor(float)", "tensor(float16)", "tensor(double)"):
            return str(output.name)
    return None


def predicted(session: ort.InferenceSession, inputs: Mapping[str, Array]) -> Array:
    """Predicted class of each row: the highest score, or the model's own label where it gives one.

    Returns int64 [N].
    """
    name = class_output(session)
    if name is not None:
        scores = run(session, inputs, [name])[0]
        return np.asarray(scores.reshape(len(scores), -1).argmax(1))
    labels = run(session, inputs, [session.get_outputs()[0].name])[0]
    return np.asarray(labels).reshape(-1).astype(np.int64)


def error_rate(
    session: ort.InferenceSession, data: Iterable[tuple[Mapping[str, Array], Array]]
) -> tuple[float, int]:
    """(fraction of rows whose predicted class is not their label, rows) over (inputs, labels)."""
    wrong = rows = 0
    for inputs, labels in data:
        wrong += int((predicted(session, inputs) != labels).sum())
        rows += len(labels)
    return (wrong / rows if rows else 0.0), rows
