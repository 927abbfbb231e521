"""Bytes of a model file beside what they could be, and the nonzeros that it holds."""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from dns_onnx.converters.encodings.sites import find_sites
from dns_onnx.converters.reader import read_model
from dns_onnx.converters.structure import tensors


@dataclass(frozen=True)
class TensorCount:
    """Entries of one float tensor in the original (size) and nonzeros of it in the file."""

    name: str
    size: int
    nnz: int


@dataclass(frozen=True)
class Sizes:
    """Bytes on disk, external data included, beside what they could be."""

    original: int
    file: int
    file_gzip: int
    dense: int
    dense_gzip: int
    entropy_bound: int


def entropy_bound(size: int, nnz: int, bits_per_value: int = 32) -> float:
    """Bytes that a mask with this many kept entries, and their values, take at the very least.

    `(size * H(nnz / size) + nnz * bits_per_value) / 8` with H the binary entropy in bits: what an
    ideal coder reaches that knows nothing about where the kept entries lie.
    """
    if size == 0:
        return 0.0
    density = nnz / size
    bits = sum(-p * math.log2(p) for p in (density, 1.0 - density) if 0.0 < p < 1.0)
    return (size * bits + nnz * bits_per_value) / 8


def gzip_bytes(pieces: Iterable[bytes]) -> int:
    """Bytes of all pieces together after gzip at level 6, the usual way of shipping zeros."""
    stream = zlib.compressobj(6, wbits=31)  # 31: gzip's own header and window
    return sum(len(stream.compress(piece)) for piece in pieces) + len(stream.flush())


def model_files(path: str | os.PathLike[str]) -> list[Path]:
    """The files of a model: the one at `path`, then its external data, in order of name."""
    model = onnx.load(os.fspath(path), load_external_data=False)
    outside = {
        Path(path).parent / entry.value
        for tensor in tensors(model.graph)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return [Path(path), *sorted(outside)]


def file_bytes(path: str | os.PathLike[str]) -> int:
    """Bytes of a model on disk, its external data files included."""
    return sum(file.stat().st_size for file in model_files(path))


def _arrays(model: onnx.ModelProto) -> Iterator[bytes]:
    """The bytes of every array: all but the whole of a dense file, at any size."""
    for tensor in tensors(model.graph):
        yield tensor.raw_data or tensor.SerializeToString()


def measure(
    original: str | os.PathLike[str], pruned: str | os.PathLike[str], dense: onnx.ModelProto
) -> tuple[Sizes, list[TensorCount]]:
    """Bytes of the pruned file beside its alternatives, and its nonzeros tensor by tensor.

    dense: the pruned file's own arrays, decoded.
    """
    found = {site.name: site.tensor for site in find_sites(dense)}
    counts = [
        _count(site.name, site.tensor, found.get(site.name))
        for site in find_sites(read_model(original))
    ]
    sizes = Sizes(
        file_bytes(original), file_bytes(pruned),
        gzip_bytes(file.read_bytes() for file in model_files(pruned)),
        dense.ByteSize(), gzip_bytes(_arrays(dense)),
        round(sum(entropy_bound(c.size, c.nnz) for c in counts)),
    )  # fmt: skip
    return sizes, counts


def _count(name: str, before: onnx.TensorProto, after: onnx.TensorProto | None) -> TensorCount:
    size = int(np.prod(before.dims))
    # a tensor that is not found again counts as kept whole, never as cut
    nnz = size if after is None else int(np.count_nonzero(numpy_helper.to_array(after)))
    return TensorCount(name, size, nnz)
