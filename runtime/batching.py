"""Rows into a model and back: which axis counts them, and how a fixed batch is fed in pieces.

A batch holds one array an input with the rows in front, [N, ...].  An input that no axis of counts
rows (a sample rate, a cache of an odd layout) is `whole`: it is given as [1, *shape], one value for
all rows, or as [N, *shape], and then the rows go in one at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from dns_onnx.errors import DataError

Array = NDArray[Any]
Size = int | str | None
_NAMELESS = (None, "", "?")
_BATCH = re.compile(r"(?i)n|b|bs|.*batch.*")  # what exporters and people call the axis of rows


@dataclass(frozen=True)
class Feeding:
    """How rows go into a model.

    axes: the axis of each input that counts rows, None where it is whole.
    piece: the batch size that the model fixes, None where it is free.
    """

    axes: tuple[int | None, ...]
    piece: int | None

    def run(
        self, compute: Callable[[list[Any]], list[Any]], inputs: Sequence[Any], xp: Any = np
    ) -> list[Any]:
        """Outputs of `compute` on all rows, called with as many rows at a time as the model takes.

        inputs: [N, ...] or [1, ...] each, of the library xp (NumPy, or torch).  The last piece is
        filled up with repeated rows, whose results are dropped.
        Outputs that count rows in front come back joined there, others stacked.
        """
        rows, apart = self._counted(inputs)
        if apart and self.piece not in (None, 1):
            raise DataError(
                f"inputs: expected one value for all {self.piece} rows that the model takes at a "
                "time where no axis counts rows, got one a row"
            )
        piece = 1 if apart else self.piece
        if piece is None or piece == rows:
            return compute([_placed(x, a, xp) for x, a in zip(inputs, self.axes, strict=True)])
        parts = []
        for start in range(0, rows, piece):
            index: Any = slice(start, start + piece)
            if start + piece > rows:
                index = [min(i, rows - 1) for i in range(start, start + piece)]
            taken = [
                x if a is None and len(x) == 1 else x[index]
                for x, a in zip(inputs, self.axes, strict=True)
            ]
            parts.append(
                compute([_placed(x, a, xp) for x, a in zip(taken, self.axes, strict=True)])
            )
        return [_joined([p[i] for p in parts], piece, rows, xp) for i in range(len(parts[0]))]

    def goes_by_row(self, inputs: Sequence[Any]) -> bool:
        """Whether these inputs hold several rows, and the model takes one at a time."""
        rows, apart = self._counted(inputs)
        return rows > 1 and (self.piece == 1 or (apart and self.piece is None))

    def _counted(self, inputs: Sequence[Any]) -> tuple[int, bool]:
        """(number of rows, whether an input that is whole has a value of its own for each)."""
        pairs = list(zip(inputs, self.axes, strict=True))
        rows = max([len(x) for x, a in pairs if a is not None] or [len(x) for x in inputs])
        return rows, any(a is None and 1 < len(x) == rows for x, a in pairs)

    def row(self, inputs: Sequence[Any], xp: Any = np) -> list[Any]:
        """What the model takes for one row.  inputs: [1, ...] each."""
        return [_placed(x, a, xp) for x, a in zip(inputs, self.axes, strict=True)]

    def rows(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Inputs as the model takes them, in graph order, as rows."""
        return {
            name: x[None] if axis is None else np.moveaxis(x, axis, 0)
            for (name, x), axis in zip(inputs.items(), self.axes, strict=True)
        }

    def first(self, rows: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
        """What the model takes for the first row; repeated where it fixes its batch."""
        return {
            n: _placed(x[:1] if a is None else np.repeat(x[:1], self.piece or 1, axis=0), a, np)
            for n, x, a in zip(names, (rows[n] for n in names), self.axes, strict=True)
        }


def feeding(shapes: Iterable[Sequence[Size] | None]) -> Feeding:
    """How to feed inputs of these shapes (sizes, symbols, None where unknown).

    Of the first input that has axes, the one that bears the name of a batch counts rows (a sequence
    may lie time first); the first one where none does, or where it is 1.  Another input counts them
    where the same symbol (or the first nameless free axis) stands, or along its own first axis.
    """
    sizes = [None if s is None else tuple(s) for s in shapes]
    first = next((s for s in sizes if s), None)
    if first is None:
        return Feeding(tuple(0 if s is None else None for s in sizes), None)
    named = (size for size in first if isinstance(size, str) and _BATCH.fullmatch(size))
    batch = 1 if first[0] == 1 else next(named, first[0])  # [1, "n", 3] are points of one cloud
    piece = batch if isinstance(batch, int) and batch > 0 else None
    return Feeding(tuple(0 if s is None else _row_axis(s, batch) for s in sizes), piece)


def _row_axis(shape: tuple[Size, ...], batch: Size) -> int | None:
    """The axis of an input that counts rows where the first input's first size is `batch`."""
    if not shape:
        return None
    if isinstance(batch, int) and batch > 0:
        return 0 if shape[0] == batch or not _fixed(shape[0]) else None
    if batch not in _NAMELESS and batch in shape:
        return shape.index(batch)
    if not _fixed(shape[0]):
        return 0
    return next((i for i, size in enumerate(shape) if size in _NAMELESS), None)


def _fixed(size: Size) -> bool:
    return isinstance(size, int) and size > 0


def _placed(x: Any, axis: int | None, xp: Any) -> Any:
    """Rows as the model wants them: along their axis, or the one value that a whole input is."""
    if axis is None:
        return x[0, ...]  # an array still, where x[0] would be a scalar of NumPy
    return x if axis == 0 else xp.moveaxis(x, 0, axis)


def _joined(parts: list[Any], piece: int, rows: int, xp: Any) -> Any:
    if all(isinstance(p, list) for p in parts):
        return [item for part in parts for item in part][:rows]
    if not all(hasattr(p, "shape") for p in parts):
        return parts
    if all(len(p.shape) and p.shape[0] == piece for p in parts):
        return xp.concatenate(parts)[:rows]
    return xp.stack(parts) if len({tuple(p.shape) for p in parts}) == 1 else parts


def session_feeding(session: ort.InferenceSession) -> Feeding:
    """How to feed a session."""
    return feeding(i.shape for i in session.get_inputs())


def run(
    session: ort.InferenceSession, inputs: Mapping[str, Array], names: list[str] | None = None
) -> list[Any]:
    """The session's outputs on a batch of any size, whatever batch the model fixes.

    Raises DataError where an input is missing or does not fit.
    """
    wanted = [i.name for i in session.get_inputs()]
    missing = [n for n in wanted if n not in inputs]
    if missing:
        raise DataError(
            f"data: expected the model's inputs {wanted}, got {sorted(inputs)}; "
            f"name the arrays after the inputs ({missing} missing)"
        )

    def compute(arrays: list[Any]) -> list[Any]:
        try:
            return list(session.run(names, dict(zip(wanted, arrays, strict=True))))
        except Exception as error:  # ONNX Runtime's exceptions share no base of their own
            shapes = {n: list(np.shape(x)) for n, x in zip(wanted, arrays, strict=True)}
            raise DataError(
                f"the model does not run on inputs of shape {shapes}: {_first_line(error)}"
            ) from error

    return session_feeding(session).run(compute, [inputs[n] for n in wanted])


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
