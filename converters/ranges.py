"""What a model says of the values that its inputs may take."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

_PASSING = ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose")
_PIXELS = {
    "NominalRange_0_255": (0.0, 255.0),
    "Normalized_0_1": (0.0, 1.0),
    "Normalized_1_1": (-1.0, 1.0),
    "NominalRange_16_235": (16.0, 235.0),
}


@dataclass(frozen=True)
class Draw:
    """low <= x < high where they are known; or the one value that the input can only have."""

    low: float | None = None
    high: float | None = None
    value: float | None = None


ANY = Draw()


def draws(model: ModelProto) -> dict[str, Draw]:
    """By input name: the range of its values, as far as the model says.

    A mask is ones, indices stay within the table that they choose from, what else is compared with
    one constant is that constant, and images have the range that the model's metadata name.
    """
    held = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            held[node.output[0]] = node.attribute[0].t
    pixels = next((_PIXELS.get(m.value) for m in model.metadata_props
                   if m.key == "Image.NominalPixelRange"), None)  # fmt: skip
    found = {}
    for info in model.graph.input:
        if info.name in held:
            continue
        limits = list(_limits(model, info.name, held))
        values = [d.value for d in limits if d.value is not None]
        highs = [d.high for d in limits if d.high is not None]
        if "mask" in info.name.lower():
            found[info.name] = Draw(value=1)
        elif highs:  # a token that is compared with one constant is looked through for padding
            found[info.name] = Draw(0, min(highs))
        elif values:
            found[info.name] = Draw(value=values[0])
        elif pixels is not None and len(info.type.tensor_type.shape.dim) == 4:
            found[info.name] = Draw(*pixels)
        else:
            found[info.name] = Draw()
    return found


def _limits(model: ModelProto, name: str, held: dict[str, TensorProto]) -> Iterator[Draw]:
    """What the nodes that read a value ask of it."""
    pending, seen = [name], set[int]()
    while pending:
        value = pending.pop()
        for index, node in enumerate(model.graph.node):
            if value not in node.input or index in seen:
                continue
            seen.add(index)
            others = [held[i] for i in node.input if i in held]
            if node.op_type in _PASSING and node.input[0] == value:
                pending.append(node.output[0])
            elif node.op_type == "Gather" and node.input[1] == value and node.input[0] in held:
                yield Draw(0, held[node.input[0]].dims[_axis(node)])
            elif node.op_type == "OneHot" and node.input[0] == value and others:
                yield Draw(0, int(numpy_helper.to_array(others[0]).reshape(-1)[0]))
            elif node.op_type == "Equal" and others and np.prod(others[0].dims) == 1:
                yield Draw(value=float(numpy_helper.to_array(others[0]).reshape(-1)[0]))


def _axis(node: NodeProto) -> int:
    return next((int(a.i) for a in node.attribute if a.name == "axis"), 0)
