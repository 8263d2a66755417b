"""Reading and writing photographs: PNG, TIFF and JPEG, at 8 and 16 bits, with their metadata.

Pillow has no 16-bit RGB. So it reads JPEG and 8-bit PNG, OpenCV reads 16-bit PNG, and tifffile reads TIFF,
save for what it cannot unpack alone: there Pillow (8 bits) and OpenCV (16-bit LZW) step in. PNG and TIFF are
written here, in one way for every depth and number of channels: no library of the base install writes 16-bit
grey with alpha to PNG, or EXIF to 16-bit TIFF.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import os
import re
import stat
import struct
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import cv2
import numpy as np
import tifffile
from PIL import Image, JpegImagePlugin, PngImagePlugin, TiffImagePlugin

from ldp_runtime.errors import ImageError, one_line
from ldp_runtime.files import cannot_write, check_can_write, write_whole
from ldp_runtime.images.exif import (
    LONG,
    RATIONAL,
    SHORT,
    UNDEFINED,
    clean_exif,
    header,
    numbers,
    read_block,
    write_directory,
)

MAX_PIXELS = 2**28
"""Largest picture that is decoded; a header that claims more is refused before any memory is taken. The largest
dual-pixel sensors have 8736 x 11648 px, 2.6 times less."""

MAX_SIDE = 65535
"""Longest side in px of a picture that is decoded."""

MAX_FILE_BYTES = 2**32
"""Largest image file that is read: the largest picture with alpha at 16 bits takes half of it."""

MAX_TIFF_PAGES = 64
"""Most pages of a TIFF file; more than one is a picture with thumbnails or masks."""

MAX_JPEG_SCANS = 100
"""Most scans of a JPEG file. Progressive files have some ten; each takes the time of a picture, however short it is."""

JPEG_QUALITY = 95

# Pixels (h, w, c) as stored, ICC profile, EXIF block, dpi.
_Decoded = tuple[np.ndarray, bytes | None, bytes | None, tuple[float, float] | None]

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_JPEG_SIGNATURE = b"\xff\xd8\xff"
_FORMATS = {".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF", ".jpg": "JPEG", ".jpeg": "JPEG"}
_DEFLATE_LEVEL = 4  # within 3 % of the size of level 6 on noisy photos, in a fraction of its time
# EXIF orientation -> array axes to flip, after 5 to 8 are transposed.
_FLIPS = {2: (1,), 3: (0, 1), 4: (0,), 6: (1,), 7: (0, 1), 8: (0,)}
_MAX_DPI = 65535  # what JPEG can hold
_JPEG_MAX_SIDE = 65535
_JPEG_MAX_EXIF = 65533 - len(b"Exif\0\0")
_TIFF_MAX_BYTES = 2**32 - 2**24  # 32-bit offsets, less room for tags and incompressible strips


# No stream of these formats holds more than this for a byte, so that a header that claims more is false.
_DEFLATE_RATIO = 1040
_JPEG_PIXELS_A_BYTE = 1024  # a bit for each block of 8 x 8 px and component

# A marker that is no fill byte, no escaped 0xff and no restart within a scan; those of headers; of arithmetic coding.
_JPEG_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_ARITHMETIC = frozenset(range(0xC9, 0xD0))

_DEFLATE = (tifffile.COMPRESSION.ADOBE_DEFLATE, tifffile.COMPRESSION.DEFLATE)
_TIFFFILE_UNPACKS = (tifffile.COMPRESSION.NONE, tifffile.COMPRESSION.PACKBITS, *_DEFLATE)
# Most bytes that a byte of a strip or tile stands for; other compressions have no bound.
_TIFF_RATIOS: dict[int, int] = {
    tifffile.COMPRESSION.NONE: 1,
    tifffile.COMPRESSION.PACKBITS: 64,
    tifffile.COMPRESSION.LZW: 4096,
    **dict.fromkeys(_DEFLATE, _DEFLATE_RATIO),
}
_TILE_PIXELS = 2**22  # a tile of a small picture may be larger than the picture


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
    if data.startswith(_PNG_SIGNATURE):
        array, icc_profile, exif_block, dpi = _read_png(path, data)
    elif data.startswith(_TIFF_SIGNATURES):
        array, icc_profile, exif_block, dpi = _read_tiff(path, data)
    elif data.startswith(_JPEG_SIGNATURE):
        array, icc_profile, exif_block, dpi = _read_jpeg(path, data)
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
    with _decoding(path):
        if data.startswith(_PNG_SIGNATURE):
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


@contextlib.contextmanager
def _decoding(path: Path) -> Iterator[None]:
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


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height == 0:
        raise ValueError(f"it claims {width} x {height} pixels")
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise ImageError(
            f"{path} claims {width} x {height} pixels; expected at most {MAX_PIXELS}, and {MAX_SIDE} a side: crop or "
            "scale it"
        )


def _read_png(path: Path, data: bytes) -> _Decoded:
    with _decoding(path):
        pixel_chunks, exif = _png_chunks(path, data)
        image = PngImagePlugin.PngImageFile(io.BytesIO(data))
        if getattr(image, "n_frames", 1) > 1:
            raise ImageError(f"{path} is an animation; expected one picture: export one frame of it")
        bits = data[24]
        array = _decode_cv2(pixel_chunks) if bits == 16 else _decode_pillow(path, image)
        return array, image.info.get("icc_profile"), exif, image.info.get("dpi")


def _png_chunks(path: Path, data: bytes) -> tuple[bytes, bytes | None]:
    """Checks the header, and the length and the CRC of each chunk, of a PNG file.

    Returns:
        The file without metadata, about which OpenCV would print warnings; and its EXIF block.

    Raises:
        ImageError: The picture is too large.
        ValueError: The file is cut short, a checksum does not match, or it begins with another chunk than its header.
    """
    kept = [_PNG_SIGNATURE]
    exif = None
    start = len(_PNG_SIGNATURE)
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
            _check_size(path, width, height)
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            kept.append(data[start:end])
        elif kind == b"eXIf":
            exif = data[start + 8 : end - 4]
        packed += length if kind == b"IDAT" else 0
        start = end
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour_type, 1)
    if width * height * channels * bits // 8 > packed * _DEFLATE_RATIO:
        raise ValueError(f"{packed} bytes cannot hold the {width} x {height} pixels that it claims")
    return b"".join(kept), exif


def _read_jpeg(path: Path, data: bytes) -> _Decoded:
    with _decoding(path):
        _check_jpeg(path, data)
        image = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
        info = image.info
        return _decode_pillow(path, image), info.get("icc_profile"), info.get("exif"), info.get("dpi")


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
            _check_size(path, width, height)
            if code not in _JPEG_ARITHMETIC and width * height > len(data) * _JPEG_PIXELS_A_BYTE:
                raise ValueError(f"{len(data)} bytes cannot hold the {width} x {height} pixels that it claims")
    if frames == 0:
        raise ValueError("it has no header")
    if scans > MAX_JPEG_SCANS:
        raise ValueError(f"it has {scans} scans, more than the {MAX_JPEG_SCANS} that are read")


def _read_tiff(path: Path, data: bytes) -> _Decoded:
    with _decoding(path), tifffile.TiffFile(io.BytesIO(data)) as tiff:
        pages = [page.aspage() for page in itertools.islice(tiff.pages, MAX_TIFF_PAGES + 1)]
        if len(pages) > MAX_TIFF_PAGES:
            raise ImageError(f"{path} has more than {MAX_TIFF_PAGES} pages; expected one: export that page")
        page = pages[0]
        full = [p for p in pages if not p.is_reduced]
        if full != [page]:
            raise ImageError(
                f"{path} has {len(full)} full-size pages; expected one, the first: export that page "
                "(a raw photo has to be split into its two views and developed first)"
            )
        _check_size(path, page.imagewidth, page.imagelength)
        _check_tiff_samples(path, page)
        _check_tiff_segments(page)
        return _decode_tiff(path, data, page), page.iccprofile, data, _tiff_dpi(page)


def _check_tiff_segments(page: tifffile.TiffPage) -> None:
    """Checks the strips or tiles of a page.

    Raises:
        ValueError: One is missing or too large, there are too many, or they cannot hold the picture.
    """
    pixels = page.imagewidth * page.imagelength
    if page.is_tiled and page.tilewidth * page.tilelength > max(_TILE_PIXELS, 2 * pixels):
        raise ValueError(f"it claims tiles of {page.tilewidth} x {page.tilelength} pixels")
    if page.imagedepth != 1 or page.tiledepth > 1:
        raise ValueError("it is a volume")
    parts = math.prod(page.chunked)
    if not parts == len(page.databytecounts) == len(page.dataoffsets):
        raise ValueError(f"expected a picture of {parts} parts, came {len(page.databytecounts)}")
    if 0 in page.databytecounts:  # tifffile would fill in zeros
        raise ValueError("a part of the picture is missing")
    packed = sum(page.databytecounts)
    # Of YCbCr the colour may be stored for a part of the pixels.
    samples = 1 if page.photometric == tifffile.PHOTOMETRIC.YCBCR else page.samplesperpixel
    ratio = _TIFF_RATIOS.get(page.compression)
    if ratio is not None and pixels * samples * page.bitspersample // 8 > packed * ratio:
        raise ValueError(f"{packed} bytes cannot hold the {page.imagewidth} x {page.imagelength} pixels that it claims")


def _check_tiff_samples(path: Path, page: tifffile.TiffPage) -> None:
    kinds = (
        tifffile.PHOTOMETRIC.MINISWHITE,
        tifffile.PHOTOMETRIC.MINISBLACK,
        tifffile.PHOTOMETRIC.RGB,
        tifffile.PHOTOMETRIC.PALETTE,
        tifffile.PHOTOMETRIC.YCBCR,
    )
    if page.photometric not in kinds:
        name = tifffile.PHOTOMETRIC(page.photometric).name
        raise ImageError(f"{path} stores {name} colour; expected grey or RGB: convert it to RGB")
    if page.sampleformat != tifffile.SAMPLEFORMAT.UINT or page.bitspersample not in (1, 2, 4, 8, 16):
        kind = tifffile.SAMPLEFORMAT(page.sampleformat).name
        raise ImageError(
            f"{path} stores {page.bitspersample}-bit {kind} samples; expected 8- or 16-bit unsigned "
            "integers: export it as 16-bit TIFF or PNG"
        )
    colours = 3 if page.photometric in (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR) else 1
    if not colours <= page.samplesperpixel <= colours + 1:
        raise ImageError(
            f"{path} has {page.samplesperpixel} channels; expected {colours}, or {colours + 1} with alpha: "
            "export it without the others"
        )


def _tiff_dpi(page: tifffile.TiffPage) -> tuple[float, float] | None:
    x, y = page.get_resolution(tifffile.RESUNIT.INCH)
    known = "XResolution" in page.tags and page.resolutionunit != tifffile.RESUNIT.NONE
    return (x, y) if known else None


def _decode_tiff(path: Path, data: bytes, page: tifffile.TiffPage) -> np.ndarray:
    """Decodes the only page of a TIFF file with what can: tifffile, OpenCV or Pillow.

    Returns:
        ``(h, w, c)`` uint8 or uint16, c from 1 to 4, grey with 0 = black.
    """
    premultiplied = page.extrasamples[:1] == (tifffile.EXTRASAMPLE.ASSOCALPHA,)
    direct = page.photometric in (
        tifffile.PHOTOMETRIC.MINISWHITE,
        tifffile.PHOTOMETRIC.MINISBLACK,
        tifffile.PHOTOMETRIC.RGB,
    )
    contiguous = page.samplesperpixel == 1 or page.planarconfig == tifffile.PLANARCONFIG.CONTIG
    unpacks = page.compression in _TIFFFILE_UNPACKS and page.fillorder == tifffile.FILLORDER.MSB2LSB
    if page.bitspersample in (8, 16) and direct and not premultiplied and unpacks:
        array = _inflate(data, page) if page.compression in _DEFLATE else page.asarray()
        if not contiguous:
            array = np.moveaxis(array, 0, -1)  # (c, h, w) -> (h, w, c)
    elif page.bitspersample < 16:
        return _decode_pillow(path, TiffImagePlugin.TiffImageFile(io.BytesIO(_without_tiff_orientation(data, page))))
    elif premultiplied:
        raise ImageError(f"{path} is 16-bit with premultiplied alpha; save it with straight alpha, or without")
    elif page.compression == tifffile.COMPRESSION.LZW and contiguous and page.samplesperpixel != 2:
        array = _decode_cv2(_without_tiff_orientation(data, page))
    else:
        name = tifffile.COMPRESSION(page.compression).name
        raise ImageError(f"{path} is 16-bit TIFF with {name} compression; save it with deflate or no compression")
    array = array.reshape(page.imagelength, page.imagewidth, page.samplesperpixel)
    if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
        array = array.copy()
        array[..., 0] = np.iinfo(array.dtype).max - array[..., 0]
    return array


def _inflate(data: bytes, page: tifffile.TiffPage) -> np.ndarray:
    """Decodes a page with deflate: as ``page.asarray()``, which would inflate a strip or tile to whatever it holds."""
    array = np.empty(page.shaped, np.dtype(f"u{page.bitspersample // 8}"))  # (planes, 1, h, w, samples of a plane)
    limit = math.prod(page.chunks) * array.itemsize
    if not page.is_tiled:  # a single strip may claim any number of rows
        limit = min(limit, array.nbytes)
    page.compression = tifffile.COMPRESSION.NONE  # what is left for tifffile to decode
    decode = page.decode

    def place(index: int, start: int, size: int) -> None:
        stream = zlib.decompressobj()
        inflated = stream.decompress(data[start : start + size], limit + 1)
        if len(inflated) > limit:
            raise ValueError(f"part {index} of the picture inflates to more than its {limit} bytes")
        if not stream.eof:
            raise ValueError(f"part {index} of the picture ends early")
        segment, (plane, _, y, x, _), (_, height, width, _) = decode(inflated, index)
        pixels = cast(np.ndarray, segment)[0, : page.imagelength - y, : page.imagewidth - x]
        array[plane, 0, y : y + height, x : x + width] = pixels

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        for _ in threads.map(place, itertools.count(), page.dataoffsets, page.databytecounts):
            pass
    return array.reshape(page.shape)


def _without_tiff_orientation(data: bytes, page: tifffile.TiffPage) -> bytes:
    """Sets the orientation tag to 1: Pillow and OpenCV would turn the picture by themselves, tifffile not."""
    tag = page.tags.get("Orientation")
    if tag is None:
        return data
    patched = bytearray(data)
    struct.pack_into(page.parent.byteorder + "H", patched, tag.valueoffset, 1)
    return bytes(patched)


def _decode_cv2(data: bytes) -> np.ndarray:
    array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    if array is None:
        raise ValueError("the pixels cannot be decoded")
    if array.ndim == 2:
        return array[..., None]
    array = array[..., [2, 1, 0, 3][: array.shape[2]]]  # BGR(A) -> RGB(A)
    grey_with_alpha = data.startswith(_PNG_SIGNATURE) and data[25] == 4  # OpenCV repeats the grey
    return array[..., [0, 3]] if grey_with_alpha else array


def _decode_pillow(path: Path, image: Image.Image) -> np.ndarray:
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
            f"{path}: expected pixels (h, w, 3) of uint8 or uint16, came {photo.pixels.shape} of "
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
    if kind == "TIFF" and photo.pixels.nbytes > _TIFF_MAX_BYTES:
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
        return _encode_png(array, photo)
    if kind == "TIFF":
        return _encode_tiff(array, photo)
    buffer = io.BytesIO()
    exif = None if photo.exif is None else b"Exif\0\0" + photo.exif
    options = {"icc_profile": photo.icc_profile, "exif": exif, "dpi": photo.dpi}
    Image.fromarray(array[..., 0] if photo.grey else array).save(
        buffer, "JPEG", quality=quality, subsampling=0, **{k: v for k, v in options.items() if v is not None}
    )
    return buffer.getvalue()


def _encode_png(array: np.ndarray, photo: Photo) -> bytes:
    """Encodes ``(h, w, c)`` uint8 or uint16, c from 1 to 4; rows as what they add to the one above."""
    height, width, channels = array.shape
    big_endian = array.astype(array.dtype.newbyteorder(">"), copy=False)
    rows = np.ascontiguousarray(big_endian).view(np.uint8).reshape(height, -1)
    filtered = np.empty((height, 1 + rows.shape[1]), np.uint8)
    filtered[:, 0] = 2  # filter type "Up"
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    packed = zlib.compress(filtered.data, _DEFLATE_LEVEL)

    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 8 * array.dtype.itemsize, colour_type, 0, 0, 0)
    chunks = [(b"IHDR", header)]
    if photo.icc_profile is not None:
        chunks.append((b"iCCP", b"ICC\0\0" + zlib.compress(photo.icc_profile)))
    if photo.dpi is not None:
        per_metre = (round(value / 0.0254) for value in photo.dpi)
        chunks.append((b"pHYs", struct.pack(">IIB", *per_metre, 1)))
    if photo.exif is not None:
        chunks.append((b"eXIf", photo.exif))
    step = 2**24
    chunks += [(b"IDAT", packed[start : start + step]) for start in range(0, len(packed), step)]
    chunks.append((b"IEND", b""))
    return _PNG_SIGNATURE + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def _encode_tiff(array: np.ndarray, photo: Photo) -> bytes:
    """Encodes ``(h, w, c)`` uint8 or uint16, c from 1 to 4: strips, horizontal differences, deflate."""
    height, width, channels = array.shape
    order, tags = read_block(photo.exif or b"")
    filtered = array.copy()
    np.subtract(array[:, 1:], array[:, :-1], out=filtered[:, 1:])
    filtered = filtered.astype(array.dtype.newbyteorder(order))
    rows = max(1, 2**20 // filtered[0].nbytes)
    strips = [zlib.compress(filtered[y : y + rows].tobytes(), _DEFLATE_LEVEL) for y in range(0, height, rows)]
    sizes = [len(strip) for strip in strips]
    ends = list(itertools.accumulate(sizes, initial=8))

    tags[256] = numbers(order, LONG, width)
    tags[257] = numbers(order, LONG, height)
    tags[258] = numbers(order, SHORT, *[8 * array.dtype.itemsize] * channels)
    tags[259] = numbers(order, SHORT, 8)  # compression: deflate
    tags[262] = numbers(order, SHORT, 1 if channels <= 2 else 2)  # photometric: 0 is black; RGB
    tags[273] = numbers(order, LONG, *ends[:-1])
    tags[277] = numbers(order, SHORT, channels)
    tags[278] = numbers(order, LONG, rows)
    tags[279] = numbers(order, LONG, *sizes)
    tags[317] = numbers(order, SHORT, 2)  # predictor: horizontal differences
    if photo.dpi is not None:
        for tag, value in zip((282, 283), photo.dpi, strict=True):
            tags[tag] = numbers(order, RATIONAL, round(value * 1000), 1000)
        tags[296] = numbers(order, SHORT, 2)  # resolution unit: inch
    if channels in (2, 4):
        tags[338] = numbers(order, SHORT, 2)  # extra sample: alpha, not premultiplied
    if photo.icc_profile is not None:
        tags[34675] = (UNDEFINED, len(photo.icc_profile), photo.icc_profile)
    start = ends[-1] + ends[-1] % 2
    pixels = b"".join(strips).ljust(start - 8, b"\0")
    return header(order, start) + pixels + write_directory(order, tags, start)


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
