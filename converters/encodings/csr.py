"""Format `csr`: the weight as values, column indices and row pointers, read by our operators."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, TensorProto, helper

from dns_onnx.converters.encodings.draft import Draft, Replacement, replace
from dns_onnx.converters.encodings.functions import DOMAIN
from dns_onnx.converters.encodings.kernels import ShapeOf, to_sparse
from dns_onnx.converters.encodings.matrix import Array, Layout, Matrix, narrowest
from dns_onnx.converters.encodings.parts import Part, decode_node, node_bytes, part
from dns_onnx.converters.encodings.sites import Site, Use

_DECODERS = {"gaps": "GapsToIndices", "bitmask": "BitmaskToCsr"}


@dataclass(frozen=True)
class Form:
    """The tensors and decoding nodes of one weight in one layout, without the data.

    operands: names of values, col_indices, row_ptr and shape as a sparse operator reads them.
    """

    parts: tuple[Part, ...]
    nodes: tuple[NodeProto, ...]
    operands: tuple[str, ...]

    def bytes(self) -> int:
        return sum(p.bytes() for p in self.parts) + node_bytes(self.nodes)


def drafts(
    site: Site, matrix: Matrix, stem: str, use: Use | None, shape_of: ShapeOf
) -> list[Draft]:
    """Every way to write the weight in this format.

    stem: what the names of the new tensors begin with.  use: the reader that becomes a sparse
    operator; None puts the weight together again (CsrToDense) in front of its readers.
    shape_of: the shape of a value, for padding that depends on it.
    """
    return [_draft(site, matrix, layout, stem, use, shape_of) for layout in matrix.layouts()]


def _draft(
    site: Site, matrix: Matrix, layout: Layout, stem: str, use: Use | None, shape_of: ShapeOf
) -> Draft:
    form = _form(stem, matrix, layout, site.tensor.data_type)
    consumer = None
    if use is not None and use.node is not None:
        consumer = to_sparse(use.node, form.operands, matrix.shape, shape_of)
    nodes = list(form.nodes)
    size = form.bytes()
    if consumer is None:
        dense = _to_dense_nodes(site, stem, form.operands)
        size += node_bytes(dense)
        nodes += dense
    elif use is not None and use.node is not None:
        size += consumer.ByteSize() - use.node.ByteSize()
    operator = "CsrToDense" if consumer is None else consumer.op_type
    functions = {operator} | ({_DECODERS[layout.kind]} if layout.kind in _DECODERS else set())

    def write() -> None:
        tensors = _tensors(form, matrix, layout)
        replace(site, use, Replacement(tensors, nodes, consumer))

    return Draft(f"csr {layout.name}", operator, size, write, frozenset(functions))


def _form(stem: str, matrix: Matrix, layout: Layout, data_type: int) -> Form:
    values = Part(f"{stem}.values", data_type, (layout.stored,))
    shape = part(f"{stem}.shape", np.dtype(np.int64), (len(matrix.shape),))
    columns, row_ptr = f"{stem}.col_indices", f"{stem}.row_ptr"
    nodes: list[NodeProto] = []
    read, nodes = _widened(values, stem)
    parts = [values]
    if layout.kind == "bitmask":
        mask = part(f"{stem}.mask", layout.index_type, (-(-matrix.size // 8),))
        nodes.append(_decoder("BitmaskToCsr", [mask.name, read, shape.name], [columns, row_ptr]))
        parts += [mask, shape]
        return Form(tuple(parts), tuple(nodes), (read, columns, row_ptr, shape.name))
    pointers = part(row_ptr, narrowest(layout.stored), (matrix.rows + 1,))
    if layout.kind == "gaps":
        gaps = part(f"{stem}.gaps", layout.index_type, (layout.stored,))
        width = part(f"{stem}.width", np.dtype(np.int64), ())
        nodes.append(_decoder("GapsToIndices", [gaps.name, width.name], [columns]))
        parts += [gaps, width, pointers, shape]
    else:
        parts += [part(columns, layout.index_type, (layout.stored,)), pointers, shape]
    return Form(tuple(parts), tuple(nodes), (read, columns, row_ptr, shape.name))


def _widened(values: Part, stem: str) -> tuple[str, list[NodeProto]]:
    """The name under which the values are read as float32, and the Cast that makes them so."""
    if values.data_type == TensorProto.FLOAT:
        return values.name, []
    wide = f"{stem}.values_f32"
    return wide, [decode_node(stem, "Cast", [values.name], wide, to=TensorProto.FLOAT)]


def _to_dense_nodes(site: Site, stem: str, operands: tuple[str, ...]) -> list[NodeProto]:
    """CsrToDense, and the Cast back to the weight's own type where that is narrower."""
    if site.tensor.data_type == TensorProto.FLOAT:
        return [_decoder("CsrToDense", operands, [site.name])]
    wide = f"{stem}.f32"
    return [
        _decoder("CsrToDense", operands, [wide]),
        decode_node(stem, "Cast", [wide], site.name, to=site.tensor.data_type),
    ]


def _decoder(op_type: str, inputs: list[str] | tuple[str, ...], outputs: list[str]) -> NodeProto:
    node: NodeProto = helper.make_node(op_type, inputs, outputs, domain=DOMAIN)
    return node


def _tensors(form: Form, matrix: Matrix, layout: Layout) -> list[TensorProto]:
    """The tensors of the form, with their data."""
    stored = matrix.for_layout(layout)
    data: dict[str, Array] = {
        "values": stored.values,
        layout.kind: stored.indices(layout),
        "width": np.array(matrix.width, np.int64),
        "shape": np.array(matrix.shape, np.int64),
    }
    data["mask"], data["col_indices"] = data.get("bitmask", data["shape"]), data[layout.kind]
    if layout.kind != "bitmask":
        data["row_ptr"] = stored.row_ptr().astype(narrowest(layout.stored))
    return [p.tensor(data[p.name.rpartition(".")[2]]) for p in form.parts]
