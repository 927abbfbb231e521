"""Matrix products."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dns_onnx.converters.registry import Arg, Call, op

_FLOATS = (1, 10, 11, 16)


def _gemm_direct(a: Arg, b: Arg, c: Arg | None = None, **attributes: Any) -> Call | None:
    """F.linear or torch.addmm, as in the same layer written by hand."""
    alpha, beta = attributes.pop("alpha", 1.0), attributes.pop("beta", 1.0)
    transposed_a, transposed_b = attributes.pop("transA", 0), attributes.pop("transB", 0)
    attributes.pop("broadcast", None)
    if attributes or alpha != 1.0 or a.elem not in _FLOATS:
        return None
    first: Any = Call(torch.t, (a,)) if transposed_a else a
    if c is None:
        if transposed_b:
            return Call(F.linear, (first, b))
        return Call(torch.mm, (first, b))
    if beta != 1.0 or c.rank not in (1, 2):
        return None
    if transposed_b and c.rank == 1 and b.shape is not None and b.shape[0] == c.shape[0]:  # type: ignore[index]
        return Call(F.linear, (first, b, c))
    second: Any = Call(torch.t, (b,)) if transposed_b else b
    return Call(torch.addmm, (c, first, second))


@op("Gemm", 1, 6, 7, 9, 11, 13, prunable=("b",), bias="c", direct=_gemm_direct)
def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
    broadcast: int = 0,
) -> Tensor:
    """Alpha * A' @ B' + beta * C.

    a: [M, K], or [K, M] if transA.  b: [K, N], or [N, K] if transB.  c: broadcasts to [M, N].
    Returns [M, N] in a's dtype.
    Source: ONNX operators, Gemm 1-13.
    """
    y = (a.t() if transA else a) @ (b.t() if transB else b)
    y = y if alpha == 1.0 else alpha * y
    if c is not None and beta != 0.0:
        y = y + (c if beta == 1.0 else beta * c)
    return y.to(a.dtype)


def _matmul_direct(a: Arg, b: Arg) -> Call | None:
    return Call(torch.matmul, (a, b)) if a.elem in _FLOATS else None


@op("MatMul", 1, 9, 13, prunable=("a", "b"), direct=_matmul_direct)
def matmul(a: Tensor, b: Tensor) -> Tensor:
    """A @ B over the last two axes, batched over the others.

    a: [..., M, K] or [K].  b: [..., K, N] or [K].  Source: ONNX operators, MatMul 1-13.
    """
    if a.is_floating_point():
        return torch.matmul(a, b)
    return torch.matmul(a.to(torch.int64), b.to(torch.int64)).to(a.dtype)


@op("Einsum", 12, 28, prunable=("inputs",))
def einsum(*inputs: Tensor, equation: str) -> Tensor:
    """Sum of products over the axes that the equation leaves out of its result.

    Source: ONNX operators, Einsum 12-28.
    """
    return torch.einsum(equation.replace(" ", ""), *inputs)
