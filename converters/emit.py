"""Writing fx nodes: held weights, constants, shape arithmetic and operator calls."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from onnx import NodeProto
from torch import Tensor, fx, nn

from dns_onnx.converters.dtypes import element_type, torch_dtype
from dns_onnx.converters.graph import host_tensor, item, to_device_of
from dns_onnx.converters.guess import guess_types, lost_sizes
from dns_onnx.converters.opaque import OpaqueStep
from dns_onnx.converters.registry import Arg, Call, Operator
from dns_onnx.converters.values import Value
from dns_onnx.masks import Masked

if TYPE_CHECKING:
    from dns_onnx.converters.builder import Builder

# Known CPU operands up to this many entries are written into the code itself.
_LITERAL = 64


class HostConstant(nn.Module):
    """A constant that stays on the CPU when the module moves; called without arguments."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self) -> Any:
        return self.value


def safe_name(name: str) -> str:
    """An ONNX name as a Python identifier."""
    plain = re.sub(r"\W", "_", name) or "value"
    return f"_{plain}" if plain[0].isdigit() else plain


def attach(builder: Builder, name: str, module: nn.Module | Tensor) -> str:
    """Put a module or buffer into the graph's module under a free name like `name`."""
    wanted = safe_name(name).strip("_") or "value"
    if wanted[0].isdigit() or hasattr(builder.root, wanted):
        wanted = f"onnx_{wanted}"
    free, count = wanted, 1
    while hasattr(builder.root, free):
        free, count = f"{wanted}_{count}", count + 1
    if isinstance(module, nn.Module):
        builder.root.add_module(free, module)
    else:
        builder.root.register_buffer(free, module)
    return free


def emit_held(builder: Builder, value: Value, use: str) -> fx.Node:
    """The call of a float initializer's holder, made once; trained if anybody trains it."""
    if value.node is None:
        name = builder.unique_holder_name(value.name)
        tensor = value.tensor()
        holder = Masked(name, tensor, trainable=False)
        # the holder owns the values from here on: a second reference would double the memory
        value.cache["constant"] = holder.weight.detach()
        value.cache["holder"] = holder
        target = attach(builder, name, holder)
        value.node = builder.graph.call_module(target)
        value.node.meta["onnx"] = value.name
    if use == "train":
        value.cache["holder"].weight.requires_grad_(True)
    return value.node


def emit_known(builder: Builder, value: Value) -> fx.Node:
    """A constant of the graph: a buffer, or a CPU value if the data are no tensor."""
    held = value.tensor()
    if isinstance(held, Tensor):
        node = builder.graph.get_attr(attach(builder, value.name, held))
    else:
        node = builder.graph.call_module(attach(builder, value.name, HostConstant(held)))
    node.meta["onnx"] = value.name
    return node


def emit_host_known(builder: Builder, value: Value) -> fx.Node:
    """A known value as an operand of shape arithmetic: it must not follow the model's device."""
    held = value.tensor()
    if isinstance(held, Tensor) and held.numel() <= _LITERAL and held.dtype is not torch.bfloat16:
        node = builder.graph.call_function(host_tensor, (held.tolist(), held.dtype))
    else:
        node = builder.graph.call_module(attach(builder, value.name, HostConstant(held)))
    return node


def emit_dims(builder: Builder, value: Value) -> fx.Node:
    """Shape arithmetic as a CPU tensor, for an operator that wants one."""
    assert value.dims is not None
    dtype = torch_dtype(value.elem)
    node = builder.graph.call_function(host_tensor, (value.dims.python(), dtype))
    node.meta["onnx"] = value.name
    return node


def emit_node(
    builder: Builder,
    entry: Operator,
    version: int,
    proto: NodeProto,
    operands: Sequence[Value | None],
    attrs: dict[str, Any],
    use: str = "train",
) -> None:
    """Write the call(s) of one ONNX node and note its outputs' values."""
    args, host = _arguments(builder, entry, operands, use)
    attrs = {name: value for name, value in attrs.items() if entry.takes(name)}
    extra = injected(builder, entry, version, proto, operands)
    _complete_types(builder, entry, proto, operands, {**attrs, **extra})
    call = None
    if entry.direct is not None:
        wanted = {"outputs_": _wanted(proto)} if entry.multiple else {}
        call = entry.direct(*_described(entry, operands, args), **attrs, **wanted)
    if isinstance(call, Arg):
        _pass_on(builder, proto, operands[0], call.node)
        return
    if call is not None:
        results = [_write(builder, call, proto.output[0])]
    else:
        attrs = {name: _portable(builder, name, value) for name, value in attrs.items()}
        attrs.update(extra)
        while args and args[-1] is None:
            args.pop()
        single = None if entry.multiple else proto.output[0]
        node = _call(builder, entry.function, tuple(args), attrs, single)
        results = [node]
        if entry.multiple:
            node.meta["op"], node.meta["node"] = proto.op_type, proto.name or proto.output[0]
            results = [
                _call(builder, item, (node, i), None, name) if name else node
                for i, name in enumerate(proto.output)
            ]
    label = proto.name or next((n for n in proto.output if n), proto.op_type)
    for name, made in zip(proto.output, results, strict=False):
        if name:
            made.meta.update(onnx=name, op=proto.op_type, node=label)
            _note_output(builder, name, made, host)
    builder.note_layer(entry, label, proto, operands)


