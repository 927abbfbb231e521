"""What becomes of a layer's units on their way to the layers that read them.

A unit is an output channel of Conv or an output feature of Gemm or MatMul.  A path is followed
only through operators that treat every unit alone; anything else blocks it, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from dns_onnx.converters.encodings.kernels import ShapeOf
from dns_onnx.converters.encodings.shapes import shape_lookup
from dns_onnx.converters.encodings.sites import Site, all_graphs, bodies, find_sites

Floats = npt.NDArray[np.float64]

_UNKNOWN = np.nan


class Blocked(Exception):
    """The units cannot be followed any further; the message says why."""


@dataclass(frozen=True)
class Layer:
    """A layer whose units can be counted: Conv (one group), Gemm or MatMul with a stored weight.

    out_axis, in_axis: of the weight.  bias: None if the node has none.
    """

    node: NodeProto
    weight: Site
    out_axis: int
    in_axis: int
    bias: Site | None

    @property
    def units(self) -> int:
        return int(self.weight.tensor.dims[self.out_axis])


@dataclass(frozen=True)
class Stream:
    """A value on the way, with the constant that each unit has if its weights are all zero.

    layout: "channels" (axis 1, spatial axes behind), "features" (axis 1 of two; one unit may fill
    a block of them) or "last" (the last axis of any number).
    """

    name: str
    layout: str
    constants: Floats


@dataclass(frozen=True)
class Reader:
    """A layer at the end of a path; constants as in Stream, on arrival."""

    layer: Layer
    constants: Floats


@dataclass
class Path:
    """Everything that must change with the number of units.

    per_unit: tensors with one entry a unit, and its axis.  reshapes: nodes whose target shape
    counts the units.  values: names whose recorded shapes are stale.
    """

    readers: list[Reader] = field(default_factory=list)
    per_unit: list[tuple[Site, int]] = field(default_factory=list)
    reshapes: list[NodeProto] = field(default_factory=list)
    values: list[str] = field(default_factory=list)


class Graph:
    """The main graph's layers, and who reads each of its values."""

    def __init__(self, model: ModelProto) -> None:
        self.graph = model.graph
        self.sites = {s.name: s for s in find_sites(model) if s.graph is model.graph}
        self.shape_of: ShapeOf = shape_lookup(model)
        self.readers: dict[str, list[NodeProto]] = {}
        self.escaped = {value.name for value in model.graph.output}
        self.integers = {
            tensor.name: numpy_helper.to_array(tensor)
            for tensor in model.graph.initializer
            if tensor.data_type == TensorProto.INT64 and len(tensor.dims) == 1
        }
        for node in model.graph.node:
            for name in set(node.input):
                self.readers.setdefault(name, []).append(node)
            for body in bodies(node):
                for inner in all_graphs(body):
                    self.escaped.update(name for n in inner.node for name in n.input)
                    self.escaped.update(value.name for value in inner.output)
            if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
                tensor = node.attribute[0].t
                if tensor.data_type == TensorProto.INT64 and len(tensor.dims) == 1:
                    self.integers[node.output[0]] = numpy_helper.to_array(tensor)

    def own(self, name: str) -> Site | None:
        """The stored tensor of that name, if one node alone reads it."""
        site = self.sites.get(name)
        return site if site is not None and len(site.uses) == 1 else None


def layer_of(graph: Graph, node: NodeProto) -> Layer:
    """The node as a layer; raises Blocked if it is none whose units can be removed."""
    axes = _weight_axes(node)
    site = graph.sites.get(node.input[1]) if len(node.input) > 1 else None
    if site is None:
        raise Blocked("its weight is not stored in the main graph")
    if len(site.uses) != 1:
        raise Blocked("its weight is shared")
    rank = len(site.tensor.dims)
    if (rank < 3) if node.op_type == "Conv" else (rank != 2):
        raise Blocked(f"its weight has {rank} axes")
    bias = None
    if len(node.input) > 2 and node.input[2]:
        bias = graph.own(node.input[2])
        units = site.tensor.dims[axes[0]]
        if bias is None or list(bias.tensor.dims) not in ([units], [1, units]):
            raise Blocked("its bias is shared, computed, or not one entry a unit")
    return Layer(node, site, *axes, bias)


def start(graph: Graph, layer: Layer) -> Stream:
    """The layer's output, with what each unit yields if all its weights are zero."""
    constants = np.zeros(layer.units)
    if layer.bias is not None:
        constants = numpy_helper.to_array(layer.bias.tensor).astype(np.float64).reshape(-1)
        constants = constants * float(attribute(layer.node, "beta", 1.0))
    layout = {"Conv": "channels", "Gemm": "features", "MatMul": "last"}[layer.node.op_type]
    return Stream(layer.node.output[0], layout, constants)


