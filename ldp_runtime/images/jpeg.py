"""Reading JPEG files."""

from __future__ import annotations

import io
import re
import struct
from pathlib import Path

from PIL import JpegImagePlugin

from ldp_runtime.images.decode import Decoded, check_size, decode_pillow, decoding

MAX_JPEG_SCANS = 100
"""Most scans of a JPEG file. Progressive files have some ten; each takes the time of a picture, however short it is."""

_JPEG_PIXELS_A_BYTE = 1024  # a bit for each block of 8 x 8 px and component

# A marker that is no fill byte, no escaped 0xff and no restart within a scan; those of headers; of arithmetic coding.
_JPEG_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")

_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}

_JPEG_ARITHMETIC = frozenset(range(0xC9, 0xD0))


def read_jpeg(path: Path, data: bytes) -> Decoded:
    """Decodes a JPEG file after its limits were checked."""
    with decoding(path):
        _check_jpeg(path, data)
        image = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
        info = image.info
        return decode_pillow(path, image), info.get("icc_profile"), info.get("exif"), info.get("dpi")


def _check_jpeg(path: Path, data: bytes) -> None:
    """Checks, marker by marker, what a JPEG file would take to decode.

    Raises:
        ImageError: The picture is too large.
        ValueError: The file has no header, several, more scans than any encoder writes, or too few bytes.
    """
    frames = scans = at = 0
    for marker in _JPEG_MARKER.finditer(data, 2):
        if marker.start() < at:  # within a segment
            continue
        code = marker[0][-1]
        at = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
        if code == 0xD9:
            break
        if code == 0xDA:
            scans += 1
        elif code in _JPEG_FRAMES:
            frames += 1
            if frames > 1:
                raise ValueError("it has several headers")
            height, width = struct.unpack_from(">HH", data, marker.end() + 3)
            check_size(path, width, height)
            if code not in _JPEG_ARITHMETIC and width * height > len(data) * _JPEG_PIXELS_A_BYTE:
                raise ValueError(f"{len(data)} bytes cannot hold the {width} x {height} pixels that it claims")
    if frames == 0:
        raise ValueError("it has no header")
    if scans > MAX_JPEG_SCANS:
        raise ValueError(f"it has {scans} scans, more than the {MAX_JPEG_SCANS} that are read")
