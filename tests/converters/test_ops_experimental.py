"""The experimental operators of ONNX 1.2, which have no schema; ONNX Runtime is the oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dns_onnx.converters.importer import import_model

from .importer_models import assert_same, floats, node_model

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "crop": ("Crop", {"border": [1, 0, 2, 3]}),
    "crop-to-scale": ("Crop", {"border": [1, 2, 0, 0], "scale": [3, 4]}),
    "scaler": ("ImageScaler", {"bias": [0.5, -1.0, 2.0], "scale": 0.25}),
    "scaler-one-bias": ("ImageScaler", {"bias": [0.5, 0.5, 0.5], "scale": 2.0}),
}


@pytest.mark.parametrize("key", CASES)
def test_it_equals_onnx_runtime_and_passes_gradients(key: str) -> None:
    op_type, attributes = CASES[key]
    x = floats(2, 3, 7, 8)
    model, feeds = node_model(op_type, [x], opset=7, **attributes)
    assert_same(model, feeds)
    data = torch.from_numpy(x).requires_grad_()
    net = import_model(model)
    assert not net.meta["opaque"]
    net(data).sum().backward()
    assert data.grad is not None
    assert data.grad.abs().sum() > 0
