"""The layers of an imported graph: which initializers surgery may cut, and why not the others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from onnx import GraphProto, NodeProto
from torch import fx

from dns_onnx.converters.dtypes import TRAINABLE
from dns_onnx.converters.step import Step
from dns_onnx.converters.values import Value


@dataclass(frozen=True)
class Layer:
    """One weight of one node.

    node: the ONNX node's name, or its first output's if it has none.
    weight, bias: ONNX initializer names.  shape: the weight's, as the initializer has it.
    prunable: surgery may cut it.  reason: why not; "" if it may.
    out_axis, in_axis: of the weight; None where it has no one axis of outputs or inputs.
    """

    node: str
    op_type: str
    weight: str
    bias: str | None
    shape: tuple[int, ...]
    prunable: bool
    reason: str
    out_axis: int | None = None
    in_axis: int | None = None


def layers(graph: fx.GraphModule) -> list[Layer]:
    """The layers of an imported graph in graph order; a weight that is used twice stands once."""
    found: list[Layer] = list(graph.meta.get("layers", []))
    return found


def describe_layer(step: Step) -> list[Layer]:
    """The layers of one node: one for each prunable operand that comes from an initializer."""
    rows = []
    operands = list(zip(step.operands, step.names, strict=True))
    bias = next((v for v, n in operands if v is not None and n == step.entry.bias), None)
    for value, name in operands:
        if name in step.entry.prunable and value is not None and value.weight:
            reason = _reason(value)
            rows.append(
                Layer(
                    node=step.label,
                    op_type=step.proto.op_type,
                    weight=value.weight,
                    bias=bias.weight or None if bias is not None and bias.trainable else None,
                    shape=_weight_shape(value),
                    prunable=not reason,
                    reason=reason,
                    **_axes(step, name),
                )
            )
    return rows


def _axes(step: Step, operand: str) -> dict[str, int]:
    """Which axis of the initializer holds the outputs, and which the summed inputs.

    Only where the node reads the initializer as it is, not a Transpose or Reshape of it.
    """
    direct = {
        v.weight
        for v in step.operands
        if v is not None and (v.weight == v.name or v.weight.startswith(f"{v.name}#"))
    }
    value = step.operands[step.names.index(operand)]
    if value is None or value.weight not in direct:
        return {}
    match step.proto.op_type:
        case "Conv":
            return {"out_axis": 0, "in_axis": 1}
        case "ConvTranspose":
            return {"out_axis": 1, "in_axis": 0}
        case "Gemm":
            rows = bool(step.attrs.get("transB", 0))
            return {"out_axis": 0, "in_axis": 1} if rows else {"out_axis": 1, "in_axis": 0}
        case "MatMul" if operand == step.names[1] and len(_weight_shape(value)) == 2:
            return {"out_axis": 1, "in_axis": 0}
    return {}


def _reason(value: Value) -> str:
    if not value.trainable:
        return "not a float weight" if value.elem not in TRAINABLE else "not trained"
    return ""


def _weight_shape(value: Value) -> tuple[int, ...]:
    return tuple(int(d or 0) for d in value.known_shape() or ())


def with_biases(
    found: Sequence[Layer], graph: GraphProto, values: Mapping[str, Any]
) -> list[Layer]:
    """The layers in order, each weight once, with the initializer's own shape.

    A layer without a bias operand takes that of the Add which alone reads its result.
    """
    users: dict[str, list[NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            users[name].append(node)
    results = {node.name or node.output[0]: node.output[0] for node in graph.node if node.output}
    rows: dict[str, Layer] = {}
    for layer in found:
        source = values.get(layer.weight)
        shape = layer.shape if source is None or source.shape is None else source.shape
        bias = layer.bias or _added_bias(users.get(results.get(layer.node, ""), []), values)
        reason = layer.reason if source is None else _reason(source)
        row = replace(
            layer,
            shape=tuple(int(d or 0) for d in shape),
            bias=bias,
            prunable=not reason,
            reason=reason,
        )
        rows.setdefault(layer.weight, row)
    return list(rows.values())


def _added_bias(users: Sequence[NodeProto], values: Mapping[str, Any]) -> str | None:
    """The initializer that the only reader of a layer's result adds to it."""
    if len(users) != 1 or users[0].op_type != "Add":
        return None
    for name in users[0].input:
        value = values.get(name)
        if value is not None and value.trainable and value.weight:
            shape = value.shape or ()
            if sum(d != 1 for d in shape) == 1:
                return str(value.weight)
    return None
