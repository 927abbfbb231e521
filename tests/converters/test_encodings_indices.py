"""Every layout of the indices gives back the same weight, in NumPy and by its function body."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from dns_onnx.converters.encodings import decode
from dns_onnx.converters.encodings.bodies import Form
from dns_onnx.converters.encodings.functions import add_functions, function
from dns_onnx.converters.encodings.matrix import Layout, Matrix, is_kept
from dns_onnx.errors import ModelError

from .exporter_models import build, run, sparse


def decoded(matrix: Matrix, layout: Layout) -> Any:
    """The dense weight that the layout's arrays stand for."""
    stored = matrix.for_layout(layout)
    indices = stored.indices(layout)
    assert len(stored.values) == layout.stored
    shape = np.array(matrix.shape)
    if layout.kind == "bitmask":
        return decode.bitmask_to_dense(stored.values, indices, shape)
    row_ptr = None if layout.kind == "gaps" else stored.row_ptr()
    return decode.csr_to_dense(stored.values, indices, row_ptr, shape)


@st.composite
def weights(draw: Any) -> Any:
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=4)))
    bits = draw(hnp.arrays(np.uint32, shape, elements=st.integers(0, 2**32 - 1), fill=st.just(0)))
    return bits.view(np.float32)


@settings(deadline=None, max_examples=100)
@given(weights())
def test_every_layout_keeps_every_bit(weight: Any) -> None:
    matrix = Matrix.from_dense(weight)
    wanted = np.where(is_kept(weight), weight, np.float32(0))
    for layout in matrix.layouts():
        assert decoded(matrix, layout).tobytes() == wanted.tobytes(), layout


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 299_999), unique=True, max_size=8), st.sampled_from([1, 3, 1000]))
def test_huge_gaps_are_bridged_by_stored_zeros(positions: list[int], rows: int) -> None:
    weight = np.zeros(300_000, np.float32)
    weight[positions] = 1
    matrix = Matrix.from_dense(weight.reshape(rows, -1))
    for layout in matrix.layouts():
        assert np.array_equal(decoded(matrix, layout).reshape(-1), weight), layout
        if layout.kind == "gaps":
            assert matrix.for_layout(layout).gaps.max(initial=0) <= np.iinfo(layout.index_type).max


def test_kept_values_are_told_by_their_bits() -> None:
    weight = np.array([0.0, -0.0, 1e-45, np.nan, np.inf, -np.inf, 2.0], np.float32)
    assert is_kept(weight).tolist() == [False, False, True, True, True, True, True]


EVERY_THIRD = (np.arange(30) % 3 == 1)[:, None, None]
CASES = {
    "empty": np.zeros((4, 5), np.float32),
    "full": np.arange(1, 25, dtype=np.float32).reshape(3, 8),
    "empty rows": sparse(np.random.default_rng(0), (30, 3, 8)) * EVERY_THIRD,
    "one axis": np.array([0, 0, 3, 0, 4, 0, 0, 0], np.float32),
    "one entry": np.array([[[5]]], np.float32),
}  # fmt: skip


@pytest.mark.parametrize("opset", [11, 13, 18, 21])
@pytest.mark.parametrize("kind", ["absolute", "gaps", "bitmask"])
@pytest.mark.parametrize("case", CASES)
def test_bodies_decode_in_runtime_and_reference(
    case: str, kind: str, opset: int, tmp_path: Any
) -> None:
    weight = CASES[case].astype(np.float32)
    if kind == "bitmask" and weight.size % 8:
        assert kind not in {layout.kind for layout in Matrix.from_dense(weight).layouts()}
        return
    model = _model(weight, kind, opset)
    onnx.checker.check_model(model, full_check=True)
    x = np.ones(weight.shape, np.float32)
    (got,) = run(model, tmp_path / "optimized.onnx", X=x)
    assert np.array_equal(got, weight)
    assert [n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node] == ["Mul"]
    assert np.array_equal(ReferenceEvaluator(model).run(None, {"X": x})[0], weight)


def _model(weight: Any, kind: str, opset: int) -> onnx.ModelProto:
    """X * W with W decoded by our functions."""
    matrix = Matrix.from_dense(weight)
    layout = next(lay for lay in matrix.layouts() if lay.kind == kind)
    stored = matrix.for_layout(layout)
    arrays = {
        "v": stored.values, "i": stored.indices(layout), "s": np.array(weight.shape, np.int64),
        "p": stored.row_ptr().astype(np.int32),
    }  # fmt: skip
    inputs = {"absolute": ["v", "i", "p", "s"], "gaps": ["v", "i", "", "s"]}
    operator = "BitmaskToDense" if kind == "bitmask" else "CsrToDense"
    nodes = [
        helper.make_node(operator, inputs.get(kind, ["v", "i", "s"]), ["W"], domain="dns_onnx"),
        helper.make_node("Mul", ["X", "W"], ["Y"]),
    ]
    if kind != "absolute":
        del arrays["p"]
    model = build(nodes[-1:], {"X": weight.shape}, {"W": weight}, opset=opset)
    del model.graph.node[:]
    del model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in arrays.items())
    add_functions(model, [operator], Form(columns=kind == "absolute"))
    return model


def test_bodies_hold_no_operator_that_is_left_at_load() -> None:
    names = ("CsrConv", "CsrToDense", "BitmaskToDense")
    forms = (Form(), Form(columns=True), Form(values="int8"))
    used = {n.op_type for name in names for form in forms for n in function(name, 13, form).node}
    assert "NonZero" not in used


MALFORMED = {
    "row_ptr must rise": ([1, 2], [0, 1], [0, 2, 1], [2, 2]),
    "gaps must lie in": ([1, 2], [1, 0], None, [2, 2]),
    "gaps must add up": ([1, 2], [2, 3], None, [2, 2]),
    "row_ptr has": ([1, 2], [0, 1], [0, 1, 1, 2], [2, 2]),
    "column indices must lie": ([1, 2], [0, 2], [0, 1, 2], [2, 2]),
    "values but": ([1, 2], [0], [0, 1, 2], [2, 2]),
    "positive dimensions": ([1, 2], [0, 1], [0, 1, 2], [2, 0]),
    "more than": ([1], [0], [0, 1], [2**20, 2**20]),
}


@pytest.mark.parametrize("message", MALFORMED)
def test_malformed_matrix_is_named(message: str) -> None:
    values, columns, row_ptr, shape = MALFORMED[message]
    node = helper.make_node("CsrToDense", ["v", "c", "p", "s"], ["W"], name="fc1")
    arrays = [None if a is None else np.array(a, np.int64) for a in (columns, row_ptr, shape)]
    with pytest.raises(ModelError, match=message) as caught:
        decode.evaluate(node, [np.array(values, np.float32), *arrays])
    assert "'fc1'" in str(caught.value)
