"""TIFF: tifffile reads, with OpenCV or Pillow for what it cannot unpack alone; the encoder is our own."""

from __future__ import annotations

import io
import itertools
import math
import struct
import zlib
from pathlib import Path
from typing import cast

import numpy as np
import tifffile
from PIL import TiffImagePlugin
from tifffile import COMPRESSION, PHOTOMETRIC

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
from ldp_runtime.images.deflate import deflate, strip_rows
from ldp_runtime.images.exif import LONG, RATIONAL, SHORT, UNDEFINED, header, numbers, read_block, write_directory
from ldp_runtime.threads import each

MAX_PAGES = 64
"""Most pages of a TIFF file: a picture, or two views, with thumbnails and masks."""

_MAX_BYTES = 2**32 - 2**24  # 32-bit offsets, less room for tags and incompressible strips
_DEFLATE = (COMPRESSION.ADOBE_DEFLATE, COMPRESSION.DEFLATE)
_DIRECT = (PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.RGB)
_TIFFFILE_UNPACKS = (COMPRESSION.NONE, COMPRESSION.PACKBITS, *_DEFLATE)
# Most bytes that a byte of a strip or tile stands for; other compressions have no bound.
_RATIOS: dict[int, int] = {
    COMPRESSION.NONE: 1,
    COMPRESSION.PACKBITS: 64,
    COMPRESSION.LZW: 4096,
    **dict.fromkeys(_DEFLATE, DEFLATE_RATIO),
}

_LEAST_FULL = 1 / 4
"""A page with a smaller share of the largest one's pixels is a thumbnail, whether it says so or not."""

_LEAST_WHITE = 1e-30

_TILE_PIXELS = 2**22  # a tile of a small picture may be larger than the picture


def _size(data: bytes) -> tuple[int, int]:
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        page = _full_pages(tiff)[0]
        return page.imagewidth, page.imagelength


def _decode(data: bytes) -> Decoded:
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        full = _full_pages(tiff)
        if len(full) > 1:
            raise UnsupportedError(
                f"has {len(full)} full-size pages; expected one: export that page, or give the file alone if its two "
                "pages are the views of a pair"
            )
        page = full[0]
        if page.index > 0:  # a thumbnail precedes it
            return _decode(_page_alone(data, page))
        check_size(page.imagewidth, page.imagelength)
        _check_samples(page)
        _check_segments(page)
        pixels = _decode_page(data, page)
        return Decoded(pixels, page.iccprofile, data, _dpi(page), _stated_white(page) if _is_float(page) else None)


def count_pages(path: Path) -> int:
    """How many full-size pages a file has; 0 if it is no TIFF file that can be read."""
    try:
        with tifffile.TiffFile(path) as tiff:
            return len(_full_pages(tiff))
    except Exception:  # a damaged file may give nearly any; whoever reads it reports it
        return 0


def split_pages(data: bytes) -> tuple[bytes, ...]:
    """Makes a file of each full-size page of a TIFF file; thumbnails and masks are left out.

    Raises:
        UnsupportedError: It has more than ``MAX_PAGES`` pages.
        Exception: It is no TIFF file, or damaged.
    """
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        return tuple(_page_alone(data, page) for page in _full_pages(tiff))


def _full_pages(tiff: tifffile.TiffFile) -> list[tifffile.TiffPage]:
    """The pages that are no thumbnails: neither marked as reduced nor far smaller than the largest.

    Raises:
        UnsupportedError: There are too many pages.
        ValueError: All are marked as reduced, or a size is not a number.
    """
    pages = [page.aspage() for page in itertools.islice(tiff.pages, MAX_PAGES + 1)]
    if len(pages) > MAX_PAGES:
        raise UnsupportedError(f"has more than {MAX_PAGES} pages; expected one: export that page")
    if not all(isinstance(side, int) for page in pages for side in (page.imagewidth, page.imagelength)):
        raise ValueError("the size of a page is not a number")  # a tuple times a number could fill the memory
    full = [page for page in pages if not page.is_reduced]
    if not full:
        raise ValueError("none of its pages is a full-size picture")
    pixels = max(page.imagewidth * page.imagelength for page in full)
    return [page for page in full if page.imagewidth * page.imagelength >= pixels * _LEAST_FULL]


