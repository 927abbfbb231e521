"""What follows a sparse layer is joined with it, and only where that changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from dns_onnx.converters.exporter import convert
from dns_onnx.runtime.dispatch import choose
from dns_onnx.runtime.library import library_path
from tests.runtime.conftest import as_chosen

Make = Callable[..., Any]

pytestmark = pytest.mark.usefixtures("kernels")

CONV = "Conv <pads = [1, 1, 1, 1]> "
HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'

# name: graph text, operators that are left; w*: filters [40, 40, 3, 3], m*: matrices [40, 40],
# b*: vectors [40], all made up
CASES: dict[str, tuple[str, list[str]]] = {
    "relu": (f"g (float[2,40,5,6] x) => (y) {{ a = {CONV}(x, w) y = Relu(a) }}", ["CsrConv"]),
    "clip": (
        f"g (float[2,40,5,6] x) => (y) <float lo = {{-0.5}}, float hi = {{0.75}}>"
        f"{{ a = {CONV}(x, w, b) y = Clip(a, lo, hi) }}",
        ["CsrConv"],
    ),
    "clip_one_bound": (
        f"g (float[2,40,5,6] x) => (y) <float hi = {{0.75}}>"
        f"{{ a = {CONV}(x, w, b) y = Clip(a, , hi) }}",
        ["CsrConv"],
    ),
    "clip_open_bound": (
        f"g (float[2,40,5,6] x, float lo) => (y) {{ a = {CONV}(x, w) y = Clip(a, lo) }}",
        ["CsrConv", "Clip"],
    ),
    "leaky": (
        f"g (float[2,40,5,6] x) => (y) {{ a = {CONV}(x, w) y = LeakyRelu <alpha = 0.2> (a) }}",
        ["CsrConv"],
    ),
    "norm": (
        f"g (float[2,40,5,6] x) => (y) {{ a = {CONV}(x, w) "
        "c = BatchNormalization(a, b0, b1, b2, v) y = Relu(c) }",
        ["CsrConv"],
    ),
    "norm_with_bias": (
        f"g (float[2,40,5,6] x) => (y) {{ a = {CONV}(x, w, b) "
        "y = BatchNormalization <epsilon = 0.1> (a, b0, b1, b2, v) }",
        ["CsrConv"],
    ),
    "residual": (
        f"g (float[2,40,5,6] x) => (y) {{ a = {CONV}(x, w) s = Add(x, a) y = Relu(s) }}",
        ["CsrConv"],
    ),
    "residual_of_two": (
        f"g (float[N,40,5,6] x) => (y) {{ a = {CONV}(x, w) c = {CONV}(x, w1) "
        "s = Sum(a, c) y = Clip(s) }",
        ["CsrConv", "CsrConv"],
    ),
    "residual_pointwise": (
        "g (float[2,40,5,6] x) => (y) { a = Conv (x, p, b) s = Add(a, x) y = LeakyRelu(s) }",
        ["CsrConv"],
    ),
    "sum_that_broadcasts": (
        f"g (float[2,40,5,6] x, float[40,1,1] z) => (y) {{ a = {CONV}(x, w) y = Add(a, z) }}",
        ["CsrConv", "Add"],
    ),
    "sum_of_unknown_shape": (
        f"g (float[2,40,5,6] x, float[A,B,C,D] z) => (y) {{ a = {CONV}(x, w) y = Add(a, z) }}",
        ["CsrConv", "Add"],
    ),
    "sum_with_itself": (
        f"g (float[2,40,5,6] x) => (y) {{ a = {CONV}(x, w) y = Add(a, a) }}",
        ["CsrConv", "Add"],
    ),
    "read_twice": (
        f"g (float[2,40,5,6] x) => (y) {{ a = {CONV}(x, w) r = Relu(a) y = Mul(r, a) }}",
        ["CsrConv", "Relu", "Mul"],
    ),
    "read_by_the_caller": (
        f"g (float[2,40,5,6] x) => (y, a) {{ a = {CONV}(x, w) y = Relu(a) }}",
        ["CsrConv", "Relu"],
    ),
    "gemm": ("g (float[3,40] x) => (y) { a = Gemm(x, m, b) y = Relu(a) }", ["CsrGemm"]),
    "gemm_twice": (
        "g (float[1,40] x) => (y) { a = Gemm(x, m, b) c = Relu(a) d = Gemm(c, m1) y = Tanh(d) }",
        ["CsrGemm", "CsrGemm", "Tanh"],
    ),
    "matmul": (
        "g (float[2,3,40] x) => (y) { a = MatMul(x, m) c = Add(b, a) y = LeakyRelu(c) }",
        ["CsrMatMul"],
    ),
    "matmul_plus_matrix": (
        "g (float[40,40] x) => (y) { a = MatMul(x, m) y = Add(a, x) }",
        ["CsrMatMul", "Add"],
    ),
}
SHAPES = {"w": (40, 40, 3, 3), "p": (40, 40, 1, 1), "m": (40, 40), "b": (40,), "v": (40,)}


def build(text: str) -> onnx.ModelProto:
    model = parser.parse_model(HEAD + text)
    rng = np.random.default_rng(3)
    made = {value.name for value in model.graph.input}
    made |= {tensor.name for tensor in model.graph.initializer}
    made |= {name for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        for name in node.input:
            if name in made or not name:
                continue
            made.add(name)
            array = rng.standard_normal(SHAPES[name[0]]).astype(np.float32)
            if array.ndim > 1:
                array *= rng.random(array.shape) < 0.15
            array = np.abs(array) + 0.1 if name == "v" else array
            model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def run(data: bytes, feeds: dict[str, Any], *, native: bool) -> list[Any]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if native:
        options.register_custom_ops_library(str(library_path()))
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    outputs: list[Any] = session.run(None, feeds)
    return outputs


def feeds_of(model: onnx.ModelProto) -> dict[str, Any]:
    rng = np.random.default_rng(4)
    sizes = {"N": 2, "A": 2, "B": 40, "C": 5, "D": 6}
    return {
        value.name: np.asarray(
            rng.standard_normal(
                [d.dim_value or sizes[d.dim_param] for d in value.type.tensor_type.shape.dim]
            ),
            np.float32,
        )
        for value in model.graph.input
    }


@pytest.mark.parametrize(("text", "left"), CASES.values(), ids=CASES)
def test_followers_are_joined_where_nothing_else_reads(
    text: str, left: list[str], close: Make
) -> None:
    model = build(text)
    data, nodes = as_chosen(model)
    assert nodes == left
    feeds = feeds_of(model)
    want = run(model.SerializeToString(), feeds, native=False)
    for got, expected in zip(run(data, feeds, native=True), want, strict=True):
        close(got, expected)


def test_followers_in_a_body_are_joined_too(close: Make) -> None:
    branch = build(f"g (float[2,40,5,6] x) => (y) {{ a = {CONV}(x, w) y = Relu(a) }}").graph
    del branch.input[:]
    other = parser.parse_graph("h () => (float[2,40,5,6] z) { z = Identity(x) }")
    node = helper.make_node("If", ["c"], ["out"], then_branch=branch, else_branch=other)
    graph = helper.make_graph(
        [node],
        "outer",
        [
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 40, 5, 6]),
        ],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [2, 40, 5, 6])],
    )
    branch.output[0].type.CopyFrom(graph.output[0].type)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    sparse = convert(model, "csr", wants_kernel=lambda *_: True).model
    chosen = choose(sparse.SerializeToString(), None, 1, None)
    assert chosen.data is not None
    assert b"Relu" not in chosen.data
    x = np.random.default_rng(5).standard_normal((2, 40, 5, 6)).astype(np.float32)
    for c in (True, False):
        feeds = {"c": np.array(c), "x": x}
        want = run(model.SerializeToString(), feeds, native=False)
        close(run(chosen.data, feeds, native=True)[0], want[0])


@pytest.mark.parametrize("choosing", [False, True], ids=["as_written", "joined"])
def test_layer_in_a_loop_shares_its_weight_with_all_rounds(choosing: bool, close: Make) -> None:
    text = (
        "g (int64 i, bool c, float[1,40] s) => (c2, t)"
        "{ c2 = Identity(c) a = Gemm(s, m, b) t = Relu(a) }"
    )
    body = build(text).graph
    for value, kind in zip(body.output, (TensorProto.BOOL, TensorProto.FLOAT), strict=True):
        shape = [] if kind == TensorProto.BOOL else [1, 40]
        value.CopyFrom(helper.make_tensor_value_info(value.name, kind, shape))
    graph = helper.make_graph(
        [helper.make_node("Loop", ["n", "", "x"], ["y"], body=body)],
        "outer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 40])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 40])],
        [numpy_helper.from_array(np.array(3, np.int64), "n")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data = convert(model, "csr", wants_kernel=lambda *_: True).model.SerializeToString()
    assert b"CsrGemm" in data
    if choosing:
        data = choose(data, None, 1, None).data or data
        assert b"Relu" not in data
    feeds = {"x": np.random.default_rng(5).standard_normal((1, 40)).astype(np.float32)}
    want = run(model.SerializeToString(), feeds, native=False)
    close(run(data, feeds, native=True)[0], want[0])


@pytest.mark.parametrize("choosing", [False, True], ids=["as_written", "joined"])
@pytest.mark.parametrize("opset", [11, 17])
def test_layer_in_a_scan_runs_once_a_step(choosing: bool, opset: int, close: Make) -> None:
    text = (
        "g (float[1,40] s, float[1,40] x) => (t, seen)"
        "{ a = Gemm(s, m, b) r = Relu(a) t = Add(r, x) seen = Identity(t) }"
    )
    body = build(text).graph
    for value in body.output:
        value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, [1, 40]))
    node = helper.make_node("Scan", ["start", "x"], ["last", "y"], body=body, num_scan_inputs=1)
    graph = helper.make_graph(
        [node],
        "outer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [5, 1, 40])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [5, 1, 40])],
        [numpy_helper.from_array(np.ones((1, 40), np.float32), "start")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model)
    written = convert(model, "csr", wants_kernel=lambda *_: True).model
    onnx.checker.check_model(written, full_check=True)
    data = written.SerializeToString()
    assert b"CsrGemm" in data
    feeds = {"x": np.random.default_rng(5).standard_normal((5, 1, 40)).astype(np.float32)}
    want = run(model.SerializeToString(), feeds, native=False)
    close(run(data, feeds, native=False)[0], want[0])
    if choosing:
        data = choose(data, None, 1, None).data or data
        assert b"Relu" not in data
    close(run(data, feeds, native=True)[0], want[0])
