"""The forms in which one model can run: each sparse layer on its kernel, or dense.

A layer that runs dense becomes the plain node with its weight in place, so that ONNX Runtime sees
what it would see in the dense file and optimizes it alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from dns_onnx.errors import ModelError
from dns_onnx.runtime.decoding import Decoder, plain_node
from dns_onnx.runtime.fuse import fuse
from dns_onnx.runtime.join import join
from dns_onnx.runtime.sites import (
    DOMAIN,
    OPERATORS,
    Array,
    SparseLayer,
    Tensors,
    graphs,
    positions,
    readers,
    sparse_layers,
)
from dns_onnx.runtime.substitute import substitute

FOLDED = "Folded"  # suffix of function copies that no kernel is registered for
MOST_BYTES = 1 << 30  # of dense weights in a serialized model, which may hold twice that
_SPARSE_OF = {"Conv": "CsrConv", "Gemm": "CsrGemm", "MatMul": "CsrMatMul"}


@dataclass(frozen=True)
class Form:
    """One form of a model.

    data: serialized.  folded: sparse layers that run dense.  unfolded: layers stored sparse before
    a dense node that run on a sparse kernel.  substituted: standard nodes on kernels of ours.
    """

    data: bytes
    folded: tuple[str, ...]
    unfolded: tuple[str, ...]
    substituted: tuple[str, ...]


class Forms:
    """Makes the forms of one model."""

    def __init__(self, data: bytes, folder: Path | None, *, substitutes: bool) -> None:
        """data: serialized.  folder: of its external data.  substitutes: standard nodes too."""
        self._data, self._folder, self._substitutes = data, folder, substitutes
        model = onnx.load_from_string(data)
        tensors = Tensors(model, folder)
        self.layers = sparse_layers(model, tensors)
        self._decoder = Decoder(model, tensors)

    def form(self, wanted: Sequence[bool]) -> Form:
        """The model with the wanted layers on sparse kernels, the others dense."""
        model = onnx.load_from_string(self._data)
        tensors = Tensors(model, self._folder)
        bodies = {function.name for function in model.functions if function.domain == DOMAIN}
        folded, unfolded = [], []
        small = 4 * sum(layer.size for layer in self.layers) <= MOST_BYTES
        layers = sparse_layers(model, tensors)
        for own, layer, wants in zip(self.layers, layers, wanted, strict=True):
            weight = self._decoder.weight(own) if small and not wants else None
            if layer.reader is not None and wants:
                unfolded.append(layer.name)
                _unfold(layer, tensors)
            elif weight is not None:
                _decode(layer, weight)
            elif layer.reader is None and not wants and layer.node.op_type in bodies:
                layer.node.op_type += FOLDED
            if layer.reader is None and layer.node.op_type not in OPERATORS:
                folded.append(layer.name)
        fuse(model, tensors)
        _name_functions(model)
        _drop_unread(model)
        substituted = substitute(model, self._folder) if self._substitutes else ()
        join(model, Tensors(model, self._folder))  # after the others, which look for the Concat
        return Form(model.SerializeToString(), tuple(folded), tuple(unfolded), substituted)


def _decode(layer: SparseLayer, weight: Array) -> None:
    """Puts the dense weight in the place of the layer's operands."""
    node = layer.node
    name = node.output[0] if layer.reader is not None else f"{node.output[0]}.weight"
    held = layer.graph.initializer.add(name=name, data_type=TensorProto.FLOAT, dims=weight.shape)
    held.raw_data = weight.astype("<f4", copy=False).tobytes()
    if layer.reader is not None:
        layer.graph.node.remove(node)
    else:
        node.CopyFrom(plain_node(node, name))


def _unfold(layer: SparseLayer, tensors: Tensors) -> None:
    """Makes the plain node a sparse one; the decoder before it goes."""
    node, reader = layer.node, layer.reader
    if reader is None:
        return
    operands = [node.input[0], _gaps(layer, tensors), "", node.input[-1]]
    left = reader.op_type == "MatMul" and reader.input[0] == node.output[0]
    others = list(reader.input)
    others.remove(node.output[0])
    del reader.input[:]
    reader.input.extend([others[0], *operands, *others[1:]])
    reader.op_type = "CsrLeftMatMul" if left else _SPARSE_OF[reader.op_type]
    reader.domain = DOMAIN
    layer.graph.node.remove(node)


def _gaps(layer: SparseLayer, tensors: Tensors) -> str:
    """Name of the gaps between the weight's stored entries, made anew from where those are."""
    found = positions(layer.node, tensors)
    if found is None:
        raise ModelError(f"{layer.name}: expected constants before {layer.node.op_type}, got none")
    name = f"{layer.node.output[0]}.kernel.gaps"
    gaps = np.diff(found(), prepend=np.int64(0)).astype(np.int32)
    layer.graph.initializer.append(numpy_helper.from_array(gaps, name))
    return name


def _name_functions(model: onnx.ModelProto) -> None:
    """Bodies for the folded nodes, and none for those that kernels run."""
    used = {node.op_type for graph in graphs(model.graph) for node in graph.node}
    copies = []
    for function in list(model.functions):
        if function.domain != DOMAIN or function.name not in OPERATORS:
            continue
        if function.name + FOLDED in used:
            copy = onnx.FunctionProto()
            copy.CopyFrom(function)
            copy.name += FOLDED
            copies.append(copy)
        model.functions.remove(function)
    model.functions.extend(copies)


def _drop_unread(model: onnx.ModelProto) -> None:
    """Removes what only the decoded weights needed: nodes of ours, constants and functions."""
    given = {value.name for value in model.graph.input}
    while True:
        read = readers(model).keys() | given
        count = 0
        for graph in graphs(model.graph):
            # by index: to remove a message is to compare it with all before it
            for i in reversed(range(len(graph.node))):
                node = graph.node[i]
                if node.domain == DOMAIN and read.isdisjoint(node.output):
                    del graph.node[i]
                    count += 1
        if not count:
            break
    for graph in graphs(model.graph):
        for i in reversed(range(len(graph.initializer))):
            if graph.initializer[i].name not in read:
                del graph.initializer[i]
    called = [*(n for g in graphs(model.graph) for n in g.node)]
    called += [node for function in model.functions for node in function.node]
    used = {(node.domain, node.op_type) for node in called}
    for i in reversed(range(len(model.functions))):
        function = model.functions[i]
        if function.domain == DOMAIN and (function.domain, function.name) not in used:
            del model.functions[i]
