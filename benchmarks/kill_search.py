"""A search that is killed (SIGKILL) at random moments, against one that is not: the same bytes?

    python benchmarks/kill_search.py --model lenet300100_dense.onnx --mnist DIR

A search dies at a moment drawn evenly over the time that the undisturbed one took, is resumed, dies
again, until it ends before such a moment comes; then the next one starts in a folder of its own.
Compared byte by byte: the written
file and every trial's result; and trials.jsonl, but for the seconds in it.  One thread, CPU.
Without --model, a small seeded net learns four clusters.  POSIX only.
"""

from __future__ import annotations

import gzip
import json
import os
import signal
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

os.environ["OMP_NUM_THREADS"] = "1"  # before anything starts threads

import numpy as np
import onnx
import torch
import typer
from onnx import helper, numpy_helper
from rich.console import Console

from dns_onnx import report
from dns_onnx.config import Config, parse_config
from dns_onnx.converters.reader import read_model
from dns_onnx.pipeline import compress
from dns_onnx.rows import input_specs
from dns_onnx.search import RESULT
from dns_onnx.trials import TRIALS

ROWS = 3000  # of the training images: reading them must not take longer than the search
console = Console(soft_wrap=True, highlight=False)


@dataclass(frozen=True)
class Kill:
    """One kill.  second: after the start or resume.  trials, iteration: what lay on the disk then.

    differs: the files that were not as in the undisturbed search, in the end.
    """

    search: str
    second: float
    trials: int
    iteration: int | None
    differs: list[str] = field(default_factory=list)


def settings(seed: int, iterations: int, trials: int) -> Config:
    """A short search that writes a checkpoint at nearly every iteration."""
    return parse_config(
        {"seed": seed, "data": {"batch": 64, "holdout": 0.1}, "solver": {"lr": 0.01},
         "train": {"iterations": iterations, "log_every": 10, "eval_every": iterations,
                   "checkpoint_seconds": 0.02},
         "target": {"max_drop": 1.0, "trials": trials}}, "kill_search",
    )  # fmt: skip


def main(
    model: Annotated[
        Path | None, typer.Option(help="classifies MNIST; default: a small net")
    ] = None,
    mnist: Annotated[Path | None, typer.Option(help="folder with the training images")] = None,
    kills: Annotated[int, typer.Option(help="how many", min=1)] = 50,
    seed: Annotated[int, typer.Option(help="of the search and of the moments")] = 0,
    iterations: Annotated[int, typer.Option(help="of a trial", min=1)] = 20,
    trials: Annotated[int, typer.Option(help="at most so many", min=1)] = 3,
    out: Annotated[Path | None, typer.Option(help="write the table there, .txt and .json")] = None,
) -> None:
    """Kill, resume, compare; exit 1 where anything differs."""
    torch.set_num_threads(1)
    config, rng = settings(seed, iterations, trials), np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = prepare(folder, model, mnist)
        started = time.monotonic()
        end(search(folder, source, "whole", config))
        whole = time.monotonic() - started
        found: list[Kill] = []
        number = 0
        while len(found) < kills:
            number += 1
            moments = rng.uniform(0, whole, kills - len(found)).tolist()
            found += one(folder, source, f"killed-{number}", config, moments)
            differing = sorted({name for kill in found for name in kill.differs})
            console.print(
                f"{len(found)} of {kills} kills; files that differ: {differing or 'none'}"
            )
    machine = {**report.machine(), "threads": "1", "seed": str(seed)}
    text = told(found, whole, model, iterations, trials, machine)
    console.print(text, markup=False)
    if out is not None:
        out.with_suffix(".txt").write_text(text + "\n", "utf-8")
        values = {"machine": machine, "model": model and model.name, "iterations": iterations,
                  "whole_seconds": whole, "kills": [asdict(k) for k in found]}  # fmt: skip
        out.with_suffix(".json").write_text(json.dumps(values, indent=1) + "\n", "utf-8")
    raise typer.Exit(int(any(k.differs for k in found)))


def one(folder: Path, source: Path, name: str, config: Config, moments: list[float]) -> list[Kill]:
    """Kill a search after each of these seconds, until it ends before one; resume it to its end."""
    run, kills = folder / f"{name}.run", []
    for second in moments:
        child = search(folder, source, name, config)
        time.sleep(second)
        finished, status = os.waitpid(child, os.WNOHANG)
        if finished:
            refuse_failure(status)
            break
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        steps = sorted(run.glob("trial-*/step-*"))
        at = int(steps[-1].name.removeprefix("step-")) if steps else None
        kills.append(Kill(name, second, len(recorded(run)), at))
    else:
        end(search(folder, source, name, config))
    differing = differences(folder, name)
    return [replace(kill, differs=differing) for kill in kills]


