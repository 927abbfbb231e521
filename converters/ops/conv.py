"""Convolutions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dns_onnx.converters.ops.windows import padded, spatial, torch_pads, window, window_over
from dns_onnx.converters.registry import Arg, Call, op

_CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSE: dict[int, Callable[..., Tensor]] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}


def _conv_direct(x: Arg, w: Arg, b: Arg | None = None, **attributes: Any) -> Call | None:
    """Torch's convolution with its padding worked out, where the sizes that matter are known."""
    size = spatial(x)
    if size is None or w.shape is None or len(size) not in _CONV or None in w.shape[2:]:
        return None
    group = attributes.pop("group", 1)
    attributes.pop("kernel_shape", None)
    found = window(size, [d or 0 for d in w.shape[2:]], **attributes)
    if found is None or min(found.begin + found.end) < 0:
        return None
    source: Any = x
    padding = found.begin
    if not found.symmetric:
        source = Call(F.pad, (x, torch_pads(found.begin, found.end)))
        padding = (0,) * len(size)
    return Call(_CONV[len(size)], (source, w, b, found.strides, padding, found.dilations, group))


@op("Conv", 1, 11, 22, prunable=("w",), bias="b", direct=_conv_direct)
def conv(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    **attributes: Any,
) -> Tensor:
    """Convolution (cross-correlation) over the spatial axes.

    x: [N, C, d1, ..., dn].  w: [M, C / group, k1, ..., kn].  b: [M].  attributes: strides,
    dilations, pads, auto_pad, as `window` takes them.
    Returns [N, M, o1, ..., on].  Source: ONNX operators, Conv 1-22.
    """
    found = window_over(x, w.shape[2:], **attributes)
    function = _CONV[x.dim() - 2]
    if found.symmetric and min(found.begin) >= 0:
        return function(x, w, b, found.strides, found.begin, found.dilations, group)
    x = padded(x, found.begin, found.end)
    return function(x, w, b, found.strides, 0, found.dilations, group)


def _conv_transpose_direct(x: Arg, w: Arg, b: Arg | None = None, **attributes: Any) -> Call | None:
    """Torch's transposed convolution, where the node's own padding is one that it can express."""
    rank = None if x.rank is None else x.rank - 2
    explicit = attributes.get("auto_pad", "NOTSET") == "NOTSET" and "output_shape" not in attributes
    if rank not in _TRANSPOSE or not explicit:
        return None
    strides = tuple(attributes.get("strides") or (1,) * rank)
    dilations = tuple(attributes.get("dilations") or (1,) * rank)
    extra = tuple(attributes.get("output_padding") or (0,) * rank)
    pads = tuple(attributes.get("pads") or (0,) * (2 * rank))
    fits = all(e < max(s, d) for e, s, d in zip(extra, strides, dilations, strict=True))
    if pads[:rank] != pads[rank:] or min(pads, default=0) < 0 or not fits:
        return None
    group = attributes.get("group", 1)
    return Call(_TRANSPOSE[rank], (x, w, b, strides, pads[:rank], extra, group, dilations))


@op("ConvTranspose", 1, 11, 22, prunable=("w",), bias="b", direct=_conv_transpose_direct)
def conv_transpose(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    output_padding: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """Transposed convolution over the spatial axes.

    x: [N, C, d1, ..., dn].  w: [C, M / group, k1, ..., kn].  b: [M].
    output_shape: the wanted spatial sizes, from which the padding follows.
    Source: ONNX operators, ConvTranspose 1-22.
    """
    rank = x.dim() - 2
    strides = strides or [1] * rank
    dilations = dilations or [1] * rank
    extra = output_padding or [0] * rank
    full = _TRANSPOSE[rank](x, w, None, strides, 0, 0, group, dilations)
    if output_shape:
        output_shape = list(output_shape)[-rank:]
    elif auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        output_shape = [d * s for d, s in zip(x.shape[2:], strides, strict=True)]
    begin = list(pads[:rank]) if pads else [0] * rank
    end = list(pads[rank:]) if pads else [0] * rank
    if output_shape:
        for axis in range(rank):
            excess = full.shape[2 + axis] + extra[axis] - output_shape[axis]
            small, large = max(excess, 0) // 2, (max(excess, 0) + 1) // 2
            begin[axis] = small if auto_pad == "SAME_UPPER" else large
            end[axis] = excess - begin[axis]
    cropped = padded(full, [-p for p in begin], [e - p for e, p in zip(extra, end, strict=True)])
    return cropped if b is None else cropped + b.reshape((1, -1) + (1,) * rank)


@op("Col2Im", 18, static=("image_shape", "block_shape"))
def col2im(
    x: Tensor,
    image_shape: list[int],
    block_shape: list[int],
    *,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """Add sliding blocks back into the image that they were taken from.

    x: [N, C * prod(block_shape), L], L blocks in row-major order.  Returns [N, C, *image_shape].
    Source: ONNX operators, Col2Im 18.
    """
    rank = len(image_shape)
    found = window(image_shape, block_shape, strides=strides, dilations=dilations, pads=pads)
    assert found is not None
    sizes = [d + b + e for d, b, e in zip(image_shape, found.begin, found.end, strict=True)]
    position = torch.zeros((), dtype=torch.int64, device=x.device)
    for axis in range(rank):
        span = (block_shape[axis] - 1) * found.dilations[axis] + 1
        count = (sizes[axis] - span) // found.strides[axis] + 1
        inner = torch.arange(block_shape[axis], device=x.device) * found.dilations[axis]
        outer = torch.arange(count, device=x.device) * found.strides[axis]
        along = inner.reshape(-1, 1) + outer
        position = position.reshape(-1, 1, position.shape[-1] if position.dim() else 1, 1)
        flat = position * sizes[axis] + along.reshape(1, along.shape[0], 1, along.shape[1])
        position = flat.reshape(flat.shape[0] * flat.shape[1], -1)
    channels = x.shape[1] // position.shape[0]
    source = x.reshape(x.shape[0], channels, -1)
    target = x.new_zeros(x.shape[0], channels, int(torch.Size(sizes).numel()))
    image = target.index_add(2, position.reshape(-1), source)
    image = image.reshape(x.shape[0], channels, *sizes)
    return padded(image, [-p for p in found.begin], [-p for p in found.end])
