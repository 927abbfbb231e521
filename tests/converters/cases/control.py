"""Cases of control flow, sequences, optionals, constants and random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, ValueInfoProto, helper, numpy_helper

from tests.converters.importer_models import floats

from .case import Case, Maker, fixed

_node = helper.make_node


def _body(
    nodes: Sequence[NodeProto],
    inputs: Sequence[ValueInfoProto],
    outputs: Sequence[str],
    **weights: np.ndarray,
) -> GraphProto:
    held = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    results = [helper.make_tensor_value_info(n, 9 if n == "on" else 1, None) for n in outputs]
    return helper.make_graph(list(nodes), "body", list(inputs), results, held)


def _if(version: int) -> list[Case]:
    yes = _body([_node("Mul", ["x1", "x2"], ["yes"])], [], ["yes"])
    no = _body([_node("Sub", ["x1", "x2"], ["no"])], [], ["no"])
    # data and weight come from the enclosing graph, not as operands
    nodes = (_node("If", ["x0"], ["y0"], then_branch=yes, else_branch=no),)

    def expected(condition: np.ndarray, x: np.ndarray, w: np.ndarray) -> np.ndarray:
        return x * w if condition else x - w

    data = [floats(2, 3), floats(2, 3, seed=1)]
    return [
        Case([np.array(flag), *data], held=(2,), nodes=nodes, expected=expected)
        for flag in (True, False)
    ]


def _loop(version: int) -> list[Case]:
    inputs = [
        helper.make_tensor_value_info("i", 7, []),
        helper.make_tensor_value_info("go", 9, []),
        helper.make_tensor_value_info("h", 1, [2, 3]),
    ]
    nodes = [
        _node("Mul", ["h", "w"], ["next"]),
        _node("Tanh", ["next"], ["seen"]),
        _node("Identity", ["go"], ["on"]),
    ]
    body = _body(nodes, inputs, ["on", "next", "seen"], w=floats(2, 3, seed=1))

    def expected(trips: np.ndarray, go: np.ndarray, h: np.ndarray) -> tuple[np.ndarray, ...]:
        powers = [h * floats(2, 3, seed=1) ** (i + 1) for i in range(3)]
        return powers[-1], np.tanh(powers)

    operands = [np.array(3), np.array(True), floats(2, 3)]
    whole = [Case(operands, {"body": body}, 2, held, expected) for held in ((0, 1), (0,), ())]
    return [*whole, _no_iteration()]


def _no_iteration() -> Case:
    """A loop whose condition never holds: what it collects is empty, of the body's own type."""
    inputs = [
        helper.make_tensor_value_info("i", 7, []),
        helper.make_tensor_value_info("go", 9, []),
        helper.make_tensor_value_info("h", 7, [2]),
    ]
    nodes = [
        _node("Identity", ["go"], ["on"]),
        _node("Identity", ["h"], ["next"]),
        _node("Identity", ["h"], ["seen"]),
    ]
    results = [*inputs[1:], inputs[2]]
    names = ("on", "next", "seen")
    body = helper.make_graph(nodes, "body", inputs, results)
    for result, name in zip(body.output, names, strict=True):
        result.name = name
    operands = [np.array(4), np.array(False), np.array([1, 2])]
    return Case(operands, {"body": body}, 2, expected=lambda *x: (x[2], np.zeros((0, 2), np.int64)))


def _scan(version: int) -> list[Case]:
    inputs = [helper.make_tensor_value_info(name, 1, [3]) for name in ("total", "row")]
    # IR version 3, that of schema 8, has no initializers that are no inputs
    nodes = [
        _node("Constant", [], ["w"], value=numpy_helper.from_array(floats(3, seed=1))),
        _node("Add", ["total", "row"], ["sum"]),
        _node("Mul", ["sum", "w"], ["seen"]),
    ]
    body = _body(nodes, inputs, ["sum", "seen"])
    how: dict[str, Any] = {"body": body, "num_scan_inputs": 1}
    if version == 8:
        start, x = floats(2, 3, seed=2), floats(2, 4, 3)
        return [
            Case([None, start, x], how, 2),
            Case([np.array([4, 2]), start, x], how, 2),
        ]
    start, x = floats(3, seed=2), floats(4, 3)
    back = {"scan_input_directions": [1], "scan_output_directions": [1], "scan_output_axes": [1]}
    return [Case([start, x], how, 2), Case([start, x], {**how, **back}, 2)]


_ELEMENTS = (_node("SequenceConstruct", ["x0", "x1"], ["elements"]),)


