"""Sums of weights times what they meet, fitted to what they gave."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dns_onnx.fit.least_squares import best_fit
from dns_onnx.masks import Masked


def geometry(value: Tensor) -> tuple[Any, ...]:
    """Size, strides and offset of a view."""
    return tuple(value.shape), value.stride(), value.storage_offset()


def flat(values: Tensor) -> Tensor:
    """All entries, in the order in which they lie in memory; a view."""
    return torch.as_strided(values, (values.numel(),), (1,))


@dataclass(frozen=True)
class Origin:
    """Where values come from: a holder.

    index: where each entry lies in the holder's weight, in the order in which both lie in memory;
    None where they lie in the same place.
    """

    holder: Masked
    index: Tensor | None = None

    def of(self, values: Tensor, lying: tuple[Any, ...]) -> Tensor:
        """The entries of a weight, or of its mask, that a value with this `geometry` has."""
        if self.index is None:
            return torch.as_strided(values, *lying)
        return flat(values)[torch.as_strided(self.index, *lying)]


Owner = Callable[[Any], Origin | None]  # of a value, or of what that is a view of


@dataclass(frozen=True)
class Term:
    """A matrix of weights in a sum.

    value: as a call has it, which may be a view of what the origin gave.  origin: None where it
    cannot be changed.  matrix, tensor: the value as [groups, outputs, inputs], and back.
    """

    value: Tensor
    origin: Origin | None
    matrix: Callable[[Tensor], Tensor]
    tensor: Callable[[Tensor], Tensor]

    @property
    def key(self) -> tuple[Any, ...]:
        """The same for the same part of the same weight."""
        return (None if self.origin is None else self.origin.holder.name, *geometry(self.value))

    def now(self) -> Tensor:
        """The value that the model holds now."""
        if self.origin is None:
            return self.value.detach()
        return self.origin.of(self.origin.holder.effective(), geometry(self.value))

    def kept(self) -> Tensor:
        """Where the value may be changed."""
        mask = None if self.origin is None else self.origin.holder.mask
        if self.origin is None or mask is None:
            return torch.ones_like(self.value, dtype=torch.bool)
        return self.origin.of(mask, geometry(self.value))

    def put(self, found: Tensor) -> None:
        """Make the value this, but for what is cut.  found: [groups, outputs, inputs]."""
        if self.origin is None:
            return
        weight = self.origin.holder.weight.detach()
        before = self.origin.of(weight, geometry(self.value))
        told = self.tensor(found).reshape(before.shape).to(before.dtype)
        after = torch.where(self.kept(), told, before)
        if self.origin.index is None:
            before.copy_(after)
        else:
            flat(weight)[torch.as_strided(self.origin.index, *geometry(self.value))] = after


class Layer(ABC):
    """Weights under surgery, and what they gave in the original, call by call."""

    @property
    @abstractmethod
    def calls(self) -> int:
        """How many there were."""

    @abstractmethod
    def note(self, call: Any, most: int) -> None:
        """Remember what the original's next call gives, at no more than so many places."""

    @abstractmethod
    def met(self, call: Any, number: int) -> Any:
        """What to keep of the call of this number, to be fitted on what it meets."""

    @abstractmethod
    def fit(self, met: Sequence[Any]) -> None:
        """Fit the kept entries, on what all the calls meet."""


class Call(ABC):
    """Something computed with weights under surgery.

    key: the same for the same part of the same weights.  work: multiplications.  size: numbers in
    the largest result.
    """

    key: tuple[Any, ...]
    work: int
    size: int

    @abstractmethod
    def layer(self) -> Layer:
        """Where what it gives is remembered."""

    @abstractmethod
    def again(self) -> Any:
        """What it gives with the weights that the model holds now."""


def fit_sum(terms: Sequence[Term], inputs: Sequence[Tensor], wanted: Tensor) -> None:
    """Bring a sum of terms nearest to what is wanted; it stays where no fit helps.

    inputs: what each meets, [groups, places, inputs].  wanted: [groups, places, outputs].
    """
    now = [term.matrix(term.now()).float() for term in terms]
    free = [i for i, term in enumerate(terms) if term.origin is not None]
    for i in set(range(len(terms))) - set(free):
        wanted = wanted - inputs[i] @ now[i].transpose(1, 2)
    kept = torch.cat([terms[i].matrix(terms[i].kept()) for i in free], -1)
    before = torch.cat([now[i] for i in free], -1)
    solved = best_fit(torch.cat([inputs[i] for i in free], -1), wanted, before, kept)
    if solved is not None:
        for i, found in zip(free, solved.split([now[i].shape[-1] for i in free], -1), strict=True):
            terms[i].put(found)


def sample(places: Tensor, most: int, number: int) -> Tensor:
    """Some of these places, in order; the same for the same number."""
    if len(places) <= most:
        return places
    draws = torch.Generator().manual_seed(number)
    return places[
        torch.randperm(len(places), generator=draws)[:most].sort().values.to(places.device)
    ]
