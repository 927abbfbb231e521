"""Let a graph's batch axis vary: the constants and shapes in it that repeat the batch size.

Where the batch lies in each value is found with a size that nothing else has: shapes are inferred
for a batch of so many, and a dimension that it divides is the batch's.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from dns_onnx.converters.order import topological, used_names
from dns_onnx.converters.reader import infer_shapes
from dns_onnx.converters.values import Shape, type_table

# A prime that no model uses as a size.
_MARK = 7919
_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
_MOST_ROUNDS = 200
_INTEGER_OPERATORS = frozenset(
    "Add Sub Mul Div Mod Cast Concat Gather Identity Neg Reshape Slice Squeeze Unsqueeze".split()
)


class BatchAxis:
    """Rewrites a model, in place, whose inputs all start with the same batch size.

    model: a copy that may be changed.  inputs: its data inputs.  size: what the file fixes.
    """

    def __init__(self, model: ModelProto, inputs: Sequence[ValueInfoProto], size: int) -> None:
        self.model, self.graph, self.inputs, self.size = model, model.graph, inputs, size
        self.constants = _constants(model.graph)
        self.moving = {info.name for info in inputs}
        for node in topological(model.graph):
            if not self.moving.isdisjoint(used_names(node)):
                self.moving.update(name for name in node.output if name)
        self.shapes: dict[str, Shape | None] = {}
        self.outer: dict[str, int] = {}
        self.done: set[tuple[str, int]] = set()
        self.ahead: list[NodeProto] = []

    def free(self) -> None:
        """Rewrite until nothing is left that repeats the batch size, and open the inputs."""
        del self.graph.value_info[:]
        for info in self.inputs:
            info.type.tensor_type.shape.dim[0].dim_value = self.size * _MARK
        for output in self.graph.output:
            output.type.tensor_type.ClearField("shape")
        rules = {"Reshape": self._reshape, "Resize": self._resize, "Concat": self._concat}
        rules |= dict.fromkeys(_RECURRENT, self._recurrent)
        for _ in range(_MOST_ROUNDS):
            self._infer()
            before = len(self.done)
            for node in self.graph.node:
                if node.op_type in rules and node.input:
                    rules[node.op_type](node)
            self._put_ahead()
            if len(self.done) == before:
                break
        for node in self.graph.node:
            if node.op_type == "Reshape" and self.shapes.get(node.input[0]) is None:
                self._guess(node)
        for info in self.inputs:
            info.type.tensor_type.shape.dim[0].dim_param = "batch"

    def _infer(self) -> None:
        """The shapes of all values; shape arithmetic that ONNX does not follow is computed."""
        probe = ModelProto()
        probe.CopyFrom(self.model)
        known: dict[str, np.ndarray] = {}
        for _ in range(_MOST_ROUNDS):
            inferred = infer_shapes(probe).graph
            types = type_table([*inferred.value_info, *inferred.output, *inferred.input])
            self.shapes = {name: shape for name, (_, shape) in types.items()}
            found = _arithmetic(probe.graph, self.shapes, {**self.constants, **known})
            if found.keys() <= known.keys():
                self._follow_merged()
                return
            rest = [n for n in probe.graph.node if n.output[0] not in found]
            nodes = GraphProto(node=rest).node
            del probe.graph.node[:]
            probe.graph.node.extend(nodes)
            new = found.keys() - known.keys()
            probe.graph.initializer.extend(numpy_helper.from_array(found[n], n) for n in new)
            known |= found

    def _follow_merged(self) -> None:
        """What stands before the batch in a merged dimension stays so through other operators."""
        for node in self.graph.node:
            source = next((name for name in node.input if name in self.outer), None)
            if source is None or node.op_type == "Reshape":
                continue
            axis = self._axis(source)
            for name in node.output:
                if axis is not None and self._axis(name) == axis:
                    same = self.shapes[name][axis] == self.shapes[source][axis]  # type: ignore[index]
                    self.outer |= {name: self.outer[source]} if same else {}

    def _axis(self, name: str) -> int | None:
        """Which axis of a value holds the batch, alone or with others; None if none does."""
        shape = self.shapes.get(name) or ()
        return next((i for i, d in enumerate(shape) if d and d % _MARK == 0), None)

    def _reshape(self, node: NodeProto) -> None:
        key, axis = (node.output[0], 1), self._axis(node.input[0])
        target = self.constants.get(node.input[1]) if len(node.input) > 1 else None
        source = self.shapes.get(node.input[0])
        if target is None or source is None or axis is None or key in self.done:
            return
        self.done.add(key)
        before = prod(d or 0 for d in source[:axis]) * self.outer.get(node.input[0], 1)
        sizes = tuple((d or 0) // _MARK if i == axis else d for i, d in enumerate(source))
        numbers = _spelled_out(_integers(target), source, sizes, _copies_zero(node))
        place, filled = _place(numbers, before) if numbers else (0, 1)
        if numbers and numbers[place] % self.size == 0:
            self.outer[node.output[0]] = before // max(filled, 1)
            wanted = [*numbers[:place], -1, *numbers[place + 1 :]]
            node.input[1] = self._constant(f"{node.output[0]}_shape", wanted)

    def _guess(self, node: NodeProto) -> None:
        """A Reshape of a value whose shape is not known; the proof tells if it was right."""
        target = _integers(self.constants.get(node.input[1], np.zeros(0)))
        if not target or target[0] != self.size or 0 in target:
            return
        if -1 not in target:
            node.input[1] = self._constant(f"{node.output[0]}_shape", [-1, *target[1:]])
        elif _copies_zero(node):
            node.input[1] = self._constant(f"{node.output[0]}_shape", [0, *target[1:]])

    def _resize(self, node: NodeProto) -> None:
        """Sizes that name the batch become factors, where these give the same sizes."""
        key, source = (node.output[0], 3), self.shapes.get(node.input[0])
        held = self.constants.get(node.input[3]) if len(node.input) > 3 else None
        if held is None or self._axis(node.input[0]) != 0 or source is None or key in self.done:
            return
        self.done.add(key)
        known = [d or 0 for d in source[1:]]
        sizes = _integers(held)
        if len(sizes) != len(source) or sizes[0] != self.size or 0 in known:
            return
        factors = np.array([1, *(n / d for n, d in zip(sizes[1:], known, strict=True))], np.float32)
        if [int(d * f) for d, f in zip(known, factors[1:].tolist(), strict=True)] == sizes[1:]:
            node.input[2] = self._constant(f"{node.output[0]}_scales", factors)
            del node.input[3:]

    def _concat(self, node: NodeProto) -> None:
        axes = {axis for name in node.input if (axis := self._axis(name)) is not None}
        joined = next((a.i for a in node.attribute if a.name == "axis"), 1)
        if len(axes) == 1 and joined not in axes and joined >= 0:
            for place in range(len(node.input)):
                self._tile(node, place, min(axes))

    def _recurrent(self, node: NodeProto) -> None:
        if self._axis(node.input[0]) == 1:
            for place, axis in ((4, 0), (5, 1), (6, 1)):
                if place < len(node.input):
                    self._tile(node, place, axis)

    def _tile(self, node: NodeProto, place: int, axis: int) -> None:
        """Repeat an operand that no input feeds and that has the file's batch along an axis."""
        key, name = (node.output[0], place), node.input[place]
        shape = self.constants[name].shape if name in self.constants else self.shapes.get(name)
        if not name or name in self.moving or key in self.done:
            return
        if shape is None or axis >= len(shape) or shape[axis] != self.size:
            return
        self.done.add(key)
        new = f"{node.output[0]}_operand{place}"
        ones = [1] * len(shape)
        before = self._constant(f"{new}_before", ones[:axis])
        after = self._constant(f"{new}_after", ones[axis + 1 :])
        parts, repeats = [before, self._batches(), after], f"{new}_repeats"
        self.ahead += [
            helper.make_node("Concat", parts, [repeats], repeats, axis=0),
            helper.make_node("Tile", [name, repeats], [new], new),
        ]
        node.input[place] = new

    def _batches(self) -> str:
        """The name of a vector of one entry: how many of the file's batches came in."""
        name = f"{self.inputs[0].name}_batches"
        if (name, 0) not in self.done:
            self.done.add((name, 0))
            shape, rows = f"{name}_shape", f"{name}_rows"
            first, size = self._constant(f"{name}_0", [0]), self._constant(f"{name}_1", [self.size])
            self.ahead = [
                helper.make_node("Shape", [self.inputs[0].name], [shape], shape),
                helper.make_node("Gather", [shape, first], [rows], rows, axis=0),
                helper.make_node("Div", [rows, size], [name], name),
                *self.ahead,
            ]
        return name

    def _put_ahead(self) -> None:
        """Put the new nodes after those that no input feeds, and before all others."""
        if self.ahead:
            given = [n for n in self.graph.node if self.moving.isdisjoint(n.output)]
            rest = [n for n in self.graph.node if not self.moving.isdisjoint(n.output)]
            nodes = GraphProto(node=[*given, *self.ahead, *rest]).node
            del self.graph.node[:]
            self.graph.node.extend(nodes)
            self.ahead = []

    def _constant(self, name: str, value: Sequence[int] | np.ndarray) -> str:
        array = value if isinstance(value, np.ndarray) else np.array(value, np.int64)
        self.graph.initializer.append(numpy_helper.from_array(array, name))
        self.constants[name] = array
        return name


