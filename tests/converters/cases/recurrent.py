"""Cases of the recurrent layers, with their specification in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.converters.importer_models import floats

from .case import Case, Maker, sigmoid

Cell = Callable[..., tuple[np.ndarray, ...]]
_HIDDEN = 5


def _rnn(x: Any, w: Any, r: Any, wb: Any, rb: Any, h: Any) -> tuple[np.ndarray, ...]:
    return (np.tanh(x @ w.T + h @ r.T + wb + rb),)


def _gru(linear: bool) -> Cell:
    def cell(x: Any, w: Any, r: Any, wb: Any, rb: Any, h: Any) -> tuple[np.ndarray, ...]:
        (wz, wr, wh), (rz, rr, rh) = np.split(w, 3), np.split(r, 3)
        (bz, br, bh), (cz, cr, ch) = np.split(wb, 3), np.split(rb, 3)
        z = sigmoid(x @ wz.T + h @ rz.T + bz + cz)
        reset = sigmoid(x @ wr.T + h @ rr.T + br + cr)
        inner = reset * (h @ rh.T + ch) if linear else (reset * h) @ rh.T + ch
        return ((1 - z) * np.tanh(x @ wh.T + inner + bh) + z * h,)

    return cell


def _lstm(x: Any, w: Any, r: Any, wb: Any, rb: Any, h: Any, c: Any) -> tuple[np.ndarray, ...]:
    i, o, f, g = np.split(x @ w.T + h @ r.T + wb + rb, 4, axis=-1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def _layer(cell: Cell, states: int) -> Callable[..., tuple[np.ndarray, ...]]:
    """Both directions of a layer over samples of different lengths."""

    def run(x: Any, w: Any, r: Any, b: Any, lens: Any) -> tuple[np.ndarray, ...]:
        y = np.zeros((x.shape[0], 2, x.shape[1], _HIDDEN), np.float32)
        last = np.zeros((states, 2, x.shape[1], _HIDDEN), np.float32)
        for d in range(2):
            wb, rb = np.split(b[d], 2)
            for sample, length in enumerate(lens):
                state = tuple(np.zeros(_HIDDEN, np.float32) for _ in range(states))
                for t in reversed(range(length)) if d else range(length):
                    state = cell(x[t, sample], w[d], r[d], wb, rb, *state)
                    y[t, d, sample] = state[0]
                last[:, d, sample] = state
        return (y, *last)

    return run


def _recurrent(gates: int, cell: Cell, since: int = 7) -> Maker:
    """Samples of two lengths, both directions."""
    states = 2 if gates == 4 else 1

    def cases(version: int) -> list[Case]:
        w, r = floats(2, gates * _HIDDEN, 3, seed=1), floats(2, gates * _HIDDEN, _HIDDEN, seed=2)
        b, lens = floats(2, 2 * gates * _HIDDEN, seed=3), np.array([4, 2], np.int32)
        how: dict[str, Any] = {"hidden_size": _HIDDEN, "direction": "bidirectional"}
        if version < 7:
            how["output_sequence"] = 1
        operands, held = [floats(4, 2, 3), w, r, b, lens], (1, 2, 3)
        found = [Case(operands, how, 1 + states, held, _layer(cell, states))]
        if gates == 3 and version >= 3:
            late = {**how, "linear_before_reset": 1}
            found.append(Case(operands, late, 2, held, _layer(_gru(True), states)))
        if version >= 7:  # a sample without a step has no state, whatever it started from
            begun = [floats(2, 2, _HIDDEN, seed=s) for s in (4, 5)][:states]
            none = np.array([4, 0], np.int32)
            found.append(Case([*operands[:-1], none, *begun], how, 1 + states, held))
        if gates == 4 and version >= 7:
            start = [floats(2, 2, _HIDDEN, seed=s) for s in (4, 5)]
            peep = floats(2, 3 * _HIDDEN, seed=6)
            found.append(Case([*operands, *start, peep], how, 3, (*held, 7)))
        return found

    return cases


CASES: dict[str, Maker] = {
    "RNN": _recurrent(1, _rnn),
    "GRU": _recurrent(3, _gru(False)),
    "LSTM": _recurrent(4, _lstm),
}
