"""What importing a large model costs in memory: the peak of a fresh process over the weights.

    python benchmarks/import_memory.py --out docs/results/import_memory

Two synthetic models with seeded weights are written to a temporary folder, piece by piece: one of
2.3 GB with external data, one of 1.8 GB in a single file.  Each is imported in a process of its
own, which then runs it once, so that every weight has been touched.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import numpy as np
import typer
from onnx import ModelProto, TensorProto, ValueInfoProto, helper
from rich.console import Console

from dns_onnx import report

console = Console(soft_wrap=True, highlight=False)

GEMMS, CONVS, SIZE = 8, 4, 8
# entries of the drawn block that fills every weight again and again
BLOCK = 1 << 20
LAYOUTS = {"external data": 2_300_000_000, "single file": 1_800_000_000}

# What the process does that is measured; sizes in bytes, read where Linux keeps them.
CHILD = """
import json, sys, time
import torch
from dns_onnx.converters.importer import import_model

def status(key):
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key + ":"))

torch.set_num_threads(1)
before = status("VmRSS")
start = time.perf_counter()
module = import_model(sys.argv[1])
row = {"import_s": time.perf_counter() - start, "libraries": before, "imported": status("VmHWM")}
with torch.no_grad():
    result = module(torch.ones(json.loads(sys.argv[2])))
row.update(run=status("VmHWM"), finite=bool(result.isfinite().all()))
print(json.dumps(row))
"""


def shapes(nbytes: int) -> dict[str, tuple[int, ...]]:
    """Weights of about `nbytes` in float32: four convolutions, one product, eight square ones."""
    entries = nbytes // 4
    channels = math.isqrt(entries // (GEMMS + 1) // CONVS // 9)
    width = math.isqrt(entries // (GEMMS + 1))
    found: dict[str, tuple[int, ...]] = {}
    for i in range(CONVS):
        found[f"conv{i}.w"] = (channels, channels, 3, 3)
    for i in range(GEMMS + 1):
        found[f"gemm{i}.w"] = (width, width if i else channels)
    return found


def graph(weights: dict[str, tuple[int, ...]]) -> ModelProto:
    """The net without its initializers."""
    nodes, value = [], "x"
    for name, shape in weights.items():
        last = name.removesuffix(".w")
        if len(shape) == 4:
            nodes.append(helper.make_node("Conv", [value, name], [last], last, pads=[1, 1, 1, 1]))
        else:
            if value.startswith("conv"):
                nodes.append(helper.make_node("GlobalAveragePool", [value], ["mean"]))
                nodes.append(helper.make_node("Flatten", ["mean"], ["flat"]))
                value = "flat"
            nodes.append(helper.make_node("Gemm", [value, name], [last], last, transB=1))
        value = last
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, input_shape(weights))
    made = helper.make_graph(nodes, "large", [x], [ValueInfoProto(name=value)])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def input_shape(weights: dict[str, tuple[int, ...]]) -> list[int]:
    return [1, weights["conv0.w"][1], SIZE, SIZE]


def write_model(path: Path, nbytes: int, layout: str, seed: int = 0) -> dict[str, tuple[int, ...]]:
    """Write a model with weights of about `nbytes`; returns their shapes.

    layout: "external data" (in `path` with the suffix .bin) or "single file".
    """
    weights = shapes(nbytes)
    block = np.random.default_rng(seed).standard_normal(BLOCK, np.float32)
    (_single if layout == "single file" else _external)(path, graph(weights), weights, block)
    return weights


def _external(
    path: Path, model: ModelProto, weights: dict[str, tuple[int, ...]], block: np.ndarray
) -> None:
    with path.with_suffix(".bin").open("wb") as file:
        for name, shape in weights.items():
            offset = file.tell()
            _fill(file, shape, block)
            tensor = model.graph.initializer.add(
                name=name, dims=shape, data_type=TensorProto.FLOAT,
                data_location=TensorProto.EXTERNAL,
            )  # fmt: skip
            entries = {"location": path.with_suffix(".bin").name, "offset": offset,
                       "length": file.tell() - offset}  # fmt: skip
            for key, value in entries.items():
                tensor.external_data.add(key=key, value=str(value))
    path.write_bytes(model.SerializeToString())


def _single(
    path: Path, model: ModelProto, weights: dict[str, tuple[int, ...]], block: np.ndarray
) -> None:
    """Protobuf written by hand: ModelProto.graph is field 7, .initializer 5, .raw_data 9."""
    heads = {}
    for name, shape in weights.items():
        tensor = TensorProto(name=name, dims=shape, data_type=TensorProto.FLOAT)
        heads[name] = tensor.SerializeToString() + _field(9, 4 * math.prod(shape))
    fields = {n: len(heads[n]) + 4 * math.prod(s) for n, s in weights.items()}
    small = model.graph.SerializeToString()
    model.ClearField("graph")
    total = len(small) + sum(len(_field(5, size)) + size for size in fields.values())
    with path.open("wb") as file:
        file.write(model.SerializeToString() + _field(7, total) + small)
        for name, shape in weights.items():
            file.write(_field(5, fields[name]) + heads[name])
            _fill(file, shape, block)


def _field(number: int, length: int) -> bytes:
    """Tag and length of a field of bytes."""
    return bytes([number << 3 | 2, *_varint(length)])


def _varint(value: int) -> Iterator[int]:
    while value > 0x7F:
        yield value & 0x7F | 0x80
        value >>= 7
    yield value


def _fill(file: BinaryIO, shape: tuple[int, ...], block: np.ndarray) -> None:
    """Write one weight, scaled to keep the signal's size."""
    scaled = (block / np.float32(math.sqrt(math.prod(shape[1:])))).tobytes()
    left = 4 * math.prod(shape)
    while left > 0:
        file.write(scaled[:left])
        left -= len(scaled)


