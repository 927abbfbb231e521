"""Control flow: the bodies become modules of their own, run by small functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from onnx import GraphProto, NodeProto
from torch import Tensor, fx

from dns_onnx.converters.attributes import attributes
from dns_onnx.converters.emit import note_outputs, put
from dns_onnx.converters.emit_values import attach, emit_host_known
from dns_onnx.converters.ops.attention import flex_attention
from dns_onnx.converters.registry import op
from dns_onnx.converters.values import Value

if TYPE_CHECKING:
    from dns_onnx.converters.builder import Builder

Operands = Sequence[Value | None]
Body = Any


def _body(
    builder: Builder, node: NodeProto, name: str, host: Sequence[bool] = ()
) -> tuple[fx.Node, list[fx.Node], GraphProto]:
    """A body as a node that yields its module, and what it takes from outside.

    host: which of its inputs are CPU values.
    """
    proto = next(a.g for a in node.attribute if a.name == name)
    child = builder.child(proto, builder.typed_body(node, name))
    for info, on_host in zip(proto.input, host, strict=False):
        child.values[info.name].host = on_host
    module = child.module(output.name for output in proto.output)
    target = attach(builder, f"{node.name or node.output[0]}_{name}", module)
    outside = [builder.tensor(value) for value in child.captured]
    return builder.graph.get_attr(target), outside, proto


def _operand(builder: Builder, value: Value | None) -> tuple[fx.Node | None, bool]:
    """The node of a loop-carried value, and whether it stays on the CPU (counters do)."""
    if value is None:
        return None, False
    if value.known and not value.trainable:
        elem_is_int = value.elem in (6, 7, 9)
        if elem_is_int:
            return emit_host_known(builder, value), True
    return builder.tensor(value), value.host or value.dims is not None


def _finish(builder: Builder, node: NodeProto, function: Any, args: tuple[Any, ...]) -> None:
    call = put(builder, function, args)
    note_outputs(builder, node, call)


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
        body, outside, _ = _body(builder, node, name)
        _finish(builder, node, run_body, (body, tuple(outside)))
        return
    then, then_outside, _ = _body(builder, node, "then_branch")
    other, other_outside, _ = _body(builder, node, "else_branch")
    chosen = builder.static(condition)
    args = (chosen, then, other, tuple(then_outside), tuple(other_outside))
    _finish(builder, node, run_if, args)


def run_body(body: Body, outside: tuple[Any, ...]) -> tuple[Any, ...]:
    """The outputs of a body, always as a tuple."""
    return _tuple(body(*outside), body)


def _tuple(result: Any, body: Body) -> tuple[Any, ...]:
    return result if type(result) is tuple else (result,)


def run_if(
    condition: Any, then: Body, other: Body, then_outside: Any, other_outside: Any
) -> tuple[Any, ...]:
    """The outputs of one of the bodies."""
    while isinstance(condition, list):
        condition = condition[0]
    if condition:
        return run_body(then, then_outside)
    return run_body(other, other_outside)


@op("Loop", 1, 11, 13, 16, 19, 21, 23, 24, 25, graph=True)
def loop(builder: Builder, node: NodeProto, operands: Operands, version: int) -> None:
    """A body again and again, its results carried on or stacked.

    Source: ONNX operators, Loop 1-25.
    """
    trips, condition, *carried = operands
    states = [_operand(builder, value) for value in carried]
    host = [True, True, *(on_host for _, on_host in states)]
    body, outside, proto = _body(builder, node, "body", host)
    limit = None if trips is None else builder.static(trips)
    go_on = None if condition is None else builder.static(condition)
    empty = [_empty_shape(output) for output in proto.output[1 + len(carried) :]]
    args = (
        body,
        limit,
        go_on,
        tuple(state for state, _ in states),
        tuple(outside),
        tuple(host[2:]),
        empty,
    )
    _finish(builder, node, run_loop, args)


def _empty_shape(output: Any) -> list[int]:
    """The shape of a stacked output after no iteration at all."""
    shape = output.type.tensor_type.shape
    return [0, *(int(d.dim_value) for d in shape.dim)]


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
    empty: list[list[int]],
) -> tuple[Any, ...]:
    """Iterate a body: the final states, then the outputs of every iteration stacked."""
    while isinstance(trips, list):
        trips = trips[0]
    go_on = condition is None or _flag(condition)
    collected: list[list[Any]] = [[] for _ in empty]
    count = 0
    while go_on and (trips is None or count < trips):
        inputs = (torch.tensor(count), torch.tensor(True), *states, *outside)
        result = _tuple(body(*inputs), body)
        go_on = _flag(result[0])
        new = result[1 : 1 + len(states)]
        states = tuple(
            s.cpu() if h and isinstance(s, Tensor) else s for s, h in zip(new, host, strict=True)
        )
        for place, value in zip(collected, result[1 + len(states) :], strict=True):
            place.append(value)
        count += 1
    stacked = [
        torch.stack(values) if values else torch.zeros(shape)
        for values, shape in zip(collected, empty, strict=True)
    ]
    return (*states, *stacked)


@op("Scan", 9, 11, 16, 19, 21, 23, 24, 25, graph=True)
def scan(builder: Builder, node: NodeProto, operands: Operands, version: int) -> None:
    """A body over the slices of its scan inputs.  Source: ONNX operators, Scan 9-25."""
    body, outside, proto = _body(builder, node, "body")
    attrs = attributes(node)
    scans = int(attrs["num_scan_inputs"])
    values = [None if v is None else builder.tensor(v) for v in operands]
    split = len(values) - scans
    results = len(proto.output) - split
    args = (
        body,
        tuple(values[:split]),
        tuple(values[split:]),
        tuple(outside),
        attrs.get("scan_input_axes") or [0] * scans,
        attrs.get("scan_input_directions") or [0] * scans,
        attrs.get("scan_output_axes") or [0] * results,
        attrs.get("scan_output_directions") or [0] * results,
    )
    _finish(builder, node, run_scan, args)


def run_scan(
    body: Body,
    states: tuple[Any, ...],
    scans: tuple[Tensor, ...],
    outside: tuple[Any, ...],
    axes: list[int],
    backward: list[int],
    output_axes: list[int],
    output_backward: list[int],
) -> tuple[Any, ...]:
    """Run a body over slices: the final states, then the stacked outputs.

    backward, output_backward: 1 = the scan input is read, or the output written, from its end.
    """
    steps = scans[0].shape[axes[0]]
    collected: list[list[Tensor]] = [[] for _ in output_axes]
    for step in range(steps):
        slices = [
            x.select(axis, steps - 1 - step if back else step)
            for x, axis, back in zip(scans, axes, backward, strict=True)
        ]
        result = _tuple(body(*states, *slices, *outside), body)
        states = result[: len(states)]
        for place, value in zip(collected, result[len(states) :], strict=True):
            place.append(value)
    stacked = []
    for values, axis, back in zip(collected, output_axes, output_backward, strict=True):
        ordered = values[::-1] if back else values
        stacked.append(torch.stack(ordered, axis if axis >= 0 else axis + ordered[0].dim() + 1))
    return (*states, *stacked)


@op("Scan", 8, graph=True)
def scan_8(builder: Builder, node: NodeProto, operands: Operands, version: int) -> None:
    """A body over the time steps of each sample of a batch.

    The first operand gives the samples' lengths.  Source: ONNX operators, Scan 8.
    """
    body, outside, _ = _body(builder, node, "body")
    attrs = attributes(node)
    scans = int(attrs["num_scan_inputs"])
    values = [None if v is None else builder.tensor(v) for v in operands]
    split = len(values) - scans
    args = (
        body,
        values[0],
        tuple(values[1:split]),
        tuple(values[split:]),
        tuple(outside),
        attrs.get("directions") or [0] * scans,
    )
    _finish(builder, node, run_scan_8, args)


def run_scan_8(
    body: Body,
    lengths: Tensor | None,
    states: tuple[Tensor, ...],
    scans: tuple[Tensor, ...],
    outside: tuple[Any, ...],
    backward: list[int],
) -> tuple[Any, ...]:
    """Run a body over [B, T, ...] inputs, sample by sample; outputs beyond a length are zero."""
    longest = scans[0].shape[1]
    samples = []
    for index in range(scans[0].shape[0]):
        length = longest if lengths is None else int(lengths[index])
        result = run_scan(
            body,
            tuple(s[index] for s in states),
            tuple(x[index, :length] for x in scans),
            outside,
            [0] * len(scans),
            backward,
            [0] * _scan_outputs(body, len(states)),
            [0] * _scan_outputs(body, len(states)),
        )
        padded = [
            torch.cat([r, r.new_zeros(longest - length, *r.shape[1:])]) if length < longest else r
            for r in result[len(states) :]
        ]
        samples.append((*result[: len(states)], *padded))
    return tuple(torch.stack(group) for group in zip(*samples, strict=True))


def _scan_outputs(body: Body, states: int) -> int:
    returned = next(n for n in body.graph.nodes if n.op == "output").args[0]
    return (len(returned) if isinstance(returned, tuple) else 1) - states


@op("SequenceMap", 17, graph=True)
def sequence_map(builder: Builder, node: NodeProto, operands: Operands, version: int) -> None:
    """A body for each element of a sequence.  Source: ONNX operators, SequenceMap 17."""
    body, outside, _ = _body(builder, node, "body")
    values = tuple(None if v is None else builder.tensor(v) for v in operands)
    _finish(builder, node, run_sequence_map, (body, values, tuple(outside), len(node.output)))


def run_sequence_map(
    body: Body, values: tuple[Any, ...], outside: tuple[Any, ...], outputs: int
) -> tuple[list[Any], ...]:
    """Lists of the body's outputs; operands that are no lists go into every call."""
    rows = []
    for index in range(len(values[0])):
        inputs = [v[index] if isinstance(v, (list, tuple)) else v for v in values]
        rows.append(_tuple(body(*inputs, *outside), body))
    columns = [list(column) for column in zip(*rows, strict=True)]
    return tuple(columns) if columns else tuple([] for _ in range(outputs))


