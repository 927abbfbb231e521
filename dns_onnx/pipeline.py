"""The whole road: an ONNX file in, surgery, a pruned ONNX file out, and the proof of it."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import fx

from dns_onnx import distributed, sources
from dns_onnx.attach import DOES_NOT_RUN
from dns_onnx.checkpoint import claimed
from dns_onnx.config import Config
from dns_onnx.converters.batch import free_batch
from dns_onnx.converters.exporter import Export, export_model
from dns_onnx.converters.importer import import_model
from dns_onnx.converters.reader import read_model
from dns_onnx.cuts import Cut
from dns_onnx.data import Dataset, all_labels, batches
from dns_onnx.drawn import WEAK, sized
from dns_onnx.errors import ConfigError, DataError, NotMain
from dns_onnx.journal import Note, Observer, silent
from dns_onnx.prepare import (
    Prepared,
    Spared,
    input_specs,
    load_datasets,
    model_feeding,
    prepare_run,
    torch_device,
    with_batch,
)
from dns_onnx.probe import Probe
from dns_onnx.reference import Reference
from dns_onnx.runtime.batching import run as run_in_ort
from dns_onnx.runtime.check import Check, check
from dns_onnx.runtime.metrics import Metric
from dns_onnx.runtime.session import session
from dns_onnx.runtime.sizes import model_files
from dns_onnx.search import Search
from dns_onnx.train import Outcome, Run, eval_batch
from dns_onnx.trials import Trial

Array = NDArray[Any]
TRAIN_METRIC_ROWS = 10_000  # rows of training data that stand in where there is nothing better


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


def compress(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    train: Any = None,
    eval: Any = None,
    config: Config | None = None,
    format: str = "csr",
    values: str = "float32",
    device: str = "auto",
    run_dir: str | os.PathLike[str] | None = None,
    resume: bool = False,
    max_drop: float | None = None,
    drop_dead: bool = False,
    bench_seconds: float = 1.0,
    observe: Observer = silent,
    tell: Callable[[Trial | Reference | Cut | Probe | Note], None] = lambda found: None,
    pick: int | None = None,
    tensorboard: str | os.PathLike[str] | None = None,
) -> Result:
    """Prune an ONNX model by Dynamic Network Surgery and write the result as ONNX.

    model, out: paths.  train, eval: DATA arguments (see `sources.load`), torch Datasets, iterables
        of batches, or datasets of ours; eval data decide nothing.  Without train data, inputs are
        drawn at random from what the model declares (the weak mode).
    format: csr, portable, coo or dense.  values: float32, float16 or int8.
    device: auto, cpu or cuda.
    run_dir: checkpoints and log (default: beside `out`); resume: go on from what lies there.
    max_drop: the drop of the metric (`runtime.metrics` says in what unit) above which the result
        counts as missed; where the settings give neither thresholds nor a size, the budget of the
        search too.
    drop_dead: also remove units that died with the pruning, where the result is provably the same.
    bench_seconds: how long each contender of the check is timed.
    observe: called with each look at the run.  tell: called with what a search finds, when it
        does: what its drops count from, how to train, then each trial.
    pick: export this trial of a finished search (with `resume`) rather than the smallest.
    tensorboard: folder for events.
    Raises a DnsOnnxError that says what to mend; `out` is then untouched.  Of many processes (see
    `distributed.processes`) the first one returns; the others raise NotMain when they are done.
    """
    config = with_budget(config or Config(), max_drop)
    out = Path(out)
    refuse_bad_target(out, Path(model))
    where = torch_device(device)
    torch.manual_seed(config.seed)
    original = read_model(model)
    trained = free_batch(original).model  # the same weights; only the batch axis differs
    graph = import_model(trained, os.fspath(model))
    opened = session(model, native=False)  # what ONNX Runtime refuses is told before training
    specs = input_specs(original, config.data.shape)
    train = sources.RANDOM if train is None else train
    weak = ""
    if sources.is_random(train):
        specs, taken = sized(specs, opened)
        weak = f"{WEAK} {taken}".rstrip()
        tell(Note(weak))
    if isinstance(train, str):
        told = sources.preprocess_of(train, config.preprocess)
        config = config.model_copy(update={"preprocess": told})
    teaching, heldout, judged, source = load_datasets(train, eval, config, specs)
    config = with_batch(config, teaching)
    prepared = prepare_run(
        trained, graph, config, where, teaching,
        Path(run_dir) if run_dir else out.with_suffix(".run"),
        {"model": file_digest(model), "data": data_digest(teaching),
         "settings": config.model_dump(mode="json")},
        Path(tensorboard) if tensorboard else None,
    )  # fmt: skip
    for note in [*prepared.notes, *slow_halves(prepared.run)]:
        tell(Note(note))
    run, config = prepared.run, prepared.run.config
    run.objective.refuse_bad_data(run.model, {"held-out": heldout, source: judged}, where)
    singly = run.model.feeding != model_feeding(trained)
    for inputs, _ in evaluation_pairs(judged, config, 2, singly):
        run_in_ort(opened, inputs)  # rows, too
    del opened  # which holds all weights
    teaching, heldout = run.objective.remembered(teaching, heldout, config, where)
    with claimed(run.folder) if distributed.is_main() else nullcontext():
        if config.has_thresholds:
            if not resume:
                run.start_fresh()
            started_at = run.resume() if resume else 0
            outcome, trials = run.train(teaching, heldout, observe), []
            thresholds, reference = run.surgery.thresholds(), None
        else:
            search = start_search(prepared, teaching, heldout, resume)
            started_at = len(search.trials)
            search.settle(observe)
            reference = search.reference
            tell(reference)
            tell(search.explore(tell))
            best = search.find(observe, tell) if pick is None else search.take(pick)
            outcome, trials = finished(best, search.trials), search.trials
            thresholds = best.thresholds
    if not distributed.is_main():
        raise NotMain(f"process {distributed.rank()}: the first process writes the result")
    export = export_model(
        model, effective_weights(run), out, format=format, values=values, drop_dead=drop_dead,
        metadata=provenance(config, run, outcome, str(model)),
    )  # fmt: skip
    limit = TRAIN_METRIC_ROWS if source.endswith("training") else None
    # narrow values are not the trained ones: the metric judges them, the arrays must agree
    exact = masked_graph(graph.to("cpu"), trained) if values == "float32" else None
    found = check(
        Path(model), out, evaluation_pairs(judged, config, limit, singly), reference=exact,
        metric=run.objective.metric, outputs=[h.output for h in run.objective.heads],
        max_drop=allowed(max_drop, reference, run.objective.metric, judged is heldout),
        seconds=bench_seconds,
    )  # fmt: skip
    found = replace(found, words=[*([weak] if weak else []), *found.words, *prepared.notes])
    return Result(
        Path(model), out, config, str(where), started_at, outcome, layer_results(run, thresholds),
        prepared.spared, export, found, source, run.folder, run.objective.said,
        run.objective.metric, max_drop, run.fingerprint, trials, reference,
    )  # fmt: skip


def slow_halves(run: Run) -> list[str]:
    """A word on float16 weights where they are trained on a CPU."""
    halves = any(w.weight.dtype == torch.float16 for w in run.weights.values())
    if not halves or run.device.type != "cpu":
        return []
    return ["The model computes in float16, which takes a CPU many times as long as float32: prune "
            "it on a CUDA device, or prune the float32 model that it was made from."]  # fmt: skip


def allowed(
    max_drop: float | None, reference: Reference | None, metric: Metric, heldout: bool
) -> float | None:
    """The drop against the original that the written file may have on the data that judge it.

    heldout: whether these are the held-out rows, which the original may know by heart.
    """
    if max_drop is None or reference is None or not heldout:
        return max_drop
    return max_drop + metric.drop(reference.original, reference.metric)


def with_budget(config: Config, max_drop: float | None) -> Config:
    """The settings with the caller's budget in them, where they search."""
    if config.has_thresholds or max_drop is None:
        return config
    return config.model_copy(
        update={"target": config.target.model_copy(update={"max_drop": max_drop})}
    )


