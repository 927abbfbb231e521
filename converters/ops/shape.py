"""Operators that change the layout of a tensor, its type, or read its shape."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dns_onnx.converters.ops.widths import in_bits
from dns_onnx.converters.registry import Arg, Call, op

Ints = Sequence[int]


def _identity_direct(x: Arg) -> Arg:
    return x


@op("Identity", 1, 13, 14, 16, 19, 21, 23, 24, 25, layout=True, direct=_identity_direct)
def identity(x: Any) -> Any:
    """The operand itself.  Source: ONNX operators, Identity 1-25."""
    return x


def _reshape_direct(data: Arg, shape: Any = None, *, allowzero: int = 0) -> Call | None:
    if not isinstance(shape, (list, tuple)):
        return None
    target = list(shape)
    for axis, size in enumerate(target):
        if isinstance(size, int) and size == 0 and not allowzero:
            known = None if data.shape is None else data.shape[axis]
            if known is None:
                known = Call(torch.Tensor.size, (data, axis))  # type: ignore[assignment]
            target[axis] = known
    return Call(torch.reshape, (data, tuple(target)))


@op(
    "Reshape",
    1,
    5,
    13,
    14,
    19,
    21,
    23,
    24,
    25,
    static=("shape",),
    layout=True,
    direct=_reshape_direct,
)
def reshape(data: Tensor, shape: Ints, *, allowzero: int = 0) -> Tensor:
    """The entries in a new shape.

    shape: one entry may be -1 (follows from the others); 0 keeps the size of that axis, unless
    allowzero is set.  Source: ONNX operators, Reshape 1-25.
    """
    if not allowzero:
        shape = [data.shape[i] if s == 0 else s for i, s in enumerate(shape)]
    return torch.reshape(data, tuple(shape))


def _transpose_direct(data: Arg, *, perm: list[int] | None = None) -> Call | None:
    if perm is None:
        if data.rank is None:
            return None
        perm = list(reversed(range(data.rank)))
    return Call(torch.permute, (data, tuple(perm)))


@op("Transpose", 1, 13, 21, 23, 24, 25, layout=True, direct=_transpose_direct)
def transpose(data: Tensor, *, perm: Ints | None = None) -> Tensor:
    """The axes in the order `perm`, or reversed.  Source: ONNX operators, Transpose 1-25."""
    return torch.permute(data, tuple(perm) if perm is not None else tuple(range(data.dim()))[::-1])


def _flatten_direct(x: Arg, *, axis: int = 1) -> Call | None:
    if axis == 1 and (x.rank or 0) >= 2:
        return Call(torch.flatten, (x, 1))
    return None


@op("Flatten", 1, 9, 11, 13, 21, 23, 24, 25, layout=True, direct=_flatten_direct)
def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    """A matrix: the axes before `axis` together, and the others.

    Source: ONNX operators, Flatten 1-25.
    """
    rows = int(torch.Size(x.shape[: axis if axis >= 0 else axis + x.dim()]).numel())
    columns = int(torch.Size(x.shape[axis if axis >= 0 else axis + x.dim() :]).numel())
    return x.reshape(rows, columns)


def _squeeze_direct(data: Arg, axes: Any = None) -> Call | None:
    if not isinstance(axes, (list, tuple)) or data.elem == 0 or data.elem == 8:
        return None
    if len(axes) == 1:
        return Call(torch.squeeze, (data, axes[0]))
    return Call(torch.squeeze, (data, tuple(axes)))


@op("Squeeze", 1, 11, 13, 21, 23, 24, 25, static=("axes",), layout=True, direct=_squeeze_direct)
def squeeze(data: Tensor, axes: Ints | int | None = None) -> Tensor:
    """Without the given axes of size 1, or without all of them.

    Source: ONNX operators, Squeeze 1-25.
    """
    if axes is None:
        return data.squeeze()
    return torch.squeeze(data, (axes,) if isinstance(axes, int) else tuple(axes))


def _unsqueeze_direct(data: Arg, axes: Any = None) -> Call | None:
    if not isinstance(axes, (list, tuple)) or len(axes) != 1 or data.elem in (0, 8):
        return None
    return Call(torch.unsqueeze, (data, axes[0]))


@op("Unsqueeze", 1, 11, 13, 21, 23, 24, 25, static=("axes",), layout=True, direct=_unsqueeze_direct)
def unsqueeze(data: Tensor, axes: Ints | int) -> Tensor:
    """With new axes of size 1 at the given places of the result.

    Source: ONNX operators, Unsqueeze 1-25.
    """
    axes = [axes] if isinstance(axes, int) else axes
    rank = data.dim() + len(axes)
    for axis in sorted(a % rank for a in axes):
        data = data.unsqueeze(axis)
    return data


def _concat_direct(*inputs: Arg, axis: int = 1) -> Call:
    return Call(torch.cat, (list(inputs), axis))


@op("Concat", 1, 4, 11, 13, layout=True, direct=_concat_direct)
def concat(*inputs: Tensor, axis: int = 1) -> Tensor:
    """The operands one after the other along an axis.  Source: ONNX operators, Concat 1-13."""
    return torch.cat(inputs, axis)


@op("Split", 1, 2, 11, 13, 18, static=("split",), layout=True)
def split(
    x: Tensor,
    split: Ints | None = None,
    *,
    axis: int = 0,
    num_outputs: int | None = None,
    outputs_: int = 1,
) -> tuple[Tensor, ...]:
    """Parts of the given sizes along an axis; equal ones (the last may be smaller) by default.

    Source: ONNX operators, Split 1-18.
    """
    if split is None:
        count = num_outputs or outputs_
        each = -(-x.shape[axis] // count)
        sizes = [each] * count
        sizes[-1] = x.shape[axis] - each * (count - 1)
    else:
        # schema 1 takes the sizes in the data's own type
        sizes = [int(size) if isinstance(size, float) else size for size in split]
    return torch.split(x, sizes, axis)


def _slices(
    starts: Ints, ends: Ints, axes: Ints | None, steps: Ints | None, rank: int
) -> list[slice]:
    cuts = [slice(None)] * rank
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis = i if axes is None else axes[i] % rank
        cuts[axis] = slice(start, end, steps[i] if steps else 1)
    return cuts


def _slice_direct(
    data: Arg, starts: Any = None, ends: Any = None, axes: Any = None, steps: Any = None
) -> Call | None:
    lists = all(isinstance(part, (list, tuple)) for part in (starts, ends))
    known_axes = axes is None or isinstance(axes, (list, tuple))
    forward = steps is None or (
        isinstance(steps, (list, tuple)) and all(isinstance(s, int) and s > 0 for s in steps)
    )
    if data.rank is None or not lists or not known_axes or not forward:
        return None
    if axes is not None and not all(isinstance(a, int) for a in axes):
        return None
    cuts = _slices(starts, ends, axes, steps, data.rank)
    while cuts and cuts[-1] == slice(None):
        cuts.pop()
    return Call(operator.getitem, (data, tuple(cuts)))


@op(
    "Slice",
    1,
    10,
    11,
    13,
    static=("starts", "ends", "axes", "steps"),
    layout=True,
    direct=_slice_direct,
)
def slice_(
    data: Tensor,
    starts: Ints,
    ends: Ints,
    axes: Ints | None = None,
    steps: Ints | None = None,
) -> Tensor:
    """Every step-th entry from start (included) to end (left out) along the axes.

    Places before the first or after the last entry are cut back, negative ones count from the
    end.  Source: ONNX operators, Slice 1-13.
    """
    cuts = _slices(starts, ends, axes, steps, data.dim())
    for axis, cut in enumerate(cuts):
        if cut.step is not None and cut.step < 0:
            places = range(data.shape[axis])[_reachable(cut, data.shape[axis])]
            index = torch.arange(len(places), device=data.device) * places.step + places.start
            data = in_bits(lambda x, a=axis, i=index: x.index_select(a, i), data)  # type: ignore[misc]
            cuts[axis] = slice(None)
    return data[tuple(cuts)]


def _reachable(cut: slice, size: int) -> slice:
    """A backward slice as Python reads it: an end before the first entry is no end at all."""
    end = None if cut.stop < -size else cut.stop
    return slice(cut.start, end, cut.step)


@op("Shape", 1, 13, 15, 19, 21, 23, 24, 25, differentiable=False, on_host=True)
def shape_(data: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    """The sizes of the axes from start to end, int64.  Source: ONNX operators, Shape 1-25."""
    return torch.tensor(tuple(data.shape)[start:end], dtype=torch.int64)


@op("Size", 1, 13, 19, 21, 23, 24, 25, differentiable=False, on_host=True)
def size(data: Tensor) -> Tensor:
    """The number of entries, int64.  Source: ONNX operators, Size 1-25."""
    return torch.tensor(torch.Size(data.shape).numel(), dtype=torch.int64)


@op("Expand", 8, 13, static=("shape",), layout=True)
def expand(x: Tensor, shape: Ints) -> Tensor:
    """Broadcast with a tensor of the given shape.  Source: ONNX operators, Expand 8-13."""
    wanted = torch.broadcast_shapes(tuple(x.shape), tuple(shape))
    return x.expand(wanted)


@op("Tile", 6, 13, static=("repeats",), layout=True)
def tile(x: Tensor, repeats: Ints) -> Tensor:
    """Copies side by side, `repeats` of them along each axis.  Source: ONNX operators, Tile."""
    return x.repeat(tuple(repeats))


@op("Tile", 1, static=("tiles", "axis"), layout=True)
def tile_axis(x: Tensor, tiles: Any, axis: Any) -> Tensor:
    """Copies side by side along one axis.  Source: ONNX operators, Tile 1."""
    tiles, axis = (v[0] if isinstance(v, list) else v for v in (tiles, axis))
    return torch.cat([x] * int(tiles), int(axis))


def _constant_of_shape_direct(shape: Any, *, value: Tensor | None = None) -> Call | None:
    if not isinstance(shape, (list, tuple)):
        return None
    value = torch.zeros(1) if value is None else value
    return Call(torch.full, (tuple(shape), value.item()), {"dtype": value.dtype})


@op(
    "ConstantOfShape",
    9,
    20,
    21,
    23,
    24,
    25,
    static=("shape",),
    differentiable=False,
    direct=_constant_of_shape_direct,
)
def constant_of_shape(shape: Ints, *, value: Tensor | None = None) -> Tensor:
    """A tensor of the given shape filled with one value (float 0 by default).

    Source: ONNX operators, ConstantOfShape 9-25.
    """
    if value is None:
        return torch.zeros(tuple(shape))
    return value.reshape(()).expand(tuple(shape)).clone()
