"""Reconstruction of pruned layers: what stays of each is fitted to what the layer gave before.

Layer after layer, from the input to the output, the kept entries of a weight (and its bias) become
those that bring the layer's results, on inputs that come from the pruned layers before it, nearest
to what the original gave on the same rows: a least-squares fit for each output, held near the
weights there were.  No loss and no labels are needed, and some hundred rows do; a layer that they
do not suffice for, as places show that it was not fitted on, stays as it is.

Source: He, Zhang, Sun, "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017
(equation 5, the fit to the original's maps on the pruned net's inputs).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dns_onnx.attach import TrainingGraph
from dns_onnx.least_squares import best_fit
from dns_onnx.masks import Masked
from dns_onnx.products import Product, product

PLACES = 8192  # of a layer's results that it is fitted on, at most
STAGES = 16  # at most, where rows go in piece by piece: each sees what those before it mended
ROWS, SINGLE_ROWS = 512, 64  # that are enough; the latter where they go in one by one
WORK = 4 * 10**11  # multiplications that a pass of all rows may take
MEMORY = 1 << 26  # numbers that one of its results may hold

Seen = Callable[["_Call"], Tensor | None]


class _Enough(Exception):
    """All that was looked for has been seen."""


@dataclass(frozen=True)
class _Call:
    """A product with a weight under surgery.

    weight: as the call has it, which may be a view of what the holder gave.  bias: whose value is
    added, where it may be changed, too.
    """

    holder: Masked
    weight: Tensor
    bias: Masked | None
    product: Product
    result: Tensor
    again: Callable[[Tensor, Tensor | None], Tensor]

    @property
    def key(self) -> tuple[Any, ...]:
        """The same for the same part of the same weight."""
        weight = self.weight
        return self.holder.name, tuple(weight.shape), weight.stride(), weight.storage_offset()


class _Watch(TorchFunctionMode):
    """Sees the products with weights under surgery, wherever in a graph they are computed.

    see: called for each; what it returns takes the place of the result.
    """

    def __init__(self, weights: Mapping[str, Masked], see: Seen) -> None:
        super().__init__()
        self.weights, self.see = weights, see
        self.known: dict[int, tuple[Masked, Tensor]] = {}  # by where the values lie
        self.handles: list[Any] = []

    def __enter__(self) -> _Watch:
        self.handles = [
            holder.register_forward_hook(self._given) for holder in self.weights.values()
        ]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *found: Any) -> None:
        for handle in self.handles:
            handle.remove()
        super().__exit__(*found)  # type: ignore[no-untyped-call]

    def _given(self, holder: Any, _: Any, value: Tensor) -> None:
        self.known[value.untyped_storage().data_ptr()] = (holder, value)

    def _holder(self, value: Any) -> Masked | None:
        """Whose value this is, or a view of."""
        if not isinstance(value, Tensor) or not value.numel():
            return None
        found = self.known.get(value.untyped_storage().data_ptr())
        return found[0] if found else None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for number, value in enumerate(() if kwargs else args):
            holder = self._holder(value)
            if holder is None or holder.mask is None or value.ndim < 2:
                continue
            found = product(func, args, number, result)
            if found is not None:
                bias = self._holder(found.bias)
                again = partial(_again, func, args, value, found.bias)
                seen = self.see(_Call(holder, value, bias, found, result, again))
                result = result if seen is None else seen
        return result


def _again(
    func: Any, args: Sequence[Any], weight: Tensor, bias: Tensor | None, *new: Tensor | None
) -> Tensor:
    """A call with another weight and bias."""
    told = [new[0] if a is weight else new[1] if a is bias else a for a in args]
    result: Tensor = func(*told)
    return result


def enough_rows(model: TrainingGraph, weights: Mapping[str, Masked], two: Sequence[Tensor]) -> int:
    """How many rows to reconstruct on.  two: rows, as the model takes them."""
    work, most = 0, 1

    def count(call: _Call) -> None:
        nonlocal work, most
        work += call.product.places * call.weight.numel()
        most = max(most, call.result.numel())

    with _Watch(weights, count):
        _run(model, two)
    piece = 1 if model.feeding.goes_by_row(two) else model.feeding.piece
    run = math.ceil(2 / piece) * piece if piece else 2
    bounds = [SINGLE_ROWS if piece == 1 else ROWS, WORK * run // max(work, 1)]
    if piece is None:
        bounds.append(MEMORY * run // most)
    return max(min(bounds), 1)


@torch.no_grad()
def _run(model: TrainingGraph, inputs: Sequence[Tensor]) -> None:
    """All rows through the model; not mapped over them, which would hide the values."""
    maps, training = model.maps, model.training
    model.maps = False
    model.eval()
    try:
        model(*inputs)
    finally:
        model.maps = maps
        model.train(training)


@dataclass
class _Layer:
    """A weight, as its products take it, and what these gave in the original, call by call."""

    holder: Masked
    bias: Masked | None
    geometry: tuple[Any, ...]  # size, strides and offset of the view
    results: list[Tensor] = field(default_factory=list)

    def view(self, of: Tensor) -> Tensor:
        """The part of the holder's weight, or of its mask, that the products take."""
        return torch.as_strided(of, *self.geometry)