def search(folder: Path, source: Path, name: str, config: Config) -> int:
    """Start or resume a search in a process group of its own; its id."""
    child = os.fork()  # all is imported: what is killed is a search, not a start of Python
    if child:
        os.setpgid(child, child)  # by both, as either may come first
        return child
    code = 1
    try:
        os.setpgid(0, 0)
        compress(source, folder / f"{name}.onnx", train=str(folder / "train.npz"), config=config,
                 device="cpu", resume=True, bench_seconds=0.001)  # fmt: skip
        code = 0
    finally:
        os._exit(code)


def end(child: int) -> None:
    """Wait for a search that must succeed."""
    refuse_failure(os.waitpid(child, 0)[1])


def refuse_failure(status: int) -> None:
    """Raise RuntimeError where a search did not end well."""
    if status:
        raise RuntimeError(f"search: expected it to end well, got exit status {status}")


def differences(folder: Path, name: str) -> list[str]:
    """Names of the files that differ from those of the undisturbed search."""
    ours, theirs = folder / f"{name}.run", folder / "whole.run"
    pairs = {"the written file": (folder / f"{name}.onnx", folder / "whole.onnx")}
    for path in sorted({p.relative_to(r) for r in (ours, theirs) for p in r.glob(f"*/{RESULT}")}):
        pairs[str(path)] = (ours / path, theirs / path)
    found = [
        what for what, (a, b) in pairs.items()
        if not (a.exists() and b.exists() and a.read_bytes() == b.read_bytes())
    ]  # fmt: skip
    return found + ([] if recorded(ours) == recorded(theirs) else [TRIALS])


def recorded(run: Path) -> list[dict[str, Any]]:
    """The complete lines of trials.jsonl, without seconds."""
    path = run / TRIALS
    lines = path.read_text("utf-8").splitlines(keepends=True) if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def prepare(folder: Path, model: Path | None, mnist: Path | None) -> Path:
    """Write the training rows to train.npz; the path of the model."""
    rng = np.random.default_rng(0)
    if model is not None and mnist is not None:
        shape = [d for d in input_specs(read_model(model))[0].shape[1:] if isinstance(d, int)]
        pixels = gzip.decompress((mnist / "train-images-idx3-ubyte.gz").read_bytes())
        digits = gzip.decompress((mnist / "train-labels-idx1-ubyte.gz").read_bytes())
        images = np.frombuffer(pixels, np.uint8, ROWS * 784, 16).reshape(ROWS, *shape)
        labels = np.frombuffer(digits, np.uint8, ROWS, 8).astype(np.int64)
        np.savez(folder / "train.npz", x=images.astype(np.float32) / 256, labels=labels)
        return model
    if model is not None or mnist is not None:
        raise typer.BadParameter("expected --model and --mnist together, or neither")
    labels = rng.integers(0, 4, ROWS)
    x = 2 * rng.standard_normal((4, 8))[labels] + rng.standard_normal((ROWS, 8))
    np.savez(folder / "train.npz", x=x.astype(np.float32), labels=labels)
    onnx.save(small_net(rng), folder / "net.onnx")
    return folder / "net.onnx"


def small_net(rng: np.random.Generator) -> onnx.ModelProto:
    """8 inputs, 32 hidden units, 4 classes."""
    sizes = {"w1": (32, 8), "b1": (32,), "w2": (4, 32), "b2": (4,)}
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], name="fc1", transB=1),
         helper.make_node("Relu", ["h"], ["r"]),
         helper.make_node("Gemm", ["r", "w2", "b2"], ["y"], name="fc2", transB=1)],
        "small",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(0.5 * rng.standard_normal(s, np.float32), n)
         for n, s in sizes.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def told(
    kills: list[Kill],
    whole: float,
    model: Path | None,
    iterations: int,
    trials: int,
    machine: dict[str, str],
) -> str:
    """The table: where the kills fell, and how many ended with the same bytes."""
    states = Counter((k.trials, k.iteration is not None) for k in kills)
    same = Counter((k.trials, k.iteration is not None) for k in kills if not k.differs)
    rows = [
        [str(done), "yes" if begun else "no", str(states[done, begun]), str(same[done, begun])]
        for done, begun in sorted(states)
    ]
    rows.append(["all", "", str(len(kills)), str(sum(same.values()))])
    header = ["trials on the disk", "checkpoint of the next", "kills", "bit-identical in the end"]
    differing = sorted({name for k in kills for name in k.differs})
    return "\n".join([
        report.markdown((header, rows)), "",
        f"Model: {model.name if model else 'small net'}; at most {trials} trials of {iterations} "
        f"iterations; {len({k.search for k in kills})} searches; the undisturbed one took "
            f"{whole:.2f} s.",
        f"Files that differed: {', '.join(differing) or 'none'}.",
        "Measured with: " + ", ".join(f"{k} {v}" for k, v in machine.items()) + ".",
    ])  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
