"""Where training can attach: the last values that a gradient still reaches."""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx, nn

from dns_onnx.converters.dtypes import FLOATING
from dns_onnx.converters.graph import host_tensor, host_value
from dns_onnx.converters.layers import layers
from dns_onnx.converters.registry import registered
from dns_onnx.masks import Masked

# Operators that choose entries by their values: what comes after them is another row, or another
# number of rows, as soon as a weight changes.
_SELECTING = frozenset("ArgMax ArgMin Compress NonMaxSuppression NonZero TopK Unique".split())
_SHAPES = frozenset({"Shape", "Size", "SequenceLength"})


def frontier(graph: fx.GraphModule) -> list[str]:
    """ONNX names of the values that a gradient reaches and nothing differentiable reads further.

    A graph output that depends on a weight by differentiable steps is one of them.  Where such a
    value is only read by operators without a derivative (NonMaxSuppression, ArgMax, a
    quantiser, an opaque step), the value itself is.
    """
    return _names(_frontier(graph, _reached(graph)))


def attachment_points(graph: fx.GraphModule) -> list[str]:
    """ONNX names of the values that a loss or a distillation attaches to by default.

    They are the differentiable float outputs.  An output that a gradient does not reach, or whose
    entries a NonMaxSuppression, TopK or the like has chosen, gives way to the last differentiable
    values before that; one that the other points determine is left out.  Where a prunable weight
    reaches none of these, the frontier values that it does reach are added.
    """
    live = _reached(graph)
    smooth = live - _chosen(graph)
    fed = _depending(graph, (n for n in graph.graph.nodes if n.op == "placeholder"))
    outputs = [node for node in _outputs(graph) if node in smooth & fed]
    cut = [node for node in _outputs(graph) if node not in smooth]
    points = list(dict.fromkeys([*outputs, *_before(cut, smooth & fed)]))
    helpers = {p for p in points if p not in outputs and _determined(graph, p, points, live)}
    points = [p for p in points if p not in helpers]
    prunable = {layer.weight for layer in layers(graph) if layer.prunable}
    for node in reversed(_frontier(graph, live & fed & _useful(graph))):
        missed = prunable - _weights_before(graph, points, live)
        if missed & _weights_before(graph, [node], live):
            points.append(node)
    order = {node: index for index, node in enumerate(graph.graph.nodes)}
    inner = sorted((p for p in points if p not in outputs), key=order.__getitem__)
    return _names([*outputs, *inner])


def cut_off(graph: fx.GraphModule, points: Iterable[str] | None = None) -> list[str]:
    """ONNX names of the trained weights that no gradient from the points reaches.

    points: ONNX value names; default: the graph's outputs.
    """
    live = _reached(graph)
    wanted = None if points is None else set(points)
    ends = [
        node
        for node in (_outputs(graph) if wanted is None else graph.graph.nodes)
        if wanted is None or node.meta.get("onnx") in wanted
    ]
    useful = _weights_before(graph, ends, live)
    held = (_trained(graph, node) for node in graph.graph.nodes)
    return [h.name for h in held if h is not None and h.name not in useful]


def opaque_cuts(graph: fx.GraphModule) -> dict[str, list[str]]:
    """Opaque step -> the trained weights that it keeps from every output.

    The keys are the rows of `graph.meta["opaque"]`.
    """
    live, lost = _reached(graph), set(cut_off(graph))
    rows: dict[str, list[str]] = {row: [] for row in graph.meta.get("opaque", [])}
    for node in graph.graph.nodes:
        if node.meta.get("opaque"):
            before = _weights_before(graph, _before([node], live), live)
            rows[str(node.meta["opaque"])] = sorted(before & lost)
    return rows


def _outputs(graph: fx.GraphModule) -> list[fx.Node]:
    nodes: list[fx.Node] = next(n for n in graph.graph.nodes if n.op == "output").all_input_nodes
    return nodes


def _names(nodes: Iterable[fx.Node]) -> list[str]:
    return list(dict.fromkeys(str(node.meta["onnx"]) for node in nodes))


def _frontier(graph: fx.GraphModule, live: set[fx.Node]) -> list[fx.Node]:
    ends = []
    for node in graph.graph.nodes:
        if node not in live or "onnx" not in node.meta or node.op == "call_module":
            continue
        if any(user.op == "output" for user in node.users) or not any(
            u in live for u in node.users
        ):
            ends.append(node)
    return ends


def _before(ends: Iterable[fx.Node], live: set[fx.Node]) -> list[fx.Node]:
    """The last named values of `live` on every way to the ends; reading a shape is no way."""
    found: list[fx.Node] = []
    seen: set[fx.Node] = set()
    pending = list(ends)
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        if node in live and "onnx" in node.meta:
            found.append(node)
        elif not _reads_shape(node):
            pending += node.all_input_nodes
    return found


