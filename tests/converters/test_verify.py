"""The graph beside ONNX Runtime, value by value."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from dns_onnx.converters.importer import import_model
from dns_onnx.converters.verify import compare_values

from .importer_models import floats, graph_model


def node(op_type: str, inputs: list[str], outputs: list[str], **attributes: object):
    return helper.make_node(op_type, inputs, outputs, f"{op_type}_{outputs[0]}", **attributes)


def test_the_first_difference_names_its_node() -> None:
    nodes = [node("Mul", ["x", "w"], ["m"]), node("Relu", ["m"], ["y"])]
    model, feeds = graph_model(
        nodes, {"x": floats(2, 3, low=0.5)}, {"w": floats(3, seed=1, low=0.5)}, ["y"], opset=17
    )
    graph = import_model(model)
    inputs = [torch.from_numpy(x) for x in feeds]
    assert compare_values(graph, model, inputs) == []
    with torch.no_grad():
        next(graph.parameters()).mul_(1.5)
    found = compare_values(graph, model, inputs)
    assert [(d.value, d.op_type, d.node) for d in found] == [
        ("m", "Mul", "Mul_m"),
        ("y", "Relu", "Relu_y"),
    ]


def test_what_follows_from_a_random_draw_compares() -> None:
    nodes = [
        node("RandomNormalLike", ["x"], ["noise"]),
        node("Add", ["x", "noise"], ["noisy"]),
        node("Mul", ["noisy", "w"], ["y"]),
    ]
    model, feeds = graph_model(
        nodes, {"x": floats(4, 8)}, {"w": floats(8, seed=1)}, ["y"], opset=17
    )
    assert compare_values(import_model(model), model, [torch.from_numpy(feeds[0])]) == []


@pytest.mark.parametrize("scale", [1.005, 1.05])
def test_the_tolerance_is_as_coarse_as_the_type(scale: float) -> None:
    nodes = [
        node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
        node("Mul", ["half", "w"], ["m"]),
        node("Cast", ["m"], ["y"], to=TensorProto.FLOAT),
    ]
    weight = floats(8, seed=1, low=0.5).astype(np.float16)
    model, feeds = graph_model(nodes, {"x": floats(4, 8, low=0.5)}, {"w": weight}, ["y"], opset=17)
    graph = import_model(model)
    with torch.no_grad():
        next(graph.parameters()).mul_(scale)
    found = compare_values(graph, model, [torch.from_numpy(feeds[0])])
    assert [d.value for d in found] == (["m", "y"] if scale > 1.02 else [])


def test_inputs_that_onnx_runtime_does_not_run_on_are_told() -> None:
    nodes = [node("Reshape", ["x", "shape"], ["y"])]
    model, _ = graph_model(
        nodes, {"x": floats(2, 3)}, {"shape": np.array([3, 2])}, ["y"], opset=17, dynamic=True
    )
    with pytest.raises(RuntimeError, match="Reshape"):
        compare_values(import_model(model), model, [torch.zeros(5, 3)])
