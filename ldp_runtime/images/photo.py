"""Reading and writing photographs at 8 and 16 bits, with their metadata; linear light in 32-bit TIFF is read too.

Pillow has no 16-bit RGB. So it reads JPEG and 8-bit PNG, OpenCV reads 16-bit PNG, and tifffile reads TIFF,
except what it cannot unpack alone: there Pillow (8 bits) and OpenCV (16-bit LZW) step in. PNG and TIFF have encoders
of our own, for every depth and number of channels: no library of the base install writes 16-bit grey with alpha to
PNG, or EXIF to 16-bit TIFF.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from ldp_runtime.errors import ImageError
from ldp_runtime.files import cannot_read, write_files
from ldp_runtime.images.decode import Decoded, Format, Photo, UnsupportedError, decoding
from ldp_runtime.images.exif import clean_exif
from ldp_runtime.images.jpeg import JPEG
from ldp_runtime.images.linear import encode_srgb
from ldp_runtime.images.orientation import upright
from ldp_runtime.images.png import PNG
from ldp_runtime.images.pnm import PGM, PPM
from ldp_runtime.images.tiff import TIFF
from ldp_runtime.threads import each

FORMATS = (PNG, TIFF, JPEG, PGM, PPM)
"""Every format that is read and written."""

SUFFIXES = {suffix: kind for kind in FORMATS for suffix in kind.suffixes}
"""Suffix of a file name -> the format that it selects."""

MAX_FILE_BYTES = 2**32
"""Largest image file that is read: the largest picture with alpha at 16 bits needs half of it."""

_NAMES = f"{', '.join(kind.name for kind in FORMATS[:-1])} or {FORMATS[-1].name}"
_NEAR_WHITE = 0.5
_MAX_DPI = 65535  # the most that JPEG can hold


def read_photo(path: str | os.PathLike[str]) -> Photo:
    """Reads a file of one of ``FORMATS`` and turns it upright.

    Grey, palette and 1-bit pictures become RGB; a JPEG with several pictures inside gives its main one; linear light is
    encoded as sRGB, 16 bits.

    Args:
        path: The file. Its first bytes select the format, not its suffix.

    Returns:
        The photo, with ``pixels`` ``(h, w, 3)`` uint8 or uint16.

    Raises:
        ImageError: The file is missing, unreadable, damaged or truncated, of another format, too large, or
            stores samples that are not 8- or 16-bit or floating-point grey or RGB.
    """
    path = Path(path)
    return decode_photo(path, read_bytes(path))


def decode_photo(name: str | os.PathLike[str], data: bytes) -> Photo:
    """Decodes the content of a file, as ``read_photo`` does.

    Args:
        name: The name in error messages; it is not opened.
        data: The content.

    Raises:
        ImageError: As for ``read_photo``.
    """
    return decode_photos([(name, data)])[0]


def decode_photos(files: Sequence[tuple[str | os.PathLike[str], bytes]]) -> list[Photo]:
    """Decodes files of one photo side by side, as ``read_photo`` does; those in linear light get one exposure.

    Args:
        files: Name and content of each, as for ``decode_photo``.

    Raises:
        ImageError: As for ``read_photo``.
    """
    pictures = each(_decode, files)
    white = max((_white(picture) for picture in pictures if picture.pixels.dtype == np.float32), default=1.0)
    return [_make_photo(picture, white) for picture in pictures]


def _decode(file: tuple[str | os.PathLike[str], bytes]) -> Decoded:
    path, data = Path(file[0]), file[1]
    with decoding(path):
        decoded = _format_of_content(path, data).decode(data)
        if decoded.pixels.dtype == np.float32 and not np.isfinite(decoded.pixels).all():
            raise UnsupportedError("holds NaN or infinite values; expected finite ones: export it again")
    return decoded


def _white(picture: Decoded) -> float:
    """The value of full light: as the file says, else 1 if the values are close to it, else the largest."""
    if picture.white is not None:
        return picture.white
    colours = picture.pixels[..., : 1 if picture.pixels.shape[2] <= 2 else 3]
    largest = float(colours.max())
    return largest if largest > 1 or 0 < largest < _NEAR_WHITE else 1.0


def _make_photo(decoded: Decoded, white: float) -> Photo:
    """Turns a picture upright and splits it; linear light is encoded, with ``white`` as the value of full light."""
    array, icc_profile, exif_block, dpi, _ = decoded
    orientation, exif = clean_exif(exif_block or b"")
    notes: tuple[str, ...] = ()
    if array.dtype == np.float32:
        colours = array.shape[2] - (array.shape[2] + 1) % 2
        alpha = np.rint(65535 * array[..., colours:].clip(0, 1)).astype(np.uint16)
        array = np.concatenate([encode_srgb(array[..., :colours], white=white), alpha], axis=2)
        icc_profile = None  # it describes linear light
        notes = (f"linear floating-point samples were encoded as sRGB, with {white:.6g} as white",)
    array = upright(array, orientation)
    if dpi is not None:
        x, y = reversed(dpi) if orientation >= 5 else dpi
        dpi = (float(x), float(y)) if 0 < x < _MAX_DPI and 0 < y < _MAX_DPI else None
    channels = array.shape[2]
    grey = channels <= 2
    return Photo(
        pixels=np.ascontiguousarray(np.repeat(array[..., :1], 3, axis=2) if grey else array[..., :3]),
        grey=grey,
        alpha=np.ascontiguousarray(array[..., -1]) if channels in (2, 4) else None,
        icc_profile=icc_profile if isinstance(icc_profile, bytes) else None,  # a damaged tag may hold numbers
        exif=exif,
        dpi=dpi,
        orientation=orientation,
        notes=notes,
    )


def photo_size(name: str | os.PathLike[str], data: bytes) -> tuple[int, int]:
    """Returns the width and height in px that the header of a file claims; no pixel is decoded.

    Args:
        name: The name in error messages; it is not opened.
        data: The content. The EXIF orientation is not applied.

    Raises:
        ImageError: The content has another format, or a header that cannot be read.
    """
    path = Path(name)
    with decoding(path):
        return _format_of_content(path, data).size(data)


def _format_of_content(path: Path, data: bytes) -> Format:
    for kind in FORMATS:
        if data.startswith(kind.signatures):
            return kind
    raise ImageError(f"{path} is not a {_NAMES} file; convert it to one of them")


def read_bytes(path: Path) -> bytes:
    """Reads a regular file of at most ``MAX_FILE_BYTES``.

    Raises:
        ImageError: It is missing, empty, too large, or cannot be read.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{path} is {'a folder' if path.is_dir() else 'not a regular file'}; give an image file")
        if status.st_size > MAX_FILE_BYTES:
            raise ImageError(f"{path} has {status.st_size} bytes; expected at most {MAX_FILE_BYTES}: crop or scale it")
        data = path.read_bytes()
    except FileNotFoundError:
        raise ImageError(f"{path} does not exist; check the name and the folder") from None
    except OSError as error:
        raise ImageError(cannot_read(path, error)) from error
    except ValueError as error:  # a NUL in the name
        raise ImageError(f"{path} cannot be read: {error}; check its name") from error
    if not data:
        raise ImageError(f"{path} is empty (0 bytes); copy or export it again")
    return data


