"""The operators by family; importing this package fills the registry."""

from __future__ import annotations

from dns_onnx.converters.ops import (
    activation,
    arithmetic,
    cast,
    conv,
    index,
    logic,
    math,
    matmul,
    microsoft,
    ml,
    norm,
    pool,
    quantize,
    reduce,
    shape,
)

__all__ = [
    "activation",
    "arithmetic",
    "cast",
    "conv",
    "index",
    "logic",
    "math",
    "matmul",
    "microsoft",
    "ml",
    "norm",
    "pool",
    "quantize",
    "reduce",
    "shape",
]
