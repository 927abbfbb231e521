"""This project's surgery against other ways to prune, at equal size: the same nets, data, budget.

    python benchmarks/alternatives.py --models DIR --mnist DIR --onnxsim ENV/bin/python

DIR of --models holds lenet300100_dense.onnx and lenet5_dense.onnx.  --onnxsim names the interpreter
of an environment with onnxsim and onnxruntime; without it, onnxsim's lines are left out.
All methods get the same batches, moved the same way, the same optimizer and as many iterations.
Where a method has variants, the first seed runs them all and held-out rows choose one for the other
seeds; they choose each run's best state too.  Test images are read when all files are written, once
each.  A finished run stays in its folder below --runs, and an unfinished one goes on.
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from baselines import METHODS, ONE_SHOT, OURS, RATE, Job, Onnxsim, pruning
from paper_table import judged_on_test
from rich.console import Console

from dns_onnx import report, sources
from dns_onnx.config import Config, Preprocess, parse_config
from dns_onnx.converters.batch import free_batch
from dns_onnx.converters.exporter import export_model
from dns_onnx.converters.importer import import_model
from dns_onnx.converters.reader import read_model
from dns_onnx.data import Dataset
from dns_onnx.journal import silent
from dns_onnx.pipeline import compress, effective_weights
from dns_onnx.prepare import prepare_run
from dns_onnx.rows import input_specs, load_rows
from dns_onnx.runtime.sizes import file_bytes
from dns_onnx.train import Run
from dns_onnx.trials import Plan, trial_config

NETS = {"lenet300100": 8000, "lenet5": 4000}  # iterations
SIZES = {"lenet300100": (0.90, 0.95, 0.98, 0.99), "lenet5": (0.90, 0.95, 0.98, 0.99)}
PREPROCESS = Preprocess(scale=1 / 256)
console = Console(soft_wrap=True, highlight=False)


@dataclass(frozen=True)
class Found:
    """What a run came to.  heldout: the fraction of held-out rows that it gets wrong.

    said: what the tool itself reported (onnxsim).  bytes: of the file that this project writes.
    """

    job: Job
    heldout: float
    kept: int
    total: int
    layers: dict[str, int]
    seconds: float
    path: str
    bytes: int
    said: dict[str, Any]


Judged = tuple[list[Found], list[float | None]]  # runs, and what each gets wrong on test images


@dataclass(frozen=True)
class Places:
    """Where things are."""

    models: Path
    mnist: Path
    runs: Path
    onnxsim: Path | None


def main(
    models: Annotated[Path, typer.Option(help="folder of the authors' models")],
    mnist: Annotated[Path, typer.Option(help="folder of the four idx files")],
    onnxsim: Annotated[Path | None, typer.Option(help="python of its environment")] = None,
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    net: Annotated[list[str] | None, typer.Option(help="lenet300100, lenet5")] = None,
    size: Annotated[list[float] | None, typer.Option(help="sparsities, 0 to 1")] = None,
    method: Annotated[list[str] | None, typer.Option(help="only those that begin so")] = None,
    iterations: Annotated[int | None, typer.Option(help="other than a net's own")] = None,
    rate: Annotated[float, typer.Option(help="of learning")] = RATE,
    runs: Annotated[Path, typer.Option(help="checkpoints, models")] = Path("runs/alternatives"),
    test: Annotated[bool, typer.Option(help="read the test images in the end")] = True,
    out: Annotated[Path | None, typer.Option(help="write the table there, .md and .json")] = None,
) -> None:
    """Run what is not there yet, choose, judge, and print the table."""
    torch.set_num_threads(1)
    places = Places(models, mnist, runs, onnxsim)
    chosen: list[list[Found]] = []
    for n in net or list(NETS):
        for sparsity in size or SIZES[n]:
            for name in METHODS:
                if name.startswith("onnxsim") and onnxsim is None:
                    continue
                if method and not any(name.startswith(m) for m in method):
                    continue
                steps = 0 if name in ONE_SHOT else iterations or NETS[n]
                chosen.append(seeds_of(n, sparsity, name, seeds, steps, rate, places))
    errors = [[tested(f, places) if test else None for f in found] for found in chosen]
    console.print(table(chosen, errors), markup=False)
    if out is not None:
        write(out, chosen, errors)


def seeds_of(
    net: str, sparsity: float, method: str, seeds: int, iterations: int, rate: float,
    places: Places,
) -> list[Found]:  # fmt: skip
    """All seeds of the variant that does best on held-out rows at the first seed."""
    first = [
        finished(Job(net, sparsity, method, variant, 0, iterations, rate), places)
        for variant in METHODS[method]
    ]
    best = min(first, key=lambda f: f.heldout)
    others = [replace(best.job, seed=seed) for seed in range(1, seeds)]
    return [best, *(finished(job, places) for job in others)]


# ---------------------------------------------------------------------- one run


def finished(job: Job, places: Places) -> Found:
    """The result of a run, from its folder where it has one."""
    folder = places.runs / job.folder
    record = folder / "found.json"
    if record.exists():
        values = json.loads(record.read_text("utf-8"))
        return Found(**{**values, "job": Job(**values["job"])})
    folder.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    found = ours(job, places, folder) if job.method == OURS else theirs(job, places, folder)
    record.write_text(json.dumps(asdict(found), indent=1), "utf-8")
    console.print(f"{job.folder}: held-out {report.percent(found.heldout)}, {found.kept:,} kept, "
                  f"{time.monotonic() - begun:.0f} s")  # fmt: skip
    return found


def settings(job: Job) -> Config:
    """The same for all: optimizer, batch, augmentation, iterations; and the size."""
    return parse_config(
        {"name": "alternatives", "seed": job.seed,
         "data": {"batch": 64, "holdout": 5000, "shift": 1},
         "preprocess": PREPROCESS,
         "solver": {"lr": job.rate},
         "train": {"iterations": max(job.iterations, 1), "eval_every": 1000},
         "target": {"sparsity": job.sparsity}}, "alternatives",
    )  # fmt: skip


def ours(job: Job, places: Places, folder: Path) -> Found:
    """`dns-onnx compress --sparsity`; without evaluation data it is judged on held-out rows."""
    path = folder / "model.onnx"
    result = compress(
        places.models / f"{job.net}_dense.onnx", path, train=images(job.net, places),
        config=settings(job), device="cpu", run_dir=folder, resume=True, bench_seconds=0.05,
    )  # fmt: skip
    layers = {x.name: x.kept for x in result.layers}
    metric = result.outcome.best_metric or 0.0
    return Found(
        job, round(1 - metric, 9), sum(layers.values()), sum(x.size for x in result.layers),
        layers, result.outcome.seconds, str(path), file_bytes(path), {},
    )  # fmt: skip


@cache
def images(net: str, places: Places) -> Dataset:
    """The training images, read once."""
    specs = input_specs(read_model(places.models / f"{net}_dense.onnx"))
    return sources.load(f"mnist:{places.mnist}", specs, PREPROCESS, "train")


def theirs(job: Job, places: Places, folder: Path) -> Found:
    """Prune by another method, train on, export: the road that `compress` takes."""
    dense, config = places.models / f"{job.net}_dense.onnx", settings(job)
    torch.manual_seed(config.seed)
    model = read_model(dense)
    rows = load_rows(images(job.net, places), None, None, config, input_specs(model))
    data, heldout = rows.teaching, rows.heldout
    if heldout is None:
        raise RuntimeError("held-out rows decide; data.holdout must not be 0")
    trained = free_batch(model).model
    prepared = prepare_run(
        trained, import_model(trained), config, torch.device("cpu"), data, folder, {}
    )
    config = trial_config(config, Plan(1 / (1 - job.sparsity), None), 0)
    layers = list(prepared.run.surgery)
    tool = Onnxsim(places.onnxsim, folder.parent / f"onnxsim-seed{job.seed}")
    surgery, said = pruning(job, layers, config, dense, data, tool)
    run = prepared.run.again(surgery, config, folder, {"job": asdict(job)})
    metric = trained_on(run, data, heldout) if job.iterations else run.score(heldout)
    path = folder / "model.onnx"
    export_model(dense, effective_weights(run), path)
    return Found(
        job, round(1 - metric, 9), surgery.kept(), surgery.size(),
        {x.name: x.kept() for x in layers}, run.seconds, str(path), file_bytes(path), said,
    )  # fmt: skip


def trained_on(run: Run, data: Dataset, heldout: Dataset) -> float:
    """Train to the end; the held-out metric of the state that the model then has."""
    run.resume()
    outcome = run.train(data, heldout, silent)
    return run.score(heldout) if outcome.best_metric is None else outcome.best_metric


# ---------------------------------------------------------------------- the table


def tested(found: Found, places: Places) -> float:
    """The fraction of test images that the written file gets wrong, in ONNX Runtime."""
    dense = places.models / f"{found.job.net}_dense.onnx"
    return judged_on_test(dense, Path(found.path), places.mnist)[1]


def table(chosen: list[list[Found]], errors: list[list[float | None]]) -> str:
    """One table a net in Markdown, the lowest held-out error of each size in bold."""
    header = ["sparsity", "method", "variant", "held-out error", "test error", "of each seed",
              "kept", "bytes", "seconds"]  # fmt: skip
    parts = []
    for net in dict.fromkeys(found[0].job.net for found in chosen):
        here = [(f, e) for f, e in zip(chosen, errors, strict=True) if f[0].job.net == net]
        lines = []
        for found, error in here:
            job = found[0].job
            rivals = [f for f, _ in here if f[0].job.sparsity == job.sparsity]
            heldout = report.percent(mean_heldout(found))
            if mean_heldout(found) == min(mean_heldout(f) for f in rivals):
                heldout = f"**{heldout}**"
            known = [e for e in error if e is not None]
            lines.append(
                [f"{100 * job.sparsity:g} %", job.method, job.variant, heldout,
                 report.percent(statistics.mean(known)) if known else "-",
                 " ".join(f"{100 * e:.2f}" for e in known),
                 f"{statistics.mean(f.kept for f in found):,.0f}",
                 f"{statistics.mean(f.bytes for f in found):,.0f}",
                 f"{statistics.mean(f.seconds for f in found):.0f}"]
            )  # fmt: skip
        parts += [f"### {net}", report.markdown((header, lines))]
    return "\n\n".join(parts)


def mean_heldout(found: list[Found]) -> float:
    """Over the seeds."""
    return statistics.mean(f.heldout for f in found)


def write(out: Path, chosen: list[list[Found]], errors: list[list[float | None]]) -> None:
    """The table and the figures behind it, with machine and versions."""
    machine = {**report.machine(), "threads a run": "1"}
    versions = {f.said["version"] for found in chosen for f in found if "version" in f.said}
    if versions:
        machine["onnxsim"] = " ".join(sorted(versions))
    pairs = [*zip(chosen, errors, strict=True)]
    if out.with_suffix(".json").exists():
        before = json.loads(out.with_suffix(".json").read_text("utf-8"))
        machine = both(before["machine"], machine)
        pairs += others(before["rows"], chosen)
        pairs.sort(key=lambda pair: order(pair[0][0].job))
    text = table([found for found, _ in pairs], [error for _, error in pairs])
    where = ", ".join(f"{k} {v}" for k, v in machine.items())
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".md").write_text(f"{text}\n\nMeasured with: {where}.\n", "utf-8")
    rows = [
        {**asdict(f), **asdict(f.job), "test": e, "path": None, "job": None}
        for found, error in pairs
        for f, e in zip(found, error, strict=True)
    ]
    values = {"machine": machine, "rows": [{k: v for k, v in r.items() if v is not None}
                                           for r in rows]}  # fmt: skip
    out.with_suffix(".json").write_text(json.dumps(values, indent=1) + "\n", "utf-8")


def others(rows: list[dict[str, Any]], chosen: list[list[Found]]) -> list[Judged]:
    """What a table has of sizes that were not run now, trained for as long as these."""
    now = {(f.job.net, f.job.sparsity) for found in chosen for f in found}
    lengths = {f.job.iterations for found in chosen for f in found} | {0}
    groups: dict[tuple[Any, ...], Judged] = {}
    for row in rows:
        job = Job(**{k: row[k] for k in Job.__dataclass_fields__})
        if (job.net, job.sparsity) in now or job.iterations not in lengths:
            continue
        values = {k: row[k] for k in Found.__dataclass_fields__ if k in row}
        found, error = groups.setdefault((job.net, job.sparsity, job.method), ([], []))
        found.append(Found(**{**values, "job": job, "path": ""}))
        error.append(row.get("test"))
    return list(groups.values())


def both(before: dict[str, str], now: dict[str, str]) -> dict[str, str]:
    """Two descriptions of where something was measured; both values where they differ."""
    joined = {
        k: " and ".join(dict.fromkeys([*before[k].split(" and "), now[k]]))
        for k in before.keys() & now.keys()
    }
    return before | now | joined


def order(job: Job) -> tuple[int, float, int]:
    """Where a job's line stands."""
    return list(NETS).index(job.net), job.sparsity, list(METHODS).index(job.method)


if __name__ == "__main__":
    typer.run(main)
