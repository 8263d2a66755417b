"""Which files an ONNX graph keeps its weights in, read from the protobuf: the runtime needs no onnx."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

# Field numbers of onnx.proto: message -> {field: the message it holds}, where that can lead to a tensor.
_CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "external"},
}
_EXTERNAL_KEY, _EXTERNAL_VALUE = 1, 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def external_files(path: Path) -> set[str]:
    """The files besides ``path`` that hold weights of the graph (ONNX external data).

    Args:
        path: An ONNX file.

    Returns:
        Locations as written in the graph: paths relative to the graph's folder.

    Raises:
        ValueError: The file is no protobuf message.
    """
    if path.stat().st_size == 0:
        raise ValueError("the file is empty")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return set(_locations(data, 0, len(data), "model"))


def _locations(data: mmap.mmap, start: int, stop: int, message: str) -> Iterator[str]:
    for field, first, last in _fields(data, start, stop):
        child = _CHILDREN[message].get(field)
        if child == "external":
            entry = {key: bytes(data[a:b]) for key, a, b in _fields(data, first, last)}
            if entry.get(_EXTERNAL_KEY) == b"location":
                yield entry.get(_EXTERNAL_VALUE, b"").decode("utf-8")
        elif child:
            yield from _locations(data, first, last, child)


def _fields(data: mmap.mmap, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Length-delimited fields of the message ``data[start:stop]``: number, first byte, one past the last."""
    at = start
    while at < stop:
        tag, at = _varint(data, at, stop)
        kind = tag & 7
        if kind == _BYTES:
            length, at = _varint(data, at, stop)
            if at + length > stop:
                raise ValueError("a field runs past the end of its message")
            yield tag >> 3, at, at + length
            at += length
        elif kind == _VARINT:
            _, at = _varint(data, at, stop)
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"unknown protobuf wire type {kind}")


def _varint(data: mmap.mmap, at: int, stop: int) -> tuple[int, int]:
    value = shift = 0
    while at < stop:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("a number runs past the end of its message")