@op("FlexAttention", 1, domain="ai.onnx.preview", graph=True)
def flex(builder: Builder, node: NodeProto, operands: Operands, version: int) -> None:
    """Attention whose scores and probabilities pass through bodies.

    Source: ONNX preview operators, FlexAttention 1.
    """
    attrs = attributes(node)
    bodies: list[Any] = []
    for name in ("score_mod", "prob_mod"):
        if name in attrs:
            body, outside, _ = _body(builder, node, name)
            bodies += [body, tuple(outside)]
        else:
            bodies += [None, ()]
    values = tuple(builder.tensor(v) for v in operands if v is not None)
    extras = (attrs.get("scale"), attrs.get("softmax_precision"))
    _finish(builder, node, run_flex, (values, *bodies, *extras))


def run_flex(
    values: tuple[Tensor, Tensor, Tensor],
    score: Body,
    score_outside: tuple[Any, ...],
    prob: Body,
    prob_outside: tuple[Any, ...],
    scale: float | None,
    precision: int | None,
) -> tuple[Tensor]:
    """FlexAttention with its bodies bound to what they take from outside."""

    def bound(body: Body, outside: tuple[Any, ...]) -> Any:
        return None if body is None else lambda x: body(x, *outside)

    changes = bound(score, score_outside), bound(prob, prob_outside)
    return (flex_attention(*values, *changes, scale, precision),)


