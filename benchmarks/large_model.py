"""A pruned model of more than 2 GB: written with external data, and loaded by ONNX Runtime.

    python benchmarks/large_model.py FOLDER --format csr     # about 8 GB of memory, 3 of disk

A chain of MatMul layers of 4096 x 8192, their weights drawn with seed 0 and kept to `--density`.
The file is read back by ONNX Runtime and its output held against NumPy's.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from dns_onnx.converters.encodings import FORMATS
from dns_onnx.converters.encodings.parts import make_tensor
from dns_onnx.converters.exporter import convert

Array = np.ndarray[Any, Any]
NARROW, WIDE = 4096, 8192


def weights(layers: int, density: float) -> list[Array]:
    """Each [K, N]; one drawing rolled from layer to layer, since drawing takes longest."""
    rng = np.random.default_rng(0)
    scale = np.float32((density * NARROW) ** -0.5)
    drawn = rng.standard_normal((NARROW, WIDE), np.float32) * scale
    drawn[rng.random((NARROW, WIDE), np.float32) >= density] = 0
    return [np.roll(drawn if i % 2 == 0 else drawn.T, 17 * i, axis=1) for i in range(layers)]


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--format", choices=FORMATS, default="csr")
    parser.add_argument("--layers", type=int, default=18)
    parser.add_argument("--density", type=float, default=0.9)
    options = parser.parse_args()
    layers = weights(options.layers, options.density)
    x = np.random.default_rng(1).standard_normal((1, NARROW), np.float32)
    wanted = x
    for weight in layers:
        wanted = wanted @ weight
    model = chain(layers)
    del layers
    start = time.perf_counter()
    made = convert(model, options.format, options.folder / "large.onnx")
    written = time.perf_counter() - start
    files, encodings = made.files, {row.encoding for row in made.tensors}
    del model, made
    start = time.perf_counter()
    session = ort.InferenceSession(files[0], providers=["CPUExecutionProvider"])
    loaded = time.perf_counter() - start
    (got,) = session.run(None, {"X": x})
    apart = float(np.abs(got - wanted).max() / np.abs(wanted).max())
    sizes = {file.name: file.stat().st_size for file in files}
    for name, size in sizes.items():
        print(f"{name}: {size:,} bytes")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    total = sum(sizes.values()) / 2**30
    print(f"{options.format} ({', '.join(sorted(encodings))}): {total:.2f} GiB in {written:.0f} s")
    print(f"loaded by ONNX Runtime {ort.__version__} in {loaded:.0f} s, memory {peak:.1f} GiB")
    print(f"output at most {apart:.1e} of its largest entry off NumPy's")
    if apart > 1e-3:
        raise SystemExit("the result is wrong")


if __name__ == "__main__":
    main()
