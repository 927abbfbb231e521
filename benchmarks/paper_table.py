"""The paper's table on MNIST: the authors' recipe, our own, and the authors' files beside them.

    python benchmarks/paper_table.py --models DIR --mnist DIR --seeds 3
    python benchmarks/paper_table.py --models DIR --mnist DIR --seeds 3 --records

With --records: how small the same nets can be made.
DIR of --models holds lenet5_dense.onnx, lenet300100_dense.onnx and the authors' pruned *_dns.onnx.
Every run keeps a folder below --runs and goes on from it when it is started again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import torch
import typer
from onnx import numpy_helper
from rich.console import Console

from dns_onnx import report, sources
from dns_onnx.config_files import load_recipe
from dns_onnx.converters.exporter import convert
from dns_onnx.data import batches
from dns_onnx.pipeline import compress
from dns_onnx.rows import input_specs
from dns_onnx.runtime import session
from dns_onnx.runtime.judge import Judge, Judged
from dns_onnx.runtime.sizes import file_bytes

RECIPES = {
    "lenet5": ("dns2016-lenet5", "lenet5"),
    "lenet300100": ("dns2016-lenet300100", "lenet300100"),
}
RECORDS = {"lenet5": ("record-lenet5",), "lenet300100": ("record-lenet300100",)}
FORMATS = ("csr", "portable", "coo", "dense")
EVAL_ROWS = 1000  # rows at a time through ONNX Runtime
console = Console(soft_wrap=True, highlight=False)


@dataclass(frozen=True)
class Row:
    """One line of the table.  Errors are fractions on the test images, read from the file."""

    net: str
    recipe: str
    seed: int | None
    before: float
    after: float
    kept: int
    total: int
    kept_per_layer: dict[str, int]
    iterations: int | None
    seconds: float | None
    heldout: float | None
    file_bytes: dict[str, int]
    formats_agree: bool

    @property
    def ratio(self) -> float:
        return self.total / self.kept


def main(
    models: Annotated[Path, typer.Option(help="folder of the authors' models")],
    mnist: Annotated[Path, typer.Option(help="folder of the four idx files")],
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    net: Annotated[list[str] | None, typer.Option(help="lenet5, lenet300100")] = None,
    recipe: Annotated[list[str] | None, typer.Option(help="only these recipes")] = None,
    records: Annotated[bool, typer.Option(help="the smallest nets instead")] = False,
    runs: Annotated[Path, typer.Option(help="checkpoints and models")] = Path("runs/paper_table"),
    jobs: Annotated[int, typer.Option(help="runs at a time, one thread each", min=1)] = 2,
    out: Annotated[Path | None, typer.Option(help="write the table there as .md and .json")] = None,
) -> None:
    """Train, export and measure every net, recipe and seed; print the table."""
    nets = net or list(RECIPES)
    rows = [authors_row(n, models, mnist) for n in nets]
    wanted = [
        (n, r, seed, models, mnist, runs)
        for n in nets
        for r in (RECORDS if records else RECIPES)[n]
        for seed in range(seeds)
        if not recipe or r in recipe
    ]
    context = get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_one_thread) as pool:
        futures = [pool.submit(one_run, *args) for args in wanted]
        for future in as_completed(futures):
            row = future.result()
            console.print(f"done: {row.net} {row.recipe} seed {row.seed}: "
                          f"{row.ratio:.1f}x at {report.percent(row.after)}")  # fmt: skip
    rows += [f.result() for f in futures]
    text = table(rows)
    console.print(text, markup=False)
    if out is not None:
        write(out, rows, text, jobs)


def _one_thread() -> None:
    torch.set_num_threads(1)


def one_run(net: str, recipe: str, seed: int, models: Path, mnist: Path, runs: Path) -> Row:
    """Compress one net and measure the file it became; goes on from its run folder."""
    dense = models / f"{net}_dense.onnx"
    name = f"{recipe}-seed{seed}"
    folder = runs / name
    folder.mkdir(parents=True, exist_ok=True)
    config = load_recipe(recipe).model_copy(update={"seed": seed})
    result = compress(
        dense, folder / f"{name}.onnx", train=f"mnist:{mnist}", eval=f"mnist:{mnist}",
        config=config, device="auto", run_dir=folder, resume=True,
    )  # fmt: skip
    report.write(result, folder)
    sizes, agree = _formats(result.path, mnist)
    c = result.check
    return Row(
        net, recipe, seed, _error(c.metric, "before"), _error(c.metric, "after"), c.kept, c.total,
        {layer.name: layer.kept for layer in result.layers}, result.outcome.iterations,
        result.outcome.seconds, _wrong(result.outcome.best_metric), sizes, agree,
    )  # fmt: skip


def authors_row(net: str, models: Path, mnist: Path) -> Row:
    """The authors' own pruned model, measured the same way."""
    dense, pruned = models / f"{net}_dense.onnx", models / f"{net}_dns.onnx"
    arrays = {i.name: numpy_helper.to_array(i) for i in onnx.load(pruned).graph.initializer}
    layers: dict[str, int] = {}
    for name, array in arrays.items():
        layer = name.rsplit(".", 1)[0]
        layers[layer] = layers.get(layer, 0) + int(np.count_nonzero(array))
    before, after = judged_on_test(dense, pruned, mnist)
    return Row(
        net, "the authors' file", None, before, after,
        sum(layers.values()), sum(a.size for a in arrays.values()), layers, None, None, None,
        {"dense": file_bytes(pruned)}, True,
    )  # fmt: skip


