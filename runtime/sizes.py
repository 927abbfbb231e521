"""Bytes of a model file beside what they could be, and the nonzeros that it holds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from dns_onnx.converters.encodings.sites import find_sites
from dns_onnx.converters.reader import read_model, tensors
from dns_onnx.runtime import metrics


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
        metrics.gzip_bytes(file.read_bytes() for file in model_files(pruned)),
        dense.ByteSize(), metrics.gzip_bytes(_arrays(dense)),
        round(sum(metrics.entropy_bound(c.size, c.nnz) for c in counts)),
    )  # fmt: skip
    return sizes, counts


def _count(name: str, before: onnx.TensorProto, after: onnx.TensorProto | None) -> TensorCount:
    size = int(np.prod(before.dims))
    # a tensor that is not found again counts as kept whole, never as cut
    nnz = size if after is None else int(np.count_nonzero(numpy_helper.to_array(after)))
    return TensorCount(name, size, nnz)
