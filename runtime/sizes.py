"""Bytes of a model file beside what they could be, and the nonzeros that it holds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from dns_onnx.converters.reader import read_model, tensors
from dns_onnx.runtime import metrics

_FLOATS = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16,
           onnx.TensorProto.DOUBLE}  # fmt: skip


@dataclass(frozen=True)
class TensorCount:
    """Entries of one float initializer in the original (size) and nonzeros of it in the file."""

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


def file_bytes(path: str | os.PathLike[str]) -> int:
    """Bytes of a model on disk, its external data files included."""
    model = onnx.load(os.fspath(path), load_external_data=False)
    return sum(file.stat().st_size for file in [Path(path), *_external_files(model, Path(path))])


def _external_files(model: onnx.ModelProto, path: Path) -> set[Path]:
    return {
        path.parent / entry.value
        for tensor in tensors(model.graph)
        for entry in tensor.external_data
        if entry.key == "location"
    }


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
    kept = {
        i.name: int(np.count_nonzero(numpy_helper.to_array(i))) for i in dense.graph.initializer
    }
    counts = [
        TensorCount(i.name, int(np.prod(i.dims)), kept.get(i.name, 0))
        for i in read_model(original).graph.initializer
        if i.data_type in _FLOATS
    ]
    files = [
        Path(pruned),
        *_external_files(onnx.load(pruned, load_external_data=False), Path(pruned)),
    ]
    sizes = Sizes(
        file_bytes(original), file_bytes(pruned),
        metrics.gzip_bytes(file.read_bytes() for file in files),
        dense.ByteSize(), metrics.gzip_bytes(_arrays(dense)),
        round(sum(metrics.entropy_bound(c.size, c.nnz) for c in counts)),
    )  # fmt: skip
    return sizes, counts
