"""Graph pieces as exporters write them, each of which real models need."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import helper

from dns_onnx.converters.importer import import_model
from dns_onnx.masks import holders

from .importer_models import assert_same, floats, graph_model, runtime


def node(op_type: str, inputs: list[str], outputs: list[str], **attributes: object):
    return helper.make_node(op_type, inputs, outputs, f"{op_type}_{outputs[0]}", **attributes)


def test_an_exponent_gets_a_finite_gradient_from_negative_bases() -> None:
    model, feeds = graph_model(
        [node("Mul", ["x", "w"], ["m"]), node("Pow", ["m", "three"], ["y"])],
        {"x": np.array([-2.0, 0.0, 0.5, 3.0], np.float32)},
        {"w": np.ones(4, np.float32), "three": np.array(3.0, np.float32)},
        ["y"],
        opset=15,
    )
    assert_same(model, feeds)
    graph = import_model(model)
    graph(torch.from_numpy(feeds[0])).sum().backward()
    held = holders(graph)
    x = torch.from_numpy(feeds[0])
    torch.testing.assert_close(held["w"].weight.grad, 3 * x**3)
    torch.testing.assert_close(
        held["three"].weight.grad, (x[2:] ** 3 * x[2:].log()).sum(), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_a_sampling_grid_has_a_type_of_its_own(mode: str) -> None:
    """As deformable attention leaves it; ONNX Runtime only has one type, hence the twin."""
    sample = node("GridSample", ["x", "g"], ["y"], mode=mode)
    grid = floats(1, 3, 5, 2, seed=1)
    mixed, feeds = graph_model(
        [sample], {"x": floats(1, 2, 6, 6), "g": grid.astype(np.float64)}, {}, ["y"], opset=16
    )
    plain, twins = graph_model([sample], {"x": feeds[0], "g": grid}, {}, ["y"], opset=16)
    got = import_model(mixed)(*map(torch.from_numpy, feeds))
    np.testing.assert_allclose(got.numpy(), runtime(plain, twins)[0], rtol=1e-4, atol=1e-5)
