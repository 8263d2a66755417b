"""Dual-pixel raw photos: both views developed alike from one CR2, CR3 or DNG file. Needs the extra ``raw``.

LibRaw, through rawpy, decodes the frames and develops the views: camera white balance, one exposure, sRGB. No file of a
camera was at hand: the DNGs were tried on synthetic files, CR2 and CR3 over a stand-in for LibRaw.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ldp_runtime.errors import ImageError, LDPError, one_line
from ldp_runtime.images.decode import Photo, UnsupportedError, check_size, decoding
from ldp_runtime.images.exif import clean_exif
from ldp_runtime.images.orientation import upright
from ldp_runtime.images.raw_container import dual_pixel_tag, metadata_block, with_second_image
from ldp_runtime.images.raw_frames import Frame, Pairing, measured_black, pairing, view_rows

LEFT, RIGHT, COMBINED = "left", "right", "combined"

_TURN = threading.Lock()
_VIEWS = {LEFT: "difference", RIGHT: "second", COMBINED: "sum"}
PIXELS_PER_BYTE = 16
"""Most pixels that a byte of a raw file stands for; lossless compression of a sensor's noise stays far below."""

_ORIENTATIONS = {0: 1, 3: 3, 5: 8, 6: 6}
"""How LibRaw names the camera's rotation -> EXIF orientation."""

_SIDE_NOTE = (
    "the file does not say which side its second frame is, and LDP takes it for the right one: if the result is worse "
    "than the photo, exchange the views with --swap"
)


def raw_size(name: str | os.PathLike[str], data: bytes) -> tuple[int, int]:
    """The width and height in px that the header of a raw file claims, without margins; no pixel is decoded.

    Raises:
        ImageError: LibRaw cannot read it.
        LDPError: The extra ``raw`` is not installed.
    """
    path = Path(name)
    with _opened(path, data) as raw:
        return raw.sizes.width, raw.sizes.height


def develop(
    name: str | os.PathLike[str],
    data: bytes,
    views: Sequence[str] = (LEFT, RIGHT),
    *,
    second: tuple[str | os.PathLike[str], bytes] | None = None,
) -> Iterator[Photo]:
    """Develops views of a dual-pixel raw photo, all alike.

    Args:
        name: The name in error messages; it is not opened.
        data: The content of the file.
        views: Of ``LEFT``, ``RIGHT`` and ``COMBINED``; the latter is the photo as other programs see it.
        second: Name and content of a file that holds the second frame alone, as DPRSplit writes it; None if ``data``
            holds both frames.

    Yields:
        A photo of each, upright, 16 bits, with the file's EXIF data.

    Raises:
        ImageError: The file is damaged, or is no dual-pixel photo.
        LDPError: The extra ``raw`` is not installed.
    """
    path = Path(name)
    _libraw()  # its absence is no damage of the file
    with decoding(path), _opened(path, data) as raw:
        main, white, metadata = _read_frame(raw)
        candidates = _second_frames(path, data) if second is None else [(Path(second[0]), second[1], 0)]
        one = _second_frame(candidates, main, white, dual_pixel_tag(data))
        balance = _white_balance(raw)
        orientation = _ORIENTATIONS.get(raw.sizes.flip, 1)
        _, exif = clean_exif(metadata_block(data))
        for view in views:
            for rows, samples in view_rows(main, one, _VIEWS[view], white, metadata):
                start = max(rows.start, main.top)  # the margins stay: LibRaw may measure black there too
                raw.raw_image[start : rows.stop, main.left :] = samples[start - rows.start :, main.left :]
            pixels = upright(_develop(raw, balance), orientation)
            notes = () if view == COMBINED else (_SIDE_NOTE,)
            yield Photo(np.ascontiguousarray(pixels), exif=exif, orientation=orientation, notes=notes)


def develop_pair(
    name: str | os.PathLike[str], data: bytes, second: tuple[str | os.PathLike[str], bytes] | None = None
) -> tuple[Photo, Photo]:
    """Develops the left and the right view, as ``develop`` does, in one thread of the process at a time.

    LibRaw uses several threads itself, and some 2 GiB for 45 megapixels.
    """
    with _TURN:
        left, right = develop(name, data, (LEFT, RIGHT), second=second)
    return left, right


def _libraw() -> Any:
    try:
        import rawpy
    except ModuleNotFoundError as error:
        raise LDPError(
            f"expected the package {error.name}, which reads raw photos, got none; run pip install 'ldp[raw]'"
        ) from error
    return rawpy