def follow(graph: Graph, stream: Stream, path: Path) -> None:
    """Follow the units to every layer that reads them; raises Blocked where they mix."""
    if stream.name in graph.escaped:
        raise Blocked(f"'{stream.name}' leaves the graph or enters a body")
    path.values.append(stream.name)
    for node in graph.readers.get(stream.name, []):
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            path.readers.append(_reader(graph, node, stream))
        else:
            follow(graph, _through(graph, node, stream, path), path)


def attribute(node: NodeProto, name: str, default: Any) -> Any:
    """An attribute's value, or the default that ONNX gives it."""
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def padded(node: NodeProto) -> bool:
    """Whether the node reads values from outside its input."""
    auto = attribute(node, "auto_pad", b"NOTSET")
    return auto in (b"SAME_UPPER", b"SAME_LOWER") or any(attribute(node, "pads", [0]))


def _weight_axes(node: NodeProto) -> tuple[int, int]:
    """Axes of the weight that count outputs and inputs."""
    if node.op_type == "Conv":
        if attribute(node, "group", 1) != 1:
            raise Blocked("it is a grouped convolution")
        return 0, 1
    if node.op_type == "Gemm":
        if attribute(node, "transA", 0):
            raise Blocked("it transposes its input")
        return (0, 1) if attribute(node, "transB", 0) else (1, 0)
    return 1, 0


def _reader(graph: Graph, node: NodeProto, stream: Stream) -> Reader:
    """The layer that reads the units as its inputs."""
    where = f"{node.op_type} '{node.name or node.output[0]}' reads them"
    if list(node.input).count(stream.name) != 1 or node.input[0] != stream.name:
        raise Blocked(f"{where} as something else than its data")
    try:
        layer = layer_of(graph, node)
    except Blocked as reason:
        raise Blocked(f"{where}, and {reason}") from None
    wanted = {"Conv": ("channels",), "Gemm": ("features",), "MatMul": ("features", "last")}
    if stream.layout not in wanted[node.op_type]:
        raise Blocked(f"{where} along another axis")
    units, inputs = len(stream.constants), layer.weight.tensor.dims[layer.in_axis]
    if inputs % units or (stream.layout != "features" and inputs != units):
        raise Blocked(f"{where} as {inputs} inputs for {units} units")
    return Reader(layer, stream.constants)


def _through(graph: Graph, node: NodeProto, stream: Stream, path: Path) -> Stream:
    """The stream behind one operator that keeps the units apart."""
    constants, layout = stream.constants, stream.layout
    if list(node.input).count(stream.name) != 1 or sum(bool(name) for name in node.output) != 1:
        raise Blocked(f"{node.op_type} '{node.name or node.output[0]}' uses them more than once")
    if node.op_type == "Clip" and node.input[0] == stream.name:
        constants = _clipped(graph, node, constants)
    elif node.op_type in _UNARY and node.input[0] == stream.name:
        constants = _UNARY[node.op_type](node, constants)
    elif node.op_type in _POOLS and layout == "channels":
        constants = _pooled(node, constants)
    elif node.op_type in _ARITHMETIC:
        constants = _with_tensor(graph, node, stream, path)
    elif node.op_type == "BatchNormalization" and layout == "channels":
        constants = _normalized(graph, node, constants, path)
    elif node.op_type in ("Flatten", "Reshape") and layout == "channels":
        _expect_flattening(graph, node, stream, path)
        layout = "features"
    else:
        raise Blocked(f"{node.op_type} '{node.name or node.output[0]}' may mix them")
    return Stream(node.output[0], layout, constants)


_UNARY: dict[str, Callable[[NodeProto, Floats], Floats]] = {
    "Dropout": lambda node, x: x if len(node.input) < 3 else x * _UNKNOWN,
    "Elu": lambda node, x: np.where(x < 0, attribute(node, "alpha", 1.0) * np.expm1(x), x),
    "Identity": lambda node, x: x,
    "LeakyRelu": lambda node, x: np.where(x < 0, attribute(node, "alpha", 0.01) * x, x),
    "Relu": lambda node, x: np.maximum(x, 0.0),
    "Sigmoid": lambda node, x: 1 / (1 + np.exp(-x)),
    "Softplus": lambda node, x: np.logaddexp(x, 0.0),
    "Tanh": lambda node, x: np.tanh(x),
}
_POOLS = ("MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool")
_ARITHMETIC: dict[str, Callable[[Floats, Floats], Floats]] = {
    "Add": np.add,
    "Div": np.divide,
    "Mul": np.multiply,
    "Sub": np.subtract,
}


