"""Reading and writing photographs: PNG, TIFF and JPEG, at 8 and 16 bits, with their metadata.

Pillow has no 16-bit RGB. So it reads JPEG and 8-bit PNG, OpenCV reads 16-bit PNG, and tifffile reads TIFF,
save for what it cannot unpack alone: there Pillow (8 bits) and OpenCV (16-bit LZW) step in. PNG and TIFF are
written here, in one way for every depth and number of channels: no library of the base install writes 16-bit
grey with alpha to PNG, or EXIF to 16-bit TIFF.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image, JpegImagePlugin, PngImagePlugin

from ldp_runtime.errors import ImageError
from ldp_runtime.files import cannot_write, check_can_write, write_whole
from ldp_runtime.images.decode import (
    PNG_SIGNATURE,
    Photo,
    decoding,
)
from ldp_runtime.images.exif import (
    clean_exif,
)
from ldp_runtime.images.jpeg import read_jpeg
from ldp_runtime.images.png import encode_png, read_png
from ldp_runtime.images.tiff import TIFF_MAX_BYTES, encode_tiff, read_tiff

MAX_FILE_BYTES = 2**32
"""Largest image file that is read: the largest picture with alpha at 16 bits takes half of it."""


JPEG_QUALITY = 95


_TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_JPEG_SIGNATURE = b"\xff\xd8\xff"
_FORMATS = {".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF", ".jpg": "JPEG", ".jpeg": "JPEG"}
# EXIF orientation -> array axes to flip, after 5 to 8 are transposed.
_FLIPS = {2: (1,), 3: (0, 1), 4: (0,), 6: (1,), 7: (0, 1), 8: (0,)}
_MAX_DPI = 65535  # what JPEG can hold
_JPEG_MAX_SIDE = 65535
_JPEG_MAX_EXIF = 65533 - len(b"Exif\0\0")


# --- reading ------------------------------------------------------------------------------------------------


def read_photo(path: str | os.PathLike[str]) -> Photo:
    """Reads an 8- or 16-bit PNG, TIFF or JPEG file and turns it upright.

    Grey, palette and 1-bit pictures become RGB; a JPEG with several pictures inside gives its main one.

    Args:
        path: The file. Its first bytes tell its format, not its suffix.

    Returns:
        The photo, with ``pixels`` ``(h, w, 3)`` uint8 or uint16.

    Raises:
        ImageError: The file is missing, unreadable, damaged or truncated, of another format, too large, or
            stores samples that are not 8- or 16-bit grey or RGB.
    """
    path = Path(path)
    return decode_photo(path, _read_bytes(path))


def decode_photo(name: str | os.PathLike[str], data: bytes) -> Photo:
    """Decodes the content of a file, as ``read_photo`` does.

    Args:
        name: What errors call it; it is not opened.
        data: The content.

    Raises:
        ImageError: As for ``read_photo``.
    """
    path = Path(name)
    if data.startswith(PNG_SIGNATURE):
        array, icc_profile, exif_block, dpi = read_png(path, data)
    elif data.startswith(_TIFF_SIGNATURES):
        array, icc_profile, exif_block, dpi = read_tiff(path, data)
    elif data.startswith(_JPEG_SIGNATURE):
        array, icc_profile, exif_block, dpi = read_jpeg(path, data)
    else:
        raise _unknown_format(path)

    orientation, exif = clean_exif(exif_block or b"")
    array = _upright(array, orientation)
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
    )


def photo_size(name: str | os.PathLike[str], data: bytes) -> tuple[int, int]:
    """Tells the width and height in px that the header of a file claims; no pixel is decoded.

    Args:
        name: What errors call it; it is not opened.
        data: The content of a PNG, TIFF or JPEG file. The EXIF orientation is not applied.

    Raises:
        ImageError: The content has another format, or a header that cannot be read.
    """
    path = Path(name)
    with decoding(path):
        if data.startswith(PNG_SIGNATURE):
            return PngImagePlugin.PngImageFile(io.BytesIO(data)).size
        if data.startswith(_JPEG_SIGNATURE):
            return JpegImagePlugin.JpegImageFile(io.BytesIO(data)).size
        if data.startswith(_TIFF_SIGNATURES):
            with tifffile.TiffFile(io.BytesIO(data)) as tiff:
                page = tiff.pages[0].aspage()
                return page.imagewidth, page.imagelength
        raise _unknown_format(path)


def _unknown_format(path: Path) -> ImageError:
    return ImageError(
        f"{path} is not a PNG, TIFF or JPEG file; convert it to one of them (a raw photo has to be "
        "split into its two views and developed first)"
    )


def _read_bytes(path: Path) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{path} is {'a folder' if path.is_dir() else 'not a regular file'}; give an image file")
        if status.st_size > MAX_FILE_BYTES:
            raise ImageError(f"{path} has {status.st_size} bytes; expected at most {MAX_FILE_BYTES}: crop or scale it")
        data = path.read_bytes()
    except FileNotFoundError:
        raise ImageError(f"{path} does not exist; check the name and the folder") from None
    except PermissionError:
        raise ImageError(f"{path} cannot be read: permission denied; check the rights of the file") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ImageError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not data:
        raise ImageError(f"{path} is empty (0 bytes); copy or export it again")
    return data


def _upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """Applies EXIF orientation (1 to 8) to ``(h, w, c)``; 5 to 8 exchange h and w."""
    if orientation >= 5:
        array = array.swapaxes(0, 1)
    return np.flip(array, _FLIPS.get(orientation, ()))


def upright_disparity(axis: str, orientation: int) -> tuple[str, bool]:
    """Tells where a disparity points once EXIF orientation is applied: a turned camera turns it too.

    Args:
        axis: Its direction in the stored picture, which is the sensor's: "horizontal" or "vertical".
        orientation: The EXIF orientation, 1 to 8.

    Returns:
        Its direction in the upright picture, and whether its sign changes, which is to exchange the views.
    """
    array_axis = int(axis == "horizontal")
    if orientation >= 5:
        array_axis = 1 - array_axis
    return ("vertical", "horizontal")[array_axis], array_axis in _FLIPS.get(orientation, ())


# --- writing ------------------------------------------------------------------------------------------------


def write_photo(path: str | os.PathLike[str], photo: Photo, quality: int = JPEG_QUALITY) -> None:
    """Writes a photo as PNG, TIFF or JPEG, by the suffix, at its own depth and with its metadata, atomically.

    Args:
        path: A name that ends in .png, .tif, .tiff, .jpg or .jpeg, in any case. An existing file is replaced.
        photo: What to write.
        quality: JPEG quality, 1 to 95 or more, without chroma subsampling; PNG and TIFF are lossless.

    Raises:
        ImageError: The suffix is another one, the format cannot hold the photo (see ``check_format``), or the
            folder cannot be written.
    """
    write_files({path: encode_photo(path, photo, quality)})


def write_pixels(path: str | os.PathLike[str], pixels: np.ndarray) -> None:
    """Writes ``(h, w)`` as grey or ``(h, w, 3)`` as RGB, uint8 or uint16; otherwise as ``write_photo``."""
    grey = pixels.ndim == 2
    write_photo(path, Photo(np.repeat(pixels[..., None], 3, axis=2) if grey else pixels, grey=grey))


def check_format(path: str | os.PathLike[str], photo: Photo) -> None:
    """Checks that the format named by the suffix of ``path`` holds everything of ``photo``.

    Raises:
        ImageError: The suffix is unknown; the pixels are no ``(h, w, 3)`` of uint8 or uint16; JPEG is asked
            to hold 16 bits, alpha that is not opaque, more than 65535 px a side or too much EXIF; or TIFF
            more than 4 GiB.
    """
    path = Path(path)
    kind = image_format(path)
    if photo.pixels.ndim != 3 or photo.pixels.shape[2] != 3 or photo.pixels.dtype not in (np.uint8, np.uint16):
        raise ImageError(
            f"{path}: expected pixels (h, w, 3) of uint8 or uint16, got {photo.pixels.shape} of "
            f"{photo.pixels.dtype}; convert them"
        )
    height, width = photo.pixels.shape[:2]
    if kind == "JPEG":
        alternatives = "choose a .png or .tif name"
        if photo.pixels.dtype == np.uint16:
            raise ImageError(f"{path}: JPEG holds 8 bits and the photo has 16; {alternatives}")
        if photo.alpha is not None and photo.alpha.min() < np.iinfo(photo.alpha.dtype).max:
            raise ImageError(f"{path}: JPEG holds no alpha and the photo has some; {alternatives}")
        if max(height, width) > _JPEG_MAX_SIDE:
            raise ImageError(f"{path}: JPEG holds {_JPEG_MAX_SIDE} px a side, not {width} x {height}; {alternatives}")
        if photo.exif is not None and len(photo.exif) > _JPEG_MAX_EXIF:
            raise ImageError(f"{path}: JPEG holds 64 KiB of EXIF, not {len(photo.exif)} bytes; {alternatives}")
    if kind == "TIFF" and photo.pixels.nbytes > TIFF_MAX_BYTES:
        raise ImageError(f"{path}: {width} x {height} pixels are too many for TIFF (4 GiB); choose a .png name")


def image_format(path: str | os.PathLike[str]) -> str:
    """Tells the format to write by the suffix: "PNG", "TIFF" or "JPEG".

    Raises:
        ImageError: The suffix is none of .png, .tif, .tiff, .jpg and .jpeg.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _FORMATS:
        raise ImageError(f"{path}: expected a name that ends in {', '.join(_FORMATS)}, not {suffix or 'no suffix'!r}")
    return _FORMATS[suffix]


