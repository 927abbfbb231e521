"""Where the float tensors of a model lie, and which nodes read them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from dns_onnx.converters.order import Path, body_step, weight_names

FLOAT_TYPES = frozenset(
    {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
)


@dataclass(frozen=True)
class Use:
    """Input `index` of `node` in `graph`; node None = an output of the graph itself."""

    graph: GraphProto
    node: NodeProto | None
    index: int


@dataclass
class Site:
    """A float tensor of the file: an initializer, or the value of a Constant node.

    graph: the graph that holds it, the main one or a body.  constant: the Constant node, if any.
    uses: every reader, in bodies too, in graph order.
    weight: what importer and exporter call it: its name, numbered where several bodies share it.
    """

    name: str
    graph: GraphProto
    tensor: TensorProto
    constant: NodeProto | None = None
    uses: list[Use] = field(default_factory=list)
    weight: str = ""


def find_sites(model: ModelProto) -> list[Site]:
    """Every float tensor of the model, those in control-flow bodies too, in graph order."""
    sites: list[Site] = []
    _walk(model.graph, {}, sites, (), weight_names(model.graph, FLOAT_TYPES))
    return sites


def bodies(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs that a node carries: the branches of If, the body of Loop and Scan."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH or attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def all_graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph and every body below it, outer before inner."""
    yield graph
    for node in graph.node:
        for body in bodies(node):
            yield from all_graphs(body)


def all_names(model: ModelProto) -> set[str]:
    """Every value name that the model uses anywhere."""
    names: set[str] = set()
    for graph in all_graphs(model.graph):
        names.update(value.name for value in graph.input)
        names.update(value.name for value in graph.output)
        names.update(tensor.name for tensor in graph.initializer)
        names.update(sparse.values.name for sparse in graph.sparse_initializer)
        for node in graph.node:
            names.update(node.input)
            names.update(node.output)
    return names


def constant_tensor(node: NodeProto) -> TensorProto | None:
    """The tensor that a Constant node holds in its attribute `value`; None for any other node."""
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    for attribute in node.attribute:
        if attribute.name == "value":
            tensor: TensorProto = attribute.t
            return tensor
    return None


def initializer_index(graph: GraphProto, name: str) -> int:
    """Position of an initializer in its graph; -1 if the graph has none of that name."""
    return next((i for i, tensor in enumerate(graph.initializer) if tensor.name == name), -1)


def node_index(graph: GraphProto, node: NodeProto) -> int:
    """Position of a node of the graph, found by its first output, which no other node has."""
    wanted = list(node.output)
    return next(i for i, other in enumerate(graph.node) if list(other.output) == wanted)


def _walk(
    graph: GraphProto,
    outer: dict[str, Site | None],
    sites: list[Site],
    path: Path,
    names: dict[tuple[Path, str], str],
) -> None:
    """Collect the sites of one graph; `outer` maps every name in scope, None = no site."""
    scope = dict(outer)
    for value in graph.input:
        scope[value.name] = None
    for tensor in graph.initializer:
        weight = names.get((path, tensor.name), tensor.name)
        _add(Site(tensor.name, graph, tensor, weight=weight), scope, sites)
    for node in graph.node:
        for index, name in enumerate(node.input):
            site = scope.get(name)
            if site is not None:
                site.uses.append(Use(graph, node, index))
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                inner = (*path, body_step(node, attribute.name))
                _walk(attribute.g, scope, sites, inner, names)
        for name in node.output:
            scope[name] = None
        held = constant_tensor(node)
        if held is not None:
            weight = names.get((path, node.output[0]), node.output[0])
            _add(Site(node.output[0], graph, held, node, weight=weight), scope, sites)
    for index, value in enumerate(graph.output):
        site = scope.get(value.name)
        if site is not None:
            site.uses.append(Use(graph, None, index))


def _add(site: Site, scope: dict[str, Site | None], sites: list[Site]) -> None:
    is_float = site.tensor.data_type in FLOAT_TYPES
    scope[site.name] = site if is_float else None
    if is_float:
        sites.append(site)
