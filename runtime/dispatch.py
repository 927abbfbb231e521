"""Dense or sparse, layer by layer, for the machine at hand.

Export chose by a cost model of common machines.  Here the machine is known: a sparse layer whose
kernel would lose is handed back to ONNX Runtime's dense one by renaming its node to a copy of its
own function, for which no kernel is registered, so that it is folded at load.
"""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from dns_onnx.runtime.library import kernel_set, library_path

DOMAIN = "dns_onnx"
OPERATORS = ("CsrGemm", "CsrMatMul", "CsrConv")
FOLDED = "Folded"  # suffix of the function copies
SURE = 0.15  # below this density the sparse kernel wins on every machine; needs no measurement
SMALL = 1 << 16  # entries of a dense weight below which the choice is not worth a measurement
DEPTHWISE = "depthwise"  # one channel a filter: bringing it into panels costs more than it saves
_RUNS = 9

# one layer of each kind, small enough to measure in milliseconds: (input shape, weight shape)
_PROBES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "linear": ((1, 2048), (1024, 2048)),
    "large linear": ((1, 4096), (3072, 4096)),
    "conv": ((1, 64, 28, 28), (64, 64, 3, 3)),
    "pointwise": ((1, 128, 28, 28), (128, 128, 1, 1)),
}
_DENSITIES = (0.25, 0.75)
_LARGE = 32 << 20  # bytes of a dense weight that no cache holds from run to run


def fold_slow_layers(data: bytes, threads: int) -> tuple[bytes, list[str]]:
    """Hands the layers whose sparse kernel would lose back to the dense one.

    data: a serialized model; one with external data stays as it is.  threads: of the session,
    0 for ONNX Runtime's default.
    Returns the model, changed only if the list of node names beside it is not empty.
    """
    if b"Csr" not in data:
        return data, []
    model = onnx.load_from_string(data)
    constants = {tensor.name: tensor for tensor in _initializers(model.graph)}
    if any(tensor.data_location == TensorProto.EXTERNAL for tensor in constants.values()):
        return data, []  # data beside the file are found by its folder, which bytes have not
    slow = []
    for node in _nodes(model.graph):
        found = _density(node, constants)
        if found is None:
            continue
        kind, density = found
        if kind == DEPTHWISE or (density > SURE and density > thresholds(threads)[kind]):
            slow.append(node)
    known = {function.name: function for function in model.functions if function.domain == DOMAIN}
    slow = [node for node in slow if node.op_type in known]
    for op_type in {node.op_type for node in slow}:
        copy = model.functions.add()
        copy.CopyFrom(known[op_type])
        copy.name = op_type + FOLDED
    names = [node.name or node.output[0] for node in slow]
    for node in slow:
        node.op_type += FOLDED
    return (model.SerializeToString(), names) if names else (data, [])


def thresholds(threads: int) -> dict[str, float]:
    """Density above which the dense kernel is faster, for each kind of layer.

    Measured once for this CPU, ONNX Runtime and thread count (one to three seconds), then read
    from a file in the user's cache folder; the environment variable DNS_ONNX_CACHE names another.
    """
    key = "|".join(
        (platform.machine(), _cpu_name(), kernel_set(), ort.__version__, f"{threads} threads")
    )
    path = _cache_folder() / "dispatch.json"
    try:
        stored: dict[str, dict[str, float]] = json.loads(path.read_text())
    except (OSError, ValueError):
        stored = {}
    found = stored.get(key)
    if found is None or found.keys() != _PROBES.keys():
        found = {kind: _crossing(kind, threads) for kind in _PROBES}
        _store(path, {**stored, key: found})
    return found


def _density(
    node: onnx.NodeProto, constants: Mapping[str, TensorProto]
) -> tuple[str, float] | None:
    """Kind and density of a sparse layer worth a choice: stored in the file, not small."""
    if node.domain != DOMAIN or node.op_type not in OPERATORS or len(node.input) < 5:
        return None
    values, shape = constants.get(node.input[1]), constants.get(node.input[4])
    if values is None or shape is None:
        return None
    dims = [int(d) for d in numpy_helper.to_array(shape)]
    size = math.prod(dims)
    if size <= 0:
        return None
    if node.op_type != "CsrConv":
        kind = "large linear" if size * 4 > _LARGE else "linear"
    elif dims[1] == 1:
        return DEPTHWISE, math.prod(values.dims) / size
    else:
        kind = "pointwise" if math.prod(dims[2:]) == 1 else "conv"
    if size < SMALL:
        return None
    return kind, math.prod(values.dims) / size


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes, those of subgraphs included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


def _initializers(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    """All initializers, those of subgraphs included."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _initializers(attribute.g)


def _crossing(kind: str, threads: int) -> float:
    """Density at which dense and sparse take the same time; the sparse time is a straight line."""
    low, high = _DENSITIES
    dense, sparse_low = _times(kind, low, threads)
    dense_again, sparse_high = _times(kind, high, threads)
    slope = (sparse_high - sparse_low) / (high - low)
    if slope <= 0:
        return 1.0 if sparse_high < dense else 0.0
    return min(1.0, max(0.0, low + (min(dense, dense_again) - sparse_low) / slope))


def _times(kind: str, density: float, threads: int) -> tuple[float, float]:
    """Seconds of one run, dense and sparse, taken in turn."""
    shape, weight_shape = _PROBES[kind]
    rng = np.random.default_rng(0)
    weight = rng.standard_normal(weight_shape) * (rng.random(weight_shape) < density)
    x = {"X": rng.standard_normal(shape).astype(np.float32)}
    sessions = [_probe(shape, weight.astype(np.float32), threads, sparse=s) for s in (False, True)]
    best = [math.inf, math.inf]
    for _ in range(_RUNS):
        for i, probe in enumerate(sessions):
            probe.run(None, x)
            start = time.perf_counter()
            probe.run(None, x)
            best[i] = min(best[i], time.perf_counter() - start)
    return best[0], best[1]


def _probe(
    shape: tuple[int, ...], weight: np.ndarray[Any, Any], threads: int, *, sparse: bool
) -> ort.InferenceSession:
    """A session over one layer."""
    op_type = "Gemm" if len(weight.shape) == 2 else "Conv"
    attributes: dict[str, Any] = {"transB": 1}
    if op_type == "Conv":
        pad, group = weight.shape[-1] // 2, shape[1] // weight.shape[1]
        attributes = {"pads": [pad] * 4, "group": group}
    values = {"W": weight}
    if sparse:
        rows = weight.reshape(weight.shape[0], -1)
        columns = np.nonzero(rows)[1]
        pointers = np.concatenate(([0], np.cumsum(np.count_nonzero(rows, axis=1))))
        values = {
            "values": rows[rows != 0], "col_indices": columns, "row_ptr": pointers,
            "shape": np.asarray(weight.shape, np.int64),
        }  # fmt: skip
        op_type = "Csr" + op_type
    node = helper.make_node(
        op_type, ["X", *values], ["Y"], domain=DOMAIN if sparse else "", **attributes
    )
    graph = helper.make_graph(
        [node],
        "probe",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in values.items()],
    )
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.register_custom_ops_library(str(library_path()))
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _cpu_name() -> str:
    """The CPU's model, as precisely as the system tells."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


def _cache_folder() -> Path:
    override = os.environ.get("DNS_ONNX_CACHE")
    if override:
        return Path(override)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dns-onnx"


def _store(path: Path, content: dict[str, dict[str, float]]) -> None:
    """Writes the file whole or not at all; a folder that cannot be written costs only time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(content, indent=1))
        partial.replace(path)
    except OSError:
        return
