"""Real networks, pruned by the default search: what stays, and what it costs on unseen rows.

    python benchmarks/real_networks.py --data DIR --work DIR --out docs/results/real_networks

DIR of --data holds models/ and data/ (DNS_ONNX_DATA).  Every net is `dns-onnx compress MODEL
--train DATA --eval DATA --max-drop D` with a batch and iterations that there is time for; solver,
learning rate and thresholds are found by the search.  Rows come from real_inputs.py; those for
evaluation are read once, at the end.  A run that is finished is not run again, and one that was
stopped goes on.  --untrained stops before any training, at the compression that cuts alone reach.
--margin is that of `dns-onnx compress`; with one, recordings are held out as a whole.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import real_inputs
import torch
import typer
from rich.console import Console

from dns_onnx import report
from dns_onnx.config import Config, parse_config
from dns_onnx.cuts import Cut
from dns_onnx.journal import Progress
from dns_onnx.pipeline import compress
from dns_onnx.probe import Probe
from dns_onnx.reference import Reference
from dns_onnx.result import Result
from dns_onnx.trials import Trial, smallest

console = Console(soft_wrap=True, highlight=False)


@dataclass(frozen=True)
class Net:
    """How one net is run.

    drop: the budget; in percentage points, or per cent of the original's output.
    batch, iterations: what there is time for.  settings: further ones.
    """

    teaches: str
    drop: float
    batch: int
    iterations: int
    settings: dict[str, Any] = field(default_factory=dict)


NETS = {
    "vnn22_sri_resnet_a": Net("labels", 0.5, 64, 250, {"data": {"holdout": 0.25}}),
    "vnn23_vit_cifar10_pgd_2_3_16": Net("labels", 0.5, 64, 3000, {"data": {"holdout": 0.25}}),
    "silero_vad": Net("original", 1.0, 64, 1000),
    "gtcrn_simple": Net("original", 1.0, 16, 120),
    "magika_v1": Net("original", 1.0, 8, 60, {"train": {"metric": "relative-error"}}),
    "squeezenet_fp32_from_fp16": Net(
        "original", 0.5, 16, 200, {"distill": {"weight": 1.0}, "data": {"holdout": 0.5}}
    ),
    "ultraface_rfb_320": Net("original", 1.0, 8, 40),
}
TRIALS = 5


def main(
    data: Annotated[Path, typer.Option(envvar="DNS_ONNX_DATA", help="has models/ and data/")],
    work: Annotated[Path, typer.Option(help="inputs and runs, to go on from")],
    net: Annotated[list[str] | None, typer.Option(help="only these")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="default: 0")] = None,
    untrained: Annotated[bool, typer.Option("--untrained", help="cut and fitted only")] = False,
    margin: Annotated[float, typer.Option(help="standard errors to stay in the budget by")] = 0.0,
    out: Annotated[Path | None, typer.Option(help="write the table there, .md and .json")] = None,
) -> None:
    """Search once for each net and seed, and print the table of all that are finished."""
    torch.set_num_threads(1)
    work.mkdir(parents=True, exist_ok=True)
    for number in seed or [0]:
        for name in net or list(NETS):
            how = "cut" if untrained else "search"
            wide = f"-margin{margin:g}" if margin else ""
            done = work / f"{name}-{how}{wide}-{number}.json"
            if not done.exists():
                row = search(name, number, data, done.with_suffix(""), untrained, margin)
                done.write_text(json.dumps(row, indent=1) + "\n", "utf-8")
            write(finished(work), out)
    console.print(table(finished(work)), markup=False)


def search(
    name: str, seed: int, data: Path, base: Path, untrained: bool, margin: float
) -> dict[str, Any]:
    """One search; all that the table and its reader need of it.

    base: what its files are called, but for their suffixes.
    """
    train, val, held = rows_of(name, data, base.parent / "inputs" / name, whole=margin > 0)
    console.print(f"{name}, seed {seed}", markup=False)
    config = settings(NETS[name], seed, untrained, margin)
    result = compress(
        data / "models" / f"{name}.onnx", Path(f"{base}.onnx"), train=train, val=val, eval=held,
        config=config, max_drop=NETS[name].drop, device="cpu", resume=True,
        observe=say_progress, tell=say_found, bench_seconds=0.2,
    )  # fmt: skip
    return row_of(name, seed, result, margin)


def settings(net: Net, seed: int, untrained: bool, margin: float) -> Config:
    """What the run is told; what is not trained needs no solver."""
    values: dict[str, Any] = {
        "seed": seed,
        "data": {"batch": net.batch},
        "train": {"iterations": net.iterations, "log_every": max(net.iterations // 4, 1)},
        "target": {"trials": 1 if untrained else TRIALS, "margin": margin},
        **({"solver": {"type": "sgd"}} if untrained else {}),
    }
    for name, table in net.settings.items():
        values[name] = {**values.get(name, {}), **table}
    return parse_config(values, "real_networks")


def rows_of(name: str, data: Path, folder: Path, whole: bool) -> tuple[str, str | None, str]:
    """DATA arguments for training, held-out and evaluation rows.

    whole: recordings are held out as a whole, where rows come from any; else the run holds out
    rows of its own choice, and the second is None.
    """
    made_file = folder / "made.json"
    if not made_file.exists():
        made = real_inputs.MAKERS[name](data)
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / "train.npz", **made.train)
        np.savez(folder / "eval.npz", **made.eval)
        if made.held:
            teaching, held = real_inputs.parted(made)
            np.savez(folder / "teaching.npz", **teaching)
            np.savez(folder / "held.npz", **held)
        told = {"options": made.options, "recordings": made.held > 0}
        made_file.write_text(json.dumps(told), "utf-8")
    told = json.loads(made_file.read_text("utf-8"))
    asked = f"?{told['options']}" if told["options"] else ""
    train, val = "train", None
    if whole and told["recordings"]:
        train, val = "teaching", f"{folder / 'held.npz'}{asked}"
    return f"{folder / train}.npz{asked}", val, f"{folder / 'eval.npz'}{asked}"


def row_of(name: str, seed: int, result: Result, margin: float) -> dict[str, Any]:
    """The figures of a finished run."""
    check, best = result.check, smallest(result.trials)
    judged = check.metric
    if judged is None or best is None:
        raise RuntimeError(f"{name}: expected a judged result")
    kept, size = best.kept, best.size
    probe = json.loads((result.run_dir / "probe.json").read_text("utf-8"))["probe"]
    return {
        "net": name, "seed": seed, "margin": margin, "learned": result.objective,
        "metric": judged.name,
        "before": judged.before, "after": judged.after, "drop": judged.drop, "rows": check.rows,
        "budget": NETS[name].drop, "kept": kept, "size": size, "sparsity": 1 - kept / size,
        "untrained": probe["ratio"], "solver": probe["solver"],
        "beside": best.settings["distill"]["weight"], "heldout_drop": best.drop,
        "error": best.error,
        "csr_bytes": check.sizes.file, "original_bytes": check.sizes.original,
        "ok": check.ok, "iterations": NETS[name].iterations,
        "trials": sum(t.iterations > 0 for t in result.trials),
        "batch": NETS[name].batch, "seconds": sum(t.seconds for t in result.trials),
        "front": [[t.ratio, t.drop, t.accepted] for t in result.trials],
    }  # fmt: skip


def finished(work: Path) -> list[dict[str, Any]]:
    """All rows there are, by net, then by seed."""
    rows = [json.loads(p.read_text("utf-8")) for name in NETS for p in work.glob(f"{name}-*.json")]
    for row in rows:  # those of before there were margins
        row.update({"margin": row.get("margin", 0.0), "error": row.get("error", 0.0)})
    return sorted(rows, key=lambda r: (list(NETS).index(r["net"]), *kind(r), r["seed"]))


def kind(row: dict[str, Any]) -> tuple[float, bool]:
    """What is alike in the rows of one line, beside the net."""
    return row["margin"], row["trials"] > 0


def say_progress(progress: Progress) -> None:
    """A line for each look."""
    heldout = "" if progress.value is None else f", {progress.metric} {progress.value:.4f}"
    console.print(
        f"  {progress.iteration} of {progress.iterations}: loss {progress.loss:.5f}, kept "
        f"{progress.kept:,}{heldout}, {progress.seconds:.0f} s", markup=False,
    )  # fmt: skip


def say_found(found: Trial | Reference | Cut | Probe) -> None:
    """A line for each trial, and for what was found before them."""
    if isinstance(found, Trial):
        console.print(
            f" trial {found.trial}: {found.ratio:.3f}x, drop {found.drop}, "
            f"{'accepted' if found.accepted else 'rolled back'} {found.note}", markup=False,
        )  # fmt: skip
    elif isinstance(found, Cut):
        console.print(f" {found}", markup=False)
    else:
        console.print(f" {found.said}", markup=False)
        if isinstance(found, Probe):
            console.print(f" {found.losses}", markup=False)


def table(rows: Iterable[dict[str, Any]]) -> str:
    """A line for each net; several seeds as a range."""
    header = ["net", "learned from", "margin", "seeds", "zeros", "compression",
              "of which untrained", "metric", "original", "pruned", "drop", "budget",
              "held-out drop", "its standard error", "bytes", "`csr` bytes", "solver",
              "trained: batch x iterations x trials",
              "seconds"]  # fmt: skip
    lines = []
    found = list(rows)
    for name, margin, trained in dict.fromkeys((r["net"], *kind(r)) for r in found):
        of = [r for r in found if (r["net"], *kind(r)) == (name, margin, trained)]
        one = of[0]
        lines.append([
            name, NETS[name].teaches, f"{margin:g}", str(len(of)),
            span([100 * r["sparsity"] for r in of], ".1f", " %"),
            span([r["size"] / r["kept"] for r in of], ".2f", "x"),
            span([r["untrained"] for r in of], ".2f", "x"), one["metric"],
            span([100 * r["before"] for r in of], ".2f", " %"),
            span([100 * r["after"] for r in of], ".2f", " %"),
            span([r["drop"] for r in of], "+.2f"), f"{one['budget']:g}",
            span([r["heldout_drop"] for r in of], "+.2f"),
            span([r["error"] for r in of], ".2f") if margin else "-",
            f"{one['original_bytes']:,}", span([r["csr_bytes"] for r in of], ",.0f"),
            ", ".join(dict.fromkeys(told(r) for r in of)) if trained else "none",
            f"{one['batch']} x {one['iterations']} x {span([r['trials'] for r in of], '.0f')}"
            if trained else "none",
            span([r["seconds"] for r in of], ".0f"),
        ])  # fmt: skip
    return report.markdown((header, lines))


def told(row: dict[str, Any]) -> str:
    """The solver that a probe chose, and whether the original taught beside labels."""
    beside = ", original beside labels" if row["beside"] == 0.5 else ""
    return f"{row['solver']['type']} {row['solver']['lr']:g}{beside}"


def span(values: list[float], form: str, unit: str = "") -> str:
    """One value, or median and range of several."""
    texts = [format(v, form) + unit for v in (min(values), statistics.median(values), max(values))]
    return texts[0] if len(set(texts)) == 1 else f"{texts[1]} ({texts[0]} to {texts[2]})"


def write(rows: list[dict[str, Any]], out: Path | None) -> None:
    """The table and the figures behind it, with machine and versions."""
    if out is None:
        return
    machine = {**report.machine(), "threads": "1"}
    where = ", ".join(f"{k} {v}" for k, v in machine.items())
    out.with_suffix(".md").write_text(f"{table(rows)}\n\nMeasured with: {where}.\n", "utf-8")
    values = json.dumps({"machine": machine, "rows": rows}, indent=1)
    out.with_suffix(".json").write_text(values + "\n", "utf-8")


if __name__ == "__main__":
    typer.run(main)
