"""What follows a sparse layer, done by its kernel: batch norm, sum, bias and activation.

ONNX Runtime fuses these into its own dense nodes when it loads a file; it does not know ours.  So
the nodes in the file stay apart, and are joined here for the kernels (docs/operators-csr.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from dns_onnx.runtime.shapes import Dims, value_shapes
from dns_onnx.runtime.sites import ACTIVATION, DOMAIN, Array, Tensors, graphs, readers

_PLAIN = ("", "ai.onnx")
_SHAPE, _BIAS, _SCALE, _RESIDUAL = 4, 5, 6, 7  # inputs of a sparse operator


@dataclass
class _Scope:
    """One graph while its layers are joined.  nodes: in order; place: of each, by first output."""

    graph: onnx.GraphProto
    nodes: list[onnx.NodeProto | None]
    place: dict[str, int]
    reading: dict[str, list[str]]
    tensors: Tensors
    shapes: dict[str, Dims]

    def follower(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """The standard node of this graph that alone reads the layer's output."""
        users = self.reading.get(node.output[0], [])
        at = self.place.get(users[0]) if len(users) == 1 else None
        found = None if at is None else self.nodes[at]
        if found is None or found.domain not in _PLAIN:
            return None
        return found if len([name for name in found.output if name]) == 1 else None

    def add_constant(self, name: str, value: Array) -> str:
        self.graph.initializer.append(numpy_helper.from_array(value, name))
        return name


def fuse(model: onnx.ModelProto, tensors: Tensors) -> int:
    """Joins the sparse layers of the model, in place, with what only follows them.

    tensors: of the model.  Returns the number of nodes that are gone.
    """
    reading = readers(model)
    shapes = value_shapes(model, tensors)
    gone = 0
    for graph in list(graphs(model.graph)):
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node]
        place = {node.output[0]: i for i, node in enumerate(nodes) if node.output}
        scope = _Scope(graph, list(nodes), place, reading, tensors, shapes)
        for node in nodes:
            if node.domain == DOMAIN and node.op_type in _STEPS:
                _extend(scope, node)
        kept = [node for node in scope.nodes if node is not None]
        if len(kept) != len(nodes):
            gone += len(nodes) - len(kept)
            del graph.node[:]
            graph.node.extend(kept)
    return gone


def _extend(scope: _Scope, node: onnx.NodeProto) -> None:
    """Joins the layer with its followers, one after the other; none comes after an activation."""
    if any(a.name in ACTIVATION for a in node.attribute):
        return
    for step in _STEPS[node.op_type]:
        follower = scope.follower(node)
        if follower is None:
            return
        if step(scope, node, follower):
            # the layer moves to where its follower was: all it reads is computed before that
            scope.nodes[scope.place.pop(node.output[0])] = None
            node.output[0] = follower.output[0]
            scope.nodes[scope.place[node.output[0]]] = node


def _norm(scope: _Scope, node: onnx.NodeProto, norm: onnx.NodeProto) -> bool:
    """A batch norm scales the rows of the weight and moves the bias.  Source: ONNX, inference."""
    if norm.op_type != "BatchNormalization" or norm.input[0] != node.output[0]:
        return False
    given = {a.name: helper.get_attribute_value(a) for a in norm.attribute}
    if given.get("training_mode", 0) or not given.get("spatial", 1):
        return False
    read = [scope.tensors.array(name) for name in norm.input[1:5]]
    bias, own = _optional(scope, node, _BIAS), _optional(scope, node, _SCALE)
    if any(p is None for p in read) or (bias is None and _has(node, _BIAS)):
        return False
    gamma, beta, mean, variance = (np.asarray(p, np.float64) for p in read)
    scale = gamma / np.sqrt(variance + given.get("epsilon", 1e-5))
    moved = beta + scale * ((0.0 if bias is None else bias.astype(np.float64)) - mean)
    scaled = scale * (1.0 if own is None else own.astype(np.float64).reshape(-1))
    stem = norm.output[0]
    _set(node, _BIAS, scope.add_constant(f"{stem}.moved_bias", moved.astype(np.float32)))
    _set(node, _SCALE, scope.add_constant(f"{stem}.row_scale", scaled.astype(np.float32)))
    return True


def _residual(scope: _Scope, node: onnx.NodeProto, add: onnx.NodeProto) -> bool:
    """A sum with a value of the same shape."""
    if add.op_type not in ("Add", "Sum") or len(add.input) != 2 or _has(node, _RESIDUAL):
        return False
    other = add.input[1] if add.input[0] == node.output[0] else add.input[0]
    own = scope.shapes.get(node.output[0])
    if own is None or None in own or scope.shapes.get(other) != own:
        return False
    _set(node, _RESIDUAL, other)
    return True


def _bias(scope: _Scope, node: onnx.NodeProto, add: onnx.NodeProto) -> bool:
    """A sum with a constant vector, one entry for each column."""
    if add.op_type != "Add" or _has(node, _BIAS):
        return False
    other = add.input[1] if add.input[0] == node.output[0] else add.input[0]
    vector, shape = scope.tensors.array(other), scope.tensors.array(node.input[_SHAPE])
    if vector is None or shape is None or vector.dtype != np.float32:
        return False
    if vector.shape != (int(shape[-1]),):
        return False
    _set(node, _BIAS, other)
    return True


def _activation(scope: _Scope, node: onnx.NodeProto, follower: onnx.NodeProto) -> bool:
    """Relu, LeakyRelu, and Clip with constant bounds."""
    if follower.op_type == "Relu":
        found = {"low": 0.0}
    elif follower.op_type == "LeakyRelu":
        given = {a.name: helper.get_attribute_value(a) for a in follower.attribute}
        found = {"slope": given.get("alpha", 0.01)}
    elif follower.op_type == "Clip" and follower.input[0] == node.output[0]:
        bounds = _bounds(scope, follower)
        if bounds is None:
            return False
        found = bounds
    else:
        return False
    node.attribute.extend(helper.make_attribute(name, float(v)) for name, v in found.items())
    return True


def _bounds(scope: _Scope, clip: onnx.NodeProto) -> dict[str, float] | None:
    """Clip's bounds, attributes before operator set 11 and inputs from then on."""
    given = {a.name: helper.get_attribute_value(a) for a in clip.attribute}
    found = {}
    for i, (old, name) in enumerate((("min", "low"), ("max", "high")), start=1):
        if old in given:
            found[name] = float(given[old])
        elif _has(clip, i):
            bound = scope.tensors.array(clip.input[i])
            if bound is None or bound.size != 1:
                return None
            found[name] = float(bound.reshape(()))
    return found


def _has(node: onnx.NodeProto, index: int) -> bool:
    return len(node.input) > index and bool(node.input[index])


def _optional(scope: _Scope, node: onnx.NodeProto, index: int) -> Array | None:
    return scope.tensors.array(node.input[index]) if _has(node, index) else None


def _set(node: onnx.NodeProto, index: int, name: str) -> None:
    while len(node.input) <= index:
        node.input.append("")
    node.input[index] = name


_STEPS = {
    "CsrConv": (_norm, _residual, _activation),
    "CsrGemm": (_activation,),
    "CsrMatMul": (_bias, _activation),
}
