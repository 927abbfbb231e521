"""What an importer costs: seconds to import a model, and its forward pass over ONNX Runtime's.

    python benchmarks/importers.py --out docs/results/importers
    pip install onnx2torch onnx2pytorch torchvision   # these two are timed beside ours if present

The models are the nine light ones that the onnx package ships, with seeded random weights as
initializers.  Each contender and ONNX Runtime take turns, in one process, with one thread.
ResNet-50 and VGG-19 are timed as written by hand in PyTorch too (by_hand.py).  The first run of
dns-onnx's graphs includes that their code is written; later ones are the forward pass.
"""

from __future__ import annotations

import gc
import importlib
import json
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
import typer
from by_hand import NETS, before_softmax, with_weights_of
from onnx import numpy_helper
from rich.console import Console

from dns_onnx import report
from dns_onnx.converters.importer import import_model

Array = np.ndarray[Any, Any]
Rows = list[dict[str, Any]]
Importer = Callable[[onnx.ModelProto], Callable[[torch.Tensor], Any]]
console = Console(soft_wrap=True, highlight=False)

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
# the largest difference from ONNX Runtime, over its largest output, that counts as the same
SAME = 1e-3
# what a net that no importer made is called
BY_HAND = "PyTorch by hand"
# what the command line may choose: the clock on the wall, or this thread's own seconds, which other
# processes on the machine do not lengthen by taking turns
CLOCKS = {"wall": time.perf_counter, "cpu": time.thread_time}
clock = CLOCKS["wall"]
# imports of each model by each importer
IMPORTS = 3


def with_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with seeded random initializers in place of its ConstantOfShape weights."""
    rng = np.random.default_rng(0)
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    held = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    filled = [n for n in graph.node if n.op_type == "ConstantOfShape" and n.input[0] in held]
    drawn = [
        numpy_helper.from_array(_draw(tuple(held[n.input[0]].tolist()), rng), n.output[0])
        for n in filled
    ]
    gone = {n.input[0] for n in filled}
    rest = [n for n in graph.node if n not in filled]
    kept = [i for i in graph.initializer if i.name not in gone]
    inputs = [i for i in graph.input if i.name not in held]
    for field, values in ((graph.node, rest), (graph.initializer, kept + drawn),
                          (graph.input, inputs)):  # fmt: skip
        copies = [type(value).FromString(value.SerializeToString()) for value in values]
        del field[:]
        field.extend(copies)
    made.ir_version = 8
    return made


def _draw(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Weights that keep the signal's size; vectors near one, fit for scales and variances."""
    if len(shape) < 2:
        return rng.uniform(0.8, 1.2, shape).astype(np.float32)
    scale = np.float32(np.sqrt(2 / np.prod(shape[1:])))
    return rng.standard_normal(shape, np.float32) * scale


def importers() -> dict[str, Importer]:
    """Ours and those of the peers that can be imported here, by name and version."""
    found: dict[str, Importer] = {f"dns-onnx {metadata.version('dns-onnx')}": import_model}
    for package, function in (("onnx2torch", "convert"), ("onnx2pytorch", "ConvertModel")):
        try:
            load = getattr(importlib.import_module(package), function)
        except Exception as error:  # absent, or one of its own requirements is
            console.print(f"{package}: not timed, {type(error).__name__}: {error}", markup=False)
            continue
        found[f"{package} {metadata.version(package)}"] = load
    return found


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    """ONNX Runtime on one CPU thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def measure(path: Path, contenders: dict[str, Importer], rounds: int) -> Rows:
    """One row an importer: median seconds, and the median ratio to ONNX Runtime's turn."""
    model = with_weights(onnx.load(path))
    model.graph.name = path.stem.removeprefix("light_")
    reference = session(model)
    info = reference.get_inputs()[0]
    x = np.random.default_rng(7).standard_normal(info.shape).astype(np.float32)
    wanted = reference.run(None, {info.name: x})[0]
    data = torch.from_numpy(x)
    rows, modules = _import_in_turn(contenders, model)
    for row in rows:
        if row["importer"] not in modules:
            continue
        try:
            start = clock()
            result = modules[row["importer"]](data)
            row["first_ms"] = 1e3 * (clock() - start)
            row["error"] = _error(result, wanted)
        except Exception as error:  # an import that cannot run is a result, too
            row["failed"] = _short(error)
            del modules[row["importer"]]
    if model.graph.name in NETS:
        row, net = _by_hand(model, info.name, x)
        rows.append(row)
        modules[BY_HAND] = net
    turns = {name: partial(module, data) for name, module in modules.items()}
    times = _in_turn({"ort": partial(reference.run, None, {info.name: x}), **turns}, rounds)
    for row in rows:
        if row["importer"] in times:
            own = times[row["importer"]]
            row["forward_ms"] = 1e3 * statistics.median(own)
            row["ort_ms"] = 1e3 * statistics.median(times["ort"])
            pairs = [a / b for a, b in zip(own, times["ort"], strict=True)]
            row["over_ort"] = statistics.median(pairs)
    return rows