def _page_alone(data: bytes, page: tifffile.TiffPage) -> bytes:
    """The same file with this page as its first and only one."""
    form = page.parent.tiff
    patched = bytearray(data)
    struct.pack_into(form.offsetformat, patched, form.offsetsize, page.offset)
    (count,) = struct.unpack_from(form.tagnoformat, data, page.offset)
    struct.pack_into(form.offsetformat, patched, page.offset + form.tagnosize + count * form.tagsize, 0)
    return bytes(patched)


def _is_float(page: tifffile.TiffPage) -> bool:
    return bool(page.sampleformat == tifffile.SAMPLEFORMAT.IEEEFP)


def _stated_white(page: tifffile.TiffPage) -> float | None:
    """The largest value that the file names for its samples, if it does."""
    for name in ("SMaxSampleValue", "MaxSampleValue"):
        if name in page.tags:
            value = float(np.max(np.asarray(page.tags[name].value, np.float64)))
            return value if _LEAST_WHITE < value < 1 / _LEAST_WHITE else None
    return None


def _check_segments(page: tifffile.TiffPage) -> None:
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
        raise ValueError(f"expected a picture of {parts} parts, got {len(page.databytecounts)}")
    if 0 in page.databytecounts:  # tifffile would fill in zeros
        raise ValueError("a part of the picture is missing")
    packed = sum(page.databytecounts)
    # Of YCbCr the colour may be stored for a part of the pixels.
    samples = 1 if page.photometric == PHOTOMETRIC.YCBCR else page.samplesperpixel
    ratio = _RATIOS.get(page.compression)
    if ratio is not None and pixels * samples * page.bitspersample // 8 > packed * ratio:
        raise ValueError(f"{packed} bytes cannot hold the {page.imagewidth} x {page.imagelength} pixels that it claims")


def _check_samples(page: tifffile.TiffPage) -> None:
    if page.photometric not in (*_DIRECT, PHOTOMETRIC.PALETTE, PHOTOMETRIC.YCBCR):
        name = PHOTOMETRIC(page.photometric).name
        raise UnsupportedError(f"stores {name} colour; expected grey or RGB: convert it to RGB")
    depths = (32,) if _is_float(page) else (1, 2, 4, 8, 16)
    integers = page.sampleformat == tifffile.SAMPLEFORMAT.UINT
    if page.bitspersample not in depths or not (integers or _is_float(page)):
        kind = tifffile.SAMPLEFORMAT(page.sampleformat).name
        raise UnsupportedError(
            f"stores {page.bitspersample}-bit {kind} samples; expected 8- or 16-bit unsigned "
            "integers, or 32-bit floating point: export it as 16-bit TIFF or PNG"
        )
    colours = 3 if page.photometric in (PHOTOMETRIC.RGB, PHOTOMETRIC.YCBCR) else 1
    if not colours <= page.samplesperpixel <= colours + 1:
        raise UnsupportedError(
            f"has {page.samplesperpixel} channels; expected {colours}, or {colours + 1} with alpha: "
            "export it without the others"
        )


def _dpi(page: tifffile.TiffPage) -> tuple[float, float] | None:
    x, y = page.get_resolution(tifffile.RESUNIT.INCH)
    known = "XResolution" in page.tags and page.resolutionunit != tifffile.RESUNIT.NONE
    return (x, y) if known else None


