"""Random inputs of sizes that a model runs on."""

from __future__ import annotations

import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from dns_onnx.runtime.inputs import runnable_inputs


def session(shape: list, nodes: list[onnx.NodeProto]) -> ort.InferenceSession:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    graph = helper.make_graph(nodes, "g", [x], [onnx.ValueInfoProto(name="y")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def behind(start: int) -> list[onnx.NodeProto]:
    """What lies behind so many entries of the last axis."""
    held = {"starts": [start], "ends": [1 << 30], "axes": [-1]}
    constants = [helper.make_node("Constant", [], [n], value_ints=v) for n, v in held.items()]
    return [*constants, helper.make_node("Slice", ["x", *held], ["y"])]


RELU = [helper.make_node("Relu", ["x"], ["y"])]


@pytest.mark.parametrize(
    ("shape", "nodes", "taken"),
    [
        (["n", 5], RELU, (2, 5)),
        (["n", "t"], RELU, (2, 1)),
        (["n", 3, "h", "w"], RELU, (2, 3, 64, 64)),
        (["n", 3, "samples"], behind(50), (2, 3, 64)),
    ],
    ids=["known", "one step will do", "an image has pixels", "nothing comes of less"],
)
def test_sizes_are_those_that_a_model_makes_something_of(
    shape: list, nodes: list[onnx.NodeProto], taken: tuple[int, ...]
) -> None:
    assert runnable_inputs(session(shape, nodes), rows=2)["x"].shape == taken
