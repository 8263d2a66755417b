"""PGM and PPM: text (P2, P3) and binary (P5, P6), with any largest value; metadata there is none."""

from __future__ import annotations

import re

import numpy as np

from ldp_runtime.images.decode import Decoded, Format, Photo, check_size

_GAP = rb"(?:\s|#[^\n\r]*[\n\r])+"
_HEADER = re.compile(rb"P([2356])" + _GAP + rb"(\d{1,9})" + _GAP + rb"(\d{1,9})" + _GAP + rb"(\d{1,9})\s")
LONGEST_HEADER = 2**16
"""Bytes of a header that are read; comments may be long."""

_WHITE, _NO_NUMBER = re.compile(rb"\s"), re.compile(rb"[^0-9\s]")
_TEXT_BLOCK = 2**22
MOST_DIGITS = 9
"""Most digits of a sample in text, leading zeros included."""

_CHANNELS = {2: 1, 3: 3, 5: 1, 6: 3}


def _signatures(*kinds: int) -> tuple[bytes, ...]:
    return tuple(b"P%d" % kind + gap for kind in kinds for gap in (b" ", b"\t", b"\r", b"\n", b"#"))


def _header(data: bytes) -> tuple[int, int, int, int, int]:
    """Kind, width, height, largest value, and where the samples begin."""
    match = _HEADER.match(data[:LONGEST_HEADER])
    if match is None:
        raise ValueError("its header cannot be read")
    kind, width, height, largest = (int(group) for group in match.groups())
    return kind, width, height, largest, match.end()


def _size(data: bytes) -> tuple[int, int]:
    return _header(data)[1:3]


def _decode(data: bytes) -> Decoded:
    kind, width, height, largest, start = _header(data)
    check_size(width, height)
    if not 1 <= largest <= 65535:
        raise ValueError(f"expected a largest value from 1 to 65535, got {largest}")
    channels = _CHANNELS[kind]
    count = width * height * channels
    if kind < 5:
        samples = _text(data, start, count)
    else:
        sample = np.dtype(np.uint8 if largest < 256 else ">u2")
        if len(data) - start < count * sample.itemsize:
            raise _too_short(data, start, count)
        samples = np.frombuffer(data, sample, count, start)
    if samples.max() > largest:
        raise ValueError(f"a sample is {samples.max()} and the header says at most {largest}")
    top = 255 if largest < 256 else 65535
    # A table of the levels: the values of a 12-bit file, say, are spread over all 16 bits.
    levels = np.rint(np.arange(largest + 1) * (top / largest)).astype(np.uint8 if top == 255 else np.uint16)
    return Decoded(levels[samples].reshape(height, width, channels), None, None, None)


def _text(data: bytes, start: int, count: int) -> np.ndarray:
    """Parses decimal numbers between white space, a block at a time."""
    if len(data) - start < 2 * count - 1:  # a digit and a gap for each
        raise _too_short(data, start, count)
    samples = np.zeros(count, np.int32)
    at, done = start, 0
    while done < count and at < len(data):
        gap = _WHITE.search(data, at + _TEXT_BLOCK)
        end = len(data) if gap is None else gap.start()
        found = _numbers(data[at:end])[: count - done]
        samples[done : done + found.size] = found
        at, done = end, done + found.size
    if done < count:
        raise _too_short(data, start, count)
    return samples


def _numbers(text: bytes) -> np.ndarray:
    if _NO_NUMBER.search(text):
        raise ValueError("a sample is no number")
    symbols = np.frombuffer(text, np.uint8)
    edges = np.flatnonzero(np.diff(symbols >= ord("0"), prepend=False, append=False))
    first, end = edges[::2], edges[1::2]
    digits = int((end - first).max(initial=0))
    if digits > MOST_DIGITS:
        raise ValueError(f"a sample has {digits} digits")
    values = np.zeros(first.size, np.int32)
    for place in range(digits):
        longer = end - first > place
        values[longer] += (symbols[end[longer] - 1 - place].astype(np.int32) - ord("0")) * 10**place
    return values


def _too_short(data: bytes, start: int, count: int) -> ValueError:
    return ValueError(f"{len(data) - start} bytes cannot hold the {count} samples that it claims")


def _encode(array: np.ndarray, photo: Photo) -> bytes:
    height, width = array.shape[:2]
    colours = 1 if photo.grey else 3
    kind = 5 if photo.grey else 6
    header = b"P%d\n%d %d\n%d\n" % (kind, width, height, np.iinfo(array.dtype).max)
    return header + array[..., :colours].astype(array.dtype.newbyteorder(">"), copy=False).tobytes()


def _cannot_hold_alpha(photo: Photo) -> str | None:
    if photo.alpha is not None and photo.alpha.min() < np.iinfo(photo.alpha.dtype).max:
        return "PGM and PPM hold no alpha and the photo has some; choose a .png or .tif name"
    return None


def _pgm_cannot_hold(photo: Photo) -> str | None:
    return _cannot_hold_alpha(photo) if photo.grey else "PGM holds grey and the photo has colour; choose a .ppm name"


PGM = Format("PGM", (".pgm",), _signatures(2, 5), _size, _decode, _pgm_cannot_hold, _encode)
PPM = Format("PPM", (".ppm", ".pnm"), _signatures(3, 6), _size, _decode, _cannot_hold_alpha, _encode)
