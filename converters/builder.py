"""The building of one fx graph from one ONNX graph, node by node."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from onnx import GraphProto, NodeProto, TensorProto
from torch import Tensor, fx, nn

from dns_onnx.converters import symbolic
from dns_onnx.converters.attributes import (
    attributes,
    constant_tensor,
    constant_value,
    sparse_to_dense,
)
from dns_onnx.converters.dtypes import (
    TRAINABLE,
    element_type,
    proto_to_torch,
    to_torch,
    torch_dtype,
)
from dns_onnx.converters.emit import emit_node, emit_opaque
from dns_onnx.converters.emit_values import emit_dims, emit_held, emit_known, safe_name
from dns_onnx.converters.fold import fold
from dns_onnx.converters.graph import ImportedGraph
from dns_onnx.converters.integer import use_whole_numbers
from dns_onnx.converters.layers import Layer, with_biases
from dns_onnx.converters.opaque import is_native
from dns_onnx.converters.order import Path, subgraphs, topological, used_names, weight_names
from dns_onnx.converters.pieces import pieces
from dns_onnx.converters.registry import find
from dns_onnx.converters.step import Step, label_of
from dns_onnx.converters.values import Dims, Shape, Value, element_and_shape, type_table
from dns_onnx.errors import DnsOnnxError, ModelError


class Builder:
    """Builds the fx graph of one ONNX graph: the model's, or the body of a control-flow node.

    typed: the same graph with the types that shape inference found.
    scope: the Builder of the enclosing graph, whose values this one may use; each one that is
    not a constant becomes a further placeholder, listed in `captured`.
    """

    def __init__(
        self,
        proto: GraphProto,
        typed: GraphProto,
        opsets: dict[str, int],
        scope: Builder | None = None,
        path: Path = (),
    ) -> None:
        self.proto = proto
        self.opsets = opsets
        self.scope = scope
        self.path = path
        self.weight_names: dict[tuple[Path, str], str] = (
            weight_names(proto, frozenset(TRAINABLE)) if scope is None else scope.weight_names
        )
        self.graph = fx.Graph()
        self.root = nn.Module()
        self.holder_names: set[str] = set() if scope is None else scope.holder_names
        self.values: dict[str, Value] = {}
        self.captured: list[Value] = []
        self.layers: list[Layer] = [] if scope is None else scope.layers
        self.opaque: list[str] = [] if scope is None else scope.opaque
        self.typed = typed
        self.types = type_table([*typed.value_info, *typed.output, *typed.input])
        self._last_placeholder: fx.Node | None = None
        self._read_initializers()

    # ---- values -----------------------------------------------------------------------------

    def _read_initializers(self) -> None:
        for tensor in self.proto.initializer:
            self.values[tensor.name] = self._held(tensor.name, tensor)
        for sparse in self.proto.sparse_initializer:
            name, dense = sparse.values.name, to_torch(sparse_to_dense(sparse))
            elem = sparse.values.data_type
            self.values[name] = self._held_value(name, elem, partial(_same, dense))
        for info in self.proto.input:
            if info.name not in self.values:
                self.add_input(info.name, *element_and_shape(info.type))

    def add_input(self, name: str, elem: int = 0, shape: Shape | None = None) -> Value:
        """A graph input: a further placeholder after those there are."""
        node = self._placeholder(name)
        value = self.values[name] = Value(name, elem, shape, node)
        return value

    def _placeholder(self, name: str) -> fx.Node:
        # placeholders stand before all other nodes, whenever they are found to be needed
        anchor = self._last_placeholder or self.graph._root
        with self.graph.inserting_after(anchor):
            node = self.graph.placeholder(safe_name(name))
        node.meta["onnx"] = name
        self._last_placeholder = node
        return node

    def _held(self, name: str, tensor: TensorProto) -> Value:
        shape = tuple(int(d) for d in tensor.dims)
        return self._held_value(name, tensor.data_type, lambda: proto_to_torch(tensor), shape)

    def _held_value(
        self, name: str, elem: int, constant: Callable[[], Any], shape: Shape | None = None
    ) -> Value:
        """An initializer's or Constant node's value; a float one becomes a holder when used."""
        if shape is None:
            shape = tuple(constant().shape)
        value = Value(name, elem, shape, constant=constant)
        value.scalar_weight = all(d == 1 for d in shape)
        value.weight = "" if value.scalar_weight else self._weight_name(name)
        if elem in TRAINABLE:
            value.trainable = True
            value.emit = lambda use: emit_held(self, value, use)
        return value

    def _weight_name(self, name: str) -> str:
        return self.weight_names.get((self.path, name), name)

    def unique_holder_name(self, name: str) -> str:
        """The initializer's name; made distinct if two bodies of control flow share it."""
        name = self._weight_name(name)
        free, count = name, 1
        while free in self.holder_names:
            free, count = f"{name}#{count}", count + 1
        self.holder_names.add(free)
        return free

    def value(self, name: str) -> Value | None:
        """The value called `name`, here or in an enclosing graph; None for an absent operand.

        Raises ModelError if nothing gives it.
        """
        if not name or name in self.values:
            return self.values.get(name)
        outer = None if self.scope is None else self.scope.value(name)
        if outer is None:
            raise ModelError(
                f"value '{name}': expected a node, input or initializer that gives it, got none; "
                "the model is incomplete"
            )
        self.values[name] = self._capture(outer)
        return self.values[name]

    def _capture(self, outer: Value) -> Value:
        """An enclosing graph's value as one of this graph."""
        inner = Value(outer.name, outer.elem, outer.shape)
        inner.constant = outer.tensor if outer.known else None
        inner.weight, inner.scalar_weight = outer.weight, outer.scalar_weight
        inner.trainable = outer.trainable
        inner.host = outer.host or outer.dims is not None
        if not outer.known or outer.trainable:
            inner.emit = lambda use: self._captured_node(inner, outer)
        return inner

    def _captured_node(self, inner: Value, outer: Value) -> fx.Node:
        if inner.node is None:
            inner.node = self._placeholder(outer.name)
            self.captured.append(outer)
        return inner.node

    def tensor(self, value: Value, use: str = "train") -> fx.Node:
        """The fx node that yields a value.

        use: "train", or "frozen" where the operand takes no part in training.
        """
        if value.emit is not None:
            value.node = value.emit(use)
        elif value.node is None and value.dims is not None:
            value.node = emit_dims(self, value)
        elif value.node is None:
            value.node = emit_known(self, value)
        return value.node

    def static(self, value: Value) -> Any:
        """A value as Python numbers, or as fx nodes that yield them."""
        if value.known:
            return value.python()
        if value.dims is not None:
            return value.dims.python()
        return symbolic.host_node(self, value)

    # ---- nodes ------------------------------------------------------------------------------

    def build(self) -> None:
        """Add every node of the ONNX graph.

        Raises ModelError, naming the node, for one that its operator cannot take.
        """
        for piece in pieces(topological(self.proto), self._is_opaque, self._holds_text):
            node = piece[-1]
            try:
                if len(piece) > 1 or self._is_opaque(node):
                    emit_opaque(self, piece)
                else:
                    self.add(node)
            except DnsOnnxError:
                raise
            except Exception as error:
                raise ModelError(
                    f"{node.op_type} '{label_of(node)}': expected operands and attributes that "
                    f"fit it, got {type(error).__name__}: {error}"
                ) from error

    def _is_opaque(self, node: NodeProto) -> bool:
        return not is_native(node, self.opsets)

    def _holds_text(self, node: NodeProto) -> bool:
        """Whether a node reads or gives strings: beside an opaque one it had better go along."""
        if node.op_type == "Constant" or any(subgraphs(node)):
            return False
        names = [*node.input, *node.output]
        return any(self.types.get(n, (0, None))[0] == TensorProto.STRING for n in names)

    def read_elsewhere(self, nodes: Sequence[NodeProto]) -> set[str]:
        """Names that the graph's outputs and all its other nodes read."""
        kept = {node.output[0] for node in nodes}
        others = (
            node for node in self.proto.node if node.output[:1] and node.output[0] not in kept
        )
        names = {name for node in others for name in used_names(node)}
        return names | {output.name for output in self.proto.output}

    def add(self, node: NodeProto) -> None:
        """Add one ONNX node: as a constant, as shape arithmetic, or as calls in the graph."""
        domain = "" if node.domain == "ai.onnx" else node.domain
        if node.op_type == "Constant" and not domain:
            self._add_constant(node)
            return
        found = find(node.op_type, self.opsets.get(domain, 1), domain)
        assert found is not None, "an opaque node"
        entry, version = found
        operands = [self.value(name) for name in node.input]
        if entry.graph:
            entry.function(self, node, operands, version)
            return
        step = Step(node, entry, version, operands, attributes(node))
        dims = symbolic.evaluate(self, step)
        if dims is not None:
            self.add_dims(node.output[0], dims)
        elif entry.pure and not entry.opaque and all(v is None or v.known for v in operands):
            fold(self, step)
        else:
            emit_node(self, step)

    def _add_constant(self, node: NodeProto) -> None:
        name, tensor = node.output[0], constant_tensor(node)
        if tensor is not None:
            self.values[name] = self._held(name, tensor)
            return
        value = constant_value(node)
        elem = element_type(value.dtype) if isinstance(value, Tensor) else TensorProto.STRING
        self.values[name] = self._held_value(name, elem, lambda: value)

    def add_dims(self, name: str, dims: Dims) -> None:
        """A value of shape arithmetic; one that is wholly known becomes a constant."""
        elem = self.types.get(name, (0, None))[0] or int(TensorProto.INT64)
        value = Value(name, elem, () if dims.scalar else (len(dims.entries),), host=True)
        if dims.known:
            known, dtype = dims.python(), torch_dtype(elem)
            value.constant = lambda: torch.tensor(known, dtype=dtype)
        else:
            value.dims = dims
        self.values[name] = value

    def child(self, proto: GraphProto, typed: GraphProto, below: Path = ()) -> Builder:
        """A builder for a body of one of this graph's nodes, or (`below` empty) a part of it."""
        return Builder(proto, typed, self.opsets, self, (*self.path, *below))

    def typed_body(self, node: NodeProto, name: str) -> GraphProto:
        """The body `name` of a node as shape inference left it."""
        for candidate in self.typed.node:
            if candidate.output[:1] == node.output[:1]:
                node = candidate
                break
        body: GraphProto = next(a.g for a in node.attribute if a.name == name)
        return body

    # ---- the result -------------------------------------------------------------------------

    def module(self, outputs: Iterable[str]) -> ImportedGraph:
        """The finished module that returns the named values."""
        self.build()
        nodes, outputs = [], list(outputs)
        for name in outputs:
            value = self.value(name)
            if value is None:
                raise ModelError("graph output: expected a name, got an empty one")
            nodes.append(self.tensor(value))
            _rename(nodes[-1], name, outputs)
        self.graph.output(nodes[0] if self._is_one_tensor() else tuple(nodes))
        use_whole_numbers(self.graph, self.root)
        self.graph.eliminate_dead_code(_is_impure)
        self._detach_statistics()
        module = ImportedGraph(self.root, self.graph)
        if self.scope is None:
            module.meta["layers"] = with_biases(self.layers, self.proto, self.values)
            module.meta["opaque"] = list(self.opaque)
        return module

    def _detach_statistics(self) -> None:
        """Keep gradients away from statistics whose initializer is a weight elsewhere."""
        for node in list(self.graph.nodes):
            if node.target is not torch.batch_norm:
                continue
            args = list(node.args)
            for index in (3, 4):
                if self.root.get_submodule(args[index].target).weight.requires_grad:
                    with self.graph.inserting_before(node):
                        args[index] = self.graph.call_method("detach", (args[index],))
            node.args = tuple(args)

    def _is_one_tensor(self) -> bool:
        """Whether the graph returns a tensor alone; one sequence is a tuple of one."""
        outputs = self.proto.output
        if len(outputs) != 1:
            return False
        return outputs[0].type.WhichOneof("value") in (None, "tensor_type")


def _same(value: Any) -> Any:
    return value


def _rename(node: fx.Node, output: str, outputs: Sequence[str]) -> None:
    """Let a computed value bear the name of the graph output that it is handed on as."""
    if node.op in ("call_function", "call_method") and node.meta.get("onnx") not in outputs:
        node.meta["onnx"] = output


def _is_impure(node: fx.Node) -> bool:
    return node.op in ("placeholder", "output")
