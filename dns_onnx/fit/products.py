"""Layers that multiply by a weight: what it meets is a matrix, with a row for each place.

Matrix products and convolutions, transposed ones too, as torch is called.  With the weight as
[groups, outputs, inputs] and what it meets as [groups, places, inputs], the layer's results are
their product, [groups, places, outputs].  A map has many places; some say enough.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dns_onnx.fit.terms import Call, Layer, Origin, Owner, Term, fit_sum, sample

CONV: dict[Any, int] = {F.conv1d: 1, F.conv2d: 2, F.conv3d: 3}
TRANSPOSED: dict[Any, int] = {F.conv_transpose1d: 1, F.conv_transpose2d: 2, F.conv_transpose3d: 3}
MATMUL = (torch.matmul, torch.mm, torch.Tensor.matmul)

Source = Callable[[Tensor, int], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Product:
    """One call that multiplies inputs by a weight.

    places: how many there are in its result.  inputs(at): [groups, places, inputs] at some of them.
    results(y, at): a result of such a call there, [groups, places, outputs].  matrix(w), tensor(m):
    the weight as [groups, outputs, inputs], and back.  bias: what is added, one number an output.
    """

    places: int
    inputs: Callable[[Tensor], Tensor]
    results: Callable[[Tensor, Tensor], Tensor]
    matrix: Callable[[Tensor], Tensor]
    tensor: Callable[[Tensor], Tensor]
    bias: Tensor | None = None


def product(func: Any, args: Sequence[Any], at: int, result: Tensor) -> Product | None:
    """The call whose argument number `at` is the weight; None where it is no such product."""
    weight = args[at]
    if func is F.linear and at == 1 and weight.ndim == 2:
        return _right(args[0], result, True, args[2] if len(args) > 2 else None)
    if func is torch.addmm and at == 2 and args[0].ndim <= 1:
        return _right(args[1], result, False, args[0])
    if func in MATMUL and weight.ndim == 2:
        return _right(args[0], result, False) if at == 1 else _left(args[1], result)
    if func in CONV and at == 1:
        return _conv(args, result)
    if func in TRANSPOSED and at == 1:
        return _transposed(args, result)
    return None


# ---------------------------------------------------------------------- matrix products


def _right(x: Tensor, y: Tensor, by_rows: bool, bias: Tensor | None = None) -> Product:
    """Of x [..., inputs] times the weight.  by_rows: that is [outputs, inputs], else turned."""
    rows = x.reshape(-1, x.shape[-1])
    return Product(
        len(rows),
        lambda at: rows[at][None],
        lambda y, at: y.reshape(-1, y.shape[-1])[at][None],
        lambda w: (w if by_rows else w.T)[None],
        lambda m: m[0] if by_rows else m[0].T,
        bias,
    )


def _left(x: Tensor, y: Tensor) -> Product:
    """The weight [outputs, inputs] times x [..., inputs, places] or [inputs]."""
    single = x.ndim == 1

    def columns(value: Tensor) -> Tensor:
        return value[None] if single else value.transpose(-1, -2).reshape(-1, value.shape[-2])

    rows = columns(x)
    return Product(
        len(rows),
        lambda at: rows[at][None],
        lambda y, at: columns(y)[at][None],
        lambda w: w[None],
        lambda m: m[0],
    )


# ---------------------------------------------------------------------- convolutions


def _conv(args: Sequence[Any], y: Tensor) -> Product | None:
    """Of x [rows, channels, ...] convolved with [outputs, inputs of a group, ...]."""
    x, weight, bias, stride, padding, dilation, groups = _filled(args, (None, 1, 0, 1, 1))
    if isinstance(padding, str):
        return None
    dims, kernel = y.ndim - 2, weight.shape[2:]
    stride, padding, dilation = (_each(v, dims) for v in (stride, padding, dilation))

    def source(place: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        tap = torch.arange(kernel[axis], device=place.device) * dilation[axis]
        index = place[:, None] * stride[axis] - padding[axis] + tap
        return index, torch.ones_like(index, dtype=torch.bool)

    return Product(
        y.shape[0] * math.prod(y.shape[2:]),
        lambda at: _patches(x, y, at, source, groups),
        lambda y, at: _values(y, at, groups),
        lambda w: w.reshape(groups, w.shape[0] // groups, -1),
        lambda m: m.reshape(weight.shape),
        bias,
    )


def _transposed(args: Sequence[Any], y: Tensor) -> Product:
    """Of x [rows, channels, ...] convolved backwards with [inputs, outputs of a group, ...]."""
    x, weight, bias, stride, padding, _, groups, dilation = _filled(args, (None, 1, 0, 0, 1, 1))
    dims, kernel = y.ndim - 2, weight.shape[2:]
    stride, padding, dilation = (_each(v, dims) for v in (stride, padding, dilation))
    ins, outs = weight.shape[0] // groups, weight.shape[1]

    def source(place: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        tap = torch.arange(kernel[axis], device=place.device) * dilation[axis]
        ahead = place[:, None] + padding[axis] - tap
        return ahead.div(stride[axis], rounding_mode="floor"), ahead % stride[axis] == 0

    def turned(value: Tensor, first: int, second: int) -> Tensor:
        return value.reshape(groups, first, second, -1).transpose(1, 2)

    return Product(
        y.shape[0] * math.prod(y.shape[2:]),
        lambda at: _patches(x, y, at, source, groups),
        lambda y, at: _values(y, at, groups),
        lambda w: turned(w, ins, outs).reshape(groups, outs, -1),
        lambda m: turned(m, outs, ins).reshape(weight.shape),
        bias,
    )


def _filled(args: Sequence[Any], defaults: Sequence[Any]) -> list[Any]:
    """x, the weight and all that may follow them."""
    return [*args, *defaults[len(args) - 2 :]]


def _each(value: Any, dims: int) -> list[int]:
    """A setting for each spatial axis."""
    found = [int(v) for v in value] if isinstance(value, (tuple, list)) else [int(value)]
    return found * dims if len(found) == 1 else found


def _spots(y: Tensor, at: Tensor) -> tuple[Tensor, ...]:
    """Row and spatial indices of the places of a map."""
    return torch.unravel_index(at, (y.shape[0], *y.shape[2:]))


def _values(y: Tensor, at: Tensor, groups: int) -> Tensor:
    found = y.movedim(1, -1)[_spots(y, at)]
    return found.reshape(len(at), groups, -1).transpose(0, 1)


def _patches(x: Tensor, y: Tensor, at: Tensor, source: Source, groups: int) -> Tensor:
    """What of x each place of y is made from; zero where that lies beside the map.

    source(places, axis): the index that each tap reads ([places, taps]), and whether there is one.
    """
    row, *spots = _spots(y, at)
    dims = len(spots)
    index, there = [row.view(-1, *[1] * dims)], torch.ones((), dtype=torch.bool, device=x.device)
    for axis, spot in enumerate(spots):
        found, holds = source(spot, axis)
        last = x.shape[2 + axis] - 1
        shape = [len(at), *[1] * axis, found.shape[1], *[1] * (dims - axis - 1)]
        there = there & (holds & (found >= 0) & (found <= last)).view(shape)
        index.append(found.clamp(0, last).view(shape))
    patches = x.movedim(1, -1)[tuple(index)] * there.unsqueeze(-1)
    return patches.movedim(-1, 1).reshape(len(at), groups, -1).transpose(0, 1)


# ---------------------------------------------------------------------- layers


class ProductCall(Call):
    """A product with a weight under surgery, and the bias that it may add.

    func, args: the call.  result: what it gave.  terms: the weight and the bias.
    """

    def __init__(
        self, func: Any, args: Sequence[Any], result: Tensor, found: Product, terms: Sequence[Term]
    ) -> None:
        self.func, self.args, self.result = func, args, result
        self.product, self.terms = found, terms
        self.key = terms[0].key
        self.work, self.size = found.places * terms[0].value.numel(), result.numel()

    def layer(self) -> Layer:
        return ProductLayer(self.terms)

    def again(self) -> Tensor:
        now = {id(term.value): term.now() for term in self.terms}
        result: Tensor = self.func(*(now.get(id(arg), arg) for arg in self.args))
        return result


class ProductLayer(Layer):
    """What a weight and a bias gave, at some places of each call."""

    def __init__(self, terms: Sequence[Term]) -> None:
        self.terms = terms
        self.places: list[Tensor] = []
        self.results: list[Tensor] = []

    @property
    def calls(self) -> int:
        return len(self.results)

    def note(self, call: ProductCall, most: int) -> None:
        places = torch.arange(call.product.places, device=call.result.device)
        self.places.append(sample(places, most, self.calls))
        self.results.append(call.product.results(call.result, self.places[-1]).float())

    def met(self, call: ProductCall, number: int) -> Tensor:
        """What the weight meets at the places of this call, [groups, places, inputs]."""
        return call.product.inputs(self.places[number]).float()

    def fit(self, met: Sequence[Tensor]) -> None:
        x = torch.cat(list(met), 1)
        inputs = [x, torch.ones_like(x[..., :1])]
        fit_sum(self.terms, inputs[: len(self.terms)], torch.cat(self.results, 1))


def product_call(func: Any, args: Sequence[Any], result: Any, owner: Owner) -> ProductCall | None:
    """This call, where it multiplies by a weight under surgery.  owner: of a value."""
    for at, value in enumerate(args):
        origin = owner(value)
        if origin is None or origin.holder.mask is None or value.ndim < 2:
            continue
        found = product(func, args, at, result)
        if found is not None:
            terms = [Term(value, origin, found.matrix, found.tensor)]
            if found.bias is not None:
                terms.append(_added(found.bias, owner(found.bias), *found.matrix(value).shape[:2]))
            return ProductCall(func, args, result, found, terms)
    return None


def _added(bias: Tensor, origin: Origin | None, groups: int, outputs: int) -> Term:
    """A bias, whose input is one; a number for all outputs stays as it is."""
    return Term(
        bias, origin if bias.numel() == groups * outputs else None,
        lambda b: b.expand(groups * outputs).reshape(groups, outputs, 1),
        lambda m: m.reshape(bias.shape),
    )  # fmt: skip
