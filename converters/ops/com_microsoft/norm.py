"""Normalisation with sums and embeddings fused into it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dns_onnx.converters.ops.com_microsoft.base import contrib
from dns_onnx.converters.ops.quantize import dequantize_linear
from dns_onnx.converters.registry import op


def _standardised(x: Tensor, epsilon: float, centred: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """The last axis normalised, its mean, and its inverse deviation."""
    mean = x.mean(-1, keepdim=True) if centred else x.new_zeros(())
    moved = x - mean if centred else x
    inverse = torch.rsqrt((moved * moved).mean(-1, keepdim=True) + epsilon)
    return moved * inverse, mean, inverse


@contrib("SkipLayerNormalization", multiple=True)
def skip_layer_normalization(
    x: Tensor,
    skip: Tensor,
    gamma: Tensor,
    beta: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    epsilon: float = 1e-12,
    outputs_: int = 1,
) -> tuple[Tensor, ...]:
    """LayerNorm(x + skip + bias) over the last axis; also mean, inverse deviation and the sum.

    Source: ONNX Runtime contrib operators, SkipLayerNormalization.
    """
    total = x + skip if bias is None else x + skip + bias
    normal, mean, inverse = _standardised(total, epsilon)
    y = normal * gamma
    return (y if beta is None else y + beta, mean, inverse, total)[:outputs_]


@op("SimplifiedLayerNormalization", 1, schema=False, multiple=True)
@contrib("SimplifiedLayerNormalization", multiple=True)
def simplified_layer_normalization(
    x: Tensor,
    scale: Tensor,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    outputs_: int = 1,
) -> tuple[Tensor, ...]:
    """X over the root of its mean square along the last axes, times the scale.

    Source: ONNX Runtime contrib operators, SimplifiedLayerNormalization.
    """
    axes = tuple(range(axis % x.dim(), x.dim()))
    work = x.float() if stash_type == 1 and x.dtype is not torch.float64 else x
    inverse = torch.rsqrt((work * work).mean(axes, keepdim=True) + epsilon)
    return ((work * inverse).to(x.dtype) * scale, inverse)[:outputs_]


@contrib("SkipSimplifiedLayerNormalization", multiple=True)
def skip_simplified_layer_normalization(
    x: Tensor,
    skip: Tensor,
    gamma: Tensor,
    bias: Tensor | None = None,
    *,
    epsilon: float = 1e-5,
    outputs_: int = 1,
) -> tuple[Tensor, ...]:
    """As SkipLayerNormalization, without centring.  Source: ONNX Runtime contrib operators."""
    total = x + skip if bias is None else x + skip + bias
    normal, mean, inverse = _standardised(total, epsilon, centred=False)
    return (normal * gamma, mean, inverse, total)[:outputs_]


@contrib(
    "EmbedLayerNormalization",
    multiple=True,
    prunable=("word_embedding", "position_embedding", "segment_embedding"),
)
def embed_layer_normalization(
    input_ids: Tensor,
    segment_ids: Tensor | None,
    word_embedding: Tensor,
    position_embedding: Tensor,
    segment_embedding: Tensor | None,
    gamma: Tensor,
    beta: Tensor,
    mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    *,
    epsilon: float = 1e-12,
    mask_index_type: int = 1,
    outputs_: int = 1,
) -> tuple[Tensor, ...]:
    """LayerNorm of word, position and segment embeddings; the length of each mask; their sum.

    input_ids: [B, T].  Source: ONNX Runtime contrib operators, EmbedLayerNormalization.
    """
    total = word_embedding[input_ids.long()]
    if position_ids is None:
        total = total + position_embedding[: input_ids.shape[1]]
    else:
        total = total + position_embedding[position_ids.long()]
    if segment_ids is not None and segment_embedding is not None:
        total = total + segment_embedding[segment_ids.long()]
    y = _standardised(total, epsilon)[0] * gamma + beta
    lengths = torch.zeros(input_ids.shape[0], dtype=torch.int32, device=input_ids.device)
    if mask is not None:
        lengths = mask.sum(1).to(torch.int32)
    return (y, lengths, total)[:outputs_]


@contrib("QEmbedLayerNormalization", multiple=True, differentiable=False)
def quantized_embed_layer_normalization(
    input_ids: Tensor,
    segment_ids: Tensor | None,
    *operands: Tensor,
    epsilon: float = 1e-12,
    outputs_: int = 1,
) -> tuple[Tensor, ...]:
    """EmbedLayerNormalization of quantised tables.

    operands: word, position and segment embeddings, gamma and beta; the mask; then their scales
    and zero points in the same order.  Source: ONNX Runtime contrib operators.
    """
    tables, mask, scales, zeros = operands[:5], operands[5], operands[6:11], operands[11:16]
    rows: list[Any] = [
        None if t is None else dequantize_linear(t, s, z)
        for t, s, z in zip(tables, scales, zeros, strict=True)
    ]
    word, position, segment, gamma, beta = rows
    return embed_layer_normalization(
        input_ids, segment_ids, word, position, segment, gamma, beta, mask,
        epsilon=epsilon, outputs_=outputs_,
    )  # fmt: skip
