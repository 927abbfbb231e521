"""Control flow: If, Loop and SequenceMap."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from onnx import NodeProto, TensorProto, ValueInfoProto
from torch import Tensor, fx

from dns_onnx.converters.dtypes import torch_dtype
from dns_onnx.converters.emit_values import emit_host_known
from dns_onnx.converters.ops.bodies import Body, Operands, as_tuple, body_node, finish, run_body
from dns_onnx.converters.registry import op
from dns_onnx.converters.values import Value

if TYPE_CHECKING:
    from dns_onnx.converters.builder import Builder


@op("If", 1, 11, 13, 16, 19, 21, 23, 24, 25, graph=True)
def if_(builder: Builder, node: NodeProto, operands: Operands, version: int) -> None:
    """One of two bodies; a condition known at import leaves only that one.

    Source: ONNX operators, If 1-25.
    """
    condition = operands[0]
    assert condition is not None
    if condition.known:
        taken = bool(torch.as_tensor(condition.tensor()).reshape(-1)[0])
        name = "then_branch" if taken else "else_branch"
        body, outside, _ = body_node(builder, node, name)
        finish(builder, node, run_body, (body, tuple(outside)))
        return
    then, then_outside, _ = body_node(builder, node, "then_branch")
    other, other_outside, _ = body_node(builder, node, "else_branch")
    chosen = builder.static(condition)
    args = (chosen, then, other, tuple(then_outside), tuple(other_outside))
    finish(builder, node, run_if, args)


def run_if(
    condition: Any, then: Body, other: Body, then_outside: Any, other_outside: Any
) -> tuple[Any, ...]:
    """The outputs of one of the bodies."""
    while isinstance(condition, list):
        condition = condition[0]
    if condition:
        return run_body(then, then_outside)
    return run_body(other, other_outside)


def _operand(builder: Builder, value: Value | None) -> tuple[fx.Node | None, bool]:
    """The node of a loop-carried value, and whether it stays on the CPU (counters do)."""
    if value is None:
        return None, False
    if value.known and not value.trainable:
        elem_is_int = value.elem in (6, 7, 9)
        if elem_is_int:
            return emit_host_known(builder, value), True
    return builder.tensor(value), value.host or value.dims is not None


@op("Loop", 1, 11, 13, 16, 19, 21, 23, 24, 25, graph=True)
def loop(builder: Builder, node: NodeProto, operands: Operands, version: int) -> None:
    """A body again and again, its results carried on or stacked.

    Source: ONNX operators, Loop 1-25.
    """
    trips, condition, *carried = operands
    states = [_operand(builder, value) for value in carried]
    host = [True, True, *(on_host for _, on_host in states)]
    body, outside, proto = body_node(builder, node, "body", host)
    limit = None if trips is None else builder.static(trips)
    go_on = None if condition is None else builder.static(condition)
    empty = [_empty(output) for output in proto.output[1 + len(carried) :]]
    args = (
        body,
        limit,
        go_on,
        tuple(state for state, _ in states),
        tuple(outside),
        tuple(host[2:]),
        empty,
    )
    finish(builder, node, run_loop, args)


def _empty(output: ValueInfoProto) -> tuple[list[int], torch.dtype]:
    """Shape and type of a stacked output after no iteration at all."""
    kind = output.type.tensor_type
    elem = kind.elem_type or TensorProto.FLOAT
    return [0, *(int(d.dim_value) for d in kind.shape.dim)], torch_dtype(elem)


def _flag(value: Any) -> bool:
    while isinstance(value, list):
        value = value[0]
    return bool(value)


def run_loop(
    body: Body,
    trips: Any,
    condition: Any,
    states: tuple[Any, ...],
    outside: tuple[Any, ...],
    host: tuple[bool, ...],
    empty: list[tuple[list[int], torch.dtype]],
) -> tuple[Any, ...]:
    """Iterate a body: the final states, then the outputs of every iteration stacked."""
    while isinstance(trips, list):
        trips = trips[0]
    go_on = condition is None or _flag(condition)
    collected: list[list[Any]] = [[] for _ in empty]
    count = 0
    while go_on and (trips is None or count < trips):
        inputs = (torch.tensor(count), torch.tensor(True), *states, *outside)
        result = as_tuple(body(*inputs))
        go_on = _flag(result[0])
        new = result[1 : 1 + len(states)]
        states = tuple(
            s.cpu() if h and isinstance(s, Tensor) else s for s, h in zip(new, host, strict=True)
        )
        for place, value in zip(collected, result[1 + len(states) :], strict=True):
            place.append(value)
        count += 1
    device = next((s.device for s in (*states, *outside) if _on_device(s)), None)
    stacked = [
        torch.stack(values) if values else torch.zeros(shape, dtype=dtype, device=device)
        for values, (shape, dtype) in zip(collected, empty, strict=True)
    ]
    return (*states, *stacked)


def _on_device(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type != "cpu"


@op("SequenceMap", 17, graph=True)
def sequence_map(builder: Builder, node: NodeProto, operands: Operands, version: int) -> None:
    """A body for each element of a sequence.  Source: ONNX operators, SequenceMap 17."""
    body, outside, _ = body_node(builder, node, "body")
    values = tuple(None if v is None else builder.tensor(v) for v in operands)
    finish(builder, node, run_sequence_map, (body, values, tuple(outside), len(node.output)))


def run_sequence_map(
    body: Body, values: tuple[Any, ...], outside: tuple[Any, ...], outputs: int
) -> tuple[list[Any], ...]:
    """Lists of the body's outputs; operands that are no lists go into every call."""
    rows = []
    for index in range(len(values[0])):
        inputs = [v[index] if isinstance(v, (list, tuple)) else v for v in values]
        rows.append(as_tuple(body(*inputs, *outside)))
    columns = [list(column) for column in zip(*rows, strict=True)]
    return tuple(columns) if columns else tuple([] for _ in range(outputs))
