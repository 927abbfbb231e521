"""Cases of the layers with weights: convolutions, products, normalisation, quantisation, losses."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.converters.importer_models import floats, integers

from .case import Case, Maker, fixed


def _conv(version: int) -> list[Case]:
    return [
        Case(
            [floats(2, 4, 7, 7), floats(6, 2, 3, 3, seed=1), floats(6, seed=2)],
            {"group": 2, "pads": [1, 0, 1, 2], "strides": [2, 1], "kernel_shape": [3, 3]},
            held=(1, 2),
        ),
        Case(
            [floats(1, 2, 9), floats(3, 2, 3, seed=1)],
            {"auto_pad": "SAME_LOWER", "strides": [2]},
            held=(1,),
        ),
        Case([floats(1, 2, 9), floats(3, 2, 3, seed=1)], {"dilations": [2], "auto_pad": "VALID"}),
    ]


def _conv_transpose(version: int) -> list[Case]:
    return [
        Case(
            [floats(2, 4, 5, 5), floats(4, 3, 3, 3, seed=1), floats(3, seed=2)],
            {"strides": [2, 2], "pads": [1, 1, 0, 0], "output_padding": [1, 0]},
            held=(1, 2),
        ),
        Case(
            [floats(1, 4, 5), floats(4, 1, 3, seed=1)],
            {"strides": [2], "output_shape": [10], "group": 2},
            held=(1,),
        ),
    ]


def _gemm(version: int) -> list[Case]:
    a, b, c = floats(3, 4), floats(5, 4, seed=1), floats(5, seed=2)
    how: dict[str, Any] = {"alpha": 0.5, "beta": 2.0, "transB": 1}
    wide = {"broadcast": 1} if version < 7 else {}
    cases = [
        Case(
            [a, b, c],
            how | wide,
            held=(1, 2),
            expected=lambda a, b, c: 0.5 * a @ b.T + np.float32(2) * c,
        ),
        Case(
            [a.T.copy(), b.T.copy(), floats(3, 5, seed=2)],
            {"transA": 1},
            held=(1, 2),
            expected=lambda a, b, c: a.T @ b + c,
        ),
    ]
    return [*cases, Case([a, b], how, held=(1,))] if version >= 11 else cases


def _batch_norm(version: int) -> list[Case]:
    how: dict[str, Any] = {"epsilon": 1e-3}
    if version < 7:
        how["is_test"] = 1
    x = floats(2, 3, 4)

    def expected(x: np.ndarray, s: Any, b: Any, mean: Any, var: Any) -> np.ndarray:
        s, b, mean, var = (v.reshape(1, 3, -1) for v in (s, b, mean, var))
        return (x - mean) / np.sqrt(var + np.float32(1e-3)) * s + b

    held, each = (1, 2, 3, 4), [floats(3, seed=s, low=0.5) for s in range(1, 5)]
    cases = [Case([x, *each], how, held=held, expected=expected)]
    if version < 9:
        entries = [floats(3, 4, seed=s, low=0.5) for s in range(1, 5)]
        cases.append(Case([x, *entries], {"spatial": 0, **how}, held=held, expected=expected))
    if version < 14:
        test = {"is_test": 0} if version < 7 else {}
        trained = {"epsilon": 1e-3, "momentum": 0.8, **test}
        cases.append(Case([x, *each], trained, 5, held, _trained_batch_norm))
    return cases


def _trained_batch_norm(x: Any, s: Any, b: Any, mean: Any, var: Any) -> tuple[np.ndarray, ...]:
    """Five outputs: the batch's own statistics were used, and the running ones come out.

    The last, "saved variance", is the inverse deviation in ONNX Runtime.
    """
    own, spread = x.mean((0, 2)), x.var((0, 2))
    y = (x - own[:, None]) / np.sqrt(spread[:, None] + np.float32(1e-3)) * s[:, None] + b[:, None]
    keep, new = np.float32(0.8), np.float32(0.2)
    running = mean * keep + own * new, var * keep + spread * new
    return y, *running, own, 1 / np.sqrt(spread + np.float32(1e-3))


def _instance_norm(x: np.ndarray, scale: np.ndarray, b: np.ndarray) -> np.ndarray:
    mean, var = x.mean((2, 3), keepdims=True), x.var((2, 3), keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-5) * scale[:, None, None] + b[:, None, None]


def _dropout(version: int) -> Case:
    test = {"is_test": 1} if version < 7 else {}
    if version < 7:
        return Case([floats(2, 3)], test, expected=lambda x: x)
    return Case([floats(2, 3)], outputs=2)


def _quantize(version: int) -> list[Case]:
    # a gradient passes only in pair with DequantizeLinear

    def expected(x: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
        wide = np.round(x / scale) + zero.astype(np.float32)
        info = np.iinfo(zero.dtype)
        return np.clip(wide, info.min, info.max).astype(zero.dtype)

    x = floats(3, 4) * 20
    cases = [Case([x, np.float32(0.25), np.uint8(12)], held=(1, 2), expected=expected, idle=(0,))]
    if version >= 13:
        scales, zeros = floats(4, seed=1, low=0.1), integers(4, low=-9, dtype="int8")
        cases.append(Case([x, scales, zeros], held=(1, 2), expected=expected, idle=(0,)))
    if version >= 21:
        scales = floats(3, 2, seed=1, low=0.1)
        blocks = {"axis": 1, "block_size": 2, "output_dtype": 3}
        cases.append(
            Case(
                [x, scales],
                blocks,
                held=(1,),
                idle=(0,),
                expected=lambda x, s: expected(x, s.repeat(2, 1), np.int8(0)),
            )
        )
    return cases


def _dequantize(version: int) -> list[Case]:
    def expected(x: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
        return (x.astype(np.float32) - zero.astype(np.float32)) * scale

    x = integers(3, 4, high=200, dtype="uint8")
    cases = [Case([x, np.float32(0.25), np.uint8(12)], held=(1, 2), expected=expected)]
    if version >= 13:
        scales, zeros = floats(4, seed=1, low=0.1), integers(4, dtype="uint8")
        cases.append(Case([x, scales, zeros], held=(1, 2), expected=expected))
    return cases


def _loss(version: int) -> list[Case]:
    logits, labels = np.log(floats(4, 3, low=0.1)), np.array([2, 0, 1, 2])
    return [
        Case([logits, labels, floats(3, seed=2, low=0.5)], idle=(2,)),
        Case([logits, labels], {"reduction": "none", "ignore_index": 2}),
    ]


_BYTES = integers(2, 3, high=99, dtype="uint8"), integers(3, 4, seed=1, high=99, dtype="uint8")

CASES: dict[str, Maker] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": fixed(floats(2, 3, 4), floats(4, 5, seed=1), held_=(1,)),
    "Einsum": fixed(
        floats(2, 3), floats(3, 4, seed=1), equation="ij,jk->ik", expected=lambda a, b: a @ b
    ),
    "Det": fixed(floats(2, 3, 3)),
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": fixed(
        floats(2, 3, 4, 4), floats(3, seed=1), floats(3, seed=2), held_=(1, 2),
        expected=_instance_norm,
    ),
    "LayerNormalization": fixed(floats(2, 3, 4), floats(4, seed=1), held_=(1,)),
    "LRN": fixed(floats(2, 5, 3, 3), size=3, alpha=0.1, bias=2.0),
    "Dropout": _dropout,
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    "DynamicQuantizeLinear": fixed(floats(3, 4), outputs_=3),
    "MatMulInteger": fixed(*_BYTES),
    "QLinearMatMul": fixed(
        _BYTES[0], np.float32(0.1), np.uint8(9), _BYTES[1], np.float32(0.2), np.uint8(5),
        np.float32(3.0), np.uint8(7),
    ),
    "ConvInteger": fixed(
        integers(1, 1, 4, 4, high=99, dtype="uint8"), integers(2, 1, 2, 2, dtype="uint8")
    ),
    "NegativeLogLikelihoodLoss": _loss,
    "SoftmaxCrossEntropyLoss": _loss,
}  # fmt: skip
