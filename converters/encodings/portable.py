"""Format `portable`: the decoding written out in standard operators, no function, no IR change."""

from __future__ import annotations

from functools import cache

import numpy as np
from onnx import NodeProto, TensorProto, helper

from dns_onnx.converters.encodings.draft import Draft, Replacement, put
from dns_onnx.converters.encodings.matrix import Layout, Matrix
from dns_onnx.converters.encodings.parts import (
    constant,
    decode_node,
    make_tensor,
    node_bytes,
    part,
)
from dns_onnx.converters.encodings.sites import Site
from dns_onnx.converters.encodings.values import Coding, coding


def drafts(site: Site, matrix: Matrix, stem: str, code: str) -> list[Draft]:
    """Every way to write the weight in this format: gaps of each index type.

    stem: what the names of the new tensors begin with.  code: of the values.
    """
    coded, _ = coding(site, matrix, stem, code, rows=False)
    return [_draft(coded, matrix, lay) for lay in matrix.layouts() if lay.kind == "gaps"]


def _draft(coded: Coding, matrix: Matrix, layout: Layout) -> Draft:
    stem, count = coded.stem, (layout.stored,)
    stored = cache(lambda: matrix.for_layout(layout))
    parts = [
        coded.values(count, stored),
        part(f"{stem}.gaps", layout.index_type, count, lambda: stored().indices(layout)),
        constant(f"{stem}.axis", 0),
        constant(f"{stem}.size", [matrix.size]),
        constant(f"{stem}.shape", matrix.shape),
        *coded.scales(matrix, rows=False),
    ]
    nodes = _nodes(coded)
    size = sum(p.bytes() for p in parts) + node_bytes(nodes)

    def write() -> None:
        put(coded.site, None, Replacement([p.tensor() for p in parts], nodes))

    return Draft(f"portable {layout.name}{coded.note}", "ScatterElements", size, write)


def _nodes(coded: Coding) -> list[NodeProto]:
    """Cast, CumSum, ScatterElements into zeros, Reshape; in the weight's own type if it can be."""
    stem, kind = coded.stem, coded.site.tensor.data_type
    values, widening = f"{stem}.values", list[NodeProto]()
    if coded.code != "float32":
        (values, widening), kind = coded.widened(None), TensorProto.FLOAT
    zero = make_tensor("", np.zeros(1, helper.tensor_dtype_to_np_dtype(kind)))
    dense, finishing = coded.finished(kind)
    steps, positions = f"{stem}.steps", f"{stem}.positions"
    zeros, flat = f"{stem}.zeros", f"{stem}.flat"
    return [
        *widening,
        decode_node("Cast", [f"{stem}.gaps"], steps, to=TensorProto.INT64),
        decode_node("CumSum", [steps, f"{stem}.axis"], positions),
        decode_node("ConstantOfShape", [f"{stem}.size"], zeros, value=zero),
        decode_node("ScatterElements", [zeros, positions, values], flat, axis=0),
        decode_node("Reshape", [flat, f"{stem}.shape"], dense),
        *finishing,
    ]
