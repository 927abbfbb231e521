"""An ONNX file without its large tensors: they stay in the file, as external data of that file.

Protobuf would read the whole file and copy each tensor out of it, three times the weights in
memory at once.  Source: Protocol Buffers encoding; field numbers of onnx.proto3.
"""

from __future__ import annotations

import mmap
from pathlib import Path

from onnx import StringStringEntryProto, TensorProto

# Raw data of at least this many bytes stay in the file.
_LARGE = 1 << 16

Span = tuple[int, int]

# Message kind -> the fields that may hold large tensors, and the kind of message in each.
_INNER: dict[str, dict[int, str]] = {
    "model": {7: "graph"},
    "graph": {1: "node", 5: "tensor"},
    "node": {5: "attribute"},
    "attribute": {6: "graph", 11: "graph"},
    "constant": {5: "tensor"},  # the attribute of a Constant node
}
_OP_TYPE, _RAW_DATA = 4, 9


def without_large_tensors(path: Path) -> tuple[bytes, set[Span]]:
    """The file's message with large raw data cut out, and where each of them lies (offset, length).

    In their place stand external data at `path` itself.  Initializers and Constant nodes lose
    theirs, in bodies of control flow too; every other field comes back byte for byte.
    Raises ValueError for bytes that are no protobuf message, OSError for a file that cannot be
    read.
    """
    if path.stat().st_size < _LARGE:
        return path.read_bytes(), set()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        cutter = _Cutter(data, str(path))
        return cutter.message(0, len(data), "model"), cutter.spans


class _Cutter:
    """Cuts large raw data out of one serialised message."""

    def __init__(self, data: mmap.mmap, location: str) -> None:
        self.data = data
        self.location = location
        self.spans: set[Span] = set()

    def message(self, start: int, end: int, kind: str) -> bytes:
        """The message in [start, end) without large raw data."""
        inner, parts, done, place = _INNER.get(kind, {}), [], start, start
        while place < end:
            field_start = place
            tag, place = self._varint(place, end)
            number, length = tag >> 3, 0
            if tag & 7 == 2:
                length, place = self._varint(place, end)
            else:
                place = self._skip(tag & 7, place, end)
            body, place = place, place + length
            if place > end:
                raise ValueError("a field that goes on after its message")
            if kind == "node" and number == _OP_TYPE and self.data[body:place] == b"Constant":
                inner = {5: "constant"}
            if length < _LARGE:
                continue
            if kind == "tensor" and number == _RAW_DATA:
                small = self._external(body, length)
            elif number in inner:
                small = self._field(number, self.message(body, place, inner[number]))
            else:
                continue
            parts += [self.data[done:field_start], small]
            done = place
        return b"".join([*parts, self.data[done:end]])

    def _external(self, offset: int, length: int) -> bytes:
        """The fields of a TensorProto that say where its data lie."""
        self.spans.add((offset, length))
        where = {"location": self.location, "offset": str(offset), "length": str(length)}
        entries = [StringStringEntryProto(key=k, value=v) for k, v in where.items()]
        tensor = TensorProto(data_location=TensorProto.EXTERNAL, external_data=entries)
        return bytes(tensor.SerializeToString())

    @staticmethod
    def _field(number: int, body: bytes) -> bytes:
        return _encoded(number << 3 | 2) + _encoded(len(body)) + body

    def _varint(self, place: int, end: int) -> tuple[int, int]:
        value = shift = 0
        while place < end and shift < 64:
            byte = self.data[place]
            place += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, place
            shift += 7
        raise ValueError("a number that does not end")

    def _skip(self, wire_type: int, place: int, end: int) -> int:
        if wire_type == 0:
            return self._varint(place, end)[1]
        if wire_type in (1, 5):
            return place + (8 if wire_type == 1 else 4)
        raise ValueError(f"wire type {wire_type}")


def _encoded(value: int) -> bytes:
    """A number as protobuf's varint."""
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)
