"""`dns-onnx compress`: prune a model by Dynamic Network Surgery."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from dns_onnx import distributed, page, report
from dns_onnx.cli.console import command_line, out, print_verdict, show, training_progress
from dns_onnx.config import Config, parse_config
from dns_onnx.config_files import load_config, load_recipe, recipes
from dns_onnx.converters.exporter import Export
from dns_onnx.cuts import Cut
from dns_onnx.errors import ConfigError
from dns_onnx.journal import Note
from dns_onnx.pipeline import compress as run
from dns_onnx.probe import Probe
from dns_onnx.reference import Reference
from dns_onnx.result import Result
from dns_onnx.trials import Trial

NAME = "compress"
EXAMPLE = (
    "Example: dns-onnx compress lenet5.onnx -o small.onnx --train mnist:data/mnist "
    "--eval mnist:data/mnist --recipe dns2016-lenet5 --report report"
)


class Format(StrEnum):
    """How pruned weights are written."""

    csr = "csr"
    portable = "portable"
    coo = "coo"
    dense = "dense"


class Values(StrEnum):
    """How the kept values are stored; the narrow ones lose precision, which the check reads."""

    float32 = "float32"
    float16 = "float16"
    int8 = "int8"


VALUES_HELP = "how kept values are stored (csr, portable); float16 and int8 lose precision"
REPORT_HELP = (
    "write a page of figures there (index.html), the same as JSON and Markdown, config.toml"
)
DROP_HELP = "remove units that died, where the result is provably the same"


class Counted(StrEnum):
    """What the drop counts from."""

    auto = "auto"
    original = "original"


class Device(StrEnum):
    """Where training runs."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


LOSS_HELP = (
    "what training minimises: cross-entropy, binary, mse, l1, ctc (labels), kl, cosine (without "
    "labels: the original model teaches), or package.module:function"
)
METRIC_HELP = (
    "what held-out data are judged by: accuracy, top5, f1, miou, mse, psnr, ler, agreement, "
    "relative-error, or package.module:function"
)
DROP_LIMIT_HELP = (
    "the budget: find the smallest model whose held-out metric is worse by no more than this "
    "(percentage points for fractions, dB for psnr, per cent for mse; default 0.1); exit 1 if the "
    "written file breaks it"
)
NO_WORSE_HELP = (
    "exit 1 if the metric is worse by more than this (percentage points for fractions, dB for "
    "psnr, per cent for mse); default: no limit"
)
COMPRESSION_HELP = "keep one entry in so many, e.g. 50, instead of searching"
SPARSITY_HELP = "the same as a share of zeros, e.g. 0.98"
MIN_METRIC_HELP = "the budget as the metric itself, e.g. 0.99"
MARGIN_HELP = (
    "stay within the budget by so many standard errors; 1 or 2 keep luck on few held-out rows from "
    "passing for quality (default 0)"
)
REFERENCE_HELP = (
    "what the drop counts from: auto, where the original knows the held-out rows by heart, takes "
    "what twins trained anew lose on new rows into account; original does not"
)
GRANULARITY_HELP = "what is cut as one: element, blocks such as 1x4 or 4x1, 2:4, or channel"
PICK_HELP = "with --resume: write this trial of the search rather than the smallest model"
DATA_HELP = (
    "an .npz with arrays named as the model's inputs and, if there are any, `labels`; mnist:DIR; a "
    "folder of npz shards, ONNX test_data_set_* or images; package.module:function; or random. "
    "Options after `?`: scale, mean, std, layout, input, split; of random: rows, low, high."
)
VAL_HELP = (
    "held-out data, which decide; without it, some of the training data do, drawn at random "
    "(data.holdout).  Give what the model has to do well on: other speakers, another day"
)
SHAPE_HELP = "whole shape of an input that leaves sizes open, such as x=1x3x224x224"


