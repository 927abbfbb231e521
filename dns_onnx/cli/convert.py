"""`dns-onnx convert`: write a model's weights in another format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dns_onnx import report
from dns_onnx.cli.check import prove
from dns_onnx.cli.compress import (
    DATA_HELP,
    DROP_HELP,
    METRIC_HELP,
    NO_WORSE_HELP,
    VALUES_HELP,
    Format,
    Values,
    print_notes,
)
from dns_onnx.cli.console import out, show
from dns_onnx.converters.exporter import convert
from dns_onnx.pipeline import refuse_bad_target
from dns_onnx.runtime.sizes import file_bytes

NAME = "convert"
EXAMPLE = "Example: dns-onnx convert small.onnx -o plain.onnx --format dense"


def command(
    model: Annotated[Path, typer.Argument(help="a model in any of the formats")],
    out_file: Annotated[Path, typer.Option("-o", "--out", help="where the result goes")],
    format: Annotated[Format, typer.Option(help="how sparse weights are written")],
    values: Annotated[Values, typer.Option(help=VALUES_HELP)] = Values.float32,
    drop_dead: Annotated[bool, typer.Option("--drop-dead", help=DROP_HELP)] = False,
    eval: Annotated[
        str | None, typer.Option(help=f"check the result on: {DATA_HELP}", metavar="DATA")
    ] = None,
    metric: Annotated[str | None, typer.Option(help=METRIC_HELP)] = None,
    max_drop: Annotated[float | None, typer.Option(help=NO_WORSE_HELP)] = None,
) -> None:
    """Write MODEL with its sparse weights in another format; float32 values stay bit for bit.

    With --eval the written file is checked, as `dns-onnx check MODEL RESULT` would.
    """
    refuse_bad_target(out_file, model)
    export = convert(model, format.value, out_file, values=values.value, drop_dead=drop_dead)
    show("Weights in the file", report.tensor_table(export.tensors))
    print_notes(export)
    out.print(
        f"Written: {out_file} ({file_bytes(out_file):,} bytes; {model}: {file_bytes(model):,})",
        markup=False,
    )
    if eval is not None or max_drop is not None:
        prove(model, out_file, eval, metric, max_drop)
    elif values is not Values.float32:
        out.print(
            f"{values.value} values are not the trained ones: --eval DATA reads the metric again."
        )
