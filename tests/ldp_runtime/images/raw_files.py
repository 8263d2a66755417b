"""Synthetic dual-pixel raw photos: frames from two views, DNGs that LibRaw reads, CR2 and CR3 over a fake LibRaw."""

import io
import struct
import sys
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ldp_runtime.images.exif import header, write_directory

BLACK, WHITE = 512, 16383
BALANCE = (0.5, 1.0, 0.6)
"""What the sensor makes of white."""

TOP, LEFT = 42, 136
"""Margins of a Canon EOS 5D Mark IV."""

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 7: 1, 10: 8}
_CODES = {1: "B", 3: "H", 4: "I", 5: "I", 10: "i"}
# From XYZ to linear sRGB: the sensor sees sRGB.
_MATRIX = (3.2406, -1.5372, -0.4986, -0.9689, 1.8758, 0.0415, 0.0557, -0.2040, 1.0570)


def make_frames(left: np.ndarray, right: np.ndarray, *, gain: float = 0.5, noise: float = 2.0) -> list[np.ndarray]:
    """The sum and the right view as a sensor with RGGB filters has them.

    Args:
        left: ``(h, w, 3)`` linear light in [0, 1].
        right: The other view.
        gain: Of white in a view, of the sum's range; above 0.5 the sum clips.
        noise: Standard deviation.
    """
    rng = np.random.default_rng(0)
    views = []
    for view in (left, right):
        light = view * BALANCE
        mosaic = light[..., 1].copy()
        mosaic[::2, ::2], mosaic[1::2, 1::2] = light[::2, ::2, 0], light[1::2, 1::2, 2]
        views.append(mosaic * gain * (WHITE - BLACK))
    frames = (views[0] + views[1], views[1])
    return [
        np.clip(np.rint(frame + BLACK + rng.normal(0, noise, frame.shape)), 0, WHITE).astype(np.uint16)
        for frame in frames
    ]


def with_margins(frame: np.ndarray, black: int, top: int = TOP, left: int = LEFT) -> np.ndarray:
    """A frame with masked margins, in which there is noise about a black level; the light stays as it is."""
    height, width = frame.shape
    rng = np.random.default_rng(1)
    whole = np.rint(rng.normal(black, 3, (height + top, width + left))).astype(np.uint16)
    whole[top:, left:] = frame
    return whole


def dng(
    frames: Sequence[np.ndarray], *, samples: bool = True, orientation: int = 1, top: int = 0, left: int = 0
) -> bytes:
    """A DNG of frames of one size: as samples of each pixel, as Adobe writes them, or as raw images of their own."""
    height, width = frames[0].shape
    groups = [np.dstack(frames)] if samples else [frame[..., None] for frame in frames]
    content = b"II*\0\0\0\0\0"
    starts = []
    for group in groups:
        starts.append(len(content))
        content += group.astype("<u2").tobytes()
    pointer = 4
    for number, (group, start) in enumerate(zip(groups, starts, strict=True)):
        n = group.shape[2]
        entries: list[tuple[int, int, Any]] = [
            (254, 4, [0]),
            (256, 4, [width]),
            (257, 4, [height]),
            (258, 3, [16] * n),
            (259, 3, [1]),
            (262, 3, [32803]),
            (273, 4, [start]),
            (277, 3, [n]),
            (278, 4, [height]),
            (279, 4, [group.size * 2]),
            (284, 3, [1]),
            (33421, 3, [2, 2]),
            (33422, 1, [0, 1, 1, 2]),
            (50711, 3, [1]),
            (50713, 3, [1, 1]),
            (50714, 4, [BLACK] * n),
            (50717, 4, [WHITE] * n),
        ]
        if top or left:
            entries.append((50829, 4, [top, left, height, width]))
        if number == 0:
            matrix = [part for value in _MATRIX for part in (round(value * 10000), 10000)]
            neutral = [part for value in BALANCE for part in (round(value * 10000), 10000)]
            entries += [
                (271, 2, b"Maker\0"),
                (272, 2, b"Model\0"),
                (274, 3, [orientation]),
                (306, 2, b"2024:01:01 12:00:00\0"),
                (50706, 1, [1, 4, 0, 0]),
                (50707, 1, [1, 1, 0, 0]),
                (50708, 2, b"Maker Model\0"),
                (50721, 10, matrix),
                (50728, 5, neutral),
                (50778, 3, [21]),
            ]
        content += b"\0" * (len(content) % 2)
        content = content[:pointer] + struct.pack("<I", len(content)) + content[pointer + 4 :]
        block = _directory(sorted(entries), len(content))
        pointer = len(content) + 2 + 12 * len(entries)
        content += block
    return content