def command(
    model: Annotated[Path, typer.Argument(help="the ONNX model to prune")],
    out_file: Annotated[Path, typer.Option("-o", "--out", help="where the pruned model goes")],
    train: Annotated[
        str | None,
        typer.Option(help=f"training data, with labels or without: {DATA_HELP} Without --train "
                     "inputs are drawn at random: the weak mode.", metavar="DATA"),
    ] = None,
    val: Annotated[str | None, typer.Option(help=VAL_HELP, metavar="DATA")] = None,
    eval: Annotated[
        str | None,
        typer.Option(help="data that only judge the result; without it, the held-out data do",
                     metavar="DATA"),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="settings in TOML")] = None,
    recipe: Annotated[
        str | None, typer.Option(help=f"built-in settings: {', '.join(recipes())}")
    ] = None,
    format: Annotated[Format, typer.Option(help="how pruned weights are written")] = Format.csr,
    values: Annotated[Values, typer.Option(help=VALUES_HELP)] = Values.float32,
    device: Annotated[Device, typer.Option(help="where training runs")] = Device.auto,
    seed: Annotated[int | None, typer.Option(help="source of every random draw", min=0)] = None,
    iterations: Annotated[
        int | None, typer.Option(help="training iterations; the schedule is scaled along", min=1)
    ] = None,
    shape: Annotated[list[str] | None, typer.Option(help=SHAPE_HELP)] = None,
    loss: Annotated[str | None, typer.Option(help=LOSS_HELP)] = None,
    metric: Annotated[str | None, typer.Option(help=METRIC_HELP)] = None,
    compression: Annotated[
        float | None, typer.Option(help=COMPRESSION_HELP, metavar="RATIO")
    ] = None,
    sparsity: Annotated[float | None, typer.Option(help=SPARSITY_HELP)] = None,
    max_drop: Annotated[float | None, typer.Option(help=DROP_LIMIT_HELP)] = None,
    min_metric: Annotated[float | None, typer.Option(help=MIN_METRIC_HELP)] = None,
    margin: Annotated[float | None, typer.Option(help=MARGIN_HELP, min=0)] = None,
    reference: Annotated[Counted | None, typer.Option(help=REFERENCE_HELP)] = None,
    granularity: Annotated[str | None, typer.Option(help=GRANULARITY_HELP)] = None,
    drop_dead: Annotated[
        bool, typer.Option("--drop-dead", help=DROP_HELP)
    ] = False,
    report_dir: Annotated[
        Path | None, typer.Option("--report", help=REPORT_HELP)
    ] = None,
    tensorboard: Annotated[
        Path | None, typer.Option(help="write TensorBoard events there", metavar="DIR")
    ] = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="checkpoints and log (default: OUT with suffix .run)")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on from the newest checkpoint in the run folder")
    ] = False,
    pick: Annotated[int | None, typer.Option(help=PICK_HELP, metavar="TRIAL", min=0)] = None,
) -> None:  # fmt: skip
    """Prune MODEL by Dynamic Network Surgery and write the result as ONNX."""
    settings = chosen_config(
        config, recipe, seed, iterations,
        {
            "train": {"loss": loss, "metric": metric},
            "target": {
                "compression": compression, "sparsity": sparsity, "min_metric": min_metric,
                "margin": margin, "reference": reference and reference.value,
            },
            "surgery": {"granularity": granularity},
        },
    )  # fmt: skip
    settings = with_shapes(settings, shape or [])
    if report_dir is not None:
        try:
            report_dir.mkdir(parents=True, exist_ok=True)  # refused now rather than after training
        except OSError as error:
            raise ConfigError(f"--report: expected a folder, got: {error}") from error
    many = distributed.processes(device.value, settings.data.batch)
    with many, training_progress() as observe:
        result = run(
            model, out_file, train=train, val=val, eval=eval, config=settings, format=format.value,
            values=values.value,
            device=device.value, run_dir=run_dir, resume=resume, max_drop=max_drop,
            drop_dead=drop_dead, observe=observe, tell=print_found, pick=pick,
            tensorboard=tensorboard,
        )  # fmt: skip
    if resume:
        at, what = result.started_at, "trial" if result.trials else "iteration"
        said = f"Resumed at {what} {at}." if at else "Nothing finished there: started at 0."
        out.print(said, markup=False)
    if report_dir is not None:
        report.write(result, report_dir)
        page.write(result, report_dir, command_line())
    print_result(result)
    if not result.check.ok:
        raise typer.Exit(1)


