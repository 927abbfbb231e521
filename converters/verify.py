"""Compare an imported graph with ONNX Runtime, value by value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto
from torch import Tensor, fx

from dns_onnx.converters.dtypes import to_numpy


@dataclass(frozen=True)
class Difference:
    """One value that differs.

    value: its ONNX name.  op_type, node: what computes it.
    error: largest absolute error over the value's largest magnitude; infinite for another shape.
    """

    value: str
    op_type: str
    node: str
    error: float


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps every value that has an ONNX name."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.seen: dict[str, tuple[Any, fx.Node]] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        name = n.meta.get("onnx")
        if name is not None and n.op == "call_function":
            self.seen[name] = (result, n)
        return result


def compare_values(
    module: fx.GraphModule,
    model: ModelProto,
    inputs: Sequence[Any],
    tolerance: float = 1e-3,
) -> list[Difference]:
    """The values that differ from ONNX Runtime's by more than the tolerance, in graph order.

    inputs: torch tensors (or string arrays) in graph-input order.
    The first row names the node to look at: later ones mostly inherit its error.
    """
    import onnxruntime

    recorder = _Recorder(module)
    with torch.no_grad():
        recorder.run(*inputs)
    wide = _with_all_outputs(model, set(recorder.seen))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        wide.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feeds = {i.name: to_numpy(v) for i, v in zip(session.get_inputs(), inputs, strict=True)}
    names = [output.name for output in session.get_outputs()]
    rows = []
    for name, wanted in zip(names, session.run(names, feeds), strict=True):
        if name not in recorder.seen or not isinstance(wanted, np.ndarray):
            continue
        value, node = recorder.seen[name]
        error = _error(value, wanted)
        if error > tolerance:
            rows.append((node, Difference(name, _meta(node, "op"), _meta(node, "node"), error)))
    order = {node: index for index, node in enumerate(module.graph.nodes)}
    return [row for _, row in sorted(rows, key=lambda pair: order[pair[0]])]


def _meta(node: fx.Node, key: str) -> str:
    return str(node.meta.get(key, ""))


def _with_all_outputs(model: ModelProto, names: set[str]) -> ModelProto:
    wide = ModelProto()
    wide.CopyFrom(model)
    have = {output.name for output in wide.graph.output}
    made = {name for node in wide.graph.node for name in node.output}
    for name in sorted((names & made) - have):
        wide.graph.output.append(onnx.ValueInfoProto(name=name))
    return wide


def _error(value: Any, wanted: np.ndarray) -> float:
    if not isinstance(value, Tensor):
        return 0.0
    got = to_numpy(value)
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        return float("inf")
    if wanted.dtype.kind not in "fiub" or not wanted.size:
        return 0.0
    a, b = got.astype(np.float64), wanted.astype(np.float64)
    with np.errstate(invalid="ignore"):
        gap = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
    largest = float(np.abs(b[np.isfinite(b)]).max(initial=0.0))
    return float(np.nan_to_num(gap, nan=np.inf).max()) / max(largest, 1e-6)
