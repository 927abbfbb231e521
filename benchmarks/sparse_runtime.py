"""Sparse kernels against dense ONNX Runtime and its peers: layers, and whole nets.

    python benchmarks/sparse_runtime.py                      # the goals' layers
    python benchmarks/sparse_runtime.py --layers fc conv3x3 --threads 1 2 --json out.json
    python benchmarks/sparse_runtime.py --layers --nets alexnet vgg19 resnet50 --data FOLDER

All contenders take turns in one process group, each warm when it is measured.  The table holds
median milliseconds, and how many times as fast ours is: the median of the ratios within each round.
Layers run on the kernels alone, nets through dns_onnx.runtime.session with its choice of kernels;
for nets `control` is the dense net measured against itself, a second session of it: what its
quartiles span, nobody can tell from noise.  `plain` is ours with LRN and MaxPool left to ONNX
Runtime: the former speeds up dense nets as well.  Peers that need an environment of their own run
in a child process:

    python -m venv ov && ov/bin/pip install openvino numpy
    python3.11 -m venv ds && ds/bin/pip install deepsparse==1.8.0 'numpy<2'
    python benchmarks/sparse_runtime.py --openvino ov/bin/python --deepsparse ds/bin/python
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from contenders import (
    CLOCKS,
    REST_SECONDS,
    SEED,
    Child,
    Rounds,
    Run,
    in_turn,
    keep_cores,
    ort_runner,
    sample,
    times_as_fast,
    turn,
)
from sparse_models import GROUPS, NETS, Layer, Net, layer_model, nets, pruned

from dns_onnx.converters.exporter import convert
from dns_onnx.runtime.library import kernel_set, library_path, peak_gflops
from dns_onnx.runtime.session import SessionNotes, session

CPU = "CPUExecutionProvider"
Children = Mapping[str, Child]


def compare(
    name: str,
    openers: Mapping[str, Callable[[], Run]],
    dense: Path,
    shape: tuple[int, ...],
    children: Children,
    options: argparse.Namespace,
    threads: int,
) -> dict[str, Any]:
    """What each contender takes; `openers` make ours and those of this process ready to run.

    Keys: the contenders, median milliseconds.  `ratios`: quartiles of how many times as fast ours
    is as each.  `control`: the same of the dense net as against itself, where it runs twice.
    """
    for child in children.values():
        child.load(str(dense), shape, threads)
    times: Rounds = {}
    order = list(openers)
    for _ in range(options.sessions):
        runs = {who: openers[who]() for who in order}
        want, got = runs["dense"](), runs["ours"]()
        if np.abs(want - got).max() > 1e-4 * np.abs(want).max():
            raise RuntimeError(f"{name}: the sparse result is wrong")
        turns: dict[str, Callable[[], float]] = {
            who: lambda run=run: turn(run, options.clock)  # type: ignore[misc]
            for who, run in runs.items()
        }
        for peer, child in children.items():
            turns[peer] = lambda child=child: child.turn(options.clock)  # type: ignore[misc]
        rest = 0.0 if threads == 1 else REST_SECONDS
        for who, values in in_turn(turns, options.seconds / options.sessions, rest).items():
            times.setdefault(who, []).extend(values)
        order.append(order.pop(0))
        runs, turns = {}, {}  # their memory goes before the next ones take theirs
    row: dict[str, Any] = {"name": name, "threads": threads, "rounds": len(times["ours"])}
    row |= {who: statistics.median(values) for who, values in times.items()}
    row["ratios"] = {peer: times_as_fast(times, "ours", peer) for peer in times if peer != "ours"}
    if "again" in times:
        row["control"] = times_as_fast(times, "again", "dense")
    return row


def measure_layer(
    layer: Layer, threads: int, children: Children, options: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    """Medians of one layer, and `gflops` of ours on the nonzeros."""
    rng = np.random.default_rng(SEED)
    weight = pruned(rng, layer.weight, layer.density).astype(options.values).astype(np.float32)
    x = sample(layer.x)
    path = folder / "layer.onnx"
    path.write_bytes(layer_model(layer, weight, sparse=False))
    sparse = layer_model(layer, weight, sparse=True)
    openers: dict[str, Callable[[], Run]] = {
        "dense": lambda: ort_runner(str(path), x, threads, None),
        "ours": lambda: ort_runner(sparse, x, threads, str(library_path())),
    }
    if not layer.conv and threads == 1:
        import scipy.sparse

        matrix, column = scipy.sparse.csr_matrix(weight), np.ascontiguousarray(x.T)
        openers["scipy"] = lambda: lambda: matrix @ column
    row = compare(layer.name, openers, path, layer.x, children, options, threads)
    outputs = openers["dense"]()().size
    operations = 2 * np.count_nonzero(weight) * outputs / weight.shape[0]
    row["gflops"] = operations / row["ours"] / 1e6
    return row


def files(net: Net, folder: Path) -> tuple[Path, Path]:
    """The net's dense and sparse file, made unless the folder has them."""
    stem = folder / net.name.replace(" ", "_")
    dense, sparse = stem.with_name(f"{stem.name}_dense.onnx"), stem.with_name(f"{stem.name}.onnx")
    if not sparse.exists():
        model = net.dense()
        onnx.save(model, dense)
        convert(model, "csr", sparse)
    return dense, sparse


