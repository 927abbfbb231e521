"""How much of a drop on held-out rows may be chance: its standard error.

The rows are parted into blocks of neighbours.  What the model loses against the original differs
from block to block, and by how much says how far the whole would have moved had other rows been
held out.  Rows that belong together, frames of one recording say, lie in one block.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np

from dns_onnx.data import Dataset, Subset
from dns_onnx.train import Run

BLOCKS = 32  # at most


class Doubt:
    """The standard error of a drop, where the settings ask for a margin; else none is read.

    run: holds the original when this is made.
    """

    def __init__(self, run: Run, data: Dataset) -> None:
        self.blocks = blocks(data) if run.config.target.margin else []
        self.original = self._scores(run)

    def __call__(self, run: Run) -> float:
        """Of the model as it is, in the unit of the drop; 0 where no margin is asked for."""
        if not self.blocks:
            return 0.0
        drop = run.objective.metric.drop
        return standard_error(list(map(drop, self.original, self._scores(run))))

    def _scores(self, run: Run) -> list[float]:
        return [run.score(block) for block in self.blocks]


def blocks(data: Dataset) -> list[Dataset]:
    """The rows in order, parted as evenly as can be."""
    parts = np.array_split(np.arange(len(data)), min(BLOCKS, len(data)))
    return [Subset(data, part) for part in parts]


def standard_error(drops: Sequence[float]) -> float:
    """Of the mean of the blocks' drops; infinite where one block is all there is.

    Blocks whose drop is no number (a class that does not occur, say) do not count.
    Source: the method of batch means.
    """
    told = [drop for drop in drops if math.isfinite(drop)]
    return statistics.stdev(told) / math.sqrt(len(told)) if len(told) > 1 else math.inf


def joint(share: float, one: float, other: float) -> float:
    """The standard error of (1 - share) * a + share * b, of independent a and b.

    one, other: those of a and b.
    """
    return math.hypot((1 - share) * one, share * other)
