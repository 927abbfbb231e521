"""Models as ONNX Runtime's optimiser, its quantiser and its transformer tool write them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import helper
from onnxruntime import quantization
from onnxruntime.transformers import optimizer

from dns_onnx.converters.importer import import_model
from dns_onnx.converters.layers import layers
from dns_onnx.masks import holders

from .importer_models import assert_same, floats, graph_model, imported, integers, runtime

Model = tuple[onnx.ModelProto, list[np.ndarray]]
_node = helper.make_node
EXTENDED = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
ALL = ort.GraphOptimizationLevel.ORT_ENABLE_ALL


def cnn() -> Model:
    """Convolutions, activations, pooling and a classifier."""
    nodes = [
        _node("Conv", ["x", "cw", "cb"], ["c"], pads=[1, 1, 1, 1]),
        _node("Relu", ["c"], ["r"]),
        _node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        _node("Conv", ["p", "dw"], ["d"]),
        _node("LeakyRelu", ["d"], ["l"], alpha=0.1),
        _node("Sigmoid", ["l"], ["s"]),
        _node("Mul", ["l", "s"], ["m"]),
        _node("Add", ["m", "l"], ["a"]),
        _node("AveragePool", ["a"], ["ap"], kernel_shape=[2, 2]),
        _node("Concat", ["ap", "ap"], ["cc"], axis=1),
        _node("GlobalAveragePool", ["cc"], ["g"]),
        _node("Flatten", ["g"], ["f"]),
        _node("Gemm", ["f", "gw", "gb"], ["logits"], transB=1),
        _node("Softmax", ["logits"], ["y"]),
    ]
    weights = {
        "cw": floats(4, 3, 3, 3), "cb": floats(4), "dw": floats(8, 4, 1, 1, seed=3),
        "gw": floats(5, 16, seed=1), "gb": floats(5, seed=2),
    }  # fmt: skip
    return graph_model(nodes, {"x": floats(2, 3, 8, 8)}, weights, ["y"], opset=17)


def lstm() -> Model:
    """One bidirectional LSTM."""
    weights = {"w": floats(2, 20, 3), "r": floats(2, 20, 5, seed=1), "b": floats(2, 40, seed=2)}
    node = _node("LSTM", ["x", "w", "r", "b"], ["y"], hidden_size=5, direction="bidirectional")
    return graph_model([node], {"x": floats(4, 1, 3)}, weights, ["y"], opset=17)


def transformer() -> Model:
    """Token and position embeddings and one block, in the operators that exporters write."""
    width, heads, steps = 16, 2, 4
    weights: dict[str, np.ndarray] = {
        "words": floats(9, width, seed=1), "positions": floats(1, steps, width, seed=2),
        "into": np.array([0, 0, heads, width // heads]), "back": np.array([0, 0, width]),
        "root": np.float32((width // heads) ** 0.5), "half": np.float32(0.5),
        "one": np.float32(1), "sqrt2": np.float32(2**0.5),
        "w1": floats(width, 4 * width, seed=7) / 4, "b1": floats(4 * width, seed=8),
        "w2": floats(4 * width, width, seed=9) / 8, "b2": floats(width, seed=10),
    }  # fmt: skip
    nodes = [_node("Gather", ["words", "ids"], ["e"]), _node("Add", ["e", "positions"], ["e1"])]
    nodes += _normalised("e1", "e2", "n0", weights, width)
    turn = {"q": [0, 2, 1, 3], "k": [0, 2, 3, 1], "v": [0, 2, 1, 3]}
    for i, name in enumerate("qkv"):
        weights |= {f"w{name}": floats(width, width, seed=20 + i) / 4, f"b{name}": floats(width)}
        nodes += [
            _node("MatMul", ["e2", f"w{name}"], [f"m{name}"]),
            _node("Add", [f"b{name}", f"m{name}"], [f"a{name}"]),
            _node("Reshape", [f"a{name}", "into"], [f"r{name}"]),
            _node("Transpose", [f"r{name}"], [name], perm=turn[name]),
        ]  # fmt: skip
    weights |= {"wo": floats(width, width, seed=30) / 4, "bo": floats(width, seed=31)}
    nodes += [
        _node("MatMul", ["q", "k"], ["qk"]),
        _node("Div", ["qk", "root"], ["scores"]),
        _node("Softmax", ["scores"], ["p"], axis=-1),
        _node("MatMul", ["p", "v"], ["pv"]),
        _node("Transpose", ["pv"], ["pvt"], perm=[0, 2, 1, 3]),
        _node("Reshape", ["pvt", "back"], ["z"]),
        _node("MatMul", ["z", "wo"], ["zo"]),
        _node("Add", ["bo", "zo"], ["o"]),
        _node("Add", ["o", "e2"], ["h"]),
    ]
    nodes += _normalised("h", "h1", "n1", weights, width)
    nodes += [
        _node("MatMul", ["h1", "w1"], ["f"]),
        _node("Add", ["b1", "f"], ["f1"]),
        _node("Div", ["f1", "sqrt2"], ["g0"]),
        _node("Erf", ["g0"], ["g1"]),
        _node("Add", ["g1", "one"], ["g2"]),
        _node("Mul", ["f1", "g2"], ["g3"]),
        _node("Mul", ["g3", "half"], ["g4"]),
        _node("MatMul", ["g4", "w2"], ["f2"]),
        _node("Add", ["b2", "f2"], ["f3"]),
        _node("Add", ["f3", "h1"], ["s"]),
    ]
    nodes += _normalised("s", "y", "n2", weights, width)
    ids = integers(2, steps, high=9)
    return graph_model(nodes, {"ids": ids}, weights, ["y"], opset=17)


def _normalised(
    x: str, y: str, name: str, weights: dict[str, np.ndarray], width: int
) -> list[onnx.NodeProto]:
    weights |= {f"{name}s": floats(width, seed=40, low=0.5), f"{name}b": floats(width, seed=41)}
    return [_node("LayerNormalization", [x, f"{name}s", f"{name}b"], [y], axis=-1)]


def optimised(model: onnx.ModelProto, level: Any, folder: Path) -> onnx.ModelProto:
    """The model as ONNX Runtime's optimiser leaves it."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = level
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimised.onnx")