@op("Gradient", 1, domain="ai.onnx.preview.training", graph=True)
def gradient(builder: Builder, node: NodeProto, operands: Operands, version: int) -> None:
    """The derivatives of one value with respect to others.

    The part of the graph between them becomes a body, which is run under autograd.
    Source: ONNX training operators, Gradient 1.
    """
    attrs = attributes(node)
    names = [*attrs["xs"], *attrs.get("zs", [])]
    proto = _between(builder.proto, set(names), attrs["y"])
    for name in names:
        proto.input.add(name=name)
    child = builder.child(proto, builder.typed)
    module = child.module([attrs["y"]])
    body = builder.graph.get_attr(attach(builder, f"{node.name or node.output[0]}_body", module))
    outside = tuple(builder.tensor(value) for value in child.captured)
    values = tuple(builder.tensor(v) for v in operands if v is not None)
    _finish(builder, node, run_gradient, (body, values, outside, len(attrs["xs"])))


def _between(graph: GraphProto, known: set[str], wanted: str) -> GraphProto:
    """The nodes that compute a value from known ones, as a graph of their own."""
    makers = {name: n for n in graph.node for name in n.output}
    chosen: list[NodeProto] = []
    pending = [wanted]
    while pending:
        maker = makers.get(pending.pop())
        if maker is None or maker in chosen:
            continue
        chosen.append(maker)
        pending += [name for name in maker.input if name not in known]
    part = GraphProto(name=f"{wanted}_of_inputs")
    part.node.extend(n for n in graph.node if n in chosen)
    part.output.add(name=wanted)
    return part


def run_gradient(
    body: Body, values: tuple[Tensor, ...], outside: tuple[Any, ...], count: int
) -> tuple[Tensor, ...]:
    """The gradients of the body's sum with respect to its first inputs."""
    with torch.enable_grad():
        tracked = [v if v.requires_grad else v.detach().requires_grad_() for v in values]
        y = _tuple(body(*tracked, *outside), body)[0]
        found = torch.autograd.grad(y.sum(), tracked[:count], create_graph=True, allow_unused=True)
    return tuple(
        torch.zeros_like(v) if g is None else g for g, v in zip(found, tracked, strict=False)
    )
