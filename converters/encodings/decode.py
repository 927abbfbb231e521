"""The decoding operators in NumPy: what a stored weight is worth, computed at conversion."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import NodeProto, SparseTensorProto, helper, numpy_helper

from dns_onnx.converters.encodings.matrix import Array, Indices
from dns_onnx.errors import ModelError

Attributes = Mapping[str, Any]
# 2 GiB of float32: no tensor inside an ONNX file holds more.
_MOST_ENTRIES = 2**29


def evaluate(node: NodeProto, inputs: Sequence[Array | None]) -> tuple[Array, ...]:
    """The outputs of one decoding node, or the weight of a sparse operator.

    inputs: in order, None for one that is absent; of a sparse operator as sparse_weight takes them.
    Raises ModelError if the stored arrays do not fit each other.
    """
    where = f"{node.op_type} '{node.name or node.output[0]}'"
    operator = _OPERATORS.get(node.op_type)
    if operator is None:
        raise ModelError(
            f"{where}: expected a decoding operator, got one that is not; "
            "this file was not written by dns-onnx, or was edited since"
        )
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    try:
        return operator(inputs, attributes)
    except (ValueError, IndexError, TypeError, KeyError, OverflowError, MemoryError) as error:
        raise ModelError(
            f"{where}: expected a well-formed sparse weight, got: {error}; export the model again"
        ) from None


def sparse_tensor(sparse: SparseTensorProto) -> Array:
    """The dense array of an ONNX SparseTensorProto, its indices linear or one column an axis."""
    where = f"sparse tensor '{sparse.values.name}'"
    try:
        shape = _shape(np.array(sparse.dims, np.int64))
    except ValueError as error:
        raise ModelError(f"{where}: expected a dense shape, got: {error}") from None
    values = numpy_helper.to_array(sparse.values)
    indices = numpy_helper.to_array(sparse.indices).astype(np.int64)
    if indices.ndim == 2:
        strides = np.cumprod([1, *shape[:0:-1]], dtype=np.int64)[::-1]
        in_range = ((indices >= 0) & (indices < np.array(shape))).all()
        indices = indices @ strides if in_range else np.array([-1])
    size = int(np.prod(shape, dtype=np.int64))
    fits = not len(indices) or 0 <= indices.min() <= indices.max() < size
    if indices.shape != values.shape or not fits:
        raise ModelError(
            f"{where}: expected one index inside {list(shape)} for each value, got others; "
            "export the model again"
        )
    flat = np.zeros(size, values.dtype)
    flat[indices] = values
    return flat.reshape(shape)


def csr_to_dense(values: Array, columns: Array, row_ptr: Array | None, shape: Array) -> Array:
    """The dense weight, its rows counted by row_ptr; without one, `columns` are gaps.

    Raises ValueError for a malformed matrix.
    """
    dims = _shape(shape)
    size = int(np.prod(dims, dtype=np.int64))
    if columns.shape != values.shape:
        raise ValueError(f"{len(values)} values but {len(columns)} column indices")
    cols = _indices(columns)
    positions = _by_gaps(cols, size) if row_ptr is None else _by_columns(cols, row_ptr, size)
    flat = np.zeros(size, values.dtype)
    flat[positions] = values
    return flat.reshape(dims)


def sparse_weight(
    values: Array, columns: Array, row_ptr: Array | None, shape: Array, scale: Array | None
) -> Array:
    """The dense float32 weight of a sparse operator; scale: [rows, 1, ..., 1] of narrow values."""
    weight = csr_to_dense(values, columns, row_ptr, shape).astype(np.float32)
    if scale is None:
        return weight
    if scale.shape != (weight.shape[0], *[1] * (weight.ndim - 1)):
        raise ValueError(f"scale must have one entry a row, has shape {list(scale.shape)}")
    scaled: Array = weight * scale
    return scaled


def _by_gaps(gaps: Indices, size: int) -> Indices:
    if len(gaps) and (gaps[0] < 0 or (gaps[1:] < 1).any() or gaps.max() >= size):
        raise ValueError(f"gaps must lie in 1 .. {size - 1}")
    positions = np.cumsum(gaps)
    if len(gaps) and positions[-1] >= size:
        raise ValueError(f"gaps must add up to less than {size}, got {positions[-1]}")
    return positions


def _by_columns(columns: Indices, row_ptr: Array, size: int) -> Indices:
    ptr = _indices(row_ptr)
    rows = len(ptr) - 1
    if rows < 1 or size % rows:
        raise ValueError(f"row_ptr has {rows + 1} entries for a weight of {size} entries")
    lengths = np.diff(ptr)
    if ptr[0] != 0 or ptr[-1] != len(columns) or (lengths < 0).any():
        raise ValueError(f"row_ptr must rise from 0 to {len(columns)}")
    if len(columns) and not 0 <= columns.min() <= columns.max() < size // rows:
        raise ValueError(f"column indices must lie in 0 .. {size // rows - 1}")
    starts: Indices = np.repeat(np.arange(rows, dtype=np.int64) * (size // rows), lengths)
    return starts + columns


def bitmask_to_dense(values: Array, mask: Array, shape: Array) -> Array:
    """The dense weight whose set bits take the values in turn; raises ValueError if they differ."""
    dims = _shape(shape)
    size = int(np.prod(dims, dtype=np.int64))
    if len(mask) != -(-size // 8):
        raise ValueError(f"mask must have {-(-size // 8)} bytes, has {len(mask)}")
    positions = np.flatnonzero(np.unpackbits(mask, count=size, bitorder="little"))
    if len(positions) != len(values):
        raise ValueError(f"mask has {len(positions)} bits set for {len(values)} values")
    flat = np.zeros(size, values.dtype)
    flat[positions] = values
    return flat.reshape(dims)


def _indices(array: Array) -> Indices:
    return array.astype(np.int64)


def _shape(shape: Array) -> tuple[int, ...]:
    """The dense shape as integers; raises ValueError if it is none, or too large."""
    dims = tuple(int(d) for d in shape)
    if not dims or min(dims) < 1:
        raise ValueError(f"shape must have positive dimensions, has {list(dims)}")
    size = 1
    for dim in dims:
        size *= dim
    if size > _MOST_ENTRIES:
        raise ValueError(f"shape {list(dims)} has more than {_MOST_ENTRIES} entries")
    return dims


def _cast(inputs: Sequence[Any], attributes: Attributes) -> tuple[Array, ...]:
    return (inputs[0].astype(helper.tensor_dtype_to_np_dtype(attributes["to"])),)


def _constant_of_shape(inputs: Sequence[Any], attributes: Attributes) -> tuple[Array, ...]:
    value = numpy_helper.to_array(attributes["value"])
    return (np.full(_shape(inputs[0]), value[0], value.dtype),)


def _scatter(inputs: Sequence[Any], _: Attributes) -> tuple[Array, ...]:
    data, indices, updates = inputs
    if len(indices) and not 0 <= indices.min() <= indices.max() < len(data):
        raise ValueError(f"positions must lie in 0 .. {len(data) - 1}")
    flat = data.copy()
    flat[indices] = updates
    return (flat,)


def _reshape(inputs: Sequence[Any], _: Attributes) -> tuple[Array, ...]:
    return (inputs[0].reshape(tuple(int(d) for d in inputs[1])),)


def _slice(inputs: Sequence[Any], _: Attributes) -> tuple[Array, ...]:
    data, first, end = inputs
    return (data[int(first[0]) : int(end[0])],)


_OPERATORS: dict[str, Callable[[Sequence[Any], Attributes], tuple[Array, ...]]] = {
    "Add": lambda i, a: (i[0] + i[1],),
    "BitmaskToDense": lambda i, a: (bitmask_to_dense(i[0], i[1], i[2]),),
    "Cast": _cast,
    "ConstantOfShape": _constant_of_shape,
    **dict.fromkeys(("CsrConv", "CsrGemm", "CsrMatMul"), lambda i, a: (sparse_weight(*i),)),
    "CsrToDense": lambda i, a: (csr_to_dense(i[0], i[1], i[2], i[3]),),
    "Mul": lambda i, a: (i[0] * i[1],),
    "Reshape": _reshape,
    "ScatterElements": _scatter,
    "Slice": _slice,
}
