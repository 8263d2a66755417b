"""Decoding shared by the formats: limits, and the two libraries."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from ldp_runtime.errors import ImageError, one_line

MAX_PIXELS = 2**28
"""Largest picture that is decoded; a header that claims more is refused before any memory is taken. The largest
dual-pixel sensors have 8736 x 11648 px, 2.6 times less."""

MAX_SIDE = 65535
"""Longest side in px of a picture that is decoded."""

# Pixels (h, w, c) as stored, ICC profile, EXIF block, dpi.
Decoded = tuple[np.ndarray, bytes | None, bytes | None, tuple[float, float] | None]

DEFLATE_LEVEL = 4  # within 3 % of the size of level 6 on noisy photos, in a fraction of its time

# No stream of these formats holds more than this for a byte, so that a header that claims more is false.
DEFLATE_RATIO = 1040


@dataclass(frozen=True)
class Photo:
    """One decoded photograph, upright, and what has to be carried over to the file of its restoration.

    Attributes:
        pixels: ``(h, w, 3)`` RGB, uint8 or uint16, full range, EXIF orientation applied.
        grey: The file has one colour channel; it is repeated in ``pixels`` and written as one channel again.
        alpha: ``(h, w)`` of the same dtype, not premultiplied, or None.
        icc_profile: The ICC profile, or None.
        exif: The EXIF block from its byte-order mark on (no ``Exif`` prefix), orientation reset to 1, without
            thumbnail, or None.
        dpi: Horizontal and vertical resolution in pixels an inch, or None.
        orientation: The EXIF orientation (1 to 8) that was applied; tells where the sensor's x axis points.
    """

    pixels: np.ndarray
    grey: bool = False
    alpha: np.ndarray | None = None
    icc_profile: bytes | None = None
    exif: bytes | None = None
    dpi: tuple[float, float] | None = None
    orientation: int = 1


@contextlib.contextmanager
def decoding(path: Path) -> Iterator[None]:
    """Turns whatever a decoder raises into an ImageError: a damaged file may give nearly any exception."""
    try:
        yield
    except (ImageError, MemoryError):
        raise
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise MemoryError(one_line(error)) from error
        raise ImageError(f"{path} is damaged or truncated ({one_line(error)}); copy or export it again") from error
    except Image.DecompressionBombError as error:  # Pillow's own limit, for kinds of TIFF that only it decodes
        raise ImageError(f"{path} is too large for this kind of TIFF ({error}); save it as PNG") from error
    except Exception as error:
        raise ImageError(f"{path} is damaged or truncated ({one_line(error)}); copy or export it again") from error


def check_size(path: Path, width: int, height: int) -> None:
    """Raises if a header claims no pixels, or more than ``MAX_PIXELS`` or ``MAX_SIDE`` allow."""
    if width * height == 0:
        raise ValueError(f"it claims {width} x {height} pixels")
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise ImageError(
            f"{path} claims {width} x {height} pixels; expected at most {MAX_PIXELS}, and {MAX_SIDE} a side: crop or "
            "scale it"
        )


def decode_cv2(data: bytes) -> np.ndarray:
    """Decodes with OpenCV, as stored: BGR, no orientation applied."""
    array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    if array is None:
        raise ValueError("the pixels cannot be decoded")
    if array.ndim == 2:
        return array[..., None]
    array = array[..., [2, 1, 0, 3][: array.shape[2]]]  # BGR(A) -> RGB(A)
    grey_with_alpha = data.startswith(PNG_SIGNATURE) and data[25] == 4  # OpenCV repeats the grey
    return array[..., [0, 3]] if grey_with_alpha else array


def decode_pillow(path: Path, image: Image.Image) -> np.ndarray:
    """Decodes a picture of up to 8 bits a sample.

    Returns:
        ``(h, w, c)`` uint8: c is 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGBA).
    """
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
        raise ImageError(f"{path} stores {image.mode} pixels; expected 8- or 16-bit grey or RGB: convert it to RGB")
    # Pillow has no direct way from La to LA.
    image = image.convert("RGBA").convert("LA") if image.mode == "La" else image.convert(targets[image.mode])
    array = np.asarray(image)
    return array.reshape(image.height, image.width, -1)


PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
