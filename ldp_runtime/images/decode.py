"""What the file formats share: a decoded photo, what a format is, limits, and decoding by Pillow and OpenCV."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from ldp_runtime.errors import ImageError, one_line

MAX_PIXELS = 2**28
"""Largest picture that is decoded; a header that claims more is refused before any memory is taken. The largest
dual-pixel sensors have 8736 x 11648 px, 2.6 times less."""

MAX_SIDE = 65535
"""Longest side in px of a picture that is decoded."""

DEFLATE_RATIO = 1040
"""Most bytes that a byte of a deflate stream stands for; a header that claims more is false."""


@dataclass(frozen=True)
class Photo:
    """One decoded photograph, upright, and what the file of its restoration keeps.

    Attributes:
        pixels: ``(h, w, 3)`` RGB, uint8 or uint16, full range, EXIF orientation applied.
        grey: The file has one colour channel; it is repeated in ``pixels`` and written as one channel again.
        alpha: ``(h, w)`` of the same dtype, not premultiplied, or None.
        icc_profile: The ICC profile, or None.
        exif: The EXIF block from its byte-order mark on (no ``Exif`` prefix), orientation reset to 1, without
            thumbnail, or None.
        dpi: Horizontal and vertical resolution in pixels per inch, or None.
        orientation: The EXIF orientation (1 to 8) that was applied; it says where the sensor's x axis points.
        notes: How the pixels were made of what the file holds, where that is more than decoding; sentences.
    """

    pixels: np.ndarray
    grey: bool = False
    alpha: np.ndarray | None = None
    icc_profile: bytes | None = None
    exif: bytes | None = None
    dpi: tuple[float, float] | None = None
    orientation: int = 1
    notes: tuple[str, ...] = ()


class Decoded(NamedTuple):
    """A picture as its file stores it: pixels ``(h, w, c)`` uint8 or uint16, and its metadata, where there is any.

    c is 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGBA); float32 is linear light, of which ``white`` is the largest
    value that the file names. ``exif`` is a block with or without its ``Exif`` prefix, or a whole TIFF file, whose
    start is one; ``dpi`` is horizontal and vertical.
    """

    pixels: np.ndarray
    icc_profile: bytes | None
    exif: bytes | None
    dpi: tuple[float, float] | None
    white: float | None = None


@dataclass(frozen=True)
class Format:
    """A file format of photos; ``ldp_runtime.images.photo`` lists all.

    Attributes:
        name: Its name, as people write it.
        suffixes: The suffixes of its files, the usual one first.
        signatures: What its files begin with.
        size: Content -> the width and height in px that the header claims.
        decode: Content -> picture. Raises UnsupportedError; any other exception means a damaged file.
        cannot_hold: Photo -> what the format cannot hold of it, with the fix; None if it holds everything.
        encode: Pixels ``(h, w, c)`` uint8 or uint16 with c as in ``Decoded``, and the photo with the metadata ->
            content.
    """

    name: str
    suffixes: tuple[str, ...]
    signatures: tuple[bytes, ...]
    size: Callable[[bytes], tuple[int, int]]
    decode: Callable[[bytes], Decoded]
    cannot_hold: Callable[[Photo], str | None]
    encode: Callable[[np.ndarray, Photo], bytes]


class UnsupportedError(Exception):
    """An intact picture of a kind that is not read; the message continues the file's name."""


@contextlib.contextmanager
def decoding(path: Path) -> Iterator[None]:
    """Turns what a decoder raises into an ImageError: a damaged file may give nearly any exception."""
    try:
        yield
    except (ImageError, MemoryError):
        raise
    except UnsupportedError as error:
        raise ImageError(f"{path} {error}") from None
    except Image.DecompressionBombError as error:  # Pillow's own limit, for kinds of TIFF that only it decodes
        raise ImageError(f"{path} is too large for this kind of TIFF ({error}); save it as PNG") from error
    except Exception as error:
        if isinstance(error, cv2.error) and error.code == cv2.Error.StsNoMem:
            raise MemoryError(one_line(error)) from error
        raise ImageError(f"{path} is damaged or truncated ({one_line(error)}); copy or export it again") from error


def check_size(width: int, height: int) -> None:
    """Checks the size that a header claims.

    Raises:
        ValueError: It has no pixels.
        UnsupportedError: It has more than ``MAX_PIXELS``, or a side is longer than ``MAX_SIDE``.
    """
    if width * height == 0:
        raise ValueError(f"it claims {width} x {height} pixels")
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise UnsupportedError(
            f"claims {width} x {height} pixels; expected at most {MAX_PIXELS}, {MAX_SIDE} per side: crop or scale it"
        )


def decode_cv2(data: bytes) -> np.ndarray:
    """Decodes with OpenCV, no orientation applied, to ``(h, w, c)``; c as in ``Decoded``, but 4 for grey with alpha."""
    array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    if array is None:
        raise ValueError("the pixels cannot be decoded")
    if array.ndim == 2:
        return array[..., None]
    return array[..., [2, 1, 0, 3][: array.shape[2]]]  # BGR(A) -> RGB(A)


def decode_pillow(image: Image.Image) -> np.ndarray:
    """Decodes a picture of up to 8 bits per sample to ``(h, w, c)`` uint8, c as in ``Decoded``."""
    transparent = "transparency" in image.info
    targets = {
        "1": "L",
        "L": "LA" if transparent else "L",
        "LA": "LA",
        "La": "LA",
        "P": "RGBA" if transparent else "RGB",
        "PA": "RGBA",
        "RGB": "RGBA" if transparent else "RGB",
        "RGBA": "RGBA",
        "RGBa": "RGBA",
        "RGBX": "RGB",
        "YCbCr": "RGB",
    }
    if image.mode not in targets:
        raise UnsupportedError(f"stores {image.mode} pixels; expected 8- or 16-bit grey or RGB: convert it to RGB")
    # Pillow has no direct way from La to LA.
    image = image.convert("RGBA").convert("LA") if image.mode == "La" else image.convert(targets[image.mode])
    return np.asarray(image).reshape(image.height, image.width, -1)
