"""Sparse convolutions that write where a Concat would copy their maps.

A fire module (SqueezeNet) and its like end in a Concat of what several convolutions give.  One node
that runs them all puts each one's maps behind the last one's, and nothing is copied.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import helper

from dns_onnx.runtime.sites import ACTIVATION, DOMAIN, Tensors, graphs, readers

_BRANCHES = 4  # of a node at most
_OPERANDS = 8  # of each
_RESIDUAL = 7
_AXES = 2
_PLAIN = ("", "ai.onnx")


def join(model: onnx.ModelProto, tensors: Tensors) -> int:
    """Joins the sparse convolutions that one Concat alone reads, in place.

    tensors: of the model.  Returns the number of nodes that are gone.
    """
    reading = readers(model)
    gone = 0
    for graph in graphs(model.graph):
        made = {node.output[0]: node for node in graph.node if node.output}
        for node in list(graph.node):
            branches = _branches(node, made, reading, tensors)
            if not branches:
                continue
            node.CopyFrom(_joined(node, branches))
            for branch in branches:
                graph.node.remove(branch)
            gone += len(branches)
    return gone


def _branches(
    concat: onnx.NodeProto,
    made: Mapping[str, onnx.NodeProto],
    reading: Mapping[str, list[str]],
    tensors: Tensors,
) -> list[onnx.NodeProto]:
    """The convolutions that only this node reads, in its order; none unless all can be joined."""
    if concat.op_type != "Concat" or concat.domain not in _PLAIN:
        return []
    axis = next((a.i for a in concat.attribute if a.name == "axis"), 1)  # a default long ago
    found = [made[name] for name in concat.input if name in made]
    alone = all(reading[name] == [concat.output[0]] for name in concat.input)
    if axis != 1 or not alone or not 1 < len(found) == len(concat.input) <= _BRANCHES:
        return []
    return found if all(_fits(node, found[0], tensors) for node in found) else []


def _fits(node: onnx.NodeProto, first: onnx.NodeProto, tensors: Tensors) -> bool:
    """Whether the node is a convolution over two axes, of constants, that ends as the first."""
    if node.op_type != "CsrConv" or node.domain != DOMAIN:
        return False
    given = _given(node)
    shape = tensors.array(node.input[4])
    held = [name for i, name in enumerate(node.input) if i > 0 and name]
    return (
        shape is not None
        and len(shape) == 2 + _AXES
        and not any(node.input[_RESIDUAL:])
        and all(tensors.get(name) is not None for name in held)
        and given.get("auto_pad", b"NOTSET") == b"NOTSET"
        and all(given.get(name) == _given(first).get(name) for name in ACTIVATION)
    )


def _given(node: onnx.NodeProto) -> dict[str, object]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _joined(concat: onnx.NodeProto, branches: list[onnx.NodeProto]) -> onnx.NodeProto:
    """The node that stands for the branches and for the Concat."""
    made = onnx.NodeProto(op_type="CsrConvConcat", domain=DOMAIN, name=concat.name)
    made.output.extend(concat.output)
    lists: dict[str, list[int]] = {"groups": [], "strides": [], "dilations": [], "pads": []}
    for branch in branches:
        made.input.extend([*branch.input, *[""] * (_OPERANDS - len(branch.input))])
        given = {a.name: a for a in branch.attribute}
        lists["groups"].append(given["group"].i if "group" in given else 1)
        for name, size, absent in (
            ("strides", _AXES, 1),
            ("dilations", _AXES, 1),
            ("pads", 2 * _AXES, 0),
        ):
            lists[name] += given[name].ints if name in given else [absent] * size
    while not made.input[-1]:
        made.input.pop()
    made.attribute.extend(helper.make_attribute(name, values) for name, values in lists.items())
    made.attribute.append(helper.make_attribute("branches", len(branches)))
    made.attribute.extend(a for a in branches[0].attribute if a.name in ACTIVATION)
    return made
