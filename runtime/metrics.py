"""What a model is judged by: one implementation, in NumPy, for training and for ONNX Runtime.

How much worse a pruned model is (`Metric.drop`) is measured in percentage points where the metric
is a fraction (accuracy, F1, mean IoU, agreement, relative error), in its own unit where it has one
(PSNR in dB, a function's number), and in per cent of what it was for a mean squared error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

from dns_onnx.entry import is_entry_point, load_entry_point
from dns_onnx.errors import ConfigError, DataError
from dns_onnx.runtime.meters import (
    F1,
    IGNORED,
    Accuracy,
    Agreement,
    Averaged,
    LabelErrorRate,
    MeanIou,
    MeanSquaredError,
    Meter,
    Psnr,
    RelativeError,
)

T = TypeVar("T")
NAMES = "accuracy, topK (top5), f1, miou, mse, psnr, ler, agreement, relative-error"


@dataclass(frozen=True)
class Metric:
    """A measure of how good a model is.

    kind: `fraction` (in [0, 1], shown in per cent), `ratio` (means something only beside another
        value of it), or `plain` (in its own unit).
    against: what targets it is given: the data's labels, or the original model's outputs.
    reads: class `scores` suffice, of any scale; or it needs the output `values` themselves.
    """

    name: str
    higher_is_better: bool
    kind: Literal["fraction", "ratio", "plain"]
    make: Callable[[], Meter]
    against: Literal["labels", "original"] = "labels"
    reads: Literal["scores", "values"] = "scores"
    unit: str = ""

    def drop(self, before: float, after: float) -> float:
        """How much worse `after` is: percentage points, per cent, or the metric's own unit."""
        worse = before - after if self.higher_is_better else after - before
        match self.kind:
            case "fraction":
                return 100 * worse
            case "ratio" if worse != 0:
                return 100 * worse / abs(before) if before else math.copysign(math.inf, worse)
        return worse

    def better(self, a: float, b: float) -> bool:
        """Whether value a is better than value b.  NaN is worse than everything."""
        if math.isnan(a) or math.isnan(b):
            return not math.isnan(a)
        return a > b if self.higher_is_better else a < b

    def worse(self, value: float, by: float) -> float:
        """The value that is worse than this one by so much, in the metric's own unit."""
        return value - by if self.higher_is_better else value + by

    @property
    def worst(self) -> float:
        """A value that every other is better than."""
        return -math.inf if self.higher_is_better else math.inf

    def text(self, value: float | None) -> str:
        """The value to read; a dash for none."""
        if value is None:
            return "-"
        if self.kind == "fraction":
            return f"{100 * value:.2f} %"
        return f"{value:.4g} {self.unit}".rstrip()

    @property
    def drop_unit(self) -> str:
        """What a drop is measured in."""
        return {"fraction": "points", "ratio": "per cent"}.get(self.kind, self.unit or "units")


def metric(
    name: str, *, labelled: bool = True, axis: int = 1, threshold: float = 0.0,
    ignore: int = IGNORED,
) -> Metric:  # fmt: skip
    """The metric of a name, or of a `package.module:function`.

    labelled: whether the data have labels; what a function compares with otherwise is the original
        model's outputs.  axis: the one that class scores lie along.  threshold: a single score
        above it says yes.  ignore: the label that counts nowhere.
    Raises ConfigError, naming what there is.
    """
    top = re.fullmatch(r"top([1-9]\d*)", name)
    if top:
        return Metric(name, True, "fraction", partial(Accuracy, int(top[1]), axis, ignore))
    if is_entry_point(name):
        return _from_function(name, labelled)
    known = {
        "accuracy": Metric(
            name, True, "fraction", partial(Accuracy, 1, axis, ignore, threshold)
        ),
        "f1": Metric(name, True, "fraction", partial(F1, axis, threshold, ignore)),
        "miou": Metric(name, True, "fraction", partial(MeanIou, axis, threshold, ignore)),
        "mse": Metric(name, False, "ratio", MeanSquaredError, reads="values"),
        "psnr": Metric(name, True, "plain", Psnr, reads="values", unit="dB"),
        "ler": Metric(name, False, "fraction", LabelErrorRate),
        "agreement": Metric(
            name, True, "fraction", partial(Agreement, axis, threshold), "original"
        ),
        "relative-error": Metric(name, False, "fraction", RelativeError, "original", "values"),
    }  # fmt: skip
    if name not in known:
        raise ConfigError(f"metric: expected {NAMES} or package.module:function, got '{name}'")
    if known[name].against == "labels" and not labelled:
        raise ConfigError(
            f"metric: '{name}' compares with labels and the data have none; add an array `labels`, "
            "or use agreement (class scores), relative-error or a function"
        )
    return known[name]


def _from_function(name: str, labelled: bool) -> Metric:
    """A function's mean over batches, or a class of the user's own with update and value."""
    found = load_entry_point(name, ConfigError)
    make = found if hasattr(found, "update") and hasattr(found, "value") else None
    return Metric(
        name, bool(getattr(found, "higher_is_better", True)), "plain",
        make or partial(Averaged, found), "labels" if labelled else "original", "values",
        str(getattr(found, "unit", "")),
    )  # fmt: skip


def aligned(targets: Mapping[str, T], names: Sequence[str], where: str = "data") -> list[T]:
    """The target of each of the model's values: an array of its name, or `labels` for a single one.

    Raises DataError where one is missing.
    """
    if len(names) == 1 and "labels" in targets:
        return [targets["labels"]]
    missing = [n for n in names if n not in targets]
    if missing:
        remedy = "add an array `labels`" if len(names) == 1 else f"add arrays named {missing}"
        raise DataError(
            f"{where}: expected a target for each of {list(names)}, got {sorted(targets)}; {remedy}"
        )
    return [targets[n] for n in names]