def judged_on_test(dense: Path, pruned: Path, mnist: Path) -> tuple[float, float]:
    """The fractions of test images that both files get wrong, in ONNX Runtime."""
    judge = Judge(dense, pruned, "accuracy")
    for inputs, labels in _test_batches(pruned, mnist):
        judge.update(inputs, labels)
    found = judge.judged()
    return _error(found, "before"), _error(found, "after")


def _test_batches(path: Path, mnist: Path) -> Iterator[tuple[dict[str, Any], Any]]:
    specs = input_specs(onnx.load(path))
    preprocess = load_recipe("dns2016-lenet5").preprocess
    for batch in batches(sources.load(f"mnist:{mnist}", specs, preprocess, "eval"), EVAL_ROWS):
        yield batch.inputs, batch.labels


def _error(found: Judged | None, which: str) -> float:
    """Fraction of rows that a file gets wrong."""
    return 0.0 if found is None else _wrong(getattr(found, which)) or 0.0


def _wrong(accuracy: float | None) -> float | None:
    return None if accuracy is None else round(1 - accuracy, 9)


def _formats(path: Path, mnist: Path) -> tuple[dict[str, int], bool]:
    """Bytes in each format, and whether all give bit-equal outputs in ONNX Runtime."""
    inputs, _ = next(_test_batches(path, mnist))
    want = session(path, native=False).run(None, inputs)[0]
    sizes, agree = {}, True
    for name in FORMATS:
        other = path.with_name(f"{path.stem}.{name}.onnx")
        convert(path, name, other)
        got = session(other, native=False).run(None, inputs)[0]
        agree &= bool(np.array_equal(want.view(np.uint32), got.view(np.uint32)))
        sizes[name] = file_bytes(other)
    return sizes, agree


def table(rows: list[Row]) -> str:
    """The rows in Markdown, one table a net."""
    header = ["recipe", "seed", "error before", "after", "kept", "ratio", "kept per layer",
              "iterations", "seconds", "held-out", *(f"{f} bytes" for f in FORMATS),
              "formats bit-equal"]  # fmt: skip
    parts = []
    for net in dict.fromkeys(r.net for r in rows):
        lines = [
            [r.recipe, "-" if r.seed is None else str(r.seed), report.percent(r.before),
             report.percent(r.after), f"{r.kept:,} of {r.total:,}", f"{r.ratio:.1f}x",
             " ".join(f"{k} {v}" for k, v in r.kept_per_layer.items()),
             "-" if r.iterations is None else f"{r.iterations:,}",
             "-" if r.seconds is None else f"{r.seconds:.0f}", report.percent(r.heldout),
             *(f"{r.file_bytes[f]:,}" if f in r.file_bytes else "-" for f in FORMATS),
             "yes" if r.formats_agree else "NO"]
            for r in rows
            if r.net == net
        ]  # fmt: skip
        parts += [f"### {net}", report.markdown((header, lines))]
    return "\n\n".join(parts)


def write(out: Path, rows: list[Row], text: str, jobs: int) -> None:
    """The table and the figures behind it, with machine and versions."""
    machine = {**report.machine(), "runs at a time": str(jobs), "threads a run": "1"}
    where = ", ".join(f"{k} {v}" for k, v in machine.items())
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".md").write_text(f"{text}\n\nMeasured with: {where}.\n", "utf-8")
    values = {"machine": machine, "rows": [{**asdict(r), "ratio": r.ratio} for r in rows]}
    out.with_suffix(".json").write_text(json.dumps(values, indent=1), "utf-8")


if __name__ == "__main__":
    typer.run(main)