def chosen_config(
    file: Path | None, recipe: str | None, seed: int | None, iterations: int | None,
    tables: Mapping[str, Mapping[str, Any]],
) -> Config:  # fmt: skip
    """The settings that the options name together.  tables: options that are keys of a table."""
    if file is not None and recipe is not None:
        raise ConfigError("--config and --recipe: expected one of them, got both")
    settings = load_config(file) if file else load_recipe(recipe) if recipe else Config()
    values = settings.model_dump(exclude_unset=True)
    if seed is not None:
        values["seed"] = seed
    for table, options in tables.items():
        given = {key: value for key, value in options.items() if value is not None}
        if given:
            values[table] = {**values.get(table, {}), **given}
    settings = parse_config(values, "the options")
    return settings.scaled(iterations) if iterations is not None else settings


def with_shapes(settings: Config, given: list[str]) -> Config:
    """The settings with the shapes that `--shape NAME=1x3x224x224` options name."""
    shapes = dict(settings.data.shape)
    for text in given:
        name, _, sizes = text.rpartition("=")
        if not name or not re.fullmatch(r"\d+(x\d+)*", sizes):
            raise ConfigError(f"--shape: expected NAME=1x3x224x224, got '{text}'")
        shapes[name] = tuple(int(n) for n in sizes.split("x"))
    return settings.model_copy(update={"data": settings.data.model_copy(update={"shape": shapes})})


def print_found(found: Trial | Reference | Cut | Probe | Note) -> None:
    """One line for each finished trial; before them, what their drops count from, cuts, a probe."""
    if not distributed.is_main():
        return
    if isinstance(found, Note):
        out.print(found.said, markup=False)
        return
    if isinstance(found, Cut):
        fitted, held = ", fitted" if found.fitted else "", "holds" if found.held else "taken back"
        also = "" if found.together is None else f" (with teaching rows {found.together:.4g})"
        chance = f", standard error {found.error:.2g}" if found.error else ""
        said = f"Cut: {found.ratio:.2f}x{fitted}, metric {found.metric:.4g}{also}{chance}: {held}"
        out.print(said)
        return
    if not isinstance(found, Trial):
        if found.said:
            out.print(f"{type(found).__name__}: {found.said}", markup=False)
        return
    verdict = "accepted" if found.accepted else "rolled back"
    said = found.note
    if found.metric is not None:
        drop = f"{found.metric_name} {found.metric:.4g}, drop {found.drop:+.3g}"
        drop += f", standard error {found.error:.2g}" if found.error else ""
        said = f"{drop} ({found.note})" if found.note else drop
    out.print(f"Trial {found.trial}: {found.ratio:.1f}x, {said}: {verdict}", markup=False)


def print_notes(export: Export) -> None:
    """Why a file was written in another form than asked for, and which units it lost."""
    for note in export.notes:
        out.print(f"Note: {note}", markup=False)
    if export.dropped:
        show("Units", report.units_table(export.dropped))


def print_result(result: Result) -> None:
    """The tables and sentences of a finished run."""
    show("Layers under surgery", report.layer_table(result))
    if result.spared:
        show("Layers left alone", report.spared_table(result))
    show("Weights in the file", report.tensor_table(result.export.tensors))
    print_notes(result.export)
    show(f"Check in ONNX Runtime ({result.metric_source} data)", report.check_table(result.check))
    out.print(f"Learned: {result.objective}", markup=False)
    if result.reference is not None:
        print_found(result.reference)
    print_verdict(result.check)
    out.print(f"Written: {result.path}", markup=False)
