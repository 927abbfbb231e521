"""Dynamic Network Surgery: connections are cut, and spliced back, while the network trains.

Source: Yiwen Guo, Anbang Yao, Yurong Chen, "Dynamic Network Surgery for Efficient DNNs", NIPS
2016.  The symbols are the paper's: W the dense weights, T the masks (True = kept), t the threshold
that the importance function h_k compares |W| with, a = 0.9 t and b = 1.1 t its two edges.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dns_onnx.errors import CheckpointError, TrainingError
from dns_onnx.granularity import AnyGrain, Channels, Elements, NOfM, Thresholded
from dns_onnx.masks import SCRATCH, Masked, chunks, local, on_cpu

LOWER_EDGE = 0.9  # a = 0.9 t: a kept entry at or below it is cut
UPPER_EDGE = 1.1  # b = 1.1 t: a cut entry above it is spliced back
ELEMENTS = Elements()


def update_probability(gamma: float, power: float, iteration: int) -> float:
    """Chance that masks are updated at this iteration.  Source: the paper, section 3.3."""
    return math.pow(1.0 + gamma * iteration, -power)


@dataclass(frozen=True)
class Schedule:
    """When and how hard one layer is operated on.

    c_rate: t = max(mu + c_rate * std, 0).
    gamma, power: the masks are updated at iteration i with probability (1 + gamma * i) ** -power.
    iter_stop: from this iteration on the masks are frozen; 0 or less disables surgery.
    ramp_from, ramp_iters: c_rate rises linearly to its value at iteration `ramp_iters`, from
        `(1 - ramp_from) * |c_rate|` below it (0 iterations: the constant c_rate of the paper).
    """

    c_rate: float
    gamma: float = 1e-4
    power: float = 1.0
    iter_stop: int = 0
    ramp_from: float = 1.0
    ramp_iters: int = 0

    def probability(self, iteration: int) -> float:
        """Chance that the masks are updated at this iteration."""
        return update_probability(self.gamma, self.power, iteration)

    def c_rate_at(self, iteration: int) -> float:
        """c_rate, ramped."""
        if iteration >= self.ramp_iters:
            return self.c_rate
        # below the goal at first, whatever its sign: a negative c_rate is a low threshold too
        below = (1.0 - self.ramp_from) * abs(self.c_rate)
        return self.c_rate - below * (1.0 - iteration / self.ramp_iters)


def mean_and_std(kept: Sequence[Tensor]) -> tuple[float, float]:
    """Mean and standard deviation of |w| over the nonzero entries of all the tensors together.

    kept: the layer's `weight * mask` and `bias * mask`, any shapes.
    Returns (0, 0) where every entry is zero.
    Source: the authors' Caffe code, compress_inner_product_layer (std = sqrt(E[w^2] - mu^2)).
    """
    count = sum(int(torch.count_nonzero(w)) for w in kept)
    if count == 0:
        return 0.0, 0.0
    mu = sum(float(w.abs().sum(dtype=torch.float64)) for w in kept) / count
    square = sum(float(w.double().square().sum()) for w in kept) / count
    return mu, math.sqrt(max(square - mu * mu, 0.0))


def prune_and_splice(weight: Tensor, mask: Tensor, a: float | Tensor, b: float | Tensor) -> None:
    """Update `mask` in place: kept entries with |w| <= a are cut, cut ones with |w| > b come back.

    weight: any shape, not changed.  mask: bool, same shape.  a <= b: numbers, or scalars on the
    weight's device, which is then not waited for.
    Source: the paper, equation 3 (with the authors' code at the edges).
    """
    weight, mask = local(weight), local(mask)
    # NumPy compares and combines on the CPU more than twice as fast as torch does
    if on_cpu(weight, mask):
        low, high = float(a), float(b)
        for w, m in chunks(weight, mask):
            _cut_and_splice(w.numpy(), m.numpy(), low, high)
        torch.autograd.graph.increment_version(mask)
        return
    magnitude = weight.abs()
    # as a <= b, "above b, or kept and above a" is the whole rule
    mask &= magnitude > a
    mask |= magnitude > b


def _cut_and_splice(w: NDArray[np.float32], m: NDArray[np.bool_], a: float, b: float) -> None:
    """The rule on a chunk: [N] each."""
    magnitude, above = SCRATCH.floats[: w.size], SCRATCH.flags[: w.size]
    np.abs(w, out=magnitude)
    m &= np.greater(magnitude, a, out=above)
    m |= np.greater(magnitude, b, out=above)


class LayerSurgery:
    """The masks of one layer, its weights and biases under one threshold.

    name: the ONNX node, to show.  key: the weight's initializer name, unlike the node's never
    shared (an LSTM node has two weights).
    mu, std: statistics of the kept |w| and |bias|, measured once, at the first surgery iteration;
    None before.
    """

    def __init__(
        self, name: str, tensors: Sequence[Masked], schedule: Schedule, grain: AnyGrain = ELEMENTS
    ) -> None:
        self.name = name
        self.key = tensors[0].name
        self.tensors = list(tensors)
        self.schedule = schedule
        self.grain = grain
        self.mu: float | None = None
        self.std: float | None = None

    def thresholds(self, iteration: int) -> tuple[float, float]:
        """(a, b) at this iteration; measures mu and std the first time."""
        if self.mu is None or self.std is None:
            kept = [grain.magnitudes(w.effective()) for w, _, grain in self.parts()]
            self.mu, self.std = mean_and_std(kept)
        t = max(self.mu + self.schedule.c_rate_at(iteration) * self.std, 0.0)
        return LOWER_EDGE * t, UPPER_EDGE * t

    @torch.no_grad()
    def update(self, iteration: int) -> None:
        """Cut and splice once, whatever the draw."""
        if isinstance(self.grain, NOfM):
            return self.keep_of_m(min((iteration + 1) / max(self.schedule.ramp_iters, 1), 1.0))
        a, b = self.thresholds(iteration)
        self.cut_and_splice(a, b)

    @torch.no_grad()
    def cut_and_splice(self, a: float | Tensor, b: float | Tensor) -> None:
        """The rule with these edges, on entries or on groups of them."""
        for tensor, mask, grain in self.parts():
            if isinstance(grain, Elements):
                prune_and_splice(tensor.weight.detach(), mask, a, b)
            else:
                groups = grain.groups(mask).clone()
                prune_and_splice(grain.magnitudes(tensor.weight.detach()), groups, a, b)
                self.set_groups(groups)

    @torch.no_grad()
    def set_groups(self, groups: Tensor) -> None:
        """Keep these groups of the weight; where channels are cut, biases go with them."""
        weight, *biases = self.tensors
        if weight.mask is not None and not isinstance(self.grain, NOfM):
            weight.mask.copy_(self.grain.entries(groups, weight.mask))
        for bias in biases if isinstance(self.grain, Channels) else []:
            if bias.mask is not None and bias.mask.numel() == groups.numel():
                bias.mask.copy_(groups.view_as(bias.mask))

    @torch.no_grad()
    def keep_of_m(self, progress: float) -> None:
        """Come down from M of M to N of M as `progress` goes from 0 to 1 (granularity N:M)."""
        weight, grain = self.tensors[0], self.grain
        if isinstance(grain, NOfM) and weight.mask is not None:
            keep = grain.m - math.floor((grain.m - grain.n) * progress)
            bonus = UPPER_EDGE / LOWER_EDGE
            weight.mask.copy_(grain.choose(weight.weight.detach(), weight.mask, keep, bonus))

    def parts(self) -> Iterator[tuple[Masked, Tensor, Thresholded]]:
        """(holder, its mask, what is cut as one): what thresholds decide about."""
        for tensor in self.tensors:
            if tensor.mask is None:
                continue
            if tensor is self.tensors[0]:
                if not isinstance(self.grain, NOfM):
                    yield tensor, tensor.mask, self.grain
            elif not isinstance(self.grain, Channels | NOfM):
                yield tensor, tensor.mask, ELEMENTS

    def kept(self) -> int:
        """Number of entries that are kept now."""
        return sum(int(t.mask.sum()) for t in self.tensors if t.mask is not None)

    def size(self) -> int:
        """Number of entries under surgery."""
        return sum(t.weight.numel() for t in self.tensors)


class Surgery:
    """All layers under surgery, and the one source of their random draws.

    Call `step(i)` at the start of training iteration i, before the forward pass.  The draws of an
    iteration depend on the seed and the iteration alone, so that a resumed run repeats them.  Draws
    and thresholds are Python numbers: a step never waits for the device (but for the first, which
    measures mu and std).
    """

    def __init__(self, layers: Sequence[LayerSurgery], seed: int) -> None:
        if not layers:
            raise TrainingError(
                "surgery: expected at least one prunable layer, got none; "
                "`dns-onnx inspect` says why each layer is not prunable"
            )
        self.layers = list(layers)
        self.seed = seed

    def __iter__(self) -> Iterator[LayerSurgery]:
        return iter(self.layers)

    def step(self, iteration: int) -> list[str]:
        """One surgery iteration; returns the names of the layers whose masks were updated."""
        draws = np.random.default_rng([self.seed, iteration]).random(len(self.layers))
        fired = []
        for layer, draw in zip(self.layers, draws, strict=True):
            schedule = layer.schedule
            if iteration < schedule.iter_stop and schedule.probability(iteration) > draw:
                layer.update(iteration)
                fired.append(layer.name)
        return fired

    def listens(self, iteration: int) -> bool:
        """Whether gradients are read at this iteration: thresholds of c_rate need none."""
        return False

    def listen(self, iteration: int) -> None:
        """Called between the backward pass and the update of the weights: nothing to learn here."""

    def thresholds(self) -> dict[str, float]:
        """The threshold t of each measured layer at the end of its schedule, by key."""
        return {
            x.key: max(x.mu + x.schedule.c_rate * x.std, 0.0)
            for x in self.layers
            if x.mu is not None and x.std is not None
        }

    def frozen_at(self) -> int:
        """First iteration from which no mask changes any more."""
        return max((layer.schedule.iter_stop for layer in self.layers), default=0)

    def idle(self, seed: int) -> Surgery:
        """Surgery on the same layers that leaves their masks as they are."""
        return Surgery(
            [LayerSurgery(x.name, x.tensors, Schedule(0.0), x.grain) for x in self.layers], seed
        )

    def kept(self) -> int:
        """Entries kept over all layers."""
        return sum(layer.kept() for layer in self.layers)

    def size(self) -> int:
        """Entries under surgery over all layers."""
        return sum(layer.size() for layer in self.layers)

    def state(self) -> dict[str, Any]:
        """The mu and std of every layer, for a checkpoint (the masks live in their holders)."""
        return {layer.key: {"mu": layer.mu, "std": layer.std} for layer in self.layers}

    def tensors(self) -> dict[str, Tensor]:
        """What of the state is tensors, for a checkpoint, by name."""
        return {}

    def load_state(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Take mu and std back from `state`; they are never measured a second time.

        tensors: holds `tensors` under their names.
        """
        names = [layer.key for layer in self.layers]
        if sorted(state) != sorted(names):
            raise CheckpointError(
                f"surgery state: expected the layers {sorted(names)}, got {sorted(state)}; "
                "resume with the configuration that the run was started with"
            )
        for layer in self.layers:
            layer.mu, layer.std = state[layer.key]["mu"], state[layer.key]["std"]
