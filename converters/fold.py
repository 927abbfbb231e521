"""Nodes whose operands are all known at import: computed there, in the graph only where trained."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from onnx import TensorProto
from torch import fx

from dns_onnx.converters.dtypes import TRAINABLE
from dns_onnx.converters.emit import emit_node, injected
from dns_onnx.converters.step import Step
from dns_onnx.converters.values import Value
from dns_onnx.errors import ModelError

if TYPE_CHECKING:
    from dns_onnx.converters.builder import Builder

# Operators that change a weight's element type or layout only: the weight shows through them.
_CARRIES = frozenset({"Cast", "CastLike", "QuantizeLinear", "DequantizeLinear"})


def fold(builder: Builder, step: Step) -> None:
    """Note the outputs of a node whose operands are all known; computed when first asked for.

    An output that comes from float initializers by differentiable steps is trainable: once a node
    needs it, it is computed in the graph, from its holders.
    """
    results: list[Any] = []
    trained = False  # once is enough: through diamonds of such nodes the ways grow exponentially

    def compute(index: int) -> Any:
        if not results:
            results.extend(_evaluate(builder, step))
        return results[index]

    def emit(value: Value, use: str) -> fx.Node:
        nonlocal trained
        known, trained = trained, trained or use == "train"
        if value.node is None:
            emit_node(builder, step, use)
        elif use == "train" and not known:
            for operand in step.operands:
                if operand is not None and operand.trainable and operand.node is not None:
                    builder.tensor(operand, use)
        assert value.node is not None
        return value.node

    source, carries = _trained_source(step), _carries(step)
    for index, name in enumerate(step.proto.output):
        elem, shape = builder.types.get(name, (0, None))
        value = Value(name, elem, shape, constant=partial(compute, index))
        if carries and step.operands and step.operands[0] is not None:
            value.weight = step.operands[0].weight
        # a quantised weight is no float, but the DequantizeLinear that reads it trains it
        trains = (elem or TensorProto.FLOAT) in TRAINABLE or step.entry.name == "QuantizeLinear"
        if source is not None and trains:
            value.trainable, value.scalar_weight = True, source.scalar_weight
            value.emit = partial(emit, value)
        if name:
            builder.values[name] = value


def _carries(step: Step) -> bool:
    return step.entry.layout or step.entry.name in _CARRIES


def _trained_source(step: Step) -> Value | None:
    """The operand that makes a folded node's outputs trainable.

    Scalars do not: a chain of them (positions, scale factors) is a constant of the architecture,
    not a weight.
    """
    if not step.entry.differentiable:
        return None
    plain = step.entry.static | step.entry.literal
    for value, name in zip(step.operands, step.names, strict=True):
        if value is None or not value.trainable or name in plain:
            continue
        if not value.scalar_weight or _carries(step):
            return value
    return None


def _evaluate(builder: Builder, step: Step) -> Sequence[Any]:
    args = [
        None if v is None else v.python() if name in step.entry.static else v.tensor()
        for v, name in zip(step.operands, step.names, strict=True)
    ]
    while args and args[-1] is None:
        args.pop()
    keywords = {name: value for name, value in step.attrs.items() if step.entry.takes(name)}
    keywords.update(injected(builder, step))
    try:
        with torch.no_grad():
            result = step.entry.function(*args, **keywords)
    except Exception as error:
        raise ModelError(
            f"{step.proto.op_type} '{step.label}': expected operands that fit it, "
            f"got {type(error).__name__}: {error}"
        ) from error
    return result if step.entry.multiple else (result,)
