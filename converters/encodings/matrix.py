"""A weight as a compressed sparse matrix, and the layouts its indices can be stored in."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Indices = npt.NDArray[np.int64]

_UNSIGNED = (np.dtype(np.uint8), np.dtype(np.uint16))
_INDEX_TYPES = (*_UNSIGNED, np.dtype(np.int32))

# Positions are computed in int32 where they are as long as the dense weight.
MAX_ENTRIES = 2**31 - 1


@dataclass(frozen=True)
class Layout:
    """How the positions of the stored entries are written.

    kind: "absolute" (column numbers), "gaps" (distances in the flattened matrix) or "bitmask".
    index_type: of the stored indices.  stored: entries stored, bridging zeros included.
    """

    kind: str
    index_type: np.dtype[Any]
    stored: int

    @property
    def name(self) -> str:
        return {
            "absolute": self.index_type.name,
            "gaps": f"{self.index_type.name} gaps",
            "bitmask": "bitmask",
        }[self.kind]


@dataclass(frozen=True)
class Matrix:
    """The entries of a weight that are not zero, in row-major order.

    shape: the dense shape; the matrix has shape[0] rows, the other axes are flattened.
    positions: [nnz] in the flattened weight, ascending.  values: [nnz], in the weight's type.
    one_row: the whole weight is one row, for a weight that no sparse operator reads.
    """

    shape: tuple[int, ...]
    positions: Indices
    values: Array
    one_row: bool = False

    @classmethod
    def from_dense(cls, weight: Array) -> Matrix:
        """The entries whose value is not zero; a zero of either sign is a cut entry."""
        flat = np.ascontiguousarray(weight).reshape(-1)
        positions = np.flatnonzero(is_kept(flat))
        return cls(weight.shape, positions, flat[positions])

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def rows(self) -> int:
        return 1 if self.one_row else self.shape[0]

    @property
    def width(self) -> int:
        return self.size // self.rows

    @property
    def nnz(self) -> int:
        return len(self.positions)

    @property
    def density(self) -> float:
        return self.nnz / self.size

    @cached_property
    def gaps(self) -> Indices:
        """[nnz] distance of each entry from the one before it; the first from position 0."""
        return np.diff(self.positions, prepend=np.int64(0))

    def row_ptr(self) -> Indices:
        """[rows + 1] where each row begins among the entries."""
        edges = np.arange(self.rows + 1, dtype=np.int64) * self.width
        return np.searchsorted(self.positions, edges)

    def bridged(self, limit: int) -> Matrix:
        """The matrix with stored zeros put in so that no gap exceeds `limit`."""
        extra = np.maximum(self.gaps - 1, 0) // limit
        total = int(extra.sum())
        if total == 0:
            return self
        before = np.repeat(np.arange(self.nnz), extra)
        nth = np.arange(total) - np.repeat(np.cumsum(extra) - extra, extra) + 1
        starts = np.concatenate(([0], self.positions[:-1]))
        bridges = starts[before] + nth * limit
        positions = np.insert(self.positions, before, bridges)
        return Matrix(self.shape, positions, np.insert(self.values, before, 0), self.one_row)

    def layouts(self) -> list[Layout]:
        """Every layout this matrix can take, one for each kind and index type that is exact."""
        found = [
            Layout("absolute", kind, self.nnz)
            for kind in _INDEX_TYPES
            if self.width - 1 <= np.iinfo(kind).max
        ]
        for kind in _INDEX_TYPES:
            limit = np.iinfo(kind).max
            bridges = int((np.maximum(self.gaps - 1, 0) // limit).sum())
            found.append(Layout("gaps", kind, self.nnz + bridges))
        if self.size % 8 == 0:
            found.append(Layout("bitmask", np.dtype(np.uint8), self.nnz))
        return found

    def indices(self, layout: Layout) -> Array:
        """The index array of a layout, for a matrix already bridged for it."""
        if layout.kind == "absolute":
            return (self.positions % self.width).astype(layout.index_type)
        if layout.kind == "gaps":
            return self.gaps.astype(layout.index_type)
        mask = np.zeros(self.size, np.bool_)
        mask[self.positions] = True
        return np.packbits(mask, bitorder="little")

    def for_layout(self, layout: Layout) -> Matrix:
        """The matrix as the layout stores it: bridged where its gaps are too long."""
        return self.bridged(np.iinfo(layout.index_type).max) if layout.kind == "gaps" else self


def narrowest(limit: int) -> np.dtype[Any]:
    """The smallest index type that holds 0 .. limit."""
    return next(kind for kind in _INDEX_TYPES if limit <= np.iinfo(kind).max)


def is_kept(weight: Array) -> npt.NDArray[np.bool_]:
    """True where an entry is neither +0 nor -0; NaN, infinities and denormals are kept.

    Tested on the bits, so that a thread that flushes denormals to zero gives the same answer.
    """
    bits = weight.view(np.dtype(f"u{weight.dtype.itemsize}"))
    sign = bits.dtype.type(1 << (8 * bits.dtype.itemsize - 1))
    kept: npt.NDArray[np.bool_] = (bits & ~sign) != 0
    return kept
