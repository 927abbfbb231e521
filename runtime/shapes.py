"""Shapes of the values of a model with sparse layers."""

from __future__ import annotations

import math

import onnx
from onnx import TensorProto, helper

from dns_onnx.runtime.sites import DECODERS, DOMAIN, OPERATORS, Tensors

Dims = tuple[int | str | None, ...]

_FEW = 64  # entries of a constant that may hold a shape


def value_shapes(model: onnx.ModelProto, tensors: Tensors) -> dict[str, Dims]:
    """The inferred shape of each value of the main graph; an axis is a number, a name or None.

    tensors: of the model.
    """
    values = _inferred(model, tensors)
    return {v.name: _dims(v) for v in values if v.type.tensor_type.HasField("shape")}


def value_types(model: onnx.ModelProto, tensors: Tensors) -> dict[str, int]:
    """The inferred element type of each value of the main graph, as onnx.TensorProto numbers it.

    tensors: of the model.
    """
    values = _inferred(model, tensors)
    return {v.name: v.type.tensor_type.elem_type for v in values}


def _inferred(model: onnx.ModelProto, tensors: Tensors) -> list[onnx.ValueInfoProto]:
    """What shape inference tells of the values; nothing where it fails.

    Works on a copy without the weights' data, in which plain nodes stand for the sparse ones, so
    that it costs little whatever the size of the model.
    """
    skeleton = onnx.ModelProto(ir_version=model.ir_version)
    skeleton.opset_import.extend(model.opset_import)
    graph = skeleton.graph
    graph.name = model.graph.name or "graph"
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    known = {value.name for value in graph.input}
    for tensor in model.graph.initializer:
        small = math.prod(tensor.dims) <= _FEW and tensor.data_location != TensorProto.EXTERNAL
        if small:
            graph.initializer.append(tensor)
        elif tensor.name not in known:
            graph.input.append(
                helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    for node in model.graph.node:
        graph.node.append(node)
        if node.domain == DOMAIN:
            _stand_in(graph, graph.node[-1], tensors)
    try:
        inferred = onnx.shape_inference.infer_shapes(skeleton)
    except Exception:  # a shape is wanted, not needed: what cannot be inferred stays unknown
        return []
    return [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]


def _stand_in(graph: onnx.GraphProto, node: onnx.NodeProto, tensors: Tensors) -> None:
    """Turns a sparse node into the plain one; a decoded weight becomes an input of its shape."""
    decodes = node.op_type in DECODERS
    if not decodes and node.op_type not in OPERATORS:
        return
    at = len(node.input) - 1 if decodes else 4
    shape = tensors.array(node.input[at]) if len(node.input) > at else None
    if shape is None:
        return
    weight = node.output[0] if decodes else f"{node.output[0]}.weight"
    graph.input.append(
        helper.make_tensor_value_info(weight, TensorProto.FLOAT, [int(d) for d in shape])
    )
    if decodes:
        del graph.node[-1]
        return
    plain = {"CsrConv": "Conv", "CsrGemm": "Gemm"}.get(node.op_type, "MatMul")
    left = node.op_type == "CsrLeftMatMul"
    inputs = [weight, node.input[0]] if left else [node.input[0], weight]
    inputs += [name for name in node.input[5:6] if plain != "MatMul"]
    node.op_type, node.domain = plain, ""
    del node.input[:]
    node.input.extend(inputs)


def _dims(value: onnx.ValueInfoProto) -> Dims:
    dims = value.type.tensor_type.shape.dim
    return tuple(d.dim_value if d.HasField("dim_value") else (d.dim_param or None) for d in dims)
