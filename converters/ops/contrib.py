"""com.microsoft operators that ONNX Runtime's graph optimiser writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dns_onnx.converters.ops.conv import conv
from dns_onnx.converters.registry import op

_DOMAIN = "com.microsoft"


def activated(x: Tensor, activation: str | None, params: Sequence[float] | None = None) -> Tensor:
    """X after the activation that the optimiser fused into a node."""
    values = list(params or ())
    if not activation:
        return x
    if activation == "LeakyRelu":
        return F.leaky_relu(x, values[0] if values else 0.01)
    if activation == "Clip":
        return torch.clamp(x, *values)
    if activation == "HardSigmoid":
        alpha, beta = values or (0.2, 0.5)
        return torch.clamp(alpha * x + beta, 0.0, 1.0)
    plain = {
        "Relu": torch.relu,
        "Tanh": torch.tanh,
        "Sigmoid": torch.sigmoid,
        "HardSwish": F.hardswish,
        "Gelu": F.gelu,
    }
    return plain[activation](x)


@op("FusedConv", 1, domain=_DOMAIN, schema=False, prunable=("w",), bias="b")
def fused_conv(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    z: Tensor | None = None,
    *,
    activation: str = "",
    activation_params: Sequence[float] | None = None,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """activation(Conv(x, w, b) + z).  Source: ONNX Runtime contrib operators, FusedConv."""
    y = conv(
        x, w, b, auto_pad=auto_pad, dilations=dilations, group=group, pads=pads, strides=strides
    )
    return activated(y if z is None else y + z, activation, activation_params)


@op("FusedGemm", 1, domain=_DOMAIN, schema=False, prunable=("b",), bias="c")
def fused_gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    activation: str = "",
    activation_alpha: float = 0.01,
    activation_beta: float = 0.0,
    activation_gamma: float = 0.0,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    """activation(alpha * A' @ B' + beta * C).  Source: ONNX Runtime contrib operators."""
    y = alpha * ((a.t() if transA else a) @ (b.t() if transB else b))
    if c is not None:
        y = y + beta * c
    params = {"LeakyRelu": [activation_alpha]}.get(activation)
    return activated(y, activation, params)


@op("FusedMatMul", 1, domain=_DOMAIN, schema=False, prunable=("a", "b"))
@op("TransposeMatMul", 1, domain=_DOMAIN, schema=False, prunable=("a", "b"))
def fused_matmul(
    a: Tensor,
    b: Tensor,
    *,
    alpha: float = 1.0,
    transA: int = 0,
    transB: int = 0,
    transBatchA: int = 0,
    transBatchB: int = 0,
) -> Tensor:
    """Alpha * A' @ B', batched.

    transBatch: the axis before the last goes to the front of the batch axes.
    Source: ONNX Runtime contrib operators, FusedMatMul.
    """

    def turned(x: Tensor, last: int, batch: int) -> Tensor:
        if batch:
            x = x.movedim(0, -2)
        return x.transpose(-1, -2) if last and x.dim() > 1 else x

    y = turned(a, transA, transBatchA) @ turned(b, transB, transBatchB)
    return y if alpha == 1.0 else alpha * y


@op("Gelu", 1, domain=_DOMAIN, schema=False)
def gelu(x: Tensor) -> Tensor:
    """X times the normal distribution function.  Source: ONNX Runtime contrib operators."""
    return F.gelu(x)


@op("BiasGelu", 1, domain=_DOMAIN, schema=False)
def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """Gelu(x + bias).  Source: ONNX Runtime contrib operators."""
    return F.gelu(x + bias)


@op("FastGelu", 1, domain=_DOMAIN, schema=False)
def fast_gelu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Gelu(x + bias) by its tanh approximation.  Source: ONNX Runtime contrib operators."""
    return F.gelu(x if bias is None else x + bias, approximate="tanh")


@op("QuickGelu", 1, domain=_DOMAIN, schema=False)
def quick_gelu(x: Tensor, *, alpha: float = 1.702) -> Tensor:
    """X * sigmoid(alpha * x).  Source: ONNX Runtime contrib operators."""
    return x * torch.sigmoid(alpha * x)


@op("BiasAdd", 1, domain=_DOMAIN, schema=False)
def bias_add(x: Tensor, bias: Tensor, skip: Tensor) -> Tensor:
    """X + bias + skip.  Source: ONNX Runtime contrib operators."""
    return x + bias + skip


def _standardised(x: Tensor, epsilon: float, centred: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """The last axis normalised, its mean, and its inverse deviation."""
    mean = x.mean(-1, keepdim=True) if centred else x.new_zeros(())
    moved = x - mean if centred else x
    inverse = torch.rsqrt((moved * moved).mean(-1, keepdim=True) + epsilon)
    return moved * inverse, mean, inverse


@op("SkipLayerNormalization", 1, domain=_DOMAIN, schema=False, multiple=True)
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
@op("SimplifiedLayerNormalization", 1, domain=_DOMAIN, schema=False, multiple=True)
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


@op("SkipSimplifiedLayerNormalization", 1, domain=_DOMAIN, schema=False, multiple=True)
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


@op(
    "EmbedLayerNormalization",
    1,
    domain=_DOMAIN,
    schema=False,
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


@op("MatMulNBits", 1, domain=_DOMAIN, schema=False, bias="bias")
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


def _unpacked(packed: Tensor, bits: int) -> Tensor:
    """The small integers in each byte, low bits first: [N, bytes] to [N, bytes * 8 / bits]."""
    if bits == 8:
        return packed
    shifts = torch.arange(0, 8, bits, device=packed.device, dtype=torch.uint8)
    parts = (packed.unsqueeze(-1) >> shifts) & ((1 << bits) - 1)
    return parts.flatten(1)
