"""com.microsoft attention operators."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dns_onnx.converters.ops.attention import (
    additive,
    merge_heads,
    repeat_heads,
    rotary_embedding,
    split_heads,
)
from dns_onnx.converters.ops.com_microsoft.base import contrib, only
from dns_onnx.converters.ops.widths import scalar

# The keys of an Attention node stay apart from its past, and are turned by a node of their own.
ON_CPU = only(do_rotary=0, past_present_share_buffer=0)


def _key_bias(
    mask: Tensor | None, keys: int, queries: int, fill: float, like: Tensor
) -> Tensor | None:
    """What a mask of contrib attention adds to the scores.

    mask: lengths [B], or 0 = hidden in [B, keys], [B, queries, keys] or [B, 1, keys, keys].
    """
    if mask is None:
        return None
    if mask.dim() == 1:
        column = torch.arange(keys, device=mask.device)
        shown = column < mask[: like.shape[0]].reshape(-1, 1)
        shown = shown.reshape(-1, 1, 1, keys)
    elif mask.dim() == 2:
        shown = (mask != 0).reshape(mask.shape[0], 1, 1, -1)
    elif mask.dim() == 3:
        shown = (mask != 0).unsqueeze(1)
    else:
        shown = (mask != 0)[:, :, keys - queries : keys, :keys]
    return torch.zeros(shown.shape, dtype=like.dtype, device=like.device).masked_fill(~shown, fill)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, scale: float, biases: Sequence[Tensor | None], causal: int
) -> Tensor:
    """softmax(scale * Q K' + biases) V for [B, H, T, D]."""
    scores = scale * (q @ k.transpose(-1, -2))
    for bias in biases:
        if bias is not None:
            scores = scores + bias
    if causal:
        queries, keys = scores.shape[-2:]
        lower = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)
        scores = scores + additive(lower, q.dtype)
    return torch.softmax(scores, -1) @ v