class Reconstruction:
    """The original's results on some rows, to fit pruned layers to.

    model: with the original's weights, nothing cut.  weights: what may be changed, by name.
    inputs: the rows, as the model takes them.  A weight that is used several times for a row is
    fitted on what it met in the original.
    """

    def __init__(
        self, model: TrainingGraph, weights: Mapping[str, Masked], inputs: Sequence[Tensor]
    ) -> None:
        self.model, self.weights, self.inputs = model, weights, list(inputs)
        rows = max(map(len, self.inputs))
        piece = 1 if model.feeding.goes_by_row(self.inputs) else model.feeding.piece or rows
        self.pieces = math.ceil(rows / piece)
        self.share = max(PLACES // self.pieces, 1)  # of a call's places
        self.layers: dict[Any, _Layer] = {}
        with _Watch(weights, self._note):
            _run(model, self.inputs)
        self.order = [k for k, x in self.layers.items() if len(x.results) <= self.pieces]
        # fitted to its later uses on what a broken first one gives, a weight would stray
        reused = [k for k in self.layers if k not in self.order]
        self.met = self._inputs_of(reused) if reused else {}

    @torch.no_grad()
    def __call__(self) -> None:
        """Fit what stays now, by the masks as they are; what is cut keeps its value."""
        for key, (found, x) in self.met.items():
            _fit(self.layers[key], found, x)
        if self.pieces == 1:
            with _Watch(self.weights, self._fit_at_once):
                _run(self.model, self.inputs)
            return
        width = math.ceil(len(self.order) / STAGES)
        for first in range(0, len(self.order), width or 1):
            stage = self.order[first : first + width]
            for key, (found, x) in self._inputs_of(stage).items():
                _fit(self.layers[key], found, x)

    def _note(self, call: _Call) -> None:
        layer = self.layers.setdefault(call.key, _Layer(call.holder, call.bias, call.key[1:]))
        at = self._sample(call, len(layer.results))
        layer.results.append(call.product.results(call.result, at).float())

    def _fit_at_once(self, call: _Call) -> Tensor | None:
        """Fit the layer of this call; what it gives then."""
        if call.key not in self.order:
            return None  # used again, or on a branch that the original did not take
        layer = self.layers[call.key]
        _fit(layer, call.product, call.product.inputs(self._sample(call, 0)).float())
        bias = call.product.bias if call.bias is None else call.bias.effective()
        return call.again(layer.view(call.holder.effective()), bias)

    def _inputs_of(self, stage: Sequence[Any]) -> dict[Any, tuple[Product, Tensor]]:
        """A product of each layer, and what its weight meets in all of them."""
        met: dict[Any, list[Tensor]] = {key: [] for key in stage}
        products: dict[Any, Product] = {}
        left = sum(len(self.layers[key].results) for key in stage)

        def take(call: _Call) -> None:
            nonlocal left
            if call.key in met:
                at = self._sample(call, len(met[call.key]))
                met[call.key].append(call.product.inputs(at).float())
                products[call.key] = call.product
                left -= 1
                if not left:
                    raise _Enough

        with contextlib.suppress(_Enough), _Watch(self.weights, take):
            _run(self.model, self.inputs)
        whole = [key for key in stage if len(met[key]) == len(self.layers[key].results)]
        return {key: (products[key], torch.cat(met[key], 1)) for key in whole}

    def _sample(self, call: _Call, number: int) -> Tensor:
        """The same places of the same call, each time."""
        places, device = call.product.places, call.result.device
        if places <= self.share:
            return torch.arange(places, device=device)
        draws = torch.Generator().manual_seed(number)
        return torch.randperm(places, generator=draws)[: self.share].sort().values.to(device)


def _fit(layer: _Layer, found: Product, x: Tensor) -> None:
    """Fit the kept entries of one layer.  x: [groups, places, inputs]."""
    holder, bias, y = layer.holder, layer.bias, torch.cat(layer.results, 1)
    if holder.mask is None:
        return
    kept = found.matrix(layer.view(holder.mask))
    now = found.matrix(layer.view(holder.weight.detach())).float() * kept
    groups, outputs, width = now.shape
    if bias is not None:
        one = torch.ones(groups, outputs, 1, dtype=torch.bool, device=now.device)
        stays = one if bias.mask is None else bias.mask.reshape(one.shape)
        x = torch.cat([x, torch.ones_like(x[..., :1])], -1)
        now = torch.cat([now, bias.effective().reshape(one.shape).float()], -1)
        kept = torch.cat([kept, stays], -1)
    elif found.bias is not None:
        y = y - found.bias.detach().float().expand(groups * outputs).reshape(groups, 1, outputs)
    solved = best_fit(x, y, now, kept)
    if solved is None:
        return
    weight = holder.weight.detach()
    part = layer.view(weight)
    fitted = found.tensor(solved[..., :width]).reshape(part.shape).to(part.dtype)
    part.copy_(torch.where(layer.view(holder.mask), fitted, part))
    if bias is not None:
        fitted = solved[..., width].reshape(bias.weight.shape).to(bias.weight.dtype)
        old = bias.weight.detach()
        bias.weight.copy_(fitted if bias.mask is None else torch.where(bias.mask, fitted, old))
