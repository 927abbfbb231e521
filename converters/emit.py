"""Writing fx nodes: the calls of one ONNX node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from onnx import NodeProto
from torch import Tensor, fx

from dns_onnx.converters.dtypes import element_type, to_numpy
from dns_onnx.converters.emit_values import attach, emit_host_known, safe_name
from dns_onnx.converters.graph import item, to_device_of
from dns_onnx.converters.guess import guess_types, lost_sizes
from dns_onnx.converters.layers import describe_layer
from dns_onnx.converters.opaque import OpaqueStep, piece_label, piece_model
from dns_onnx.converters.order import used_names
from dns_onnx.converters.registry import Arg, Call, Operator
from dns_onnx.converters.step import Operands, Step, label_of
from dns_onnx.converters.values import Value

if TYPE_CHECKING:
    from dns_onnx.converters.builder import Builder


def emit_node(builder: Builder, step: Step, use: str = "train") -> None:
    """Write the call(s) of one ONNX node and note its outputs' values."""
    entry, proto = step.entry, step.proto
    if entry.name == "Conv":
        _lay_out(step.operands[1])
    args, host = _arguments(builder, step, use)
    attrs = {name: value for name, value in step.attrs.items() if entry.takes(name)}
    extra = injected(builder, step)
    _complete_types(builder, step, {**attrs, **extra})
    call = None
    if entry.direct is not None:
        wanted = {"outputs_": _wanted(proto)} if entry.multiple else {}
        call = entry.direct(*_described(step, args), **attrs, **wanted)
    if isinstance(call, Arg):
        _pass_on(builder, proto, step.operands[0], call.node)
        return
    if call is not None:
        results = [_write(builder, call, proto.output[0])]
    else:
        attrs = {name: _portable(builder, name, value) for name, value in attrs.items()}
        results = _call_function(builder, step, args, {**attrs, **extra})
    for name, made in zip(proto.output, results, strict=False):
        if name:
            made.meta.update(onnx=name, op=proto.op_type, node=step.label)
            _note_output(builder, name, made, host)
    if entry.prunable:
        builder.layers.extend(describe_layer(step))


def _lay_out(weight: Value | None) -> None:
    """Have the weight of an image convolution held channels-last, if nobody holds it yet.

    The results then come channels-last too, and all that follows: that is the order in which the
    kernels of CUDA and of oneDNN compute, so that they need not reorder at every call.
    """
    if weight is not None and weight.trainable and len(weight.shape or ()) == 4:
        weight.channels_last = True


def _call_function(
    builder: Builder, step: Step, args: list[Any], keywords: dict[str, Any]
) -> list[fx.Node]:
    """A call of the operator's own function, and a node for each of its outputs."""
    while args and args[-1] is None:
        args.pop()
    single = None if step.entry.multiple else step.proto.output[0]
    node = _call(builder, step.entry.function, tuple(args), keywords, single)
    if not step.entry.multiple:
        return [node]
    node.meta["op"], node.meta["node"] = step.proto.op_type, step.label
    return [
        _call(builder, item, (node, i), None, name) if name else node
        for i, name in enumerate(step.proto.output)
    ]


def injected(builder: Builder, step: Step) -> dict[str, Any]:
    """The keyword arguments that the importer itself supplies to an operator function."""
    if not step.entry.injected:
        return {}
    offered = {
        "version_": step.version,
        "outputs_": _wanted(step.proto),
        "types_": tuple(0 if v is None else v.elem for v in step.operands),
        "out_types_": tuple(builder.types.get(n, (0, None))[0] for n in step.proto.output),
    }
    return {name: offered[name] for name in step.entry.injected}


def _complete_types(builder: Builder, step: Step, attrs: dict[str, Any]) -> None:
    """Find out by a trial run the output types that shape inference left open."""
    outputs = step.proto.output
    known = [builder.types.get(name, (0, None)) for name in outputs]
    if all(elem and not lost_sizes(shape, step.operands) for elem, shape in known):
        return
    found = guess_types(step.entry, step.operands, attrs)
    for name, (elem, shape) in zip(outputs, found, strict=False):
        old_elem, old_shape = builder.types.get(name, (0, None))
        keep = shape is None or (old_shape is not None and len(shape) != len(old_shape))
        builder.types[name] = (old_elem or elem, old_shape if keep else shape)


def _wanted(proto: NodeProto) -> int:
    """How many outputs, from the first on, somebody wants."""
    return max((i + 1 for i, name in enumerate(proto.output) if name), default=1)


def _pass_on(builder: Builder, proto: NodeProto, source: Value | None, node: fx.Node) -> None:
    """Note the output of a node that hands its first operand on."""
    name = proto.output[0]
    folded = builder.values.get(name)
    if folded is not None:
        folded.node = node
    elif source is not None:
        alias = replace(source, name=name, cache={})
        alias.shape = source.shape or builder.types.get(name, (0, None))[1]
        builder.values[name] = alias


def _note_output(builder: Builder, name: str, node: fx.Node, host: bool) -> None:
    value = builder.values.get(name)
    if value is None:
        elem, shape = builder.types.get(name, (0, None))
        value = builder.values[name] = Value(name, elem, shape)
    value.node, value.host = node, host
    node.meta["elem"] = value.elem


