"""Shapes and types that ONNX shape inference does not know, found by running on meta tensors."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from dns_onnx.converters.dtypes import element_type, torch_dtype
from dns_onnx.converters.registry import Operator
from dns_onnx.converters.values import Shape, Value

# Two trial sizes for every unknown axis: what comes out the same for both is known.
_TRIALS = (6, 10)
_BROADCAST = frozenset("Add Sub Mul Div Pow Mod Max Min Sum Mean Where And Or Xor".split())


def guess_types(
    entry: Operator, operands: Sequence[Value | None], attrs: dict[str, Any]
) -> list[tuple[int, Shape | None]]:
    """(element type, shape) of each output of a node; empty where it cannot be found out.

    The operator runs on tensors without data, once for each trial size, so that it costs
    microseconds; an operator that looks at its data fails there, and nothing is known.
    """
    usable = all(
        v is None or v.known or v.dims is not None or v.shape is not None for v in operands
    )
    if not usable or entry.opaque or not entry.pure:
        return []
    if entry.name in _BROADCAST and not entry.domain and not attrs.get("broadcast"):
        return [(0, _broadcast([v.known_shape() for v in operands if v is not None]))]
    if entry.name in ("Reshape", "Expand") and not entry.domain and len(operands) == 2:
        data, target = operands
        if data is not None and target is not None and target.dims and not target.known:
            rule = _reshaped if entry.name == "Reshape" else _expanded
            return [(data.elem, rule(data, target.dims.entries, attrs))]
    try:
        first, second = (_run(entry, operands, attrs, trial) for trial in _TRIALS)
    except Exception:  # any failure of the trial means only that the shape stays unknown
        return []
    return [_merged(a, b) for a, b in zip(first, second, strict=False)]


def lost_sizes(shape: Shape | None, operands: Sequence[Value | None]) -> bool:
    """Whether inference knows less about a result than about its operands."""
    if shape is None:
        return True
    if None not in shape:
        return False
    sources = [v.shape.count(None) for v in operands if v is not None and v.shape is not None]
    return shape.count(None) > max(sources, default=0)


def _broadcast(shapes: Sequence[Shape | None]) -> Shape | None:
    """NumPy's rule; an unknown size gives way to a known one above 1."""
    known = [s for s in shapes if s is not None]
    if len(known) < len(shapes):
        return None
    rank = max(len(s) for s in known)
    columns = zip(*((1,) * (rank - len(s)) + s for s in known), strict=True)
    sizes: list[int | None] = []
    for column in columns:
        large = [d for d in column if d is not None and d != 1]
        sizes.append(large[0] if large else None if None in column else 1)
    return tuple(sizes)


def _reshaped(data: Value, target: Sequence[int | fx.Node], attrs: dict[str, Any]) -> Shape | None:
    """The shape that a Reshape to sizes known in part gives.

    The size left open (-1) is known only where each computed size of the target is the operand's
    own: any other might differ from it, however much the two look alike.
    """
    source = data.known_shape()
    if source is None:
        return tuple(e if isinstance(e, int) and e > 0 else None for e in target)
    zero_copies = not attrs.get("allowzero", 0)
    axes = [
        i if e == 0 and zero_copies and i < len(source) else _own_axis(e, data)
        for i, e in enumerate(target)
    ]
    kept = [axis for axis in axes if axis is not None]
    left = [size for axis, size in enumerate(source) if axis not in kept]
    given = [e for axis, e in zip(axes, target, strict=True) if axis is None and e != -1]
    open_size = None
    if len(set(kept)) == len(kept) and None not in left and all(isinstance(e, int) for e in given):
        whole = prod(size or 0 for size in left)
        open_size = whole // max(prod(e for e in given if isinstance(e, int)), 1)
    return tuple(
        source[axis] if axis is not None else open_size if e == -1 else _integer(e)
        for axis, e in zip(axes, target, strict=True)
    )


def _integer(entry: int | fx.Node) -> int | None:
    return entry if isinstance(entry, int) else None


def _own_axis(entry: int | fx.Node, data: Value) -> int | None:
    """Which axis of a value a node gives the size of, if it is such a node."""
    if not isinstance(entry, fx.Node) or data.node is None or entry.target != "size":
        return None
    return entry.args[1] if entry.args[0] is data.node else None  # type: ignore[return-value]


def _expanded(data: Value, target: Sequence[int | fx.Node], attrs: dict[str, Any]) -> Shape | None:
    return _broadcast([data.known_shape(), tuple(map(_integer, target))])


def _run(
    entry: Operator, operands: Sequence[Value | None], attrs: dict[str, Any], trial: int
) -> list[Any]:
    args: list[Any] = []
    computed: dict[fx.Node, int] = {}
    for index, value in enumerate(operands):
        static = entry.operand(index) in entry.static
        args.append(None if value is None else _trial_operand(value, static, trial, computed))
    while args and args[-1] is None:
        args.pop()
    with torch.no_grad():
        result = entry.function(*args, **attrs)
    return list(result) if entry.multiple else [result]


def _trial_operand(value: Value, static: bool, trial: int, computed: dict[fx.Node, int]) -> Any:
    """An operand for a trial run.

    A computed size gets a number of its own, so that it cancels against no other by chance; the
    gaps between them differ from trial to trial.
    """
    if static:
        if value.known:
            return value.python()
        if value.dims is None:
            raise LookupError(value.name)
        entries = [
            computed.setdefault(e, trial * (len(computed) + 2)) if isinstance(e, fx.Node) else e
            for e in value.dims.entries
        ]
        return entries[0] if value.dims.scalar else entries
    shape = value.known_shape()
    if shape is None or not value.elem:
        raise LookupError(value.name)
    sizes = tuple(trial if d is None else d for d in shape)
    return torch.empty(sizes, dtype=torch_dtype(value.elem), device="meta")


def _merged(a: Any, b: Any) -> tuple[int, Shape | None]:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return 0, None
    elem = element_type(a.dtype)
    if a.dim() != b.dim():
        return elem, None
    return elem, tuple(x if x == y else None for x, y in zip(a.shape, b.shape, strict=True))
