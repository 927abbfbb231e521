"""Recurrent layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from dns_onnx.converters.registry import op

Activation = Callable[[Tensor], Tensor]

_ALPHA = {
    "leakyrelu": 0.01,
    "thresholdedrelu": 1.0,
    "hardsigmoid": 0.2,
    "elu": 1.0,
    "affine": 1.0,
    "scaledtanh": 1.0,
}
_BETA = {"hardsigmoid": 0.5, "affine": 0.0, "scaledtanh": 1.0}
_PLAIN: dict[str, Activation] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softsign": torch.nn.functional.softsign,
    "softplus": torch.nn.functional.softplus,
}


def _activation(name: str, alpha: float | None, beta: float | None) -> Activation:
    """An activation function of the RNN operators, by ONNX's name for it."""
    name = name.lower()
    if name in _PLAIN:
        return _PLAIN[name]
    a = _ALPHA[name] if alpha is None else alpha
    b = _BETA.get(name, 0.0) if beta is None else beta
    shaped: dict[str, Activation] = {
        "leakyrelu": lambda x: torch.where(x >= 0, x, a * x),
        "thresholdedrelu": lambda x: torch.where(x >= a, x, torch.zeros_like(x)),
        "hardsigmoid": lambda x: torch.clamp(a * x + b, 0.0, 1.0),
        "elu": lambda x: torch.nn.functional.elu(x, a),
        "affine": lambda x: a * x + b,
        "scaledtanh": lambda x: a * torch.tanh(b * x),
    }
    return shaped[name]


Step = Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]
Times = Callable[[Tensor], Tensor]  # a state [B, H] times some rows of R
Rows = Callable[[int, int], Times]  # from the first to before the last
Cell = Callable[[Rows, Tensor | None], Step]


