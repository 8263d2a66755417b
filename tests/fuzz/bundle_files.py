"""Changes of a bundle: its manifest by JSON path, graphs by protobuf field, embeddings, files and folders."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from ldp_runtime.bundle.manifest import MANIFEST_FILE, TEXT_EMBEDDINGS_FILE
from tests.fuzz.mutations import change_bytes, number, rearrange

VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1, 16, 33, 4096, 2**31, 2**63, 10**400, -0.0, 1e-320, 1e308, float("nan"), float("inf"),
    "", "a" * 10_000, "../clip.onnx", "/etc/passwd", "clip.onnx/../../x", "*/_ORT_MEM_ADDR_/*", "a\0b", "\x1b[2J",
    "\ud800", "clip.xml", "int8", [], {}, [[]], [1] * 1000, {"": {}}, {"sha256": "0" * 64, "size": 0},
)  # fmt: skip


# --- the manifest


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [path, *(place for key in keys for place in _places(value[key], (*path, key)))]


def mutate_manifest(random: Random, data: bytes) -> bytes:
    """Changes one value, field or item of the manifest, or its text."""
    if random.random() < 0.15:
        return _changed_text(random, data)
    try:
        manifest = json.loads(data)
        *_, last = path = random.choice(_places(manifest)[1:])
    except (ValueError, IndexError, RecursionError):
        return change_bytes(random, data)
    holder = manifest
    for key in path[:-1]:
        holder = holder[key]
    match random.randrange(6):
        case 0:
            del holder[last]
        case 1 | 2 | 3:
            holder[last] = random.choice(VALUES)
        case 4 if isinstance(holder, dict):
            holder[str(random.choice(VALUES))[:300]] = holder[last]
        case 4:
            holder[:] = rearrange(random, holder)
        case _:
            value = holder[last]
            if isinstance(value, (int, float)):
                holder[last] = random.choice((-value, value + 1, value * 2**20, min(value, 2**60) / 2, number(random)))
            elif isinstance(value, str):
                text = change_bytes(random, value.encode("utf-8", "replace")).decode("utf-8", "replace")
                holder[last] = text[: random.randint(0, 80)]
            else:
                holder[last] = [value] if random.random() < 0.5 else {"a": value}
    return json.dumps(manifest).encode("utf-8", "surrogatepass")


def _changed_text(random: Random, data: bytes) -> bytes:
    match random.randrange(6):
        case 0:
            return data.replace(b'"name":', b'"name": "first", "name":', 1)
        case 1:
            depth = random.choice((20, 33, 500, 100_000))
            return data.replace(b'"training": {', b'"training": {"a": ' + b"[" * depth + b"]" * depth + b', "b":{} ', 1)
        case 2:
            return data.decode("utf-8", "replace").encode("utf-16")
        case 3:
            return b"\xef\xbb\xbf" + data
        case 4:
            return data.replace(b"1", b"1" * random.choice((5, 500, 5000)), 1)
        case _:
            return change_bytes(random, data)


# --- graphs


@dataclass
class Field:
    """A protobuf field: its number, wire type, and its value: a number, bytes, or the fields of a message."""

    number: int
    wire: int
    value: int | bytes | list[Field]


# Messages inside messages that are changed too: message -> {field: the message in it}.
_INNER: dict[str, dict[int, str]] = {
    "model": {7: "graph", 8: "opset"},
    "graph": {1: "node", 5: "tensor", 11: "info", 12: "info"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor"},
    "tensor": {13: "entry"},
    "info": {2: "type"},
    "type": {1: "tensor_type"},
    "tensor_type": {2: "shape"},
    "shape": {1: "dimension"},
}


_NAMES = (
    b"Loop", b"If", b"Scan", b"ConstantOfShape", b"Expand", b"Tile", b"Range", b"com.microsoft", b"pair",
)  # fmt: skip


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def parse(data: bytes, message: str = "model") -> list[Field]:
    """The fields of a valid message."""
    fields, at = [], 0
    while at < len(data):
        tag, at = _varint(data, at)
        field = Field(tag >> 3, tag & 7, 0)
        if field.wire == 2:
            length, at = _varint(data, at)
            inner = _INNER.get(message, {}).get(field.number)
            body = data[at : at + length]
            field.value = parse(body, inner) if inner else body
            at += length
        elif field.wire == 0:
            field.value, at = _varint(data, at)
        else:
            width = 8 if field.wire == 1 else 4
            field.value = data[at : at + width]
            at += width
        fields.append(field)
    return fields


def _encoded(value: int) -> bytes:
    value %= 1 << 64
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def serialise(fields: list[Field]) -> bytes:
    """The message of these fields, with true lengths."""
    parts = []
    for field in fields:
        parts.append(_encoded(field.number << 3 | field.wire))
        match field.value:
            case int():
                parts.append(_encoded(field.value))
            case bytes():
                parts += [_encoded(len(field.value)) if field.wire == 2 else b"", field.value]
            case _:
                body = serialise(field.value)
                parts += [_encoded(len(body)), body]
    return b"".join(parts)


def mutate_graph(random: Random, data: bytes) -> bytes:
    """Changes one protobuf field, anywhere in the graph, and makes all lengths true again."""
    if random.random() < 0.1:
        return change_bytes(random, data)
    try:
        fields = parse(data)
    except IndexError:  # changed before
        return change_bytes(random, data)
    holder = fields
    while True:  # down to some depth
        at = random.randrange(len(holder)) if holder else 0
        if not holder or not isinstance(holder[at].value, list) or random.random() < 0.1:
            break
        holder = holder[at].value
    if not holder:
        holder.append(Field(random.randrange(30), 2, b""))
        return serialise(fields)
    field = holder[at]
    match random.randrange(8):
        case 0:
            holder[:] = rearrange(random, holder)
        case 1:
            field.number = random.choice((0, 1, 2, 5, 6, 7, 9, 11, 13, 14, 15, 20, 22, 25, 2**29))
        case 2:
            field.wire = random.choice((0, 1, 2, 3, 4, 5, 6, 7))
        case 3:  # weights outside of the file
            entries = {"location": random.choice(VALUES[16:26]), "offset": str(random.choice(VALUES[2:11]))}
            inner = [
                Field(13, 2, [Field(1, 2, k.encode()), Field(2, 2, v.encode("utf-8", "replace"))])
                for k, v in entries.items()
            ]
            holder += [*inner, Field(14, 0, 1)]
        case _ if isinstance(field.value, int):
            field.value = random.choice((number(random, 64), field.value + 1, field.value - 1, field.value ^ 1))
        case _ if isinstance(field.value, bytes):
            field.value = random.choice(_NAMES) if random.random() < 0.4 else change_bytes(random, field.value)
        case _:
            field.value = rearrange(random, field.value)
    return serialise(fields)


# --- the embeddings


def mutate_embeddings(random: Random, data: bytes) -> bytes:
    """Changes the header of a NumPy file as a text, or any bytes."""
    texts = (
        (b"(8, 24)", b"(%d, %d)" % (number(random, 60), number(random, 60))),
        (b"(8, 24)", b"((((8, 24))))"),
        (b"'<f4'", b"'|O'"),
        (b"'<f4'", b"[('a', '<f4')]"),
        (b"'<f4'", b"'>f4'"),
        (b"False", b"True"),
        (b"'fortran_order': False, ", b""),
        (b"{", b"{" * 3000),
    )
    if random.random() < 0.3:
        return change_bytes(random, data)
    header, body = data[10:128], data[128:]  # of the tiny bundle's version 1
    changed = header.replace(*random.choice(texts), 1).rstrip()
    return data[:8] + struct.pack("<H", max(118, len(changed) + 1)) + changed.ljust(117) + b"\n" + body


# --- the folder


def mutate_folder(random: Random, folder: Path) -> None:
    """Puts something else in the place of a file, or links to elsewhere."""
    name = random.choice([MANIFEST_FILE, TEXT_EMBEDDINGS_FILE, "clip.onnx", "deblur.onnx", "deblur.fp16.onnx"])
    path = folder / name
    if not os.path.lexists(path) or path.is_dir():
        return
    match random.randrange(8):
        case 0:
            path.unlink()
        case 1:
            path.unlink()
            path.mkdir()
        case 2:
            path.unlink()
            os.mkfifo(path)
        case 3:
            path.unlink()
            path.symlink_to(random.choice((name, "/dev/zero", "/etc/passwd", "..", "missing", "clip.fp16.onnx")))
        case 4 if path.is_file():
            os.truncate(path, random.choice((0, 1, 10**10)))
        case 5:
            path.rename(folder / "elsewhere")
            path.symlink_to("elsewhere")
        case 6:
            (folder / "inner").mkdir(exist_ok=True)
            shutil.move(path, folder / "inner" / name)
        case _ if not os.path.lexists(folder / "more"):
            (folder / "more").symlink_to(random.choice((".", "..", "/")))


def relist(folder: Path) -> None:
    """Corrects hashes and sizes in the manifest, as an attacker would, where it can be read."""
    path = folder / MANIFEST_FILE
    if not path.is_file() or path.stat().st_size > 10**7:  # a pipe would never be read to its end
        return
    try:
        manifest = json.loads(path.read_bytes())
        files = manifest["files"]
        for name, entry in files.items():
            file = folder / name
            if isinstance(entry, dict) and file.is_file() and file.stat().st_size < 10**7:
                content = file.read_bytes()
                entry |= {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        path.write_text(json.dumps(manifest))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return
