"""Standard nodes that the native library computes faster than ONNX Runtime does.

ONNX Runtime's LRN takes a scalar power for each entry: half of dense AlexNet's time, and three
quarters of the pruned net's.  The nodes in the file stay as they are; a session gets copies.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper

from dns_onnx.runtime.shapes import value_types
from dns_onnx.runtime.sites import DOMAIN, Tensors

SUBSTITUTES = ("LRN",)  # same name, attributes and operands in our domain
_PLAIN = ("", "ai.onnx")


def may_substitute(data: bytes) -> bool:
    """Whether a serialized model can hold such a node: a quick look that spares the parsing."""
    return any(name.encode() in data for name in SUBSTITUTES)


def substitute(model: onnx.ModelProto, folder: Path | None) -> tuple[str, ...]:
    """Puts the main graph's float32 nodes of these kinds on our kernels, in place.

    folder: where the model's external data lie.  Returns the names of the nodes.
    """
    nodes = [n for n in model.graph.node if n.op_type in SUBSTITUTES and n.domain in _PLAIN]
    types = value_types(model, Tensors(model, folder)) if nodes else {}
    nodes = [node for node in nodes if types.get(node.input[0]) == TensorProto.FLOAT]
    for node in nodes:
        node.domain = DOMAIN
    if nodes and all(known.domain != DOMAIN for known in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return tuple(node.name or node.output[0] for node in nodes)
