"""One way to write one weight, and how a chosen way is put into the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from onnx import NodeProto, TensorProto

from dns_onnx.converters.encodings.bodies import Form
from dns_onnx.converters.encodings.sites import Site, Use, initializer_index, node_index


@dataclass(frozen=True)
class Replacement:
    """What takes the place of a dense weight.

    tensors: initializers; the first, the values, takes the weight's own place.
    nodes: the decoding, in order.  consumer: what the node that reads the weight becomes.
    """

    tensors: Sequence[TensorProto]
    nodes: Sequence[NodeProto] = ()
    consumer: NodeProto | None = None


@dataclass(frozen=True)
class Draft:
    """One way to write one weight.

    encoding: as the report names it.  operator: the node that reads the stored form.
    bytes: what it takes in the file, function bodies aside.  functions: the bodies it needs.
    memory: bytes that ONNX Runtime fills while it decodes the weight, the weight itself included.
    columns, values, bias: what the bodies must be written for, as in Form; None: that is all one.
    write: puts it into the model in place of the dense weight.
    """

    encoding: str
    operator: str
    bytes: int
    write: Callable[[], None]
    functions: frozenset[str] = field(default_factory=frozenset)
    memory: int = 0
    columns: bool | None = None
    values: str | None = None
    bias: bool | None = None

    def fits(self, form: Form) -> bool:
        """Whether bodies written for `form` can read it."""
        return (
            self.columns in (None, form.columns)
            and self.values in (None, form.values)
            and self.bias in (None, form.bias)
        )


def put(site: Site, use: Use | None, made: Replacement) -> None:
    """Put `made` in the weight's place: tensors where it lay, decoding before its first reader."""
    values, *others = made.tensors
    graph = site.graph
    values.doc_string = site.tensor.doc_string
    if not values.doc_string:
        values.ClearField("doc_string")
    if site.constant is None:
        at = initializer_index(graph, site.name)
        graph.initializer[at].CopyFrom(values)
        head = 0
    else:
        at = len(graph.initializer) - 1
        head = node_index(graph, site.constant) + 1
        site.constant.output[0] = values.name
        site.tensor.CopyFrom(values)
        site.tensor.ClearField("name")
    for offset, tensor in enumerate(others, start=at + 1):
        graph.initializer.insert(offset, tensor)
    for offset, node in enumerate(made.nodes, start=head):
        graph.node.insert(offset, node)
    if made.consumer is not None and use is not None and use.node is not None:
        use.node.CopyFrom(made.consumer)
