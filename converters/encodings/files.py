"""Write a model to disk so that a failure, or a crash at any moment, leaves a whole one."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from google.protobuf.message import Message
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto

from dns_onnx.converters.encodings.sites import all_graphs
from dns_onnx.errors import ExportError

# A protobuf message cannot be larger; the rest is room for what is not tensor data.
MAX_FILE_BYTES = 2**31 - 2**20

# Tensors above this size go to the data file once a model needs one.
EXTERNAL_BYTES = 1024

# Where a large tensor begins in the data file, so that a runtime can map it into memory.
_PAGE, _PAGED_BYTES, _ALIGNMENT = 4096, 2**16, 16

_HASH_DIGITS = 16


def write_model(model: ModelProto, path: str | os.PathLike[str]) -> list[Path]:
    """Write the model, above the protobuf limit with its large tensors in `<name>.<hash>.data`.

    Each file is written beside its place, flushed to disk and then renamed over it, the model
    last.  The data file bears a hash of its content, so that the model that was there before keeps
    its own until the new one is in place.
    Returns the files written, the model first.
    Raises ExportError if the folder is missing or the disk refuses (full, read-only); the files
    that were there before are untouched.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise ExportError(
            f"{target}: expected the folder '{target.parent}' to exist, got none; create it first"
        )
    before = _data_files(target)
    if tensor_bytes(model.graph) + _rest_bytes(model) <= MAX_FILE_BYTES:
        data = model.SerializeToString()
        _replace({target: lambda file: _write(file, data)})
        written = [target]
    else:
        written = _write_external(model, target)
    for outdated in before - set(written):
        with contextlib.suppress(OSError):
            outdated.unlink()
    return written


def _data_files(target: Path) -> set[Path]:
    """Data files of earlier exports to this place: those that write_model itself names so."""
    return set(target.parent.glob(f"{glob.escape(target.name)}.{'[0-9a-f]' * _HASH_DIGITS}.data"))


def tensor_bytes(graph: GraphProto) -> int:
    """Bytes of raw tensor data in a graph and its bodies, counted without serializing them."""
    return sum(len(tensor.raw_data) for tensor in _tensors(graph))


def _rest_bytes(model: ModelProto) -> int:
    """An upper estimate of everything that is not raw tensor data."""
    typed = sum(
        8 * (len(t.float_data) + len(t.double_data) + len(t.int32_data) + len(t.int64_data))
        for t in _tensors(model.graph)
    )
    nodes = sum(len(graph.node) for graph in all_graphs(model.graph))
    return typed + 256 * nodes


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """Every tensor that may be stored outside: initializers, sparse parts, Constant values."""
    for inner in all_graphs(graph):
        yield from inner.initializer
        for sparse in inner.sparse_initializer:
            yield sparse.values
            yield sparse.indices
        for node in inner.node:
            for attribute in node.attribute:
                if attribute.type == AttributeProto.TENSOR:
                    yield attribute.t
                elif attribute.type == AttributeProto.SPARSE_TENSOR:
                    yield attribute.sparse_tensor.values
                    yield attribute.sparse_tensor.indices


def _write_external(model: ModelProto, target: Path) -> list[Path]:
    """Write the model with its large tensors in a data file; the model in memory stays whole."""
    data_path = target.with_name(f"{target.name}.{_content_hash(model.graph)}.data")
    light = _without_data(model)
    end = 0
    offsets: list[int | None] = []
    for tensor, whole in zip(_tensors(light.graph), _tensors(model.graph), strict=True):
        size = len(whole.raw_data)
        if size <= EXTERNAL_BYTES:
            offsets.append(None)
            continue
        end += -end % (_PAGE if size >= _PAGED_BYTES else _ALIGNMENT)
        _point_outside(tensor, data_path.name, end, size)
        offsets.append(end)
        end += size
    head = light.SerializeToString()

    def write_data(file: BinaryIO) -> None:
        for tensor, offset in zip(_tensors(model.graph), offsets, strict=True):
            if offset is not None:
                file.write(b"\0" * (offset - file.tell()))
                _write(file, tensor.raw_data)

    _replace({data_path: write_data, target: lambda file: _write(file, head)})
    return [target, data_path]


def _without_data(model: ModelProto) -> ModelProto:
    """A copy of the model whose large initializers have no data: those are never copied."""
    light = ModelProto()
    _copy_fields(model, light, but="graph")
    _copy_fields(model.graph, light.graph, but="initializer")
    for tensor in model.graph.initializer:
        external = len(tensor.raw_data) > EXTERNAL_BYTES
        _copy_fields(tensor, light.graph.initializer.add(), but="raw_data" if external else "")
    return light


def _copy_fields(source: Message, target: Message, *, but: str) -> None:
    for field, value in source.ListFields():
        if field.name == but:
            continue
        if isinstance(value, Message):
            getattr(target, field.name).CopyFrom(value)
        elif hasattr(value, "extend"):
            getattr(target, field.name).extend(value)
        else:
            setattr(target, field.name, value)


def _content_hash(graph: GraphProto) -> str:
    """A few hex digits that differ where any tensor does."""
    digest = hashlib.blake2b(digest_size=_HASH_DIGITS // 2)
    for tensor in _tensors(graph):
        digest.update(len(tensor.raw_data).to_bytes(8, "little"))
        digest.update(tensor.raw_data)
    return digest.hexdigest()


def _point_outside(tensor: TensorProto, location: str, offset: int, length: int) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entries = (("location", location), ("offset", str(offset)), ("length", str(length)))
    for key, value in entries:
        tensor.external_data.add(key=key, value=value)


def _write(file: BinaryIO, data: bytes) -> None:
    file.write(data)


def _flush_folder(folder: Path) -> None:
    """Bring a rename to disk before the next one, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _replace(writers: dict[Path, Callable[[BinaryIO], None]]) -> None:
    """Write every file beside its place, and only when all are whole rename them, in order."""
    temporaries = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in writers}
    at = next(iter(writers))
    try:
        for at, writer in writers.items():
            with open(temporaries[at], "wb") as file:
                writer(file)
                file.flush()
                os.fsync(file.fileno())
        for at, temporary in temporaries.items():
            os.replace(temporary, at)
            _flush_folder(at.parent)
    except OSError as error:
        raise ExportError(
            f"{at}: expected to write the file, got '{error.strerror or error}'; make room or "
            "choose another place (the file that was there before is untouched)"
        ) from error
    finally:
        for temporary in temporaries.values():
            with contextlib.suppress(OSError):
                temporary.unlink()