def encode_photo(path: str | os.PathLike[str], photo: Photo, quality: int = JPEG_QUALITY) -> bytes:
    """Encodes a photo for ``path`` without writing it; arguments and errors as for ``write_photo``.

    Raises:
        ImageError: The format cannot hold the photo.
    """
    check_format(path, photo)
    kind = image_format(path)
    array = photo.pixels
    if photo.grey:
        array = np.rint(array.mean(axis=2, dtype=np.float64, keepdims=True)).astype(array.dtype)
    if photo.alpha is not None and kind != "JPEG":
        array = np.concatenate([array, photo.alpha[..., None]], axis=2)
    if kind == "PNG":
        return encode_png(array, photo)
    if kind == "TIFF":
        return encode_tiff(array, photo)
    buffer = io.BytesIO()
    exif = None if photo.exif is None else b"Exif\0\0" + photo.exif
    options = {"icc_profile": photo.icc_profile, "exif": exif, "dpi": photo.dpi}
    Image.fromarray(array[..., 0] if photo.grey else array).save(
        buffer, "JPEG", quality=quality, subsampling=0, **{k: v for k, v in options.items() if v is not None}
    )
    return buffer.getvalue()


def write_files(contents: Mapping[str | os.PathLike[str], bytes]) -> None:
    """Writes several files, each atomically: all to temporary names first, then all put in place.

    Raises:
        ImageError: A file cannot be written; no temporary file stays behind.
    """
    try:
        write_whole({Path(os.path.realpath(name)): content for name, content in contents.items()})  # through links
    except OSError as error:
        raise ImageError(cannot_write(error.filename or "the file", error)) from error


def check_writable(path: str | os.PathLike[str]) -> None:
    """Checks, before a long computation, that a file can be written at ``path``; nothing is left there.

    Raises:
        ImageError: The folder is missing or cannot be written, or ``path`` is a folder.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise ImageError(f"{path} is a folder; give a file name in it")
    if not target.parent.is_dir():
        raise ImageError(f"{path} cannot be written: the folder {target.parent} does not exist; make it first")
    try:
        check_can_write(target)
    except OSError as error:
        raise ImageError(cannot_write(os.fspath(path), error)) from error
