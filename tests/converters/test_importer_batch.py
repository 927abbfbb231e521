"""Freeing a fixed batch axis, and proving it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import helper

from dns_onnx.converters.batch import free_batch
from dns_onnx.converters.importer import import_model
from dns_onnx.converters.reader import read_model

from .importer_models import floats, graph_model


@pytest.mark.parametrize("target", [[1, 12], [1, -1], [0, -1], [-1, 12], [1, 4, 3]])
def test_a_reshape_constant_is_freed(target: list[int]) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Reshape", ["r", "s"], ["y"]),
    ]
    model, _ = graph_model(nodes, {"x": floats(1, 3, 4)}, {"s": np.array(target)}, ["y"], opset=13)
    freed = free_batch(model)
    assert (freed.free, freed.size, freed.reason) == (True, 1, "")
    assert import_model(freed.model)(torch.zeros(5, 3, 4)).shape[0] == 5
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1


def test_a_mean_over_the_batch_is_not_freed() -> None:
    node = helper.make_node("ReduceMean", ["x"], ["y"], axes=[0], keepdims=1)
    model, _ = graph_model([node], {"x": floats(1, 3)}, {}, ["y"], opset=13)
    freed = free_batch(model)
    assert not freed.free
    assert "differs from its samples' own" in freed.reason
    assert freed.model is model


def test_an_open_batch_needs_nothing() -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    model, _ = graph_model([node], {"x": floats(1, 3)}, {}, ["y"], opset=13, dynamic=True)
    assert (free_batch(model).free, free_batch(model).size) == (True, 0)


@pytest.mark.parametrize(
    ("file", "size"),
    [
        ("lenet_ccoltong.onnx", 10),
        ("mnist_cntk.onnx", 1),
        ("vnn22_sri_resnet_a.onnx", 1),
        ("deeploy_cct_2_fp32_op20.onnx", 1),
        ("tinycnn_esp_int8.onnx", 1),
    ],
)
def test_real_models(data_root: Path, file: str, size: int) -> None:
    freed = free_batch(read_model(data_root / "models" / file))
    assert (freed.reason, freed.size) == ("", size)
