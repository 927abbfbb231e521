from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper

from dns_onnx.converters.heads import Head, heads
from dns_onnx.errors import ConfigError


def chain(*ops: str, name: str = "y", shape: tuple = ("n", 4), opset: int = 17) -> onnx.ModelProto:
    """x through the operators; the last result is the output."""
    values = ["x", *(f"v{i}" for i in range(1, len(ops))), name]
    nodes = []
    for i, op in enumerate(ops):
        more = {"to": TensorProto.FLOAT} if op == "Cast" else {}
        nodes.append(helper.make_node(op, [values[i]], [values[i + 1]], **more))
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


@pytest.mark.parametrize(
    ("model", "head"),
    [
        (chain("Relu"), Head("y", "y", "values")),
        (chain("Relu", "Softmax"), Head("v1", "y", "classes", -1)),
        (chain("Relu", "Softmax", opset=11), Head("v1", "y", "classes", 1)),
        (chain("Relu", "LogSoftmax", "Cast"), Head("v1", "y", "classes", -1)),
        (chain("Relu", "Sigmoid", "Identity"), Head("v1", "y", "probabilities")),
        (chain("Relu", name="logits"), Head("logits", "logits", "classes")),
        (chain("Relu", name="class_scores"), Head("class_scores", "class_scores", "classes")),
        (chain("Relu", name="logits", shape=("n", 1)), Head("logits", "logits", "values")),
        (chain("Relu", name="problem"), Head("problem", "problem", "values")),
    ],
)
def test_what_a_model_ends_in(model: onnx.ModelProto, head: Head) -> None:
    assert heads(model) == [head]


def test_values_that_are_named_and_what_reads_them() -> None:
    model = chain("Relu", "Softmax")
    assert heads(model, ["v1"]) == [Head("v1", "v1", "classes", -1)]
    assert heads(model, ["y"]) == [Head("v1", "y", "classes", -1)]
    with pytest.raises(ConfigError, match=r"expected values of the graph, got \['z'\]"):
        heads(model, ["z"])


def test_a_model_that_only_gives_labels() -> None:
    model = chain("Relu", "Softmax", "ArgMax")
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    assert heads(model) == [Head("v1", "y", "classes", -1)]
    plain = chain("Relu", "Shape")
    plain.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    with pytest.raises(ConfigError, match="no float output to learn on"):
        heads(plain)


def test_numbers_of_classes_lead_back_to_the_scores() -> None:
    model = chain("Relu", "ArgMax")
    model.graph.node[1].attribute.append(helper.make_attribute("axis", 1))
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    assert heads(model) == [Head("v1", "v1", "classes", 1)]