def _scan(
    x: Tensor, states: tuple[Tensor, ...], step: Step, lens: Tensor | None, backward: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run one direction over the time steps: all hidden states, and the last states.

    x: [T, B, ...], the input's part of every gate.  states[0] is the hidden state [B, H].
    lens: [B], how many steps each sample has; later outputs are zero, and so are the last states
        of a sample without any (as in ONNX Runtime).
    """
    steps = x.shape[0]
    outputs: list[Tensor] = []
    for time in reversed(range(steps)) if backward else range(steps):
        new = step(x[time], states)
        if lens is None:
            states = new
            outputs.append(new[0])
        else:
            live = (time < lens).unsqueeze(-1)
            states = tuple(torch.where(live, n, s) for n, s in zip(new, states, strict=True))
            outputs.append(torch.where(live, new[0], torch.zeros_like(new[0])))
    if backward:
        outputs.reverse()
    if lens is not None:
        some = (lens > 0).unsqueeze(-1)
        states = tuple(torch.where(some, s, torch.zeros_like(s)) for s in states)
    return torch.stack(outputs), states


@dataclass(frozen=True)
class Way:
    """How one direction of a layer goes through time.

    cell: its step, of the rows of R and the late part of R's bias.  early: the first gates' rows,
    in which the input's part and the state's are added before anything else; the others add their
    bias of R by themselves.
    """

    cell: Cell
    early: int
    backward: bool


def through_time(
    x: Tensor, w: Tensor, r: Tensor, b: Tensor | None, states: tuple[Tensor, ...],
    lens: Tensor | None, way: Way, noted: Callable[[int, int, Tensor], None] | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:  # fmt: skip
    """One direction of a layer: all hidden states, and the last states.

    One call to those who watch torch's functions.  x: [T, B, I].  w: [G H, I].  r: [G H, H].
    b: [2 G H].  noted: told, step by step, which rows of R (first, last) a state is multiplied by.
    """
    if has_torch_function((x,)):
        found: tuple[Tensor, tuple[Tensor, ...]] = handle_torch_function(
            through_time, (x,), x, w, r, b, states, lens, way, noted
        )
        return found
    size, late = len(w), None
    gates = x @ w.t()
    if b is not None:
        both, late = b[size : size + way.early], b[size + way.early :]
        gates = gates + torch.cat([b[: way.early] + both, b[way.early : size]])

    def rows(first: int, last: int) -> Times:
        turned = r[first:last].t()

        def times(h: Tensor) -> Tensor:
            if noted is not None:
                noted(first, last, h)
            return h @ turned

        return times

    return _scan(gates, states, way.cell(rows, late), lens, way.backward)


@dataclass(frozen=True)
class Layer:
    """The attributes that all recurrent operators share, with ONNX's names and defaults."""

    activation_alpha: Sequence[float] = ()
    activation_beta: Sequence[float] = ()
    activations: Sequence[str] = ()
    clip: float | None = None
    direction: str = "forward"
    hidden_size: int | None = None
    layout: int = 0
    output_sequence: int = 0

    @property
    def backward(self) -> list[bool]:
        """Whether each of the layer's directions runs backward."""
        ways = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}
        return ways[self.direction]

    def functions(self, *defaults: str) -> list[list[Activation]]:
        """The activation functions of each direction.

        activation_alpha and _beta are consumed in order by the functions that have such a
        parameter.
        """
        each, directions = len(defaults), len(self.backward)
        alpha, beta = iter(self.activation_alpha), iter(self.activation_beta)
        made = []
        for name in self.activations or defaults * directions:
            low = name.lower()
            a = next(alpha, None) if low in _ALPHA else None
            b = next(beta, None) if low in _BETA else None
            made.append(_activation(name, a, b))
        return [made[i * each : (i + 1) * each] for i in range(directions)]

    def limit(self, x: Tensor) -> Tensor:
        """The input of an activation, kept within the clip."""
        return x if self.clip is None else x.clamp(-self.clip, self.clip)

    def run(
        self,
        x: Tensor,
        w: Tensor,
        r: Tensor,
        b: Tensor | None,
        sequence_lens: Tensor | None,
        initial: Sequence[Tensor | None],
        cell: Callable[[int, Rows, Tensor | None], Step],
        early: int,
    ) -> tuple[Tensor, ...]:
        """All directions of the layer.

        x: [T, B, I], or [B, T, I] if layout = 1.  w: [D, gates * H, I].  r: [D, gates * H, H].
        b: [D, 2 * gates * H].  initial: [D, B, H] each (layout 1: [B, D, H]).  early: see `Way`.
        Returns y [T, D, B, H] ([B, T, D, H]) and the last states.
        """
        if self.layout:
            x = x.transpose(0, 1)
            initial = [None if s is None else s.transpose(0, 1) for s in initial]
        lens = None if sequence_lens is None else sequence_lens.to(torch.int64)
        outputs, finals = [], []
        for index, backward in enumerate(self.backward):
            zero = x.new_zeros(x.shape[1], r.shape[-1])
            y, last = through_time(
                x, w[index], r[index], None if b is None else b[index],
                tuple(zero if s is None else s[index] for s in initial), lens,
                Way(partial(cell, index), early, backward),
            )  # fmt: skip
            outputs.append(y)
            finals.append(last)
        y = torch.stack(outputs, 1)
        last_states = [torch.stack(group) for group in zip(*finals, strict=True)]
        if self.layout:
            y = y.permute(2, 0, 1, 3)
            last_states = [s.transpose(0, 1) for s in last_states]
        return (y, *last_states)


