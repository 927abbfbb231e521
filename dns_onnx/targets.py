"""Targets instead of thresholds: how many connections shall stay decides where each layer cuts.

Every layer cuts at the same price.  To second order, cutting an entry w of layer l raises the loss
by F_l w^2 / 2, with F_l the mean squared gradient over the layer's kept entries (the empirical
Fisher information, one number a layer; where the original model teaches, of drawn targets: see
`curvature`).  So t_l = price / sqrt(F_l), and the price is the one at
which the wanted number of entries stays.  F_l and with it every threshold move while the network
trains; cutting and splicing stay those of the paper.  Where asked for, each entry's own mean
squared gradient weighs its magnitude as well (`granularity.Weighed`).

Source: LeCun, Denker, Solla, "Optimal Brain Damage", NIPS 1989 (the price of an entry); Zhu and
Gupta, "To prune, or not to prune", 2017 (the cubic descent to the goal).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dns_onnx.errors import CheckpointError, ConfigError
from dns_onnx.granularity import Elements, Weighed
from dns_onnx.masks import SCRATCH, chunks, on_cpu
from dns_onnx.prices import keep_dearest, some, thresholds
from dns_onnx.surgery import LOWER_EDGE, UPPER_EDGE, LayerSurgery, Surgery, update_probability

PRICE_EVERY = 20  # iterations between two settings of the thresholds
LISTEN_EVERY = 5  # iterations between two readings of the gradients
MEMORY = 0.99  # of F_l, from one reading to the next
DRAWN_EVERY, DRAWN_MEMORY = 20, 0.95  # the same of drawn gradients, which cost a pass of their own
FIRST_DRAWN = 10  # readings of those, one after the other, before thresholds can be trusted
LAYERS_AT_ONCE = 8  # deeper networks are cut group by group


@dataclass(frozen=True)
class Goal:
    """How many entries of a group of layers shall stay.

    layers: their keys.  kept: entries, weights and biases together.
    """

    layers: tuple[str, ...]
    kept: int


def goals(
    layers: Sequence[LayerSurgery], sparsity: Mapping[str, float | None], density: float
) -> list[Goal]:
    """How many entries of which layers to keep, so that `density` of all of them stays.

    Layers with a sparsity of their own have goals of their own; the others share what is left.
    """
    own = {x.key: math.floor((1.0 - s) * x.size()) for x in layers
           if (s := sparsity.get(x.key)) is not None}  # fmt: skip
    shared = [x for x in layers if x.key not in own]
    total = math.floor(density * sum(x.size() for x in layers) + 1e-9)
    left = total - sum(own.values())
    if shared and left < len(shared):
        raise ConfigError(
            f"target: expected to keep at least one entry of each of {len(shared)} layers, got "
            f"{max(left, 0):,} entries for them; lower the compression"
            + (", or the sparsity of layers that have their own" if own else "")
        )
    found = [Goal((key,), kept) for key, kept in own.items()]
    return found + ([Goal(tuple(x.key for x in shared), left)] if shared else [])


@dataclass(frozen=True)
class Descent:
    """When the goal is approached.

    iter_stop: from this iteration on the masks are frozen.  ramp_iters: the goal is reached here;
    until iter_stop entries are still exchanged.  gamma, power: how updates become rarer, as in
    `Schedule`.
    """

    iter_stop: int
    ramp_iters: int
    gamma: float = 1e-4
    power: float = 1.0

    def probability(self, iteration: int) -> float:
        """Chance that the masks are updated at this iteration."""
        return update_probability(self.gamma, self.power, iteration)


class TargetSurgery(Surgery):
    """Surgery whose thresholds follow from how many entries shall stay.

    goals: each layer in exactly one of them.  drawn: the gradients that it will read are drawn
    (`curvature`), not the loss's own.  by_entry: weigh entries that are cut one by one by their own
    curvature.  Besides `step`, call `listen(i)` when the gradients are there, at least where
    `listens(i)`.
    """

    def __init__(
        self, layers: Sequence[LayerSurgery], seed: int, goals: Sequence[Goal], descent: Descent,
        drawn: bool = False, by_entry: bool = False,
    ) -> None:  # fmt: skip
        super().__init__([_weighed(x) for x in layers] if by_entry else layers, seed)
        self.drawn = drawn
        self.goals, self.descent = list(goals), descent
        device = layers[0].tensors[0].weight.device
        self.fisher = {x.key: torch.zeros((), dtype=torch.float64, device=device) for x in layers}
        self.t: dict[str, Tensor] = {}  # the thresholds, scalars on the device
        self.readings = 0
        self.first_kept = {x.key: x.kept() for x in layers}  # where the descent starts
        self.starts = _starts([x.key for x in layers])

    # ------------------------------------------------------------------ during training

    @torch.no_grad()
    def listen(self, iteration: int) -> None:
        """Read the gradients: F_l as a moving average over the iterations."""
        if not self.listens(iteration):
            return
        self.readings += 1
        memory = DRAWN_MEMORY if self.drawn else MEMORY
        for layer in self.layers:
            found = mean_square_gradient(layer)
            self.fisher[layer.key].mul_(memory).add_(found, alpha=1 - memory)
            gradient = layer.tensors[0].weight.grad
            if isinstance(layer.grain, Weighed) and gradient is not None:
                layer.grain.listen(gradient, memory)

    def listens(self, iteration: int) -> bool:
        """Whether gradients are read at this iteration."""
        if iteration >= self.descent.iter_stop:
            return False
        if self.drawn:
            return iteration < FIRST_DRAWN or iteration % DRAWN_EVERY == 0
        return iteration % LISTEN_EVERY == 0

    def step(self, iteration: int) -> list[str]:
        """Cut and splice where the draws say so; at the last iteration before the stop, exactly."""
        stop = self.descent.iter_stop
        if iteration >= stop or not self.readings:
            return []
        last = iteration == stop - 1
        if last or iteration % PRICE_EVERY == 0 or not self.t:
            for goal in self.goals:
                self._price(goal, iteration, exact=last)
        if last:
            return [layer.name for layer in self.layers]
        draws = np.random.default_rng([self.seed, iteration]).random(len(self.layers))
        fired = []
        for layer, draw in zip(self.layers, draws, strict=True):
            progress = self.progress(layer.key, iteration)
            if progress > 0 and self.descent.probability(iteration) > draw:
                if layer.key in self.t:
                    t = self.t[layer.key]
                    layer.cut_and_splice(LOWER_EDGE * t, UPPER_EDGE * t)
                layer.keep_of_m(progress)
                fired.append(layer.name)
        return fired

    def at_once(self) -> None:
        """Cut to the goals now, by what was read so far."""
        for goal in self.goals:
            self._price(goal, self.descent.ramp_iters, exact=True)

    @torch.no_grad()
    def _price(self, goal: Goal, iteration: int, exact: bool) -> None:
        """Set the thresholds of the goal's layers; `exact`: cut them to the goal at once."""
        progress = {key: self.progress(key, iteration) for key in goal.layers}
        begun = [x for x in self.layers if progress.get(x.key, 0.0) > 0]
        for layer in begun:
            mask = layer.tensors[0].mask
            if isinstance(layer.grain, Weighed) and mask is not None:
                layer.grain.weigh(mask)
            if exact:
                layer.keep_of_m(1.0)
        chosen = [x for x in begun if any(x.parts())]
        if not chosen:
            return
        wanted = math.floor(sum(self._wanted(x, goal, progress[x.key]) for x in chosen))
        scales = {x.key: self._scale(x, progress[x.key]) for x in chosen}
        if exact:
            keep_dearest(chosen, scales, wanted)
        found = thresholds(chosen, scales, wanted)
        self.t.update({x.key: t for x, t in zip(chosen, found, strict=True)})

    def progress(self, key: str, iteration: int) -> float:
        """How far a layer's descent has come, 0 to 1; groups of a deep network start in turn."""
        first, length = self.starts[key]
        at = iteration / max(self.descent.ramp_iters, 1)
        return min(max((at - first) / length, 0.0), 1.0)

    def _wanted(self, layer: LayerSurgery, goal: Goal, progress: float) -> float:
        """Entries of the layer that would stay now if all layers came down alike."""
        first = self.first_kept[layer.key]
        end = first * goal.kept / max(sum(self.first_kept[key] for key in goal.layers), 1)
        return end + (first - end) * (1.0 - progress) ** 3

    def _scale(self, layer: LayerSurgery, progress: float) -> Tensor:
        """What turns |w| into its price."""
        fisher = self.fisher[layer.key].clamp_min(torch.finfo(torch.float32).tiny)
        return fisher.sqrt() / (1.0 - (1.0 - progress) ** 3)

    def thresholds(self) -> dict[str, float]:
        """The threshold t of each layer as it stands, by key."""
        return {key: float(t) for key, t in self.t.items()}

    # ------------------------------------------------------------------ checkpoints

    def frozen_at(self) -> int:
        """First iteration from which no mask changes any more."""
        return self.descent.iter_stop

    def state(self) -> dict[str, Any]:
        """All that the next step depends on, as JSON values."""
        return {
            "readings": self.readings,
            "layers": {
                key: {
                    "fisher": float(f),
                    "first_kept": self.first_kept[key],
                    "t": float(self.t[key]) if key in self.t else None,
                }
                for key, f in self.fisher.items()
            },
        }

    def tensors(self) -> dict[str, Tensor]:
        """The curvature of the entries, where it weighs them."""
        found = {}
        for layer in self.layers:
            if isinstance(layer.grain, Weighed):
                found[f"squares.{layer.key}"] = layer.grain.squares
                found[f"factors.{layer.key}"] = layer.grain.factors
        return found

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Take up `state` and `tensors`."""
        if sorted(state.get("layers", {})) != sorted(self.fisher):
            raise CheckpointError(
                f"surgery state: expected the layers {sorted(self.fisher)}, got another set; "
                "resume with the configuration that the run was started with"
            )
        self.readings = state["readings"]
        for key, values in state["layers"].items():
            self.fisher[key].fill_(values["fisher"])
            self.first_kept[key] = values["first_kept"]
            if values["t"] is not None:
                self.t[key] = torch.full_like(self.fisher[key], values["t"])
        for name, values in self.tensors().items():
            values.copy_(tensors[name])


def _weighed(layer: LayerSurgery) -> LayerSurgery:
    """The same layer; its entries, where they are cut one by one, weighed."""
    weight = layer.tensors[0].weight.detach()
    grain = Weighed(weight) if isinstance(layer.grain, Elements) else layer.grain
    return LayerSurgery(layer.name, layer.tensors, layer.schedule, grain)


def mean_square_gradient(layer: LayerSurgery) -> Tensor:
    """F_l: the mean squared gradient over the layer's kept entries, float64, on the device."""
    total = torch.zeros((), dtype=torch.float64, device=layer.tensors[0].weight.device)
    kept = torch.zeros_like(total)
    for holder, mask, _ in layer.parts():
        grad = holder.weight.grad
        if grad is None:
            continue
        grad, mask, _ = some(grad, mask)
        if on_cpu(grad, mask):
            for g, m in chunks(grad, mask):
                with np.errstate(invalid="ignore"):  # infinity that is cut: the loss will tell
                    part = np.multiply(g.numpy(), m.numpy(), out=SCRATCH.floats[: g.numel()])
                total += float(np.einsum("i,i", part, part))  # not dot: the same on any threads
                kept += int(np.count_nonzero(m.numpy()))
        else:
            total += (grad.float() * mask).square().sum()
            kept += mask.sum()
    return total / kept.clamp_min(1)


def _starts(keys: Sequence[str]) -> dict[str, tuple[float, float]]:
    """(where in the descent it begins, how long it takes) of each layer, as shares of the ramp.

    Up to LAYERS_AT_ONCE layers come down together; deeper networks in groups from the input to the
    output, each group starting when the one before is half done.
    """
    groups = math.ceil(len(keys) / LAYERS_AT_ONCE)
    length = 2.0 / (groups + 1)
    return {
        key: (index * groups // len(keys) * length / 2, length if groups > 1 else 1.0)
        for index, key in enumerate(keys)
    }
