"""Recurrent layers: what the weights of their gates meet, and what they give together.

W x + R h + b of all gates and time steps is one product, of [W, R, b] and [x, h, 1]; but for the
new state of a GRU with linear_before_reset, where the two halves are apart.  It is fitted to what
it was in the original, on the states that the original went through: those that a pruned layer goes
through by itself depend on the fit.  They say afterwards whether it brought them nearer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dns_onnx.converters.ops.rnn import Way, through_time
from dns_onnx.fit.terms import Call, Layer, Origin, Owner, Term, fit_sum, sample

ROUNDS = 3
X, ONE, STATES = 0, 1, 2  # what is met: the layer's input, one, what each part of R multiplies

Rows = tuple[int, int]  # of R: the first, and that after the last
Result = tuple[Tensor, tuple[Tensor, ...]]  # all hidden states, and the last states


class RecurrenceCall(Call):
    """One direction of a recurrent layer, as `through_time` has it.

    terms: W, R and, where there is one, b.
    """

    def __init__(
        self, x: Tensor, states: tuple[Tensor, ...], lens: Tensor | None, way: Way,
        terms: Sequence[Term],
    ) -> None:  # fmt: skip
        self.x, self.states, self.lens, self.way, self.terms = x, states, lens, way, terms
        w, r, steps = terms[0].value, terms[1].value, x.shape[0] * x.shape[1]
        self.key = (*terms[0].key, *terms[1].key)
        self.work, self.size = steps * (w.numel() + r.numel()), steps * len(w)

    def layer(self) -> Layer:
        return RecurrentLayer(self.terms, self.way.early)

    def again(self) -> Result:
        return self.run()[0]

    def run(self) -> tuple[Result, dict[Rows, Tensor]]:
        """What it gives with the weights of now, and what rows of R meet on the way, [T, B, H]."""
        met: dict[Rows, list[Tensor]] = {}
        w, r, *b = (term.now() for term in self.terms)
        result = through_time(
            self.x, w, r, b[0] if b else None, self.states, self.lens, self.way,
            lambda first, last, h: met.setdefault((first, last), []).append(h),
        )  # fmt: skip
        turn = -1 if self.way.backward else 1
        return result, {rows: torch.stack(states[::turn]) for rows, states in met.items()}

    def places(self) -> Tensor:
        """The time steps that count, of [T, B] in a row; one sequence after the other."""
        steps, rows = self.x.shape[:2]
        index = torch.arange(steps * rows, device=self.x.device).view(steps, rows)
        time = torch.arange(steps, device=self.x.device)[:, None].expand(steps, rows)
        return index.mT[(time < (steps if self.lens is None else self.lens)).mT]


def recurrence_call(args: Sequence[Any], owner: Owner) -> RecurrenceCall | None:
    """This call of `through_time`, where its weights are under surgery.  owner: of a value."""
    x, w, r, b, states, lens, way = args[:7]
    origins = [owner(w), owner(r)]
    if all(s is None or s.holder.mask is None for s in origins):
        return None
    terms = [_rows(v, origin) for v, origin in zip((w, r), origins, strict=True)]
    if b is not None:
        terms.append(_bias(b, owner(b)))
    return RecurrenceCall(x, states, lens, way, terms)


@dataclass(frozen=True)
class _Sum:
    """Gates whose terms are added before anything else.

    terms: rows of W, R and b.  meets: by number, what each does.
    """

    terms: list[Term]
    meets: list[int]

    def of(self, met: Sequence[Tensor]) -> list[Tensor]:
        """What the terms meet, of all that is met."""
        return [met[number] for number in self.meets]


class RecurrentLayer(Layer):
    """One direction in the original: at some places of each call, its gates, states and results.

    terms: W, R and, where there is one, b.  early: see `Way`.
    """

    def __init__(self, terms: Sequence[Term], early: int) -> None:
        self.terms, self.early = terms, early
        self.sums: list[_Sum] = []
        self.places: list[Tensor] = []
        self.states: list[list[Tensor]] = []  # what each part of R met
        self.gates: list[list[Tensor]] = []
        self.results: list[Tensor] = []

    @property
    def calls(self) -> int:
        return len(self.results)

    def note(self, call: RecurrenceCall, most: int) -> None:
        self.places.append(sample(call.places(), most, self.calls))
        result, parts = call.run()
        if not self.sums:
            self.sums = [s for i, rows in enumerate(parts) for s in self._sums(STATES + i, *rows)]
        states = [self._at(met, self.calls) for met in parts.values()]
        x = self._at(call.x, self.calls)
        self.states.append(states)
        self.gates.append([_total(s, _met(x, states)) for s in self.sums])
        self.results.append(self._read(result, self.calls))

    def met(self, call: RecurrenceCall, number: int) -> RecurrenceCall:
        """The call itself, as what R meets depends on what it gives."""
        return call

    def fit(self, met: Sequence[RecurrenceCall]) -> None:
        x = torch.cat([self._at(call.x, number) for number, call in enumerate(met)], 1)
        inputs, gates = _met(x, _joined(self.states)), _joined(self.gates)
        before, astray = [term.now() for term in self.terms], self._astray(met)
        for s, wanted in zip(self.sums, gates, strict=True):
            fit_sum(s.terms, s.of(inputs), wanted)
        if not self._astray(met) < astray:
            for term, value in zip(self.terms, before, strict=True):
                term.put(term.matrix(value))

    def _sums(self, states: int, first: int, last: int) -> list[_Sum]:
        """What these rows of R, which meet those states, are part of."""
        w, r, *b = self.terms
        size = len(w.value)
        shift = [_bias(t.value[first:last], t.origin) for t in b]
        late = [_bias(t.value[size + first : size + last], t.origin) for t in b]
        of_x, of_state = (_rows(t.value[first:last], t.origin) for t in (w, r))
        if last <= self.early:
            return [_Sum([of_x, of_state, *shift], [X, states, ONE][: 2 + len(b)])]
        return [
            _Sum([of_x, *shift], [X, ONE][: 1 + len(b)]),
            _Sum([of_state, *late], [states, ONE][: 1 + len(b)]),
        ]

    def _astray(self, calls: Sequence[RecurrenceCall]) -> float:
        """How far the layer by itself goes from the original's results, squared."""
        found = (self._read(call.again(), number) for number, call in enumerate(calls))
        pairs = zip(found, self.results, strict=True)
        return float(sum((now - then).square().sum() for now, then in pairs))

    def _at(self, values: Tensor, number: int) -> Tensor:
        """Values of all time steps, [T, B, ...], at the places of a call: [1, places, ...]."""
        return values.flatten(0, 1)[self.places[number]].float()[None]

    def _read(self, result: Result, number: int) -> Tensor:
        """The hidden states at the places of a call, and the last states."""
        hidden, last = result
        return torch.cat([hidden.flatten(0, 1)[self.places[number]], *last]).float()


def _rows(value: Tensor, origin: Origin | None) -> Term:
    """Rows of W or R."""
    return Term(value, origin, lambda v: v[None], lambda m: m[0])


def _bias(value: Tensor, origin: Origin | None) -> Term:
    """Entries of b."""
    return Term(value, origin, lambda v: v[None, :, None], lambda m: m[0, :, 0])


def _met(x: Tensor, states: Sequence[Tensor]) -> list[Tensor]:
    """What all terms meet, by number."""
    return [x, torch.ones_like(x[..., :1]), *states]


def _total(total: _Sum, met: Sequence[Tensor]) -> Tensor:
    """What the gates are now, [1, places, gates]."""
    inputs = total.of(met)
    given = [x @ t.matrix(t.now()).float().mT for t, x in zip(total.terms, inputs, strict=True)]
    return torch.stack(given).sum(0)


def _joined(calls: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Values of calls, one after the other."""
    return [torch.cat(values, 1) for values in zip(*calls, strict=True)]
