"""Nodes that torch cannot compute, run as opaque steps in ONNX Runtime or onnx.reference."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto, NodeProto, TypeProto, defs, helper
from torch import Tensor, nn

from dns_onnx.converters.dtypes import to_numpy, to_torch
from dns_onnx.errors import ModelError

# Operators of ai.onnx that are no arithmetic on tensors, and why.
OPAQUE = {
    "ImageDecoder": "reads compressed image files (needs Pillow)",
    "RegexFullMatch": "strings",
    "StringConcat": "strings",
    "StringNormalizer": "strings",
    "StringSplit": "strings",
    "TfIdfVectorizer": "counts n-grams of strings or tokens",
}

Runner = Callable[[Sequence[Any]], list[Any]]
_LOG = logging.getLogger(__name__)


class OpaqueStep(nn.Module):
    """One ONNX node outside torch: its values pass through NumPy, no gradient passes at all.

    The runner is made at the first call, for the operand types met there, and is not pickled.
    """

    def __init__(self, node: NodeProto, opset: int) -> None:
        super().__init__()
        self.node = node.SerializeToString()
        self.opset = opset
        self._runners: dict[Any, Runner] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_runners": {}}

    def __deepcopy__(self, memo: dict[int, Any]) -> OpaqueStep:
        return OpaqueStep(NodeProto.FromString(self.node), self.opset)

    def forward(self, *operands: Any) -> tuple[Any, ...]:
        device = next((o.device for o in operands if isinstance(o, Tensor)), torch.device("cpu"))
        values = [_to_runtime(operand) for operand in operands]
        key = tuple(_kind(value) for value in values)
        if key not in self._runners:
            self._runners[key] = _runner(NodeProto.FromString(self.node), self.opset, values)
        return tuple(_from_runtime(result, device) for result in self._runners[key](values))

    def extra_repr(self) -> str:
        node = NodeProto.FromString(self.node)
        return f"{node.domain or 'ai.onnx'}::{node.op_type} '{node.name}'"


def can_run(node: NodeProto, opset: int) -> bool:
    """Whether ONNX Runtime or onnx.reference knows the operator."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    return _known(node.op_type, domain, opset)


@lru_cache(maxsize=1024)
def _known(op_type: str, domain: str, opset: int) -> bool:
    try:
        defs.get_schema(op_type, opset, domain)
    except defs.SchemaError:
        return _in_runtime(op_type, domain, opset)
    return True


def _in_runtime(op_type: str, domain: str, opset: int) -> bool:
    """Whether ONNX Runtime has a schema for an operator that ONNX itself does not."""
    import onnxruntime

    node = helper.make_node(op_type, ["x"], ["y"], domain=domain)
    value = helper.make_tensor_value_info("x", 1, None)
    model = _model(node, opset, [value])
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # the error's text is the only thing that tells the two apart
        return "is not a registered function/op" not in str(error)
    return True


def _runner(node: NodeProto, opset: int, values: Sequence[Any]) -> Runner:
    inputs = [
        helper.make_value_info(name, _type(value))
        for name, value in zip(node.input, values, strict=False)
        if name and value is not None
    ]
    model = _model(node, opset, inputs)
    names = [info.name for info in inputs]
    present = [i for i, name in enumerate(node.input) if name and values[i] is not None]

    def feeds(operands: Sequence[Any]) -> dict[str, Any]:
        return dict(zip(names, (operands[i] for i in present), strict=True))

    for make in (_runtime_runner, _reference_runner):
        try:
            run = make(model)
            run(feeds(values))
        except Exception as error:  # each has its own kinds; the next one may still do it
            _LOG.debug("%s: %s", node.op_type, error)
            reason = error
            continue
        return lambda operands, run=run: run(feeds(operands))  # type: ignore[misc]
    raise ModelError(
        f"{node.op_type} '{node.name}': expected ONNX Runtime or onnx.reference to compute it, "
        f"got {reason}"
    )


def _runtime_runner(model: ModelProto) -> Callable[[dict[str, Any]], list[Any]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda feeds: list(session.run(None, feeds))


def _reference_runner(model: ModelProto) -> Callable[[dict[str, Any]], list[Any]]:
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(model)
    return lambda feeds: list(evaluator.run(None, feeds))


def _model(node: NodeProto, opset: int, inputs: Sequence[onnx.ValueInfoProto]) -> ModelProto:
    """A model of one node, in the operator set that defined it."""
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
    graph = helper.make_graph([node], "step", list(inputs), outputs)
    domain = "" if node.domain == "ai.onnx" else node.domain
    try:
        version = defs.get_schema(node.op_type, opset, domain).since_version
    except defs.SchemaError:
        version = opset
    imports = [helper.make_opsetid(domain, version)]
    if domain:
        imports.append(helper.make_opsetid("", 17))
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def _type(value: Any) -> TypeProto:
    if isinstance(value, list):
        return helper.make_sequence_type_proto(_type(value[0]) if value else _tensor_type(1))
    if value.dtype.kind in "OUS":
        return _tensor_type(onnx.TensorProto.STRING)
    return _tensor_type(helper.np_dtype_to_tensor_dtype(value.dtype))


def _tensor_type(elem: int) -> TypeProto:
    return helper.make_tensor_type_proto(elem, None)


def _kind(value: Any) -> Any:
    if value is None:
        return None
    return [_kind(v) for v in value[:1]].__repr__() if isinstance(value, list) else value.dtype.str


def _to_runtime(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_to_runtime(v) for v in value]
    return None if value is None else to_numpy(value)


def _from_runtime(value: Any, device: torch.device) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        made = to_torch(np.asarray(value))
        return made.to(device, non_blocking=True) if isinstance(made, Tensor) else made
    if isinstance(value, list):
        return [_from_runtime(v, device) for v in value]
    return value