def _arithmetic(
    graph: GraphProto, shapes: dict[str, Shape | None], known: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Short integer vectors that follow from shapes and constants, by name."""
    found: dict[str, np.ndarray] = {}
    for node in graph.node:
        values = [found.get(name, known.get(name)) for name in node.input]
        if node.op_type == "Shape" and (shape := shapes.get(node.input[0])) is not None:
            if None not in shape and not node.attribute:
                found[node.output[0]] = np.array(shape, np.int64)
        elif node.op_type in _INTEGER_OPERATORS and all(_is_short(v) for v in values):
            feeds = dict(zip(node.input, values, strict=True))
            try:
                results = list(ReferenceEvaluator(node).run(None, feeds))
            except Exception:  # whatever it raises, the value only stays unknown
                continue
            found[node.output[0]] = np.asarray(results[0])
    return found


def _is_short(value: np.ndarray | None) -> bool:
    return value is not None and value.dtype.kind == "i" and value.size <= 64


def _constants(graph: GraphProto) -> dict[str, np.ndarray]:
    """What is known of the values that nodes read, by name."""
    found = {t.name: t for t in graph.initializer}
    arrays: dict[str, np.ndarray] = {}
    for node in graph.node:
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.name == "value":
                found[node.output[0]] = attribute.t
            elif attribute.name == "value_ints":
                arrays[node.output[0]] = np.array(list(attribute.ints), np.int64)
    arrays |= {name: numpy_helper.to_array(tensor) for name, tensor in found.items()}
    for node in graph.node:
        if node.op_type in ("Cast", "Identity") and node.input[0] in arrays:
            held = arrays[node.input[0]]
            if held.dtype.kind == "i" and held.ndim <= 1:  # a shape, as torch's exporter casts it
                arrays[node.output[0]] = held
        if node.op_type == "ConstantOfShape" and node.input[0] in arrays:
            # only its shape counts: no memory for its entries
            shape = _integers(arrays[node.input[0]])
            arrays[node.output[0]] = np.broadcast_to(np.zeros(()), shape)
    return arrays


def _integers(array: np.ndarray) -> list[int]:
    return [int(d) for d in array.reshape(-1)]


def _copies_zero(node: NodeProto) -> bool:
    return not any(a.name == "allowzero" and a.i for a in node.attribute)


def _spelled_out(
    target: list[int], source: Shape, sizes: Shape, copies_zero: bool
) -> list[int] | None:
    """A Reshape's target in plain numbers; None if it copies the batch already, or is not known.

    source: the operand's shape for the marked batch.  sizes: the same for the file's own.
    """
    if 0 in target and copies_zero:
        given = [d or 0 for d in source] + [0] * len(target)
        target = [given[i] if d == 0 else d for i, d in enumerate(target)]
        if any(d and d % _MARK == 0 for d in target):
            return None
    if -1 not in target:
        return target
    total, rest = prod(d or 0 for d in sizes), prod(d for d in target if d != -1)
    if not total or not rest or total % rest:
        return None
    return [total // rest if d == -1 else d for d in target]


def _place(target: list[int], before: int) -> tuple[int, int]:
    """Where in a Reshape's target the batch goes, and how many entries stand before it.

    before: the entries before the batch in the operand.  In row-major order the batch comes after
    the dimensions that they fill.  A last dimension by itself stays whole: [L, N, E] becomes
    [L N, E], not [L, N E].
    """
    filled, place = 1, 0
    while place < len(target) - 1 and filled != before and filled * target[place] <= before:
        filled *= target[place]
        place += 1
    if 0 < place == len(target) - 1 and target[place] > 1:
        place -= 1
        filled //= max(target[place], 1)
    return place, filled
