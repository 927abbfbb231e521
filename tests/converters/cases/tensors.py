"""Cases of the operators that move, choose and make entries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.converters.importer_models import floats, integers

from .case import Case, Maker, fixed, unary


def _axes(x: np.ndarray, axes: list[int], optional: bool) -> Maker:
    def cases(version: int) -> list[Case]:
        if version < 13:
            cases = [Case([x], {"axes": axes})]
        else:
            cases = [Case([x, np.array(axes)], held=(1,))]
        return [*cases, Case([x])] if optional else cases

    return cases


def _pad(version: int) -> list[Case]:
    x, amounts = floats(2, 3), [0, 1, 1, 0]

    def expected(x: np.ndarray) -> np.ndarray:
        return np.pad(x, [(0, 1), (1, 0)], constant_values=1.5)

    if version == 1:
        return [Case([x], {"paddings": amounts, "value": 1.5}, expected=expected)]
    modes = ("reflect", "edge") if version < 19 else ("reflect", "edge", "wrap")
    if version < 11:
        plain = Case([x], {"pads": amounts, "value": 1.5}, expected=expected)
        return [plain, *(Case([x], {"pads": amounts, "mode": mode}) for mode in modes)]
    held = [x, np.array(amounts), np.float32(1.5)]
    return [
        Case(held, held=(1, 2), idle=(2,)),
        *(Case(held[:2], {"mode": mode}, held=(1,)) for mode in modes),
    ]


def _slice(version: int) -> list[Case]:
    x = floats(4, 5)
    if version < 10:
        return [
            Case([x], {"starts": [1, -3], "ends": [3, 9], "axes": [0, 1]}),
            Case([x], {"starts": [1], "ends": [3]}),
        ]
    starts, ends = np.array([1, -1]), np.array([3, -9])
    axes, steps = np.array([0, 1]), np.array([1, -2])
    return [
        Case([x, starts, ends, axes, steps], held=(1, 2, 3, 4)),
        Case([x, starts[:1], ends[:1]]),
    ]


def _split(version: int) -> list[Case]:
    x = floats(6, 2)

    def halves(x: np.ndarray, *_: Any) -> tuple[np.ndarray, ...]:
        return x[:2], x[2:]

    sizes = Case([x, np.array([2, 4])], {"axis": 0}, 2, (1,), expected=halves)
    if version == 1:
        return [sizes_as_floats(x, halves), _split_attribute(x, halves), _equal_parts(x)]
    if version < 13:
        return [_split_attribute(x, halves), _equal_parts(x)]
    count = {"num_outputs": 2} if version >= 18 else {}
    return [sizes, Case([x], {"axis": 0, **count}, 2)]


def sizes_as_floats(x: np.ndarray, expected: Callable[..., Any]) -> Case:
    """Schema 1 takes the sizes in the data's own type."""
    return Case([x, np.float32([2, 4])], {"axis": 0}, 2, (1,), expected, idle=(1,))


def _split_attribute(x: np.ndarray, expected: Callable[..., Any]) -> Case:
    return Case([x], {"split": [2, 4], "axis": 0}, outputs=2, expected=expected)


def _equal_parts(x: np.ndarray) -> Case:
    return Case([x], {"axis": 0}, 2, expected=lambda x: (x[:3], x[3:]))


def _top_k(version: int) -> list[Case]:
    x = floats(3, 5)
    if version == 1:
        return [Case([x], {"k": 2, "axis": 1}, outputs=2)]
    cases = [Case([x, np.array([2])], {"axis": 1}, outputs=2, held=(1,))]
    if version >= 11:
        cases.append(Case([x, np.array([2])], {"axis": 0, "largest": 0}, outputs=2, held=(1,)))
    return cases


def _reshape(version: int) -> list[Case]:
    x, shape = floats(2, 6), [0, 3, -1]
    if version == 1:
        return [Case([x], {"shape": shape})]
    cases = [Case([x, np.array(shape)], held=(1,))]
    if version >= 14:
        empty = np.zeros((0, 3), np.float32)
        cases.append(Case([empty, np.array([3, 0])], {"allowzero": 1}, held=(1,)))
    return cases


def _tile(version: int) -> Case:
    x = floats(2, 3)
    if version == 1:
        operands = [x, np.float32(2), np.float32(1)]
        return Case(operands, held=(1, 2), idle=(1, 2), expected=lambda x, *_: np.tile(x, (1, 2)))
    return Case([x, np.array([1, 2])], held=(1,))


