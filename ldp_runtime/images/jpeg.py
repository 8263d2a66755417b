"""JPEG: the cost of decoding is checked marker by marker, then Pillow reads and writes."""

from __future__ import annotations

import io
import re
import struct

import numpy as np
from PIL import Image, JpegImagePlugin

from ldp_runtime.images.decode import Decoded, Format, Photo, check_size, decode_pillow

MAX_SCANS = 100
"""Most scans of a file. Progressive files have some ten; each costs the time of a picture, however short it is."""

_QUALITY = 95
_MAX_SIDE = 65535
_MAX_EXIF = 65533 - len(b"Exif\0\0")
_PIXELS_PER_BYTE = 1024  # a bit for each block of 8 x 8 px and component
# A marker that is no fill byte, no escaped 0xff and no restart within a scan.
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_END, _SCAN = 0xD9, 0xDA
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_ARITHMETIC_FRAMES = frozenset(range(0xC9, 0xD0))


def _size(data: bytes) -> tuple[int, int]:
    return JpegImagePlugin.JpegImageFile(io.BytesIO(data)).size


def _decode(data: bytes) -> Decoded:
    _check_markers(data)
    image = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
    return Decoded(decode_pillow(image), *(image.info.get(key) for key in ("icc_profile", "exif", "dpi")))


def _check_markers(data: bytes) -> None:
    """Checks the cost of decoding.

    Raises:
        UnsupportedError: The picture is too large.
        ValueError: The file has no header, several, more scans than any encoder writes, or too few bytes.
    """
    frames = scans = segment_end = 0
    for marker in _MARKER.finditer(data, 2):
        if marker.start() < segment_end:
            continue
        code = marker[0][-1]
        segment_end = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
        if code == _END:
            break
        if code == _SCAN:
            scans += 1
        elif code in _FRAMES:
            frames += 1
            if frames > 1:
                raise ValueError("it has several headers")
            height, width = struct.unpack_from(">HH", data, marker.end() + 3)
            check_size(width, height)
            if code not in _ARITHMETIC_FRAMES and width * height > len(data) * _PIXELS_PER_BYTE:
                raise ValueError(f"{len(data)} bytes cannot hold the {width} x {height} pixels that it claims")
    if frames == 0:
        raise ValueError("it has no header")
    if scans > MAX_SCANS:
        raise ValueError(f"it has {scans} scans; at most {MAX_SCANS} are read")


def _cannot_hold(photo: Photo) -> str | None:
    height, width = photo.pixels.shape[:2]
    fix = "choose a .png or .tif name"
    if photo.pixels.dtype == np.uint16:
        return f"JPEG holds 8 bits and the photo has 16; {fix}"
    if photo.alpha is not None and photo.alpha.min() < np.iinfo(photo.alpha.dtype).max:
        return f"JPEG holds no alpha and the photo has some; {fix}"
    if max(height, width) > _MAX_SIDE:
        return f"JPEG holds {_MAX_SIDE} px per side, not {width} x {height}; {fix}"
    if photo.exif is not None and len(photo.exif) > _MAX_EXIF:
        return f"JPEG holds 64 KiB of EXIF, not {len(photo.exif)} bytes; {fix}"
    return None


def _encode(array: np.ndarray, photo: Photo) -> bytes:
    exif = None if photo.exif is None else b"Exif\0\0" + photo.exif
    options = {"icc_profile": photo.icc_profile, "exif": exif, "dpi": photo.dpi}
    buffer = io.BytesIO()
    Image.fromarray(array[..., 0] if photo.grey else array[..., :3]).save(
        buffer, "JPEG", quality=_QUALITY, subsampling=0, **{k: v for k, v in options.items() if v is not None}
    )
    return buffer.getvalue()


JPEG = Format("JPEG", (".jpg", ".jpeg"), (b"\xff\xd8\xff",), _size, _decode, _cannot_hold, _encode)
