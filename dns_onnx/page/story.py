"""Everything that the page tells: the result, the run's log, the search's trials, the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import numpy_helper

from dns_onnx.converters.reader import read_model
from dns_onnx.journal import Change, Progress, read_log
from dns_onnx.result import LayerResult, Result
from dns_onnx.surgery import LOWER_EDGE, UPPER_EDGE
from dns_onnx.trials import Trial, read_trials

BINS = 60


@dataclass(frozen=True)
class Histogram:
    """Weights of one layer under surgery, biases aside: how many lie in each bin.

    edges: one more than there are bins.  before: all entries of the original.  after: the nonzeros
    of the result.  a, b: the edges of the threshold at the end; None where it was never measured.
    """

    name: str
    edges: list[float]
    before: list[int]
    after: list[int]
    a: float | None
    b: float | None


@dataclass(frozen=True)
class Story:
    """What there is to tell about one compression.

    command: the line that started it.  looks: of the run; after a search, of the trials that led
    to the result, one after the other.  chosen: the trial that is the result.
    """

    result: Result
    command: str | None
    looks: list[Progress]
    trials: list[Trial]
    chosen: Trial | None
    histograms: list[Histogram]

    @property
    def frozen_at(self) -> int | None:
        """The first look at which no mask changed any more."""
        quiet = None
        for look in reversed(self.looks):
            if any(c.cut or c.spliced for c in look.layers.values()):
                break
            quiet = look.iteration
        return quiet

    def totals(self) -> dict[str, Change]:
        """Over the whole run, by layer: kept and returned at its end, cut and spliced in all."""
        found = {}
        for name, last in self.looks[-1].layers.items() if self.looks else ():
            changes = [look.layers[name] for look in self.looks]
            cut, spliced = sum(c.cut for c in changes), sum(c.spliced for c in changes)
            found[name] = Change(last.kept, cut, spliced, last.returned)
        return found


def gather(result: Result, command: str | None = None) -> Story:
    """Read what the run left behind.

    Raises CheckpointError where a file of it is not what it should be.
    """
    folder, trials = result.run_dir, read_trials(result.run_dir)
    kept = {layer.weight: layer.kept for layer in result.layers}
    chosen = next((t for t in reversed(trials) if t.layers == kept), None)
    looks = read_log(folder)
    if chosen is not None:
        logs = [read_log(folder / f"trial-{t.trial:03d}") for t in lineage(trials, chosen)]
        looks = one_after_the_other(logs)
    return Story(result, command, looks, trials, chosen, histograms(result))


def lineage(trials: Sequence[Trial], last: Trial) -> list[Trial]:
    """The trials that led to `last`, each going on from the one before, and itself."""
    by_number = {t.trial: t for t in trials}
    found = [last]
    while (parent := found[0].plan.parent) is not None:
        found.insert(0, by_number[parent])
    return found


def one_after_the_other(logs: Sequence[Sequence[Progress]]) -> list[Progress]:
    """Several logs as one, their iterations and seconds counted on."""
    joined: list[Progress] = []
    total = sum(log[-1].iterations for log in logs if log)
    for log in logs:
        start, seconds = (joined[-1].iteration, joined[-1].seconds) if joined else (0, 0.0)
        joined += [
            replace(look, iteration=start + look.iteration, iterations=total,
                    seconds=seconds + look.seconds)
            for look in log
        ]  # fmt: skip
    return joined


def histograms(result: Result) -> list[Histogram]:
    """The weights of each layer under surgery, before and after."""
    before, after = _arrays(result.model), _arrays(result.path)
    return [
        _histogram(layer, before[layer.weight], after.get(layer.weight, np.zeros(0)))
        for layer in result.layers
        if layer.weight in before
    ]


def _histogram(layer: LayerResult, before: NDArray[Any], after: NDArray[Any]) -> Histogram:
    old = before.astype(np.float64).ravel()
    new = after.astype(np.float64)[after != 0]
    a, b = _threshold(layer)
    finite = np.concatenate([old[np.isfinite(old)], new, [b or 0.0]])
    reach = float(np.abs(finite).max()) or 1.0
    edges = np.linspace(-reach, reach, BINS + 1)
    counts = [np.histogram(x, edges)[0].tolist() for x in (old, new)]
    return Histogram(layer.name or layer.weight, edges.tolist(), counts[0], counts[1], a, b)


def _threshold(layer: LayerResult) -> tuple[float | None, float | None]:
    """(a, b) at the end of the run."""
    t = layer.threshold
    return (None, None) if t is None else (LOWER_EDGE * t, UPPER_EDGE * t)


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    return {i.name: numpy_helper.to_array(i) for i in read_model(path).graph.initializer}


def thinned(looks: Sequence[Progress], most: int) -> list[Progress]:
    """At most about `most` looks: neighbours are joined, so that no cut or splice is lost.

    loss: the mean over their iterations.  The rest is that of the last one.
    """
    step = -(-len(looks) // most) if looks else 1
    return [
        _joined(looks[i - 1].iteration if i else 0, looks[i : i + step])
        for i in range(0, len(looks), step)
    ]


def _joined(start: int, looks: Sequence[Progress]) -> Progress:
    last = looks[-1]
    starts = [start, *(look.iteration for look in looks[:-1])]
    weights = [max(look.iteration - s, 1) for look, s in zip(looks, starts, strict=True)]
    loss = sum(w * look.loss for w, look in zip(weights, looks, strict=True)) / sum(weights)
    value = next((look.value for look in reversed(looks) if look.value is not None), None)
    layers = {
        name: Change(
            now.kept,
            sum(look.layers[name].cut for look in looks),
            sum(look.layers[name].spliced for look in looks),
            now.returned,
        )
        for name, now in last.layers.items()
    }
    return Progress(
        last.iteration, last.iterations, loss, last.rate, last.kept, last.size, last.seconds,
        last.metric, value, layers,
    )  # fmt: skip
