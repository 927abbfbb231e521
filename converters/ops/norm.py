"""Normalisation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dns_onnx.converters.registry import Arg, Call, op


def _batch_norm_direct(
    x: Arg, scale: Arg, b: Arg, mean: Arg, var: Arg, **attributes: Any
) -> Call | None:
    """F.batch_norm with fixed statistics, where all types agree."""
    if attributes.get("training_mode", 0) or attributes.get("spatial", 1) != 1:
        return None
    if len({v.elem for v in (x, scale, b, mean, var)}) != 1 or (x.rank or 0) < 2:
        return None
    if attributes.pop("outputs_", 1) > 1:
        return None
    # torch's function takes no gradient to the statistics: they must be held, not computed
    if any(v.node.op != "call_module" for v in (mean, var)):
        return None
    epsilon = attributes.get("epsilon", 1e-5)
    return Call(torch.batch_norm, (x, scale, b, mean, var, False, 0.0, epsilon, True))


@op(
    "BatchNormalization",
    1,
    6,
    7,
    9,
    14,
    15,
    statistics=("mean", "var"),
    direct=_batch_norm_direct,
)
def batch_normalization(
    x: Tensor,
    scale: Tensor,
    b: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
    spatial: int = 1,
    is_test: int = 0,
    outputs_: int = 1,
    version_: int = 15,
) -> tuple[Tensor, ...]:
    """(x - mean) / sqrt(var + epsilon) * scale + b, a channel at a time.

    x: [N, C, d1, ..., dn].  scale, b, mean, var: [C].  spatial = 0 (schemas 1-7): one statistic
    for each entry of [C, d1, ..., dn].
    In training mode the batch's own mean and variance are used, and the running ones are
    returned: momentum * old + (1 - momentum) * new.  Schemas 1-9 train where they have five
    outputs, of which the last two are the batch's mean and (as in ONNX Runtime) the inverse
    deviation.
    Source: ONNX operators, BatchNormalization 1-15.
    """
    shape = (1, -1) + (1,) * (x.dim() - 2) if spatial else (1, *x.shape[1:])
    work = torch.promote_types(x.dtype, mean.dtype)
    current, spread = mean, var
    early = version_ < 14
    if training_mode or (early and outputs_ > 1 and not is_test):
        axes = [axis for axis in range(x.dim()) if axis != 1]
        current = x.to(work).mean(axes)
        spread = x.to(work).var(axes, unbiased=False)
    inverse = torch.rsqrt(spread.to(work) + epsilon)
    factor = scale.to(work).reshape(shape) * inverse.reshape(shape)
    y = (x.to(work) - current.to(work).reshape(shape)) * factor + b.to(work).reshape(shape)
    result = (y.to(x.dtype),)
    if current is mean:
        return result + (mean, var) * (outputs_ // 2)
    running = mean * momentum + current.to(mean.dtype) * (1 - momentum)
    running_var = var * momentum + spread.to(var.dtype) * (1 - momentum)
    return (*result, running, running_var, *((current, inverse) if early else ()))[:outputs_]


def _instance_norm_direct(x: Arg, scale: Arg, b: Arg, *, epsilon: float = 1e-5) -> Call | None:
    if (x.rank or 0) < 3 or {v.elem for v in (x, scale, b)} not in ({1}, {11}):
        return None
    return Call(torch.instance_norm, (x, scale, b, None, None, True, 0.0, epsilon, True))


@op("InstanceNormalization", 1, 6, 22, direct=_instance_norm_direct)
def instance_normalization(x: Tensor, scale: Tensor, b: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    """Normalise each channel of each sample by its own mean and variance.

    x: [N, C, d1, ..., dn].  scale, b: [C].  Source: ONNX operators, InstanceNormalization 1-22.
    """
    axes = tuple(range(2, x.dim()))
    shape = (1, -1) + (1,) * len(axes)
    centred = x - x.mean(axes, keepdim=True)
    variance = (centred * centred).mean(axes, keepdim=True)
    return centred * torch.rsqrt(variance + epsilon) * scale.reshape(shape) + b.reshape(shape)


def _layer_norm_direct(x: Arg, scale: Arg, b: Arg | None = None, **attributes: Any) -> Call | None:
    """F.layer_norm, where the normalised axes and types are known."""
    axis = attributes.get("axis", -1)
    if x.shape is None or scale.shape is None or attributes.pop("outputs_", 1) > 1:
        return None
    normal = x.shape[axis % len(x.shape) :]
    same = scale.shape == normal and (b is None or b.shape == normal) and None not in normal
    elems = {v.elem for v in (x, scale, b) if v is not None}
    if not same or elems not in ({1}, {11}):
        return None
    return Call(F.layer_norm, (x, normal, scale, b, attributes.get("epsilon", 1e-5)))


@op("LayerNormalization", 17, direct=_layer_norm_direct)
@op("LayerNormalization", 1, schema=False, multiple=True, direct=_layer_norm_direct)
def layer_normalization(
    x: Tensor,
    scale: Tensor,
    b: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    outputs_: int = 1,
) -> tuple[Tensor, ...]:
    """Normalise over the axes from `axis` on, scale and shift.

    Returns y, mean and inverse standard deviation (the last two in the stash type).
    Source: ONNX operators, LayerNormalization 17.
    """
    axes = tuple(range(axis % x.dim(), x.dim()))
    work = x.float() if stash_type == 1 and x.dtype is not torch.float64 else x
    mean = work.mean(axes, keepdim=True)
    centred = work - mean
    inverse = torch.rsqrt((centred * centred).mean(axes, keepdim=True) + epsilon)
    y = (centred * inverse).to(x.dtype) * scale
    return (y if b is None else y + b, mean, inverse)[: max(outputs_, 1)]


@op("LRN", 1, 13)
def lrn(
    x: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> Tensor:
    """X / (bias + alpha / size * sum of squares over `size` neighbouring channels) ** beta.

    x: [N, C, d1, ..., dn].  Source: ONNX operators, LRN 1-13.
    """
    flat = (x * x).reshape(x.shape[0], 1, x.shape[1], -1)
    before = (size - 1) // 2
    wide = F.pad(flat, (0, 0, before, size - 1 - before))
    total = wide.unfold(2, size, 1).sum(-1).reshape(x.shape)
    return x / (bias + alpha / size * total) ** beta


@op("LpNormalization", 1, 22)
def lp_normalization(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    """X divided by its p-norm along one axis (p = 1 or 2); zeros stay zero.

    Source: ONNX operators, LpNormalization 1-22.
    """
    norm = x.abs().sum(axis, keepdim=True) if p == 1 else _norm2(x, axis)
    return torch.where(norm == 0, torch.zeros_like(x), x / torch.where(norm == 0, 1, norm))


def _norm2(x: Tensor, axis: int) -> Tensor:
    squares = (x * x).sum(axis, keepdim=True)
    # the square root has no gradient at zero: keep it out of there
    return torch.where(squares == 0, squares, torch.sqrt(torch.where(squares == 0, 1, squares)))


@op("MeanVarianceNormalization", 9, 13)
@op("MeanVarianceNormalization", 1, schema=False)
def mean_variance_normalization(
    x: Tensor,
    *,
    axes: list[int] | None = None,
    across_channels: int = 0,
    normalize_variance: int = 1,
) -> Tensor:
    """(x - mean) / (standard deviation + 1e-9) over the axes.

    Source: ONNX operators, MeanVarianceNormalization 9-13.
    """
    if axes is None:
        axes = [0, 2, 3]
    mean = x.mean(axes, keepdim=True)
    deviation = torch.sqrt((x * x).mean(axes, keepdim=True) - mean * mean)
    return (x - mean) / (deviation + 1e-9)


@op("GroupNormalization", 21)
def group_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    *,
    num_groups: int,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> Tensor:
    """Normalise each group of channels of each sample, then scale and shift each channel.

    x: [N, C, d1, ..., dn].  scale, bias: [C].  Source: ONNX operators, GroupNormalization 21.
    """
    return _group(x, num_groups, epsilon, stash_type, scale, bias)


@op("GroupNormalization", 18, schema=True)
def group_normalization_18(
    x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5
) -> Tensor:
    """As GroupNormalization 21, with one scale and bias a group.

    scale, bias: [num_groups].  Source: ONNX operators, GroupNormalization 18.
    """
    each = x.shape[1] // num_groups
    scale, bias = scale.repeat_interleave(each), bias.repeat_interleave(each)
    return _group(x, num_groups, epsilon, 1, scale, bias)


def _group(
    x: Tensor, groups: int, epsilon: float, stash_type: int, scale: Tensor, bias: Tensor
) -> Tensor:
    work = x.float() if stash_type == 1 and x.dtype is not torch.float64 else x
    rows = work.reshape(x.shape[0], groups, -1)
    centred = rows - rows.mean(-1, keepdim=True)
    inverse = torch.rsqrt((centred * centred).mean(-1, keepdim=True) + epsilon)
    normal = (centred * inverse).reshape(x.shape).to(x.dtype)
    shape = (1, -1) + (1,) * (x.dim() - 2)
    return normal * scale.reshape(shape) + bias.reshape(shape)


@op("RMSNormalization", 23)
def rms_normalization(
    x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """X / sqrt(mean of squares + epsilon) * scale over the axes from `axis` on.

    Source: ONNX operators, RMSNormalization 23.
    """
    axes = tuple(range(axis % x.dim(), x.dim()))
    work = x.float() if stash_type == 1 and x.dtype is not torch.float64 else x
    inverse = torch.rsqrt((work * work).mean(axes, keepdim=True) + epsilon)
    return (work * inverse).to(x.dtype) * scale


def _dropout_direct(x: Arg, *operands: Any, **attributes: Any) -> Arg | None:
    trains = len(operands) > 1 and operands[1] is not None
    return None if trains or attributes.pop("outputs_", 1) > 1 else x


@op("Dropout", 1, 6, 7, 10, 12, 13, 22, static=("ratio", "training_mode"), pure=False)
def dropout(
    data: Tensor,
    ratio: float = 0.5,
    training_mode: bool = False,
    *,
    seed: int | None = None,
    is_test: int = 1,
    outputs_: int = 1,
    version_: int = 22,
) -> tuple[Tensor, ...]:
    """The data as they are, or in training mode each entry cut with probability `ratio`.

    Returns the output and the mask of kept entries.  Before schema 12 a model is one for
    inference: the mask is empty, as in ONNX Runtime, and up to schema 7 of the data's type.
    Source: ONNX operators, Dropout 1-22.
    """
    if isinstance(ratio, list):
        ratio = ratio[0]
    if not training_mode or ratio == 0:
        dtype = torch.bool if version_ >= 10 else data.dtype
        return (data, torch.full_like(data, version_ >= 12, dtype=dtype))[:outputs_]
    mask = _draws(data, seed) >= ratio
    kept = torch.where(mask, data / (1 - ratio), torch.zeros_like(data))
    return (kept, mask)[:outputs_]


def _draws(data: Tensor, seed: int | None) -> Tensor:
    """Uniform draws of the data's shape; with a seed, those of the specification's own code."""
    if seed is None:
        return torch.rand(data.shape, device=data.device)
    drawn = np.random.RandomState(seed).uniform(0.0, 1.0, tuple(data.shape))
    return torch.from_numpy(drawn).to(data.device, non_blocking=True)
