"""Sparse kernels against dense ONNX Runtime and its peers: layers, and whole nets.

    python benchmarks/sparse_runtime.py                      # the goals' layers
    python benchmarks/sparse_runtime.py --layers fc conv3x3 --threads 1 2 --json out.json
    python benchmarks/sparse_runtime.py --layers --nets alexnet vgg19 resnet50 --data FOLDER

All contenders take turns in one process group, each warm when it is measured; the table holds
medians and their ratios.  Layers run on the kernels alone, nets through dns_onnx.runtime.session
with its choice of kernels.  Peers that need an environment of their own run in a child process:

    python -m venv ov && ov/bin/pip install openvino numpy
    python3.11 -m venv ds && ds/bin/pip install deepsparse==1.8.0 'numpy<2'
    python benchmarks/sparse_runtime.py --openvino ov/bin/python --deepsparse ds/bin/python
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from contenders import CLOCKS, SEED, Child, Run, in_turn, ort_runner, sample, turn
from sparse_models import GROUPS, NETS, Layer, Net, layer_model, nets, pruned

from dns_onnx.converters.exporter import convert
from dns_onnx.runtime.library import kernel_set, library_path, peak_gflops
from dns_onnx.runtime.session import SessionNotes, session

Children = Mapping[str, Child]


def compare(
    name: str,
    runs: Mapping[str, Run],
    dense: Path,
    shape: tuple[int, ...],
    children: Children,
    options: argparse.Namespace,
    threads: int,
) -> dict[str, Any]:
    """Median milliseconds of each contender; `runs` are ours and those of this process."""
    want, got = runs["dense"](), runs["ours"]()
    if np.abs(want - got).max() > 1e-4 * np.abs(want).max():
        raise RuntimeError(f"{name}: the sparse result is wrong")
    turns: dict[str, Callable[[], float]] = {
        who: lambda run=run: turn(run, options.clock)  # type: ignore[misc]
        for who, run in runs.items()
    }
    for peer, child in children.items():
        child.load(str(dense), shape, threads)
        turns[peer] = lambda child=child: child.turn(options.clock)  # type: ignore[misc]
    return {"name": name, "threads": threads, **in_turn(turns, options.seconds)}


def measure_layer(
    layer: Layer, threads: int, children: Children, options: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    """Medians of one layer, and `gflops` of ours on the nonzeros."""
    rng = np.random.default_rng(SEED)
    weight = pruned(rng, layer.weight, layer.density)
    x = sample(layer.x)
    path = folder / "layer.onnx"
    path.write_bytes(layer_model(layer, weight, sparse=False))
    sparse = layer_model(layer, weight, sparse=True)
    runs = {
        "dense": ort_runner(str(path), x, threads, None),
        "ours": ort_runner(sparse, x, threads, str(library_path())),
    }
    outputs = runs["dense"]().size
    if not layer.conv and threads == 1:
        import scipy.sparse

        matrix, column = scipy.sparse.csr_matrix(weight), np.ascontiguousarray(x.T)
        runs["scipy"] = lambda: matrix @ column
    row = compare(layer.name, runs, path, layer.x, children, options, threads)
    operations = 2 * np.count_nonzero(weight) * outputs / weight.shape[0]
    row["gflops"] = operations / row["ours"] / 1e6
    return row


def measure_net(
    net: Net, threads: int, children: Children, options: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    """Medians of one net; `sparse`: how many of its layers run on the sparse kernels."""
    dense, sparse = folder / "dense.onnx", folder / "sparse.onnx"
    onnx.save(net.dense, dense)
    convert(net.dense, "csr", sparse)
    x = sample(net.shape)
    start = time.perf_counter()
    ours = session(sparse, ["CPUExecutionProvider"], native="require", threads=threads)
    seconds = time.perf_counter() - start
    name = ours.get_inputs()[0].name
    runs: dict[str, Run] = {
        "dense": ort_runner(str(dense), x, threads, None),
        "ours": lambda: ours.run(None, {name: x})[0],
    }
    row = compare(net.name, runs, dense, net.shape, children, options, threads)
    return {**row, "load_s": seconds, "choice": note(ours.dns_onnx)}


def note(notes: SessionNotes) -> str:
    counts = (("dense", notes.folded), ("more sparse", notes.unfolded))
    made = "".join(f"{len(names)} {what}, " for what, names in counts if names)
    return f"{made}{notes.choice}"


def line(row: Mapping[str, Any], peak: float) -> str:
    """One line of the table."""
    peers = "".join(
        f"  {name} {row[name]:8.3f} ({row[name] / row['ours']:5.2f}x)"
        for name in ("dense", "scipy", "openvino", "deepsparse")
        if name in row
    )
    rest = row.get("choice", "")
    if "gflops" in row:
        rest = f"{row['gflops'] / (peak * row['threads']):4.0%} of peak"
    return f"{row['name']:24} {row['threads']}T  ours {row['ours']:8.3f}{peers}  {rest}"


def rows(options: argparse.Namespace, children: Children, folder: Path) -> Iterator[dict[str, Any]]:
    for threads in options.threads:
        for group in options.layers:
            for layer in GROUPS[group]():
                if options.only in layer.name:
                    yield measure_layer(layer, threads, children, options, folder)
    for net in nets(options.nets, options.data, options.only):
        for threads in options.threads:
            yield measure_net(net, threads, children, options, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    default = ["fc", "alexnet", "conv3x3"]
    parser.add_argument("--layers", nargs="*", choices=GROUPS, default=default)
    parser.add_argument("--nets", nargs="*", choices=NETS, default=[])
    parser.add_argument("--data", type=Path, help="folder with models/, for squeezenet and lenet")
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--seconds", type=float, default=1.0, help="for each line of the table")
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="cpu: for one thread on a busy machine; counts the peers' idle spinning too",
    )
    parser.add_argument("--only", default="", help="layers and nets whose name holds this text")
    parser.add_argument("--openvino", metavar="PYTHON", help="interpreter that has openvino")
    parser.add_argument("--deepsparse", metavar="PYTHON", help="interpreter that has deepsparse")
    parser.add_argument("--json", type=Path, help="write the medians there")
    options = parser.parse_args()

    interpreters = {"openvino": options.openvino, "deepsparse": options.deepsparse}
    children = {peer: Child(peer, python) for peer, python in interpreters.items() if python}
    peak = peak_gflops()
    print(
        f"kernels {kernel_set()}, FMA peak of one thread {peak:.0f} GFLOP/s, load "
        f"{os.getloadavg()[0]:.1f}; {options.clock} milliseconds, then how many times as fast "
        "ours is"
    )
    done = []
    with tempfile.TemporaryDirectory() as folder:
        for row in rows(options, children, Path(folder)):
            done.append(row)
            print(line(row, peak), flush=True)
    if options.json:
        options.json.write_text(json.dumps(done, indent=1))


if __name__ == "__main__":
    main()
