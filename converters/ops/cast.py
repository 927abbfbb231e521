"""Changes of element type."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dns_onnx.converters.dtypes import STRING, torch_dtype
from dns_onnx.converters.registry import Arg, Call, op

# elem -> (bits of mantissa, smallest exponent, largest value), kept in float32
_MINIFLOAT = {23: (1, 0, 6.0), 27: (3, 0, 7.5), 28: (2, -2, 28.0)}
# elem -> (bits, signed), kept in 8 bits
_SUBBYTE = {21: (4, False), 22: (4, True), 25: (2, False), 26: (2, True)}
_FLOAT8 = frozenset({17, 18, 19, 20})
_E8M0 = 24
_E4M3FN, _E4M3FN_LIMIT = 17, 464.0


def to_minifloat(x: Tensor, elem: int) -> Tensor:
    """X rounded to the nearest value (ties to even) of a 4- or 6-bit float, as float32."""
    mantissa, smallest, largest = _MINIFLOAT[elem]
    x = x.float()
    exponent = torch.frexp(x.abs()).exponent - 1
    quantum = torch.ldexp(torch.ones_like(x), exponent.clamp(min=smallest) - mantissa)
    rounded = torch.round(x / quantum) * quantum
    rounded = torch.where(x.isinf(), x, rounded)
    # these types have no NaN: it becomes zero
    return torch.where(x.isnan(), torch.zeros_like(x), rounded.clamp(-largest, largest))


def to_e8m0(x: Tensor, saturate: int, round_mode: str) -> Tensor:
    """The power of two near |x|, as float8_e8m0: rounded up, down or to the nearest."""
    x = x.float()
    mantissa, exponent = torch.frexp(x.abs())
    # frexp: x = mantissa * 2**exponent with mantissa in [0.5, 1)
    power = exponent - 1
    if round_mode == "up":
        power = power + (mantissa > 0.5)
    elif round_mode == "nearest":
        power = power + (mantissa >= 0.75)
    code = power + 127
    over = code > 254
    code = code.clamp(0, 254)
    lost = x.isnan() | ((over | x.isinf()) & (not saturate))
    code = torch.where(lost, torch.full_like(code, 255), torch.where(x.isinf(), 254, code))
    code = torch.where((x == 0) & ~lost, torch.zeros_like(code), code)
    return code.to(torch.uint8).view(torch.float8_e8m0fnu)


def to_float8(x: Tensor, elem: int, saturate: int) -> Tensor:
    """X in an 8-bit float type; what is too large becomes its largest value if `saturate`."""
    dtype = torch_dtype(elem)
    work = x.to(torch.float32) if x.itemsize == 1 or not x.is_floating_point() else x
    if saturate:
        largest = torch.finfo(dtype).max
        work = torch.where(work.isnan(), work, work.clamp(-largest, largest))
    elif elem == _E4M3FN:
        # beyond the last rounding boundary there is no infinity to go to, only NaN
        work = torch.where(work.abs() > _E4M3FN_LIMIT, torch.full_like(work, float("nan")), work)
    return work.to(dtype)


def to_subbyte(x: Tensor, elem: int) -> Tensor:
    """X as an integer of 4 or 2 bits, modulo its range, in 8."""
    bits, signed = _SUBBYTE[elem]
    whole = x.to(torch.int32) & ((1 << bits) - 1)
    if signed:
        whole = torch.where(whole >= 1 << (bits - 1), whole - (1 << bits), whole)
    return whole.to(torch_dtype(elem))


def to_element(
    x: Any, elem: int, saturate: int = 1, round_mode: str = "up", source: int = 0
) -> Any:
    """X in an ONNX element type.

    saturate: what overflows an 8-bit float becomes its largest value.  round_mode: for E8M0.
    source: x's own element type where it matters (strings).
    """
    if not isinstance(x, Tensor):
        return _from_strings(x, elem)
    if elem == STRING:
        return _to_strings(x)
    if elem in _MINIFLOAT:
        return to_minifloat(x, elem)
    if elem in _SUBBYTE:
        return to_subbyte(x, elem)
    if elem in _FLOAT8:
        return to_float8(x, elem, saturate)
    if elem == _E8M0:
        return to_e8m0(x, saturate, round_mode)
    if x.is_floating_point() and x.itemsize == 1 and x.dtype is not torch.float32:
        x = x.float()
    return x.to(torch_dtype(elem))


def _from_strings(x: Any, elem: int) -> Any:
    array = np.asarray(x, dtype=object)
    if elem == STRING:
        return array
    dtype = torch_dtype(elem)
    whole = not dtype.is_floating_point and dtype is not torch.bool
    read = np.array([int(s) if whole else float(s) for s in array.reshape(-1)])
    return to_element(torch.from_numpy(read.reshape(array.shape)), elem)


def _to_strings(x: Tensor) -> np.ndarray:
    values = x.detach().cpu()
    if values.is_floating_point():
        flat = [_float_text(v, values.dtype) for v in values.reshape(-1)]
    else:
        flat = [str(v) for v in values.reshape(-1).tolist()]
    return np.array(flat, dtype=object).reshape(tuple(values.shape))


def _float_text(value: Tensor, dtype: torch.dtype) -> str:
    number = value.float() if dtype in (torch.bfloat16,) or value.itemsize == 1 else value
    array = number.numpy()
    if np.isnan(array):
        return "NaN"
    if np.isinf(array):
        return "INF" if array > 0 else "-INF"
    return str(array[()])


def _cast_direct(x: Arg, *, to: Any, saturate: int = 1, round_mode: str = "up") -> Any:
    plain = {1, 2, 3, 5, 6, 7, 9, 10, 11, 16}
    if not isinstance(to, int) or to not in plain or x.elem not in plain:
        return None
    return x if to == x.elem else Call(torch.Tensor.to, (x, torch_dtype(to)))


@op("Cast", 1, 6, 9, 13, 19, 21, 23, 24, 25, 28, direct=_cast_direct)
def cast(x: Any, *, to: int | str, saturate: int = 1, round_mode: str = "up") -> Any:
    """X in another element type; floats lose their fraction on the way to integers.

    to: ONNX element type (schema 1: its name).  Source: ONNX operators, Cast 1-28.
    """
    from onnx import TensorProto

    elem = TensorProto.DataType.Value(to) if isinstance(to, str) else to
    return to_element(x, int(elem), saturate, round_mode)


@op("CastLike", 15, 19, 21, 23, 24, 25)
def cast_like(
    x: Any,
    target_type: Any,
    *,
    saturate: int = 1,
    round_mode: str = "up",
    types_: tuple[int, ...] = (),
) -> Any:
    """X in the element type of another operand.  Source: ONNX operators, CastLike 15-25."""
    from dns_onnx.converters.dtypes import element_type

    elem = types_[1] if len(types_) > 1 and types_[1] else element_type(target_type.dtype)
    return to_element(x, elem, saturate, round_mode)


@op("BitCast", 26, differentiable=False)
def bit_cast(x: Tensor, *, to: int) -> Tensor:
    """The same bits read as another element type of the same width.

    Source: ONNX operators, BitCast 26.
    """
    dtype = torch_dtype(to)
    if x.dtype is torch.bool or dtype is torch.bool:
        return x.to(torch.uint8).view(dtype) if x.dtype is torch.bool else x.view(torch.uint8) != 0
    return x.contiguous().view(dtype)
