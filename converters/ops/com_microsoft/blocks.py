"""Weights stored in a few bits, with a scale for each block."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dns_onnx.converters.ops.com_microsoft.base import contrib

_UINT8 = 2
_POSITIVE = [0.0, 0.0625 / 12, 8 / 12, 1.0, 4 / 12, 6 / 12, 2 / 12, 3 / 12]
_FP4 = [*_POSITIVE, *(-value for value in _POSITIVE)]
# the quantiles of a normal distribution, scaled to [-1, 1]
_NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
]  # fmt: skip


@contrib("MatMulNBits", bias="bias")
def matmul_nbits(
    a: Tensor,
    b: Tensor,
    scales: Tensor,
    zero_points: Tensor | None = None,
    g_idx: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    K: int,
    N: int,
    bits: int = 4,
    block_size: int,
    accuracy_level: int = 0,
    weight_prepacked: int = 0,
) -> Tensor:
    """A @ W' + bias with W [N, K] stored in few bits, a scale for each block of a row.

    b: uint8 [N, blocks, bytes], low bits first.  zero_points: packed the same way, or floats.
    Source: ONNX Runtime contrib operators, MatMulNBits.
    """
    blocks = b.shape[1]
    whole = _unpacked(b.reshape(N, -1), bits)[:, : blocks * block_size]
    rows = whole.reshape(N, blocks, block_size).to(scales.dtype)
    zero: Any = float(1 << (bits - 1))
    if zero_points is not None and zero_points.dtype is torch.uint8:
        zero = _unpacked(zero_points.reshape(N, -1), bits)[:, :blocks].to(scales.dtype)
        zero = zero.unsqueeze(-1)
    elif zero_points is not None:
        zero = zero_points.reshape(N, blocks, 1)
    weight = ((rows - zero) * scales.reshape(N, blocks, 1)).reshape(N, -1)[:, :K]
    return F.linear(a, weight.to(a.dtype), bias)


@contrib("GatherBlockQuantized")
def gather_block_quantized(
    data: Tensor,
    indices: Tensor,
    scales: Tensor,
    zero_points: Tensor | None = None,
    *,
    bits: int = 4,
    block_size: int = 128,
    gather_axis: int = 0,
    quantize_axis: int = 1,
    types_: tuple[int, ...] = (),
) -> Tensor:
    """Rows of an embedding stored in few bits, with a scale for each block along an axis.

    data: 4-bit integers, or uint8 with several in a byte, low bits first, along the last axis.
    Source: ONNX Runtime contrib operators, GatherBlockQuantized.
    """
    packed = bool(types_) and types_[0] == _UINT8 and bits < 8

    def whole(x: Tensor) -> Tensor:
        return _unpacked(x.flatten(0, -2), bits).unflatten(0, x.shape[:-1]) if packed else x

    def rows(x: Tensor) -> Tensor:
        return x.index_select(gather_axis, places)

    axis, gather_axis = quantize_axis % data.dim(), gather_axis % data.dim()
    places = indices.reshape(-1).long()
    picked = rows(whole(data)).to(scales.dtype)
    size = picked.shape[axis]

    def each(x: Tensor) -> Tensor:
        return rows(x).repeat_interleave(block_size, axis).narrow(axis, 0, size)

    zero: Any = 1 << (bits - 1) if bool(types_) and types_[0] == _UINT8 else 0
    if zero_points is not None:
        zero = each(whole(zero_points).narrow(axis, 0, scales.shape[axis]).to(scales.dtype))
    shape = (*data.shape[:gather_axis], *indices.shape)
    y: Tensor = (picked - zero) * each(scales)
    return y.reshape(*shape, *y.shape[gather_axis + 1 :])


@contrib("MatMulBnb4")
def matmul_bnb4(
    a: Tensor,
    b: Tensor,
    absmax: Tensor,
    *,
    K: int,
    N: int,
    block_size: int,
    quant_type: int,
    training_mode: int = 0,
    transB: int = 1,
) -> Tensor:
    """A @ W' with W [N, K] stored as 4-bit codes of FP4 (quant_type 0) or NF4 (1).

    b: two codes a byte, high bits first.  absmax: the largest entry of each block.
    Source: ONNX Runtime contrib operators, MatMulBnb4; Dettmers et al. 2023 (arXiv 2305.14314).
    """
    table = torch.tensor(_NF4 if quant_type else _FP4, dtype=absmax.dtype, device=a.device)
    flat = b.reshape(-1)
    codes = torch.stack([flat >> 4, flat & 15], -1).reshape(-1)[: N * K]
    scales = absmax.repeat_interleave(block_size)[: N * K]
    weight = (table[codes.long()] * scales).to(a.dtype).reshape(N, K)
    return a @ (weight.t() if transB else weight)


def _unpacked(packed: Tensor, bits: int) -> Tensor:
    """The small integers in each byte, low bits first: [N, bytes] to [N, bytes * 8 / bits]."""
    if bits == 8:
        return packed
    shifts = torch.arange(0, 8, bits, device=packed.device, dtype=torch.uint8)
    parts = (packed.unsqueeze(-1) >> shifts) & ((1 << bits) - 1)
    return parts.flatten(1)
