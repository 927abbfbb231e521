"""What a search may lose: the budget, and whether a model keeps it."""

from __future__ import annotations

from dataclasses import dataclass

from dns_onnx.config import Target
from dns_onnx.runtime.metrics import Metric

DEFAULT_DROP = 0.1


@dataclass(frozen=True)
class Budget:
    """What a target allows on held-out rows.

    reference: the metric that drops count from.  answers: how many held-out answers the metric
    counts as right or wrong; 0 where it counts none.
    """

    target: Target
    metric: Metric
    reference: float
    answers: int

    @property
    def drop(self) -> float | None:
        """The drop that a model may have, as `Metric.drop` measures it; None where none counts."""
        target = self.target
        if target.density is not None:
            return None  # the size is what was asked for
        if target.max_drop is None and target.min_metric is None:
            return DEFAULT_DROP
        return target.max_drop

    @property
    def worth(self) -> float | None:
        """How many held-out answers the drop is; None where it is not counted in them."""
        return None if self.drop is None or not self.answers else self.drop / 100 * self.answers

    def holds(self, value: float, error: float = 0.0) -> bool:
        """Whether a model with this held-out metric may be the result.

        error: its standard error, which the target's margin counts in.
        """
        target = self.target
        if target.density is not None:
            return True
        if target.margin:
            value = self.metric.worse(value, target.margin * error)
        if target.min_metric is not None and self.metric.better(target.min_metric, value):
            return False
        return self.drop is None or self.metric.drop(self.reference, value) <= self.drop + 1e-9
