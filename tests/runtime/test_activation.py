"""Layers with an activation of their own: kernel, function body and reference agree."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx.reference import ReferenceEvaluator

from dns_onnx.converters.encodings import to_dense
from dns_onnx.converters.encodings.bodies import Form
from dns_onnx.converters.encodings.functions import add_functions
from dns_onnx.runtime.dispatch import choose

Make = Callable[..., Any]

pytestmark = pytest.mark.usefixtures("kernels")

# body -> the attributes of a node in such a file, and what is left of the two nodes in stock ORT
CASES: dict[str, tuple[dict[str, float], set[str]]] = {
    "Relu": ({"low": 0.0}, {"Relu"}),
    "LeakyRelu": ({"slope": 0.2}, {"PRelu"}),
    "Clip": ({"low": -0.5, "high": 0.75}, {"Clip"}),
}
LAYERS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "CsrConv": (
        (12, 6, 3, 3),
        (2, 6, 8, 9),
        {
            "auto_pad": "NOTSET", "dilations": [1, 1], "group": 1, "kernel_shape": [3, 3],
            "pads": [1, 1, 1, 1], "strides": [1, 1],
        },
    ),
    "CsrGemm": ((12, 40), (3, 40), {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 1}),
    "CsrMatMul": ((40, 12), (2, 3, 40), {}),
}  # fmt: skip


def activated(v: Any, low: float = -np.inf, high: float = np.inf, slope: float = 1) -> Any:
    return np.clip(np.where(v < 0, v * np.float32(slope), v), low, high).astype(np.float32)


@pytest.mark.parametrize("values", ["float32", "int8"])
@pytest.mark.parametrize("activation", CASES)
@pytest.mark.parametrize("op", LAYERS)
def test_kernel_body_reference_and_dense_agree(
    op: str,
    activation: str,
    values: str,
    make_layer: Make,
    make_pruned: Make,
    run_model: Make,
    close: Make,
    tmp_path: Path,
) -> None:
    shape, x_shape, attributes = LAYERS[op]
    own, left = CASES[activation]
    rng = np.random.default_rng(0)
    weight = np.rint(9 * make_pruned(rng, shape, 0.3))
    layer = make_layer(op, weight, columns=np.uint8, pointers=None, **attributes)
    if values == "int8":
        scale = rng.random((shape[0], *[1] * (len(shape) - 1))).astype(np.float32)
        layer.operands["values"] = layer.operands["values"].astype(np.int8)
        layer.operands["scale"], layer.dense = scale, (weight * scale).astype(np.float32)
    x = rng.standard_normal(x_shape).astype(np.float32)
    want = activated(layer.run(x, sparse=False), **own)
    model = onnx.load_from_string(layer.model(sparse=True, rank=x.ndim))
    node = model.graph.node[0]
    node.attribute.extend(onnx.helper.make_attribute(k, v) for k, v in own.items())
    value = onnx.helper.make_tensor_value_info("Y", onnx.TensorProto.FLOAT, want.shape)
    model.graph.output[0].CopyFrom(value)
    close(run_model(model, {"X": x}), want)
    add_functions(model, [op], Form(values=values, activation=activation))
    onnx.checker.check_model(model, full_check=True)
    got, nodes = stock(model, x, tmp_path)
    close(got, want)
    assert nodes <= {op.removeprefix("Csr"), *left, "FusedConv", "FusedGemm"}
    close(ReferenceEvaluator(model).run(None, {"X": x})[0], want)
    dense = to_dense(model)
    onnx.checker.check_model(dense, full_check=True)
    close(stock(dense, x, tmp_path)[0], want)


def stock(model: onnx.ModelProto, x: Any, folder: Path) -> tuple[Any, set[str]]:
    """The output in ONNX Runtime without the library, and the operators that it ran."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    data = model.SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    got = session.run(None, {"X": x})[0]
    return got, {n.op_type for n in onnx.load(folder / "optimized.onnx").graph.node}


def test_all_three_at_once_come_back_as_plain_nodes(make_layer: Make, close: Make) -> None:
    rng = np.random.default_rng(1)
    layer = make_layer("CsrGemm", np.eye(5, 40, dtype=np.float32), pointers=None, transB=1)
    model = onnx.load_from_string(layer.model(sparse=True, rank=2))
    own = {"low": -0.25, "high": 0.5, "slope": 0.5}
    model.graph.node[0].attribute.extend(onnx.helper.make_attribute(k, v) for k, v in own.items())
    dense = to_dense(model)
    assert [n.op_type for n in dense.graph.node] == [
        "Gemm", "LeakyRelu", "Constant", "Constant", "Clip",
    ]  # fmt: skip
    x = rng.standard_normal((3, 40)).astype(np.float32)
    got = ort.InferenceSession(dense.SerializeToString()).run(None, {"X": x})[0]
    close(got, activated(x[:, :5], **own))


def test_session_joins_nothing_behind_an_activation(
    make_layer: Make, make_pruned: Make, run_model: Make, close: Make
) -> None:
    rng = np.random.default_rng(2)
    layer = make_layer("CsrGemm", make_pruned(rng, (12, 40), 0.1), pointers=None, transB=1)
    model = onnx.load_from_string(layer.model(sparse=True, rank=2))
    node = model.graph.node[0]
    node.attribute.append(onnx.helper.make_attribute("slope", 0.5))
    node.output[0] = "h"
    model.graph.node.add(op_type="Relu", input=["h"], output=["Y"])
    chosen = choose(model.SerializeToString(), None, 1, None)
    joined = onnx.load_from_string(chosen.data) if chosen.data else model
    assert [n.op_type for n in joined.graph.node] == ["CsrGemm", "Relu"]
    x = rng.standard_normal((3, 40)).astype(np.float32)
    close(run_model(joined, {"X": x}), np.maximum(layer.run(x, sparse=False), np.float32(0)))


def test_layer_that_runs_dense_keeps_its_activation(
    make_layer: Make, close: Make, tmp_path: Path
) -> None:
    layer = make_layer("CsrConv", np.ones((4, 1, 3, 3), np.float32), pointers=None, group=4)
    model = onnx.load_from_string(layer.model(sparse=True, rank=4))
    node = model.graph.node[0]
    full = {**LAYERS["CsrConv"][2], "group": 4, "pads": [0] * 4, "low": 0.0}
    del node.attribute[:]
    node.attribute.extend(onnx.helper.make_attribute(k, v) for k, v in full.items())
    add_functions(model, ["CsrConv"], Form(activation="Relu"))
    chosen = choose(model.SerializeToString(), None, 1, None)
    assert chosen.folded == ("layer",)
    assert chosen.data is not None
    x = np.random.default_rng(3).standard_normal((2, 4, 6, 6)).astype(np.float32)
    got, _ = stock(onnx.load_from_string(chosen.data), x, tmp_path)
    close(got, activated(layer.run(x, sparse=False), low=0.0))
