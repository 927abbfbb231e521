"""Random numbers.  A node's own seed makes its draws repeat at every call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dns_onnx.converters.dtypes import torch_dtype
from dns_onnx.converters.registry import op


def _generator(seed: float | None, device: torch.device | str) -> torch.Generator | None:
    if seed is None:
        return None
    return torch.Generator(device).manual_seed(int(seed))


def _dtype(dtype: int | None, like: Tensor) -> torch.dtype:
    if dtype is not None:
        return torch_dtype(dtype)
    return like.dtype if like.is_floating_point() else torch.float32


@op("RandomNormal", 1, 22, pure=False, differentiable=False)
def random_normal(
    *,
    shape: Sequence[int],
    dtype: int = 1,
    mean: float = 0.0,
    scale: float = 1.0,
    seed: float | None = None,
) -> Tensor:
    """Normal draws of the given shape.  Source: ONNX operators, RandomNormal 1-22."""
    draws = torch.randn(tuple(shape), generator=_generator(seed, "cpu"))
    return (draws * scale + mean).to(torch_dtype(dtype))


@op("RandomNormalLike", 1, 22, pure=False, differentiable=False)
def random_normal_like(
    x: Tensor,
    *,
    dtype: int | None = None,
    mean: float = 0.0,
    scale: float = 1.0,
    seed: float | None = None,
) -> Tensor:
    """Normal draws of X's shape.  Source: ONNX operators, RandomNormalLike 1-22."""
    draws = torch.randn(x.shape, generator=_generator(seed, x.device), device=x.device)
    return (draws * scale + mean).to(_dtype(dtype, x))


@op("RandomUniform", 1, 22, pure=False, differentiable=False)
def random_uniform(
    *,
    shape: Sequence[int],
    dtype: int = 1,
    low: float = 0.0,
    high: float = 1.0,
    seed: float | None = None,
) -> Tensor:
    """Uniform draws of the given shape.  Source: ONNX operators, RandomUniform 1-22."""
    draws = torch.rand(tuple(shape), generator=_generator(seed, "cpu"))
    return (draws * (high - low) + low).to(torch_dtype(dtype))


@op("RandomUniformLike", 1, 22, pure=False, differentiable=False)
def random_uniform_like(
    x: Tensor,
    *,
    dtype: int | None = None,
    low: float = 0.0,
    high: float = 1.0,
    seed: float | None = None,
) -> Tensor:
    """Uniform draws of X's shape.  Source: ONNX operators, RandomUniformLike 1-22."""
    draws = torch.rand(x.shape, generator=_generator(seed, x.device), device=x.device)
    return (draws * (high - low) + low).to(_dtype(dtype, x))


@op("Bernoulli", 15, 22, pure=False, differentiable=False)
def bernoulli(x: Tensor, *, dtype: int | None = None, seed: float | None = None) -> Tensor:
    """1 with the probability that X gives, else 0.  Source: ONNX operators, Bernoulli 15-22."""
    draws = torch.rand(x.shape, generator=_generator(seed, x.device), device=x.device)
    return (draws < x).to(x.dtype if dtype is None else torch_dtype(dtype))


@op("Multinomial", 7, 22, pure=False, differentiable=False)
def multinomial(
    x: Tensor, *, dtype: int = 6, sample_size: int = 1, seed: float | None = None
) -> Tensor:
    """Classes drawn with the logarithms of their probabilities.

    x: [B, C].  Returns [B, sample_size].  Source: ONNX operators, Multinomial 7-22.
    """
    weights = torch.softmax(x.float(), -1)
    drawn = torch.multinomial(
        weights, sample_size, replacement=True, generator=_generator(seed, x.device)
    )
    return drawn.to(torch_dtype(dtype))
