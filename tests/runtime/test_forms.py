"""The forms of a model: what runs dense is what the dense file would be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from dns_onnx.converters.exporter import convert
from dns_onnx.runtime import forms
from dns_onnx.runtime.decoding import Decoder
from dns_onnx.runtime.forms import Forms
from dns_onnx.runtime.sites import Tensors, sparse_layers

Make = Callable[..., Any]

# two convolutions with batch norm and a sum, as in a residual net, and a matrix
NET = """<ir_version: 8, opset_import: ["" : 17]>
g (float[1,16,12,12] x) => (y) {
  a = Conv <pads = [1, 1, 1, 1]> (x, w)
  b = BatchNormalization (a, scale, shift, mean, var)
  c = Relu (b)
  d = Conv <pads = [1, 1, 1, 1]> (c, w1)
  e = BatchNormalization (d, scale, shift, mean, var)
  s = Add (e, x)
  r = Relu (s)
  p = GlobalAveragePool (r)
  f = Flatten (p)
  y = Gemm <transB = 1> (f, m, bias)
}"""
# attributes that the exporter writes though the net leaves them at their defaults
WRITTEN_OUT = ("alpha", "beta", "dilations", "kernel_shape", "strides")
SHAPES = {"w": (16, 16, 3, 3), "w1": (16, 16, 3, 3), "m": (40, 16), "bias": (40,)}


def net(density: float, make_pruned: Make) -> onnx.ModelProto:
    model = parser.parse_model(NET)
    rng = np.random.default_rng(0)
    for name in ("w", "w1", "m", "bias", "scale", "shift", "mean", "var"):
        shape = SHAPES.get(name, (16,))
        array = make_pruned(rng, shape, density if len(shape) > 1 else 1.0)
        array += 0.0  # no negative zeros, which no sparse form keeps
        array = np.abs(array) + 0.5 if name == "var" else array
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def optimized(data: bytes, path: Path) -> list[tuple[Any, ...]]:
    """The nodes that ONNX Runtime makes of a model, with the values of their constants."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(path)
    ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    graph = onnx.load(path).graph
    named: dict[str, Any] = {t.name: numpy_helper.to_array(t).tobytes() for t in graph.initializer}
    found = []
    for i, node in enumerate(graph.node):
        given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        given = {name: value for name, value in given.items() if name not in WRITTEN_OUT}
        found.append((node.op_type, given, [named.get(name, name) for name in node.input]))
        named.update({name: (i, k) for k, name in enumerate(node.output)})
    return found


@pytest.mark.parametrize("kernels_pay", [True, False], ids=["operators", "decoders"])
def test_dense_form_is_what_the_dense_file_becomes(
    kernels_pay: bool, make_pruned: Make, tmp_path: Path
) -> None:
    model = net(0.3, make_pruned)
    data = convert(model, "csr", wants_kernel=lambda *_: kernels_pay).model.SerializeToString()
    made = Forms(data, None, substitutes=True)
    dense = made.form([False] * len(made.layers))
    assert len(made.layers) == 3
    assert len(dense.folded) == (3 if kernels_pay else 0)
    assert not onnx.load_from_string(dense.data).functions
    want = optimized(model.SerializeToString(), tmp_path / "want.onnx")
    assert optimized(dense.data, tmp_path / "got.onnx") == want
    assert "BatchNormalization" not in {op for op, *_ in want}


@pytest.mark.parametrize(
    ("values", "kernels_pay"),
    [("float32", True), ("float32", False), ("float16", True), ("float16", False), ("int8", True)],
)
@pytest.mark.parametrize("density", [0.02, 0.1, 0.4], ids=["indices", "gaps", "bitmask"])
def test_decoded_weight_is_what_the_file_means(
    values: str, density: float, kernels_pay: bool, make_pruned: Make
) -> None:
    weight = make_pruned(np.random.default_rng(0), (90, 300), density)
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [300, 300])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    stored = convert(model, "csr", values=values, wants_kernel=lambda *_: kernels_pay).model
    tensors = Tensors(stored, None)
    (layer,) = sparse_layers(stored, tensors)
    got = Decoder(stored, tensors).weight(layer)
    assert got is not None
    session = ort.InferenceSession(stored.SerializeToString(), providers=["CPUExecutionProvider"])
    want = session.run(None, {"x": np.eye(300, dtype=np.float32)})[0].T
    np.testing.assert_array_equal(got, want)
    if values == "float32":
        np.testing.assert_array_equal(got, weight)


@pytest.mark.parametrize(
    ("name", "at", "value"),
    [("col_indices", -1, 500), ("col_indices", 1, 0), ("row_ptr", 1, 500), ("row_ptr", -1, 1)],
)
def test_malformed_weight_is_left_to_the_session(
    name: str, at: int, value: int, make_layer: Make, make_pruned: Make
) -> None:
    layer = make_layer("CsrGemm", make_pruned(np.random.default_rng(0), (8, 30), 0.4), transB=1)
    layer.operands[name][at] = value
    model = onnx.load_from_string(layer.model(sparse=True, rank=2))
    tensors = Tensors(model, None)
    (found,) = sparse_layers(model, tensors)
    assert Decoder(model, tensors).weight(found) is None


def test_weights_too_large_to_serialize_stay_with_their_functions(
    make_pruned: Make, monkeypatch: pytest.MonkeyPatch, close: Make
) -> None:
    monkeypatch.setattr(forms, "MOST_BYTES", 100)
    model = net(0.3, make_pruned)
    data = convert(model, "csr", wants_kernel=lambda *_: True).model.SerializeToString()
    made = Forms(data, None, substitutes=False)
    dense = made.form([False] * 3)
    assert len(dense.folded) == 3
    x = np.random.default_rng(1).standard_normal((1, 16, 12, 12)).astype(np.float32)
    got, want = (
        ort.InferenceSession(d, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for d in (dense.data, model.SerializeToString())
    )
    close(got, want)
