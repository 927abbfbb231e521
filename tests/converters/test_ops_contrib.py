"""com.microsoft operators, random numbers and other things without an official test."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dns_onnx.converters.importer import import_model
from dns_onnx.converters.registry import op, registered

from .importer_models import assert_same, floats, imported, integers, node_model

S = np.float32
U8 = np.uint8


def bytes_of(*shape: int, seed: int = 0, dtype: str = "uint8") -> np.ndarray:
    low = 0 if dtype == "uint8" else -128
    return integers(*shape, seed=seed, low=low, high=low + 256, dtype=dtype)


CONTRIB: dict[str, tuple[str, list[Any], int, dict[str, Any]]] = {
    "FusedConv": (
        "FusedConv",
        [floats(1, 2, 5, 5), floats(3, 2, 3, 3, seed=1), floats(3, seed=2)],
        1,
        {"activation": "Relu", "pads": [1, 1, 1, 1]},
    ),
    "FusedConv-leaky": (
        "FusedConv",
        [floats(1, 2, 5, 5), floats(3, 2, 3, 3, seed=1)],
        1,
        {"activation": "LeakyRelu", "activation_params": [0.2]},
    ),
    "FusedGemm": (
        "FusedGemm",
        [floats(2, 3), floats(4, 3, seed=1), floats(4, seed=2)],
        1,
        {"activation": "Relu", "transB": 1, "alpha": 0.5},
    ),
    "FusedMatMul": (
        "FusedMatMul",
        [floats(2, 3, 4), floats(2, 5, 3, seed=1)],
        1,
        {"transA": 1, "transB": 1, "alpha": 0.5},
    ),
    "Gelu": ("Gelu", [floats(2, 3)], 1, {}),
    "BiasGelu": ("BiasGelu", [floats(2, 3), floats(3, seed=1)], 1, {}),
    "FastGelu": ("FastGelu", [floats(2, 3), floats(3, seed=1)], 1, {}),
    "QuickGelu": ("QuickGelu", [floats(2, 3)], 1, {"alpha": 1.5}),
    "SkipLayerNormalization": (
        "SkipLayerNormalization",
        [floats(2, 3, 4), floats(2, 3, 4, seed=1), *(floats(4, seed=s) for s in (2, 3, 4))],
        1,
        {"epsilon": 1e-5},
    ),
    "SkipSimplifiedLayerNormalization": (
        "SkipSimplifiedLayerNormalization",
        [floats(2, 3, 4), floats(2, 3, 4, seed=1), floats(4, seed=2)],
        1,
        {"epsilon": 1e-5},
    ),
    "EmbedLayerNormalization": (
        "EmbedLayerNormalization",
        [
            integers(2, 3, dtype="int32"),
            integers(2, 3, high=2, dtype="int32"),
            *(floats(n, 4, seed=n) for n in (5, 6, 2)),
            floats(4, seed=8),
            floats(4, seed=9),
        ],
        2,
        {"epsilon": 1e-5},
    ),
    "Attention": (
        "Attention",
        [floats(2, 3, 8), floats(8, 24, seed=1), floats(24, seed=2)],
        1,
        {"num_heads": 2},
    ),
    "Attention-causal-masked": (
        "Attention",
        [floats(2, 3, 8), floats(8, 24, seed=1), floats(24, seed=2), np.array([2, 3], np.int32)],
        1,
        {"num_heads": 2, "unidirectional": 1},
    ),
    "MultiHeadAttention": (
        "MultiHeadAttention",
        [floats(2, 3, 8), floats(2, 5, 8, seed=1), floats(2, 5, 8, seed=2), floats(24, seed=3)],
        1,
        {"num_heads": 2},
    ),
    "QLinearAdd": (
        "QLinearAdd",
        [bytes_of(2, 3), S(0.1), U8(9), bytes_of(2, 3, seed=1), S(0.2), U8(5), S(0.3), U8(7)],
        1,
        {},
    ),
    "QLinearMul": (
        "QLinearMul",
        [bytes_of(2, 3), S(0.1), U8(9), bytes_of(2, 3, seed=1), S(0.2), U8(5), S(2.0), U8(7)],
        1,
        {},
    ),
    "QLinearSigmoid": (
        "QLinearSigmoid",
        [bytes_of(2, 3), S(0.05), U8(128), S(1 / 256), U8(0)],
        1,
        {},
    ),
    "QLinearLeakyRelu": (
        "QLinearLeakyRelu",
        [bytes_of(2, 3), S(0.05), U8(128), S(0.05), U8(100)],
        1,
        {"alpha": 0.3},
    ),
    "QLinearConcat": (
        "QLinearConcat",
        [S(0.2), U8(3), bytes_of(2, 3), S(0.1), U8(9), bytes_of(2, 2), S(0.3), U8(1)],
        1,
        {"axis": 1},
    ),
    "QLinearGlobalAveragePool": (
        "QLinearGlobalAveragePool",
        [bytes_of(1, 2, 4, 4), S(0.1), U8(9), S(0.1), U8(4)],
        1,
        {},
    ),
    "QLinearAveragePool": (
        "QLinearAveragePool",
        [bytes_of(1, 2, 4, 4), S(0.1), U8(9), S(0.1), U8(4)],
        1,
        {"kernel_shape": [2, 2], "strides": [2, 2]},
    ),
    "QGemm": (
        "QGemm",
        [
            bytes_of(2, 4), S(0.1), U8(9), bytes_of(3, 4, seed=1, dtype="int8"), S(0.2),
            np.int8(0), integers(3, dtype="int32"), S(3.0), U8(120),
        ],
        1,
        {"transB": 1},
    ),
    "MatMulIntegerToFloat": (
        "MatMulIntegerToFloat",
        [bytes_of(2, 4), bytes_of(4, 3, seed=1), S(0.1), S(0.2), U8(9), U8(5)],
        1,
        {},
    ),
    "DynamicQuantizeMatMul": (
        "DynamicQuantizeMatMul",
        [floats(2, 4), bytes_of(4, 3, seed=1), S(0.2), U8(5)],
        1,
        {},
    ),
    "MatMulNBits": (
        "MatMulNBits",
        [floats(2, 32), bytes_of(3, 2, 8), floats(6, seed=1, low=0.1), bytes_of(3)],
        1,
        {"K": 32, "N": 3, "bits": 4, "block_size": 16},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTRIB)
def test_microsoft(name: str) -> None:
    op_type, inputs, outputs, attributes = CONTRIB[name]
    assert ("com.microsoft", op_type, 1) in registered()
    model, feeds = node_model(
        op_type, inputs, opset=17, outputs=outputs, domain="com.microsoft", **attributes
    )
    assert_same(model, feeds, rtol=1e-3, atol=1e-4)


def test_the_first_selu_has_rounder_defaults() -> None:
    x = floats(3, 4)
    (y,) = imported(*node_model("Selu", [x], opset=5))
    expected = np.where(x > 0, 1.0507 * x, 1.0507 * 1.6732 * (np.exp(x) - 1))
    np.testing.assert_allclose(y, expected[...], rtol=2e-4)


@pytest.mark.parametrize("version", [1, 6])
def test_the_first_prelu_counts_slopes_along_channels(version: int) -> None:
    x, slope = floats(2, 3, 4), floats(3, seed=1)
    (y,) = imported(*node_model("PRelu", [x, slope], opset=version))
    np.testing.assert_allclose(y, np.where(x >= 0, x, slope.reshape(3, 1) * x), rtol=1e-6)


@pytest.mark.parametrize(
    ("op_type", "attributes", "mean", "deviation"),
    [
        ("RandomNormal", {"mean": 2.0, "scale": 3.0}, 2.0, 3.0),
        ("RandomUniform", {"low": 1.0, "high": 3.0}, 2.0, 2 / 12**0.5),
    ],
)
def test_random(op_type: str, attributes: dict[str, float], mean: float, deviation: float) -> None:
    model, _ = node_model(op_type, [], opset=17, shape=[100, 100], seed=1.0, **attributes)
    module = import_model(model)
    draws = module()
    assert abs(float(draws.mean()) - mean) < 0.1
    assert abs(float(draws.std()) - deviation) < 0.1
    torch.testing.assert_close(module(), draws)


def test_dropout_trains_only_when_asked() -> None:
    x = floats(20, 20, low=1.0, high=2.0)
    model, feeds = node_model(
        "Dropout", [x, np.float32(0.5), np.array(True)], opset=13, outputs=2, weights=(1, 2)
    )
    y, mask = imported(model, feeds)
    assert 0.3 < mask.mean() < 0.7
    np.testing.assert_allclose(y, np.where(mask, x * 2, 0))


def test_a_second_function_for_a_version_is_an_error() -> None:
    with pytest.raises(ValueError, match="registered twice"):

        @op("Relu", 14)
        def again(x: torch.Tensor) -> torch.Tensor:
            return x


def test_a_version_that_the_schema_lacks_is_an_error() -> None:
    with pytest.raises(ValueError, match="no schema version 12"):

        @op("Relu", 12)
        def missing(x: torch.Tensor) -> torch.Tensor:
            return x


def test_a_parameter_list_that_cannot_take_the_attributes_is_an_error() -> None:
    with pytest.raises(ValueError, match="alpha"):

        @op("LeakyRelu", 16)
        def incomplete(x: torch.Tensor) -> torch.Tensor:
            return x
