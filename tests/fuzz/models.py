"""The models that fuzzing starts from."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.backend.test.loader import load_model_tests

LARGEST = 500_000  # bytes of a real model


def built() -> list[tuple[str, ModelProto]]:
    """Small models that hold what files hold: shapes, bodies, functions, quantised weights."""
    return [("net", _net()), ("branches", _branches()), ("function", _function())]


def official() -> list[tuple[str, ModelProto]]:
    """The official node tests of the installed onnx: one or more for each operator."""
    found = []
    for case in load_model_tests(kind="node"):
        if case.model is not None and case.model.ByteSize() < LARGEST:
            found.append((case.name, case.model))
    return found


def real() -> list[tuple[str, ModelProto]]:
    """Real models, where DNS_ONNX_DATA names a folder of them."""
    root = os.environ.get("DNS_ONNX_DATA")
    files = sorted((Path(root) / "models").rglob("*.onnx")) if root else []
    small = [f for f in files if f.stat().st_size < LARGEST]
    return [(f.name, ModelProto.FromString(f.read_bytes())) for f in small]


def _net() -> ModelProto:
    """Convolution, pooling, a Reshape by shape arithmetic, and a Gemm."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Shape", ["p"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Concat", ["n", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["p", "target"], ["f"]),
        helper.make_node("Gemm", ["f", "g", "h"], ["y"], transB=1),
    ]
    weights = {
        "w": rng.standard_normal((4, 3, 3, 3)).astype(np.float32),
        "b": np.zeros(4, np.float32),
        "g": rng.standard_normal((5, 16)).astype(np.float32),
        "h": np.zeros(5, np.float32),
        "zero": np.array([0]),
        "rest": np.array([-1]),
    }
    return _model(nodes, {"x": [None, 3, 8, 8]}, weights, ["y"])


def _branches() -> ModelProto:
    """An If and a Loop whose bodies hold weights and read values from outside."""
    held = numpy_helper.from_array(np.ones((4, 4), np.float32), "k")
    bodies = [
        helper.make_graph(
            [helper.make_node("MatMul", ["x", "k"], [name])],
            name,
            [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)],
            [held],
        )
        for name in ("yes", "no")
    ]
    step = helper.make_graph(
        [
            helper.make_node("Add", ["state", "x"], ["next"]),
            helper.make_node("Identity", ["go"], ["go_on"]),
        ],
        "step",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
        ],
    )
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0),
        helper.make_node("Greater", ["total", "half"], ["large"]),
        helper.make_node("If", ["large"], ["z"], then_branch=bodies[0], else_branch=bodies[1]),
        helper.make_node("Loop", ["three", "", "z"], ["y"], body=step),
    ]
    constants = {"half": np.float32(0.5), "three": np.array(3)}
    return _model(nodes, {"x": [2, 4]}, constants, ["y"])


def _function() -> ModelProto:
    """A local function, a quantised weight, and text that torch cannot hold."""
    twice = helper.make_function(
        "local", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "scale"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Twice", ["m"], ["y"], domain="local"),
        helper.make_node("StringNormalizer", ["words"], ["lower"], case_change_action="LOWER"),
        helper.make_node("LabelEncoder", ["lower"], ["ids"], domain="ai.onnx.ml",
                         keys_strings=["a", "b"], values_int64s=[1, 2]),
    ]  # fmt: skip
    constants = {
        "q": np.arange(12, dtype=np.int8).reshape(4, 3),
        "scale": np.float32(0.1),
        "words": np.array(["A", "B"], object),
    }
    model = _model(nodes, {"x": [2, 4]}, constants, ["y", "ids"])
    model.functions.append(twice)
    model.opset_import.extend(
        [helper.make_opsetid("local", 1), helper.make_opsetid("ai.onnx.ml", 3)]
    )
    return model


def _model(
    nodes: list, inputs: dict[str, list], constants: dict[str, np.ndarray], outputs: list[str]
) -> ModelProto:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in inputs.items()],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