@contextlib.contextmanager
def _opened(path: Path, data: bytes, shot: int = 0) -> Iterator[Any]:
    """A file that LibRaw has opened and whose size is within our limits; nothing is decoded yet."""
    rawpy = _libraw()
    try:
        with rawpy.imread(io.BytesIO(data), shot_select=shot) as raw:
            with decoding(path):
                sizes = raw.sizes
                check_size(sizes.raw_width, sizes.raw_height)
                if sizes.raw_width * sizes.raw_height > len(data) * PIXELS_PER_BYTE:
                    raise ValueError(
                        f"{len(data)} bytes cannot hold the {sizes.raw_width} x {sizes.raw_height} px that it claims"
                    )
            yield raw
    except rawpy.LibRawUnsufficientMemoryError as error:
        raise MemoryError(one_line(error)) from error
    except rawpy.LibRawError as error:
        raise ImageError(
            f"{path} is damaged or of a kind that LibRaw does not read ({_text(error)}); copy it again, or convert it "
            "with Adobe DNG Converter"
        ) from error


def _text(error: Exception) -> str:
    """LibRaw's errors carry bytes."""
    first = error.args[0] if error.args else ""
    return first.decode(errors="replace") if isinstance(first, bytes) else one_line(error)


def _read_frame(raw: Any) -> tuple[Frame, int, np.ndarray]:
    """The frame, the value at which it clips, and the ``(2, 2)`` black level of the file's metadata."""
    samples = raw.raw_image
    if samples is None or samples.ndim != 2 or raw.num_colors != 3 or raw.raw_pattern is None:
        raise UnsupportedError("holds no mosaic of red, green and blue; expected the raw file of a camera")
    colours = [[raw.raw_color(y, x) for x in range(2)] for y in range(2)]
    metadata = np.array(raw.black_level_per_channel, np.int32)[colours]
    white = int(raw.white_level)
    if not metadata.max() < white <= 65535:
        raise ValueError(f"its black level is {metadata.max()} and its white level {white}")
    top, left = raw.sizes.top_margin, raw.sizes.left_margin
    return Frame(samples.copy(), measured_black(samples, metadata, top, left, white), top, left), white, metadata


def _second_frames(path: Path, data: bytes) -> Iterator[tuple[Path, bytes, int]]:
    """Where a file may hold its second frame: name, content, and the number by which LibRaw knows it.

    Without a second frame LibRaw gives the main one again, or an error.
    """
    yield path, data, 1
    other = with_second_image(data)
    if other is not None:
        yield path, other, 0


def _second_frame(candidates: Iterable[tuple[Path, bytes, int]], main: Frame, white: int, tag: bool | None) -> Frame:
    """The frame of one photodiode; ``tag`` is what the file says of itself, which decides nothing.

    Raises:
        UnsupportedError: There is none.
    """
    found = Pairing.NONE
    for name, content, shot in candidates:
        try:
            with _opened(name, content, shot) as raw:
                second = _read_frame(raw)[0]
        except ImageError:
            if shot == 0:
                raise
            continue
        found = pairing(main, second, white) if second.samples.shape == main.samples.shape else Pairing.OTHER
        if found is Pairing.DUAL_PIXEL:
            return second
        if found is not Pairing.NONE:
            break
    off = ", and its tag says that Dual Pixel RAW was off" if tag is False else ""
    raise UnsupportedError(
        f"is not a dual-pixel photo: it holds {found.value}{off}; expected a sum and one view: switch Dual Pixel RAW "
        "on in the camera, and keep the second frame when the file is converted"
    )


def _white_balance(raw: Any) -> list[float]:
    """The camera's white balance, else daylight; LibRaw's own fallback would measure each view by itself."""
    for balance in (raw.camera_whitebalance, raw.daylight_whitebalance):
        if all(np.isfinite(balance[:3])) and min(balance[:3]) > 0:
            return [float(value) for value in balance]
    return [1.0, 1.0, 1.0, 1.0]


def _develop(raw: Any, balance: list[float]) -> np.ndarray:
    """Develops what is in ``raw.raw_image``, by rules that do not depend on the picture."""
    rawpy = _libraw()
    pixels: np.ndarray = raw.postprocess(
        user_wb=balance,
        output_color=rawpy.ColorSpace.sRGB,
        gamma=(2.4, 12.92),
        output_bps=16,
        no_auto_bright=True,
        adjust_maximum_thr=0.0,
        highlight_mode=rawpy.HighlightMode.Clip,
        user_flip=0,
    )
    return pixels
