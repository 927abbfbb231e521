"""A pruned model of more than 2 GB: written with external data, and loaded by ONNX Runtime.

    python benchmarks/large_model.py FOLDER        # about 10 GB of memory, 6 GB of disk

A chain of MatMul layers of 4096 x 8192, their weights drawn with seed 0 and kept to the densities
of `--densities` in turn.  Written dense and as `--format`; each file is read by ONNX Runtime in a
process of its own, whose memory is told, and its output held against NumPy's.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from dns_onnx.converters.encodings import FORMATS
from dns_onnx.converters.encodings.parts import make_tensor
from dns_onnx.converters.exporter import convert
from dns_onnx.report import machine

Array = np.ndarray[Any, Any]
NARROW, WIDE = 4096, 8192
GB = 1e9


def weights(layers: int, densities: Sequence[float]) -> list[Array]:
    """Each [K, N]; one drawing, rolled and cut anew from layer to layer: drawing takes longest."""
    rng = np.random.default_rng(0)
    drawn = rng.standard_normal((NARROW, WIDE), np.float32)
    rank = rng.random((NARROW, WIDE), np.float32)
    found = []
    for i in range(layers):
        density = densities[i % len(densities)]
        kept = drawn * (rank < density) * np.float32((density * NARROW) ** -0.5)
        found.append(np.roll(kept if i % 2 == 0 else kept.T, 17 * i, axis=1))
    return found


def chain(layers: list[Array]) -> onnx.ModelProto:
    nodes = [
        helper.make_node("MatMul", [f"h{i}" if i else "X", f"w{i}"], [f"h{i + 1}"], f"layer {i}")
        for i in range(len(layers))
    ]
    nodes[-1].output[0] = "Y"
    graph = helper.make_graph(
        nodes,
        "large",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, [1, NARROW])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, [1, layers[-1].shape[1]])],
    )
    graph.initializer.extend(make_tensor(f"w{i}", weight) for i, weight in enumerate(layers))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def write(folder: Path, format: str, layers: int, densities: Sequence[float]) -> tuple[Any, str]:
    """Writes the model; returns its output by NumPy, and what was written, in words."""
    arrays = weights(layers, densities)
    wanted = first_input()
    for weight in arrays:
        wanted = wanted @ weight
    model = chain(arrays)
    del arrays
    start = time.perf_counter()
    made = convert(model, format, folder / f"{format}.onnx")
    seconds = time.perf_counter() - start
    encodings = Counter(row.encoding for row in made.tensors)
    size = sum(file.stat().st_size for file in made.files)
    kinds = ", ".join(f"{count} {name}" for name, count in encodings.items())
    return wanted, f"{size / GB:.2f} GB in {len(made.files)} files ({kinds}), {seconds:.0f} s"


def load(path: Path) -> tuple[Any, float, float]:
    """The output in ONNX Runtime, seconds to load, and the process's largest memory in bytes."""
    start = time.perf_counter()
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    seconds = time.perf_counter() - start
    (got,) = session.run(None, {"X": first_input()})
    return got, seconds, 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def first_input() -> Array:
    return np.random.default_rng(1).standard_normal((1, NARROW), np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--format", choices=FORMATS, default="csr")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--densities", type=float, nargs="+", default=[0.9, 0.3])
    options = parser.parse_args()
    print(", ".join(f"{key} {value}" for key, value in machine().items()))
    weight_bytes = 4 * NARROW * WIDE * options.layers
    print(f"{options.layers} weights of {NARROW} x {WIDE}, dense {weight_bytes / GB:.2f} GB")
    processes = multiprocessing.get_context("spawn")
    for format in dict.fromkeys((options.format, "dense")):
        # each step in a process of its own: what one held would count for the next
        with processes.Pool(1, maxtasksperchild=1) as pool:
            job = (options.folder, format, options.layers, options.densities)
            wanted, told = pool.apply(write, job)
            got, seconds, memory = pool.apply(load, (options.folder / f"{format}.onnx",))
        apart = float(np.abs(got - wanted).max() / np.abs(wanted).max())
        print(f"{format}: {told}")
        print(
            f"  loaded in {seconds:.1f} s, memory {memory / GB:.2f} GB, "
            f"{memory / weight_bytes:.2f} times the dense weights; output {apart:.1e} off NumPy's"
        )
        if apart > 1e-3:
            raise SystemExit("the result is wrong")


if __name__ == "__main__":
    main()
