"""Format `coo`: ONNX's own SparseTensorProto, with int64 positions in the flattened weight."""

from __future__ import annotations

from onnx import AttributeProto, SparseTensorProto

from dns_onnx.converters.encodings.draft import Draft
from dns_onnx.converters.encodings.matrix import Matrix
from dns_onnx.converters.encodings.parts import Part, field_bytes
from dns_onnx.converters.encodings.sites import Site, initializer_index

import numpy as np

# Where the weight lay among the initializers, which are another list than the sparse ones.
POSITION_KEY = "dns_onnx.position"


def drafts(site: Site, matrix: Matrix) -> list[Draft]:
    """The one way to write the weight in this format."""
    values = Part(site.name, site.tensor.data_type, (matrix.nnz,))
    indices = Part("", 7, (matrix.nnz,))
    size = field_bytes(values.bytes() + indices.bytes() + 2 * len(matrix.shape))

    def write() -> None:
        sparse = SparseTensorProto(dims=matrix.shape)
        sparse.values.CopyFrom(values.tensor(matrix.values))
        sparse.indices.CopyFrom(indices.tensor(matrix.positions.astype(np.int64)))
        if site.tensor.doc_string:
            sparse.values.doc_string = site.tensor.doc_string
        if site.constant is not None:
            _write_constant(site, sparse)
            return
        at = initializer_index(site.graph, site.name)
        earlier = sum(_position(s) <= at for s in site.graph.sparse_initializer)
        sparse.values.metadata_props.add(key=POSITION_KEY, value=str(at + earlier))
        del site.graph.initializer[at]
        site.graph.sparse_initializer.append(sparse)

    return [Draft("coo int64", "sparse_initializer", size, write)]


def _write_constant(site: Site, sparse: SparseTensorProto) -> None:
    assert site.constant is not None
    sparse.values.ClearField("name")
    del site.constant.attribute[:]
    site.constant.attribute.add(
        name="sparse_value", type=AttributeProto.SPARSE_TENSOR, sparse_tensor=sparse
    )


def _position(sparse: SparseTensorProto) -> int:
    return int(next((e.value for e in sparse.values.metadata_props if e.key == POSITION_KEY), 0))
