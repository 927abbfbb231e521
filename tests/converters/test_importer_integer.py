"""Quantised convolutions between DequantizeLinear and QuantizeLinear nodes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import helper

from dns_onnx.converters.importer import import_model

from .importer_models import floats, graph_model, imported, integers


def _model(
    *, bias_scale: float = 1.0, bias_zero: int = 0, also: bool = False
) -> tuple[onnx.ModelProto, list[np.ndarray]]:
    """Quantize, convolve and quantise again, with one scale for each filter."""
    node = helper.make_node
    scale_w = floats(8, low=0.004, high=0.02)
    held = {
        "xs": np.float32(0.017), "xz": np.uint8(111),
        # seven bits: processors without a dot product for bytes saturate sums of larger ones
        "w": integers(8, 3, 3, 3, low=-64, high=64, dtype="int8"),
        "ws": scale_w, "wz": np.zeros(8, np.int8),
        "b": integers(8, low=-900, high=900, dtype="int32"),
        "bs": (scale_w * np.float32(0.017 * bias_scale)).astype(np.float32),
        "bz": np.full(8, bias_zero, np.int32),
        "ys": np.float32(0.031), "yz": np.uint8(97),
    }  # fmt: skip
    nodes = [
        node("QuantizeLinear", ["x", "xs", "xz"], ["xq"], "q0"),
        node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"], "d0"),
        node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], "d1", axis=0),
        node("DequantizeLinear", ["b", "bs", "bz"], ["bd"], "d2", axis=0),
        node("Conv", ["xd", "wd", "bd"], ["y"], "conv", pads=[1, 1, 1, 1], strides=[2, 2]),
        node("QuantizeLinear", ["y", "ys", "yz"], ["yq"], "q1"),
        node("DequantizeLinear", ["yq", "ys", "yz"], ["out"], "d3"),
    ]
    feeds = {"x": floats(1, 3, 96, 96, low=-2.0, high=2.0)}
    return graph_model(nodes, feeds, held, ["out", "y"] if also else ["out"], opset=13)


def _targets(model: onnx.ModelProto) -> list[str]:
    return [getattr(n.target, "__name__", "") for n in import_model(model).graph.nodes]


def _optimised(model: onnx.ModelProto, feeds: list[np.ndarray]) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": feeds[0]})[0]


def test_equals_the_integer_kernel_in_every_entry() -> None:
    model, feeds = _model()
    assert "qlinear_conv" in _targets(model)
    np.testing.assert_array_equal(imported(model, feeds)[0], _optimised(model, feeds))


def test_a_gradient_passes_the_whole_numbers() -> None:
    model, feeds = _model()
    graph = import_model(model)
    x = torch.from_numpy(feeds[0]).requires_grad_()
    graph(x).square().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("change", [{"bias_scale": 1.5}, {"bias_zero": 3}, {"also": True}])
def test_stays_a_float_convolution_where_the_integers_do_not_fit(change: dict[str, Any]) -> None:
    model, feeds = _model(**change)
    targets = _targets(model)
    assert "conv2d" in targets
    assert "qlinear_conv" not in targets
    level = 0.031
    got, wanted = imported(model, feeds)[0], _optimised(model, feeds)
    assert np.abs(got - wanted).max() <= 1.01 * level
    assert (got != wanted).mean() < 1e-3
