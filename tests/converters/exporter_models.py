"""Small ONNX models for the exporter's tests, and how they are run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

DECODING = {
    "BitmaskToDense", "CsrConv", "CsrGemm", "CsrMatMul", "CsrToDense", "CumSum",
    "ScatterElements", "ScatterND", "Unique",
}  # fmt: skip


def sparse(rng: np.random.Generator, shape: Sequence[int], density: float = 0.1) -> Any:
    """A float32 array in which about that fraction of entries is not zero."""
    values = rng.standard_normal(tuple(shape)).astype(np.float32)
    return np.where(rng.random(tuple(shape)) < density, values, np.float32(0))


def build(
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, Sequence[int | str]],
    weights: Mapping[str, Any],
    *,
    opset: int = 13,
    ir_version: int = 8,
    element: int = TensorProto.FLOAT,
    output: str = "Y",
) -> ModelProto:
    """A checked model with one output; with IR 3 its weights are graph inputs too."""
    infos = [helper.make_tensor_value_info(n, element, s) for n, s in inputs.items()]
    tensors = [numpy_helper.from_array(np.asarray(a), name) for name, a in weights.items()]
    if ir_version < 4:
        infos += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in tensors]
    result = helper.make_tensor_value_info(output, element, None)
    graph = helper.make_graph(list(nodes), "test", infos, [result], tensors)
    model: ModelProto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version
    )
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    model.graph.output[0].CopyFrom(inferred.graph.output[0])
    onnx.checker.check_model(model)
    return model


def run(model: ModelProto, optimized: Any = None, **feeds: Any) -> list[Any]:
    """The outputs in stock ONNX Runtime; `optimized`: where it writes the graph it runs."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    outputs: list[Any] = session.run(None, feeds)
    return outputs


def operators(model: ModelProto) -> set[str]:
    """Every operator type in the model, bodies of control flow included."""
    from dns_onnx.converters.encodings.sites import all_graphs

    return {node.op_type for graph in all_graphs(model.graph) for node in graph.node}


def tensors(model: ModelProto) -> dict[str, Any]:
    """The float tensors of the model by name."""
    from dns_onnx.converters.encodings.sites import find_sites

    return {site.name: numpy_helper.to_array(site.tensor) for site in find_sites(model)}
