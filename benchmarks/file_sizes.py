"""How small `csr` files are, against the bound of information theory, gzip, and their load time.

    python benchmarks/file_sizes.py --out docs/results/file_sizes

Layers: one weight, kept entries drawn with seed 0.  The bound is the entropy of the mask plus 32
bits a kept value.  Nets: the light graphs of the onnx package with seeded weights, pruned by
magnitude; load times are medians of `--rounds` sessions of stock ONNX Runtime, csr and dense in
turn, one thread.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from importers import LIGHT, with_weights
from onnx import TensorProto, helper, numpy_helper

from dns_onnx.converters.encodings.sites import find_sites
from dns_onnx.converters.exporter import convert, export_model
from dns_onnx.report import machine, markdown
from dns_onnx.runtime.sizes import entropy_bound

Array = np.ndarray[Any, Any]
Row = dict[str, Any]
SEED = 0
VALUES = ("float32", "float16", "int8")
DENSITIES = (0.01, 0.02, 0.05, 0.1, 0.2)
SHAPES: dict[str, tuple[tuple[int, ...], ...]] = {
    "Gemm": ((250, 400), (1000, 1000), (4096, 4096)),
    "MatMul": ((400, 250), (1000, 1000)),
    "Conv": ((106, 105, 3, 3), (340, 330, 3, 3), (512, 2048, 1, 1)),
}
# densities layer by layer; AlexNet's are the paper's, 17.7 times fewer parameters
NETS: dict[str, Iterable[float]] = {
    "bvlc_alexnet": (0.54, 0.41, 0.29, 0.32, 0.32, 0.037, 0.066, 0.046),
    "vgg19": repeat(0.1),
    "resnet50": repeat(0.1),
}


def layer(op_type: str, shape: tuple[int, ...], density: float) -> onnx.ModelProto:
    """One pruned layer as a model of its own."""
    rng = np.random.default_rng(SEED)
    weight = (rng.standard_normal(shape) * (rng.random(shape) < density)).astype(np.float32)
    attributes: dict[str, Any] = {"transB": 1} if op_type == "Gemm" else {}
    x = [1, shape[1], 8, 8] if op_type == "Conv" else [1, shape[op_type == "Gemm"]]
    graph = helper.make_graph(
        [helper.make_node(op_type, ["X", "W"], ["Y"], **attributes)],
        "layer",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "W")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def layer_rows() -> Iterator[Row]:
    for op_type, shapes in SHAPES.items():
        for shape in shapes:
            for density in DENSITIES:
                made = convert(layer(op_type, shape, density), "csr")
                (tensor,) = made.tensors
                least = entropy_bound(int(np.prod(shape)), tensor.nnz)
                dense = convert(layer(op_type, shape, density), "dense").model
                yield {
                    "layer": f"{op_type} {'x'.join(map(str, shape))}",
                    "density": density,
                    "encoding": tensor.encoding,
                    "bound": round(least),
                    "weight": tensor.bytes,
                    "weight_ratio": tensor.bytes / least,
                    "file_ratio": made.model.ByteSize() / least,
                    "gzip_ratio": len(gzip.compress(dense.SerializeToString(), 6)) / least,
                }


def pruned(name: str) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """A light graph with seeded weights, and its weights cut by magnitude."""
    model = with_weights(onnx.load(LIGHT / f"light_{name}.onnx"))
    densities = iter(NETS[name])
    weights = {}
    for site in find_sites(model):
        weight = numpy_helper.to_array(site.tensor)
        if weight.ndim >= 2:
            size = np.abs(weight)
            weights[site.name] = weight * (size >= np.quantile(size, 1 - next(densities)))
    return model, weights


def load_ms(paths: dict[str, Path], rounds: int) -> dict[str, float]:
    """Median milliseconds to make a session of each file, in turn."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    times: dict[str, list[float]] = {name: [] for name in paths}
    for _ in range(rounds + 1):
        for name, path in paths.items():
            start = time.perf_counter()
            ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(found[1:]) for name, found in times.items()}


def net_rows(names: Sequence[str], rounds: int) -> Iterator[Row]:
    for name in names:
        model, weights = pruned(name)
        kept = sum(int(np.count_nonzero(w)) for w in weights.values())
        total = sum(w.size for w in weights.values())
        with tempfile.TemporaryDirectory() as folder:
            paths = {"dense": Path(folder) / "dense.onnx"}
            export_model(model, weights, paths["dense"], format="dense")
            for values in VALUES:
                paths[values] = Path(folder) / f"{values}.onnx"
                made = export_model(model, weights, paths[values], values=values)
                if made.format != "csr":
                    raise RuntimeError(f"{name}: {made.notes}")
            loads = load_ms(paths, rounds)
            row: Row = {"net": name, "weights_kept": kept, "of": total, "ratio": total / kept}
            row["dense"] = paths["dense"].stat().st_size
            row["dense_gzip"] = len(gzip.compress(paths["dense"].read_bytes(), 6))
            row |= {values: path.stat().st_size for values, path in paths.items()}
            row["load_ms"] = {values: round(ms, 1) for values, ms in loads.items()}
            row["load_ratio"] = {v: loads[v] / loads["dense"] for v in loads if v != "dense"}
            yield row


def tables(layers: list[Row], nets: list[Row]) -> str:
    """Both tables in Markdown."""
    of_layers = [
        [r["layer"], f"{r['density']:.0%}", r["encoding"], f"{r['bound']:,}",
         *(f"{r[k]:.2f}" for k in ("weight_ratio", "file_ratio", "gzip_ratio"))]
        for r in layers
    ]  # fmt: skip
    of_nets = [
        [r["net"], f"{r['ratio']:.1f}x",
         *(f"{r[k] / 1e6:.2f}" for k in ("dense", "dense_gzip", *VALUES)),
         *(f"{r['load_ratio'][k]:.2f}" for k in VALUES)]
        for r in nets
    ]  # fmt: skip
    loads = [f"load {values}" for values in VALUES]
    return "\n\n".join(
        [
            "## Layers",
            "Over the bound (the entropy of the mask and 32 bits a kept value): the weight as it "
            "is stored, the whole file of that one layer, and gzip of its dense file.",
            markdown((["layer", "density", "stored as", "bound, bytes", "weight", "file", "gzip"],
                      of_layers)),
            "## Nets",
            "Megabytes (10^6 bytes), and load times over the dense file's.",
            markdown((["net", "fewer weights", "dense", "dense, gzip", *VALUES, *loads], of_nets)),
        ]
    ) + "\n"  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--nets", nargs="*", choices=NETS, default=list(NETS))
    parser.add_argument("--out", type=Path, help="writes OUT.json and OUT.md")
    options = parser.parse_args()
    layers, nets = list(layer_rows()), []
    write(options, layers, nets)
    for row in net_rows(options.nets, options.rounds):
        nets.append(row)
        write(options, layers, nets)
    print(tables(layers, nets))


def write(options: argparse.Namespace, layers: list[Row], nets: list[Row]) -> None:
    """What is measured so far, as JSON and as a page."""
    if options.out is None:
        return
    head = {**machine(), "seed": str(SEED)}
    where = ", ".join(f"{key} {value}" for key, value in head.items())
    command = f"python benchmarks/file_sizes.py --rounds {options.rounds}"
    if list(options.nets) != list(NETS):
        command += f" --nets {' '.join(options.nets)}"
    page = f"# File sizes\n\n`{command}` on {where}.\n\n{tables(layers, nets)}"
    options.out.with_suffix(".md").write_text(page)
    figures = {**head, "layers": layers, "nets": nets}
    options.out.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
