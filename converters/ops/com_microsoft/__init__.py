"""com.microsoft operators: what ONNX Runtime's optimiser and quantiser write.

Its layout-specific com.microsoft.nchwc operators are left out: they fit one machine's kernels.
"""

from __future__ import annotations

from dns_onnx.converters.ops.com_microsoft import (
    attention,
    blocks,
    fused,
    integer,
    norm,
    quantized,
    tensors,
)

__all__ = ["attention", "blocks", "fused", "integer", "norm", "quantized", "tensors"]
