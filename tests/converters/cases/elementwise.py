"""Cases of the operators that work entry by entry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.converters.importer_models import floats, integers

from .case import Case, Maker, fixed, sigmoid, unary


def _float_pair(seed: int) -> np.ndarray:
    return floats(2, 3, 4, seed=seed, low=0.5, high=2.0)


def _int_pair(seed: int) -> np.ndarray:
    return integers(2, 3, 4, seed=seed, high=3, dtype="int32")


def _bool_pair(seed: int) -> np.ndarray:
    return integers(2, 3, 4, seed=seed, high=2).astype(bool)


def _binary(
    make: Callable[[int], np.ndarray], function: Callable[..., Any], since: int = 7
) -> Maker:
    """Operands that broadcast, by attribute before version `since`."""

    def cases(version: int) -> list[Case]:
        a, b = make(0), make(1)
        same = Case([a, b], expected=function)
        if version >= since:
            return [same, Case([a, b[:, :1, :1]], expected=function)]
        return [
            same,
            Case(
                [a, b[0, :, 0]],
                {"axis": 1, "broadcast": 1},
                expected=lambda a, b: function(a, b[:, None]),
            ),
            Case([a, b[0, 0]], {"broadcast": 1}, expected=function),
        ]

    return cases


def _equal(version: int) -> Case | list[Case]:
    return _binary(_int_pair if version < 11 else _float_pair, np.equal)(version)


def _many(function: Callable[..., Any]) -> Maker:
    def cases(version: int) -> list[Case]:
        same = Case([floats(5, 4, seed=s) for s in range(3)], expected=function)
        wide = Case([floats(5, 1), floats(4, seed=1)], expected=function)
        return [same] if version < 8 else [same, wide]

    return cases


def _mod(version: int) -> list[Case]:
    a, b = integers(3, 4, low=-9, high=9), integers(3, 4, seed=1, low=1, high=4)
    return [
        Case([a, b], expected=np.mod),
        Case([floats(3, 4) * 4, floats(3, 4, low=0.5)], {"fmod": 1}, expected=np.fmod, idle=(1,)),
    ]


def _whole(function: Callable[..., Any]) -> Maker:
    return fixed(integers(3, 4, high=99), integers(3, 4, seed=1, high=99), expected=function)


def _bit_shift(version: int) -> list[Case]:
    a, b = integers(5, high=99, dtype="uint8"), integers(5, seed=1, dtype="uint8")
    return [
        Case([a, b], {"direction": "LEFT"}, expected=np.left_shift),
        Case([a, b], {"direction": "RIGHT"}, expected=np.right_shift),
    ]


def _clip(version: int) -> list[Case]:
    x = floats(3, 4)
    if version < 11:
        return [
            Case([x], {"min": -0.5, "max": 0.7}, expected=lambda x: np.clip(x, -0.5, 0.7)),
            Case([x], {"max": 0.1}, expected=lambda x: np.minimum(x, np.float32(0.1))),
        ]
    both = Case([x, np.float32(-0.5), np.float32(0.7)], held=(1, 2))
    return [both, Case([x, None, np.float32(0.1)], held=(2,))]


def _selu(version: int) -> list[Case]:
    alpha, gamma = (1.6732, 1.0507) if version == 1 else (1.6732632423543772, 1.0507009873554805)

    def elu(x: np.ndarray, a: float, g: float) -> np.ndarray:
        return np.where(x > 0, g * x, g * (a * np.exp(x) - a)).astype(np.float32)

    return [
        Case([floats(2, 3)], expected=lambda x: elu(x, alpha, gamma)),
        Case([floats(2, 3)], {"alpha": 2.0, "gamma": 3.0}, expected=lambda x: elu(x, 2.0, 3.0)),
    ]


def _elu(version: int) -> Case:
    return Case(
        [floats(2, 3)],
        {"alpha": 2.0},
        expected=lambda x: np.where(x < 0, 2 * (np.exp(x) - 1), x).astype(np.float32),
    )


def _prelu(version: int) -> list[Case]:
    x, early = floats(2, 3, 4), version < 7
    slope = floats(3 if early else 4, seed=1)

    def expected(x: np.ndarray, slope: np.ndarray) -> np.ndarray:
        spread = slope[:, None] if early and slope.size > 1 else slope
        return np.where(x < 0, spread * x, x)

    return [
        Case([x, slope], held=(1,), expected=expected),
        Case([x, floats(1, seed=1)], held=(1,), expected=expected),
    ]


def _celu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0) + np.minimum(0, np.exp(x) - 1)


def _cast(version: int) -> list[Case]:
    def to(target: str, elem: int, dtype: Any) -> Case:
        chosen = target if version == 1 else elem
        idle = (0,) if elem != 11 else ()
        x = floats(3, 4) * 3
        return Case([x], {"to": chosen}, expected=lambda x: x.astype(dtype), idle=idle)

    return [to("INT32", 6, np.int32), to("DOUBLE", 11, np.float64), to("BOOL", 9, np.bool_)]


def _plain(names: str) -> dict[str, Maker]:
    return {name: unary() for name in names.split()}


CASES: dict[str, Maker] = {
    **_plain(
        "Asinh Atan Cos Cosh Erf HardSwish IsNaN Identity Mish Round Shrink Sign Sin Sinh "
        "Softplus Softsign Swish Tan Gelu"
    ),
    **{name: unary(None, -0.9, 0.9) for name in ("Acos", "Asin", "Atanh")},
    "Abs": unary(np.abs),
    "Acosh": unary(None, 1.1, 3.0),
    "Ceil": unary(np.ceil),
    "Celu": unary(_celu),
    "Elu": _elu,
    "Exp": unary(np.exp),
    "Floor": unary(np.floor),
    "HardSigmoid": unary(lambda x: np.clip(0.4 * x + 0.3, 0, 1), alpha=0.4, beta=0.3),
    "LeakyRelu": unary(lambda x: np.where(x < 0, np.float32(0.2) * x, x), alpha=0.2),
    "Log": unary(np.log, 0.1),
    "Neg": unary(np.negative),
    "Not": fixed(_bool_pair(0)),
    "Reciprocal": unary(np.reciprocal, 0.1),
    "Relu": unary(lambda x: np.maximum(x, 0)),
    "Selu": _selu,
    "Sigmoid": unary(sigmoid),
    "Sqrt": unary(np.sqrt, 0.1),
    "Tanh": unary(np.tanh),
    "ThresholdedRelu": unary(alpha=0.5),
    "IsInf": fixed(np.array([1, np.inf, -np.inf], np.float32), detect_negative=0),
    "Add": _binary(_float_pair, np.add),
    "Sub": _binary(_float_pair, np.subtract),
    "Mul": _binary(_float_pair, np.multiply),
    "Div": _binary(_float_pair, np.divide),
    "Pow": _binary(_float_pair, np.power),
    "Equal": _equal,
    "Greater": _binary(_float_pair, np.greater),
    "Less": _binary(_float_pair, np.less),
    "GreaterOrEqual": _binary(_int_pair, np.greater_equal),
    "LessOrEqual": _binary(_int_pair, np.less_equal),
    "And": _binary(_bool_pair, np.logical_and),
    "Or": _binary(_bool_pair, np.logical_or),
    "Xor": _binary(_bool_pair, np.logical_xor),
    "Max": _many(lambda *x: np.max(np.broadcast_arrays(*x), 0)),
    "Min": _many(lambda *x: np.min(np.broadcast_arrays(*x), 0)),
    "Sum": _many(lambda *x: sum(x)),
    "Mean": _many(lambda *x: sum(x) / np.float32(len(x))),
    "Mod": _mod,
    "BitShift": _bit_shift,
    "BitwiseAnd": _whole(np.bitwise_and),
    "BitwiseOr": _whole(np.bitwise_or),
    "BitwiseXor": _whole(np.bitwise_xor),
    "BitwiseNot": fixed(integers(3, 4)),
    "Clip": _clip,
    "PRelu": _prelu,
    "Where": fixed(_bool_pair(0), _float_pair(0), _float_pair(1)),
    "Cast": _cast,
    "CastLike": fixed(floats(3, 4), np.float64(1), idle_=(1,)),
}
