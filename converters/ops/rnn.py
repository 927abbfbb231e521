"""Recurrent layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

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
        b: Tensor | None,
        sequence_lens: Tensor | None,
        initial: Sequence[Tensor | None],
        hidden: int,
        cell: Callable[[int], Step],
    ) -> tuple[Tensor, ...]:
        """All directions of the layer.

        x: [T, B, I], or [B, T, I] if layout = 1.  w: [D, gates * H, I].  b: [D, gates * H], what
        the input's part of the gates is shifted by.  initial: [D, B, H] each (layout 1:
        [B, D, H]).  Returns y [T, D, B, H] ([B, T, D, H]) and the last states.
        """
        if self.layout:
            x = x.transpose(0, 1)
            initial = [None if s is None else s.transpose(0, 1) for s in initial]
        lens = None if sequence_lens is None else sequence_lens.to(torch.int64)
        outputs, finals = [], []
        for index, backward in enumerate(self.backward):
            gates = x @ w[index].t()
            if b is not None:
                gates = gates + b[index]
            zero = x.new_zeros(x.shape[1], hidden)
            states = tuple(zero if s is None else s[index] for s in initial)
            y, last = _scan(gates, states, cell(index), lens, backward)
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

    def cell(index: int) -> Step:
        (f,), recurrent = functions[index], r[index].t()

        def step(gates: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (f(layer.limit(gates + states[0] @ recurrent)),)

        return step

    shift = None if b is None else b[:, :hidden] + b[:, hidden:]
    return layer.run(x, w, shift, sequence_lens, [initial_h], hidden, cell)


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
    split = 2 * hidden
    own = None if b is None else b[:, 3 * hidden :]

    def cell(index: int) -> Step:
        f, g = functions[index]
        gates_r, hidden_r = r[index, :split].t(), r[index, split:].t()
        late = None if own is None else own[index, split:]

        def step(gates: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            h = states[0]
            both = f(layer.limit(gates[:, :split] + h @ gates_r))
            update, reset = both[:, :hidden], both[:, hidden:]
            if linear_before_reset:
                inner = h @ hidden_r
                inner = reset * (inner if late is None else inner + late)
            else:
                inner = (reset * h) @ hidden_r
                inner = inner if late is None else inner + late
            new = g(layer.limit(gates[:, split:] + inner))
            return ((1 - update) * new + update * h,)

        return step

    shift = None
    if b is not None and own is not None:
        gate_shift = b[:, :split] + own[:, :split]
        shift = torch.cat([gate_shift, b[:, split : 3 * hidden]], 1)
    return layer.run(x, w, shift, sequence_lens, [initial_h], hidden, cell)


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

    def cell(index: int) -> Step:
        f, g, h_of = functions[index]
        recurrent = r[index].t()
        peep = None if p is None else p[index].reshape(3, hidden)

        def step(gates: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            h, c = states
            i, o, forget, new = (gates + seen(h) @ recurrent).chunk(4, -1)
            if peep is not None:
                i, forget = i + peep[0] * c, forget + peep[2] * c
            i = f(layer.limit(i))
            forget = 1 - i if input_forget else f(layer.limit(forget))
            c = forget * c + i * g(layer.limit(new))
            o = o if peep is None else o + peep[1] * c
            return f(layer.limit(o)) * h_of(c), c

        return step

    shift = None if b is None else b[:, : 4 * hidden] + b[:, 4 * hidden :]
    return layer.run(x, w, shift, sequence_lens, initial, hidden, cell)
