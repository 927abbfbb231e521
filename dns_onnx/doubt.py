"""How far chance may have moved a metric on held-out rows: the standard error against the original.

The rows are parted into blocks of neighbours, so that rows that belong together, frames of one
recording say, lie in one.  What the model loses is read with each block left out in turn, and how
much that differs says how far it would have moved had other rows been held out.

Source: the delete-a-group jackknife (Shao and Tu, "The Jackknife and Bootstrap", 1995).
"""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Sequence

import numpy as np

from dns_onnx import distributed
from dns_onnx.data import Dataset, Subset
from dns_onnx.errors import ConfigError
from dns_onnx.runtime.meters import Mergeable
from dns_onnx.train import Run

BLOCKS = 32  # at most
FEWEST = 8  # of which a standard error still says something


class Doubt:
    """The standard error of the metric's distance from the original's, in the metric's own unit.

    run: holds the original when this is made.  Where its settings ask for no margin, nothing is
    read, and the error is 0.
    Raises ConfigError where there are too few rows, or where a user's metric has no `merge`.
    """

    def __init__(self, run: Run, data: Dataset) -> None:
        self.blocks = blocks(data) if run.config.target.margin else []
        if 0 < len(self.blocks) < FEWEST:
            raise ConfigError(
                f"target.margin: expected at least {FEWEST} held-out rows to tell chance from, got "
                f"{len(data)}; hold out more (--val, data.holdout), or ask for no margin"
            )
        self.original = without_each(self._meters(run))

    def __call__(self, run: Run) -> float:
        """Of the model as it is; of answers that are counted, at least what one of them is."""
        if not self.blocks:
            return 0.0
        meters = self._meters(run)
        off = [now - was for now, was in zip(without_each(meters), self.original, strict=True)]
        answers = sum(getattr(meter, "seen", 0) for meter in meters)
        error = max(jackknife(off), 1 / answers if answers else 0.0)
        return distributed.from_main(error)

    def _meters(self, run: Run) -> list[Mergeable]:
        found = [run.meter(block) for block in self.blocks]
        if not all(isinstance(meter, Mergeable) for meter in found):
            raise ConfigError(
                f"metric: '{run.objective.metric.name}' needs a method merge(other) for a margin, "
                "which takes in what another has seen; or ask for no margin"
            )
        return found  # type: ignore[return-value]


def blocks(data: Dataset) -> list[Dataset]:
    """The rows in order, parted as evenly as can be."""
    parts = np.array_split(np.arange(len(data)), min(BLOCKS, len(data)))
    return [Subset(data, part) for part in parts]


def without_each(meters: Sequence[Mergeable]) -> list[float]:
    """The metric over all blocks but one, for each."""
    found = []
    for left_out in range(len(meters)):
        first, *others = (m for i, m in enumerate(meters) if i != left_out)
        total = copy.deepcopy(first)
        for other in others:
            total.merge(other)
        found.append(total.value())
    return found


def jackknife(values: Sequence[float]) -> float:
    """The standard error of a number, from what it is without each block; infinite for NaN."""
    if not all(map(math.isfinite, values)):
        return math.inf
    return (len(values) - 1) / math.sqrt(len(values)) * statistics.stdev(values)


def joint(share: float, one: float, other: float) -> float:
    """The standard error of (1 - share) * a + share * b, of independent a and b.

    one, other: those of a and b.
    """
    return math.hypot((1 - share) * one, share * other)
