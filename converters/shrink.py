"""Remove units that provably do not change what a model computes.

A unit whose weights are all zero yields a constant; the constant goes into the bias of the layers
that read it.  A unit that only zero weights read yields nothing.  What is left computes the same
up to the order of floating-point sums, on finite values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, helper, numpy_helper

from dns_onnx.converters.encodings.matrix import Array
from dns_onnx.converters.encodings.parts import make_tensor
from dns_onnx.converters.encodings.sites import Site, all_names
from dns_onnx.converters.unit_paths import (
    Blocked,
    Floats,
    Graph,
    Layer,
    Path,
    Reader,
    attribute,
    follow,
    layer_of,
    padded,
    start,
)

_NO_DEAD_UNIT = "no dead unit"

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class ShrinkRow:
    """What became of one layer's units.

    node, op_type, weight: ONNX names.  before, after: units.  reason: why dead units were kept, or
    that there were none; empty if all of them went.
    """

    node: str
    op_type: str
    weight: str
    before: int
    after: int
    reason: str


def drop_dead(model: ModelProto) -> tuple[ModelProto, list[ShrinkRow]]:
    """A copy of the (dense) model without its dead units, and one row for each layer.

    Repeated until nothing changes: a unit that goes may have been the last reader of another.
    """
    shrunk = ModelProto()
    shrunk.CopyFrom(model)
    before: dict[str, int] = {}
    while True:
        graph = Graph(shrunk)
        results = [_shrink(shrunk, graph, node) for node in _layers(shrunk)]
        for row in results:
            before.setdefault(row.node, row.before)
        if all(row.before == row.after for row in results):
            break
    return shrunk, [_total(row, before[row.node]) for row in results]


def _total(last: ShrinkRow, before: int) -> ShrinkRow:
    """The row of the whole run, from that of the last round, in which nothing went."""
    reason = "" if last.reason == _NO_DEAD_UNIT and before > last.after else last.reason
    return ShrinkRow(last.node, last.op_type, last.weight, before, last.after, reason)


def _layers(model: ModelProto) -> list[NodeProto]:
    stored = {tensor.name for tensor in model.graph.initializer}
    stored |= {n.output[0] for n in model.graph.node if n.op_type == "Constant"}
    return [
        node
        for node in model.graph.node
        if node.op_type in ("Conv", "Gemm", "MatMul")
        and node.domain in ("", "ai.onnx")
        and node.input[1] in stored
    ]


def _shrink(model: ModelProto, graph: Graph, node: NodeProto) -> ShrinkRow:
    """Remove the dead units of one layer, if it has any and they can be followed."""
    units, reason = 0, ""
    try:
        layer = layer_of(graph, node)
        units = layer.units
        path = Path()
        stream = start(graph, layer)
        follow(graph, stream, path)
        keep, reason = _kept(graph, layer, path)
    except Blocked as blocked:
        keep, reason = np.ones(units, np.bool_), _blocked_reason(graph, node, str(blocked))
    after = int(keep.sum())
    if after < units:
        _remove(model, graph, layer, path, keep)
    units = units or _units(graph, node)
    return ShrinkRow(
        node.name or node.output[0], node.op_type, node.input[1], units, after or units, reason
    )


def _units(graph: Graph, node: NodeProto) -> int:
    site = graph.sites.get(node.input[1])
    if site is None or not site.tensor.dims:
        return 0
    first = node.op_type == "Conv" or bool(attribute(node, "transB", 0))
    return int(site.tensor.dims[0 if first else -1])


def _blocked_reason(graph: Graph, node: NodeProto, why: str) -> str:
    """The reason in words that say whether any unit would have gone."""
    site = graph.sites.get(node.input[1])
    if site is None or len(site.tensor.dims) < 2:
        return why
    first = node.op_type == "Conv" or bool(attribute(node, "transB", 0))
    weight = np.moveaxis(_array(site), 0 if first else -1, 0)
    dead = int((weight.reshape(len(weight), -1) == 0).all(axis=1).sum())
    return f"{dead} units are all zero, kept: {why}" if dead else why


def _kept(graph: Graph, layer: Layer, path: Path) -> tuple[Flags, str]:
    """Which units must stay, and why dead ones do."""
    weight = np.moveaxis(_array(layer.weight), layer.out_axis, 0)
    dead = (weight.reshape(layer.units, -1) == 0).all(axis=1)
    unread = np.ones(layer.units, np.bool_)
    foldable = np.ones(layer.units, np.bool_)
    for reader in path.readers:
        silent = (_read_weights(reader) == 0).all(axis=(1, 2))
        unread &= silent
        foldable &= silent | _can_absorb(graph, reader)
    removable = unread | (dead & foldable)
    stuck = int((dead & ~removable).sum())
    if removable.all():
        removable[0] = False  # an axis of length 0 is no layer
    if stuck:
        return ~removable, f"{stuck} constant units stay: a padded or bias-free layer reads them"
    return ~removable, "" if removable.any() else _NO_DEAD_UNIT


def _read_weights(reader: Reader) -> Floats:
    """The reader's weights as [unit, input within the unit's block, output]."""
    weight = np.moveaxis(_array(reader.layer.weight), reader.layer.in_axis, 0)
    units = len(reader.constants)
    return weight.reshape(units, weight.shape[0] // units, -1).astype(np.float64)


def _can_absorb(graph: Graph, reader: Reader) -> Flags:
    """Whether each unit's constant can go into the reader's bias: zero always can."""
    node, constants = reader.layer.node, reader.constants
    nothing: Flags = constants == 0
    if node.op_type == "Conv" and padded(node):
        return nothing  # the constant would be missing along the border
    if node.op_type == "MatMul":
        return nothing if _bias_behind(graph, reader.layer) is None else np.isfinite(constants)
    if node.op_type == "Gemm" and not attribute(node, "beta", 1.0):
        return nothing
    return np.isfinite(constants)


def _bias_behind(graph: Graph, layer: Layer) -> Site | None:
    """The bias that an Add right behind a MatMul holds, if nothing else reads the product."""
    readers = graph.readers.get(layer.node.output[0], [])
    if len(readers) != 1 or readers[0].op_type != "Add" or layer.node.output[0] in graph.escaped:
        return None
    for name in readers[0].input:
        site = graph.own(name)
        if site is not None and list(site.tensor.dims) == [layer.units]:
            return site
    return None


def _remove(model: ModelProto, graph: Graph, layer: Layer, path: Path, keep: Flags) -> None:
    """Take the units out of every tensor that counts them."""
    for reader in path.readers:
        _absorb(model, graph, reader, keep)
        read = reader.layer
        block = int(read.weight.tensor.dims[read.in_axis]) // len(keep)
        _cut(model, read.weight, read.in_axis, np.repeat(keep, block))
    for site, axis in path.per_unit:
        _cut(model, site, axis, keep)
    _cut(model, layer.weight, layer.out_axis, keep)
    if layer.bias is not None:
        _cut(model, layer.bias, len(layer.bias.tensor.dims) - 1, keep)
    for node in path.reshapes:
        _retarget(model, graph, node, keep)
    stale = set(path.values)
    for index in reversed(range(len(model.graph.value_info))):
        if model.graph.value_info[index].name in stale:
            del model.graph.value_info[index]


def _absorb(model: ModelProto, graph: Graph, reader: Reader, keep: Flags) -> None:
    """Add what the removed constant units gave to the reader's bias."""
    layer, node = reader.layer, reader.layer.node
    given = np.where(keep, 0.0, reader.constants)
    weights = _read_weights(reader)
    gone = ~keep & (weights != 0).any(axis=(1, 2))
    if not gone.any():
        return
    per_input = np.einsum("u,ubk->k", given[gone], weights[gone])
    change = per_input.reshape(layer.units, -1).sum(axis=1)
    if node.op_type == "Gemm":
        change *= float(attribute(node, "alpha", 1.0)) / float(attribute(node, "beta", 1.0))
    if not change.any():
        return
    bias = _bias_behind(graph, layer) if node.op_type == "MatMul" else layer.bias
    if bias is not None:
        old = _array(bias)
        _write(bias, (old.astype(np.float64) + change.reshape(old.shape)).astype(old.dtype))
    else:
        _add_bias(model, node, change.astype(_array(layer.weight).dtype))


