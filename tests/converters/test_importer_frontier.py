"""Where a loss can attach to an imported graph."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from dns_onnx.converters.frontier import cut_off, frontier
from dns_onnx.converters.importer import import_model

from .importer_models import floats, graph_model

HEADS = {
    "output": ([], ["h"], ["h"]),
    "softmax": ([helper.make_node("Softmax", ["h"], ["y"])], ["y"], ["y"]),
    "label": ([helper.make_node("ArgMax", ["h"], ["y"], axis=1)], ["y"], ["h"]),
    "best": ([helper.make_node("TopK", ["h", "k"], ["v", "i"])], ["v", "i"], ["v"]),
}


@pytest.mark.parametrize("head", HEADS)
def test_frontier(head: str) -> None:
    nodes, outputs, expected = HEADS[head]
    model, _ = graph_model(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), *nodes],
        {"x": floats(2, 3)},
        {"w": floats(3, 4), "k": np.array([2])},
        outputs,
        opset=13,
    )
    module = import_model(model)
    assert frontier(module) == expected
    assert cut_off(module) == (["w"] if head == "label" else [])
