"""Nodes that torch cannot compute, run as opaque steps in ONNX Runtime or onnx.reference."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import onnx
import torch
from onnx import GraphProto, ModelProto, NodeProto, TypeProto, defs, helper, numpy_helper
from torch import Tensor, nn

from dns_onnx.converters.dtypes import to_numpy, to_torch
from dns_onnx.converters.order import subgraphs, used_names
from dns_onnx.converters.registry import find
from dns_onnx.converters.step import label_of
from dns_onnx.errors import ModelError

# Operators of ai.onnx that are no arithmetic on tensors, and why.
OPAQUE = {
    "ImageDecoder": "reads compressed image files",
    "RegexFullMatch": "strings",
    "StringConcat": "strings",
    "StringNormalizer": "strings",
    "StringSplit": "strings",
    "TfIdfVectorizer": "counts n-grams of strings or tokens",
}

Runner = Callable[[Sequence[Any]], list[Any]]
_LOG = logging.getLogger(__name__)


class OpaqueStep(nn.Module):
    """Some ONNX nodes outside torch: values pass through NumPy, no gradient passes at all.

    model: the nodes as a model of their own.  Its inputs are the operands of `forward`, in order,
    its outputs what `forward` returns.
    The runner is made at the first call, for the operand types met there, and is not pickled.
    """

    def __init__(self, model: ModelProto) -> None:
        super().__init__()
        self.model = model.SerializeToString()
        self._runners: dict[Any, Runner] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_runners": {}}

    def __deepcopy__(self, memo: dict[int, Any]) -> OpaqueStep:
        return OpaqueStep(ModelProto.FromString(self.model))

    def forward(self, *operands: Any) -> tuple[Any, ...]:
        device = next((o.device for o in operands if isinstance(o, Tensor)), torch.device("cpu"))
        results = self.run([_to_runtime(operand) for operand in operands])
        return tuple(_from_runtime(result, device) for result in results)

    def run(self, values: Sequence[Any]) -> list[Any]:
        """The results for NumPy arrays, and lists of them."""
        key = tuple(_kind(value) for value in values)
        if key not in self._runners:
            self._runners[key] = _runner(ModelProto.FromString(self.model), values)
        return self._runners[key](values)

    def extra_repr(self) -> str:
        return piece_label(ModelProto.FromString(self.model).graph.node)


def piece_label(nodes: Sequence[NodeProto]) -> str:
    """What `inspect` calls a step: its operators and their names."""
    return " + ".join(f"{n.domain or 'ai.onnx'}::{n.op_type} '{label_of(n)}'" for n in nodes)


def piece_model(
    nodes: Sequence[NodeProto],
    opsets: Mapping[str, int],
    inputs: Sequence[str],
    outputs: Sequence[str],
    constants: Mapping[str, np.ndarray],
) -> ModelProto:
    """Some nodes as a model of their own, in the oldest operator sets that define them alike."""
    graph = helper.make_graph(
        list(nodes),
        "step",
        [onnx.ValueInfoProto(name=name) for name in inputs],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    versions = {"": 1}
    for node in nodes:
        domain = "" if node.domain == "ai.onnx" else node.domain
        since = _since(node.op_type, opsets.get(domain, 1), domain)
        versions[domain] = max(since, versions.get(domain, 1))
    if list(versions) != [""]:
        versions[""] = max(versions[""], min(opsets.get("", 17), 17))
    imports = [helper.make_opsetid(domain, version) for domain, version in versions.items()]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def is_native(node: NodeProto, opsets: Mapping[str, int]) -> bool:
    """Whether the importer itself computes a node, in torch."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    if (domain, node.op_type) == ("", "Constant"):
        return True
    return find(node.op_type, opsets.get(domain, 1), domain) is not None


def unsupported(graph: GraphProto, opsets: Mapping[str, int]) -> list[str]:
    """One line for each node without an implementation, bodies of control flow included."""
    lines = []
    for node in graph.node:
        domain = "" if node.domain == "ai.onnx" else node.domain
        opset = opsets.get(domain, 1)
        if not is_native(node, opsets) and not _known(node.op_type, domain, opset):
            name = f"{domain or 'ai.onnx'}::{node.op_type}"
            lines.append(f"{name} (opset {opset}) '{label_of(node)}'")
        for body in subgraphs(node):
            lines += unsupported(body, opsets)
    return lines


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
    model = piece_model([node], {domain: opset}, ["x"], ["y"], {})
    model.graph.input[0].type.CopyFrom(_tensor_type(onnx.TensorProto.FLOAT))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # the error's text is the only thing that tells the two apart
        return "is not a registered function/op" not in str(error)
    return True


def _since(op_type: str, opset: int, domain: str) -> int:
    try:
        return int(defs.get_schema(op_type, opset, domain).since_version)
    except defs.SchemaError:
        return opset


def _runner(model: ModelProto, values: Sequence[Any]) -> Runner:
    """What computes a step: ONNX Runtime, else onnx.reference, else each node by one of them."""
    for info, value in zip(model.graph.input, values, strict=True):
        info.type.CopyFrom(_type(value))
    names = [info.name for info in model.graph.input]
    for make in (_runtime_runner, _reference_runner, _nodes_runner):
        if make is _nodes_runner and len(model.graph.node) == 1:
            continue
        try:
            run = make(model)
            run(dict(zip(names, values, strict=True)))
        except Exception as error:  # each has its own kinds; the next one may still do it
            _LOG.debug("%s: %s", piece_label(model.graph.node), error)
            reason = error
            continue
        return lambda operands, run=run: run(dict(zip(names, operands, strict=True)))  # type: ignore[misc]
    raise ModelError(
        f"{piece_label(model.graph.node)}: expected ONNX Runtime or onnx.reference to compute it, "
        f"got {reason}"
    )


def _nodes_runner(model: ModelProto) -> Callable[[dict[str, Any]], list[Any]]:
    """One step a node, for a piece of which neither ONNX Runtime nor onnx.reference has all."""
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    steps = []
    for node in model.graph.node:
        inputs = sorted(used_names(node))
        outputs = [name for name in node.output if name]
        steps.append(
            (inputs, outputs, OpaqueStep(piece_model([node], opsets, inputs, outputs, {})))
        )

    def run(feeds: dict[str, Any]) -> list[Any]:
        values = {**constants, **feeds}
        for inputs, outputs, step in steps:
            results = step.run([values[name] for name in inputs])
            values.update(zip(outputs, results, strict=True))
        return [values[output.name] for output in model.graph.output]

    return run


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
