"""A dense weight whose values are narrowed: for `--values float16` and `int8` only."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from dns_onnx.converters.encodings.draft import Draft, Replacement, put
from dns_onnx.converters.encodings.matrix import Array, Matrix
from dns_onnx.converters.encodings.parts import decode_node, node_bytes
from dns_onnx.converters.encodings.sites import Site
from dns_onnx.converters.encodings.values import coding


def drafts(site: Site, weight: Array, stem: str, code: str) -> list[Draft]:
    """The weight with every entry stored, widened in front of its readers; none for float32."""
    everything = Matrix(
        weight.shape,
        np.arange(weight.size, dtype=np.int64),
        np.ascontiguousarray(weight).reshape(-1),
    )
    coded, _ = coding(site, everything, stem, code, rows=False)
    if coded.code == "float32":
        return []
    parts = [coded.values(weight.shape, lambda: everything), *coded.scales(everything)]
    dense, finishing = coded.finished()
    nodes = [decode_node("Cast", [parts[0].name], dense, to=TensorProto.FLOAT), *finishing]
    size = sum(p.bytes() for p in parts) + node_bytes(nodes)

    def write() -> None:
        put(site, None, Replacement([p.tensor() for p in parts], nodes))

    return [Draft(f"dense{coded.note}", "Cast", size, write)]
