"""ONNX element types, TensorProtos and NumPy arrays as torch sees them."""

from __future__ import annotations

import sys

import ml_dtypes
import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

FLOATING = frozenset({1, 10, 11, 16, 17, 18, 19, 20, 23, 24, 27, 28})
TRAINABLE = frozenset({1, 10, 11, 16})
STRING = TensorProto.STRING

# torch has no 4- or 2-bit types: their values live in the next wider one.
_TORCH: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.UINT8: torch.uint8,
    TensorProto.INT8: torch.int8,
    TensorProto.UINT16: torch.uint16,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.BOOL: torch.bool,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.UINT32: torch.uint32,
    TensorProto.UINT64: torch.uint64,
    TensorProto.COMPLEX64: torch.complex64,
    TensorProto.COMPLEX128: torch.complex128,
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.FLOAT8E4M3FN: torch.float8_e4m3fn,
    TensorProto.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz,
    TensorProto.FLOAT8E5M2: torch.float8_e5m2,
    TensorProto.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
    21: torch.uint8,  # UINT4
    22: torch.int8,  # INT4
    23: torch.float32,  # FLOAT4E2M1
    24: torch.float8_e8m0fnu,
    25: torch.uint8,  # UINT2
    26: torch.int8,  # INT2
    27: torch.float32,  # FLOAT6E2M3
    28: torch.float32,  # FLOAT6E3M2
}
_WIDER = {
    "int4": np.int8,
    "uint4": np.uint8,
    "int2": np.int8,
    "uint2": np.uint8,
    "float4_e2m1fn": np.float32,
    "float6_e2m3fn": np.float32,
    "float6_e3m2fn": np.float32,
}
_ELEM = {dtype: elem for elem, dtype in reversed(_TORCH.items())}
# Types whose raw bytes torch holds as they are, with NumPy's name for them in a file's order.
_RAW: dict[int, str] = {
    TensorProto.FLOAT: "<f4",
    TensorProto.DOUBLE: "<f8",
    TensorProto.FLOAT16: "<f2",
    TensorProto.INT64: "<i8",
    TensorProto.INT32: "<i4",
    TensorProto.INT16: "<i2",
    TensorProto.INT8: "|i1",
    TensorProto.UINT8: "|u1",
    TensorProto.BOOL: "|b1",
}
UNSIGNED = frozenset({torch.uint16, torch.uint32, torch.uint64})


def torch_dtype(elem: int) -> torch.dtype:
    """The torch dtype that holds values of an ONNX element type; KeyError if there is none."""
    return _TORCH[elem]


def element_type(dtype: torch.dtype) -> int:
    """The ONNX element type of a torch dtype."""
    return _ELEM[dtype]


def to_torch(array: np.ndarray) -> Tensor | np.ndarray:
    """A tensor of the array's values; strings stay a NumPy object array.

    Read-only memory (a protobuf's, a memory map's) is copied, since torch may write into it.
    """
    if array.dtype.kind in "OUS":
        return array.astype(object)
    name = array.dtype.name
    if name in _WIDER:
        array = array.astype(_WIDER[name])
    elif array.dtype.kind == "V" or name == "bfloat16" or name.startswith("float8"):
        bits = array.view(np.int16 if array.dtype.itemsize == 2 else np.uint8)
        dtype: torch.dtype = getattr(torch, name)
        return torch.from_numpy(np.array(bits, order="C")).view(dtype)
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("="))
    owned = array if array.flags.writeable and array.flags.c_contiguous else np.array(array)
    return torch.from_numpy(np.ascontiguousarray(owned).reshape(array.shape))


def to_numpy(value: Tensor | np.ndarray) -> np.ndarray:
    """The values as NumPy holds them, detached and on the CPU; ml_dtypes for types it lacks."""
    if not isinstance(value, Tensor):
        return np.asarray(value)
    tensor = value.detach().cpu().contiguous().resolve_conj().resolve_neg()
    name = str(tensor.dtype).removeprefix("torch.")
    if name == "bfloat16":
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    if name.startswith("float8"):
        return tensor.view(torch.uint8).numpy().view(getattr(ml_dtypes, name))
    return tensor.numpy()


def proto_to_torch(proto: TensorProto) -> Tensor | np.ndarray:
    """The tensor that a TensorProto holds.

    External data (at the absolute path that the reader left) are mapped into memory copy-on-write,
    so that a large weight is never held twice; those marked "copied", which lie in the model's own
    file, are read from there, as the file may be written anew while the tensor lives.
    Raises ValueError if the data do not fill the shape.
    """
    plain = proto.data_type in _RAW
    if proto.data_location == TensorProto.EXTERNAL:
        info = {entry.key: entry.value for entry in proto.external_data}
        return _read(proto, info) if plain and "copied" in info else to_torch(_mapped(proto, info))
    if plain and proto.HasField("raw_data"):
        # into memory of torch's own, which is aligned for its kernels
        made, raw = _empty(proto), proto.raw_data
        target = made.numpy()
        if len(raw) != target.nbytes:
            raise ValueError(
                f"'{proto.name}': expected {target.nbytes} bytes of raw data for its dimensions "
                f"{list(proto.dims)}, got {len(raw)}"
            )
        np.copyto(target, np.frombuffer(raw, _RAW[proto.data_type]).reshape(target.shape))
        return made
    return to_torch(numpy_helper.to_array(proto))


def _empty(proto: TensorProto) -> Tensor:
    return torch.empty(tuple(proto.dims), dtype=_TORCH[proto.data_type])


def _read(proto: TensorProto, info: dict[str, str]) -> Tensor:
    made = _empty(proto)
    target = made.numpy().reshape(-1)
    with open(info["location"], "rb") as file:
        file.seek(int(info["offset"]))
        if file.readinto(target.view(np.uint8).data) != int(info["length"]):
            raise ValueError(f"'{proto.name}': the file ends before its data do")
    return made if sys.byteorder == "little" else torch.from_numpy(target.byteswap()).view_as(made)


def _mapped(proto: TensorProto, info: dict[str, str]) -> np.ndarray:
    offset, length = int(info["offset"]), int(info["length"])
    dtype = helper.tensor_dtype_to_np_dtype(proto.data_type)
    if dtype.name in _WIDER:
        bytes_ = np.memmap(info["location"], np.uint8, "r", offset, (length,)).tobytes()
        copy = TensorProto(dims=proto.dims, data_type=proto.data_type, raw_data=bytes_)
        return numpy_helper.to_array(copy)
    return np.memmap(info["location"], dtype, "c", offset, tuple(proto.dims))
