"""Operators of the preview domains that run bodies: FlexAttention and Gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from onnx import GraphProto, NodeProto
from torch import Tensor

from dns_onnx.converters.attributes import attributes
from dns_onnx.converters.emit_values import attach
from dns_onnx.converters.ops.attention import flex_attention
from dns_onnx.converters.ops.bodies import Body, Operands, as_tuple, body_node, finish
from dns_onnx.converters.registry import op

if TYPE_CHECKING:
    from dns_onnx.converters.builder import Builder


@op("FlexAttention", 1, domain="ai.onnx.preview", graph=True)
def flex(builder: Builder, node: NodeProto, operands: Operands, version: int) -> None:
    """Attention whose scores and probabilities pass through bodies.

    Source: ONNX preview operators, FlexAttention 1.
    """
    attrs = attributes(node)
    bodies: list[Any] = []
    for name in ("score_mod", "prob_mod"):
        if name in attrs:
            body, outside, _ = body_node(builder, node, name)
            bodies += [body, tuple(outside)]
        else:
            bodies += [None, ()]
    values = tuple(builder.tensor(v) for v in operands if v is not None)
    extras = (attrs.get("scale"), attrs.get("softmax_precision"))
    finish(builder, node, run_flex, (values, *bodies, *extras))


def run_flex(
    values: tuple[Tensor, Tensor, Tensor],
    score: Body,
    score_outside: tuple[Any, ...],
    prob: Body,
    prob_outside: tuple[Any, ...],
    scale: float | None,
    precision: int | None,
) -> tuple[Tensor]:
    """FlexAttention with its bodies bound to what they take from outside."""

    def bound(body: Body, outside: tuple[Any, ...]) -> Any:
        return None if body is None else lambda x: body(x, *outside)

    changes = bound(score, score_outside), bound(prob, prob_outside)
    return (flex_attention(*values, *changes, scale, precision),)


@op("Gradient", 1, domain="ai.onnx.preview.training", graph=True)
def gradient(builder: Builder, node: NodeProto, operands: Operands, version: int) -> None:
    """The derivatives of one value with respect to others.

    The part of the graph between them becomes a body, which is run under autograd.
    Source: ONNX training operators, Gradient 1.
    """
    attrs = attributes(node)
    names = [*attrs["xs"], *attrs.get("zs", [])]
    proto = _between(builder.proto, set(names), attrs["y"])
    for name in names:
        proto.input.add(name=name)
    child = builder.child(proto, builder.typed)
    module = child.module([attrs["y"]])
    body = builder.graph.get_attr(attach(builder, f"{node.name or node.output[0]}_body", module))
    outside = tuple(builder.tensor(value) for value in child.captured)
    values = tuple(builder.tensor(v) for v in operands if v is not None)
    finish(builder, node, run_gradient, (body, values, outside, len(attrs["xs"])))


def _between(graph: GraphProto, known: set[str], wanted: str) -> GraphProto:
    """The nodes that compute a value from known ones, as a graph of their own."""
    makers = {name: n for n in graph.node for name in n.output}
    chosen: list[NodeProto] = []
    pending = [wanted]
    while pending:
        maker = makers.get(pending.pop())
        if maker is None or maker in chosen:
            continue
        chosen.append(maker)
        pending += [name for name in maker.input if name not in known]
    part = GraphProto(name=f"{wanted}_of_inputs")
    part.node.extend(n for n in graph.node if n in chosen)
    part.output.add(name=wanted)
    return part


def run_gradient(
    body: Body, values: tuple[Tensor, ...], outside: tuple[Any, ...], count: int
) -> tuple[Tensor, ...]:
    """The gradients of the body's sum with respect to its first inputs."""
    with torch.enable_grad():
        tracked = [v if v.requires_grad else v.detach().requires_grad_() for v in values]
        y = as_tuple(body(*tracked, *outside))[0]
        found = torch.autograd.grad(y.sum(), tracked[:count], create_graph=True, allow_unused=True)
    return tuple(
        torch.zeros_like(v) if g is None else g for g, v in zip(found, tracked, strict=False)
    )
