"""Attention and its relatives."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dns_onnx.converters.dtypes import torch_dtype
from dns_onnx.converters.registry import op

_MINUS_INFINITY = float("-inf")


def split_heads(x: Tensor, heads: int | None) -> Tensor:
    """[B, T, H * D] as [B, H, T, D]; a tensor of rank 4 is that already."""
    if x.dim() == 4 or heads is None:
        return x
    return x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """[B, H, T, D] as [B, T, H * D]."""
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], -1)


def repeat_heads(x: Tensor, heads: int) -> Tensor:
    """Each key or value head once for each query head that shares it."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], 1)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask (True = may attend, or what is added to the scores) as what is added."""
    if mask.dtype is not torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(
        ~mask, _MINUS_INFINITY
    )


def softmax_or_zero(scores: Tensor, masked: Tensor) -> Tensor:
    """Softmax over the last axis; a row that may attend to nothing is zero.

    masked: [..., rows, 1], True for such rows.
    """
    return torch.softmax(scores.masked_fill(masked, 0.0), -1).masked_fill(masked, 0.0)


def _bias(
    q: Tensor,
    keys: int,
    mask: Tensor | None,
    past: int,
    valid: Tensor | None,
    causal: int,
    left: int,
    right: int,
) -> Tensor | None:
    """What is added to the scores for mask, causality, window and padding."""
    queries = q.shape[2]
    bias: Tensor | None = None
    if mask is not None:
        bias = additive(mask, q.dtype)
        if bias.shape[-1] < keys:
            bias = F.pad(bias, (0, keys - bias.shape[-1]), value=_MINUS_INFINITY)
    allowed: Tensor | None = None
    column = torch.arange(keys, device=q.device)
    if causal or left >= 0 or right >= 0:
        row = torch.arange(queries, device=q.device).reshape(-1, 1)
        if valid is not None and not past:
            row = row + (valid.reshape(-1, 1, 1, 1) - queries)
        else:
            row = row + past
        allowed = torch.ones((), dtype=torch.bool, device=q.device)
        if causal:
            allowed = allowed & (column <= row)
        if left >= 0:
            allowed = allowed & (row - column <= left)
        if right >= 0:
            allowed = allowed & (column - row <= right)
    if valid is not None:
        within = column < valid.reshape(-1, 1, 1, 1)
        allowed = within if allowed is None else allowed & within
    if allowed is None:
        return bias
    extra = additive(allowed, q.dtype)
    return extra if bias is None else bias + extra


