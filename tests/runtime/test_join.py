"""Convolutions that write where a Concat would copy, against the model as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from dns_onnx.runtime.library import library_path
from tests.runtime.conftest import as_chosen

Make = Callable[..., Any]

pytestmark = pytest.mark.usefixtures("kernels")

THREE = "Conv <pads = [1, 1, 1, 1]> "
# name: nodes from x to y, and the operators that are left if not one; w*: filters [40, 40, 3, 3],
# p*: [24, 40, 1, 1], g*: [40, 20, 3, 3], b*: vectors [40], c*: [24]
CASES: dict[str, tuple[str, list[str]]] = {
    "fire": (
        f"a = Conv(x, p, c) d = Relu(a) e = {THREE}(x, w, b) f = Relu(e) "
        "y = Concat <axis = 1> (d, f)",
        ["CsrConvConcat"],
    ),
    "of_one_kind": (f"a = {THREE}(x, w) d = {THREE}(x, w1) y = Concat <axis = 1> (a, d)", None),
    "pointwise": ("a = Conv(x, p) d = Conv(x, p1, c) y = Concat <axis = 1> (d, a)", None),
    "four": (
        f"a = Conv(x, p) d = {THREE}(x, w) e = Conv(x, p1, c) "
        "f = Conv <pads = [1, 1, 1, 1], group = 2> (x, g, b) y = Concat <axis = 1> (a, d, e, f)",
        None,
    ),
    "of_other_inputs": (
        f"a = Conv(x, p) h = Sin(x) d = {THREE}(h, w) y = Concat <axis = 1> (a, d)",
        ["Sin", "CsrConvConcat"],
    ),
    "with_strides": (
        "a = Conv <strides = [2, 1]> (x, p) d = Conv <strides = [2, 1], pads = [2, 2, 2, 2], "
        "dilations = [2, 2]> (x, w) y = Concat <axis = 1> (a, d)",
        None,
    ),
    "five": (
        "a = Conv(x, p) d = Conv(x, p1) e = Conv(x, p2) f = Conv(x, p3) h = Conv(x, p4) "
        "y = Concat <axis = 1> (a, d, e, f, h)",
        ["CsrConv"] * 5 + ["Concat"],
    ),
    "along_another_axis": (
        "a = Conv(x, p) d = Conv(x, p1) y = Concat <axis = 2> (a, d)",
        ["CsrConv", "CsrConv", "Concat"],
    ),
    "of_unlike_ends": (
        "a = Conv(x, p) r = Relu(a) d = Conv(x, p1) y = Concat <axis = 1> (r, d)",
        ["CsrConv", "CsrConv", "Concat"],
    ),
    "with_the_input": (
        "a = Conv(x, p) y = Concat <axis = 1> (a, x)",
        ["CsrConv", "Concat"],
    ),
    "read_twice": (
        "a = Conv(x, p) d = Conv(x, p1) z = Concat <axis = 1> (a, d) s = Sin(a) "
        "y = Concat <axis = 1> (z, s)",
        ["CsrConv", "CsrConv", "Concat", "Sin", "Concat"],
    ),
    "with_itself": ("a = Conv(x, p) y = Concat <axis = 1> (a, a)", ["CsrConv", "Concat"]),
    "with_a_sum": (
        "h = Sin(x) a = Conv <pads = [1, 1, 1, 1]> (x, w) s = Add(a, h) d = Conv(x, p) "
        "y = Concat <axis = 1> (s, d)",
        ["Sin", "CsrConv", "CsrConv", "Concat"],
    ),
}
SHAPES = {
    "w": (40, 40, 3, 3),
    "p": (24, 40, 1, 1),
    "g": (40, 20, 3, 3),
    "b": (40,),
    "c": (24,),
}


def build(text: str) -> onnx.ModelProto:
    head = '<ir_version: 8, opset_import: ["" : 17]> g (float[2,40,9,7] x) => (y) '
    model = parser.parse_model(f"{head} {{ {text} }}")
    rng = np.random.default_rng(3)
    made = {"x"} | {name for node in model.graph.node for name in node.output}
    for name in [name for node in model.graph.node for name in node.input]:
        if name not in made:
            made.add(name)
            array = rng.standard_normal(SHAPES[name[0]]).astype(np.float32)
            array *= 1 if array.ndim == 1 else rng.random(array.shape) < 0.12
            model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def opened(data: bytes, *, native: bool, threads: int = 1) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    if native:
        options.register_custom_ops_library(str(library_path()))
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("text", "left"), CASES.values(), ids=CASES)
def test_convolutions_that_only_a_concat_reads(
    text: str, left: list[str] | None, threads: int, close: Make
) -> None:
    model = build(text)
    data, nodes = as_chosen(model)
    assert nodes == (left or ["CsrConvConcat"])
    x = np.random.default_rng(4).standard_normal((2, 40, 9, 7)).astype(np.float32)
    got = opened(data, native=True, threads=threads).run(None, {"x": x})[0]
    close(got, opened(model.SerializeToString(), native=False).run(None, {"x": x})[0])


def joined(**given: Any) -> bytes:
    """Two convolutions [1, 1, 1, 1] joined by hand; given: attributes in place of theirs."""
    arrays = {
        "v": np.ones(1, np.float32),
        "c": np.zeros(1, np.int32),
        "r": np.asarray([0, 1], np.int32),
        "s": np.ones(4, np.int64),
        "bias": np.zeros(2, np.float32),
    }
    attributes = {
        "branches": 2,
        "groups": [1, 1],
        "strides": [1, 1] * 2,
        "dilations": [1, 1] * 2,
        "pads": [0, 0, 0, 0] * 2,
    }
    bias = given.pop("bias", "")
    inputs = ["x", "v", "c", "r", "s", bias, "", "", "z", "v", "c", "r", "s"]
    node = helper.make_node(
        "CsrConvConcat", inputs, ["y"], name="two", domain="dns_onnx", **{**attributes, **given}
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None] * 4) for n in ("x", "z")],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * 4)],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("dns_onnx", 1)]
    data: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    return data


def test_maps_lie_one_behind_the_other() -> None:
    x, z = np.full((2, 1, 1, 3), 1, np.float32), np.full((2, 1, 1, 3), 2, np.float32)
    got = opened(joined(), native=True).run(None, {"x": x, "z": z})[0]
    np.testing.assert_array_equal(got, np.concatenate([x, z], 1))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"branches": 0}, "branches: expected 1 to 4, got 0"),
        ({"branches": 5}, "branches: expected 1 to 4, got 5"),
        (
            {
                "branches": 3,
                "groups": [1] * 3,
                "strides": [1] * 6,
                "dilations": [1] * 6,
                "pads": [0] * 12,
            },
            "expected constant weights",
        ),
        ({"strides": [1, 1]}, "strides: expected 2 values for each branch"),
        ({"pads": [0] * 7}, "pads: expected 4 values for each branch"),
        ({"groups": [1]}, "groups: expected 1 values for each branch"),
        ({"dilations": [1, 0, 1, 1]}, "dilations: expected 2 values from 1 on"),
        ({"groups": [1, 1 << 40]}, "group: expected a divisor"),
    ],
    ids=str,
)
def test_a_malformed_node_is_an_error(given: dict[str, Any], says: str) -> None:
    with pytest.raises(Exception, match=f"CsrConvConcat 'two': {says}"):
        opened(joined(**given), native=True)


@pytest.mark.parametrize(
    ("given", "size", "says"),
    [
        ({}, (1, 1, 2, 3), "X: expected maps of one size from all branches"),
        ({}, (2, 1, 2, 2), "X: expected maps of one size from all branches"),
        ({}, (1, 2, 2, 2), "X: expected rank 4 and 1 channels"),
        ({"bias": "bias"}, (1, 1, 2, 2), r"B: expected shape \[1\]"),
    ],
    ids=str,
)
def test_inputs_that_do_not_fit_are_an_error(
    given: dict[str, Any], size: tuple[int, ...], says: str
) -> None:
    made = opened(joined(**given), native=True)
    feeds = {"x": np.zeros((1, 1, 2, 2), np.float32), "z": np.zeros(size, np.float32)}
    with pytest.raises(Exception, match=f"CsrConvConcat 'two': {says}"):
        made.run(None, feeds)
