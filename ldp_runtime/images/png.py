"""PNG: chunks are checked, then Pillow reads 8 bits and OpenCV 16; the encoder is our own."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import PngImagePlugin

from ldp_runtime.images.decode import (
    DEFLATE_RATIO,
    Decoded,
    Format,
    Photo,
    UnsupportedError,
    check_size,
    decode_cv2,
    decode_pillow,
)
from ldp_runtime.images.deflate import STREAM_HEADER, deflate_part, stream_checksum, strip_rows
from ldp_runtime.threads import each

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
"""Channels -> colour type."""


def _size(data: bytes) -> tuple[int, int]:
    return PngImagePlugin.PngImageFile(io.BytesIO(data)).size


def _decode(data: bytes) -> Decoded:
    picture, exif = _check_chunks(data)
    image = PngImagePlugin.PngImageFile(io.BytesIO(data))
    if getattr(image, "n_frames", 1) > 1:
        raise UnsupportedError("is an animation; expected one picture: export one frame of it")
    bits, colour_type = data[24], data[25]
    if bits < 16:
        array = decode_pillow(image)
    else:
        array = decode_cv2(picture)
        if colour_type == _COLOUR_TYPES[2]:  # OpenCV repeats the grey
            array = array[..., [0, 3]]
    return Decoded(array, image.info.get("icc_profile"), exif, image.info.get("dpi"))


def _check_chunks(data: bytes) -> tuple[bytes, bytes | None]:
    """Checks the header, and the length and the CRC of each chunk, of a PNG file.

    Returns:
        The file without metadata, about which OpenCV would print warnings; and its EXIF block.

    Raises:
        UnsupportedError: The picture is too large.
        ValueError: The file is cut short, a checksum does not match, or it begins with another chunk than its header.
    """
    kept = [_SIGNATURE]
    exif = None
    start = len(_SIGNATURE)
    kind = b""
    width = height = bits = colour_type = packed = 0
    while kind != b"IEND":
        if start + 12 > len(data):
            raise ValueError("the file ends early")
        (length,) = struct.unpack_from(">I", data, start)
        end = start + 12 + length
        if end > len(data):
            raise ValueError("the file ends early")
        kind = data[start + 4 : start + 8]
        if (kind == b"IHDR") != (len(kept) == 1) or (kind == b"IHDR" and length != 13):
            raise ValueError("expected one header, first of all")
        if zlib.crc32(data[start + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            raise ValueError(f"wrong checksum in chunk {kind.decode('latin-1')}")
        if kind == b"IHDR":
            width, height, bits, colour_type = struct.unpack_from(">IIBB", data, start + 8)
            check_size(width, height)
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            kept.append(data[start:end])
        elif kind == b"eXIf":
            exif = data[start + 8 : end - 4]
        packed += length if kind == b"IDAT" else 0
        start = end
    channels = {colour: count for count, colour in _COLOUR_TYPES.items()}.get(colour_type, 1)  # 3: palette
    if width * height * channels * bits // 8 > packed * DEFLATE_RATIO:
        raise ValueError(f"{packed} bytes cannot hold the {width} x {height} pixels that it claims")
    return b"".join(kept), exif


def _encode(array: np.ndarray, photo: Photo) -> bytes:
    """Encodes each row as the difference from the row above, strip by strip; each strip is a chunk."""
    height, width, channels = array.shape
    rows = strip_rows(1 + width * channels * array.dtype.itemsize)

    def pack(y: int) -> tuple[bytes, tuple[int, int]]:
        filtered = _filtered(array, y, min(y + rows, height))
        body = deflate_part(filtered, last=y + rows >= height)
        checksum = zlib.adler32(filtered.data), filtered.size
        return _chunk(b"IDAT", body if y else STREAM_HEADER + body), checksum

    strips, checksums = zip(*each(pack, range(0, height, rows)), strict=True)
    header = struct.pack(">IIBBBBB", width, height, 8 * array.dtype.itemsize, _COLOUR_TYPES[channels], 0, 0, 0)
    chunks = [_SIGNATURE, _chunk(b"IHDR", header)]
    if photo.icc_profile is not None:
        chunks.append(_chunk(b"iCCP", b"ICC\0\0" + zlib.compress(photo.icc_profile)))
    if photo.dpi is not None:
        per_metre = (round(value / 0.0254) for value in photo.dpi)
        chunks.append(_chunk(b"pHYs", struct.pack(">IIB", *per_metre, 1)))
    if photo.exif is not None:
        chunks.append(_chunk(b"eXIf", photo.exif))
    end = _chunk(b"IDAT", struct.pack(">I", stream_checksum(checksums)))
    return b"".join((*chunks, *strips, end, _chunk(b"IEND", b"")))


def _filtered(array: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Some rows, big-endian, after filter type "Up": ``(stop - start, 1 + bytes of a row)`` uint8."""
    above = max(0, start - 1)
    block = np.ascontiguousarray(array[above:stop], dtype=array.dtype.newbyteorder(">"))
    rows = block.view(np.uint8).reshape(len(block), -1)
    filtered = np.empty((stop - start, 1 + rows.shape[1]), np.uint8)
    filtered[:, 0] = 2
    if start == 0:
        filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[start == 0 :, 1:])
    return filtered


def _chunk(kind: bytes, body: bytes) -> bytes:
    return b"".join((struct.pack(">I", len(body)), kind, body, struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))))


PNG = Format("PNG", (".png",), (_SIGNATURE,), _size, _decode, lambda photo: None, _encode)