@op("Attention", 23, 24, 25)
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    nonpad_kv_seqlen: Tensor | None = None,
    *,
    is_causal: int = 0,
    kv_num_heads: int | None = None,
    q_num_heads: int | None = None,
    qk_matmul_output_mode: int = 0,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: int | None = None,
    left_window_size: int = -1,
    right_window_size: int = -1,
    outputs_: int = 1,
) -> tuple[Tensor, ...]:
    """softmax(scale * Q K' + bias) V, head by head.

    q, k, v: [B, H, T, D], or [B, T, H * D] with the numbers of heads given.
    Returns y, present key, present value and the scores of the stage asked for.
    Source: ONNX operators, Attention 23-25.
    """
    packed = q.dim() == 3
    q, k, v = (
        split_heads(q, q_num_heads),
        split_heads(k, kv_num_heads),
        split_heads(v, kv_num_heads),
    )
    present_key = k if past_key is None else torch.cat([past_key, k], 2)
    present_value = v if past_value is None else torch.cat([past_value, v], 2)
    keys = repeat_heads(present_key, q.shape[1])
    values = repeat_heads(present_value, q.shape[1])
    root = math.sqrt(1.0 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if q.dtype in (torch.float16, torch.bfloat16):
        root = torch.tensor(root, dtype=q.dtype).item()
    scores = (q * root) @ (keys * root).transpose(-1, -2)
    stages = [scores]
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
    stages.append(scores)
    past = 0 if past_key is None else past_key.shape[2]
    bias = _bias(
        q,
        keys.shape[2],
        attn_mask,
        past,
        nonpad_kv_seqlen,
        is_causal,
        left_window_size,
        right_window_size,
    )
    probabilities = scores if bias is None else scores + bias
    stages.append(probabilities)
    work = q.dtype if softmax_precision is None else torch_dtype(softmax_precision)
    probabilities = probabilities.to(work)
    if bias is None:
        probabilities = torch.softmax(probabilities, -1)
    else:
        nothing = (bias == _MINUS_INFINITY).all(-1, keepdim=True)
        probabilities = softmax_or_zero(probabilities, nothing)
    probabilities = probabilities.to(q.dtype)
    stages.append(probabilities)
    y = probabilities @ values
    if qk_matmul_output_mode == 0 and softcap > 0:
        shown = stages[1]
    else:
        shown = stages[qk_matmul_output_mode]
    result = (merge_heads(y) if packed else y, present_key, present_value, shown)
    return result[: max(outputs_, 1)]


@op("RotaryEmbedding", 23)
def rotary_embedding(
    x: Tensor,
    cos_cache: Tensor,
    sin_cache: Tensor,
    position_ids: Tensor | None = None,
    *,
    interleaved: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
) -> Tensor:
    """Pairs of entries of each head turned by an angle that depends on the position.

    x: [B, H, T, D], or [B, T, H * D] with num_heads.  cos_cache, sin_cache: [P, R / 2] with
    position_ids [B, T], else [B, T, R / 2]; R = rotary_embedding_dim or D entries turn.
    Source: ONNX operators, RotaryEmbedding 23.
    """
    heads = x.transpose(1, 2) if x.dim() == 4 else x.reshape(*x.shape[:2], num_heads, -1)
    size = rotary_embedding_dim or heads.shape[-1]
    cos, sin = cos_cache, sin_cache
    if position_ids is not None:
        cos, sin = cos[position_ids], sin[position_ids]
    cos, sin = cos.unsqueeze(2), sin.unsqueeze(2)
    turned, rest = heads[..., :size], heads[..., size:]
    if interleaved:
        first, second = turned[..., 0::2], turned[..., 1::2]
    else:
        first, second = turned.chunk(2, -1)
    real, imaginary = cos * first - sin * second, sin * first + cos * second
    if interleaved:
        turned = torch.stack([real, imaginary], -1).flatten(-2)
    else:
        turned = torch.cat([real, imaginary], -1)
    y = torch.cat([turned, rest], -1)
    return y.transpose(1, 2) if x.dim() == 4 else y.reshape(x.shape)


@op("LinearAttention", 27)
def linear_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_state: Tensor | None = None,
    decay: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    q_num_heads: int,
    kv_num_heads: int,
    chunk_size: int = 64,
    scale: float = 0.0,
    update_rule: str = "gated_delta",
) -> tuple[Tensor, Tensor]:
    """Attention with a running state instead of a cache: y, present state.

    query: [B, T, Hq * Dk].  key: [B, T, Hkv * Dk].  value: [B, T, Hkv * Dv].
    past_state: [B, Hkv, Dk, Dv].  decay (logarithmic): [B, T, Hkv] or [B, T, Hkv * Dk].
    beta: [B, T, Hkv] or [B, T, 1].  Computed in float32, step by step.
    Source: ONNX operators, LinearAttention 27.
    """
    work = torch.float64 if query.dtype is torch.float64 else torch.float32
    q = split_heads(query, q_num_heads).to(work)
    k, v = (split_heads(t, kv_num_heads).to(work) for t in (key, value))
    kept = None if decay is None else torch.exp(split_heads(decay, kv_num_heads).to(work))
    rate = None if beta is None else split_heads(beta, beta.shape[-1]).to(work)
    state = q.new_zeros(q.shape[0], kv_num_heads, k.shape[-1], v.shape[-1])
    if past_state is not None:
        state = past_state.to(work)
    factor = scale or 1.0 / math.sqrt(q.shape[-1])
    outputs = []
    for step in range(q.shape[2]):
        if kept is not None:
            state = state * kept[:, :, step].unsqueeze(-1)
        now, new = k[:, :, step].unsqueeze(-1), v[:, :, step].unsqueeze(-2)
        if rate is not None:
            new = rate[:, :, step].unsqueeze(-1) * (new - (now * state).sum(-2, keepdim=True))
        state = state + now * new
        shared = repeat_heads(state, q_num_heads)
        outputs.append(factor * (q[:, :, step].unsqueeze(-2) @ shared))
    y = merge_heads(torch.cat(outputs, 2)).to(query.dtype)
    return y, state.to(query.dtype if past_state is None else past_state.dtype)


@op("CausalConvWithState", 27, prunable=("weight",), bias="bias")
def causal_conv_with_state(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    past_state: Tensor | None = None,
    *,
    activation: str = "none",
) -> tuple[Tensor, Tensor]:
    """Convolution of each channel with its own past: y, the last k - 1 entries.

    x: [B, C, L].  weight: [C, 1, k].  bias: [C].  past_state: [B, C, k - 1].
    Source: ONNX operators, CausalConvWithState 27.
    """
    before = weight.shape[-1] - 1
    if past_state is None:
        past_state = x.new_zeros(x.shape[0], x.shape[1], before)
    extended = torch.cat([past_state, x], 2)
    y = F.conv1d(extended, weight, bias, groups=x.shape[1])
    if activation in ("silu", "swish"):
        y = F.silu(y.float()).to(y.dtype) if y.dtype is torch.float16 else F.silu(y)
    return y, extended[..., extended.shape[-1] - before :]


def flex_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    score_mod: Any = None,
    prob_mod: Any = None,
    scale: float | None = None,
    softmax_precision: int | None = None,
) -> Tensor:
    """softmax(score_mod(scale * Q K')), changed by prob_mod, times V.

    q: [B, Hq, L, D].  k: [B, Hkv, S, D].  v: [B, Hkv, S, Dv].  score_mod, prob_mod: functions
    of [B, Hq, L, S].  Source: ONNX preview operators, FlexAttention 1.
    """
    k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
    work = torch.float64 if q.dtype is torch.float64 else torch.float32
    work = work if softmax_precision is None else torch_dtype(softmax_precision)
    factor = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    scores = (q.to(work) @ k.to(work).transpose(-1, -2)) * factor
    scores = scores if score_mod is None else score_mod(scores)
    probabilities = torch.softmax(scores, -1)
    probabilities = probabilities if prob_mod is None else prob_mod(probabilities)
    return (probabilities.to(v.dtype) @ v).to(q.dtype)