def is_literal(entry: Operator, name: str, value: Value) -> bool:
    """Whether an operand goes into the call as a Python number."""
    if name not in entry.literal or not value.known:
        return False
    return all(d == 1 for d in value.known_shape() or ())


def injected(
    builder: Builder,
    entry: Operator,
    version: int,
    proto: NodeProto,
    operands: Sequence[Value | None],
) -> dict[str, Any]:
    """The keyword arguments that the importer itself supplies to an operator function."""
    if not entry.injected:
        return {}
    offered = {
        "version_": version,
        "outputs_": _wanted(proto),
        "types_": tuple(0 if v is None else v.elem for v in operands),
        "out_types_": tuple(builder.types.get(n, (0, None))[0] for n in proto.output),
    }
    return {name: offered[name] for name in entry.injected}


def _complete_types(
    builder: Builder,
    entry: Operator,
    proto: NodeProto,
    operands: Sequence[Value | None],
    attrs: dict[str, Any],
) -> None:
    """Find out by a trial run the output types that shape inference left open."""
    known = [builder.types.get(name, (0, None)) for name in proto.output]
    if all(elem and not lost_sizes(shape, operands) for elem, shape in known):
        return
    for name, (elem, shape) in zip(proto.output, guess_types(entry, operands, attrs), strict=False):
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


def _arguments(
    builder: Builder, entry: Operator, operands: Sequence[Value | None], use: str
) -> tuple[list[Any], bool]:
    """The call's arguments, and whether the result stays on the CPU.

    A node works on the CPU if it has no operand on the model's device; a CPU operand that meets
    device data is moved there.
    """
    names = [entry.operand(i) for i in range(len(operands))]
    data = [
        v
        for v, n in zip(operands, names, strict=True)
        if v is not None and n not in entry.static and not is_literal(entry, n, v)
    ]
    on_host = not any(v for v in data if not v.host and not (v.known and not v.trainable))
    on_host = on_host and (any(v.host for v in data) or not data)
    args: list[Any] = []
    for value, name in zip(operands, names, strict=True):
        if value is None:
            args.append(None)
        elif name in entry.static or is_literal(entry, name, value):
            args.append(builder.static(value))
        elif on_host and value.known:
            args.append(emit_host_known(builder, value))
        else:
            frozen = name in entry.statistics or name in entry.constant
            how = "frozen" if frozen or not entry.differentiable else use
            args.append(builder.tensor(value, how))
    if not on_host:
        _gather_on_device(builder, data, operands, args)
    return args, on_host or entry.on_host


def _gather_on_device(
    builder: Builder, data: list[Value], operands: Sequence[Value | None], args: list[Any]
) -> None:
    anchor = next((v for v in data if not v.host), None)
    if anchor is None or not any(v.host for v in data):
        return
    for index, value in enumerate(operands):
        moved = value is not None and value.host and isinstance(args[index], fx.Node)
        if moved and any(value is v for v in data) and not (value is not None and value.known):
            args[index] = builder.graph.call_function(to_device_of, (args[index], anchor.node))


def _described(entry: Operator, operands: Sequence[Value | None], args: list[Any]) -> list[Any]:
    described: list[Any] = []
    for index, (value, arg) in enumerate(zip(operands, args, strict=True)):
        name = entry.operand(index)
        if value is None or name in entry.static or is_literal(entry, name, value):
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
    return builder.graph.create_node("call_function", target, args, kwargs, wanted)


def put(builder: Builder, target: Any, args: tuple[Any, ...]) -> fx.Node:
    """A call that yields a tuple."""
    return builder.graph.call_function(target, args)


def note_outputs(builder: Builder, proto: NodeProto, call: fx.Node) -> None:
    """Note the outputs of a node whose call yields them as a tuple."""
    label = proto.name or next((n for n in proto.output if n), proto.op_type)
    call.meta.update(op=proto.op_type, node=label)
    for index, name in enumerate(proto.output):
        if name:
            made = _call(builder, item, (call, index), None, name)
            made.meta.update(onnx=name, op=proto.op_type, node=label)
            _note_output(builder, name, made, False)


def emit_opaque(
    builder: Builder, proto: NodeProto, operands: Sequence[Value | None], opset: int
) -> None:
    """Write a node that torch cannot compute as an opaque step."""
    label = proto.name or next((n for n in proto.output if n), proto.op_type)
    target = attach(builder, label, OpaqueStep(proto, opset))
    args = tuple(
        None
        if v is None
        else emit_host_known(builder, v)
        if v.known
        else builder.tensor(v, "frozen")
        for v in operands
    )
    call = builder.graph.call_module(target, args)
    named = [name for name in proto.output if name]
    row = f"{proto.domain or 'ai.onnx'}::{proto.op_type} '{label}'"
    call.meta.update(op=proto.op_type, node=label, opaque=row)
    for index, name in enumerate(named):
        made = _call(builder, item, (call, index), None, name)
        made.meta.update(onnx=name, op=proto.op_type, node=label)
        _note_output(builder, name, made, False)
    builder.opaque.append(row)


def _portable(builder: Builder, name: str, value: Any) -> Any:
    """An attribute as an argument that fx can print: tensors become nodes."""
    if isinstance(value, Tensor):
        held = Value(name, element_type(value.dtype), tuple(value.shape), constant=lambda: value)
        return emit_host_known(builder, held)
    return value