def measure_net(
    net: Net, threads: int, children: Children, options: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    """Medians of one net; `choice`: what the session chose, `load_s`: how long it took."""
    dense, sparse = files(net, folder)
    x = sample(net.shape)

    def opened(substitute: bool = True) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        keep_cores(options, threads)
        return session(
            sparse,
            [CPU],
            native="require",
            threads=threads,
            substitute=substitute,
            options=options,
        )

    start = time.perf_counter()
    notes: SessionNotes = opened().dns_onnx
    seconds = time.perf_counter() - start

    def ours(substitute: bool = True) -> Run:
        made = opened(substitute)
        name = made.get_inputs()[0].name
        return lambda: made.run(None, {name: x})[0]

    openers: dict[str, Callable[[], Run]] = {
        "dense": lambda: ort_runner(str(dense), x, threads, None),
        "ours": ours,
        "again": lambda: ort_runner(str(dense), x, threads, None),
    }
    if notes.substituted:
        openers["plain"] = lambda: ours(False)
    row = compare(net.name, openers, dense, net.shape, children, options, threads)
    return {**row, "load_s": seconds, "choice": note(notes)}


def note(notes: SessionNotes) -> str:
    counts = (("dense", notes.folded), ("more sparse", notes.unfolded))
    made = "".join(f"{len(names)} {what}, " for what, names in counts if names)
    return f"{made}{notes.choice}"


def line(row: Mapping[str, Any], peak: float) -> str:
    """One line of the table."""
    peers = "".join(
        f"  {name} {row[name]:8.3f} ({row['ratios'][name][1]:5.2f}x)"
        for name in ("dense", "scipy", "openvino", "deepsparse", "plain")
        if name in row
    )
    rest = row.get("choice", "")
    if "control" in row:
        low, middle, high = row["control"]
        rest = f"control {middle:4.2f} ({low:4.2f}-{high:4.2f})  {rest}"
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
        if options.prepare:
            files(net, folder)
            continue
        for threads in options.threads:
            yield measure_net(net, threads, children, options, folder)
        if options.folder is None:
            for file in folder.iterdir():
                file.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    default = ["fc", "alexnet", "conv3x3"]
    parser.add_argument("--layers", nargs="*", choices=GROUPS, default=default)
    parser.add_argument("--nets", nargs="*", choices=NETS, default=[])
    parser.add_argument("--data", type=Path, help="folder with models/, for squeezenet and lenet")
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--seconds", type=float, default=1.0, help="for each line of the table")
    parser.add_argument(
        "--sessions",
        type=int,
        default=1,
        help="times that each contender of this process is opened anew: where its memory lies "
        "makes a session a few per cent faster or slower for good",
    )
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="cpu: for one thread on a busy machine; counts the peers' idle spinning too",
    )
    parser.add_argument(
        "--values",
        choices=("float32", "float16"),
        default="float32",
        help="float16: weights of the layers that float16 holds exactly, as such files store them",
    )
    parser.add_argument("--only", default="", help="layers and nets whose name holds this text")
    parser.add_argument("--openvino", metavar="PYTHON", help="interpreter that has openvino")
    parser.add_argument("--deepsparse", metavar="PYTHON", help="interpreter that has deepsparse")
    parser.add_argument("--folder", type=Path, help="keep the nets' files there, and reuse them")
    parser.add_argument("--prepare", action="store_true", help="only make the nets' files")
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
    with tempfile.TemporaryDirectory() as temporary:
        for row in rows(options, children, options.folder or Path(temporary)):
            done.append(row)
            print(line(row, peak), flush=True)
    if options.json:
        options.json.write_text(json.dumps(done, indent=1))


if __name__ == "__main__":
    main()
