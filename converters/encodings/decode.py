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


def evaluate(node: NodeProto, inputs: Sequence[Array]) -> tuple[Array, ...]:
    """The outputs of one decoding node.

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


def csr_to_dense(values: Array, columns: Array, row_ptr: Array, shape: Array) -> Array:
    """The dense weight, its rows counted by row_ptr; raises ValueError for a malformed matrix."""
    dims = _shape(shape)
    size = int(np.prod(dims, dtype=np.int64))
    ptr, cols = _indices(row_ptr), _indices(columns)
    rows = len(ptr) - 1
    if rows < 1 or size % rows:
        raise ValueError(f"row_ptr has {rows + 1} entries for a weight of shape {list(dims)}")
    if ptr[0] != 0 or ptr[-1] != len(values) or (np.diff(ptr) < 0).any():
        raise ValueError(f"row_ptr must rise from 0 to {len(values)}")
    if cols.shape != values.shape:
        raise ValueError(f"{len(values)} values but {len(cols)} column indices")
    if len(cols) and not 0 <= cols.min() <= cols.max() < size // rows:
        raise ValueError(f"column indices must lie in 0 .. {size // rows - 1}")
    flat = np.zeros(size, values.dtype)
    flat[entry_rows(ptr) * (size // rows) + cols] = values
    return flat.reshape(dims)


def entry_rows(row_ptr: Array) -> Indices:
    """The row of each stored entry."""
    ptr = _indices(row_ptr)
    lengths: Indices = ptr[1:] - ptr[:-1]
    return np.repeat(np.arange(len(lengths), dtype=np.int64), lengths)


def dequantize_rows(quantized: Array, row_ptr: Array, scale: Array) -> Array:
    """The stored values, each times the scale of its row."""
    values: Array = scale[entry_rows(row_ptr)] * quantized.astype(scale.dtype)
    return values


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


def _gaps_to_indices(inputs: Sequence[Array], _: Attributes) -> tuple[Array, ...]:
    gaps, width = inputs
    return ((np.cumsum(gaps.astype(np.int64)) % int(width)).astype(np.int32),)


def _cast(inputs: Sequence[Array], attributes: Attributes) -> tuple[Array, ...]:
    return (inputs[0].astype(helper.tensor_dtype_to_np_dtype(attributes["to"])),)


def _constant_of_shape(inputs: Sequence[Array], attributes: Attributes) -> tuple[Array, ...]:
    value = numpy_helper.to_array(attributes["value"])
    return (np.full(_shape(inputs[0]), value[0], value.dtype),)


def _scatter(inputs: Sequence[Array], _: Attributes) -> tuple[Array, ...]:
    data, indices, updates = inputs
    if len(indices) and not 0 <= indices.min() <= indices.max() < len(data):
        raise ValueError(f"positions must lie in 0 .. {len(data) - 1}")
    flat = data.copy()
    flat[indices] = updates
    return (flat,)


def _reshape(inputs: Sequence[Array], _: Attributes) -> tuple[Array, ...]:
    return (inputs[0].reshape(tuple(int(d) for d in inputs[1])),)


def _slice(inputs: Sequence[Array], _: Attributes) -> tuple[Array, ...]:
    data, first, end = inputs
    return (data[int(first[0]) : int(end[0])],)


_OPERATORS: dict[str, Callable[[Sequence[Array], Attributes], tuple[Array, ...]]] = {
    "Add": lambda i, a: (i[0] + i[1],),
    "BitmaskToDense": lambda i, a: (bitmask_to_dense(i[0], i[1], i[2]),),
    "Cast": _cast,
    "ConstantOfShape": _constant_of_shape,
    "CsrToDense": lambda i, a: (csr_to_dense(i[0], i[1], i[2], i[3]),),
    "DequantizeRows": lambda i, a: (dequantize_rows(i[0], i[1], i[2]),),
    "GapsToIndices": _gaps_to_indices,
    "Mul": lambda i, a: (i[0] * i[1],),
    "Reshape": _reshape,
    "ScatterElements": _scatter,
    "Slice": _slice,
}
