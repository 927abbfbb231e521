"""Which nodes run together as one opaque step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush

from onnx import NodeProto

from dns_onnx.converters.order import used_names

Piece = list[NodeProto]


def pieces(
    nodes: Sequence[NodeProto],
    is_opaque: Callable[[NodeProto], bool],
    may_join: Callable[[NodeProto], bool],
) -> list[Piece]:
    """The nodes, grouped, in an order in which every group's operands are computed first.

    nodes: in topological order.  is_opaque: torch cannot compute it.  may_join: it can go along,
    if an opaque node feeds it or reads it.  A group of several is connected, holds an opaque node
    and is as large as it can be without a way out of it and back into it.
    """
    opaque = [is_opaque(node) for node in nodes]
    if not any(opaque):
        return [[node] for node in nodes]
    joins = [known or may_join(node) for known, node in zip(opaque, nodes, strict=True)]
    groups = _Groups(nodes)
    for index, sources in enumerate(groups.sources):
        for source in sorted(sources):
            if joins[index] and joins[source]:
                groups.merge(source, index)
    for members in list(groups.members.values()):
        if not any(opaque[index] for index in members):
            groups.part(members)
    return [[nodes[i] for i in members] for members in groups.ordered()]


class _Groups:
    """Groups of nodes, each at first its own, and the ways between them."""

    def __init__(self, nodes: Sequence[NodeProto]) -> None:
        made = {name: index for index, node in enumerate(nodes) for name in node.output if name}
        self.sources = [{made[n] for n in used_names(node) if n in made} for node in nodes]
        self.users: list[set[int]] = [set() for _ in nodes]
        for index, sources in enumerate(self.sources):
            for source in sources:
                self.users[source].add(index)
        self.of = list(range(len(nodes)))
        self.members = {index: [index] for index in self.of}

    def merge(self, first: int, second: int) -> None:
        """Put two groups together, unless a way from one to the other leads through a third."""
        a, b = self.of[first], self.of[second]
        if a == b or self._leads_around(a, b):
            return
        for index in self.members.pop(b):
            self.of[index] = a
            self.members[a].append(index)

    def part(self, members: Sequence[int]) -> None:
        """Make each member a group of its own again."""
        del self.members[self.of[members[0]]]
        for index in members:
            self.of[index] = index
            self.members[index] = [index]

    def ordered(self) -> list[list[int]]:
        """The groups in a topological order that keeps to that of their first nodes."""
        waits = {group: self._neighbours(group, self.sources) for group in self.members}
        ready = [(min(self.members[g]), g) for g, before in waits.items() if not before]
        heapify(ready)
        order = []
        while ready:
            _, group = heappop(ready)
            order.append(sorted(self.members[group]))
            for user in self._neighbours(group, self.users):
                waits[user].discard(group)
                if not waits[user]:
                    heappush(ready, (min(self.members[user]), user))
        return order

    def _neighbours(self, group: int, edges: Sequence[set[int]]) -> set[int]:
        return {self.of[other] for index in self.members[group] for other in edges[index]} - {group}

    def _leads_around(self, a: int, b: int) -> bool:
        return self._reaches(a, b) or self._reaches(b, a)

    def _reaches(self, start: int, end: int) -> bool:
        """Whether a way leads from one group to another through at least one more."""
        pending = list(self._neighbours(start, self.users) - {end})
        seen = set(pending)
        while pending:
            further = self._neighbours(pending.pop(), self.users) - seen
            if end in further:
                return True
            seen |= further
            pending += further
        return False