def measure(path: Path, weights: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """Import a model in a process of its own; bytes, seconds, and what they are of the weights.

    import_peak, run_peak: the whole process's; import_growth, run_growth: what it took beyond the
    libraries it had loaded before.  All four in units of the weights' size.
    """
    command = [sys.executable, "-c", CHILD, str(path), json.dumps(input_shape(weights))]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    row: dict[str, Any] = json.loads(done.stdout)
    size = 4 * sum(math.prod(shape) for shape in weights.values())
    row["weights"] = size
    for name, key in (("import", "imported"), ("run", "run")):
        row[f"{name}_peak"] = row[key] / size
        row[f"{name}_growth"] = (row[key] - row["libraries"]) / size
    return row


def main(
    out: Annotated[Path | None, typer.Option(help="write the table there, .md and .json")] = None,
    folder: Annotated[Path | None, typer.Option(help="where the models are written")] = None,
) -> None:
    """Measure both layouts and print the table."""
    rows = []
    for layout, nbytes in LAYOUTS.items():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            path = Path(scratch) / "model.onnx"
            weights = write_model(path, nbytes, layout)
            rows.append({"layout": layout, **measure(path, weights)})
    header = ["layout", "weights GB", "import s", "peak after import", "peak after a run",
              "the same without the libraries"]  # fmt: skip
    lines = [
        [r["layout"], f"{r['weights'] / 1e9:.2f}", f"{r['import_s']:.2f}",
         f"{r['import_peak']:.2f}", f"{r['run_peak']:.2f}",
         f"{r['import_growth']:.2f}, {r['run_growth']:.2f}"]
        for r in rows
    ]  # fmt: skip
    text = report.markdown((header, lines))
    console.print(text, markup=False)
    if out is not None:
        machine = {**report.machine(), "threads": "1", "seed": "0"}
        where = ", ".join(f"{k} {v}" for k, v in machine.items())
        note = "Peaks are resident memory of the process over the bytes of the weights."
        out.with_suffix(".md").write_text(f"{text}\n\n{note}\nMeasured with: {where}.\n", "utf-8")
        values = json.dumps({"machine": machine, "rows": rows}, indent=1)
        out.with_suffix(".json").write_text(values + "\n", "utf-8")


if __name__ == "__main__":
    typer.run(main)