def _by_hand(model: onnx.ModelProto, name: str, x: Array) -> tuple[dict[str, Any], torch.nn.Module]:
    """The row of the hand-written net, and the net; compared on the scores before Softmax."""
    net = with_weights_of(NETS[model.graph.name](), model).eval()
    scores = session(before_softmax(model)).run(None, {name: x})[0]
    start = clock()
    result = net[:-1](torch.from_numpy(x))
    first = 1e3 * (clock() - start)
    row = {"model": model.graph.name, "importer": BY_HAND, "import_s": None, "first_ms": first}
    row["error"] = _error(result, scores)
    return row, net


def _import_in_turn(
    contenders: dict[str, Importer], model: onnx.ModelProto
) -> tuple[Rows, dict[str, Any]]:
    """A row an importer with its median seconds or its error, and the modules."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    modules: dict[str, Any] = {}
    failed: dict[str, str] = {}
    for turn in range(IMPORTS):
        for name in list(contenders)[:: -1 if turn % 2 else 1]:
            gc.collect()  # not on the next one's time
            start = clock()
            try:
                module: Any = contenders[name](model)
            except Exception as error:  # a peer that cannot take the model is a result, too
                failed[name] = _short(error)
                continue
            seconds[name].append(clock() - start)
            modules[name] = module.eval()
    rows: Rows = []
    for name in contenders:
        row = {"model": model.graph.name, "importer": name}
        found = (
            {"failed": failed[name]}
            if name in failed
            else {"import_s": statistics.median(seconds[name])}
        )
        rows.append({**row, **found})
    return rows, modules


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:80]


def _error(result: Any, wanted: Array) -> float:
    got = result[0] if isinstance(result, (tuple, list)) else result
    gap = np.abs(got.numpy().astype(np.float64) - wanted)
    return float(gap.max() / np.abs(wanted).max())


def _in_turn(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every run of each; the order turns round after every round."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name in list(runs)[:: 1 if turn % 2 else -1]:
            start = clock()
            runs[name]()
            if turn:
                times[name].append(clock() - start)
    return times


def table(rows: Rows) -> report.Table:
    """The rows as a table; `no` where the outputs differ, the error where there are none."""
    header = [
        "model",
        "importer",
        "import s",
        "first run ms",
        "forward ms",
        "ORT ms",
        "over ORT",
        "equal",
    ]
    lines = []
    for r in rows:
        first = [r["model"], r["importer"]]
        if "failed" in r:
            lines.append([*first, "-", "-", "-", "-", "-", r["failed"].replace("|", "/")])
            continue
        equal = "yes" if r["error"] <= SAME else f"no: {r['error']:.1e}"
        seconds = "-" if r["import_s"] is None else f"{r['import_s']:.3f}"
        lines.append([*first, seconds, f"{r['first_ms']:.1f}", f"{r['forward_ms']:.1f}",
                      f"{r['ort_ms']:.1f}", f"{r['over_ort']:.2f}", equal])  # fmt: skip
    return header, lines


def main(
    rounds: Annotated[int, typer.Option(help="timed forward passes of each contender")] = 7,
    only: Annotated[str, typer.Option(help="part of a model's name")] = "",
    seconds: Annotated[str, typer.Option(help="whose seconds: wall or cpu")] = "wall",
    out: Annotated[Path | None, typer.Option(help="write the table there, .md and .json")] = None,
) -> None:
    """Time every importer on the light models and print the table."""
    global clock
    clock = CLOCKS[seconds]
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # the peers'
    rows: Rows = []
    contenders = importers()
    with torch.no_grad():
        for path in sorted(LIGHT.glob("*.onnx")):
            if only in path.stem:
                rows += measure(path, contenders, rounds)
    text = report.markdown(table(rows))
    console.print(text, markup=False)
    if out is not None:
        machine = {**report.machine(), "threads": "1", "rounds": str(rounds), "clock": seconds}
        where = ", ".join(f"{k} {v}" for k, v in machine.items())
        out.with_suffix(".md").write_text(f"{text}\n\nMeasured with: {where}.\n", "utf-8")
        values = json.dumps({"machine": machine, "rows": rows}, indent=1)
        out.with_suffix(".json").write_text(values, "utf-8")


if __name__ == "__main__":
    typer.run(main)
