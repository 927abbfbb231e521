"""Standard nodes that the native library computes faster than ONNX Runtime does.

ONNX Runtime's LRN takes a scalar power for each entry: half of dense AlexNet's time, and three
quarters of the pruned net's.  Its MaxPool works on maps in blocks, as its dense convolutions leave
them; what comes from a kernel of ours it turns over first, and back afterwards.  The nodes in the
file stay as they are; a session gets copies.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper

from dns_onnx.runtime.shapes import value_types
from dns_onnx.runtime.sites import DOMAIN, OPERATORS, Tensors

# same name, attributes and operands in our domain
ALWAYS = ("LRN",)
BEHIND_OURS = ("MaxPool",)  # where the input comes from our kernels
_PLAIN = ("", "ai.onnx")
_PASSES = ("Concat", "Relu")  # leaves maps as they lie


def may_substitute(data: bytes) -> bool:
    """Whether a serialized model without sparse layers can hold such a node: spares parsing it."""
    return any(name.encode() in data for name in ALWAYS)


def substitute(model: onnx.ModelProto, folder: Path | None) -> tuple[str, ...]:
    """Puts the main graph's float32 nodes of these kinds on our kernels, in place.

    folder: where the model's external data lie.  Returns the names of the nodes.
    """
    kinds = (*ALWAYS, *BEHIND_OURS)
    if not any(n.op_type in kinds and n.domain in _PLAIN for n in model.graph.node):
        return ()
    types = value_types(model, Tensors(model, folder))
    ours: set[str] = set()  # values that our kernels give
    names = []
    for node in model.graph.node:
        plain = node.domain in _PLAIN
        own = node.domain == DOMAIN and node.op_type in OPERATORS
        if plain and _substituted(node, ours) and types.get(node.input[0]) == TensorProto.FLOAT:
            node.domain, own = DOMAIN, True
            names.append(node.name or node.output[0])
        passes = plain and node.op_type in _PASSES and all(name in ours for name in node.input)
        if own or passes:
            ours.update(node.output)
    if names and all(known.domain != DOMAIN for known in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return tuple(names)


def _substituted(node: onnx.NodeProto, ours: set[str]) -> bool:
    """Whether a kernel of ours takes the standard node."""
    if node.op_type in ALWAYS:
        return True
    return node.op_type in BEHIND_OURS and node.input[0] in ours and _pools_maps(node)


def _pools_maps(pool: onnx.NodeProto) -> bool:
    """Whether a MaxPool is one over two axes that gives no indices and leaves no gaps."""
    given = {a.name: helper.get_attribute_value(a) for a in pool.attribute}
    return (
        len(given.get("kernel_shape", ())) == 2
        and len([name for name in pool.output if name]) == 1
        and given.get("auto_pad", b"NOTSET") == b"NOTSET"
        and all(step == 1 for step in given.get("dilations", ()))
    )