@op("RNN", 1, 7, 14, 22, prunable=("w", "r"), bias="b")
def rnn(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    sequence_lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    **attributes: Any,
) -> tuple[Tensor, ...]:
    """H = f(W x + R h + b): all hidden states, and the last.

    x: [T, B, I].  w: [D, H, I].  r: [D, H, H].  b: [D, 2 H].  attributes: those of `Layer`.
    Source: ONNX operators, RNN 1-22.
    """
    layer, hidden = Layer(**attributes), r.shape[-1]
    functions = layer.functions("Tanh")

    def cell(index: int, rows: Rows, late: Tensor | None) -> Step:
        (f,), recurrent = functions[index], rows(0, hidden)

        def step(gates: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (f(layer.limit(gates + recurrent(states[0]))),)

        return step

    return layer.run(x, w, r, b, sequence_lens, [initial_h], cell, hidden)


@op("GRU", 1, 3, 7, 14, 22, prunable=("w", "r"), bias="b")
def gru(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    sequence_lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    *,
    linear_before_reset: int = 0,
    **attributes: Any,
) -> tuple[Tensor, ...]:
    """Gated recurrent unit: all hidden states, and the last.

    x: [T, B, I].  w: [D, 3 H, I] (update, reset, hidden).  r: [D, 3 H, H].  b: [D, 6 H].
    attributes: those of `Layer`.  Source: ONNX operators, GRU 1-22.
    """
    layer, hidden = Layer(**attributes), r.shape[-1]
    functions = layer.functions("Sigmoid", "Tanh")
    split, whole = 2 * hidden, 3 * hidden

    def cell(index: int, rows: Rows, late: Tensor | None) -> Step:
        f, g = functions[index]

        of_gates, of_hidden = rows(0, split), rows(split, whole)

        def step(gates: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            h = states[0]
            both = f(layer.limit(gates[:, :split] + of_gates(h)))
            update, reset = both[:, :hidden], both[:, hidden:]
            if linear_before_reset:
                inner = of_hidden(h)
                inner = reset * (inner if late is None else inner + late)
            else:
                inner = of_hidden(reset * h)
            new = g(layer.limit(gates[:, split:] + inner))
            return ((1 - update) * new + update * h,)

        return step

    early = split if linear_before_reset else whole
    return layer.run(x, w, r, b, sequence_lens, [initial_h], cell, early)


@op("LSTM", 1, 7, 14, 22, prunable=("w", "r"), bias="b")
def lstm(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    sequence_lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    initial_c: Tensor | None = None,
    p: Tensor | None = None,
    *,
    input_forget: int = 0,
    **attributes: Any,
) -> tuple[Tensor, ...]:
    """Long short-term memory: all hidden states, the last, and the last cell state.

    x: [T, B, I].  w: [D, 4 H, I] (input, output, forget, cell).  r: [D, 4 H, H].  b: [D, 8 H].
    p: [D, 3 H], peepholes (input, output, forget).  attributes: those of `Layer`.
    Source: ONNX operators, LSTM 1-22.
    """
    return long_short(
        x, w, r, b, sequence_lens, (initial_h, initial_c), p, input_forget, Layer(**attributes)
    )


def long_short(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None,
    sequence_lens: Tensor | None,
    initial: Sequence[Tensor | None],
    p: Tensor | None,
    input_forget: int,
    layer: Layer,
    seen: Activation = torch.Tensor.contiguous,
) -> tuple[Tensor, ...]:
    """The LSTM, whose recurrent product takes `seen(h)` of the hidden state [B, H]."""
    hidden = r.shape[-1]
    functions = layer.functions("Sigmoid", "Tanh", "Tanh")

    def cell(index: int, rows: Rows, late: Tensor | None) -> Step:
        f, g, h_of = functions[index]
        peep = None if p is None else p[index].reshape(3, hidden)

        recurrent = rows(0, 4 * hidden)

        def step(gates: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            h, c = states
            i, o, forget, new = (gates + recurrent(seen(h))).chunk(4, -1)
            if peep is not None:
                i, forget = i + peep[0] * c, forget + peep[2] * c
            i = f(layer.limit(i))
            forget = 1 - i if input_forget else f(layer.limit(forget))
            c = forget * c + i * g(layer.limit(new))
            o = o if peep is None else o + peep[1] * c
            return f(layer.limit(o)) * h_of(c), c

        return step

    return layer.run(x, w, r, b, sequence_lens, initial, cell, 4 * hidden)
