"""Sparse layers made dense again: their weights, and the plain nodes that read them."""

from __future__ import annotations

import math

import numpy as np
import onnx

from dns_onnx.runtime.sites import (
    ACTIVATION,
    DECODERS,
    Array,
    SparseLayer,
    Tensors,
    graphs,
    operands,
    positions,
)

_SCALE = 6  # input of a sparse operator


class Decoder:
    """Computes the dense weights of one model's layers, each once."""

    def __init__(self, model: onnx.ModelProto, tensors: Tensors) -> None:
        """tensors: of the model."""
        self._tensors = tensors
        self._widened = {  # what narrow values are read through
            node.output[0]: node.input[0]
            for graph in graphs(model.graph)
            for node in graph.node
            if node.op_type == "Cast"
        }
        self._weights: dict[str, Array | None] = {}

    def weight(self, layer: SparseLayer) -> Array | None:
        """The dense weight; None where its operands are no constants, or do not fit together.

        None also for a layer with an activation of its own: its function body holds that.
        """
        key = layer.node.output[0]
        if key not in self._weights:
            self._weights[key] = self._decode(layer.node)
        return self._weights[key]

    def _decode(self, node: onnx.NodeProto) -> Array | None:
        if any(attribute.name in ACTIVATION for attribute in node.attribute):
            return None
        names = operands(node)
        find = positions(node, self._tensors)
        shape = self._tensors.array(names[-1])
        values = self._tensors.array(self._widened.get(names[0], names[0]))
        if find is None or shape is None or values is None:
            return None
        flat = np.zeros(math.prod(int(d) for d in shape), np.float32)
        try:
            places = find()
        except ValueError:  # as below
            return None
        ordered = len(places) == len(values) and bool((places[1:] > places[:-1]).all())
        if not ordered or (len(places) and not 0 <= places[0] <= places[-1] < len(flat)):
            return None  # a malformed matrix: the session that reads it says what is wrong
        flat[places] = values
        return self._scaled(node, flat.reshape(shape))

    def _scaled(self, node: onnx.NodeProto, weight: Array) -> Array | None:
        """The weight times the scale of each row, where the node has one."""
        if node.op_type in DECODERS or len(node.input) <= _SCALE or not node.input[_SCALE]:
            return weight
        scale = self._tensors.array(node.input[_SCALE])
        if scale is None or scale.size != len(weight):
            return None
        scaled: Array = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
        return scaled


def plain_node(node: onnx.NodeProto, weight: str) -> onnx.NodeProto:
    """The standard node that a sparse operator stands for, reading the dense weight."""
    plain = onnx.NodeProto()
    plain.CopyFrom(node)
    plain.op_type, plain.domain = node.op_type.removeprefix("Csr"), ""
    del plain.input[:]
    # a bias that is left out must not be named: ONNX Runtime would then fuse nothing with the node
    plain.input.extend([node.input[0], weight, *filter(None, node.input[5:6])])
    return plain
