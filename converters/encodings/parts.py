"""What an encoding adds to a file, measured in bytes before any of it is built."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper

from dns_onnx.converters.encodings.matrix import Array

# Nodes in standard operators that decode a weight bear this name prefix; to_dense knows them by it.
DECODE = "dns_onnx.decode"


@dataclass(frozen=True)
class Part:
    """A tensor to be written: its name, type and shape, without its data."""

    name: str
    data_type: int
    dims: tuple[int, ...]

    def bytes(self) -> int:
        """Bytes of the tensor as an entry of GraphProto.initializer."""
        head = TensorProto(name=self.name, data_type=self.data_type, dims=self.dims).ByteSize()
        data = int(np.prod(self.dims, dtype=np.int64)) * item_size(self.data_type)
        return field_bytes(head + field_bytes(data))

    def tensor(self, array: Array) -> TensorProto:
        """The tensor with its data, little-endian as ONNX stores it."""
        little = np.ascontiguousarray(array).reshape(-1)
        if little.dtype.byteorder == ">" or (little.dtype.byteorder == "=" and _BIG_ENDIAN):
            little = little.byteswap()
        return TensorProto(
            name=self.name, data_type=self.data_type, dims=self.dims, raw_data=little.tobytes()
        )


_BIG_ENDIAN = np.dtype(np.uint16).newbyteorder("=").str[0] == ">"


def part(name: str, kind: np.dtype[Any], dims: Sequence[int]) -> Part:
    """A part whose type is given as NumPy names it."""
    return Part(name, helper.np_dtype_to_tensor_dtype(kind), tuple(dims))


def item_size(data_type: int) -> int:
    """Bytes of one element of an ONNX tensor type."""
    return int(helper.tensor_dtype_to_np_dtype(data_type).itemsize)


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


def decode_node(
    weight: str, op_type: str, inputs: Sequence[str], output: str, **attributes: Any
) -> NodeProto:
    """A standard node that takes part in decoding `weight`, marked as such by its name."""
    node: NodeProto = helper.make_node(
        op_type, inputs, [output], name=f"{DECODE}/{output}", **attributes
    )
    return node
