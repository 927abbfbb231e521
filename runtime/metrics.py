"""Figures about a model file: what is stored, how small it could be, how often it is right."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from dns_onnx.errors import DataError

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
    piece = fixed_batch(i.shape for i in session.get_inputs())
    return in_pieces(lambda feed: list(session.run(names, dict(feed))), inputs, piece)


def fixed_batch(shapes: Iterable[Sequence[Any] | None]) -> int | None:
    """The batch size that the model's input shapes fix, or None where it is free."""
    sizes = {shape[0] for shape in shapes if shape}
    size = sizes.pop() if len(sizes) == 1 else None
    return size if isinstance(size, int) and size > 0 else None


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


def class_output(session: ort.InferenceSession, wanted: str | None = None) -> str | None:
    """Name of the output to read classes from.

    wanted: taken where the session has it.  Otherwise the first float output; None where all
    outputs are labels, maps or strings.
    Raises DataError for a wanted value that is no output of the file.
    """
    names = [o.name for o in session.get_outputs()]
    if wanted:
        if wanted not in names:
            raise DataError(f"metric: expected an output of the model {names}, got '{wanted}'")
        return wanted
    for output in session.get_outputs():
        if output.type in ("tensor(float)", "tensor(float16)", "tensor(double)"):
            return str(output.name)
    return None


def error_rate(
    session: ort.InferenceSession,
    data: Iterable[tuple[Mapping[str, Array], Array]],
    output: str | None = None,
) -> tuple[float, int]:
    """(fraction of rows whose predicted class is not their label, rows) over (inputs, labels).

    The prediction is the highest score of the output, or the model's own label where it has no
    scores.
    Raises DataError for labels that are no class numbers of the model.
    """
    name = class_output(session, output)
    wrong = rows = 0
    for inputs, labels in data:
        if name is None:
            found = run(session, inputs, [session.get_outputs()[0].name])[0]
            classes, predicted = None, np.asarray(found).reshape(-1)
        else:
            scores = run(session, inputs, [name])[0]
            scores = scores.reshape(len(scores), -1)
            classes, predicted = scores.shape[1], scores.argmax(1)
        _refuse_bad_labels(labels, classes)
        wrong += int((predicted != labels).sum())
        rows += len(labels)
    return (wrong / rows if rows else 0.0), rows


def _refuse_bad_labels(labels: Array, classes: int | None) -> None:
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(
            f"labels: expected class numbers of shape [N], got {labels.dtype} {list(labels.shape)}"
        )
    if classes is not None and len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise DataError(
            f"labels: expected 0 to {classes - 1} (the model has {classes} classes), "
            f"got {labels.min()} to {labels.max()}"
        )
