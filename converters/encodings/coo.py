"""Format `coo`: ONNX's own SparseTensorProto, with int64 positions in the flattened weight."""

from __future__ import annotations

import numpy as np
from onnx import AttributeProto, NodeProto, SparseTensorProto, TensorProto

from dns_onnx.converters.encodings.draft import Draft
from dns_onnx.converters.encodings.matrix import Matrix
from dns_onnx.converters.encodings.parts import field_bytes, make_tensor, tensor_bytes
from dns_onnx.converters.encodings.sites import Site, initializer_index, node_index

# Where the weight lay among the initializers, which are another list than the sparse ones.
POSITION_KEY = "dns_onnx.position"

# Constant has its attribute sparse_value since this operator set; in older ones the weight becomes
# an initializer.
CONSTANT_OPSET = 11


def drafts(site: Site, matrix: Matrix, opset: int) -> list[Draft]:
    """The one way to write the weight in this format, in a model of operator set `opset`."""
    count = (matrix.nnz,)
    values = tensor_bytes(site.name, site.tensor.data_type, count)
    indices = tensor_bytes("", TensorProto.INT64, count)
    size = field_bytes(values + indices + 2 * len(matrix.shape))

    def write() -> None:
        sparse = SparseTensorProto(dims=matrix.shape)
        sparse.values.CopyFrom(make_tensor(site.name, matrix.values))
        sparse.indices.CopyFrom(make_tensor("", matrix.positions.astype(np.int64)))
        if site.tensor.doc_string:
            sparse.values.doc_string = site.tensor.doc_string
        if site.constant is None:
            at = initializer_index(site.graph, site.name)
            sparse.values.metadata_props.add(key=POSITION_KEY, value=str(_original(site, at)))
            del site.graph.initializer[at]
            site.graph.sparse_initializer.append(sparse)
        elif opset >= CONSTANT_OPSET:
            _write_constant(site.constant, sparse)
        else:
            del site.graph.node[node_index(site.graph, site.constant)]
            site.graph.sparse_initializer.append(sparse)

    return [Draft("coo int64", "sparse_initializer", size, write)]


def _original(site: Site, at: int) -> int:
    """The position that initializer `at` had before others were made sparse."""
    for earlier in sorted(position(s.values) for s in site.graph.sparse_initializer):
        at += earlier <= at
    return at


def _write_constant(constant: NodeProto, sparse: SparseTensorProto) -> None:
    sparse.values.ClearField("name")
    del constant.attribute[:]
    constant.attribute.add(
        name="sparse_value", type=AttributeProto.SPARSE_TENSOR, sparse_tensor=sparse
    )


def position(values: TensorProto) -> int:
    """Where the weight lay among the initializers; behind all of them if that was not noted."""
    noted = (entry.value for entry in values.metadata_props if entry.key == POSITION_KEY)
    return int(next(noted, 2**31 - 1))