def start_search(
    prepared: Prepared, teaching: Dataset, heldout: Dataset | None, resume: bool
) -> Search:
    """The search, with the trials that are finished where it is resumed.

    Raises ConfigError without held-out rows.
    """
    run = prepared.run
    if heldout is None:
        raise ConfigError(
            "data.holdout: expected some held-out rows to judge the trials on, got none; "
            "or give thresholds (c_rate)"
        )
    original = run.score(heldout)
    search = Search(run, prepared.sparsity, teaching, heldout, original)
    if resume:
        search.resume()
    else:
        search.start_fresh()
    return search


def finished(best: Trial, trials: list[Trial]) -> Outcome:
    """What a search came to, as the outcome of one run."""
    iterations = sum(t.iterations for t in trials)
    return Outcome(iterations, sum(t.seconds for t in trials), best.metric, iterations)


def refuse_bad_target(out: Path, model: Path) -> None:
    """Tell before training what would go wrong when the result is written.

    Raises ConfigError.
    """
    if not out.parent.is_dir():
        raise ConfigError(
            f"{out}: expected an existing folder, got '{out.parent}'; create it first"
        )
    if out.is_dir():
        raise ConfigError(f"{out}: expected a file to write, got a folder; name a file in it")
    try:
        tempfile.TemporaryFile(dir=out.parent).close()
    except OSError as error:
        raise ConfigError(
            f"{out}: expected a folder that can be written to, got: {error}; choose another"
        ) from error
    if out.exists() and model.exists() and out.samefile(model):
        raise ConfigError(f"{out}: expected another file than the model; it would be overwritten")


