"""`dns-onnx check`: prove in ONNX Runtime that a pruned file is right, small and fast."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeVar

import numpy as np
import onnx
import typer
from pydantic import BaseModel, ValidationError

from dns_onnx import report, sources
from dns_onnx.cli.compress import DATA_HELP, METRIC_HELP, NO_WORSE_HELP
from dns_onnx.cli.console import out, print_verdict, show, write_json
from dns_onnx.config import Config, Preprocess
from dns_onnx.converters.frontier import attachment_points
from dns_onnx.converters.importer import import_model
from dns_onnx.converters.reader import read_model
from dns_onnx.drawn import sized
from dns_onnx.entry import is_entry_point
from dns_onnx.errors import ConfigError, ModelError
from dns_onnx.pipeline import evaluation_pairs, masked_graph
from dns_onnx.rows import input_specs
from dns_onnx.runtime.check import check
from dns_onnx.runtime.session import session

Stored = TypeVar("Stored", bound=BaseModel)

NAME = "check"
EXAMPLE = "Example: dns-onnx check lenet5.onnx small.onnx --eval mnist:data/mnist --max-drop 0.1"


def command(
    original: Annotated[Path, typer.Argument(help="the model before pruning")],
    pruned: Annotated[Path, typer.Argument(help="the model after it")],
    eval: Annotated[
        str | None, typer.Option(help=f"data to compare on: {DATA_HELP}", metavar="DATA")
    ] = None,
    metric: Annotated[str | None, typer.Option(help=METRIC_HELP)] = None,
    max_drop: Annotated[float | None, typer.Option(help=NO_WORSE_HELP)] = None,
    threads: Annotated[int, typer.Option(help="threads of ONNX Runtime", min=1)] = 1,
    seconds: Annotated[float, typer.Option(help="time for each latency, in seconds")] = 1.0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="write all figures there")
    ] = None,
) -> None:
    """Compare PRUNED with its masked graph and with ORIGINAL: outputs, metric, bytes, speed.

    The preprocessing and the metric that the pruned file was trained with are read from its
    metadata.
    """
    prove(original, pruned, eval, metric, max_drop, threads, seconds, json_file)


def prove(
    original: Path,
    pruned: Path,
    eval: str | None,
    metric: str | None,
    max_drop: float | None,
    threads: int = 1,
    seconds: float = 1.0,
    json_file: Path | None = None,
) -> None:
    """Check a written file and print what is found; exit code 1 where it misses what was asked."""
    model = read_model(pruned)
    graph, settings, data = import_model(model, str(pruned)), stored_settings(model), None
    outputs: list[str] = []
    if eval is not None:
        specs = input_specs(model)
        if sources.is_random(eval):
            specs, taken = sized(specs, session(pruned, native=False))
            if taken:
                out.print(taken, markup=False)
        dataset = sources.load(eval, specs, stored_preprocess(model), "eval")
        data = evaluation_pairs(dataset, settings)
        labelled = bool(dataset.take(np.arange(1)).targets)
        outputs = settings.train.outputs or ([] if labelled else attachment_points(graph))
    if metric is None and data is not None:
        metric = trusted(settings.train.metric, str(pruned))
    found = check(
        original, pruned, data, reference=masked_graph(graph, model),
        metric=metric or "auto", outputs=outputs, max_drop=max_drop,
        seconds=seconds, threads=threads,
    )  # fmt: skip
    show("Check in ONNX Runtime", report.check_table(found))
    print_verdict(found)
    if json_file is not None:
        write_json(json_file, {"machine": report.machine(), **found.to_json()})
    if not found.ok:
        raise typer.Exit(1)


def trusted(metric: str, where: str) -> str:
    """A metric that a file names; one that is a function of somebody's runs only when asked for.

    Raises ConfigError.
    """
    if is_entry_point(metric):
        raise ConfigError(
            f"{where}: was judged by the function {metric}, which a file alone does not make run; "
            f"--metric {metric} does, where you trust it, or name another metric"
        )
    return metric


def stored(model: onnx.ModelProto, key: str) -> str:
    """What a compressed file says of itself under `dns_onnx.KEY`; empty where it says nothing."""
    return next((m.value for m in model.metadata_props if m.key == f"dns_onnx.{key}"), "")


def stored_preprocess(model: onnx.ModelProto) -> Preprocess:
    """The preprocessing that a compressed file says it was trained with.

    Raises ModelError where it cannot be read.
    """
    return _stored_as(Preprocess, model, "preprocess", "preprocessing")


def stored_settings(model: onnx.ModelProto) -> Config:
    """The settings that a compressed file says it was made with; the defaults where it says none.

    Raises ModelError where they cannot be read.
    """
    return _stored_as(Config, model, "config", "settings")


def _stored_as(kind: type[Stored], model: onnx.ModelProto, key: str, what: str) -> Stored:
    text = stored(model, key)
    try:
        return kind.model_validate_json(text) if text else kind()
    except ValidationError as error:
        raise ModelError(
            f"metadata dns_onnx.{key}: expected {what} in JSON, got {text!r}"
        ) from error
