"""Convolutions between DequantizeLinear and QuantizeLinear, in whole numbers.

In float arithmetic a sum near the middle of two levels rounds to either, by the order of its
terms, and each such entry grows through the layers after it.  Whole numbers have no such order;
ONNX Runtime computes these three nodes as one QLinearConv for the same reason.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from dns_onnx.converters.ops.quantize import dequantize_linear, qlinear_conv, quantize_linear

_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
_BYTES = (torch.int8, torch.uint8)
# how far the bias's scale may lie from scale(x) * scale(w), as a share of it
_SAME_SCALE = 1e-3


def use_whole_numbers(graph: fx.Graph, root: nn.Module) -> None:
    """Replace each convolution of dequantised bytes that is quantised at once, in place.

    No gradient is lost: none passes a QuantizeLinear.  A convolution stays as it is where
    somebody else wants its result, or its scales are no constants that fit together.
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


def _quantised(node: fx.Node, root: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """The operands and attributes of the QLinearConv that stands for a QuantizeLinear."""
    conv = node.args[0]
    if not isinstance(conv, fx.Node) or conv.target not in _CONVOLUTIONS or len(conv.users) > 1:
        return None
    x, w, b = (_dequantised(arg, root) for arg in conv.args[:3])
    scale, zero = (_constant(arg, root) for arg in (*node.args[1:3], None)[:2])
    if x is None or w is None or scale is None or zero is None or zero.dtype not in _BYTES:
        return None
    if conv.args[2] is not None and (b is None or not _fits(b, x, w, root)):
        return None
    if scale.numel() > 1 or x[1].numel() > 1 or not _bytes(x, root) or not _bytes(w, root):
        return None
    if w[1].numel() > 1 and w[0].kwargs.get("axis", 1) != 0:
        return None
    strides, padding, dilations, group = conv.args[3:7]
    pads = tuple(padding) * 2  # type: ignore[arg-type]
    types = node.kwargs.get("types_", ())
    elem = types[2] if isinstance(types, tuple) and len(types) > 2 else 2
    operands = (*_three(x[0]), *_three(w[0]), *node.args[1:3])
    bias = () if b is None else (b[0].args[0],)
    keywords = {"strides": strides, "pads": pads, "dilations": dilations, "group": group}
    return (*operands, *bias), {**keywords, "types_": (0,) * 7 + (elem,)}


def _dequantised(node: Any, root: nn.Module) -> tuple[fx.Node, Tensor] | None:
    """A DequantizeLinear without blocks, and its scale, which must be known."""
    if not isinstance(node, fx.Node) or node.target is not dequantize_linear:
        return None
    scale = _constant(node.args[1], root)
    plain = not node.kwargs.get("block_size") and not node.kwargs.get("output_dtype")
    return (node, scale) if scale is not None and plain else None


def _constant(node: Any, root: nn.Module) -> Tensor | None:
    """The tensor that a holder or a buffer of the graph has at import."""
    if not isinstance(node, fx.Node) or not isinstance(node.target, str):
        return None
    if node.op == "get_attr":
        return root.get_buffer(node.target)
    held = root.get_submodule(node.target) if node.op == "call_module" else None
    weight = getattr(held, "weight", None)
    return weight.detach() if isinstance(weight, Tensor) else None


def _three(node: fx.Node) -> tuple[Any, Any, Any]:
    operands = (*node.args, None)
    return operands[0], operands[1], operands[2]


def _bytes(operand: tuple[fx.Node, Tensor], root: nn.Module) -> bool:
    """Whether an operand's integers are known to be single bytes."""
    values, _, zero = _three(operand[0])
    held = _constant(zero, root)
    held = _constant(values, root) if held is None else held
    return held is not None and held.dtype in _BYTES


def _fits(
    bias: tuple[fx.Node, Tensor],
    x: tuple[fx.Node, Tensor],
    w: tuple[fx.Node, Tensor],
    root: nn.Module,
) -> bool:
    """Whether a bias counts from zero in units of scale(x) * scale(w)."""
    zero = _three(bias[0])[2]
    held = _constant(zero, root)
    if zero is not None and (held is None or bool(held.any())):
        return False
    unit = (x[1] * w[1]).reshape(-1)
    same = (bias[1].reshape(-1) - unit).abs() <= _SAME_SCALE * unit
    return bool(same.all())
