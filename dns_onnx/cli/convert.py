"""`dns-onnx convert`: write a model's weights in another format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dns_onnx import report
from dns_onnx.cli.compress import Format
from dns_onnx.cli.console import out, show
from dns_onnx.converters.exporter import convert
from dns_onnx.runtime.sizes import file_bytes

NAME = "convert"
EXAMPLE = "Example: dns-onnx convert small.onnx -o plain.onnx --format dense"


def command(
    model: Annotated[Path, typer.Argument(help="a model in any of the formats")],
    out_file: Annotated[Path, typer.Option("-o", "--out", help="where the result goes")],
    format: Annotated[Format, typer.Option(help="how sparse weights are written")],
) -> None:
    """Write MODEL with its sparse weights in another format; every value stays bit for bit."""
    export = convert(model, format.value, out_file)
    show("Weights in the file", report.tensor_table(export.tensors))
    for note in export.notes:
        out.print(f"Note: {note}", markup=False)
    out.print(
        f"Written: {out_file} ({file_bytes(out_file):,} bytes; {model}: {file_bytes(model):,})",
        markup=False,
    )
