"""What raw files hold beside the frames that LibRaw decodes: which kind a file is, its metadata, a second raw image.

DNG and CR2 are TIFF files; CR3 is made of boxes as MP4 is, with the EXIF data in boxes of their own.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from ldp_runtime.images.exif import ByteOrder, header, read_block, write_directory

SUFFIXES = (".cr2", ".cr3", ".dng")
"""Suffixes of the raw files that may hold both views."""

_TIFF = (b"II*\0", b"MM\0*")
_DNG_VERSION = 0xC612
_EXIF_DIRECTORY, _GPS_DIRECTORY = 0x8769, 0x8825
_METADATA_BOX = bytes.fromhex("85c0b687820f11e08111f4ce462b6a48")  # Canon's uuid box inside moov
_LONGEST_METADATA = 2**24
_MAKER_NOTE, _LIGHTING = 0x927C, 0x4018
_DUAL_PIXEL = 0x0B
"""The place of DualPixelRaw in Canon's LightingOpt."""

_PHOTOMETRIC, _CFA = 262, 32803
_SUB_DIRECTORIES = 330
# Where the data of a raw image lies and how it is packed, and its levels.
_DATA_TAGS = (259, 273, 278, 279, 322, 323, 324, 325, 50714, 50717)
MOST_DIRECTORIES = 32
"""Directories of a TIFF file that are looked through for raw images."""


def is_raw(data: bytes) -> bool:
    """Whether this is the content of a DNG, CR2 or CR3 file."""
    if data[4:12] == b"ftypcrx ":
        return True
    if data[:4] not in _TIFF:
        return False
    return data[8:10] == b"CR" or _DNG_VERSION in read_block(data)[1]


def metadata_block(data: bytes) -> bytes:
    """The EXIF data of a raw file as a block that ``clean_exif`` reads; empty if there is none."""
    if data[:4] in _TIFF:
        return data
    boxes = _canon_boxes(data)
    order, tags = read_block(boxes.get(b"CMT1", b""))
    for name, pointer in ((b"CMT2", _EXIF_DIRECTORY), (b"CMT4", _GPS_DIRECTORY)):
        inner_order, inner_tags = read_block(boxes.get(name, b""))
        if inner_tags and inner_order == order:
            tags[pointer] = inner_tags
    return header(order, 8) + write_directory(order, tags, 8) if tags else b""


def dual_pixel_tag(data: bytes) -> bool | None:
    """Whether Canon's maker note says that Dual Pixel RAW was on; None if it does not say."""
    if data[:4] in _TIFF:
        block, start = data, _pointed(data, _EXIF_DIRECTORY, _MAKER_NOTE)
    else:
        block = _canon_boxes(data).get(b"CMT3", b"")
        start = _first_directory(block)
    order = _order(block)
    entry = _entries(block, order, start).get(_LIGHTING)
    if entry is None:
        return None
    _, count, at = struct.unpack_from(order + "HII", block, entry + 2)
    if count <= _DUAL_PIXEL or at + 4 * count > len(block):
        return None
    return bool(struct.unpack_from(order + "I", block, at + 4 * _DUAL_PIXEL)[0] != 0)


def _pointed(data: bytes, *pointers: int) -> int:
    """Where the directory begins to which a chain of entries points; 0 if there is none."""
    order, start = _order(data), _first_directory(data)
    for tag in pointers:
        entry = _entries(data, order, start).get(tag)
        if entry is None:
            return 0
        (start,) = struct.unpack_from(order + "I", data, entry + 8)
    return start


def _canon_boxes(data: bytes) -> dict[bytes, bytes]:
    """The metadata boxes of a CR3 file: kind -> content."""
    for kind, start, end in _boxes(data, 0, len(data)):
        if kind == b"moov":
            for inner, first, last in _boxes(data, start, end):
                if inner == b"uuid" and data[first : first + 16] == _METADATA_BOX:
                    last = min(last, first + _LONGEST_METADATA)
                    return {name: data[a:b] for name, a, b in _boxes(data, first + 16, last)}
    return {}


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """The boxes between two offsets: kind, and where its content begins and ends."""
    while start + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, start)
        head = 8
        if size == 1 and start + 16 <= end:
            (size,) = struct.unpack_from(">Q", data, start + 8)
            head = 16
        elif size == 0:
            size = end - start
        if size < head or start + size > end:
            return
        yield kind, start + head, start + size
        start += size


def with_second_image(data: bytes) -> bytes | None:
    """Of a DNG with two raw images of one size, the same file with the second one in place of the first.

    LibRaw always decodes the first of them. Entries of directories hold absolute offsets, so those that say where the
    data lies can be copied as they are.

    Returns:
        The changed content; None if the file has no second raw image.
    """
    if data[:4] not in _TIFF:
        return None
    order = _order(data)
    images = []
    for entries in _directories(data, order):
        values = {tag: _first_value(data, order, at) for tag, at in entries.items()}
        if values.get(_PHOTOMETRIC) == _CFA:
            images.append((entries, (values.get(256), values.get(257), values.get(277))))
    if len(images) < 2 or images[0][1] != images[1][1]:
        return None
    first, second = images[0][0], images[1][0]
    patched = bytearray(data)
    for tag in _DATA_TAGS:
        if tag in first and tag in second:
            patched[first[tag] : first[tag] + 12] = data[second[tag] : second[tag] + 12]
    return bytes(patched)


def _order(data: bytes) -> ByteOrder:
    return ">" if data[:2] == b"MM" else "<"


def _first_directory(data: bytes) -> int:
    return int(struct.unpack_from(_order(data) + "I", data, 4)[0]) if len(data) >= 8 else 0


def _entries(data: bytes, order: ByteOrder, start: int) -> dict[int, int]:
    """The directory at an offset: tag -> where its entry lies; empty if it is not whole."""
    if not 8 <= start <= len(data) - 2:
        return {}
    end = start + 2 + 12 * struct.unpack_from(order + "H", data, start)[0]
    if end + 4 > len(data):
        return {}
    return {struct.unpack_from(order + "H", data, at)[0]: at for at in range(start + 2, end, 12)}


def _directories(data: bytes, order: ByteOrder) -> Iterator[dict[int, int]]:
    """The directories of a TIFF file, inner ones too, as ``_entries`` gives them."""
    pending, seen = [_first_directory(data)], set[int]()
    while pending and len(seen) < MOST_DIRECTORIES:
        start = pending.pop(0)
        if start in seen:
            continue
        seen.add(start)
        entries = _entries(data, order, start)
        if not entries:
            continue
        yield entries
        if _SUB_DIRECTORIES in entries:
            _, number, value = struct.unpack_from(order + "HII", data, entries[_SUB_DIRECTORIES] + 2)
            number = min(number, MOST_DIRECTORIES)
            if number == 1:
                pending.append(value)
            elif value + 4 * number <= len(data):
                pending += struct.unpack_from(f"{order}{number}I", data, value)
        pending.append(struct.unpack_from(order + "I", data, start + 2 + 12 * len(entries))[0])


def _first_value(data: bytes, order: ByteOrder, entry: int) -> int:
    """The value of an entry that holds one SHORT or LONG; of others something else."""
    kind, _, value = struct.unpack_from(order + "HII", data, entry + 2)
    return int(struct.unpack_from(order + "H", data, entry + 8)[0] if kind == 3 else value)
