"""Convolutions between DequantizeLinear and QuantizeLinear, in whole numbers.

In float arithmetic a sum near the middle of two levels rounds to either, by the order of its
terms, and each such entry grows through the layers after it.  Whole numbers have no such order;
ONNX Runtime computes these three nodes as one QLinearConv for the same reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from dns_onnx.converters.ops.quantize import (
    dequantize_linear,
    qlinear_conv,
    quantize_linear,
    straight_through,
)

_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
_BYTES = (torch.int8, torch.uint8)
# how far the bias's scale may lie from scale(x) * scale(w), as a share of it
_SAME_SCALE = 1e-3


def use_whole_numbers(graph: fx.Graph, root: nn.Module) -> None:
    """Compute each convolution of dequantised bytes that is quantised at once, in place.

    The gradient still passes the float convolution, which a straight-through DequantizeLinear
    reads.  A convolution is left alone where somebody else wants its result, or its scales are no
    constants that fit together.
    """
    for node in list(graph.nodes):
        call = _quantised(node, root) if node.target is quantize_linear else None
        if call is None:
            continue
        args, keywords = call
        with graph.inserting_before(node):
            fused = graph.call_function(qlinear_conv, args, keywords)
        fused.meta.update(node.meta)
        node.replace_all_uses_with(fused)
        graph.erase_node(node)


@dataclass(frozen=True)
class _Bytes:
    """What a DequantizeLinear without blocks reads: nodes, and the scale's known value."""

    values: Any
    scale: Any
    zero: Any
    known_scale: Tensor
    axis: int

    def nodes(self) -> tuple[Any, Any, Any]:
        return self.values, self.scale, self.zero


def _quantised(node: fx.Node, root: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """The operands and attributes of the QLinearConv that stands for a QuantizeLinear."""
    conv = node.args[0]
    if not isinstance(conv, fx.Node) or conv.target not in _CONVOLUTIONS:
        return None
    if not all(user is node or _is_gradient_of(user, conv, node) for user in conv.users):
        return None
    x, w, b = (_dequantised(arg, root) for arg in conv.args[:3])
    scale, zero = (_constant(arg, root) for arg in (*node.args[1:3], None)[:2])
    if x is None or w is None or scale is None or zero is None or zero.dtype not in _BYTES:
        return None
    if conv.args[2] is not None and (b is None or not _fits(b, x, w, root)):
        return None
    one_scale = scale.numel() == 1 and x.known_scale.numel() == 1
    if not one_scale or not _are_bytes(x, root) or not _are_bytes(w, root):
        return None
    if w.known_scale.numel() > 1 and w.axis != 0:
        return None
    strides, padding, dilations, group = conv.args[3:7]
    pads = tuple(padding) * 2  # type: ignore[arg-type]
    operands = (*x.nodes(), *w.nodes(), *node.args[1:3])
    bias = () if b is None else (b.values,)
    keywords = {"strides": strides, "pads": pads, "dilations": dilations, "group": group}
    return (*operands, *bias), keywords


def _is_gradient_of(user: fx.Node, conv: fx.Node, quantised: fx.Node) -> bool:
    """Whether a reader wants the convolution only to pass a gradient to it."""
    return user.target is straight_through and user.args[0] is conv and user.args[2] is quantised


def _dequantised(node: Any, root: nn.Module) -> _Bytes | None:
    """The operands of a DequantizeLinear without blocks, whose scale must be known."""
    if not isinstance(node, fx.Node) or node.target not in (dequantize_linear, straight_through):
        return None
    operands = node.args[2:] if node.target is straight_through else node.args
    values, scale, zero = (*operands, None)[:3]
    known = _constant(scale, root)
    if known is None or node.kwargs.get("block_size") or node.kwargs.get("output_dtype"):
        return None
    axis = node.kwargs.get("axis", 1)
    return _Bytes(values, scale, zero, known, axis if isinstance(axis, int) else 1)


def _constant(node: Any, root: nn.Module) -> Tensor | None:
    """The tensor that a holder or a buffer of the graph has at import."""
    if not isinstance(node, fx.Node) or not isinstance(node.target, str):
        return None
    if node.op == "get_attr":
        return root.get_buffer(node.target)
    held = root.get_submodule(node.target) if node.op == "call_module" else None
    weight = getattr(held, "weight", None)
    return weight.detach() if isinstance(weight, Tensor) else None


def _are_bytes(operand: _Bytes, root: nn.Module) -> bool:
    """Whether an operand's integers are known to be single bytes."""
    held = _constant(operand.zero, root)
    held = _constant(operand.values, root) if held is None else held
    return held is not None and held.dtype in _BYTES


def _fits(bias: _Bytes, x: _Bytes, w: _Bytes, root: nn.Module) -> bool:
    """Whether a bias counts from zero in units of scale(x) * scale(w)."""
    held = _constant(bias.zero, root)
    if bias.zero is not None and (held is None or bool(held.any())):
        return False
    unit = (x.known_scale * w.known_scale).reshape(-1)
    same = (bias.known_scale.reshape(-1) - unit).abs() <= _SAME_SCALE * unit
    return bool(same.all())