def evaluation_pairs(
    data: Dataset, config: Config, limit: int | None = None, singly: bool = False
) -> Iterator[tuple[dict[str, Array], dict[str, Array]]]:
    """(inputs, targets) by name, batch by batch, as `runtime.check` takes them.

    singly: row by row, for a model that does not run on several, whatever its file says.
    """
    for batch in batches(data, 1 if singly else eval_batch(config), limit):
        yield batch.inputs, batch.targets


def effective_weights(run: Run) -> dict[str, Array]:
    """The effective weights (zeros where cut) of every trained initializer, by ONNX name."""
    return {name: holder.effective().cpu().numpy() for name, holder in run.weights.items()}


def masked_graph(
    graph: fx.GraphModule, model: onnx.ModelProto
) -> Callable[[Mapping[str, Array]], list[Any]]:
    """The masked graph of a model as a function from a batch to all of the model's outputs."""
    graph.eval()
    names, how = [s.name for s in input_specs(model)], model_feeding(model)

    @torch.no_grad()
    def compute(inputs: list[Array]) -> list[Any]:
        try:
            found = graph(*(torch.from_numpy(np.ascontiguousarray(x)) for x in inputs))
        except DOES_NOT_RUN as error:
            shapes = {n: list(x.shape) for n, x in zip(names, inputs, strict=True)}
            raise DataError(
                f"the imported graph does not run on inputs of shape {shapes}: "
                f"{(str(error).splitlines() or [''])[0]}; give rows of real ones (--eval)"
            ) from error
        values = found if isinstance(found, (tuple, list)) else [found]
        return [v.numpy() if isinstance(v, torch.Tensor) else v for v in values]

    return lambda inputs: how.run(compute, [inputs[n] for n in names])


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


def file_digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a model file and its external data, in hex."""
    digest = hashlib.sha256()
    for part in model_files(path):
        digest.update(part.read_bytes())
    return digest.hexdigest()


def data_digest(data: Dataset) -> str:
    """SHA-256 over the number of rows, all labels, and the first, middle and last row."""
    digest = hashlib.sha256(str(len(data)).encode())
    labels = all_labels(data)
    if labels is not None:
        digest.update(np.ascontiguousarray(labels).tobytes())
    for x in data.take(np.array([0, len(data) // 2, len(data) - 1])).inputs.values():
        digest.update(np.ascontiguousarray(x).tobytes())
    return digest.hexdigest()
