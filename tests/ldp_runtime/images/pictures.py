"""Small pictures and files of every format, written by other libraries than ours."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from ldp_runtime.errors import ImageError
from ldp_runtime.images.decode import Photo
from ldp_runtime.images.photo import read_photo

ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
PREFIX = b"Exif\0\0"


def noise(*shape: int, dtype: Any = np.uint8, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


G8, G16 = noise(6, 9), noise(6, 9, dtype=np.uint16)
RGB8, RGB16 = noise(6, 9, 3), noise(6, 9, 3, dtype=np.uint16)
RGBA8, RGBA16 = noise(6, 9, 4), noise(6, 9, 4, dtype=np.uint16)


def gradient(h: int, w: int) -> np.ndarray:
    """RGB that JPEG hardly changes and that differs in all orientations."""
    y, x = np.mgrid[0:h, 0:w]
    return np.stack([20 + 200 * y // h, 20 + 200 * x // w, np.full((h, w), 90)], axis=2).astype(np.uint8)


def exif_block(orientation: int = 1, order: str = "<") -> bytes:
    """An EXIF block with inner directories, a rational and a maker note."""
    exif = Image.Exif()
    exif.endian = order
    exif[0x0112] = orientation
    exif[0x010F] = "Maker"
    exif[0x8769] = {0x829A: 0.01, 0x927C: b"maker\0note" * 20, 0xA002: 40, 0xA003: 24}
    exif[0x8825] = {1: "N", 2: (1.0, 2.0, 3.0)}
    return exif.tobytes().removeprefix(PREFIX)


def tiff(array: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **{"metadata": None, "photometric": "rgb", **options})
    return buffer.getvalue()


def pillow(picture: np.ndarray | Image.Image, kind: str, mode: str | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    (image if mode is None else image.convert(mode)).save(buffer, kind, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png16(array: np.ndarray, colour_type: int, *chunks: bytes) -> bytes:
    """A 16-bit PNG with filter "None"."""
    height, width = array.shape[:2]
    rows = np.ascontiguousarray(array.astype(">u2")).view(np.uint8).reshape(height, -1)
    raw = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1).tobytes()
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0))
    pixels = png_chunk(b"IDAT", zlib.compress(raw))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + pixels + png_chunk(b"IEND", b"")


def read(folder: Path, data: bytes) -> Photo:
    (folder / "file").write_bytes(data)
    return read_photo(folder / "file")


def refusal(folder: Path, data: bytes) -> str:
    """The message of the error that reading raises: one line that names the file."""
    with pytest.raises(ImageError) as caught:
        read(folder, data)
    text = str(caught.value)
    assert "\n" not in text
    assert str(folder / "file") in text
    return text
