"""`dns-onnx demo`: the whole road on data that need no download."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from dns_onnx import demo, page, report
from dns_onnx.cli.compress import print_result
from dns_onnx.cli.console import command_line, out, training_progress
from dns_onnx.pipeline import compress

NAME = "demo"
EXAMPLE = "Example: dns-onnx demo --folder demo"


def command(
    folder: Annotated[Path, typer.Option(help="where the models and the report go")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="source of every random draw")] = 0,
) -> None:
    """Train a small net on scikit-learn's digits, prune it, write CSR ONNX, check it."""
    torch.set_num_threads(1)  # on a net this small, handing work to a second thread costs more
    out.print("Training a dense 64-300-100-10 net on scikit-learn's digits ...")
    dense, train, test = demo.write_dense(folder, seed)
    out.print(f"Pruning {dense} by Dynamic Network Surgery ...", markup=False)
    with training_progress() as observe:
        result = compress(
            dense, folder / "digits-pruned.onnx", train=train, eval=test,
            config=demo.settings(seed), observe=observe,
        )  # fmt: skip
    report.write(result, folder / "report")
    page.write(result, folder / "report", command_line())
    print_result(result)
    if not result.check.ok:
        raise typer.Exit(1)
