"""Sparse kernels against dense ONNX Runtime and its peers, layer by layer.

    python benchmarks/sparse_runtime.py                      # the goals' layers
    python benchmarks/sparse_runtime.py --layers fc conv3x3 --threads 1 2 --json out.json

All contenders take turns in one process group, each warm when it is measured; the table holds
medians and their ratios.  Peers that need an environment of their own run in a child process:

    python -m venv ov && ov/bin/pip install openvino numpy
    python3.11 -m venv ds && ds/bin/pip install deepsparse==1.8.0 'numpy<2'
    python benchmarks/sparse_runtime.py --openvino ov/bin/python --deepsparse ds/bin/python
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Run = Callable[[], Any]

SEED = 0
REPEATS, WARMING = 5, 2  # runs of a contender before the next one's turn; uncounted ones


@dataclass(frozen=True)
class Layer:
    """One layer.  x: input shape.  weight: dense weight shape.  attributes: of Conv or Gemm."""

    name: str
    x: tuple[int, ...]
    weight: tuple[int, ...]
    density: float
    attributes: tuple[tuple[str, Any], ...] = ()

    @property
    def conv(self) -> bool:
        return len(self.weight) > 2


def conv(
    name: str,
    maps: int,
    size: int,
    filters: int,
    kernel: int,
    density: float,
    stride: int = 1,
    pad: int = 0,
    group: int = 1,
) -> Layer:
    return Layer(
        f"{name} {density:.0%}",
        (1, maps, size, size),
        (filters, maps // group, kernel, kernel),
        density,
        (("strides", [stride] * 2), ("pads", [pad] * 4), ("group", group)),
    )


def fully_connected() -> Iterator[Layer]:
    for batch in (1, 8, 64):
        for name, n, k, density in (
            ("fc6", 4096, 9216, 0.037),
            ("fc7", 4096, 4096, 0.066),
            ("fc8", 1000, 4096, 0.046),
        ):
            yield Layer(f"{name} batch {batch}", (batch, k), (n, k), density, (("transB", 1),))


def alexnet() -> Iterator[Layer]:
    yield conv("alexnet conv1", 3, 227, 96, 11, 0.54, stride=4)
    yield conv("alexnet conv2", 96, 27, 256, 5, 0.41, pad=2, group=2)
    yield conv("alexnet conv3", 256, 13, 384, 3, 0.29, pad=1)
    yield conv("alexnet conv4", 384, 13, 384, 3, 0.32, pad=1, group=2)
    yield conv("alexnet conv5", 384, 13, 256, 3, 0.32, pad=1, group=2)


def conv3x3() -> Iterator[Layer]:
    for density in (0.2, 0.1, 0.05, 0.02):
        for maps, size in ((64, 56), (128, 28), (256, 28), (256, 14), (512, 14), (512, 7)):
            yield conv(f"3x3 {maps}x{size}", maps, size, maps, 3, density, pad=1)
        yield conv("3x3 stride 2 128x56", 128, 56, 128, 3, density, stride=2, pad=1)


def conv1x1() -> Iterator[Layer]:
    for density in (0.2, 0.1, 0.05, 0.02):
        for maps, size, filters in (
            (64, 56, 256),
            (256, 56, 64),
            (512, 28, 128),
            (1024, 14, 256),
            (512, 7, 2048),
            (512, 14, 512),
            (96, 28, 24),
        ):
            yield conv(f"1x1 {maps}x{size}-{filters}", maps, size, filters, 1, density)


GROUPS: dict[str, Callable[[], Iterator[Layer]]] = {
    "fc": fully_connected,
    "alexnet": alexnet,
    "conv3x3": conv3x3,
    "conv1x1": conv1x1,
}


def pruned(rng: np.random.Generator, shape: Sequence[int], density: float) -> Array:
    return (rng.standard_normal(shape) * (rng.random(shape) < density)).astype(np.float32)


def model(layer: Layer, weight: Array, *, sparse: bool) -> bytes:
    """The layer alone, dense or with the operands of docs/operators-csr.md."""
    from onnx import TensorProto, helper, numpy_helper

    op = "Conv" if layer.conv else "Gemm"
    values = {"W": weight}
    if sparse:
        rows = weight.reshape(weight.shape[0], -1)
        kept = rows != 0
        values = {
            "values": rows[kept],
            "col_indices": np.nonzero(kept)[1].astype(np.int32),
            "row_ptr": np.concatenate(([0], np.cumsum(kept.sum(1)))).astype(np.int32),
            "shape": np.asarray(weight.shape, np.int64),
        }
        op = "Csr" + op
    node = helper.make_node(
        op,
        ["X", *values],
        ["Y"],
        name=layer.name,
        domain="dns_onnx" if sparse else "",
        **dict(layer.attributes),
    )
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, layer.x)],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in values.items()],
    )
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("dns_onnx", 1)]
    made = helper.make_model(graph, opset_imports=opsets[: 2 if sparse else 1], ir_version=8)
    data: bytes = made.SerializeToString()
    return data


def ort_runner(data: bytes, x: Array, threads: int, library: str | None) -> Run:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if library is not None:
        options.register_custom_ops_library(library)
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"X": x})[0]


def openvino_runner(path: str, x: Array, threads: int) -> Run:
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(
        path, "CPU", {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    )
    request = compiled.create_infer_request()
    return lambda: request.infer([x])


def deepsparse_runner(path: str, x: Array, threads: int) -> Run:
    from deepsparse import Engine

    engine = Engine(model=path, batch_size=x.shape[0], num_cores=threads)
    return lambda: engine.run([x])


PEERS: dict[str, Callable[[str, Array, int], Run]] = {
    "openvino": openvino_runner,
    "deepsparse": deepsparse_runner,
}


CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


def turn(run: Run, clock: str) -> float:
    """Milliseconds of the median run of one turn, its first ones left out: they warm the caches."""
    times = []
    for _ in range(REPEATS):
        start = CLOCKS[clock]()
        run()
        times.append(CLOCKS[clock]() - start)
    return statistics.median(times[WARMING:]) * 1e3


def serve(peer: str) -> None:
    """The child process: a job a line in, milliseconds a line out."""
    run: Run | None = None
    for line in sys.stdin:
        job = json.loads(line)
        if "model" in job:
            rng = np.random.default_rng(SEED)
            x = rng.standard_normal(job["x"]).astype(np.float32)
            run = PEERS[peer](job["model"], x, job["threads"])
            answer = 0.0
        else:
            assert run is not None
            answer = turn(run, job["clock"])
        sys.stderr.flush()
        print("ms", answer, flush=True)


class Child:
    """A peer in an environment of its own, driven over pipes."""

    def __init__(self, peer: str, python: str) -> None:
        self.process = subprocess.Popen(
            [python, __file__, "--serve", peer],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, **job: Any) -> float:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:  # the peers greet on standard output
            if line.startswith("ms "):
                return float(line.split()[1])
        raise RuntimeError("the peer's process ended; run it by hand with --serve to see why")


def measure(
    layer: Layer,
    threads: int,
    seconds: float,
    library: str,
    children: dict[str, Child],
    clock: str,
) -> dict[str, float]:
    """Median milliseconds of each contender, and `gflops` of ours on the nonzeros."""
    rng = np.random.default_rng(SEED)
    weight = pruned(rng, layer.weight, layer.density)
    x = rng.standard_normal(layer.x).astype(np.float32)
    dense = model(layer, weight, sparse=False)
    turns: dict[str, Callable[[], float]] = {}
    ort_dense = ort_runner(dense, x, threads, None)
    ours = ort_runner(model(layer, weight, sparse=True), x, threads, library)
    want, got = ort_dense(), ours()
    if np.abs(want - got).max() > 1e-4 * np.abs(want).max():
        raise RuntimeError(f"{layer.name}: the sparse kernel's result is wrong")
    turns["dense"] = lambda: turn(ort_dense, clock)
    turns["ours"] = lambda: turn(ours, clock)
    if not layer.conv and threads == 1:
        import scipy.sparse

        matrix, column = scipy.sparse.csr_matrix(weight), np.ascontiguousarray(x.T)
        turns["scipy"] = lambda: turn(lambda: matrix @ column, clock)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layer.onnx"
        path.write_bytes(dense)
        for peer, child in children.items():
            child.ask(model=str(path), x=layer.x, threads=threads)
            turns[peer] = lambda child=child: child.ask(clock=clock)  # type: ignore[misc]
        times: dict[str, list[float]] = {name: [] for name in turns}
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(times["ours"]) < 5:
            for name, take in turns.items():
                times[name].append(take())
    result = {name: statistics.median(values) for name, values in times.items()}
    positions = want.size / weight.shape[0]
    result["gflops"] = 2 * np.count_nonzero(weight) * positions / result["ours"] / 1e6
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    default = ["fc", "alexnet", "conv3x3"]
    parser.add_argument("--layers", nargs="+", choices=GROUPS, default=default)
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--seconds", type=float, default=1.0, help="for each line of the table")
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="cpu: for one thread on a busy machine; counts the peers' idle spinning too",
    )
    parser.add_argument("--only", default="", help="layers whose name holds this text")
    parser.add_argument("--openvino", metavar="PYTHON", help="interpreter that has openvino")
    parser.add_argument("--deepsparse", metavar="PYTHON", help="interpreter that has deepsparse")
    parser.add_argument("--json", type=Path, help="write the medians there")
    parser.add_argument("--serve", choices=PEERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve(options.serve)

    from dns_onnx.runtime.library import kernel_set, library_path, peak_gflops

    interpreters = {"openvino": options.openvino, "deepsparse": options.deepsparse}
    children = {peer: Child(peer, python) for peer, python in interpreters.items() if python}
    peak = peak_gflops()
    print(
        f"kernels {kernel_set()}, FMA peak of one thread {peak:.0f} GFLOP/s, load "
        f"{os.getloadavg()[0]:.1f}; {options.clock} milliseconds, then how many times as fast "
        "ours is"
    )
    rows = []
    for threads in options.threads:
        for layer in (layer for group in options.layers for layer in GROUPS[group]()):
            if options.only not in layer.name:
                continue
            times = measure(
                layer, threads, options.seconds, str(library_path()), children, options.clock
            )
            rows.append(
                {
                    "layer": layer.name,
                    "threads": threads,
                    **times,
                    "peak": times["gflops"] / (peak * threads),
                }
            )
            peers = "".join(
                f"  {name} {ms:8.3f} ({ms / times['ours']:5.2f}x)"
                for name, ms in times.items()
                if name not in ("ours", "gflops")
            )
            print(
                f"{layer.name:24} {threads}T  ours {times['ours']:7.3f}{peers}"
                f"  {times['gflops'] / (peak * threads):4.0%} of peak",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