def by_tool(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """The model as the transformer tool writes it."""
    path = str(folder / "bert.onnx")
    onnx.save(model, path)
    tool = optimizer.optimize_model(path, "bert", num_heads=2, hidden_size=16, opt_level=0)
    tool.save_model_to_file(path)
    return onnx.load(path)


class _Samples(quantization.CalibrationDataReader):
    def __init__(self, model: onnx.ModelProto, feeds: list[np.ndarray]) -> None:
        names = [i.name for i in model.graph.input]
        self.rows: Iterator[dict[str, Any]] = iter([dict(zip(names, feeds, strict=True))])

    def get_next(self) -> dict[str, Any] | None:
        return next(self.rows, None)


def quantised(source: Model, folder: Path, how: str) -> onnx.ModelProto:
    """The model as ONNX Runtime's quantiser writes it: "dynamic", "QDQ-..." or "QOperator-..."."""
    before, after = folder / "float.onnx", folder / "quantised.onnx"
    onnx.save(source[0], before)
    if how == "dynamic":
        # shape inference does not know the types behind com.microsoft operators
        untyped = {"DefaultTensorType": onnx.TensorProto.FLOAT}
        # without VNNI, ONNX Runtime sums products of whole bytes in 16 bits, which overflow
        quantization.quantize_dynamic(before, after, reduce_range=True, extra_options=untyped)
        return onnx.load(after)
    form, activation = how.split("-")
    quantization.quantize_static(
        before, after, _Samples(*source), quant_format=quantization.QuantFormat[form],
        activation_type=quantization.QuantType[activation],
        weight_type=quantization.QuantType.QInt8, per_channel=True, reduce_range=True,
    )  # fmt: skip
    return onnx.load(after)


def written(model: onnx.ModelProto) -> set[str]:
    """The operators of domain com.microsoft in a model."""
    domains = {n.domain for n in model.graph.node}
    assert domains <= {"", "com.microsoft"}
    return {n.op_type for n in model.graph.node if n.domain}


def close(model: onnx.ModelProto, feeds: list[np.ndarray], atol: float) -> None:
    """Equal up to one step of the last quantisation."""
    for mine, theirs in zip(imported(model, feeds), runtime(model, feeds), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=atol)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


def test_the_optimiser_fuses_a_cnn(tmp_path: Path) -> None:
    model, feeds = cnn()
    fused = optimised(model, EXTENDED, tmp_path)
    assert {"FusedConv", "QuickGelu"} <= written(fused)
    assert_same(fused, feeds)
    prunable = [row.weight for row in layers(import_model(fused)) if row.prunable]
    assert len(prunable) == 3


def test_the_optimiser_fuses_a_transformer(tmp_path: Path) -> None:
    model, feeds = transformer()
    fused = optimised(model, ALL, tmp_path)
    assert {"FusedMatMul", "Gelu", "SkipLayerNormalization"} <= written(fused)
    assert_same(fused, feeds)


def test_the_transformer_tool_fuses_a_transformer(tmp_path: Path) -> None:
    model, feeds = transformer()
    onnx.save(model, tmp_path / "bert.onnx")
    tool = optimizer.optimize_model(
        str(tmp_path / "bert.onnx"), "bert", num_heads=2, hidden_size=16, opt_level=0
    )
    names = written(tool.model)
    assert {"Attention", "BiasGelu", "SkipLayerNormalization"} <= names
    assert_same(tool.model, feeds)
    module = import_model(tool.model)
    module(torch.from_numpy(feeds[0])).square().sum().backward()
    idle = [
        n for n, h in holders(module).items() if h.weight.requires_grad and h.weight.grad is None
    ]
    assert not idle


FORMS = ["QDQ-QUInt8", "QDQ-QInt8", "QOperator-QUInt8", "QOperator-QInt8", "dynamic"]


@pytest.mark.parametrize("level", [None, EXTENDED, ALL], ids=["plain", "extended", "all"])
@pytest.mark.parametrize("how", FORMS)
def test_a_quantised_cnn(how: str, level: Any, tmp_path: Path) -> None:
    source = cnn()
    model = quantised(source, tmp_path, how)
    if level is not None and (how, level) != ("dynamic", ALL):
        model = optimised(model, level, tmp_path)
    if any(n.domain == "com.microsoft.nchwc" for n in model.graph.node):
        pytest.skip(
            "this CPU has no kernel for these bytes: they are left in a layout for it alone"
        )
    written(model)
    close(model, source[1], atol=2 / 256 + 1e-3)


def test_a_dynamically_quantised_lstm(tmp_path: Path) -> None:
    source = lstm()
    model = quantised(source, tmp_path, "dynamic")
    assert written(model) == {"DynamicQuantizeLSTM"}
    close(model, source[1], atol=1e-3)


def test_a_dynamically_quantised_transformer(tmp_path: Path) -> None:
    model, feeds = transformer()
    small = quantised((by_tool(model, tmp_path), feeds), tmp_path, "dynamic")
    assert "QAttention" in written(small)
    close(small, feeds, atol=1e-2)
    fused = optimised(small, EXTENDED, tmp_path)
    assert written(fused) & {"DynamicQuantizeMatMul", "MatMulIntegerToFloat"}
    close(fused, feeds, atol=1e-2)


@pytest.mark.parametrize("activation", ["QUInt8", "QInt8"])
def test_a_qdq_model_trains_through_its_activations(activation: str, tmp_path: Path) -> None:
    source = cnn()
    module = import_model(quantised(source, tmp_path, f"QDQ-{activation}"))
    x = torch.from_numpy(source[1][0]).requires_grad_()
    module(x).square().sum().backward()
    assert x.grad is not None
    assert (x.grad != 0).float().mean() > 0.5
