"""The order of an ONNX graph's nodes, and the names that they read."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from onnx import AttributeProto, GraphProto, NodeProto

from dns_onnx.errors import ModelError


def topological(graph: GraphProto) -> list[NodeProto]:
    """The nodes in an order in which every operand is computed first.

    The file's own order is kept where it is one.  Raises ModelError for a cycle or a value that
    two nodes give.
    """
    made = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    if sum(1 for node in graph.node for name in node.output if name) != len(made):
        raise ModelError(f"graph '{graph.name}': expected one node a value, got two that give one")
    needs = [{made[name] for name in used_names(node) if name in made} for node in graph.node]
    if all(all(before < index for before in need) for index, need in enumerate(needs)):
        return list(graph.node)
    return [graph.node[index] for index in _sorted(needs, graph.name)]


def _sorted(needs: list[set[int]], where: str) -> list[int]:
    users: list[list[int]] = [[] for _ in needs]
    for index, need in enumerate(needs):
        for before in need:
            users[before].append(index)
    left = [len(need) for need in needs]
    ready = deque(index for index, count in enumerate(left) if count == 0)
    order = []
    while ready:
        index = ready.popleft()
        order.append(index)
        for user in users[index]:
            left[user] -= 1
            if left[user] == 0:
                ready.append(user)
    if len(order) != len(needs):
        raise ModelError(f"graph '{where}': expected a graph without cycles, got one")
    return order


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """The bodies of a control-flow node."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def used_names(node: NodeProto) -> set[str]:
    """Values that a node reads, those that its bodies take from outside too."""
    names = {name for name in node.input if name}
    for body in subgraphs(node):
        names |= outer_names(body)
    return names


def outer_names(body: GraphProto) -> set[str]:
    """Values that a body reads and does not make itself."""
    own = {i.name for i in body.input} | {t.name for t in body.initializer}
    own |= {s.values.name for s in body.sparse_initializer}
    own |= {name for node in body.node for name in node.output}
    read = {output.name for output in body.output}
    for node in body.node:
        read |= used_names(node)
    return read - own


Path = tuple[tuple[tuple[str, ...], str], ...]


def body_step(node: NodeProto, attribute: str) -> tuple[tuple[str, ...], str]:
    """A node's step on the path to its body `attribute`."""
    return tuple(node.output), attribute


def weight_names(graph: GraphProto, held: frozenset[int]) -> dict[tuple[Path, str], str]:
    """The name of each tensor of the types `held`, by where its graph lies and its name there.

    A name that several bodies of control flow share is numbered (`w`, `w#1`) in graph order.
    Importer and exporter both name weights so, and thereby mean the same tensors.
    """
    names: dict[tuple[Path, str], str] = {}
    taken: set[str] = set()
    for place in _held_tensors(graph, (), held):
        free, count = place[1], 1
        while free in taken:
            free, count = f"{place[1]}#{count}", count + 1
        taken.add(free)
        names[place] = free
    return names


def _held_tensors(
    graph: GraphProto, path: Path, held: frozenset[int]
) -> Iterator[tuple[Path, str]]:
    yield from ((path, t.name) for t in graph.initializer if t.data_type in held)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from _held_tensors(
                    attribute.g, (*path, body_step(node, attribute.name)), held
                )
            elif node.op_type == "Constant" and attribute.name == "value":
                if attribute.t.data_type in held:
                    yield path, node.output[0]