def _directory(entries: list[tuple[int, int, Any]], start: int) -> bytes:
    head, values = struct.pack("<H", len(entries)), b""
    base = start + 2 + 12 * len(entries) + 4
    for tag, kind, value in entries:
        raw = value if isinstance(value, bytes) else struct.pack(f"<{len(value)}{_CODES[kind]}", *value)
        field = raw.ljust(4, b"\0") if len(raw) <= 4 else struct.pack("<I", base + len(values))
        if len(raw) > 4:
            values += raw + b"\0" * (len(raw) % 2)
        head += struct.pack("<HHI", tag, kind, len(raw) // _SIZES[kind]) + field
    return head + b"\0\0\0\0" + values


def small_dng(height: int = 32, width: int = 40, **options: Any) -> bytes:
    """A dual-pixel DNG of noise that is nearly the same in both views; the options are those of ``dng``."""
    light = np.random.default_rng(0).uniform(0.2, 0.8, (height, width, 3))
    return dng(make_frames(light, 0.95 * light), **options)


_MAKER, _EXPOSURE = (2, 6, b"Maker\0"), (5, 1, struct.pack("<II", 1, 250))


def _maker_note(on: bool) -> dict[int, tuple[int, int, bytes]]:
    """Canon's LightingOpt, in which Dual Pixel RAW is on or off."""
    return {0x4018: (4, 13, struct.pack("<13I", 52, *[7] * 10, int(on), 7))}


def cr3(on: bool = True) -> bytes:
    """The boxes of a CR3 file with its metadata, without frames, for ``fake_libraw``."""

    def box(kind: bytes, *parts: bytes) -> bytes:
        body = b"".join(parts)
        return struct.pack(">I", 8 + len(body)) + kind + body

    def block(tag: int, entry: tuple[int, int, bytes]) -> bytes:
        return header("<", 8) + write_directory("<", {tag: entry}, 8)

    canon = bytes.fromhex("85c0b687820f11e08111f4ce462b6a48")
    metadata = [box(b"CMT1", block(0x010F, _MAKER)), box(b"CMT2", block(0x829A, _EXPOSURE))]
    metadata.append(box(b"CMT3", header("<", 8) + write_directory("<", _maker_note(on), 8)))
    return (
        box(b"ftyp", b"crx \0\0\0\1crx isom")
        + box(b"moov", box(b"uuid", canon, box(b"CNCV", b"CanonCR3_001"), *metadata))
        + box(b"mdat", bytes(20_000))
    )


def cr2(on: bool = True) -> bytes:
    """The header of a CR2 file with its metadata, without frames, for ``fake_libraw``."""
    tags = {0x010F: _MAKER, 0x8769: {0x829A: _EXPOSURE, 0x927C: _maker_note(on)}}
    return b"II*\0" + struct.pack("<I", 16) + b"CR\2\0\0\0\0\0" + write_directory("<", tags, 16) + bytes(20_000)


def fake_libraw(
    monkeypatch: pytest.MonkeyPatch, frames: Sequence[np.ndarray], *, top: int = TOP, left: int = LEFT
) -> None:
    """Puts another ``rawpy`` in place, to which any file holds these frames with these margins, as a Canon file would.

    Frame 0 without a number or for a number that does not exist, as LibRaw does it. It develops by the real LibRaw.
    """
    rawpy = pytest.importorskip("rawpy")

    def imread(file: io.BytesIO, shot_select: int = 0) -> Any:
        file.read()
        frame = frames[shot_select if shot_select < len(frames) else 0]
        return rawpy.imread(io.BytesIO(dng([frame], top=top, left=left)))

    fake = SimpleNamespace(**{name: getattr(rawpy, name) for name in dir(rawpy) if not name.startswith("__")})
    fake.imread = imread
    monkeypatch.setitem(sys.modules, "rawpy", fake)