def _concat(version: int) -> list[Case]:
    pair = [floats(2, 3), floats(2, 2, seed=1)]

    def expected(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.concatenate([a, b], 1)

    cases = [Case(pair, {"axis": 1}, expected=expected)]
    return [*cases, Case(pair, expected=expected)] if version == 1 else cases


def _gather(version: int) -> list[Case]:
    x, places = floats(4, 3), np.array([[0, 3], [1, 1]])
    cases = [Case([x, places]), Case([x, np.array([2, 0])], {"axis": 1}, held=(1,))]
    return [*cases, Case([x, np.array([-1, 0])])] if version >= 11 else cases


def _gather_nd(version: int) -> list[Case]:
    x = floats(3, 4, 2)
    cases = [Case([x, np.array([[0, 1], [2, 3]])])]
    batched = Case([x, np.array([[1], [3], [0]])], {"batch_dims": 1})
    return [*cases, batched] if version >= 12 else cases


def _scatter(first_negative: int) -> Maker:
    def cases(version: int) -> list[Case]:
        x, new = floats(3, 4), floats(1, 4, seed=1)
        found = [Case([x, np.array([[1, 0, 2, 1]]), new])]
        if version >= first_negative:
            found.append(Case([x, np.array([[-1], [0], [3]]), floats(3, 1, seed=1)], {"axis": 1}))
        if version >= 16:
            found.append(Case([x, np.array([[1, 0, 2, 1]]), new], {"reduction": "add"}))
        return found

    return cases


def _scatter_nd(version: int) -> list[Case]:
    x, places, new = floats(4, 3), np.array([[1], [3]]), floats(2, 3, seed=1)
    cases = [Case([x, places, new])]
    return [*cases, Case([x, places, new], {"reduction": "add"})] if version >= 16 else cases


def _one_hot(version: int) -> list[Case]:
    def expected(i: np.ndarray, depth: Any, values: np.ndarray) -> np.ndarray:
        return np.where(i[..., None] % 5 == np.arange(5), values[1], values[0])

    values = np.array([0.5, 2], np.float32)
    cases = [Case([integers(3), np.array(5), values], held=(1,), expected=expected)]
    if version >= 11:
        cases.append(Case([integers(3) - 2, np.array(5), values], held=(1,), expected=expected))
    return cases


def _compress(version: int) -> list[Case]:
    x, keep = floats(3, 4), np.array([True, False, True])
    cases = [Case([x, keep], {"axis": 0}, expected=lambda x, c: x[c])]
    return [*cases, Case([x, keep], expected=lambda x, c: x.reshape(-1)[:3][c])]


def _depth_to_space(version: int) -> list[Case]:
    def expected(x: np.ndarray) -> np.ndarray:
        return x.reshape(1, 2, 2, 2, 2, 3).transpose(0, 3, 4, 1, 5, 2).reshape(1, 2, 4, 6)

    def columns_first(x: np.ndarray) -> np.ndarray:
        return x.reshape(1, 2, 2, 2, 2, 3).transpose(0, 1, 4, 2, 5, 3).reshape(1, 2, 4, 6)

    x = floats(1, 8, 2, 3)
    cases = [Case([x], {"blocksize": 2}, expected=expected)]
    if version >= 11:
        cases.append(Case([x], {"blocksize": 2, "mode": "CRD"}, expected=columns_first))
    return cases


def _space_to_depth(x: np.ndarray) -> np.ndarray:
    return x.reshape(1, 2, 2, 2, 3, 2).transpose(0, 3, 5, 1, 2, 4).reshape(1, 8, 2, 3)


def _reverse(x: np.ndarray, lens: np.ndarray) -> np.ndarray:
    y = x.copy()
    for i, n in enumerate(lens):
        y[:n, i] = x[:n, i][::-1]
    return y


def _unique(version: int) -> list[Case]:
    x = integers(9).astype(np.float32)

    def expected(x: np.ndarray) -> tuple[np.ndarray, ...]:
        return np.unique(x, True, True, True)

    cases = [Case([x], outputs=4, expected=expected, idle=(0,))]
    if version == 11:
        cases.append(Case([x.reshape(3, 3)], {"axis": 0, "sorted": 0}, 4, idle=(0,)))
    return cases


def _transposed(version: int) -> list[Case]:
    return [Case([floats(2, 3, 4)]), Case([floats(2, 3, 4)], {"perm": [1, 2, 0]})]


def _flatten(version: int) -> list[Case]:
    cases = [Case([floats(2, 3, 4)]), Case([floats(2, 3, 4)], {"axis": 0})]
    return [*cases, Case([floats(2, 3, 4)], {"axis": -1})] if version >= 11 else cases


def _eye(version: int) -> list[Case]:
    return [Case([floats(3, 4)], {"k": 1}), Case([floats(3, 4)], {"dtype": 11})]


CASES: dict[str, Maker] = {
    "Squeeze": _axes(floats(2, 1, 3), [1], optional=True),
    "Unsqueeze": _axes(floats(2, 3), [0, 2], optional=False),
    "Pad": _pad,
    "Slice": _slice,
    "Split": _split,
    "TopK": _top_k,
    "Reshape": _reshape,
    "Tile": _tile,
    "Concat": _concat,
    "Transpose": _transposed,
    "Flatten": _flatten,
    "Expand": fixed(floats(3, 1), np.array([2, 1, 4]), held_=(1,)),
    "Gather": _gather,
    "GatherElements": fixed(floats(3, 3), np.array([[0, 2, -1]]), axis=0),
    "GatherND": _gather_nd,
    "ScatterElements": _scatter(11),
    "Scatter": _scatter(99),
    "ScatterND": _scatter_nd,
    "OneHot": _one_hot,
    "Compress": _compress,
    "NonZero": fixed(integers(3, 4, high=2)),
    "Trilu": unary(upper=0),
    "EyeLike": _eye,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": fixed(floats(1, 2, 4, 6), expected=_space_to_depth, blocksize=2),
    "ReverseSequence": fixed(floats(4, 2), np.array([3, 2]), expected=_reverse),
    "Range": fixed(np.float32(1), np.float32(7), np.float32(2), idle_=(0, 1, 2)),
    "ConstantOfShape": fixed(np.array([2, 3])),
    "Unique": _unique,
}
