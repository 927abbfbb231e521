"""Padding, ranges, sorting and other operators on whole tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dns_onnx.converters.dtypes import torch_dtype
from dns_onnx.converters.ops.widths import in_bits, in_int64, scalar
from dns_onnx.converters.ops.windows import torch_pads
from dns_onnx.converters.registry import Arg, Call, op

Ints = Sequence[int]


def _pad_direct(
    data: Arg,
    pads: Any = None,
    constant_value: Any = None,
    axes: Any = None,
    *,
    mode: str = "constant",
    value: float = 0.0,
    paddings: Any = None,
) -> Call | None:
    known = isinstance(pads, (list, tuple)) and all(isinstance(p, int) for p in pads)
    if mode != "constant" or not known or axes is not None or data.elem not in (1, 10, 11, 16):
        return None
    fill = value if constant_value is None else constant_value
    if isinstance(fill, Arg) or not isinstance(scalar(fill), (int, float)):
        return None
    half = len(pads) // 2
    return Call(F.pad, (data, torch_pads(pads[:half], pads[half:]), "constant", scalar(fill)))


@op(
    "Pad",
    1,
    2,
    11,
    13,
    18,
    19,
    21,
    23,
    24,
    25,
    static=("pads", "axes"),
    literal=("constant_value",),
    direct=_pad_direct,
)
def pad(
    data: Tensor,
    pads: Ints | None = None,
    constant_value: Any = None,
    axes: Ints | None = None,
    *,
    mode: str = "constant",
    value: float = 0.0,
    paddings: Ints | None = None,
) -> Tensor:
    """Cells added before and after the axes; negative amounts take cells away.

    pads: all begins, then all ends, for the given axes.  mode: "constant", "reflect", "edge" or
    "wrap".  Source: ONNX operators, Pad 1-25.
    """
    amounts = list(pads if pads is not None else paddings or [])
    chosen = range(data.dim()) if axes is None else [a % data.dim() for a in axes]
    half = len(amounts) // 2
    begin, end = [0] * data.dim(), [0] * data.dim()
    for i, axis in enumerate(chosen):
        begin[axis], end[axis] = int(amounts[i]), int(amounts[i + half])
    if mode == "constant":
        fill = value if constant_value is None else scalar(constant_value)
        return _filled(data, torch_pads(begin, end), fill)
    for axis in range(data.dim()):
        if begin[axis] or end[axis]:
            places = torch.arange(-begin[axis], data.shape[axis] + end[axis], device=data.device)
            index = _inside(places, data.shape[axis], mode)
            data = in_bits(lambda x, a=axis, i=index: x.index_select(a, i), data)  # type: ignore[misc]
    return data


def _filled(data: Tensor, amounts: list[int], fill: Any) -> Tensor:
    """Padding with a number, or with a tensor that a gradient should reach."""
    if not isinstance(fill, Tensor):
        return in_int64(F.pad, data, pad=amounts, value=fill)  # type: ignore[no-any-return]
    if not fill.requires_grad:
        return in_int64(F.pad, data, pad=amounts, value=fill.item())  # type: ignore[no-any-return]
    inside = F.pad(torch.ones_like(data, dtype=torch.bool), amounts)
    return torch.where(inside, F.pad(data, amounts), fill.reshape(()).to(data.dtype))


def _inside(places: Tensor, size: int, mode: str) -> Tensor:
    if mode == "edge":
        return places.clamp(0, size - 1)
    if mode == "wrap":
        return places % size
    if size == 1:
        return torch.zeros_like(places)
    period = 2 * (size - 1)
    folded = places % period
    return torch.where(folded < size, folded, period - folded)


@op("Range", 11, 27, static=("start", "limit", "delta"), differentiable=False)
def range_(
    start: Any, limit: Any, delta: Any, *, stash_type: int = 1, types_: tuple[int, ...] = ()
) -> Tensor:
    """start, start + delta, ... up to the limit, which is left out.

    Source: ONNX operators, Range 11-27.
    """
    start, limit, delta = scalar(start), scalar(limit), scalar(delta)
    dtype = torch_dtype(types_[0]) if types_ and types_[0] else None
    if dtype in (torch.float16, torch.bfloat16):
        count = max(int(np.ceil((limit - start) / delta)), 0)
        places: Tensor = start + torch.arange(count) * delta
        return places.to(dtype)
    if dtype is not None and (limit - start) * delta <= 0:
        return torch.empty(0, dtype=dtype)
    return torch.arange(start, limit, delta, dtype=dtype)


@op("TopK", 1, 10, 11, 24, static=("k",))
def top_k(
    x: Tensor, k: Any = 1, *, axis: int = -1, largest: int = 1, sorted: int = 1
) -> tuple[Tensor, Tensor]:
    """The k largest (or smallest) entries along an axis, and their places; first come, first.

    Source: ONNX operators, TopK 1-24.
    """
    count = int(scalar(k))
    if x.dtype in (torch.uint16, torch.uint32, torch.uint64):
        wide = x.view(torch.int64) ^ -(2**63) if x.dtype is torch.uint64 else x.to(torch.int64)
        places = wide.sort(dim=axis, descending=bool(largest), stable=True).indices
        places = places.narrow(axis, 0, count)
        return in_bits(lambda t: torch.gather(t, axis, places), x), places
    values, places = x.sort(dim=axis, descending=bool(largest), stable=True)
    return values.narrow(axis, 0, count), places.narrow(axis, 0, count)


@op("Unique", 11, 28, differentiable=False)
def unique(
    x: Any, *, axis: int | None = None, sorted: int = 1, outputs_: int = 1
) -> tuple[Any, ...]:
    """The different entries (or slices along an axis).

    Returns them sorted or in order of appearance, the place of the first of each, the number of
    each entry's value among them, and how often each occurs.
    Source: ONNX operators, Unique 11-28.
    """
    if not isinstance(x, Tensor):
        return _unique_strings(x, axis, sorted)[:outputs_]
    data = x.reshape(-1) if axis is None else x
    along = 0 if axis is None else axis % x.dim()
    values, inverse, counts = torch.unique(
        data, sorted=True, return_inverse=True, return_counts=True, dim=along
    )
    positions = torch.arange(inverse.numel(), device=x.device)
    first = torch.full_like(counts, inverse.numel()).scatter_reduce(0, inverse, positions, "amin")
    if not sorted:
        order = first.argsort()
        values = values.index_select(along, order)
        first, counts = first[order], counts[order]
        inverse = order.argsort()[inverse]
    return (values, first, inverse, counts)[:outputs_]


def _unique_strings(x: Any, axis: int | None, keep_sorted: int) -> tuple[Any, ...]:
    values, first, inverse, counts = np.unique(
        x.astype(str), return_index=True, return_inverse=True, return_counts=True, axis=axis
    )
    if not keep_sorted:
        order = np.argsort(first)
        values, first, counts = values[order], first[order], counts[order]
        inverse = np.argsort(order)[inverse]
    parts = (torch.from_numpy(p.reshape(-1).astype(np.int64)) for p in (first, inverse, counts))
    return (values.astype(object), *parts)


@op("Det", 11, 22)
def det(x: Tensor) -> Tensor:
    """Determinants of the matrices in the last two axes.  Source: ONNX operators, Det 11-22."""
    determinant: Tensor = torch.linalg.det(x)
    return determinant


@op("DepthToSpace", 1, 11, 13, 28)
def depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """Channels moved into blocks of space.

    x: [N, C, H, W].  Returns [N, C / b^2, H * b, W * b].
    Source: ONNX operators, DepthToSpace 1-28.
    """
    n, c, h, w = x.shape
    b = blocksize
    if mode == "DCR":
        y = x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        y = x.reshape(n, c // b**2, b, b, h, w).permute(0, 1, 4, 2, 5, 3)
    return y.reshape(n, c // b**2, h * b, w * b)


@op("SpaceToDepth", 1, 13, 28)
def space_to_depth(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """Blocks of space moved into channels.

    x: [N, C, H, W].  Returns [N, C * b^2, H / b, W / b].
    Source: ONNX operators, SpaceToDepth 1-28.
    """
    n, c, h, w = x.shape
    b = blocksize
    blocks = x.reshape(n, c, h // b, b, w // b, b)
    order = (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4)
    return blocks.permute(order).reshape(n, c * b**2, h // b, w // b)


@op("SwiGLU", 28)
def swiglu(a: Tensor, b: Tensor, *, alpha: float = 1.0) -> Tensor:
    """A * sigmoid(alpha * a) * b.  Source: ONNX operators, SwiGLU 28."""
    gate = F.silu(a) if alpha == 1.0 else a * torch.sigmoid(alpha * a)
    return gate * b


@op("CenterCropPad", 18, static=("shape",))
def center_crop_pad(x: Tensor, shape: Ints, *, axes: Ints | None = None) -> Tensor:
    """X cut or filled up with zeros around its centre to the given sizes.

    Source: ONNX operators, CenterCropPad 18.
    """
    chosen = range(x.dim()) if axes is None else [a % x.dim() for a in axes]
    begin, end = [0] * x.dim(), [0] * x.dim()
    for axis, wanted in zip(chosen, shape, strict=True):
        size = x.shape[axis]
        if size > wanted:
            begin[axis] = -((size - wanted) // 2)
            end[axis] = wanted - size - begin[axis]
        else:
            begin[axis] = (wanted - size) // 2
            end[axis] = wanted - size - begin[axis]
    return F.pad(x, torch_pads(begin, end))


@op("MaxUnpool", 9, 11, 22, static=("output_shape",))
def max_unpool(
    x: Tensor,
    i: Tensor,
    output_shape: Ints | None = None,
    *,
    kernel_shape: Ints,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Tensor:
    """The entries put back where MaxPool took them from, zeros elsewhere.

    i: places in the flattened tensor that was pooled.  Source: ONNX operators, MaxUnpool 9-22.
    """
    rank = len(kernel_shape)
    strides = strides or [1] * rank
    pads = pads or [0] * (2 * rank)
    natural = [
        (x.shape[2 + a] - 1) * strides[a] + kernel_shape[a] - pads[a] - pads[a + rank]
        for a in range(rank)
    ]
    shape = [*x.shape[:2], *natural]
    flat = x.new_zeros(int(torch.Size(shape).numel()))
    y = flat.index_put((i.reshape(-1),), x.reshape(-1)).reshape(shape)
    if output_shape is None or list(output_shape) == shape:
        return y
    extra = [wanted - have for wanted, have in zip(output_shape, shape, strict=True)]
    return F.pad(y, torch_pads([0] * len(extra), extra))