def _decode_page(data: bytes, page: tifffile.TiffPage) -> np.ndarray:
    """Decodes the only page of a TIFF file with what can: tifffile, OpenCV or Pillow.

    Returns:
        ``(h, w, c)`` uint8, uint16 or float32, c from 1 to 4, grey with 0 = black.
    """
    premultiplied = page.extrasamples[:1] == (tifffile.EXTRASAMPLE.ASSOCALPHA,)
    direct = page.photometric in _DIRECT
    contiguous = page.samplesperpixel == 1 or page.planarconfig == tifffile.PLANARCONFIG.CONTIG
    unpacks = page.compression in _TIFFFILE_UNPACKS and page.fillorder == tifffile.FILLORDER.MSB2LSB
    float_predictor = page.predictor == tifffile.PREDICTOR.FLOATINGPOINT  # tifffile needs another package for it
    unpacks = unpacks and not float_predictor
    if page.bitspersample in (8, 16, 32) and direct and not premultiplied and unpacks:
        array = _inflate(data, page) if page.compression in _DEFLATE else page.asarray()
        if not contiguous:
            array = np.moveaxis(array, 0, -1)  # (c, h, w) -> (h, w, c)
    elif page.bitspersample < 16:
        return decode_pillow(TiffImagePlugin.TiffImageFile(io.BytesIO(_without_orientation(data, page))))
    elif premultiplied:
        bits = page.bitspersample
        raise UnsupportedError(f"is {bits}-bit with premultiplied alpha; save it with straight alpha, or without")
    elif (float_predictor or page.compression == COMPRESSION.LZW) and contiguous and page.samplesperpixel != 2:
        array = decode_cv2(_without_orientation(data, page))
    else:
        name = COMPRESSION(page.compression).name
        bits = page.bitspersample
        raise UnsupportedError(f"is {bits}-bit TIFF with {name} compression; save it with deflate or no compression")
    array = array.reshape(page.imagelength, page.imagewidth, page.samplesperpixel)
    if array.dtype.kind == "f":
        if page.photometric == PHOTOMETRIC.MINISWHITE:
            raise UnsupportedError("stores light as less is more; expected more is more: export it as RGB")
        return array.astype(np.float32, copy=False)
    if page.photometric == PHOTOMETRIC.MINISWHITE:
        array = array.copy()
        array[..., 0] = np.iinfo(array.dtype).max - array[..., 0]
    return array


def _inflate(data: bytes, page: tifffile.TiffPage) -> np.ndarray:
    """Decodes a page with deflate: as ``page.asarray()``, which would inflate a strip or tile without a limit."""
    array = np.empty(page.shaped, page.dtype)  # (planes, 1, h, w, samples of a plane)
    limit = math.prod(page.chunks) * array.itemsize
    if not page.is_tiled:  # a single strip may claim any number of rows
        limit = min(limit, array.nbytes)
    page.compression = COMPRESSION.NONE  # the rest is tifffile's work
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

    each(lambda part: place(*part), list(zip(itertools.count(), page.dataoffsets, page.databytecounts, strict=False)))
    return array.reshape(page.shape)


def _without_orientation(data: bytes, page: tifffile.TiffPage) -> bytes:
    """Sets the orientation tag to 1: Pillow and OpenCV would turn the picture by themselves, tifffile not."""
    tag = page.tags.get("Orientation")
    if tag is None:
        return data
    patched = bytearray(data)
    struct.pack_into(page.parent.byteorder + "H", patched, tag.valueoffset, 1)
    return bytes(patched)


def _encode(array: np.ndarray, photo: Photo) -> bytes:
    """Encodes strips of horizontal differences with deflate."""
    height, width, channels = array.shape
    order, tags = read_block(photo.exif or b"")
    rows = strip_rows(width * channels * array.dtype.itemsize)

    def pack(y: int) -> bytes:
        strip = array[y : y + rows]
        filtered = np.empty(strip.shape, array.dtype.newbyteorder(order))
        filtered[:, :1] = strip[:, :1]
        np.subtract(strip[:, 1:], strip[:, :-1], out=filtered[:, 1:])
        return deflate(filtered.view(np.uint8))

    strips = each(pack, range(0, height, rows))
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


def _cannot_hold(photo: Photo) -> str | None:
    if photo.pixels.nbytes <= _MAX_BYTES:
        return None
    height, width = photo.pixels.shape[:2]
    return f"{width} x {height} pixels are too many for TIFF (4 GiB); choose a .png name"


TIFF = Format(
    "TIFF", (".tif", ".tiff"), (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), _size, _decode, _cannot_hold, _encode
)
