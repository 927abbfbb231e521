"""Cases of the com.microsoft operators: "Op" or "Op-variant" -> one node."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.converters.importer_models import floats, integers

from .case import Case

S, U8, I8 = np.float32, np.uint8, np.int8


def _bytes(*shape: int, seed: int = 0, dtype: str = "uint8") -> np.ndarray:
    low = 0 if dtype == "uint8" else -128
    return integers(*shape, seed=seed, low=low, high=low + 256, dtype=dtype)


def _seven_bits(*shape: int, seed: int = 0) -> np.ndarray:
    """Signed weights whose products with bytes ONNX Runtime sums rightly on any CPU.

    Without VNNI it adds two of them in 16 bits, which larger ones overflow (its `reduce_range`).
    """
    return integers(*shape, seed=seed, low=-64, high=64, dtype="int8")


def _case(*inputs: Any, outputs_: int = 1, **attributes: Any) -> Case:
    return Case(list(inputs), attributes, outputs_)


def _quantised(scale: float, zero: int) -> tuple[Any, Any]:
    return S(scale), U8(zero)


def _one_to_one(scale: float, *rest: Any, **attributes: Any) -> Case:
    """From data in steps of 0.05 around 128 to data in another scale."""
    return _case(_bytes(2, 3), *_quantised(0.05, 128), *_quantised(scale, 100), **attributes)


def _two_to_one(scale: float) -> Case:
    pair = (_bytes(2, 3), *_quantised(0.1, 9), _bytes(2, 3, seed=1), *_quantised(0.2, 5))
    return _case(*pair, *_quantised(scale, 7))


_X, _W = floats(1, 2, 5, 5), floats(3, 2, 3, 3, seed=1)
_TOKENS = floats(2, 3, 4), floats(2, 3, 4, seed=1)
_PROJECTED = floats(2, 3, 8), floats(8, 24, seed=1), floats(24, seed=2)
_FUSED: dict[str, Case] = {
    "FusedConv": _case(_X, _W, floats(3, seed=2), activation="Relu", pads=[1, 1, 1, 1]),
    "FusedConv-leaky": _case(_X, _W, activation="LeakyRelu", activation_params=[0.2]),
    "FusedConv-clip": _case(_X, _W, activation="Clip", activation_params=[-0.5, 0.7]),
    "FusedConv-hard": _case(_X, _W, activation="HardSigmoid", activation_params=[0.3, 0.4]),
    "FusedConv-sum": _case(_X, _W, floats(3, seed=2), floats(1, 3, 3, 3, seed=3)),
    "FusedGemm": _case(
        floats(2, 3), floats(4, 3, seed=1), floats(4, seed=2),
        activation="Relu", transB=1, alpha=0.5,
    ),
    "FusedGemm-leaky": _case(
        floats(2, 3), floats(3, 4, seed=1), activation="LeakyRelu", activation_alpha=0.3
    ),
    "FusedMatMul": _case(floats(2, 3, 4), floats(2, 5, 3, seed=1), transA=1, transB=1, alpha=0.5),
    "FusedMatMul-batch": _case(floats(4, 2, 3), floats(2, 3, 5, seed=1), transBatchA=1),
    "Gelu": _case(floats(2, 3)),
    "BiasGelu": _case(floats(2, 3), floats(3, seed=1)),
    "FastGelu": _case(floats(2, 3), floats(3, seed=1)),
    "QuickGelu": _case(floats(2, 3), alpha=1.5),
    "SkipLayerNormalization": _case(
        *_TOKENS, *(floats(4, seed=s) for s in (2, 3, 4)), epsilon=1e-5
    ),
    "SkipSimplifiedLayerNormalization": _case(*_TOKENS, floats(4, seed=2), epsilon=1e-5),
    "EmbedLayerNormalization": _case(
        integers(2, 3, dtype="int32"), integers(2, 3, high=2, dtype="int32"),
        *(floats(n, 4, seed=n) for n in (5, 6, 2)), floats(4, seed=8), floats(4, seed=9),
        outputs_=2, epsilon=1e-5,
    ),
}  # fmt: skip
_HEADS = {"num_heads": 4, "kv_num_heads": 2}
_GROUPED = floats(2, 3, 64), floats(2, 3, 32, seed=1), floats(2, 3, 32, seed=2)
_FIRST = np.array([2, 2], np.int32), np.array(3, np.int32)
_TURNS = floats(8, 2, seed=3), floats(8, 2, seed=4)
_WIDE_TURNS = floats(8, 8, seed=3), floats(8, 8, seed=4)
_ATTENTION = {
    "Attention": _case(*_PROJECTED, num_heads=2),
    "Attention-causal-masked": _case(
        *_PROJECTED, np.array([2, 3], np.int32), num_heads=2, unidirectional=1
    ),
    "Attention-mask-past": _case(
        *_PROJECTED, integers(2, 5, high=2, dtype="int32"), floats(2, 2, 2, 2, 4, seed=3),
        num_heads=2, outputs_=2,
    ),
    "MultiHeadAttention": _case(
        floats(2, 3, 8), floats(2, 5, 8, seed=1), floats(2, 5, 8, seed=2), floats(24, seed=3),
        num_heads=2,
    ),
    "RotaryEmbedding": _case(
        floats(2, 3, 8), integers(2, 3, high=8), *_TURNS, num_heads=2,
    ),
    "RotaryEmbedding-first": _case(
        floats(2, 2, 3, 4), np.array([2]), *_TURNS, interleaved=1,
    ),
    "GroupQueryAttention": _case(*_GROUPED, None, None, *_FIRST, **_HEADS, outputs_=3),
    "GroupQueryAttention-rotary": _case(
        *_GROUPED, None, None, *_FIRST, *_WIDE_TURNS, do_rotary=1, **_HEADS, outputs_=3
    ),
    "GroupQueryAttention-packed": _case(
        floats(2, 3, 64), None, None, None, None, *_FIRST, **_HEADS, softcap=2.0,
        local_window_size=2, outputs_=3,
    ),
    "GroupQueryAttention-past": _case(
        *(x[:, :1] for x in _GROUPED), floats(2, 2, 3, 16, seed=5), floats(2, 2, 3, 16, seed=6),
        np.array([3, 3], np.int32), np.array(4, np.int32), **_HEADS, outputs_=3,
    ),
    "GroupQueryAttention-shared": _case(
        *(x[:, :1] for x in _GROUPED), floats(2, 2, 6, 16, seed=5), floats(2, 2, 6, 16, seed=6),
        np.array([2, 3], np.int32), np.array(4, np.int32), **_HEADS, smooth_softmax=1, outputs_=3,
    ),
    "QAttention": _case(
        _bytes(2, 3, 8), _bytes(8, 24, seed=1), floats(24, seed=2), S(0.02), S(0.01), None,
        U8(128), U8(120), num_heads=2,
    ),
}  # fmt: skip
_POOL = {"kernel_shape": [2, 2], "strides": [2, 2]}
_IMAGE = _bytes(1, 2, 4, 4), *_quantised(0.1, 9)
_QUANTISED = {
    "QLinearAdd": _two_to_one(0.3),
    "QLinearMul": _two_to_one(2.0),
    "QLinearWhere": Case([np.array([[True], [False]]), *_two_to_one(0.2).inputs]),
    "QLinearSigmoid": _one_to_one(1 / 256),
    "QLinearLeakyRelu": _one_to_one(0.05, alpha=0.3),
    "QLinearSoftmax": _one_to_one(1 / 256, opset=13),
    "QLinearConcat": _case(
        *_quantised(0.2, 3), _bytes(2, 3), *_quantised(0.1, 9), _bytes(2, 2),
        *_quantised(0.3, 1), axis=1,
    ),
    "QLinearGlobalAveragePool": _case(*_IMAGE, *_quantised(0.1, 4)),
    "QLinearAveragePool": _case(*_IMAGE, *_quantised(0.1, 4), **_POOL),
    "QLinearAveragePool-last": _case(*_IMAGE, *_quantised(0.1, 4), **_POOL, channels_last=1),
    "QLinearConv": _case(
        _bytes(1, 5, 5, 2), *_quantised(0.1, 128), _bytes(3, 2, 3, 3, seed=1), *_quantised(0.1, 99),
        *_quantised(1.0, 120), integers(3, dtype="int32"), channels_last=1, pads=[1, 1, 1, 1],
        kernel_shape=[3, 3],
    ),
    "NhwcMaxPool": _case(_bytes(1, 5, 5, 2), **_POOL),
    "QGemm": _case(
        _bytes(2, 4), *_quantised(0.1, 9), _seven_bits(3, 4, seed=1), S(0.2), I8(0),
        integers(3, dtype="int32"), *_quantised(3.0, 120), transB=1,
    ),
    "MatMulIntegerToFloat": _case(
        _bytes(2, 4), _bytes(4, 3, seed=1), S(0.1), S(0.2), U8(9), U8(5)
    ),
    "DynamicQuantizeMatMul": _case(floats(2, 4), _bytes(4, 3, seed=1), S(0.2), U8(5)),
    "DynamicQuantizeLSTM": _case(
        floats(4, 1, 3), _bytes(2, 3, 20, seed=1), _bytes(2, 5, 20, seed=2), floats(2, 40, seed=3),
        None, None, None, None, S([0.01, 0.02]), U8([128, 120]), S([0.01, 0.02]), U8([128, 120]),
        hidden_size=5, direction="bidirectional", outputs_=3,
    ),
    "QuantizeLinear": _case(floats(3, 4), S([0.1, 0.2, 0.3, 0.1]), np.zeros(4, np.int16)),
    "DequantizeLinear": _case(_bytes(3, 4).astype(np.int16), S(0.1), np.int16(9)),
}  # fmt: skip
_FEW_BITS = {
    "MatMulNBits": _case(
        floats(2, 32), _bytes(3, 2, 8), floats(6, seed=1, low=0.1), _bytes(3),
        K=32, N=3, bits=4, block_size=16,
    ),
    "MatMulNBits-8": _case(
        floats(2, 32), _bytes(3, 2, 16), floats(6, seed=1, low=0.1), K=32, N=3, bits=8,
        block_size=16,
    ),
    "MatMulBnb4-fp4": _case(
        floats(2, 32), _bytes(48), floats(6, seed=1, low=0.1), K=32, N=3, block_size=16,
        quant_type=0,
    ),
    "MatMulBnb4-nf4": _case(
        floats(2, 32), _bytes(48), floats(6, seed=1, low=0.1), K=32, N=3, block_size=16,
        quant_type=1,
    ),
    "GatherBlockQuantized": _case(
        _bytes(5, 16), np.array([[3, 0], [1, 4]]), floats(5, 2, seed=1, low=0.1), _bytes(5, 1),
        block_size=16, quantize_axis=1, gather_axis=0, bits=4,
    ),
}  # fmt: skip

_TABLE = {"dtype": "uint8", "high": 200}
_TENSORS = {
    "Trilu": _case(floats(4, 4), np.array(1), upper=0),
    "Unique": _case(S([2, 1, 1, 3, 4, 3]), outputs_=3),
    "ExpandDims": _case(floats(2, 3), np.array(-1, np.int32)),
    "Pad": _case(floats(2, 3), np.array([0, 1, 1, 0]), S([1.5])),
    "Range": _case(S(1), S(7), S(2)),
    "GatherND": _case(floats(3, 4), np.array([[0, 1], [2, 3]])),
    "Inverse": _case(floats(2, 3, 3)),
    "GridSample": _case(floats(1, 2, 4, 4), floats(1, 3, 3, 2, low=-1.0)),
    "CDist": _case(floats(3, 4), floats(2, 4, seed=1), metric="euclidean"),
    "CDist-squared": _case(floats(3, 4), floats(2, 4, seed=1)),
    "UnfoldTensor": _case(floats(2, 6), dim=1, size=3, step=2),
    "MatMulInteger16": _case(
        integers(2, 3, low=-32768, high=32767, dtype="int16"),
        integers(3, 2, seed=1, low=-9999, high=9999, dtype="int16"),
    ),
    "CropAndResize": _case(
        floats(2, 2, 8, 8), S([[0, 0, 0.6, 0.7], [-0.2, 0.5, 0.9, 1.3]]),
        np.array([1, 0], np.int32), np.array([3, 4], np.int32), extrapolation_value=2.5,
    ),
    "CropAndResize-nearest": _case(
        floats(2, 2, 8, 8), S([[0, 0, 0.6, 0.7]]), np.array([1], np.int32),
        np.array([1, 4], np.int32), mode="nearest",
    ),
    "ConvTransposeWithDynamicPads": _case(
        floats(1, 2, 5, 5), floats(2, 3, 3, 3), np.array([1, 1, 0, 0]), strides=[2, 2]
    ),
    "QEmbedLayerNormalization": _case(
        integers(2, 3, dtype="int32"), integers(2, 3, high=2, dtype="int32"),
        *(integers(n, 8, seed=n, **_TABLE) for n in (5, 6, 2)),
        integers(8, seed=1, **_TABLE), integers(8, **_TABLE), None,
        *[S(0.01)] * 5, *[U8(100)] * 5, outputs_=2,
    ),
}  # fmt: skip

CASES: dict[str, Case] = {**_FUSED, **_ATTENTION, **_QUANTISED, **_FEW_BITS, **_TENSORS}
