"""ONNX node attributes as Python values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from onnx import AttributeProto, NodeProto, SparseTensorProto, TensorProto, numpy_helper

from dns_onnx.converters.dtypes import proto_to_torch, to_torch


def attributes(node: NodeProto) -> dict[str, Any]:
    """Attribute name -> value; tensors as torch tensors, graphs as GraphProto."""
    return {a.name: _READ[a.type](a) for a in node.attribute if a.type in _READ}


def constant_tensor(node: NodeProto) -> TensorProto | None:
    """The TensorProto of a Constant node, if it holds its value in one."""
    for attribute in node.attribute:
        if attribute.name == "value":
            held: TensorProto = attribute.t
            return held
    return None


def constant_value(node: NodeProto) -> Any:
    """The value of a Constant node: a tensor, or an array of strings."""
    for a in node.attribute:
        if a.name in _CONSTANT:
            return _CONSTANT[a.name](a)
    raise ValueError("Constant without a value")


def sparse_to_dense(sparse: SparseTensorProto) -> np.ndarray:
    """The dense array of ONNX's coordinate format (linear or per-axis indices)."""
    values = numpy_helper.to_array(sparse.values)
    indices = numpy_helper.to_array(sparse.indices)
    dense = np.zeros(tuple(sparse.dims), values.dtype)
    if indices.ndim == 1:
        dense.reshape(-1)[indices] = values
    else:
        dense[tuple(indices.T)] = values
    return dense


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", errors="surrogateescape")


def _strings(items: list[bytes]) -> np.ndarray:
    return np.array([_text(s) for s in items], dtype=object)


_READ: dict[int, Callable[[AttributeProto], Any]] = {
    AttributeProto.FLOAT: lambda a: a.f,
    AttributeProto.INT: lambda a: a.i,
    AttributeProto.STRING: lambda a: _text(a.s),
    AttributeProto.TENSOR: lambda a: proto_to_torch(a.t),
    AttributeProto.GRAPH: lambda a: a.g,
    AttributeProto.FLOATS: lambda a: list(a.floats),
    AttributeProto.INTS: lambda a: list(a.ints),
    AttributeProto.STRINGS: lambda a: [_text(s) for s in a.strings],
    AttributeProto.TENSORS: lambda a: [proto_to_torch(t) for t in a.tensors],
    AttributeProto.SPARSE_TENSOR: lambda a: to_torch(sparse_to_dense(a.sparse_tensor)),
    AttributeProto.TYPE_PROTO: lambda a: a.tp,
}
_CONSTANT: dict[str, Callable[[AttributeProto], Any]] = {
    "value": lambda a: proto_to_torch(a.t),
    "sparse_value": lambda a: to_torch(sparse_to_dense(a.sparse_tensor)),
    "value_int": lambda a: torch.tensor(a.i, dtype=torch.int64),
    "value_ints": lambda a: torch.tensor(list(a.ints), dtype=torch.int64),
    "value_float": lambda a: torch.tensor(a.f, dtype=torch.float32),
    "value_floats": lambda a: torch.tensor(list(a.floats), dtype=torch.float32),
    "value_string": lambda a: np.array(_text(a.s), dtype=object),
    "value_strings": lambda a: _strings(list(a.strings)),
}