def _determined(
    graph: fx.GraphModule, point: fx.Node, points: list[fx.Node], live: set[fx.Node]
) -> bool:
    """Whether the other points and constants give this one: no weight of its own lies between."""
    others = set(points) - {point}
    return not _weights_before(graph, [point], live - others)


def _weights_before(graph: fx.GraphModule, ends: Iterable[fx.Node], live: set[fx.Node]) -> set[str]:
    """Names of the trained weights that a gradient from the ends reaches."""
    names: set[str] = set()
    seen: set[fx.Node] = set()
    pending = list(ends)
    while pending:
        node = pending.pop()
        if node not in live or node in seen:
            continue
        seen.add(node)
        pending += node.all_input_nodes
        if node.op == "get_attr":
            names |= {held.name for held in _trained_in(_attribute(graph, str(node.target)))}
        elif (held := _trained(graph, node)) is not None:
            names.add(held.name)
    return names


def _reached(graph: fx.GraphModule) -> set[fx.Node]:
    """Nodes whose values depend on a trained weight by differentiable steps."""
    blocked = _blocking()
    live: set[fx.Node] = set()
    for node in graph.graph.nodes:
        if _holds_weights(graph, node):
            live.add(node)
        elif node.op in ("call_function", "call_method"):
            stops = node.meta.get("op") in blocked or bool(node.meta.get("opaque"))
            stops = stops or (node.meta.get("elem") or 1) not in FLOATING or _reads_shape(node)
            if not stops and any(source in live for source in node.all_input_nodes):
                live.add(node)
    return live


def _chosen(graph: fx.GraphModule) -> set[fx.Node]:
    """Nodes after an operator that chooses entries by values that depend on a trained weight."""
    weighty = _depending(graph, (n for n in graph.graph.nodes if _holds_weights(graph, n)))
    chosen: set[fx.Node] = set()
    for node in graph.graph.nodes:
        if node.op == "output":
            continue
        selects = _selects(graph, node) and any(s in weighty for s in _deciding(node))
        if selects or any(source in chosen for source in node.all_input_nodes):
            chosen.add(node)
    return chosen


def _deciding(node: fx.Node) -> list[fx.Node]:
    """The operands that decide what an operator chooses: of Compress only its condition."""
    sources = node.all_input_nodes
    return sources[1:2] if node.meta.get("op") == "Compress" and len(sources) > 1 else sources


def _selects(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether an operator, or one in the bodies that it runs, chooses entries by their values."""
    if node.meta.get("op") in _SELECTING:
        return True
    bodies = [_attribute(graph, str(s.target)) for s in node.all_input_nodes if s.op == "get_attr"]
    return any(
        isinstance(body, fx.GraphModule)
        and any(_selects(body, inner) for inner in body.graph.nodes)
        for body in bodies
    )


def _depending(graph: fx.GraphModule, sources: Iterable[fx.Node]) -> set[fx.Node]:
    """The sources and all that is computed from their values, differentiable or not."""
    found = set(sources)
    for node in graph.graph.nodes:
        if not _reads_shape(node) and any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def _useful(graph: fx.GraphModule) -> set[fx.Node]:
    """Nodes from whose values an output is computed, differentiable or not."""
    found = set(_outputs(graph))
    for node in reversed(graph.graph.nodes):
        if node in found and not _reads_shape(node):
            found.update(node.all_input_nodes)
    return found


def _reads_shape(node: fx.Node) -> bool:
    """Whether a node takes sizes, or plain numbers of the host, rather than values."""
    if node.op == "call_method" and node.target == "size":
        return True
    return node.target in (host_tensor, host_value) or node.meta.get("op") in _SHAPES


def _blocking() -> frozenset[str]:
    """Operators that no gradient passes."""
    kinds: dict[str, bool] = {}
    for (_, name, _), entry in registered().items():
        kinds[name] = kinds.get(name, False) or entry.differentiable
    return frozenset(name for name, passes in kinds.items() if not passes)


def _attribute(graph: fx.GraphModule, target: str) -> object:
    found: object = graph
    for part in target.split("."):
        found = getattr(found, part)
    return found


def _holds_weights(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node yields a trained weight, or a body of control flow that has some."""
    if node.op == "get_attr":
        return bool(_trained_in(_attribute(graph, str(node.target))))
    return _trained(graph, node) is not None


def _trained(graph: fx.GraphModule, node: fx.Node) -> Masked | None:
    if node.op != "call_module":
        return None
    held = _trained_in(graph.get_submodule(str(node.target)))
    return held[0] if held else None


def _trained_in(module: object) -> list[Masked]:
    if not isinstance(module, nn.Module):
        return []
    return [m for m in module.modules() if isinstance(m, Masked) and m.weight.requires_grad]
