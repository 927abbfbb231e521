"""A metric of the original and of the pruned file, both run in ONNX Runtime on the same rows."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from dns_onnx.converters.heads import Head, heads
from dns_onnx.errors import DataError
from dns_onnx.runtime.batching import run
from dns_onnx.runtime.meters import IGNORED, Meter
from dns_onnx.runtime.metrics import Metric, aligned, metric
from dns_onnx.runtime.session import session

Array = NDArray[Any]
Targets = Mapping[str, Array] | Array | None


@dataclass(frozen=True)
class Judged:
    """A metric of both files.  drop: how much worse the pruned one is, in `unit`.

    against: what outputs were compared with: labels, or the original's outputs.
    said: both values and the drop, to read.
    """

    name: str
    higher_is_better: bool
    before: float
    after: float
    drop: float
    unit: str
    against: str
    said: tuple[str, str, str]


class Judge:
    """Takes rows in, batch by batch, and says in the end what both files make of them."""

    def __init__(
        self, original: str | Path, pruned: str | Path, wanted: Metric | str = "auto",
        outputs: Sequence[str] = (), threads: int = 1,
    ) -> None:  # fmt: skip
        self.wanted = wanted
        self.metric: Metric | None = None
        self.model = onnx.load(os.fspath(original), load_external_data=False)
        self.outputs = list(outputs)
        self.files = (original, pruned)
        self.threads = threads
        self.sessions: tuple[ort.InferenceSession, ...] = ()
        self.meters: tuple[Meter, ...] = ()
        self.rows = 0

    def update(self, inputs: Mapping[str, Array], targets: Targets) -> None:
        """Run both files on a batch."""
        given = _by_name(targets)
        if self.metric is None:
            self.metric = self._open(given)
        found = [run(s, inputs, self.outputs) for s in self.sessions]
        labels = aligned(given, self.outputs) if self.metric.against == "labels" else found[0]
        for meter, outputs in zip(self.meters, found, strict=True):
            meter.update([np.asarray(y) for y in outputs], [np.asarray(y) for y in labels])
        self.rows += max(len(x) for x in inputs.values())

    def judged(self) -> Judged | None:
        """Both values; None where there were no rows."""
        if not self.meters or self.metric is None:
            return None
        m, (before, after) = self.metric, (meter.value() for meter in self.meters)
        drop = m.drop(before, after)
        said = (m.text(before), m.text(after), f"{drop:.2f} {m.drop_unit}")
        return Judged(m.name, m.higher_is_better, before, after, drop, m.drop_unit, m.against, said)

    def _open(self, targets: Mapping[str, Array]) -> Metric:
        """Choose what was left open, and make the sessions."""
        found = heads(self.model, self.outputs, every=not targets)
        self.outputs = [h.output for h in found]
        self.sessions = tuple(_reading(f, self.outputs, self.threads) for f in self.files)
        labels = aligned(targets, self.outputs)[0] if targets else None
        wanted = self.wanted
        chosen = metric_for(wanted, found, labels) if isinstance(wanted, str) else wanted
        self.meters = tuple(chosen.make() for _ in self.files)
        return chosen


def metric_for(
    name: str, ends: Sequence[Head], labels: Array | None, ignore: int = IGNORED
) -> Metric:
    """The metric of a name for these ends of a model; `auto` takes what the labels suggest.

    labels: some of them, None where there are none.
    Raises ConfigError.
    """
    if name == "auto" and labels is None:
        name = "agreement" if [h.kind for h in ends] == ["classes"] else "relative-error"
    elif name == "auto":
        assert labels is not None
        name = "mse" if labels.dtype.kind == "f" else "miou" if labels.ndim > 2 else "accuracy"
    yes_or_no = ends[0].kind == "probabilities"
    found = metric(
        name, labelled=labels is not None, axis=ends[0].axis,
        threshold=0.5 if yes_or_no else 0.0, ignore=ignore,
    )  # fmt: skip
    return replace(found, reads="values") if yes_or_no else found


def _by_name(targets: Targets) -> Mapping[str, Array]:
    if targets is None:
        return {}
    return targets if isinstance(targets, Mapping) else {"labels": targets}


def _reading(path: str | Path, names: Sequence[str], threads: int) -> ort.InferenceSession:
    """A session of a file that gives these values, inner ones too.

    Raises DataError where the file does not compute one.
    """
    opened = session(path, native=False, threads=threads)
    missing = [n for n in names if n not in {o.name for o in opened.get_outputs()}]
    if not missing:
        return opened
    model = onnx.load(os.fspath(path))
    computed = {o for node in model.graph.node for o in node.output}
    if not computed.issuperset(missing):
        raise DataError(
            f"{path}: metric: expected values of the graph, got {sorted(set(missing) - computed)}; "
            f"its outputs are {[o.name for o in model.graph.output]}"
        )
    model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in missing)
    return session(model.SerializeToString(), native=False, threads=threads)
