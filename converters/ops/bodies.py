"""Bodies of control-flow nodes: modules of their own, run by small functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from onnx import GraphProto, NodeProto
from torch import fx

from dns_onnx.converters.emit import note_outputs, put
from dns_onnx.converters.emit_values import attach
from dns_onnx.converters.order import body_step
from dns_onnx.converters.values import Value

if TYPE_CHECKING:
    from dns_onnx.converters.builder import Builder

Operands = Sequence[Value | None]
Body = Any


def body_node(
    builder: Builder, node: NodeProto, name: str, host: Sequence[bool] = ()
) -> tuple[fx.Node, list[fx.Node], GraphProto]:
    """A body as a node that yields its module, and what it takes from outside.

    host: which of its inputs are CPU values.
    """
    proto = next(a.g for a in node.attribute if a.name == name)
    child = builder.child(proto, builder.typed_body(node, name), (body_step(node, name),))
    for info, on_host in zip(proto.input, host, strict=False):
        child.values[info.name].host = on_host
    module = child.module(output.name for output in proto.output)
    target = attach(builder, f"{node.name or node.output[0]}_{name}", module)
    outside = [builder.tensor(value) for value in child.captured]
    return builder.graph.get_attr(target), outside, proto


def finish(builder: Builder, node: NodeProto, function: Any, args: tuple[Any, ...]) -> None:
    """Write the call that runs a node's bodies, and note the node's outputs."""
    call = put(builder, function, args)
    note_outputs(builder, node, call)


def as_tuple(result: Any) -> tuple[Any, ...]:
    """What a body returned, always as a tuple."""
    return result if type(result) is tuple else (result,)


def run_body(body: Body, outside: tuple[Any, ...]) -> tuple[Any, ...]:
    """The outputs of a body."""
    return as_tuple(body(*outside))
