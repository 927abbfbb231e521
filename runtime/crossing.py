"""Up to which density the sparse kernels win on the machine at hand, measured once."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from dns_onnx.runtime.library import kernel_set, library_path
from dns_onnx.runtime.sites import DOMAIN

_RUNS = 9

# one layer of each kind, small enough to measure in milliseconds: (input shape, weight shape)
_PROBES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "linear": ((1, 2048), (1024, 2048)),
    "large linear": ((1, 4096), (3072, 4096)),
    "conv": ((1, 64, 28, 28), (64, 64, 3, 3)),
    "pointwise": ((1, 128, 28, 28), (128, 128, 1, 1)),
}
_DENSITIES = (0.25, 0.75)


def thresholds(threads: int) -> dict[str, float]:
    """Density above which the dense kernel is faster, for each kind of layer.

    Measured once for this CPU, ONNX Runtime and thread count (one to three seconds).
    """
    stored = recall(machine(threads))
    if stored is not None and stored.keys() == _PROBES.keys():
        return {kind: float(value) for kind, value in stored.items()}
    found = {kind: _crossing(kind, threads) for kind in _PROBES}
    remember(machine(threads), found)
    return found


def machine(threads: int) -> str:
    """What a measurement holds for: CPU, build of the kernels, ONNX Runtime and thread count."""
    kernels = f"{kernel_set()} {_build()}"
    return "|".join(
        (platform.machine(), cpu_name(), kernels, ort.__version__, f"{threads} threads")
    )


@lru_cache
def _build() -> str:
    """Digest of the library: other kernels win up to other densities."""
    return hashlib.blake2b(library_path().read_bytes(), digest_size=4).hexdigest()


def recall(key: str) -> dict[str, Any] | None:
    """What was remembered under the key, in the user's cache folder; None if nothing was.

    The environment variable DNS_ONNX_CACHE names another folder.
    """
    found = _stored().get(key)
    return found if isinstance(found, dict) else None


def remember(key: str, value: dict[str, Any]) -> None:
    """Keeps the value for later processes; a folder that cannot be written costs only time."""
    _store(_cache_file(), {**_stored(), key: value})


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


def cpu_name() -> str:
    """The CPU's model, as precisely as the system tells."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


def _cache_file() -> Path:
    override = os.environ.get("DNS_ONNX_CACHE")
    if override:
        return Path(override) / "dispatch.json"
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return home / "dns-onnx" / "dispatch.json"


def _stored() -> dict[str, Any]:
    try:
        found = json.loads(_cache_file().read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _store(path: Path, content: dict[str, Any]) -> None:
    """Writes the file whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(content, indent=1))
        partial.replace(path)
    except OSError:
        return
