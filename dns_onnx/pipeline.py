"""The whole road: an ONNX file in, surgery, a pruned ONNX file out, and the proof of it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
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
from dns_onnx.converters.exporter import export_model
from dns_onnx.converters.importer import import_model
from dns_onnx.converters.reader import read_model
from dns_onnx.cuts import Cut
from dns_onnx.data import Dataset, batches
from dns_onnx.drawn import WEAK, sized
from dns_onnx.errors import ConfigError, DataError, NotMain
from dns_onnx.fingerprint import fingerprint
from dns_onnx.journal import Note, Observer, silent
from dns_onnx.prepare import Prepared, prepare_run, torch_device
from dns_onnx.probe import Probe
from dns_onnx.reference import Reference
from dns_onnx.result import Result, finished, layer_results, provenance
from dns_onnx.rows import Rows, input_specs, load_rows, model_feeding, with_batch
from dns_onnx.runtime.batching import run as run_in_ort
from dns_onnx.runtime.check import check
from dns_onnx.runtime.metrics import Metric
from dns_onnx.runtime.session import session
from dns_onnx.search import Search
from dns_onnx.train import Outcome, Run, eval_batch
from dns_onnx.trials import Trial

Array = NDArray[Any]
Tell = Callable[[Trial | Reference | Cut | Probe | Note], None]
TRAIN_METRIC_ROWS = 10_000  # rows of training data that stand in where there is nothing better


def compress(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    train: Any = None,
    val: Any = None,
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
    tell: Tell = lambda found: None,
    pick: int | None = None,
    tensorboard: str | os.PathLike[str] | None = None,
) -> Result:
    """Prune an ONNX model by Dynamic Network Surgery and write the result as ONNX.

    model, out: paths.  train, val, eval: DATA arguments (see `sources.load`), torch Datasets,
        iterables of batches, or datasets of ours.  val: the held-out rows that all decisions are
        made on; default: some of the training rows (`data.holdout`).  eval data decide nothing.
        Without train data, inputs are drawn at random from what the model declares (the weak mode).
    config: default: search for the smallest model within 0.1 points.
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
    rows = load_rows(train, val, eval, config, specs)
    config = with_batch(config, rows.teaching)
    prepared = prepare_run(
        trained, graph, config, where, rows.teaching,
        Path(run_dir) if run_dir else out.with_suffix(".run"), fingerprint(model, rows, config),
        Path(tensorboard) if tensorboard else None,
    )  # fmt: skip
    for note in [*prepared.notes, *slow_halves(prepared.run)]:
        tell(Note(note))
    run, config = prepared.run, prepared.run.config
    judged, source, heldout = rows.judged, rows.source, rows.heldout
    run.objective.refuse_bad_data(run.model, {"held-out": heldout, source: judged}, where)
    singly = run.model.feeding != model_feeding(trained)
    for inputs, _ in evaluation_pairs(judged, config, 2, singly):
        run_in_ort(opened, inputs)  # rows, too
    del opened  # which holds all weights
    teaching, heldout = run.objective.remembered(rows.teaching, heldout, config, where)
    rows = replace(rows, teaching=teaching, heldout=heldout)
    with claimed(run.folder) if distributed.is_main() else nullcontext():
        done = operate(prepared, rows, resume, pick, observe, tell)
    if not distributed.is_main():
        raise NotMain(f"process {distributed.rank()}: the first process writes the result")
    export = export_model(
        model, effective_weights(run), out, format=format, values=values, drop_dead=drop_dead,
        metadata=provenance(config, run, done.outcome, str(model)),
    )  # fmt: skip
    limit = TRAIN_METRIC_ROWS if source.endswith("training") else None
    # narrow values are not the trained ones: the metric judges them, the arrays must agree
    exact = masked_graph(graph.to("cpu"), trained) if values == "float32" else None
    found = check(
        Path(model), out, evaluation_pairs(judged, config, limit, singly), reference=exact,
        metric=run.objective.metric, outputs=[h.output for h in run.objective.heads],
        max_drop=allowed(max_drop, done.reference, run.objective.metric, judged is heldout),
        seconds=bench_seconds,
    )  # fmt: skip
    found = replace(found, words=[*([weak] if weak else []), *found.words, *prepared.notes])
    return Result(
        Path(model), out, config, str(where), done.started_at, done.outcome,
        layer_results(run, done.thresholds), prepared.spared, export, found, source, run.folder,
        run.objective.said, run.objective.metric, max_drop, run.fingerprint, done.trials,
        done.reference,
    )  # fmt: skip


@dataclass(frozen=True)
class Operated:
    """What surgery came to, beside the weights and masks that the model has then.

    thresholds: t at the end, by the weight's name.  started_at, trials, reference: as in Result.
    """

    outcome: Outcome
    thresholds: dict[str, float]
    started_at: int
    trials: list[Trial] = field(default_factory=list)
    reference: Reference | None = None


def operate(
    prepared: Prepared, rows: Rows, resume: bool, pick: int | None, observe: Observer, tell: Tell
) -> Operated:
    """Cut, splice and train: by thresholds where they are given, else by a search."""
    run = prepared.run
    if run.config.has_thresholds:
        if not resume:
            run.start_fresh()
        started_at = run.resume() if resume else 0
        outcome = run.train(rows.teaching, rows.heldout, observe)
        return Operated(outcome, run.surgery.thresholds(), started_at)
    search = start_search(prepared, rows, resume)
    started_at = len(search.trials)
    search.settle(observe)
    tell(search.reference)
    tell(search.explore(tell))
    best = search.find(observe, tell) if pick is None else search.take(pick)
    outcome = finished(best, search.trials)
    return Operated(outcome, best.thresholds, started_at, search.trials, search.reference)


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


def start_search(prepared: Prepared, rows: Rows, resume: bool) -> Search:
    """The search, with the trials that are finished where it is resumed.

    Raises ConfigError without held-out rows.
    """
    if rows.heldout is None:
        raise ConfigError(
            "data.holdout: expected some held-out rows to judge the trials on, got none; give some "
            "(--val), or thresholds (c_rate)"
        )
    search = Search(prepared.run, prepared.sparsity, rows.teaching, rows.heldout, rows.apart)
    if resume:
        search.resume()
    else:
        search.start_fresh()
    return search


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
