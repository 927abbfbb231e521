"""Element types that torch stores but hardly computes with: uint16, uint32, uint64, float8."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dns_onnx.converters.dtypes import UNSIGNED, torch_dtype
from dns_onnx.converters.registry import Arg, Call, Direct

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_SIGN = -(2**63)
# Element types for which torch's own functions do all that ONNX asks.
PLAIN = frozenset({1, 2, 3, 5, 6, 7, 10, 11, 16})


def in_int64(function: Callable[..., Any], *tensors: Tensor, **keywords: Any) -> Any:
    """`function` of the tensors; unsigned ones are computed in int64, modulo their own range."""
    dtype = tensors[0].dtype
    if dtype not in UNSIGNED:
        return function(*tensors, **keywords)
    result = function(*(_wide(t) for t in tensors), **keywords)
    if isinstance(result, tuple):
        return tuple(_narrow(part, dtype) for part in result)
    return _narrow(result, dtype)


def ordered(function: Callable[..., Any], *tensors: Tensor, **keywords: Any) -> Any:
    """Like `in_int64` for a function that compares: uint64 keeps its order above 2**63."""
    if tensors[0].dtype is not torch.uint64:
        return in_int64(function, *tensors, **keywords)
    result = function(*(t.view(torch.int64) ^ _SIGN for t in tensors), **keywords)
    if isinstance(result, tuple):
        return tuple(_unflip(part) for part in result)
    return _unflip(result)


def in_bits(function: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
    """`function`, which only moves entries, over the raw bits where torch lacks the type."""
    if tensor.dtype in UNSIGNED or (tensor.is_floating_point() and tensor.itemsize == 1):
        return function(tensor.view(_BITS[tensor.itemsize])).view(tensor.dtype)
    return function(tensor)


def plain(target: Callable[..., Any]) -> Callable[..., Direct]:
    """A `direct` rule: call `target` itself where its type is one that torch computes with."""

    def rule(*operands: Arg, **attributes: Any) -> Call | None:
        if attributes or any(o is None or o.elem not in PLAIN for o in operands):
            return None
        return Call(target, operands)

    return rule


def scalar(value: Any) -> Any:
    """The Python number in a literal operand, whatever its rank."""
    while isinstance(value, list):
        value = value[0]
    return value


def as_tensor(value: Any, like: Tensor) -> Tensor:
    """A literal operand as a tensor of the same type, on the same device."""
    if isinstance(value, Tensor):
        return value
    return torch.full((), scalar(value), dtype=like.dtype, device=like.device)


def cast_to(tensor: Tensor, elem: int) -> Tensor:
    """The tensor in the torch dtype of an ONNX element type."""
    return tensor.to(torch_dtype(elem))


def _wide(tensor: Tensor) -> Tensor:
    if tensor.dtype is torch.uint64:
        return tensor.view(torch.int64)
    return tensor.to(torch.int64)


def _narrow(part: Any, dtype: torch.dtype) -> Any:
    if not isinstance(part, Tensor) or part.dtype is not torch.int64:
        return part
    return part.view(torch.uint64) if dtype is torch.uint64 else part.to(dtype)


def _unflip(part: Any) -> Any:
    if not isinstance(part, Tensor) or part.dtype is not torch.int64:
        return part
    return (part ^ _SIGN).view(torch.uint64)
