"""The forms in which a weight can be stored: `csr`, `portable`, `coo` and `dense`."""

from __future__ import annotations

from dns_onnx.converters.encodings.dense import is_encoded, to_dense

FORMATS = ("csr", "portable", "coo", "dense")

__all__ = ["FORMATS", "is_encoded", "to_dense"]
