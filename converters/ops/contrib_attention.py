"""com.microsoft attention operators."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dns_onnx.converters.ops.attention import additive, merge_heads, split_heads
from dns_onnx.converters.registry import op

_DOMAIN = "com.microsoft"


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


@op("Attention", 1, domain=_DOMAIN, schema=False, multiple=True, prunable=("weights",), bias="bias")
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
    q, k, v = (split_heads(part, num_heads) for part in torch.split(mixed, sizes, -1))
    if past is not None:
        k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
    factor = scale or 1.0 / math.sqrt(q.shape[-1])
    hidden = _key_bias(mask_index, k.shape[2], q.shape[2], mask_filter_value, q)
    y = _attend(q, k, v, factor, (hidden, attention_bias), unidirectional)
    present: Any = torch.stack([k, v]) if outputs_ > 1 else None
    return (merge_heads(y), present)[:outputs_]


@op("MultiHeadAttention", 1, domain=_DOMAIN, schema=False, multiple=True)
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