def write_photo(path: str | os.PathLike[str], photo: Photo) -> None:
    """Writes a photo in the format of the suffix, at its own depth and with its metadata, atomically.

    Args:
        path: A name that ends in one of ``SUFFIXES``, in any case. An existing file is replaced.
        photo: The photo. PNG and TIFF are lossless; JPEG has high quality and no chroma subsampling.

    Raises:
        ImageError: The format does not exist or cannot hold the photo (see ``check_format``).
        WriteError: The file cannot be written.
    """
    write_files({Path(path): encode_photo(path, photo)})


def write_pixels(path: str | os.PathLike[str], pixels: np.ndarray) -> None:
    """Writes ``(h, w)`` as grey or ``(h, w, 3)`` as RGB, uint8 or uint16; otherwise as ``write_photo``."""
    grey = pixels.ndim == 2
    write_photo(path, Photo(np.repeat(pixels[..., None], 3, axis=2) if grey else pixels, grey=grey))


def image_format(path: str | os.PathLike[str]) -> Format:
    """Returns the format that the suffix of ``path`` selects.

    Raises:
        ImageError: The suffix is none of ``SUFFIXES``.
    """
    return SUFFIXES[check_suffix(path, SUFFIXES)]


def check_suffix(path: str | os.PathLike[str], suffixes: Collection[str]) -> str:
    """The suffix of an output, in lower case.

    Raises:
        ImageError: It is none of ``suffixes``.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in suffixes:
        if Path(path).is_dir():
            raise ImageError(f"{path} is a folder; give a file name in it")
        got = repr(suffix) if suffix else "no suffix"
        raise ImageError(f"{path}: expected a name that ends in {', '.join(suffixes)}, got {got}; rename it")
    return suffix


def check_format(path: str | os.PathLike[str], photo: Photo) -> Format:
    """Checks that the format that the suffix of ``path`` selects holds everything of ``photo``, and returns it.

    Raises:
        ImageError: The suffix is unknown; the pixels are no ``(h, w, 3)`` of uint8 or uint16; JPEG is asked
            to hold 16 bits, alpha that is not opaque, more than 65535 px per side or too much EXIF; or TIFF
            more than 4 GiB.
    """
    kind = image_format(path)
    if photo.pixels.ndim != 3 or photo.pixels.shape[2] != 3 or photo.pixels.dtype not in (np.uint8, np.uint16):
        raise ImageError(
            f"{path}: expected pixels (h, w, 3) of uint8 or uint16, got {photo.pixels.shape} of "
            f"{photo.pixels.dtype}; convert them"
        )
    problem = kind.cannot_hold(photo)
    if problem is not None:
        raise ImageError(f"{path}: {problem}")
    return kind


def encode_photo(path: str | os.PathLike[str], photo: Photo) -> bytes:
    """Encodes a photo for ``path`` without writing it.

    Raises:
        ImageError: As for ``check_format``.
    """
    kind = check_format(path, photo)
    array = photo.pixels
    if photo.grey:
        array = ((array.sum(axis=2, dtype=np.uint32, keepdims=True) + 1) // 3).astype(array.dtype)  # rounded means
    if photo.alpha is not None:
        array = np.concatenate([array, photo.alpha[..., None]], axis=2)
    return kind.encode(array, photo)
