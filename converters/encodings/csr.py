"""Format `csr`: the weight as values, positions and shape, read by our operators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from onnx import NodeProto

from dns_onnx.converters.encodings.draft import Draft, Replacement, put
from dns_onnx.converters.encodings.kernels import ShapeOf, has_bias, to_sparse
from dns_onnx.converters.encodings.matrix import Layout, Matrix, narrowest
from dns_onnx.converters.encodings.parts import Part, constant, function_node, node_bytes, part
from dns_onnx.converters.encodings.sites import Site, Use
from dns_onnx.converters.encodings.values import Coding, coding

# Bytes that the function bodies fill for each stored entry (its gap and position as int32) and for
# each entry of the dense weight: zeros, scattered, reshaped, and narrow ones widened.
_MEMORY_STORED = 8
_MEMORY_DENSE = {"float32": 12, "float16": 10, "int8": 11}
_MEMORY_BITMASK = 21


@dataclass(frozen=True)
class _Form:
    """What one way to write a weight consists of; operator, memory, columns, values as in Draft."""

    parts: Sequence[Part]
    nodes: Sequence[NodeProto]
    operator: str
    memory: int
    columns: bool | None = None
    values: str | None = None
    consumer: NodeProto | None = None


def drafts(
    site: Site, matrix: Matrix, stem: str, code: str, use: Use | None, shape_of: ShapeOf
) -> list[Draft]:
    """Every way to write the weight in this format.

    stem: what the names of the new tensors begin with.  code: of the values.
    use: the reader that becomes a sparse operator; None puts the weight together again in front
    of its readers.  shape_of: the shape of a value, for padding that depends on it.
    """
    sparse = use is not None and use.node is not None
    coded, _ = coding(site, matrix, stem, code, rows=sparse)
    found = []
    for layout in matrix.layouts():
        consumer = None
        if use is not None and use.node is not None:
            operands = _operands(coded, layout)
            consumer = to_sparse(use.node, operands, matrix.shape, shape_of)
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

    return Draft(
        encoding=f"csr {layout.name}{coded.note}",
        operator=form.operator,
        bytes=size,
        write=write,
        functions=frozenset(ours),
        memory=form.memory,
        columns=form.columns,
        values=form.values,
        bias=None if form.consumer is None else has_bias(form.consumer),
    )


def _csr_form(coded: Coding, matrix: Matrix, layout: Layout, consumer: NodeProto | None) -> _Form:
    """values, gaps or columns with row_ptr, and shape; read by `consumer` or by CsrToDense."""
    values, positions, row_ptr, shape, _ = _operands(coded, layout)
    count = (layout.stored,)
    stored = cache(lambda: matrix.for_layout(layout))
    parts = [
        coded.values(count, stored),
        part(positions, layout.index_type, count, lambda: stored().indices(layout)),
    ]
    if row_ptr:
        edges = (matrix.rows + 1,)
        parts.append(part(row_ptr, narrowest(layout.stored), edges, lambda: stored().row_ptr()))
    parts += [constant(shape, matrix.shape), *coded.scales(matrix)]
    by_columns = layout.kind == "absolute"
    if consumer is not None:
        memory = _memory(layout, matrix, coded.code)
        return _Form(parts, [], consumer.op_type, memory, by_columns, coded.code, consumer)
    values, nodes = coded.widened()
    dense, finishing = coded.finished()
    nodes.append(function_node("CsrToDense", [values, positions, row_ptr, shape], dense))
    memory = _memory(layout, matrix, "float32")
    return _Form(parts, [*nodes, *finishing], "CsrToDense", memory, by_columns)


def _memory(layout: Layout, matrix: Matrix, code: str) -> int:
    return _MEMORY_STORED * layout.stored + _MEMORY_DENSE[code] * matrix.size


def _bitmask_form(coded: Coding, matrix: Matrix, layout: Layout) -> _Form:
    """values, mask and shape, read by BitmaskToDense."""
    stem = coded.stem
    mask, shape = f"{stem}.mask", f"{stem}.shape"
    bits = part(mask, np.uint8, (matrix.size // 8,), lambda: matrix.indices(layout))
    parts = [coded.values((layout.stored,), lambda: matrix), bits, constant(shape, matrix.shape)]
    parts += coded.scales(matrix)
    read, nodes = coded.widened()
    dense, finishing = coded.finished()
    decoder = function_node("BitmaskToDense", [read, mask, shape], dense)
    memory = _MEMORY_BITMASK * matrix.size
    return _Form(parts, [*nodes, decoder, *finishing], "BitmaskToDense", memory)


def _operands(coded: Coding, layout: Layout) -> tuple[str, str, str, str, str]:
    """Names of values, col_indices, row_ptr, shape and scale; empty for what is absent."""
    stem, by_gaps = coded.stem, layout.kind == "gaps"
    return (
        f"{stem}.values",
        f"{stem}.gaps" if by_gaps else f"{stem}.col_indices",
        "" if by_gaps else f"{stem}.row_ptr",
        f"{stem}.shape",
        f"{stem}.scale" if coded.code == "int8" else "",
    )
