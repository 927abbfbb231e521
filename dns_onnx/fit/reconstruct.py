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
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dns_onnx.attach import TrainingGraph
from dns_onnx.fit.terms import Call, Layer
from dns_onnx.fit.watch import Watch
from dns_onnx.masks import Masked

PLACES = 8192  # of a layer's results that it is fitted on, at most
STAGES = 16  # at most, where rows go in piece by piece: each sees what those before it mended
ROWS, SINGLE_ROWS = 512, 64  # that are enough; the latter where they go in one by one
WORK = 4 * 10**11  # multiplications that a pass of all rows may take
MEMORY = 1 << 26  # numbers that one of its results may hold


class _Enough(Exception):
    """All that was looked for has been seen."""


def enough_rows(model: TrainingGraph, weights: Mapping[str, Masked], two: Sequence[Tensor]) -> int:
    """How many rows to reconstruct on.  two: rows, as the model takes them."""
    work, most = 0, 1

    def count(call: Call) -> None:
        nonlocal work, most
        work += call.work
        most = max(most, call.size)

    with Watch(weights, count):
        _run(model, two)
    piece = 1 if model.feeding.goes_by_row(two) else model.feeding.piece
    run = math.ceil(2 / piece) * piece if piece else 2
    bounds = [SINGLE_ROWS if piece == 1 else ROWS, WORK * run // max(work, 1)]
    if piece is None:
        bounds.append(MEMORY * run // most)
    return max(min(bounds), 1)


@torch.no_grad()
def _run(model: TrainingGraph, inputs: Sequence[Tensor]) -> None:
    """All rows through the model; neither mapped over them nor compiled: that hides the values."""
    maps, training, compiled = model.maps, model.training, model.graph._compiled_call_impl
    model.maps, model.graph._compiled_call_impl = False, None
    model.eval()
    try:
        model(*inputs)
    finally:
        model.maps, model.graph._compiled_call_impl = maps, compiled
        model.train(training)


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
        self.layers: dict[Any, Layer] = {}
        with Watch(weights, self._note):
            _run(model, self.inputs)
        self.order = [k for k, x in self.layers.items() if x.calls <= self.pieces]
        # fitted to its later uses on what a broken first one gives, a weight would stray
        reused = [k for k in self.layers if k not in self.order]
        self.met = self._met_by(reused) if reused else {}

    @torch.no_grad()
    def __call__(self) -> None:
        """Fit what stays now, by the masks as they are; what is cut keeps its value."""
        for key, found in self.met.items():
            self.layers[key].fit(found)
        if self.pieces == 1:
            with Watch(self.weights, self._fit_at_once):
                _run(self.model, self.inputs)
            return
        width = math.ceil(len(self.order) / STAGES)
        for first in range(0, len(self.order), width or 1):
            stage = self.order[first : first + width]
            for key, found in self._met_by(stage).items():
                self.layers[key].fit(found)

    def _note(self, call: Call) -> None:
        if call.key not in self.layers:
            self.layers[call.key] = call.layer()
        self.layers[call.key].note(call, self.share)

    def _fit_at_once(self, call: Call) -> Any:
        """Fit the layer of this call; what it gives then."""
        if call.key not in self.order:
            return None  # used again, or on a branch that the original did not take
        layer = self.layers[call.key]
        layer.fit([layer.met(call, 0)])
        return call.again()

    def _met_by(self, stage: Sequence[Any]) -> dict[Any, list[Any]]:
        """What the weights of each layer meet in all of their calls."""
        met: dict[Any, list[Any]] = {key: [] for key in stage}
        left = sum(self.layers[key].calls for key in stage)

        def take(call: Call) -> None:
            nonlocal left
            if call.key in met:
                found = met[call.key]
                found.append(self.layers[call.key].met(call, len(found)))
                left -= 1
                if not left:
                    raise _Enough

        with contextlib.suppress(_Enough), Watch(self.weights, take):
            _run(self.model, self.inputs)
        return {k: found for k, found in met.items() if len(found) == self.layers[k].calls}