def _arguments(builder: Builder, step: Step, use: str) -> tuple[list[Any], bool]:
    """The call's arguments, and whether the result stays on the CPU.

    A node works on the CPU if it has no operand on the model's device; a CPU operand that meets
    device data is moved there.
    """
    data = [
        v for v, plain in zip(step.operands, step.plain, strict=True) if v is not None and not plain
    ]
    host = [v for v in data if v.host]
    on_host = not data or (
        bool(host) and all(v.host or (v.known and not v.trainable) for v in data)
    )
    args: list[Any] = []
    for value, name, plain in zip(step.operands, step.names, step.plain, strict=True):
        if value is None:
            args.append(None)
        elif plain:
            args.append(builder.static(value))
        elif on_host and value.known:
            args.append(emit_host_known(builder, value))
        else:
            args.append(builder.tensor(value, _use_of(step.entry, name, use)))
    if host and not on_host:
        _gather_on_device(builder, data, step.operands, args)
    return args, on_host or step.entry.on_host


def _use_of(entry: Operator, name: str, use: str) -> str:
    """Whether an operand takes part in training, given that its node does."""
    frozen = name in entry.statistics or name in entry.constant or not entry.differentiable
    return "frozen" if frozen else use


def _gather_on_device(
    builder: Builder, data: list[Value], operands: Operands, args: list[Any]
) -> None:
    anchor = next((v for v in data if not v.host), None)
    if anchor is None:
        return
    for index, value in enumerate(operands):
        moved = value is not None and value.host and isinstance(args[index], fx.Node)
        if moved and any(value is v for v in data) and not (value is not None and value.known):
            args[index] = builder.graph.call_function(to_device_of, (args[index], anchor.node))


def _described(step: Step, args: list[Any]) -> list[Any]:
    described: list[Any] = []
    for value, plain, arg in zip(step.operands, step.plain, args, strict=True):
        if value is None or plain:
            described.append(arg)
        else:
            described.append(Arg(arg, value.shape, value.elem))
    while described and described[-1] is None:
        described.pop()
    return described


def _write(builder: Builder, call: Call, name: str | None = None) -> fx.Node:
    def resolve(item: Any) -> Any:
        if isinstance(item, Call):
            return _write(builder, item)
        if isinstance(item, Arg):
            return item.node
        if isinstance(item, (list, tuple)):
            return type(item)(resolve(part) for part in item)
        return item

    args = tuple(resolve(arg) for arg in call.args)
    kwargs = {name: resolve(value) for name, value in call.kwargs.items()}
    return _call(builder, call.target, args, kwargs, name)


def _call(
    builder: Builder,
    target: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None = None,
    name: str | None = None,
) -> fx.Node:
    wanted = safe_name(name) if name else None
    node = builder.graph.create_node("call_function", target, name=wanted)
    node.args = args  # create_node would walk through them in Python first
    if kwargs:
        node.kwargs = kwargs
    return node


def put(builder: Builder, target: Any, args: tuple[Any, ...]) -> fx.Node:
    """A call that yields a tuple."""
    return builder.graph.call_function(target, args)


def note_outputs(builder: Builder, proto: NodeProto, call: fx.Node) -> None:
    """Note the outputs of a node whose call yields them as a tuple."""
    label = label_of(proto)
    call.meta.update(op=proto.op_type, node=label)
    for index, name in enumerate(proto.output):
        if name:
            made = _call(builder, item, (call, index), None, name)
            made.meta.update(onnx=name, op=proto.op_type, node=label)
            _note_output(builder, name, made, False)


def emit_opaque(builder: Builder, nodes: Sequence[NodeProto]) -> None:
    """Write nodes that torch cannot compute as one opaque step."""
    makers = {name: node for node in nodes for name in node.output if name}
    read = dict.fromkeys(name for node in nodes for name in sorted(used_names(node)))
    operands = {name: builder.value(name) for name in read if name not in makers}
    held = {n: to_numpy(v.tensor()) for n, v in operands.items() if v is not None and v.known}
    fed = {
        n: builder.tensor(v, "frozen")
        for n, v in operands.items()
        if v is not None and n not in held
    }
    wanted = makers if len(nodes) == 1 else builder.read_elsewhere(nodes)
    results = [name for name in makers if name in wanted]
    model = piece_model(nodes, builder.opsets, list(fed), results, held)
    label, row = label_of(nodes[-1]), piece_label(nodes)
    target = attach(builder, label, OpaqueStep(model))
    call = builder.graph.call_module(target, tuple(fed.values()))
    call.meta.update(op=nodes[-1].op_type, node=label, opaque=row)
    for index, name in enumerate(results):
        result = _call(builder, item, (call, index), None, name)
        result.meta.update(onnx=name, op=makers[name].op_type, node=label_of(makers[name]))
        _note_output(builder, name, result, False)
    builder.opaque.append(row)


def _portable(builder: Builder, name: str, value: Any) -> Any:
    """An attribute as an argument that fx can print: tensors become nodes."""
    if isinstance(value, Tensor):
        held = Value(name, element_type(value.dtype), tuple(value.shape), constant=lambda: value)
        return emit_host_known(builder, held)
    return value
