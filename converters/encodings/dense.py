"""Format `dense`: every stored form back to a plain tensor and the plain node that reads it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from dns_onnx.converters.encodings import decode
from dns_onnx.converters.encodings.coo import position
from dns_onnx.converters.encodings.functions import DOMAIN
from dns_onnx.converters.encodings.kernels import take_activation, to_plain
from dns_onnx.converters.encodings.matrix import Array
from dns_onnx.converters.encodings.parts import DECODE, make_tensor
from dns_onnx.converters.encodings.sites import (
    all_graphs,
    bodies,
    constant_tensor,
    node_index,
)
from dns_onnx.errors import ModelError

FORMAT_KEY = "dns_onnx.format"
IR_KEY = "dns_onnx.ir_version"
GRAPH_INPUTS_KEY = "dns_onnx.graph_inputs"

_KERNELS = ("CsrGemm", "CsrMatMul", "CsrConv")

# Inputs of a sparse operator: what makes up its matrix.  The others are values of the graph.
_OPERANDS = (1, 2, 3, 4, 6)
_ROW_PTR, _SCALE = 3, 6


def is_encoded(model: ModelProto) -> bool:
    """Whether any weight of the model is stored in another form than dense."""
    if any(entry.domain == DOMAIN for entry in model.opset_import):
        return True
    return any(
        graph.sparse_initializer
        or any(_is_decoding(n) or n.domain == DOMAIN or _sparse_value(n) for n in graph.node)
        for graph in all_graphs(model.graph)
    )


def to_dense(model: ModelProto) -> ModelProto:
    """A copy of the model with every weight dense again and every node as it was at first.

    Undoes `csr`, `portable` and `coo`, Constant(sparse_value) included; the rest stays untouched.
    Raises ModelError if a stored weight is malformed, or computed from the model's inputs.
    """
    dense = ModelProto()
    dense.CopyFrom(model)
    scope = _scopes(dense.graph, None)
    for inner in _below(scope):
        _restore_sparse_tensors(inner.graph)
        inner.refresh()
    plain = _read_by_plain_nodes(dense.graph)
    weights = [weight for inner in _below(scope) for weight in _stored(inner, plain)]
    _put_back(weights)
    for inner in _below(scope):
        _drop_decoding(inner.graph)
    _drop_operands(dense.graph, {name for weight in weights for name in weight.operands})
    _restore_model(dense)
    return dense


@dataclass
class _Scope:
    """One graph, with what its names stand for; `outer` is the graph around it."""

    graph: GraphProto
    outer: _Scope | None
    inner: list[_Scope] = field(default_factory=list)
    tensors: dict[str, TensorProto] = field(default_factory=dict)
    producers: dict[str, NodeProto] = field(default_factory=dict)

    def refresh(self) -> None:
        self.tensors = {tensor.name: tensor for tensor in self.graph.initializer}
        self.producers = {name: node for node in self.graph.node for name in node.output if name}

    def find(self, name: str) -> tuple[_Scope, TensorProto | None, NodeProto | None]:
        """The scope that defines `name`, with its tensor, or the node that computes it."""
        at: _Scope | None = self
        while at is not None:
            if name in at.tensors:
                return at, at.tensors[name], None
            if name in at.producers:
                node = at.producers[name]
                return at, constant_tensor(node), node
            at = at.outer
        return self, None, None


@dataclass
class _Weight:
    """A weight found in stored form: what it is worth, and where its values lie.

    graph: which decodes or reads it.
    node: the sparse operator that reads it, or None if decoding nodes yield it under its name.
    """

    name: str
    array: Array
    home: tuple[_Scope, str]
    operands: set[str]
    graph: GraphProto
    node: NodeProto | None


def _scopes(graph: GraphProto, outer: _Scope | None) -> _Scope:
    scope = _Scope(graph, outer)
    scope.refresh()
    for node in graph.node:
        scope.inner.extend(_scopes(body, scope) for body in bodies(node))
    return scope


def _below(scope: _Scope) -> Iterator[_Scope]:
    yield scope
    for inner in scope.inner:
        yield from _below(inner)


def _is_decoding(node: NodeProto) -> bool:
    if node.domain == DOMAIN:
        return node.op_type not in _KERNELS
    return node.name.startswith(f"{DECODE}/")


def _is_kernel(node: NodeProto) -> bool:
    return node.domain == DOMAIN and node.op_type in _KERNELS


def _sparse_value(node: NodeProto) -> bool:
    return node.op_type == "Constant" and any(a.name == "sparse_value" for a in node.attribute)


def _read_by_plain_nodes(graph: GraphProto) -> set[str]:
    """Names that something other than the decoding reads: they hold whole weights."""
    names: set[str] = set()
    for inner in all_graphs(graph):
        names.update(value.name for value in inner.output)
        for node in inner.node:
            if _is_kernel(node):
                names.update(n for i, n in enumerate(node.input) if i not in _OPERANDS)
            elif not _is_decoding(node):
                names.update(node.input)
    return names


def _stored(scope: _Scope, plain: set[str]) -> Iterator[_Weight]:
    """The stored weights whose last decoding node, or sparse operator, is in this graph."""
    for node in scope.graph.node:
        if _is_kernel(node):
            operands: set[str] = set()
            (array,) = decode.evaluate(node, _matrix(scope, node, operands))
            home = _home(scope, node.input[1])
            name = _weight_name(scope, home[1])
            yield _Weight(name, array, home, operands, scope.graph, node)
        elif _is_decoding(node) and node.output[0] in plain:
            operands = set()
            array = _value(scope, node.output[0], node, operands)
            home = _home(scope, node.output[0])
            yield _Weight(node.output[0], array, home, operands, scope.graph, None)


def _matrix(scope: _Scope, node: NodeProto, operands: set[str]) -> list[Array | None]:
    """The parts of a sparse operator's matrix; notes the tensors they are made of."""
    names = [node.input[i] if i < len(node.input) else "" for i in _OPERANDS]
    missing = [i for i, name in zip(_OPERANDS, names, strict=True) if not name]
    if not set(missing) <= {_ROW_PTR, _SCALE}:
        raise ModelError(
            f"{node.op_type} '{node.name or node.output[0]}': expected the inputs values, "
            f"col_indices and shape, got none at {missing}; export the model again"
        )
    return [_value(scope, name, node, operands) if name else None for name in names]


