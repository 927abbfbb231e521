"""An ONNX model as a torch.fx graph that can be trained."""

from __future__ import annotations

import os

from onnx import ModelProto
from torch import fx

from dns_onnx.converters import ops as _ops  # noqa: F401  (fills the registry)
from dns_onnx.converters.builder import Builder
from dns_onnx.converters.opaque import unsupported
from dns_onnx.converters.reader import infer_shapes, inline_functions, read_model
from dns_onnx.errors import DnsOnnxError, ModelError, UnsupportedOperatorError


def import_model(
    model: str | os.PathLike[str] | ModelProto, where: str | None = None
) -> fx.GraphModule:
    """Build the training graph of an ONNX model.

    model: a path or a ModelProto, which is left as it is.  where: what errors call a ModelProto.
    Returns a module that is called positionally in graph-input order (inputs that are no
    initializers) and returns the output, or a tuple in graph-output order.  Every float
    initializer that takes part in the computation is one `dns_onnx.masks.Masked` submodule;
    `node.meta["onnx"]` is a node's ONNX value name.
    Raises ModelError for a broken model and UnsupportedOperatorError, which names every node
    that has no implementation.
    """
    if where is None:
        where = "ModelProto" if isinstance(model, ModelProto) else str(os.fspath(model))
    try:
        return _import(model, where)
    except DnsOnnxError:
        raise
    except Exception as error:  # a damaged model can break any rule of the format
        raise ModelError(
            f"{where}: expected a valid ONNX model, got {type(error).__name__}: {error}"
        ) from error


def _import(model: str | os.PathLike[str] | ModelProto, where: str) -> fx.GraphModule:
    proto = inline_functions(read_model(model, load_data=False))
    opsets = {"" if o.domain == "ai.onnx" else o.domain: o.version for o in proto.opset_import}
    missing = unsupported(proto.graph, opsets)
    if missing:
        raise UnsupportedOperatorError(where, missing)
    builder = Builder(proto.graph, infer_shapes(proto).graph, opsets)
    return builder.module(output.name for output in proto.graph.output)
