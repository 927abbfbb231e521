"""Compare an imported graph with ONNX Runtime, value by value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto
from torch import Tensor, fx

from dns_onnx.converters.dtypes import to_numpy, to_torch

_RANDOM = frozenset(
    "RandomNormal RandomNormalLike RandomUniform RandomUniformLike Bernoulli Multinomial".split()
)
_COARSE: dict[Any, float] = {torch.float16: 2e-2, torch.bfloat16: 1.6e-1}


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
    """Runs a graph and keeps every value that has an ONNX name.

    A random draw is replaced by ONNX Runtime's, so that all that follows from it compares.
    """

    def __init__(self, module: fx.GraphModule, wanted: Mapping[str, Any]) -> None:
        super().__init__(module)
        self.wanted = wanted
        self.seen: dict[str, tuple[Any, fx.Node]] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        name = n.meta.get("onnx")
        if name is not None and n.op == "call_function":
            if n.meta.get("op") in _RANDOM and isinstance(self.wanted.get(name), np.ndarray):
                result = torch.as_tensor(to_torch(self.wanted[name]), device=result.device)
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
    tolerance: for float32; from the first value of a narrower type on, as much wider as that
    type is coarser.
    The first row names the node to look at: later ones mostly inherit its error.
    Raises RuntimeError where the model does not run on these inputs.
    """
    wanted = _computed_by_onnxruntime(module, model, inputs)
    recorder = _Recorder(module, wanted)
    with torch.no_grad():
        recorder.run(*inputs)
    rows = []
    for name, (value, node) in recorder.seen.items():  # in graph order
        if not isinstance(wanted.get(name), np.ndarray):
            continue
        tolerance = max(tolerance, _COARSE.get(getattr(value, "dtype", None), 0.0))
        error = _error(value, wanted[name])
        if error > tolerance:
            rows.append(Difference(name, _meta(node, "op"), _meta(node, "node"), error))
    return rows


def _computed_by_onnxruntime(
    module: fx.GraphModule, model: ModelProto, inputs: Sequence[Any]
) -> dict[str, Any]:
    """ONNX name -> what ONNX Runtime gives for it, for every value that the graph has too."""
    import onnxruntime

    named = {str(n.meta["onnx"]) for n in module.graph.nodes if "onnx" in n.meta}
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        _with_all_outputs(model, named).SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
    )
    feeds = {i.name: to_numpy(v) for i, v in zip(session.get_inputs(), inputs, strict=True)}
    names = [output.name for output in session.get_outputs()]
    try:
        return dict(zip(names, session.run(names, feeds), strict=True))
    except Exception as error:  # ONNX Runtime's exceptions share no base of their own
        raise RuntimeError(str(error)) from error


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
