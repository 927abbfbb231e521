"""Format `portable`: the decoding written out in standard operators, no function, no IR change.

Positions are stored as narrow offsets from the start of their block, and not as gaps to sum up:
OpenVINO folds every operator used here at load, but no CumSum, and would decode in each run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper

from dns_onnx.converters.encodings.draft import Draft, Replacement, put
from dns_onnx.converters.encodings.matrix import Array, Indices, Matrix
from dns_onnx.converters.encodings.parts import (
    Part,
    constant,
    decode_node,
    make_tensor,
    node_bytes,
    part,
)
from dns_onnx.converters.encodings.sites import Site
from dns_onnx.converters.encodings.values import Coding, coding

_OFFSET_TYPES = (np.dtype(np.uint8), np.dtype(np.uint16))


@dataclass(frozen=True)
class _Blocks:
    """Positions in blocks of `length` entries, each a start and offsets from it.

    positions: [nnz] in the flattened weight, ascending, at least one.
    """

    positions: Indices
    kind: np.dtype[Any]
    length: int

    @property
    def count(self) -> int:
        return -(-len(self.positions) // self.length)

    @property
    def filled(self) -> bool:
        return self.count * self.length == len(self.positions)

    def starts(self) -> Array:
        """[count, 1] position of each block's first entry."""
        return self.positions[:: self.length, None]

    def offsets(self) -> Array:
        """[count, length] of each entry from its block's start; the last block is filled up."""
        missing = self.count * self.length - len(self.positions)
        filled = np.pad(self.positions, (0, missing), mode="edge")
        offsets: Array = filled.reshape(self.count, self.length) - self.starts()
        return offsets


def drafts(site: Site, matrix: Matrix, stem: str, code: str) -> list[Draft]:
    """Every way to write the weight in this format: offsets of each narrow type.

    stem: what the names of the new tensors begin with.  code: of the values.
    """
    if matrix.nnz == 0:  # a stored zero: not every runtime scatters nothing
        zero = np.zeros(1, matrix.values.dtype)
        matrix = Matrix(matrix.shape, np.zeros(1, np.int64), zero)
    coded, _ = coding(site, matrix, stem, code, rows=False)
    return [_draft(coded, matrix, _blocks(matrix.positions, kind)) for kind in _OFFSET_TYPES]


def _blocks(positions: Indices, kind: np.dtype[Any]) -> _Blocks:
    """The longest blocks, a power of two, whose offsets all fit."""
    limit, last = np.iinfo(kind).max, len(positions) - 1
    length = 1
    while length <= last:
        starts = np.arange(0, last + 1, 2 * length)
        ends = np.minimum(starts + 2 * length - 1, last)
        if (positions[ends] - positions[starts]).max() > limit:
            break
        length *= 2
    return _Blocks(positions, kind, length)


def _draft(coded: Coding, matrix: Matrix, blocks: _Blocks) -> Draft:
    parts = [
        coded.values((matrix.nnz,), lambda: matrix),
        *_position_parts(coded.stem, blocks),
        constant(f"{coded.stem}.size", [matrix.size]),
        constant(f"{coded.stem}.shape", matrix.shape),
        *coded.scales(matrix),
    ]
    nodes = _nodes(coded, blocks)
    size = sum(p.bytes() for p in parts) + node_bytes(nodes)

    def write() -> None:
        put(coded.site, None, Replacement([p.tensor() for p in parts], nodes))

    name = f"portable {blocks.kind.name} offsets{coded.note}"
    return Draft(name, "ScatterElements", size, write)


def _position_parts(stem: str, blocks: _Blocks) -> list[Part]:
    count, length = blocks.count, blocks.length
    parts = [
        part(f"{stem}.offsets", blocks.kind, (count, length), blocks.offsets),
        part(f"{stem}.starts", np.int32, (count, 1), blocks.starts),
        constant(f"{stem}.flat_shape", [-1]),
    ]
    if not blocks.filled:
        parts += [
            constant(f"{stem}.first", [0]),
            constant(f"{stem}.count", [len(blocks.positions)]),
        ]
    return parts


def _nodes(coded: Coding, blocks: _Blocks) -> list[NodeProto]:
    """Positions from their blocks, ScatterElements into zeros, Reshape, in the weight's own type.

    The values widened first, and the weight computed in float32, where they are narrowed.
    """
    stem, kind = coded.stem, coded.site.tensor.data_type
    values, widening = f"{stem}.values", list[NodeProto]()
    if coded.code != "float32":
        (values, widening), kind = coded.widened(), TensorProto.FLOAT
    zero = make_tensor("", np.zeros(1, helper.tensor_dtype_to_np_dtype(kind)))
    dense, finishing = coded.finished(kind)
    zeros, flat = f"{stem}.zeros", f"{stem}.flat"
    return [
        *widening,
        *_position_nodes(stem, blocks),
        decode_node("ConstantOfShape", [f"{stem}.size"], zeros, value=zero),
        decode_node("ScatterElements", [zeros, f"{stem}.positions", values], flat, axis=0),
        decode_node("Reshape", [flat, f"{stem}.shape"], dense),
        *finishing,
    ]


def _position_nodes(stem: str, blocks: _Blocks) -> Sequence[NodeProto]:
    wide, grid = f"{stem}.wide", f"{stem}.grid"
    positions, row = f"{stem}.positions", f"{stem}.row"
    nodes = [
        decode_node("Cast", [f"{stem}.offsets"], wide, to=TensorProto.INT32),
        decode_node("Add", [wide, f"{stem}.starts"], grid),
        decode_node("Reshape", [grid, f"{stem}.flat_shape"], positions if blocks.filled else row),
    ]
    if not blocks.filled:
        nodes.append(decode_node("Slice", [row, f"{stem}.first", f"{stem}.count"], positions))
    return nodes
