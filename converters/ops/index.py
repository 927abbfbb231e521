"""Reading and writing entries at given places."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dns_onnx.converters.ops.widths import in_bits, scalar
from dns_onnx.converters.registry import Arg, Call, op


def from_start(indices: Tensor, size: int) -> Tensor:
    """Indices with those that count from the end made to count from the start."""
    indices = indices.to(torch.int64)
    return torch.where(indices < 0, indices + size, indices)


def _gather_direct(data: Arg, indices: Any, *, axis: int = 0) -> Call | None:
    if isinstance(indices, int) and data.elem not in (0, 8):
        return Call(torch.select, (data, axis, indices))
    return None


@op(
    "Gather",
    1,
    11,
    13,
    prunable=("data",),
    literal=("indices",),
    layout=True,
    direct=_gather_direct,
)
def gather(data: Tensor, indices: Tensor | int | list[Any], *, axis: int = 0) -> Tensor:
    """Slices of the data along one axis, in the order and shape of the indices.

    Negative indices count from the end.  Source: ONNX operators, Gather 1-13.
    """
    if isinstance(indices, (int, list)):
        indices = torch.tensor(indices).to(data.device, non_blocking=True)
    places = from_start(indices, data.shape[axis]).reshape(-1)
    picked = in_bits(lambda x: x.index_select(axis, places), data)
    axis = axis % data.dim()
    return picked.reshape((*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :]))


@op("GatherElements", 11, 13, layout=True)
def gather_elements(data: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """Entry by entry, the data at the index along one axis.

    Source: ONNX operators, GatherElements 11-13.
    """
    places = from_start(indices, data.shape[axis])
    return in_bits(lambda x: torch.gather(x, axis, places), data)


@op("GatherND", 11, 12, 13, layout=True)
def gather_nd(data: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    """Slices of the data at index tuples.

    indices: [..., k], each last row the first k coordinates (after the batch axes).
    Source: ONNX operators, GatherND 11-13.
    """
    depth = indices.shape[-1]
    batch = data.shape[:batch_dims]
    rows = int(torch.Size(batch).numel())
    flat = data.reshape((rows, *data.shape[batch_dims:]))
    index = indices.reshape(rows, -1, depth)
    sizes = flat.shape[1 : 1 + depth]
    parts = [from_start(index[..., i], sizes[i]) for i in range(depth)]
    row = torch.arange(rows, device=data.device).reshape(-1, 1).expand(rows, index.shape[1])
    picked = flat[(row, *parts)]
    return picked.reshape((*indices.shape[:-1], *data.shape[batch_dims + depth :]))


def _alike(data: Tensor, updates: Tensor) -> tuple[Tensor, Tensor]:
    """Both in one type: mixed precision may have narrowed one of them."""
    wide = torch.promote_types(data.dtype, updates.dtype)
    return data.to(wide), updates.to(wide)


_REDUCE = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@op("Scatter", 9, 11)
@op("ScatterElements", 11, 13, 16, 18)
def scatter_elements(
    data: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none"
) -> Tensor:
    """A copy of the data with entries replaced by (or combined with) the updates.

    Source: ONNX operators, ScatterElements 11-18.
    """
    places = from_start(indices, data.shape[axis])
    data, updates = _alike(data, updates)
    if reduction == "none":
        if data.dtype in (torch.uint16, torch.uint32, torch.uint64):
            bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[data.itemsize]
            return data.view(bits).scatter(axis, places, updates.view(bits)).view(data.dtype)
        return data.scatter(axis, places, updates)
    return data.scatter_reduce(axis, places, updates, _REDUCE[reduction])


@op("ScatterND", 11, 13, 16, 18)
def scatter_nd(
    data: Tensor, indices: Tensor, updates: Tensor, *, reduction: str = "none"
) -> Tensor:
    """A copy of the data with slices at index tuples replaced by (or combined with) updates.

    indices: [..., k].  updates: indices.shape[:-1] + data.shape[k:].
    Source: ONNX operators, ScatterND 11-18.
    """
    data, updates = _alike(data, updates)
    depth = indices.shape[-1]
    sizes = data.shape[:depth]
    flat = torch.zeros(indices.shape[:-1], dtype=torch.int64, device=indices.device)
    for axis in range(depth):
        flat = flat * sizes[axis] + from_start(indices[..., axis], sizes[axis])
    rest = data.shape[depth:]
    rows = data.reshape((int(torch.Size(sizes).numel()), *rest))
    new = updates.reshape((-1, *rest))
    if reduction == "none":
        result = rows.index_put((flat.reshape(-1),), new)
    else:
        places = flat.reshape((-1,) + (1,) * len(rest)).expand(new.shape)
        result = rows.scatter_reduce(0, places, new, _REDUCE[reduction])
    return result.reshape(data.shape)


@op("OneHot", 9, 11, 28, static=("depth",), differentiable=True)
def one_hot(indices: Tensor, depth: Any, values: Tensor, *, axis: int = -1) -> Tensor:
    """`values[1]` where the new axis counts to the index, else `values[0]`.

    values: [off, on].  Indices out of range match nowhere.  Source: ONNX operators, OneHot 9-28.
    """
    depth = int(scalar(depth))
    axis = axis % (indices.dim() + 1)
    whole = indices.to(torch.int64)
    whole = torch.where(whole < 0, whole + depth, whole).unsqueeze(axis)
    shape = [1] * (indices.dim() + 1)
    shape[axis] = depth
    match = whole == torch.arange(depth, device=indices.device).reshape(shape)
    return torch.where(match, values[1], values[0])


@op("Compress", 9, 11, 28)
def compress(data: Tensor, condition: Tensor, *, axis: int | None = None) -> Tensor:
    """The slices along an axis (or entries of the flattened data) for which the condition holds.

    The result's size depends on the data.  Source: ONNX operators, Compress 9-28.
    """
    if axis is None:
        data, axis = data.reshape(-1), 0
    places = condition.nonzero().reshape(-1)
    return in_bits(lambda x: x.index_select(axis, places), data)


@op("NonZero", 9, 13, differentiable=False)
def non_zero(x: Tensor) -> Tensor:
    """Coordinates of the entries that are not zero: [rank, count], int64.

    Source: ONNX operators, NonZero 9-13.
    """
    return (x != 0).nonzero().t().contiguous() if x.dim() else (x != 0).reshape(1).nonzero().t()[:0]


@op("Trilu", 14, static=("k",))
def trilu(x: Tensor, k: Any = 0, *, upper: int = 1) -> Tensor:
    """The upper or lower triangle of the last two axes, from diagonal k on; zeros elsewhere.

    Source: ONNX operators, Trilu 14.
    """
    diagonal = int(scalar(k))
    function = torch.triu if upper else torch.tril
    return in_bits(lambda t: function(t, diagonal), x)


@op("EyeLike", 9, 22, differentiable=False)
def eye_like(x: Tensor, *, dtype: int | None = None, k: int = 0) -> Tensor:
    """Ones on diagonal k of a matrix of X's shape, zeros elsewhere.

    Source: ONNX operators, EyeLike 9-22.
    """
    from dns_onnx.converters.dtypes import torch_dtype

    rows, columns = x.shape
    row = torch.arange(rows, device=x.device).reshape(-1, 1)
    column = torch.arange(columns, device=x.device)
    return (column - row == k).to(x.dtype if dtype is None else torch_dtype(dtype))


@op("TensorScatter", 24)
def tensor_scatter(
    past_cache: Tensor,
    update: Tensor,
    write_indices: Tensor | None = None,
    *,
    axis: int = -2,
    mode: str = "linear",
) -> Tensor:
    """A copy of the cache with the update written from each sample's own place on.

    mode: "linear", or "circular" (goes on at the start).  Source: ONNX operators, TensorScatter 24.
    """
    axis = axis % past_cache.dim()
    length, size = update.shape[axis], past_cache.shape[axis]
    if write_indices is None:
        write_indices = torch.zeros(past_cache.shape[0], dtype=torch.int64, device=update.device)
    places = write_indices.to(torch.int64).reshape(-1, 1) + torch.arange(
        length, device=update.device
    )
    if mode == "circular":
        places = places % size
    shape = [1] * update.dim()
    shape[0], shape[axis] = places.shape
    past_cache, update = _alike(past_cache, update)
    return past_cache.scatter(axis, places.reshape(shape).expand(update.shape), update)


@op("ReverseSequence", 10, 28)
def reverse_sequence(
    x: Tensor, sequence_lens: Tensor, *, batch_axis: int = 1, time_axis: int = 0
) -> Tensor:
    """Each sample with its first `sequence_lens` time steps in reverse.

    Source: ONNX operators, ReverseSequence 10-28.
    """
    steps = torch.arange(x.shape[time_axis], device=x.device)
    lens = sequence_lens.to(torch.int64).reshape(-1, 1)
    places = torch.where(steps < lens, lens - 1 - steps, steps)
    places = places if batch_axis == 0 else places.t()
    shape = [1] * x.dim()
    shape[batch_axis], shape[time_axis] = x.shape[batch_axis], x.shape[time_axis]
    index = places.reshape(shape).expand(x.shape)
    return in_bits(lambda t: torch.gather(t, time_axis, index), x)
