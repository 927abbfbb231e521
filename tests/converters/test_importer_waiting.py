"""The forward pass never waits for the device where the model's shapes are known.

What would wait on CUDA is visible on the CPU too: nodes that make Python values of a tensor, and
operators that torch dispatches to read one out of it or to size a result by its data.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from torch.utils._python_dispatch import TorchDispatchMode

from dns_onnx.converters.graph import host_value
from dns_onnx.converters.importer import import_model

from .importer_models import floats, graph_model

# all sizes fixed: classifiers, detectors, a quantised net, transformers, a recurrent policy
MODELS = [
    "deeploy_cct_2_fp32_op20.onnx",
    "fastestdet_coco.onnx",
    "g1_policy.onnx",
    "mediapipe_blazeface_front.onnx",
    "mobilenet_v2_int8_a.onnx",
    "nanodet_m_320.onnx",
    "squeezenet_fp16_winml.onnx",
    "ultraface_rfb_320.onnx",
    "zoo_vittrack.onnx",
]
WAITING = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal")


class Waits(TorchDispatchMode):
    """Collects the operators that would wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in WAITING:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def waits(path: Path) -> list[str]:
    """What waits in one forward pass of a model with fixed shapes, on zeros."""
    module = import_model(path).eval()
    graph = onnx.load(path).graph
    held = {tensor.name for tensor in graph.initializer}
    inputs = []
    for info in graph.input:
        if info.name not in held:
            kind = info.type.tensor_type
            dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
            shape = [d.dim_value for d in kind.shape.dim]
            assert all(shape), f"{path.name}: {info.name} has an open size"
            inputs.append(torch.from_numpy(np.zeros(shape, dtype)))
    with torch.no_grad(), Waits() as mode:
        module(*inputs)
    graphs = [part for part in module.modules() if isinstance(part, torch.fx.GraphModule)]
    nodes = [node for part in graphs for node in part.graph.nodes]
    return [*mode.found, *(str(node) for node in nodes if node.target is host_value)]


@pytest.mark.parametrize("file", MODELS)
def test_no_real_model_waits(file: str, data_root: Path) -> None:
    assert waits(data_root / "models" / file) == []


def test_a_condition_on_data_is_seen_to_wait(tmp_path: Path) -> None:
    def branch(name: str) -> onnx.GraphProto:
        node = helper.make_node("Identity", ["x"], [name])
        return helper.make_graph([node], name, [], [onnx.ValueInfoProto(name=name)])

    nodes = [
        helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0),
        helper.make_node("Greater", ["m", "x0"], ["c"]),
        helper.make_node("If", ["c"], ["y"], then_branch=branch("a"), else_branch=branch("b")),
    ]
    model, _ = graph_model(nodes, {"x": floats(3)}, {"x0": np.float32(0)}, ["y"], opset=17)
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    assert waits(path) != []


@pytest.mark.gpu
def test_image_convolutions_run_channels_last_on_the_device() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["h"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Conv", ["r", "v"], ["y"]),
    ]
    weights = {"w": floats(8, 3, 3, 3), "b": floats(8, seed=1), "v": floats(4, 8, 3, 3, seed=2)}
    model, feeds = graph_model(nodes, {"x": floats(2, 3, 9, 9)}, weights, ["y"], opset=17)
    module = import_model(model).to("cuda")
    x = torch.from_numpy(feeds[0]).cuda()
    try:
        torch.cuda.set_sync_debug_mode("error")
        result = module(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert result.is_contiguous(memory_format=torch.channels_last)
    expected = import_model(model)(torch.from_numpy(feeds[0]))
    torch.testing.assert_close(result.cpu(), expected, rtol=1e-3, atol=1e-4)
