"""EXIF blocks and TIFF directories, which are one format: read, filtered, written.

Entries stay raw bytes, so that types and values survive exactly; Pillow would guess the types again.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Literal

ByteOrder = Literal["<", ">"]
Entry = tuple[int, int, bytes]
"""Type, count and raw value of a tag, in the byte order of its block."""
Directory = dict[int, "Entry | Directory"]
"""Tags of a directory; an inner directory replaces the pointer to it."""

SHORT, LONG, RATIONAL, UNDEFINED = 3, 4, 5, 7
_TYPE_SIZES = dict(enumerate((1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4), start=1))

_ORIENTATION = 0x0112
_EXIF_DIRECTORY, _GPS_DIRECTORY = 0x8769, 0x8825
_INTEROPERABILITY_DIRECTORY = 0xA005
_PIXEL_X_DIMENSION, _PIXEL_Y_DIMENSION = 0xA002, 0xA003

# Tags of the first directory that describe the photograph. The others describe how one file stores it (size,
# strips, compression, resolution) and may be wrong in the next file.
_DESCRIPTIVE_TAGS = (
    0x010E,  # ImageDescription
    0x010F,  # Make
    0x0110,  # Model
    0x0131,  # Software
    0x0132,  # DateTime
    0x013B,  # Artist
    0x013C,  # HostComputer
    0x4746,  # Rating
    0x4749,  # RatingPercent
    0x8298,  # Copyright
    0x9C9B,  # XPTitle
    0x9C9C,  # XPComment
    0x9C9D,  # XPAuthor
    0x9C9E,  # XPKeywords
    0x9C9F,  # XPSubject
)


def clean_exif(block: bytes) -> tuple[int, bytes | None]:
    """Keeps the tags that hold for an upright restoration too: orientation 1, no thumbnail.

    Entries too damaged to read are dropped: they are no reason to refuse a picture.

    Args:
        block: An EXIF block, with or without its ``Exif`` prefix, or a whole TIFF file, whose start is one.

    Returns:
        The orientation that was stored, 1 to 8; and the block without prefix, or None if nothing is left.
    """
    order, tags = read_block(block)
    orientation = 1
    match tags.get(_ORIENTATION):
        case (3, 1, bytes(raw)):
            (orientation,) = struct.unpack(order + "H", raw)
    if orientation not in range(1, 9):
        orientation = 1

    kept = {tag: tags[tag] for tag in _DESCRIPTIVE_TAGS if tag in tags}
    for pointer in (_EXIF_DIRECTORY, _GPS_DIRECTORY):
        inner = tags.get(pointer)
        if isinstance(inner, dict):
            inner.pop(_INTEROPERABILITY_DIRECTORY, None)  # describes the old file
            if orientation >= 5 and _PIXEL_X_DIMENSION in inner and _PIXEL_Y_DIMENSION in inner:
                x, y = inner[_PIXEL_X_DIMENSION], inner[_PIXEL_Y_DIMENSION]
                inner[_PIXEL_X_DIMENSION], inner[_PIXEL_Y_DIMENSION] = y, x
            kept[pointer] = inner
    if not kept:
        return orientation, None
    kept[_ORIENTATION] = numbers(order, SHORT, 1)
    return orientation, header(order, 8) + write_directory(order, kept, 8)


def read_block(block: bytes) -> tuple[ByteOrder, Directory]:
    """Reads the first directory of an EXIF block or a TIFF file, with its EXIF and GPS directories.

    Returns:
        The byte order and the tags; none if there is no readable directory.
    """
    block = block.removeprefix(b"Exif\0\0")
    order: ByteOrder = ">" if block[:2] == b"MM" else "<"
    if block[:4] not in (b"II*\0", b"MM\0*") or len(block) < 8:
        return order, {}
    tags = _read_directory(block, order, struct.unpack_from(order + "I", block, 4)[0])
    for pointer in (_EXIF_DIRECTORY, _GPS_DIRECTORY):
        match tags.pop(pointer, None):
            case (4 | 13, 1, bytes(raw)):
                inner = _read_directory(block, order, struct.unpack(order + "I", raw)[0])
                if inner:
                    tags[pointer] = inner
    return order, tags


def _read_directory(block: bytes, order: ByteOrder, start: int) -> Directory:
    if start + 2 > len(block):
        return {}
    tags: Directory = {}
    left = len(block)  # values do not overlap, so that a file of entries for one long value cannot fill the memory
    (count,) = struct.unpack_from(order + "H", block, start)
    for at in range(start + 2, min(start + 2 + 12 * count, len(block) - 11), 12):
        tag, kind, length = struct.unpack_from(order + "HHI", block, at)
        size = _TYPE_SIZES.get(kind, 0) * length
        begin = at + 8 if size <= 4 else struct.unpack_from(order + "I", block, at + 8)[0]
        if 0 < size <= min(left, len(block) - begin):
            tags[tag] = (kind, length, block[begin : begin + size])
            left -= size
    return tags


def header(order: ByteOrder, start: int) -> bytes:
    """The first 8 bytes of a block, whose first directory is at ``start``."""
    return (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, start)


def numbers(order: ByteOrder, kind: int, *values: int) -> Entry:
    """An entry of type SHORT, LONG, or RATIONAL (two values each)."""
    code = "H" if kind == SHORT else "I"
    raw = struct.pack(f"{order}{len(values)}{code}", *values)
    return kind, len(raw) // _TYPE_SIZES[kind], raw


def write_directory(order: ByteOrder, tags: Mapping[int, Entry | Directory], start: int) -> bytes:
    """Encodes a directory, with its long values and inner directories, for the even offset ``start``."""
    entries = struct.pack(order + "H", len(tags))
    values = b""  # follow the entries and the pointer to the next directory
    base = start + 2 + 12 * len(tags) + 4
    for tag, value in sorted(tags.items()):
        at = base + len(values)
        if isinstance(value, dict):
            kind, length, long_value = LONG, 1, write_directory(order, value, at)
            field = struct.pack(order + "I", at)
        else:
            kind, length, raw = value
            long_value = raw if len(raw) > 4 else b""
            field = struct.pack(order + "I", at) if long_value else raw.ljust(4, b"\0")
        values += long_value + b"\0" * (len(long_value) % 2)
        entries += struct.pack(order + "HHI", tag, kind, length) + field
    return entries + struct.pack(order + "I", 0) + values
