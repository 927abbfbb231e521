"""Cases of the operators that reduce axes, or normalise along them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.converters.importer_models import floats

from .case import Case, Maker, fixed, unary


def _reduction(first_input: int, function: Callable[..., Any] | None = None) -> Maker:
    """Axes as an attribute, or from version `first_input` on as an operand."""

    def formula(axes: tuple[int, ...] | None, keep: bool) -> Callable[..., Any] | None:
        return function and (lambda x, *_: function(x, axis=axes, keepdims=keep))

    def cases(version: int) -> list[Case]:
        x = floats(2, 3, 4, low=0.5, high=2.0)
        plain = Case([x], expected=formula(None, True))
        if version < first_input:
            low = -1 if version >= 11 else 2
            return [
                plain,
                Case([x], {"axes": [1, low], "keepdims": 0}, expected=formula((1, 2), False)),
            ]
        held = {"keepdims": 0}
        return [
            plain,
            Case([x, np.array([1, -1])], held, held=(1,), expected=formula((1, 2), False)),
            Case(
                [x, np.array([], np.int64)],
                {"noop_with_empty_axes": 1},
                held=(1,),
                expected=None if function is None else lambda x, _: function(x[None], axis=0),
            ),
        ]

    return cases


def _log_sum(x: np.ndarray, **how: Any) -> np.ndarray:
    return np.log(x.sum(**how))


def _log_sum_exp(x: np.ndarray, **how: Any) -> np.ndarray:
    return np.log(np.exp(x).sum(**how))


def _extreme(version: int) -> list[Case]:
    cases = [Case([floats(2, 3, 4)], {"axis": 1, "keepdims": 0}), Case([floats(2, 3, 4)])]
    if version >= 12:
        ties = np.float32([[1, 2, 2], [3, 0, 3]])
        cases.append(Case([ties], {"axis": 1, "select_last_index": 1}))
    return cases


def _softmax(version: int) -> list[Case]:
    cases = [Case([floats(2, 3, 4)]), Case([floats(2, 3, 4)], {"axis": 0})]
    return [*cases, Case([floats(2, 3, 4)], {"axis": -2})] if version >= 11 else cases


def _lp_normalization(version: int) -> list[Case]:
    x = floats(2, 3, low=0.1)
    return [Case([x]), Case([x], {"axis": 0, "p": 1})]


def _mvn(version: int) -> list[Case]:
    x = floats(2, 3, 4, 4)
    return [Case([x]), Case([x], {"axes": [0, 2]})]


CASES: dict[str, Maker] = {
    **{name: _reduction(18) for name in ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd")},
    **{name: _reduction(18) for name in ("ReduceL1", "ReduceL2", "ReduceSumSquare")},
    "ReduceLogSum": _reduction(18, _log_sum),
    "ReduceLogSumExp": _reduction(18, _log_sum_exp),
    "ReduceSum": _reduction(13),
    "ArgMax": _extreme,
    "ArgMin": _extreme,
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
    "Hardmax": _softmax,
    "LpNormalization": _lp_normalization,
    "MeanVarianceNormalization": _mvn,
    "CumSum": fixed(floats(3, 4), np.array(1), exclusive=1, reverse=1, held_=(1,)),
    "Shape": unary(),
    "Size": unary(),
}
