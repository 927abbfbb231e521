"""Where training can attach: the last values that a gradient still reaches."""

from __future__ import annotations

from torch import fx, nn

from dns_onnx.converters.dtypes import FLOATING
from dns_onnx.converters.registry import registered
from dns_onnx.masks import Masked


def frontier(graph: fx.GraphModule) -> list[str]:
    """ONNX names of the values that a loss can attach to, in graph order.

    A graph output that depends on a weight by differentiable steps is one of them.  Where such a
    value is only read by operators without a derivative (NonMaxSuppression, ArgMax, a
    quantiser, an opaque step), the value itself is.
    """
    live = _reached(graph)
    names: list[str] = []
    for node in graph.graph.nodes:
        if node not in live or "onnx" not in node.meta or node.op == "call_module":
            continue
        users = list(node.users)
        if any(user.op == "output" for user in users) or not any(u in live for u in users):
            names.append(str(node.meta["onnx"]))
    return list(dict.fromkeys(names))


def cut_off(graph: fx.GraphModule) -> list[str]:
    """ONNX names of trained weights from which no graph output can be reached by a gradient."""
    live = _reached(graph)
    outputs = next(n for n in graph.graph.nodes if n.op == "output").all_input_nodes
    useful: set[fx.Node] = set()
    pending = [node for node in outputs if node in live]
    while pending:
        node = pending.pop()
        if node not in useful:
            useful.add(node)
            pending += [source for source in node.all_input_nodes if source in live]
    return [
        held.name
        for node in graph.graph.nodes
        if (held := _trained(graph, node)) is not None and node not in useful
    ]


def _reached(graph: fx.GraphModule) -> set[fx.Node]:
    """Nodes whose values depend on a trained weight by differentiable steps."""
    blocked = _blocking()
    live: set[fx.Node] = set()
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            if isinstance(_attribute(graph, str(node.target)), nn.Module):
                live.add(node)  # the body of a control-flow node, with weights of its own
        elif _trained(graph, node) is not None:
            live.add(node)
        elif node.op in ("call_function", "call_method"):
            stops = node.meta.get("op") in blocked or node.meta.get("opaque", False)
            stops = stops or (node.meta.get("elem") or 1) not in FLOATING
            if not stops and any(source in live for source in node.all_input_nodes):
                live.add(node)
    return live


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


def _trained(graph: fx.GraphModule, node: fx.Node) -> Masked | None:
    if node.op != "call_module":
        return None
    module = graph.get_submodule(str(node.target))
    trains = isinstance(module, Masked) and module.weight.requires_grad
    return module if trains else None  # type: ignore[return-value]