def _value(scope: _Scope, name: str, reader: NodeProto, operands: set[str]) -> Array:
    """The constant that `name` stands for, decoded; notes the tensors it is made of."""
    at, tensor, node = scope.find(name)
    if tensor is not None:
        operands.add(name)
        return numpy_helper.to_array(tensor)
    if node is None or not _is_decoding(node):
        raise ModelError(
            f"{reader.op_type} '{reader.name or reader.output[0]}': expected '{name}' to be "
            "stored in the file, got a value computed at run time; export the model again"
        )
    inputs = [_value(at, name, node, operands) if name else None for name in node.input]
    return decode.evaluate(node, inputs)[list(node.output).index(name)]


def _home(scope: _Scope, name: str) -> tuple[_Scope, str]:
    """The scope and name of the stored values that the decoded `name` is made of."""
    at, tensor, node = scope.find(name)
    if tensor is not None or node is None or not node.input:
        return at, name
    return _home(at, node.input[2 if node.op_type == "ScatterElements" else 0])


def _weight_name(scope: _Scope, values: str) -> str:
    """The weight's own name, from that of its stored values."""
    name = values.removesuffix(".values") if values.endswith(".values") else f"{values}.dense"
    return name


def _put_back(weights: list[_Weight]) -> None:
    """Write each weight where its values lie, and turn the sparse operators back."""
    taken: dict[tuple[int, str], str] = {}
    for weight in weights:
        scope, values = weight.home
        if weight.node is not None:
            plain = to_plain(weight.node, weight.name)
            at = node_index(weight.graph, weight.node) + 1
            for offset, after in enumerate(take_activation(weight.node, plain), start=at):
                weight.graph.node.insert(offset, after)
            weight.node.CopyFrom(plain)
        tensor = make_tensor(weight.name, weight.array)
        holder = taken.setdefault((id(scope), values), weight.name)
        old, node = scope.tensors.get(values), scope.producers.get(values)
        if (old is None and node is None) or holder != weight.name:
            scope.graph.initializer.append(tensor)
        elif old is not None and old.name == values:
            _overwrite(old, tensor)
        elif node is not None and node.output[0] == values:
            _overwrite(node.attribute[0].t, tensor)
            node.attribute[0].t.ClearField("name")
            node.output[0] = weight.name


def _overwrite(old: TensorProto, new: TensorProto) -> None:
    """Replace a tensor, its own note kept."""
    if old.doc_string:
        new.doc_string = old.doc_string
    old.CopyFrom(new)


def _drop_decoding(graph: GraphProto) -> None:
    for index in reversed(range(len(graph.node))):
        if _is_decoding(graph.node[index]):
            del graph.node[index]


def _drop_operands(graph: GraphProto, operands: set[str]) -> None:
    """Remove the index arrays that nothing reads any more."""
    read = _read_by_plain_nodes(graph)
    for inner in all_graphs(graph):
        for index in reversed(range(len(inner.initializer))):
            name = inner.initializer[index].name
            if name in operands and name not in read:
                del inner.initializer[index]


def _restore_sparse_tensors(graph: GraphProto) -> None:
    """sparse_initializer and Constant(sparse_value) become plain tensors."""
    for sparse in sorted(graph.sparse_initializer, key=lambda s: position(s.values)):
        array = decode.sparse_tensor(sparse)
        tensor = make_tensor(sparse.values.name, array)
        if sparse.values.doc_string:
            tensor.doc_string = sparse.values.doc_string
        graph.initializer.insert(min(position(sparse.values), len(graph.initializer)), tensor)
    del graph.sparse_initializer[:]
    for node in graph.node:
        if _sparse_value(node):
            array = decode.sparse_tensor(node.attribute[0].sparse_tensor)
            tensor = make_tensor("", array)
            del node.attribute[:]
            node.attribute.append(helper.make_attribute("value", tensor))


def _restore_model(model: ModelProto) -> None:
    """Drop our functions and import, and undo what the export noted about the model itself."""
    for index in reversed(range(len(model.functions))):
        if model.functions[index].domain == DOMAIN:
            del model.functions[index]
    for index in reversed(range(len(model.opset_import))):
        if model.opset_import[index].domain == DOMAIN:
            del model.opset_import[index]
    notes = {e.key: e.value for e in model.metadata_props}
    if IR_KEY in notes:
        model.ir_version = int(notes[IR_KEY])
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for place, name in json.loads(notes.get(GRAPH_INPUTS_KEY, "[]")):
        if name in tensors:
            tensor = tensors[name]
            info = helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims))
            model.graph.input.insert(place, info)
    for index in reversed(range(len(model.metadata_props))):
        if model.metadata_props[index].key in (FORMAT_KEY, IR_KEY, GRAPH_INPUTS_KEY):
            del model.metadata_props[index]