def self_attention(
    mixed: Tensor,
    sizes: Sequence[int],
    heads: int,
    scale: float,
    fill: float,
    causal: int,
    mask: Tensor | None,
    past: Tensor | None,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Attention of projected data: y, and the present keys and values [2, B, H, S, D].

    mixed: [B, T, Q + K + V].  past: [2, B, H, P, D].  scale: 0 = 1 / sqrt(D).
    """
    q, k, v = (split_heads(part, heads) for part in torch.split(mixed, list(sizes), -1))
    if past is not None:
        k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
    hidden = _key_bias(mask, k.shape[2], q.shape[2], fill, q)
    y = _attend(q, k, v, scale or 1.0 / math.sqrt(q.shape[-1]), (hidden, bias), causal)
    return merge_heads(y), torch.stack([k, v]) if k.shape == v.shape else k


@contrib("Attention", multiple=True, prunable=("weights",), bias="bias", direct=ON_CPU)
def attention(
    x: Tensor,
    weights: Tensor,
    bias: Tensor | None = None,
    mask_index: Tensor | None = None,
    past: Tensor | None = None,
    attention_bias: Tensor | None = None,
    past_sequence_length: Tensor | None = None,
    *,
    num_heads: int,
    unidirectional: int = 0,
    qkv_hidden_sizes: Sequence[int] | None = None,
    mask_filter_value: float = -10000.0,
    scale: float = 0.0,
    do_rotary: int = 0,
    past_present_share_buffer: int = 0,
    rotary_embedding_dim: int = 0,
    outputs_: int = 1,
) -> tuple[Tensor, ...]:
    """Self-attention with its own projections: y, present keys and values.

    x: [B, T, I].  weights: [I, Q + K + V].  bias: [Q + K + V].  past: [2, B, H, P, D].
    Source: ONNX Runtime contrib operators, Attention.
    """
    mixed = x @ weights if bias is None else x @ weights + bias
    sizes = list(qkv_hidden_sizes or [weights.shape[1] // 3] * 3)
    heads = num_heads, scale, mask_filter_value, unidirectional
    return self_attention(mixed, sizes, *heads, mask_index, past, attention_bias)[:outputs_]


@contrib("MultiHeadAttention", multiple=True)
def multi_head_attention(
    query: Tensor,
    key: Tensor | None = None,
    value: Tensor | None = None,
    bias: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
    attention_bias: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    *,
    num_heads: int,
    mask_filter_value: float = -10000.0,
    scale: float = 0.0,
    unidirectional: int = 0,
    outputs_: int = 1,
) -> tuple[Tensor, ...]:
    """Attention of projected queries, keys and values: y, present key, present value.

    query: [B, T, H * D], or [B, T, H, 3, D] packed.  key: [B, S, H * D], [B, H, S, D], or
    [B, S, H, 2, D] packed with the values.  bias: [3 * H * D].
    Source: ONNX Runtime contrib operators, MultiHeadAttention.
    """
    if query.dim() == 5:
        query, key, value = (query[:, :, :, i].flatten(2) for i in range(3))
    elif key is not None and key.dim() == 5:
        key, value = (key[:, :, :, i].flatten(2) for i in range(2))
    key, value = query if key is None else key, query if value is None else value
    if bias is not None:
        width = query.shape[-1]
        query = query + bias[:width]
        key = key + bias[width : 2 * width] if key.dim() == 3 else key
        value = value + bias[2 * width :] if value.dim() == 3 else value
    q, k, v = (split_heads(t, num_heads) for t in (query, key, value))
    if past_key is not None and past_value is not None:
        k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
    factor = scale or 1.0 / math.sqrt(q.shape[-1])
    hidden = _key_bias(key_padding_mask, k.shape[2], q.shape[2], mask_filter_value, q)
    y = _attend(q, k, v, factor, (hidden, attention_bias), unidirectional)
    return (merge_heads(y), k, v)[:outputs_]


@contrib("RotaryEmbedding", direct=only(is_packed_batching=0, scale=1.0))
def rotary_embedding_microsoft(
    x: Tensor,
    position_ids: Tensor,
    cos_cache: Tensor,
    sin_cache: Tensor,
    *,
    interleaved: int = 0,
    is_packed_batching: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
    scale: float = 1.0,
) -> Tensor:
    """As ai.onnx RotaryEmbedding.

    x: [B, T, H * D] or [B, H, T, D].  position_ids: [B, T], or [1], the position of the first.
    Source: ONNX Runtime contrib operators, RotaryEmbedding.
    """
    steps = x.shape[-2]
    if position_ids.dim() < 2:
        first = position_ids.reshape(1, 1) + torch.arange(steps, device=x.device)
        position_ids = first.expand(x.shape[0], steps)
    width = rotary_embedding_dim or 2 * cos_cache.shape[1]
    heads = num_heads or x.shape[-1] // width
    return rotary_embedding(
        x, cos_cache, sin_cache, position_ids,
        interleaved=interleaved, num_heads=heads, rotary_embedding_dim=rotary_embedding_dim,
    )  # fmt: skip


@contrib(
    "GroupQueryAttention",
    multiple=True,
    static=("total_sequence_length",),
    direct=only(
        causal=1,
        k_quant_type="NONE",
        kv_cache_bit_width=0,
        qk_output=0,
        sliding_window_cache=0,
        v_quant_type="NONE",
    ),
)
def group_query_attention(
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    past_key: Tensor | None,
    past_value: Tensor | None,
    seqlens_k: Tensor,
    total_sequence_length: Any,
    cos_cache: Tensor | None = None,
    sin_cache: Tensor | None = None,
    position_ids: Tensor | None = None,
    attention_bias: Tensor | None = None,
    head_sink: Tensor | None = None,
    *,
    num_heads: int,
    kv_num_heads: int,
    do_rotary: int = 0,
    local_window_size: int = -1,
    rotary_interleaved: int = 0,
    scale: float = 0.0,
    smooth_softmax: int = 0,
    softcap: float = 0.0,
    outputs_: int = 3,
    **unused: Any,
) -> tuple[Tensor, ...]:
    """Causal attention in which several query heads share a key: y, present key and value.

    query: [B, T, H * D], or all three packed, [B, T, (H + 2 K) * D].  key, value: [B, T, K * D].
    past_key, past_value: [B, K, P, D].  seqlens_k: [B], the last valid position of each sample.
    Source: ONNX Runtime contrib operators, GroupQueryAttention.
    """
    if key is None or value is None:
        width = query.shape[-1] // (num_heads + 2 * kv_num_heads)
        sizes = [num_heads * width, kv_num_heads * width, kv_num_heads * width]
        query, key, value = torch.split(query, sizes, -1)
    steps = query.shape[1]
    start = (seqlens_k.reshape(-1, 1) + 1 - steps).clamp(min=0).long()
    place = start + torch.arange(steps, device=query.device)
    if do_rotary and cos_cache is not None and sin_cache is not None:
        where = place if position_ids is None else position_ids
        how = {"interleaved": rotary_interleaved}
        query = rotary_embedding(query, cos_cache, sin_cache, where, num_heads=num_heads, **how)
        key = rotary_embedding(key, cos_cache, sin_cache, where, num_heads=kv_num_heads, **how)
    q = split_heads(query, num_heads)
    total = int(scalar(total_sequence_length))
    k = _cached(split_heads(key, kv_num_heads), past_key, place, total)
    v = _cached(split_heads(value, kv_num_heads), past_value, place, total)
    scores = q @ repeat_heads(k, num_heads).mT * (scale or 1.0 / math.sqrt(q.shape[-1]))
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    column = torch.arange(k.shape[2], device=q.device)
    row = place[:, None, :, None]
    seen = column <= row
    if local_window_size > 0:
        seen = seen & (column > row - local_window_size)
    scores = scores + additive(seen, q.dtype)
    if attention_bias is not None:
        scores = scores + F.pad(attention_bias, (0, k.shape[2] - attention_bias.shape[-1]))
    if smooth_softmax or head_sink is not None:
        sink = q.new_zeros(num_heads) if head_sink is None else head_sink
        sink = sink.reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        weights = torch.softmax(torch.cat([scores, sink], -1), -1)[..., :-1]
    else:
        weights = torch.softmax(scores, -1)
    y = merge_heads(weights @ repeat_heads(v, num_heads))
    return (y, k, v)[:outputs_]


def _cached(new: Tensor, past: Tensor | None, place: Tensor, total: int) -> Tensor:
    """Past keys or values with the new ones written at their places.

    new: [B, K, T, D].  past: [B, K, P, D].  place: [B, T].  Returns [B, K, max(P, total), D].
    """
    size = total if past is None else max(past.shape[2], total)
    old = new[:, :, :0] if past is None else past
    room = F.pad(old, (0, 0, 0, size - old.shape[2]))
    return room.scatter(2, place[:, None, :, None].expand(new.shape), new)
