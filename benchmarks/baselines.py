"""Pruning by magnitude, one-shot and gradual, as schedules that the training loop takes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from dns_onnx.surgery import LayerSurgery, Surgery
from dns_onnx.targets import Goal, keep_dearest

UPDATE_EVERY = 50  # iterations between two cuts of the gradual descent


class FixedMasks(Surgery):
    """Nothing is cut or spliced: the masks are as they were when training began."""

    def step(self, iteration: int) -> list[str]:
        return []

    def frozen_at(self) -> int:
        return 0


class GradualMagnitude(Surgery):
    """Magnitude pruning along a cubic from all entries to the goals; what is cut stays cut.

    goals: one for all layers, or one a layer.  ramp_iters: the goals are reached here.
    Source: Zhu and Gupta, "To prune, or not to prune", 2017, section 3.
    """

    def __init__(
        self, layers: Sequence[LayerSurgery], seed: int, goals: Sequence[Goal], ramp_iters: int
    ) -> None:
        super().__init__(layers, seed)
        self.goals, self.ramp_iters = list(goals), ramp_iters

    @torch.no_grad()
    def step(self, iteration: int) -> list[str]:
        last = iteration == self.ramp_iters - 1
        if iteration >= self.ramp_iters or (iteration % UPDATE_EVERY and not last):
            return []
        for layer in self.layers:
            for holder, mask, _ in layer.parts():
                holder.weight.mul_(mask)  # else what is cut could outgrow what is kept
        left = 0.0 if last else (1.0 - iteration / self.ramp_iters) ** 3
        keep_largest(self.layers, self.goals, left)
        return [layer.name for layer in self.layers]

    def frozen_at(self) -> int:
        return self.ramp_iters


def keep_largest(layers: Sequence[LayerSurgery], goals: Sequence[Goal], left: float = 0.0) -> None:
    """Masks that keep each goal's largest entries, and `left` (0 to 1) of what goes beyond it."""
    one = torch.ones((), dtype=torch.float64)
    for goal in goals:
        chosen = [x for x in layers if x.key in goal.layers]
        size = sum(x.size() for x in chosen)
        wanted = math.floor(goal.kept + (size - goal.kept) * left)
        keep_dearest(chosen, {x.key: one for x in chosen}, wanted)


def per_layer(layers: Sequence[LayerSurgery], kept: Mapping[str, int]) -> list[Goal]:
    """A goal for each layer."""
    return [Goal((x.key,), kept[x.key]) for x in layers]
