"""`dns-onnx bench`: latency and load time of models, in turn."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from dns_onnx import report
from dns_onnx.cli.console import out, show, write_json
from dns_onnx.runtime.bench import bench
from dns_onnx.runtime.library import library_available

NAME = "bench"
EXAMPLE = "Example: dns-onnx bench lenet5.onnx --against small.onnx --threads 2"


def command(
    model: Annotated[Path, typer.Argument(help="the model that the others are held against")],
    against: Annotated[
        list[Path] | None, typer.Option(help="a model to time beside it; may be repeated")
    ] = None,
    threads: Annotated[int, typer.Option(help="threads of ONNX Runtime", min=1)] = 1,
    batch: Annotated[int, typer.Option(help="rows, where the batch axis is free", min=1)] = 1,
    seconds: Annotated[float, typer.Option(help="time for each contender, in seconds")] = 3.0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="write all figures there")
    ] = None,
) -> None:
    """Time models in ONNX Runtime, with and without the dns-onnx kernels, round after round."""
    runners: dict[str, str | Path] = {}
    for path in [model, *(against or [])]:
        runners[str(path)] = path
        if library_available():
            runners[f"{path} + kernels"] = path
    native = [name for name in runners if name.endswith(" + kernels")]
    found = bench(runners, seconds=seconds, threads=threads, rows=batch, native=native)
    rows = [
        [t.name, f"{t.latency_ms:.3f}", f"{t.low_ms:.3f} - {t.high_ms:.3f}", f"{t.ratio:.2f}",
         f"{t.load_ms:.1f}", str(t.runs)]
        for t in found
    ]  # fmt: skip
    header = ["model", "median ms", "quartiles ms", "speed / first", "load ms", "runs"]
    show(f"Latency, {batch} row(s), {threads} thread(s), in turn", (header, rows))
    if not native:
        out.print("The native kernels are not built here: only plain ONNX Runtime was timed.")
    if json_file is not None:
        write_json(
            json_file, {"machine": report.machine(), "threads": threads, "rows": batch,
                        "timings": [asdict(t) for t in found]},
        )  # fmt: skip
