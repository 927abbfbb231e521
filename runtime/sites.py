"""The sparse layers of a model: which nodes they are, and how dense."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, external_data_helper, numpy_helper

DOMAIN = "dns_onnx"
OPERATORS = ("CsrGemm", "CsrMatMul", "CsrLeftMatMul", "CsrConv")
DECODERS = ("CsrToDense", "BitmaskToDense")
DEPTHWISE = "depthwise"  # one channel a filter: bringing it into panels costs more than it saves
STEM = "stem"  # convolves the few channels of the net's input: few weights, large maps
FEW_CHANNELS = 4
ACTIVATION = ("low", "high", "slope")  # attributes of a sparse operator
LARGE = 32 << 20  # bytes of a dense weight that no cache holds from run to run
_PLAIN = ("", "ai.onnx")

Array = NDArray[Any]


@dataclass(frozen=True)
class SparseLayer:
    """A layer with a weight in compressed rows.

    node: the sparse operator, or the decoder before `reader`, a plain node that could be one.
    kind: as in crossing.thresholds, or DEPTHWISE or STEM.  size: entries of the dense weight.
    """

    graph: onnx.GraphProto
    node: onnx.NodeProto
    reader: onnx.NodeProto | None
    kind: str
    density: float
    size: int

    @property
    def name(self) -> str:
        node = self.reader or self.node
        return node.name or node.output[0]


class Tensors:
    """The constants of a model by name, those of subgraphs included.

    folder: where a file with external data lies.
    """

    def __init__(self, model: onnx.ModelProto, folder: Path | None) -> None:
        self._folder = folder
        self._found: dict[str, TensorProto] = {}
        for graph in graphs(model.graph):
            given = {value.name for value in graph.input}  # these a caller may replace
            for tensor in graph.initializer:
                if tensor.name not in given:
                    self._found[tensor.name] = tensor
            for node in graph.node:
                if node.op_type == "Constant" and node.domain in _PLAIN:
                    for attribute in node.attribute:
                        if attribute.name == "value":
                            self._found[node.output[0]] = attribute.t

    def get(self, name: str) -> TensorProto | None:
        return self._found.get(name)

    def array(self, name: str) -> Array | None:
        """The value of a constant; None where there is none, or its data cannot be found."""
        tensor = self._found.get(name)
        if tensor is None:
            return None
        if tensor.data_location == TensorProto.EXTERNAL:
            if self._folder is None:
                return None
            loaded = TensorProto()
            loaded.CopyFrom(tensor)
            external_data_helper.load_external_data_for_tensor(loaded, str(self._folder))
            tensor = loaded
        value: Array = numpy_helper.to_array(tensor)
        return value


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and those in its nodes' attributes, outer before inner."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from graphs(attribute.g)


def readers(model: onnx.ModelProto) -> dict[str, list[str]]:
    """For each value the nodes that read it, in any graph, by their first output.

    An empty name stands for the output of a graph, and for a node without outputs.
    """
    found: dict[str, list[str]] = {}
    for graph in graphs(model.graph):
        for node in graph.node:
            for name in node.input:
                found.setdefault(name, []).append(node.output[0] if node.output else "")
        for value in graph.output:
            found.setdefault(value.name, []).append("")
    return found


def sparse_layers(model: onnx.ModelProto, tensors: Tensors) -> list[SparseLayer]:
    """Every layer that a sparse kernel could run, in graph order."""
    found = []
    reading = readers(model)
    for graph in graphs(model.graph):
        made = {node.output[0]: node for node in graph.node if node.output}
        for node in graph.node:
            if node.domain != DOMAIN:
                continue
            reader = None
            if node.op_type in DECODERS:
                reader = _plain_reader(node, made, reading)
                if reader is None:
                    continue
            elif node.op_type not in OPERATORS:
                continue
            layer = _layer(graph, node, reader, made, tensors)
            if layer is not None:
                found.append(layer)
    return found


def _plain_reader(
    node: onnx.NodeProto,
    made: Mapping[str, onnx.NodeProto],
    reading: Mapping[str, list[str]],
) -> onnx.NodeProto | None:
    """The one plain node that reads a decoded weight, if a sparse operator can stand for it."""
    users = reading.get(node.output[0], [])
    reader = made.get(users[0]) if len(users) == 1 else None
    if reader is None or reader.domain not in _PLAIN:
        return None
    places = {"Conv": (1,), "Gemm": (1,), "MatMul": (0, 1)}.get(reader.op_type, ())
    return reader if list(reader.input).index(node.output[0]) in places else None


def _layer(
    graph: onnx.GraphProto,
    node: onnx.NodeProto,
    reader: onnx.NodeProto | None,
    made: Mapping[str, onnx.NodeProto],
    tensors: Tensors,
) -> SparseLayer | None:
    first = 1 if reader is None else 0
    if len(node.input) < first + 3:
        return None
    last = first + (2 if node.op_type == "BitmaskToDense" else 3)
    shape = tensors.array(node.input[last]) if len(node.input) > last else None
    stored = _stored(node.input[first], made, tensors)
    if shape is None or stored is None or shape.ndim != 1 or (shape <= 0).any():
        return None
    dims = [int(d) for d in shape]
    if reader is not None and not (
        positions(node, tensors) and (len(dims) == 2 or reader.op_type == "Conv")
    ):
        return None
    size = math.prod(dims)
    groups = next((a.i for a in (reader or node).attribute if a.name == "group"), 1)
    return SparseLayer(graph, node, reader, _kind(dims, size, groups), stored / size, size)


def operands(node: onnx.NodeProto) -> list[str]:
    """Names of a decoder's or sparse operator's operands: values, ..., shape."""
    return list(node.input) if node.op_type in DECODERS else list(node.input[1:5])


def positions(node: onnx.NodeProto, tensors: Tensors) -> Callable[[], Array] | None:
    """What finds the entries that a layer's weight stores, flattened; None where nothing can.

    node: a decoder or a sparse operator.
    """
    names = operands(node)
    if node.op_type == "BitmaskToDense":
        mask = tensors.array(names[1])
        return (
            None if mask is None else lambda: np.flatnonzero(np.unpackbits(mask, bitorder="little"))
        )
    stored = tensors.array(names[1])
    if stored is None:
        return None
    if not names[2]:  # no row_ptr: gaps
        return lambda: np.cumsum(stored, dtype=np.int64)
    rows = tensors.array(names[2])
    if rows is None or len(rows) < 2:
        return None
    shape = tensors.array(names[3])
    width = 0 if shape is None else math.prod(int(d) for d in shape) // (len(rows) - 1)
    counts: Array = rows[1:].astype(np.int64) - rows[:-1].astype(np.int64)
    return lambda: stored + np.repeat(np.arange(len(counts)), counts) * width


def _kind(dims: list[int], size: int, groups: int) -> str:
    if len(dims) == 2:
        return "large linear" if size * 4 > LARGE else "linear"
    if groups > 1 and dims[1] == 1:
        return DEPTHWISE
    if dims[1] * groups <= FEW_CHANNELS and math.prod(dims[2:]) > 1:
        return STEM
    return "pointwise" if math.prod(dims[2:]) == 1 else "conv"


def _stored(name: str, made: Mapping[str, onnx.NodeProto], tensors: Tensors) -> int | None:
    """Number of stored entries, also where a node widens the values at load."""
    for _ in range(3):
        tensor = tensors.get(name)
        if tensor is not None:
            return int(np.prod(tensor.dims, dtype=np.int64))
        if name not in made or not made[name].input:
            return None
        name = made[name].input[0]
    return None
