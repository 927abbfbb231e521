"""Up to which density a sparse kernel wins: the cost model that decides at export.

Measured in turn with ONNX Runtime's dense kernels on an AMD EPYC (2 cores), one thread, batch 1, by
`DNS_ONNX_KERNELS=avx2 python benchmarks/crossover.py` (docs/results/crossover_avx2.json): of layers
of one kind the highest crossing.  With AVX-512 a vector times a matrix pays up to 3 times the
density (docs/results/crossover.json); `dns_onnx.runtime.session` measures again on the machine at
hand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from onnx import NodeProto

# One channel a filter: bringing it into the kernel's panels costs more than any zeros save.
_DEPTHWISE = 0.0
_CONV = 0.80
_POINTWISE = 0.74

# A matrix times one row is bound by memory: the larger, the more of it the dense kernel waits for.
# (bytes of the dense weight up to which it holds, density)
_LINEAR = ((8 << 20, 0.21), (32 << 20, 0.38), (math.inf, 0.56))


def kernel_pays(node: NodeProto, shape: Sequence[int], density: float) -> bool:
    """Whether the sparse operator for `node` beats the dense one.

    shape: of the weight, filters or rows first.  density: fraction of its entries that is kept.
    """
    return density <= crossover(node, shape)


def crossover(node: NodeProto, shape: Sequence[int]) -> float:
    """The density at which the sparse and the dense kernel take the same time."""
    if node.op_type != "Conv":
        dense_bytes = 4 * math.prod(shape)
        return next(density for limit, density in _LINEAR if dense_bytes <= limit)
    if shape[1] == 1:
        return _DEPTHWISE
    return _POINTWISE if math.prod(shape[2:]) == 1 else _CONV