def _erase(version: int) -> Case:
    nodes = (
        *_ELEMENTS,
        _node("SequenceErase", ["elements", "x2"], ["rest"]),
        _node("SequenceAt", ["rest", "x2"], ["y0"]),
    )
    operands = [floats(2), floats(3, seed=1), np.array(0)]
    return Case(operands, held=(2,), idle=(0,), nodes=nodes, expected=lambda a, b, _: b)


def _join(version: int) -> list[Case]:
    pair = [floats(2, 3), floats(2, 3, seed=1)]
    return [
        Case(pair, nodes=(*_ELEMENTS, _node("ConcatFromSequence", ["elements"], ["y0"], **how)))
        for how in ({"axis": 1}, {"axis": -1, "new_axis": 1})
    ]


def _to_sequence(version: int) -> list[Case]:
    def split(*operands: np.ndarray, **how: Any) -> Case:
        names = [f"x{i}" for i in range(len(operands))]
        nodes = (
            _node("SplitToSequence", names, ["parts"], **how),
            _node("Constant", [], ["at"], value=numpy_helper.from_array(np.array(-1))),
            _node("SequenceAt", ["parts", "at"], ["y0"]),
        )
        return Case(list(operands), held=tuple(range(1, len(operands))), nodes=nodes)

    x = floats(5, 2)
    return [split(x, np.array([2, 3])), split(x, np.array(2)), split(x, keepdims=0)]


def _optional(reader: str, expected: Any) -> Maker:
    """An optional made and read; from schema 18 on a plain tensor is an operand, too."""

    def cases(version: int) -> list[Case]:
        made = _node("Optional", ["x0"], ["maybe"])
        nodes = (made, _node(reader, ["maybe"], ["y0"]))
        return [
            Case([floats(2)], nodes=nodes, expected=expected),
            *([Case([floats(2)], expected=expected)] if version >= 18 else []),
        ]

    return cases


def _constant(version: int) -> list[Case]:
    value = floats(2, 3)
    cases = [Case([], {"value": numpy_helper.from_array(value)}, expected=lambda: value)]
    if version >= 11:
        kept = numpy_helper.from_array(np.float32([2, 3]), "kept")
        places = numpy_helper.from_array(np.array([1, 3]), "places")
        sparse = helper.make_sparse_tensor(kept, places, [5])
        nodes = (
            _node("Constant", [], ["c"], sparse_value=sparse),
            _node("Identity", ["c"], ["y0"]),
        )
        cases.append(Case([], nodes=nodes, expected=lambda: np.float32([0, 2, 0, 3, 0])))
    if version >= 12:
        cases.append(Case([], {"value_floats": [1.0, 2.0]}, expected=lambda: np.float32([1, 2])))
        cases.append(Case([], {"value_int": 3}, expected=lambda: np.int64(3)))
    return cases


# Random numbers are drawn from distributions of one value.
_LIKE = floats(2, 3)
_SURE = np.float32([[-999, 0, -999], [0, -999, -999]])

CASES: dict[str, Maker] = {
    "If": _if,
    "Loop": _loop,
    "Scan": _scan,
    "SequenceErase": _erase,
    "ConcatFromSequence": _join,
    "SplitToSequence": _to_sequence,
    "Optional": _optional("OptionalGetElement", lambda x: x),
    "OptionalGetElement": _optional("OptionalGetElement", lambda x: x),
    "OptionalHasElement": _optional("OptionalHasElement", lambda x: np.array(True)),
    "Constant": _constant,
    "RandomNormal": fixed(
        expected=lambda: np.full((2, 3), 4, np.float64),
        shape=[2, 3],
        mean=4.0,
        scale=1e-9,
        dtype=11,
    ),
    "RandomUniform": fixed(
        expected=lambda: np.full((2, 3), 4, np.float32), shape=[2, 3], low=4.0, high=4.000001
    ),
    "RandomNormalLike": fixed(
        _LIKE, expected=lambda x: np.full((2, 3), 4, np.float64), mean=4.0, scale=1e-9, dtype=11
    ),
    "RandomUniformLike": fixed(
        _LIKE, expected=lambda x: np.full((2, 3), 4, np.float32), low=4.0, high=4.000001
    ),
    "Bernoulli": fixed(
        np.float32([[0, 1], [1, 0]]), expected=lambda x: x.astype(np.float64), dtype=11
    ),
    "Multinomial": fixed(
        _SURE, expected=lambda x: np.int64([[1, 1, 1, 1], [0, 0, 0, 0]]), sample_size=4, dtype=7
    ),
}
