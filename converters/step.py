"""One ONNX node about to be built, with everything that is known about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onnx import NodeProto

from dns_onnx.converters.registry import Operator
from dns_onnx.converters.values import Value

Operands = Sequence[Value | None]


class Step:
    """An ONNX node, the operator that computes it, and its operands.

    version: the schema version of the operator.  attrs: ONNX attributes as Python values.
    names: the operator function's name for each operand.  plain: which operands go into the call
    as Python values.  label: what to call the node.
    """

    __slots__ = ("attrs", "entry", "label", "names", "operands", "plain", "proto", "version")

    def __init__(
        self,
        proto: NodeProto,
        entry: Operator,
        version: int,
        operands: Operands,
        attrs: dict[str, Any],
    ) -> None:
        self.proto = proto
        self.entry = entry
        self.version = version
        self.operands = operands
        self.attrs = attrs
        self.names = [entry.operand(index) for index in range(len(operands))]
        self.plain = [
            value is not None and (name in entry.static or _is_literal(entry, name, value))
            for value, name in zip(operands, self.names, strict=True)
        ]
        self.label = label_of(proto)


def _is_literal(entry: Operator, name: str, value: Value) -> bool:
    """Whether an operand is a known scalar that the operator takes as a number."""
    if name not in entry.literal or not value.known:
        return False
    return all(d == 1 for d in value.known_shape() or ())


def label_of(proto: NodeProto) -> str:
    """The node's name, or its first output's if it has none."""
    return str(proto.name or next((name for name in proto.output if name), proto.op_type))
