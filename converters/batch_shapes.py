"""Rewriting what an exporter wrote down for one batch size, so that any size may come.

Each rule is a guess about the graph's meaning; batch.py proves the result or drops it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from dns_onnx.converters.values import Shape

Types = dict[str, tuple[int, Shape | None]]
_STATES = {"RNN": (5,), "GRU": (5,), "LSTM": (5, 6)}


def free_reshapes(graph: GraphProto, types: Types, size: int) -> None:
    """Rewrite the constants of Reshape nodes that repeat the batch size."""
    tensors = _constants(graph)
    added = []
    for index, node in enumerate(graph.node):
        if node.op_type != "Reshape" or len(node.input) < 2 or node.input[1] not in tensors:
            continue
        source = types.get(node.input[0], (0, None))[1]
        target = [int(d) for d in numpy_helper.to_array(tensors[node.input[1]]).reshape(-1)]
        wanted = _free_target(target, source, size, _allows_zero(node))
        if wanted is not None and wanted != target and node.input[0] not in tensors:
            name = f"{node.input[1]}_free_{index}"
            added.append(numpy_helper.from_array(np.array(wanted, np.int64), name))
            node.input[1] = name
    graph.initializer.extend(added)


def free_sizes(graph: GraphProto, types: Types, size: int, batched: str) -> None:
    """Let Resize follow the batch, and repeat the single rows that meet it.

    A class token of one row that is joined to every sample, and an initial state of one row, are
    expanded to the batch.  batched: an input whose first axis is the batch.
    """
    tensors = _constants(graph)
    moving = _depending(graph)
    rows = _Rows(batched)
    nodes: list[NodeProto] = []
    for node in graph.node:
        fixed = node.op_type == "Resize" and len(node.input) > 3 and node.input[3] in tensors
        if fixed and node.input[0] in moving:
            sizes = [int(d) for d in numpy_helper.to_array(tensors[node.input[3]]).reshape(-1)]
            if sizes[0] == size and not any(a.name == "axes" for a in node.attribute):
                node.input[3] = rows.shape(sizes, 0)
        for index, axis in _meeting(node, moving):
            shape = types.get(node.input[index], (0, None))[1] or _dims(tensors, node.input[index])
            if size == 1 and shape and len(shape) > axis and shape[axis] == 1:
                ones = [d or 1 for d in shape]  # Expand leaves a size alone where it is given 1
                node.input[index] = rows.expanded(node.input[index], ones, axis)
        nodes += [*rows.taken(), node]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(rows.tensors)


def _meeting(node: NodeProto, moving: set[str]) -> list[tuple[int, int]]:
    """(operand, its batch axis) of the operands that meet a batch without being part of it."""
    if node.op_type == "Concat":
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        if axis != 0 and any(name in moving for name in node.input):
            return [(i, 0) for i, name in enumerate(node.input) if name not in moving]
    states = [i for i in _STATES.get(node.op_type, ()) if i < len(node.input) and node.input[i]]
    return [(i, 1) for i in states if node.input[i] not in moving]


class _Rows:
    """The nodes that read the size of the batch where the graph runs."""

    def __init__(self, batched: str) -> None:
        self.batched = batched
        self.tensors: list[TensorProto] = []
        self._nodes: list[NodeProto] = []
        self._count = 0

    def taken(self) -> list[NodeProto]:
        """The nodes made since the last call."""
        made, self._nodes = self._nodes, []
        return made

    def shape(self, sizes: list[int], axis: int) -> str:
        """A value that holds the sizes, with the batch's in place of one of them."""
        if not self._count:
            self._node("Shape", [self.batched], "all")
            self._node("Gather", ["batch_all", self._tensor([0], "first")], "size")
        self._count += 1
        parts = [
            self._tensor(sizes[:axis], f"before_{self._count}"),
            "batch_size",
            self._tensor(sizes[axis + 1 :], f"after_{self._count}"),
        ]
        return self._node("Concat", parts, f"shape_{self._count}", axis=0)

    def expanded(self, name: str, sizes: list[int], axis: int) -> str:
        """A value repeated along one axis for every sample."""
        return self._node("Expand", [name, self.shape(sizes, axis)], f"rows_{self._count}")

    def _node(self, op_type: str, operands: list[str], name: str, **attributes: Any) -> str:
        name = f"batch_{name}"
        self._nodes.append(helper.make_node(op_type, operands, [name], name, **attributes))
        return name

    def _tensor(self, values: list[int], name: str) -> str:
        self.tensors.append(numpy_helper.from_array(np.array(values, np.int64), f"batch_{name}"))
        return f"batch_{name}"


def _constants(graph: GraphProto) -> dict[str, TensorProto]:
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensors[node.output[0]] = node.attribute[0].t
    return tensors


def _dims(tensors: dict[str, TensorProto], name: str) -> Shape | None:
    return tuple(int(d) for d in tensors[name].dims) if name in tensors else None


def _depending(graph: GraphProto) -> set[str]:
    """Names of the values that depend on an input of the graph."""
    held = {tensor.name for tensor in graph.initializer}
    moving = {info.name for info in graph.input} - held
    for node in graph.node:
        inside = any(a.HasField("g") or a.graphs for a in node.attribute)
        if inside or any(name in moving for name in node.input):
            moving.update(node.output)
    return moving


def _allows_zero(node: NodeProto) -> bool:
    return any(a.name == "allowzero" and a.i for a in node.attribute)


def _free_target(
    target: list[int], source: Shape | None, size: int, allow_zero: bool
) -> list[int] | None:
    """The target shape of a Reshape with its batch left open; None if there is no telling."""
    if source is None or None in source:
        return _guessed_target(target, size, allow_zero)
    if not source or not target or (source[0] or 0) % size:
        return None
    if source[0] != size:
        return _folded_target(target, source, size)
    if target[0] == -1 or (target[0] == 0 and not allow_zero):
        return target
    if 0 in target:
        return None
    total = int(np.prod([d or 0 for d in source]))
    if -1 in target:
        known = int(np.prod([d for d in target if d != -1]))
        target = [total // known if d == -1 else d for d in target]
    return [-1, *target[1:]] if target[0] % size == 0 else None


def _folded_target(target: list[int], source: Shape, size: int) -> list[int] | None:
    """As `_free_target` where the batch is folded into the first axis, or is the second one."""
    if -1 in target or 0 in target:
        return None  # follows the operand as it is
    if target[0] == source[0] and len(target) > 1 and len(source) > 1 and source[1] == size:
        return [target[0], -1, *target[2:]]  # time first, batch second
    return [-1, *target[1:]]


def _guessed_target(target: list[int], size: int, allow_zero: bool) -> list[int] | None:
    """As `_free_target` where the operand's shape is unknown; the proof tells if it was right."""
    if not target or target[0] != size or 0 in target:
        return None
    if -1 not in target:
        return [-1, *target[1:]]
    return None if allow_zero else [0, *target[1:]]