def _add_bias(model: ModelProto, node: NodeProto, bias: Array) -> None:
    name = _free_name(model, f"{node.input[1]}.bias")
    model.graph.initializer.append(make_tensor(name, bias))
    del node.input[2:]
    node.input.append(name)


def _retarget(model: ModelProto, graph: Graph, node: NodeProto, keep: Flags) -> None:
    """Give a Reshape the flattened size that is left."""
    target = graph.integers[node.input[1]].copy()
    target[1] = target[1] // len(keep) * int(keep.sum())
    name = _free_name(model, f"{node.input[1]}.shrunk")
    model.graph.initializer.append(make_tensor(name, target))
    node.input[1] = name


def _free_name(model: ModelProto, name: str) -> str:
    taken = all_names(model)
    while name in taken:
        name += "'"
    return name


def _array(site: Site) -> Array:
    array: Array = numpy_helper.to_array(site.tensor)
    return array


def _cut(model: ModelProto, site: Site, axis: int, keep: Flags) -> None:
    _write(site, np.compress(keep, _array(site), axis=axis))
    _retype(model, site.name, list(site.tensor.dims))


def _write(site: Site, array: Array) -> None:
    name, note = site.tensor.name, site.tensor.doc_string
    site.tensor.CopyFrom(make_tensor(name, array))
    if note:
        site.tensor.doc_string = note


def _retype(model: ModelProto, name: str, dims: Sequence[int]) -> None:
    """Correct the recorded shape of an initializer that is a graph input too."""
    kinds: list[Any] = [v for v in model.graph.input if v.name == name]
    for value in kinds:
        elem = value.type.tensor_type.elem_type
        value.CopyFrom(helper.make_tensor_value_info(name, elem, dims))
