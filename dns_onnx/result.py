"""What a finished compression is: the file, how it came about, and what was found about it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from dns_onnx.config import Config
from dns_onnx.converters.exporter import Export
from dns_onnx.prepare import Spared
from dns_onnx.reference import Reference
from dns_onnx.runtime.check import Check
from dns_onnx.runtime.metrics import Metric
from dns_onnx.train import Outcome, Run
from dns_onnx.trials import Trial


@dataclass(frozen=True)
class LayerResult:
    """What was kept of one layer, weights and biases together.  threshold: t at the end."""

    name: str
    weight: str
    size: int
    kept: int
    threshold: float | None


@dataclass(frozen=True)
class Result:
    """A finished compression: the file, how it came about, and what was found about it.

    model, path: the file before and after.  config: the settings.
    outcome: iterations, seconds, held-out metric.  layers, spared: what was kept of those under
    surgery, and why others were not.  export: how each tensor is stored.  check: in ONNX Runtime.
    run_dir: checkpoints, log, trials.
    started_at: the iteration (of a search: the trial) that it was resumed at, 0 where it was not.
    metric_source: where the metric was read: "eval", "held-out" or "training" data, the latter two
        "random" where no data were given.
    objective: what was learned and what it is judged by, in words.
    metric: what the result is judged by.  max_drop: how much worse it may be, None if no matter.
    fingerprint: digests of the model and the data.
    trials: of a search, in order.  reference: what its drops count from.
    """

    model: Path
    path: Path
    config: Config
    device: str
    started_at: int
    outcome: Outcome
    layers: list[LayerResult]
    spared: list[Spared]
    export: Export
    check: Check
    metric_source: str
    run_dir: Path
    objective: str
    metric: Metric
    max_drop: float | None
    fingerprint: dict[str, Any]
    trials: list[Trial] = field(default_factory=list)
    reference: Reference | None = None


def finished(best: Trial, trials: list[Trial]) -> Outcome:
    """What a search came to, as the outcome of one run."""
    iterations = sum(t.iterations for t in trials)
    return Outcome(iterations, sum(t.seconds for t in trials), best.metric, iterations)


def layer_results(run: Run, thresholds: Mapping[str, float]) -> list[LayerResult]:
    """What each layer under surgery kept.  thresholds: t at the end, by the weight's name."""
    return [
        LayerResult(
            layer.name, layer.key, layer.size(), layer.kept(), thresholds.get(layer.key)
        )
        for layer in run.surgery
    ]  # fmt: skip


def provenance(config: Config, run: Run, outcome: Outcome, source: str) -> dict[str, str]:
    """What the written file says about how it came about (prefixed `dns_onnx.` on export)."""
    preprocess = config.preprocess.model_dump(mode="json")
    return {
        "version": version("dns-onnx"),
        "source": Path(source).name,
        "source_sha256": str(run.fingerprint["model"]),
        "recipe": config.name,
        "config": json.dumps(config.model_dump(mode="json", exclude_defaults=True), sort_keys=True),
        "preprocess": json.dumps(preprocess, sort_keys=True),
        "output": ",".join(config.train.outputs),
        "seed": str(config.seed),
        "iterations": str(outcome.iterations),
        "kept": str(run.surgery.kept()),
        "operated": str(run.surgery.size()),
        "torch": torch.__version__,
    }