def _clipped(graph: Graph, node: NodeProto, constants: Floats) -> Floats:
    """Clip with bounds as attributes (before 11) or as stored inputs; unknown if computed."""
    bounds = [attribute(node, "min", -np.inf), attribute(node, "max", np.inf)]
    for index, name in enumerate(node.input[1:3]):
        if name:
            site = graph.sites.get(name)
            bounds[index] = float(numpy_helper.to_array(site.tensor).item()) if site else _UNKNOWN
    clipped: Floats = np.clip(constants, *bounds)
    return clipped


def _pooled(node: NodeProto, constants: Floats) -> Floats:
    """A constant channel stays constant, unless padding zeros are averaged in."""
    if attribute(node, "ceil_mode", 0):
        return np.full_like(constants, _UNKNOWN)
    if node.op_type == "AveragePool" and padded(node) and attribute(node, "count_include_pad", 0):
        return np.where(constants == 0, 0.0, _UNKNOWN)
    return constants


def _with_tensor(graph: Graph, node: NodeProto, stream: Stream, path: Path) -> Floats:
    """Arithmetic with a stored tensor that has one entry, or one entry a unit."""
    first = node.input[0] == stream.name
    site = graph.own(node.input[1] if first else node.input[0])
    where = f"{node.op_type} '{node.name or node.output[0]}'"
    if site is None or not (first or node.op_type in ("Add", "Mul")):
        raise Blocked(f"{where} joins them with something that is not stored for it alone")
    shape, units = list(site.tensor.dims), len(stream.constants)
    value = numpy_helper.to_array(site.tensor).astype(np.float64).reshape(-1)
    if value.size != 1:
        axis = _unit_axis(graph, shape, units, stream)
        if axis is None:
            raise Blocked(f"{where} has a tensor of shape {shape}, not one entry a unit")
        path.per_unit.append((site, axis))
    elif len(shape) > 1 + (stream.layout != "last"):
        raise Blocked(f"{where} has a tensor of {len(shape)} axes, which may add some")
    with np.errstate(all="ignore"):
        return _ARITHMETIC[node.op_type](stream.constants, value)


def _unit_axis(graph: Graph, shape: list[int], units: int, stream: Stream) -> int | None:
    """The axis of a broadcast tensor that counts the units; None if there is no such axis."""
    if sum(dim != 1 for dim in shape) != 1 or units not in shape:
        return None
    axis = shape.index(units)
    if stream.layout == "features":
        flat = graph.shape_of(stream.name)
        whole = flat is not None and len(flat) == 2 and flat[1] == units
        return axis if whole and len(shape) <= 2 and axis == len(shape) - 1 else None
    if stream.layout == "last":
        return axis if len(shape) == 1 else None
    rank = graph.shape_of(stream.name)
    return axis if rank is not None and len(shape) - axis == len(rank) - 1 else None


def _normalized(graph: Graph, node: NodeProto, constants: Floats, path: Path) -> Floats:
    """BatchNormalization as it runs in inference: an affine map for each channel."""
    sites = [graph.own(name) for name in node.input[1:5]]
    if len(sites) != 4 or attribute(node, "training_mode", 0) or not all(sites):
        raise Blocked(f"BatchNormalization '{node.name or node.output[0]}' is not a fixed map")
    found = [site for site in sites if site is not None]
    path.per_unit.extend((site, 0) for site in found)
    scale, bias, mean, variance = (
        numpy_helper.to_array(site.tensor).astype(np.float64) for site in found
    )
    epsilon = attribute(node, "epsilon", 1e-5)
    mapped: Floats = scale * (constants - mean) / np.sqrt(variance + epsilon) + bias
    return mapped


def _expect_flattening(graph: Graph, node: NodeProto, stream: Stream, path: Path) -> None:
    """Accept the node only if it turns [N, C, ...] into [N, C * ...] for certain."""
    where = f"{node.op_type} '{node.name or node.output[0]}'"
    if node.op_type == "Flatten":
        if attribute(node, "axis", 1) != 1:
            raise Blocked(f"{where} flattens another axis")
        return
    target = graph.integers.get(node.input[1])
    shape = graph.shape_of(stream.name)
    if target is None or len(target) != 2 or node.input[0] != stream.name or shape is None:
        raise Blocked(f"{where} has a target shape that is computed or has not two axes")
    batch, inner = shape[0], shape[1:]
    known = [dim for dim in inner if isinstance(dim, int)]
    size = int(np.prod(known)) if len(known) == len(inner) else None
    keeps_batch = target[0] == 0 or (isinstance(batch, int) and target[0] == batch)
    if not (keeps_batch and target[1] == -1) and (size is None or target[1] != size):
        raise Blocked(f"{where} may move entries between examples")
    if target[1] != -1:
        path.reshapes.append(node)
