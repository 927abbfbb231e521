"""What the default search makes of LeNet-5 when it is told nothing but `--max-drop 0`.

    python benchmarks/max_drop.py --model lenet5_dense.onnx --mnist DIR --work DIR

Which is `dns-onnx compress lenet5_dense.onnx --max-drop 0` on the training images, once a seed: the
search, its reference and the result are decided on training rows alone, and the test images are
read once, at the end.  A seed that is finished is not run again, and one that was stopped goes on;
with --stopped it does not, and the smallest model that it had found is judged.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from dns_onnx import compress, report
from dns_onnx.config import Config, parse_config
from dns_onnx.cuts import Cut
from dns_onnx.journal import Note, Progress
from dns_onnx.probe import Probe
from dns_onnx.reference import Reference
from dns_onnx.trials import Trial, read_trials, smallest

SCALE = "scale=0.00390625"  # grey levels / 256, as the nets were trained
console = Console(soft_wrap=True, highlight=False)


def main(
    model: Annotated[Path, typer.Option(help="classifies MNIST")],
    mnist: Annotated[Path, typer.Option(help="folder with both parts of MNIST")],
    work: Annotated[Path, typer.Option(help="runs, to go on from")],
    seeds: Annotated[list[int] | None, typer.Option("--seed", help="default: 0 1 2")] = None,
    iterations: Annotated[int | None, typer.Option(help="of a trial; default: its own")] = None,
    trials: Annotated[int | None, typer.Option(help="at most; default: its own")] = None,
    stopped: Annotated[bool, typer.Option(help="take what unfinished searches found")] = False,
    out: Annotated[Path | None, typer.Option(help="write the table there, .md and .json")] = None,
) -> None:
    """Search once for each seed, and print the table."""
    torch.set_num_threads(1)
    work.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in seeds or [0, 1, 2]:
        values: dict[str, Any] = {"seed": seed}
        values |= {"train": {"iterations": iterations}} if iterations else {}
        values |= {"target": {"trials": trials}} if trials else {}
        done = work / f"seed-{seed}.json"
        if not done.exists():
            found = search(model, mnist, work, parse_config(values, "max_drop"), stopped)
            done.write_text(json.dumps({**values, **found}, indent=1), "utf-8")
        rows.append(json.loads(done.read_text("utf-8")))
    text = table(rows)
    console.print(text, markup=False)
    if out is not None:
        machine = {**report.machine(), "threads": "1"}
        where = ", ".join(f"{k} {v}" for k, v in machine.items())
        out.with_suffix(".md").write_text(f"{text}\n\nMeasured with: {where}.\n", "utf-8")
        values = json.dumps({"machine": machine, "model": model.name, "rows": rows}, indent=1)
        out.with_suffix(".json").write_text(values + "\n", "utf-8")


def search(model: Path, mnist: Path, work: Path, config: Config, stopped: bool) -> dict[str, Any]:
    """One search; all that the table and its reader need of it.

    stopped: take what it has found so far.
    """
    data, out = f"mnist:{mnist}?{SCALE}", work / f"seed-{config.seed}.onnx"
    known = smallest(read_trials(out.with_suffix(".run"))) if stopped else None
    result = compress(
        model, out, train=data, eval=data, max_drop=0.0, device="cpu", config=config, resume=True,
        pick=known.trial if known else None, observe=say, tell=say, bench_seconds=0.01,
    )  # fmt: skip
    best, judged, reference = smallest(result.trials), result.check.metric, result.reference
    assert best is not None
    assert judged is not None
    assert reference is not None
    keys = ("trial", "ratio", "metric", "accepted", "iterations", "seconds")
    return {
        "ratio": best.ratio, "kept": best.kept, "heldout": best.metric,
        "test_before": judged.before, "test_after": judged.after, "reference": asdict(reference),
        "seconds": result.outcome.seconds, "layers": best.layers,
        "trials": [{k: getattr(t, k) for k in keys} for t in result.trials], "stopped": stopped,
    }  # fmt: skip


def say(found: Progress | Note | Cut | Probe | Reference | Trial) -> None:
    """Where the search is."""
    if isinstance(found, (Note, Reference)):
        console.print(found.said, markup=False)
    elif isinstance(found, Cut):
        console.print(f"cut: {found.ratio:.2f}x, held-out {wrong(found.metric)}: {found.held}")
    elif isinstance(found, Probe):
        console.print(f"{found.said}; {found.solver}", markup=False)
    elif isinstance(found, Trial):
        at = "-" if found.metric is None else f"{100 * (1 - found.metric):.2f} %"
        verdict = "accepted" if found.accepted else "rolled back"
        console.print(f"trial {found.trial}: {found.ratio:.1f}x, held-out {at}: {verdict}")
    elif found.iteration % 1000 == 0:
        console.print(f"  {found.iteration} of {found.iterations}, {found.seconds:.0f} s")


def table(rows: list[dict[str, Any]]) -> str:
    """Errors in per cent: of the original, the reference and the result."""
    header = ["seed", "original, held-out", "reference", "result, held-out", "compression", "kept",
              "test, original", "test, result", "trials", "iterations", "minutes"]  # fmt: skip
    cells = [
        [str(r["seed"]), wrong(r["reference"]["original"]), wrong(r["reference"]["metric"]),
         wrong(r["heldout"]), f"{r['ratio']:.1f}x", f"{r['kept']:,}", wrong(r["test_before"]),
         wrong(r["test_after"]), f"{len(r['trials'])}{', stopped' if r.get('stopped') else ''}",
         f"{sum(t['iterations'] for t in r['trials']):,}", f"{r['seconds'] / 60:.0f}"]
        for r in rows
    ]  # fmt: skip
    return report.markdown((header, cells))


def wrong(share: float) -> str:
    """The share of right rows as the share of wrong ones."""
    return f"{100 * (1 - share):.2f} %"


if __name__ == "__main__":
    typer.run(main)
