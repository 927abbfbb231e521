"""Format `csr`: the weight as values, column indices and row pointers, read by our operators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from onnx import NodeProto

from dns_onnx.converters.encodings.draft import Draft, Replacement, put
from dns_onnx.converters.encodings.kernels import ShapeOf, to_sparse
from dns_onnx.converters.encodings.matrix import Layout, Matrix, narrowest
from dns_onnx.converters.encodings.parts import Part, constant, function_node, node_bytes, part
from dns_onnx.converters.encodings.sites import Site, Use
from dns_onnx.converters.encodings.values import Coding, coding


@dataclass(frozen=True)
class _Form:
    """What one way to write a weight consists of; operator as in Draft."""

    parts: Sequence[Part]
    nodes: Sequence[NodeProto]
    operator: str
    consumer: NodeProto | None = None


def drafts(
    site: Site, matrix: Matrix, stem: str, code: str, use: Use | None, shape_of: ShapeOf
) -> list[Draft]:
    """Every way to write the weight in this format.

    stem: what the names of the new tensors begin with.  code: of the values.
    use: the reader that becomes a sparse operator; None puts the weight together again in front
    of its readers.  shape_of: the shape of a value, for padding that depends on it.
    """
    consumer = None
    if use is not None and use.node is not None:
        consumer = to_sparse(use.node, _operands(stem), matrix.shape, shape_of)
    coded, _ = coding(site, matrix, stem, code, rows=consumer is not None)
    found = []
    for layout in matrix.layouts():
        if layout.kind != "bitmask":
            found.append(_draft(_csr_form(coded, matrix, layout, consumer), coded, layout, use))
        elif consumer is None:
            found.append(_draft(_bitmask_form(coded, matrix, layout), coded, layout, use))
    return found


def _draft(form: _Form, coded: Coding, layout: Layout, use: Use | None) -> Draft:
    size = sum(p.bytes() for p in form.parts) + node_bytes(form.nodes)
    if form.consumer is not None and use is not None and use.node is not None:
        size += form.consumer.ByteSize() - use.node.ByteSize()
    ours = {n.op_type for n in form.nodes if n.domain} | {form.operator}

    def write() -> None:
        tensors = [p.tensor() for p in form.parts]
        put(coded.site, use, Replacement(tensors, form.nodes, form.consumer))

    name = f"csr {layout.name}{coded.note}"
    return Draft(name, form.operator, size, write, frozenset(ours))


def _csr_form(coded: Coding, matrix: Matrix, layout: Layout, consumer: NodeProto | None) -> _Form:
    """values, col_indices or gaps, row_ptr and shape; read by `consumer` or by CsrToDense."""
    stem, count = coded.stem, (layout.stored,)
    _, columns, row_ptr, shape = _operands(stem)
    stored = cache(lambda: matrix.for_layout(layout))
    edges = (matrix.rows + 1,)
    gaps, width = f"{stem}.gaps", f"{stem}.width"
    narrow = part(
        gaps if layout.kind == "gaps" else columns,
        layout.index_type,
        count,
        lambda: stored().indices(layout),
    )
    parts = [
        coded.values(count, stored),
        narrow,
        part(row_ptr, narrowest(layout.stored), edges, lambda: stored().row_ptr()),
        constant(shape, matrix.shape),
        *coded.scales(matrix, rows=consumer is not None),
    ]
    nodes: list[NodeProto] = []
    if layout.kind == "gaps":
        parts.append(constant(width, matrix.width))
        nodes.append(function_node("GapsToIndices", [gaps, width], columns))
    read, widening = coded.widened(row_ptr if consumer is not None else None)
    nodes += widening
    if consumer is not None:
        sparse = NodeProto()
        sparse.CopyFrom(consumer)
        sparse.input[1] = read
        return _Form(parts, nodes, consumer.op_type, sparse)
    dense, finishing = coded.finished()
    nodes.append(function_node("CsrToDense", [read, columns, row_ptr, shape], dense))
    return _Form(parts, [*nodes, *finishing], "CsrToDense")


def _bitmask_form(coded: Coding, matrix: Matrix, layout: Layout) -> _Form:
    """values, mask and shape, read by BitmaskToDense."""
    stem = coded.stem
    mask, shape = f"{stem}.mask", f"{stem}.shape"
    bits = part(mask, np.uint8, (-(-matrix.size // 8),), lambda: matrix.indices(layout))
    parts = [coded.values((layout.stored,), lambda: matrix), bits, constant(shape, matrix.shape)]
    parts += coded.scales(matrix, rows=False)
    read, nodes = coded.widened(None)
    dense, finishing = coded.finished()
    decoder = function_node("BitmaskToDense", [read, mask, shape], dense)
    return _Form(parts, [*nodes, decoder, *finishing], "BitmaskToDense")


def _operands(stem: str) -> tuple[str, str, str, str]:
    """Names of values, col_indices, row_ptr and shape, as a sparse operator reads them."""
    return f"{stem}.values", f"{stem}.col_indices", f"{stem}.row_ptr", f"{stem}.shape"
