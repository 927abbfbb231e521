"""Format `portable`: the decoding written out in standard operators, no function, no IR change."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, TensorProto, helper

from dns_onnx.converters.encodings.draft import Draft, Replacement, replace
from dns_onnx.converters.encodings.matrix import Layout, Matrix
from dns_onnx.converters.encodings.parts import Part, decode_node, node_bytes, part
from dns_onnx.converters.encodings.sites import Site

_INT64 = np.dtype(np.int64)


def drafts(site: Site, matrix: Matrix, stem: str) -> list[Draft]:
    """Every way to write the weight in this format: gaps of each index type."""
    return [
        _draft(site, matrix, layout, stem) for layout in matrix.layouts() if layout.kind == "gaps"
    ]


def _draft(site: Site, matrix: Matrix, layout: Layout, stem: str) -> Draft:
    parts = (
        Part(f"{stem}.values", site.tensor.data_type, (layout.stored,)),
        part(f"{stem}.gaps", layout.index_type, (layout.stored,)),
        part(f"{stem}.axis", _INT64, ()),
        part(f"{stem}.size", _INT64, (1,)),
        part(f"{stem}.shape", _INT64, (len(matrix.shape),)),
    )
    nodes = _nodes(site, stem)
    size = sum(p.bytes() for p in parts) + node_bytes(nodes)

    def write() -> None:
        stored = matrix.for_layout(layout)
        data = (
            stored.values,
            stored.indices(layout),
            np.array(0, np.int64),
            np.array([matrix.size], np.int64),
            np.array(matrix.shape, np.int64),
        )
        tensors = [p.tensor(array) for p, array in zip(parts, data, strict=True)]
        replace(site, None, Replacement(tensors, nodes))

    return Draft(f"portable {layout.name}", "ScatterElements", size, write)


def _nodes(site: Site, stem: str) -> list[NodeProto]:
    zero = helper.make_tensor("", site.tensor.data_type, [1], b"\0" * _width(site), raw=True)
    return [
        decode_node(stem, "Cast", [f"{stem}.gaps"], f"{stem}.steps", to=TensorProto.INT64),
        decode_node(stem, "CumSum", [f"{stem}.steps", f"{stem}.axis"], f"{stem}.positions"),
        decode_node(stem, "ConstantOfShape", [f"{stem}.size"], f"{stem}.zeros", value=zero),
        decode_node(
            stem,
            "ScatterElements",
            [f"{stem}.zeros", f"{stem}.positions", f"{stem}.values"],
            f"{stem}.flat",
            axis=0,
        ),
        decode_node(stem, "Reshape", [f"{stem}.flat", f"{stem}.shape"], site.name),
    ]


def _width(site: Site) -> int:
    return int(helper.tensor_dtype_to_np_dtype(site.tensor.data_type).itemsize)
