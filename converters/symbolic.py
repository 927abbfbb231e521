"""Shape arithmetic at import: integers that are known, or fx nodes that give a Python int."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from onnx import TensorProto
from torch import Tensor, fx

from dns_onnx.converters.graph import host_value
from dns_onnx.converters.step import Step
from dns_onnx.converters.values import Dims, Value

if TYPE_CHECKING:
    from dns_onnx.converters.builder import Builder

Entry = int | fx.Node
_INTEGERS = frozenset({TensorProto.INT32, TensorProto.INT64})
_MOST_ENTRIES = 64


def host_node(builder: Builder, value: Value) -> fx.Node:
    """A node that yields a value as Python number(s); it waits for the device if it must."""
    if "host_node" not in value.cache:
        node = builder.tensor(value, "frozen")
        value.cache["host_node"] = builder.graph.call_function(host_value, (node,))
    made: fx.Node = value.cache["host_node"]
    return made


def evaluate(builder: Builder, step: Step) -> Dims | None:
    """The result of an integer operator on shapes, or None where it is not one.

    Shape and Size of a value of known rank start such arithmetic; the rest goes on with it as
    long as each operand is known in this form.
    """
    name, operands = step.entry.name, step.operands
    if step.entry.domain:
        return None
    if name in ("Shape", "Size"):
        return _shape(builder, operands[0], step.attrs, name)
    rule = _RULES.get(name)
    if rule is None or not any(v is not None and v.dims is not None for v in operands):
        return None
    known = [_dims(v) for v in operands]
    if any(k is None and v is not None for k, v in zip(known, operands, strict=True)):
        return None
    return rule(builder, known, {**step.attrs, "version": step.version})


def _dims(value: Value | None) -> Dims | None:
    """A value as integers, if it is a scalar or short vector of them."""
    if value is None or value.dims is not None:
        return None if value is None else value.dims
    if not value.known or value.elem not in _INTEGERS | {TensorProto.BOOL}:
        return None
    held = value.tensor()
    if not isinstance(held, Tensor) or held.dim() > 1 or held.numel() > _MOST_ENTRIES:
        return None
    return Dims([int(entry) for entry in held.reshape(-1).tolist()], held.dim() == 0)


def size_node(builder: Builder, value: Value, axis: int) -> fx.Node:
    """A node that yields the size of one axis as a Python int."""
    key = f"size{axis}"
    if key not in value.cache:
        node = builder.tensor(value, "frozen")
        value.cache[key] = builder.graph.call_method("size", (node, axis))
    made: fx.Node = value.cache[key]
    return made


def _shape(builder: Builder, value: Value | None, attrs: dict[str, Any], name: str) -> Dims | None:
    shape = None if value is None else value.shape
    if value is None or shape is None or value.elem == TensorProto.STRING:
        return None
    start, end = attrs.get("start", 0), attrs.get("end", len(shape))
    wanted = range(len(shape))[slice(start, end)]
    entries: list[Entry] = []
    for axis in wanted:
        known = shape[axis]
        entries.append(size_node(builder, value, axis) if known is None else known)
    if name == "Size":
        return Dims([_product(builder, entries)], True)
    return Dims(entries)


def _apply(builder: Builder, function: Callable[..., Any], *entries: Entry) -> Entry:
    if all(isinstance(entry, int) for entry in entries):
        return int(function(*entries))
    return builder.graph.call_function(function, entries)


def _product(builder: Builder, entries: Sequence[Entry]) -> Entry:
    known = math.prod(e for e in entries if isinstance(e, int))
    result: Entry = known
    for entry in entries:
        if isinstance(entry, fx.Node):
            result = entry if result == 1 else _apply(builder, operator.mul, result, entry)
    return result


def truncated_division(a: int, b: int) -> int:
    """Integer division as ONNX means it: towards zero."""
    return a // b if (a < 0) == (b < 0) else -(-a // b)


def _elementwise(function: Callable[..., Any]) -> Callable[..., Dims | None]:
    def rule(builder: Builder, known: list[Dims | None], attrs: dict[str, Any]) -> Dims | None:
        if any(k is None for k in known):
            return None
        parts = [k for k in known if k is not None]
        length = max(len(k.entries) for k in parts)
        if any(len(k.entries) not in (1, length) for k in parts):
            return None
        spread = [k.entries * (length // len(k.entries)) for k in parts]
        entries = [_apply(builder, function, *column) for column in zip(*spread, strict=True)]
        return Dims(entries, all(k.scalar for k in parts))

    return rule


def _gather(builder: Builder, known: list[Dims | None], attrs: dict[str, Any]) -> Dims | None:
    data, indices = known
    if data is None or indices is None or data.scalar or not indices.known:
        return None
    return Dims([data.entries[int(i)] for i in indices.entries], indices.scalar)  # type: ignore[arg-type]


def _concat(builder: Builder, known: list[Dims | None], attrs: dict[str, Any]) -> Dims | None:
    if any(k is None or k.scalar for k in known):
        return None
    return Dims([entry for k in known if k is not None for entry in k.entries])


def _unsqueeze(builder: Builder, known: list[Dims | None], attrs: dict[str, Any]) -> Dims | None:
    data = known[0]
    axes = attrs.get("axes") if len(known) < 2 else known[1] and known[1].entries
    if data is None or not data.scalar or not axes or len(axes) != 1:
        return None
    return Dims(data.entries)


def _squeeze(builder: Builder, known: list[Dims | None], attrs: dict[str, Any]) -> Dims | None:
    data = known[0]
    if data is None or data.scalar or len(data.entries) != 1:
        return None
    return Dims(data.entries, True)


def _reshape(builder: Builder, known: list[Dims | None], attrs: dict[str, Any]) -> Dims | None:
    data, shape = known
    if data is None or shape is None or not shape.known:
        return None
    if not shape.entries and len(data.entries) == 1:
        return Dims(data.entries, True)
    if shape.entries in ([-1], [len(data.entries)]):
        return Dims(data.entries)
    return None


def _slice(builder: Builder, known: list[Dims | None], attrs: dict[str, Any]) -> Dims | None:
    data = known[0]
    if data is None or data.scalar:
        return None
    if attrs["version"] == 1:
        starts: Sequence[Any] = attrs["starts"]
        ends: Sequence[Any] = attrs["ends"]
        steps: Sequence[Any] = [1]
    else:
        if any(k is not None and not k.known for k in known[1:]):
            return None
        parts = [k.entries if k is not None else [] for k in known[1:]] + [[], []]
        starts, ends, steps = parts[0], parts[1], parts[3] or [1]
    if len(starts) != 1 or steps[0] == 0:
        return None
    start, end, step = int(starts[0]), int(ends[0]), int(steps[0])
    if step < 0 and end < -len(data.entries):
        return Dims(data.entries[start::step])
    return Dims(data.entries[start:end:step])


def _same(builder: Builder, known: list[Dims | None], attrs: dict[str, Any]) -> Dims | None:
    return known[0]


def _cast(builder: Builder, known: list[Dims | None], attrs: dict[str, Any]) -> Dims | None:
    return known[0] if attrs.get("to") in _INTEGERS else None


def _reduce_prod(builder: Builder, known: list[Dims | None], attrs: dict[str, Any]) -> Dims | None:
    data = known[0]
    if data is None or data.scalar:
        return None
    return Dims([_product(builder, data.entries)], attrs.get("keepdims", 1) == 0)


def _where(builder: Builder, known: list[Dims | None], attrs: dict[str, Any]) -> Dims | None:
    condition, yes, no = known
    if condition is None or yes is None or no is None or not condition.known:
        return None
    length = max(len(k.entries) for k in (condition, yes, no))
    if any(len(k.entries) not in (1, length) for k in (condition, yes, no)):
        return None
    rows = [k.entries * (length // len(k.entries)) for k in (condition, yes, no)]
    entries = [a if c else b for c, a, b in zip(*rows, strict=True)]
    return Dims(entries, all(k.scalar for k in (condition, yes, no)))


def _is_size(*entries: Entry) -> bool:
    return all(isinstance(e, int) or e.op == "call_method" for e in entries)


def _equal(builder: Builder, known: list[Dims | None], attrs: dict[str, Any]) -> Dims | None:
    # a size is never negative: comparing one with -1 (the export of expand) is known
    a, b = known
    if a is None or b is None or len(a.entries) != len(b.entries):
        return None
    entries: list[Entry] = []
    for x, y in zip(a.entries, b.entries, strict=True):
        if isinstance(x, int) and isinstance(y, int):
            entries.append(int(x == y))
        elif any(isinstance(z, int) and z < 0 for z in (x, y)) and _is_size(x, y):
            entries.append(0)
        else:
            return None
    return Dims(entries, a.scalar and b.scalar)


_RULES: dict[str, Callable[[Builder, list[Dims | None], dict[str, Any]], Dims | None]] = {
    "Gather": _gather,
    "Concat": _concat,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Reshape": _reshape,
    "Slice": _slice,
    "Identity": _same,
    "Cast": _cast,
    "ReduceProd": _reduce_prod,
    "Where": _where,
    "Equal": _equal,
    "Add": _elementwise(operator.add),
    "Sub": _elementwise(operator.sub),
    "Mul": _elementwise(operator.mul),
    "Div": _elementwise(truncated_division),
    "Neg": _elementwise(operator.neg),
    "Max": _elementwise(max),
    "Min": _elementwise(min),
}
