import io
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from ldp_runtime.images import deflate
from ldp_runtime.images.decode import Photo
from ldp_runtime.images.photo import decode_photo, encode_photo
from tests.ldp_runtime.images.pictures import RGB8, RGB16, noise, pillow, png16, png_chunk, read, refusal

BOMB = zlib.compress(bytes(2**26), 9)
"""64 MiB of zeros in 64 KiB."""


def test_a_second_or_a_late_header_is_refused(tmp_path: Path) -> None:
    whole = png16(RGB16, 2)
    header, rest = whole[8:33], whole[33:]
    text = png_chunk(b"tEXt", b"a" * 4 + b"\x10")
    assert "one header, first of all" in refusal(tmp_path, whole[:8] + header + header + rest)
    assert "one header, first of all" in refusal(tmp_path, whole[:8] + text + header + rest)
    read(tmp_path, whole[:8] + header + text + rest)


@pytest.mark.parametrize(("kind", "head"), [(b"zTXt", b"a\0\0"), (b"iTXt", b"a\0\1\0\0\0"), (b"iCCP", b"a\0\0")])
def test_a_bomb_in_a_text_or_profile_is_refused(tmp_path: Path, kind: bytes, head: bytes) -> None:
    whole, chunk = pillow(RGB8, "PNG"), png_chunk(kind, head + BOMB)
    assert "damaged or truncated" in refusal(tmp_path, whole[:33] + chunk + whole[33:])


@pytest.mark.parametrize("whole", [pillow(noise(20, 20, 3), "PNG"), png16(noise(20, 20, 3, dtype=np.uint16), 2)])
def test_a_flipped_bit_is_refused(tmp_path: Path, whole: bytes) -> None:
    data = bytearray(whole)
    data[len(data) // 2] ^= 1
    assert "checksum" in refusal(tmp_path, bytes(data))


def stored(data: bytes) -> np.ndarray:
    """The pixels as libpng reads them, by OpenCV: ``(h, w, c)``, RGB."""
    array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    return array[..., None] if array.ndim == 2 else array[..., [2, 1, 0, 3][: array.shape[2]]]


@pytest.mark.parametrize("strip_bytes", [1, 100, 2**20])
@pytest.mark.parametrize("size", [(1, 1), (1, 37), (29, 1), (13, 31)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_strips_are_one_picture(
    monkeypatch: pytest.MonkeyPatch, strip_bytes: int, size: tuple[int, int], dtype: Any
) -> None:
    monkeypatch.setattr(deflate, "STRIP_BYTES", strip_bytes)
    values = noise(*size, 4, dtype=dtype)
    values[: size[0] // 2] >>= 3  # strips of both kinds
    for channels in (1, 3, 4):
        pixels = values[..., [0, 0, 0]] if channels == 1 else values[..., :3]
        photo = Photo(pixels, grey=channels == 1, alpha=values[..., 3] if channels == 4 else None)
        data = encode_photo("a.png", photo)
        expected = values[..., :channels]
        np.testing.assert_array_equal(stored(data), expected)
        image = Image.open(io.BytesIO(data))
        if dtype == np.uint8 or channels == 1:
            np.testing.assert_array_equal(np.asarray(image).reshape(expected.shape), expected)
        else:  # Pillow has 8 bits for colours
            np.testing.assert_array_equal(np.asarray(image), expected >> 8)
        again = decode_photo("a.png", data)
        np.testing.assert_array_equal(again.pixels, pixels)


def test_many_strips_are_packed_side_by_side() -> None:
    pixels = noise(700, 500, 3, dtype=np.uint16)  # three strips
    data = encode_photo("a.png", Photo(pixels))
    assert data.count(b"IDAT") == 4  # the checksum has a chunk of its own
    np.testing.assert_array_equal(stored(data), pixels)
    packed = b"".join(part[:-8] for part in data.split(b"IDAT")[1:])
    stream = zlib.decompressobj()
    assert len(stream.decompress(packed)) == 700 * (1 + 500 * 6)  # raises on a wrong checksum
    assert stream.eof


@pytest.mark.parametrize("order", ["transposed", "reversed", "every second"])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_any_order_in_memory(order: str, suffix: str) -> None:
    pixels = noise(12, 14, 3, dtype=np.uint16)
    odd = {
        "transposed": pixels.transpose(1, 0, 2),
        "reversed": pixels[::-1, ::-1],
        "every second": pixels[::2, 1::2],
    }[order]
    again = decode_photo("a", encode_photo(f"a{suffix}", Photo(odd)))
    np.testing.assert_array_equal(again.pixels, odd)


def test_a_photo_takes_no_more_room_than_with_matches() -> None:
    y, x = np.mgrid[0:300, 0:400]
    photo = 30000 + 20000 * np.sin(x / 40)[..., None] * np.cos(y / 30)[..., None] + np.zeros(3)
    photo = (photo + np.random.default_rng(0).normal(0, 100, photo.shape)).astype(np.uint16)
    rows = photo.astype(">u2").view(np.uint8).reshape(300, -1)
    differences = np.diff(rows, axis=0, prepend=np.zeros_like(rows[:1]))
    assert len(encode_photo("a.png", Photo(photo))) < 1.01 * len(zlib.compress(differences, deflate.LEVEL))
