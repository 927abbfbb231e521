"""What an encoding adds to a file, measured in bytes before any of it is built."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper

from dns_onnx.converters.encodings.functions import DOMAIN
from dns_onnx.converters.encodings.matrix import Array

# Nodes in standard operators that decode a weight bear this name prefix; to_dense knows them by it.
DECODE = "dns_onnx.decode"


@dataclass(frozen=True)
class Part:
    """A tensor to be written: its name, type and shape, and where its data will come from."""

    name: str
    data_type: int
    dims: tuple[int, ...]
    data: Callable[[], Array]

    def bytes(self) -> int:
        """Bytes of the tensor as an entry of GraphProto.initializer."""
        return tensor_bytes(self.name, self.data_type, self.dims)

    def tensor(self) -> TensorProto:
        return make_tensor(self.name, self.data())


def part(
    name: str, kind: np.dtype[Any] | type, dims: Sequence[int], data: Callable[[], Array]
) -> Part:
    """A part whose type is given as NumPy names it; the data are cast to it."""
    dtype = np.dtype(kind)
    data_type = helper.np_dtype_to_tensor_dtype(dtype)
    return Part(name, data_type, tuple(dims), lambda: data().astype(dtype, copy=False))


def constant(name: str, values: int | Sequence[int]) -> Part:
    """A small int64 tensor."""
    array = np.array(values, np.int64)
    return part(name, np.int64, array.shape, lambda: array)


def make_tensor(name: str, array: Array) -> TensorProto:
    """A TensorProto with its data, little-endian as ONNX stores them; no name if it is empty."""
    flat = np.ascontiguousarray(array).reshape(-1)
    if sys.byteorder == "big":
        flat = flat.byteswap()
    tensor = TensorProto(
        data_type=helper.np_dtype_to_tensor_dtype(array.dtype),
        dims=array.shape,
        raw_data=flat.tobytes(),
    )
    if name:
        tensor.name = name
    return tensor


def tensor_bytes(name: str, data_type: int, dims: Sequence[int]) -> int:
    """Bytes of a tensor of raw data as an entry of GraphProto.initializer."""
    head = TensorProto(name=name, data_type=data_type, dims=dims).ByteSize()
    item = int(helper.tensor_dtype_to_np_dtype(data_type).itemsize)
    return field_bytes(head + field_bytes(int(np.prod(dims, dtype=np.int64)) * item))


def field_bytes(payload: int) -> int:
    """Bytes of a length-delimited protobuf field with a one-byte tag."""
    length = payload
    size = 2
    while length >= 128:
        length >>= 7
        size += 1
    return size + payload


def node_bytes(nodes: Iterable[NodeProto]) -> int:
    """Bytes of the nodes as entries of GraphProto.node."""
    return sum(field_bytes(node.ByteSize()) for node in nodes)


def decode_node(op_type: str, inputs: Sequence[str], output: str, **attributes: Any) -> NodeProto:
    """A standard node that takes part in decoding a weight, marked as such by its name."""
    node: NodeProto = helper.make_node(
        op_type, inputs, [output], name=f"{DECODE}/{output}", **attributes
    )
    return node


def function_node(op_type: str, inputs: Sequence[str], output: str) -> NodeProto:
    """A call of one of our decoding functions."""
    node: NodeProto = helper.make_node(op_type, inputs, [output], domain=DOMAIN)
    return node
