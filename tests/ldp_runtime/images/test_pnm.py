from pathlib import Path

import cv2
import numpy as np
import pytest

from ldp_runtime.errors import ImageError
from ldp_runtime.images.decode import MAX_PIXELS, Photo
from ldp_runtime.images.photo import encode_photo, read_photo, write_pixels
from ldp_runtime.images.pnm import _TEXT_BLOCK
from tests.ldp_runtime.images.pictures import G8, G16, RGB8, RGB16, RGBA8, noise, read, refusal


def text(kind: int, array: np.ndarray, largest: int) -> bytes:
    height, width = array.shape[:2]
    samples = "\n".join(" ".join(map(str, row)) for row in array.reshape(height, -1))
    return f"P{kind}\n# a comment\n{width} {height}\n{largest}\n{samples}\n".encode()


@pytest.mark.parametrize("pixels", [G8, G16, RGB8, RGB16], ids=["grey8", "grey16", "rgb8", "rgb16"])
def test_written_and_read_again_and_read_by_opencv(tmp_path: Path, pixels: np.ndarray) -> None:
    path = tmp_path / ("a.pgm" if pixels.ndim == 2 else "a.ppm")
    write_pixels(path, pixels)
    photo = read_photo(path)
    assert photo.grey == (pixels.ndim == 2)
    np.testing.assert_array_equal(photo.pixels[..., 0] if photo.grey else photo.pixels, pixels)
    theirs = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(theirs if photo.grey else theirs[..., ::-1], pixels)
    np.testing.assert_array_equal(
        read(tmp_path, text(2 if photo.grey else 3, pixels, np.iinfo(pixels.dtype).max)).pixels, photo.pixels
    )


@pytest.mark.parametrize(("largest", "dtype"), [(1, np.uint8), (100, np.uint8), (1023, np.uint16), (4095, np.uint16)])
def test_samples_fill_the_range(tmp_path: Path, largest: int, dtype: type) -> None:
    ramp = np.linspace(0, largest, 12).round().astype(int).reshape(3, 4)
    sample = "u1" if largest < 256 else ">u2"
    binary = b"P5 4 3 %d\n" % largest + ramp.astype(sample).tobytes()
    top = np.iinfo(dtype).max
    for data in (binary, text(2, ramp, largest)):
        photo = read(tmp_path, data)
        assert photo.pixels.dtype == dtype
        np.testing.assert_array_equal(photo.pixels[..., 0], np.rint(ramp * (top / largest)))


def test_long_text_is_parsed_in_blocks(tmp_path: Path) -> None:
    large = noise(1100, 1100, dtype=np.uint16)
    data = text(2, large, 65535)
    assert len(data) > _TEXT_BLOCK
    np.testing.assert_array_equal(read(tmp_path, data).pixels[..., 0], large)


def test_what_they_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"choose a \.ppm name"):
        encode_photo("a.pgm", Photo(RGB8))
    with pytest.raises(ImageError, match="hold no alpha"):
        encode_photo("a.ppm", Photo(RGB8, alpha=RGBA8[..., 3]))
    opaque = encode_photo("a.ppm", Photo(RGB8, alpha=np.full_like(G8, 255)))
    np.testing.assert_array_equal(read(tmp_path, opaque).pixels, RGB8)
    grey = encode_photo("a.pnm", Photo(np.repeat(G8[..., None], 3, 2), grey=True))
    assert grey.startswith(b"P5")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"P5 30000 30000 255\n" + bytes(99), f"at most {MAX_PIXELS}"),
        (b"P5 9000 9000 255\n" + bytes(99), "99 bytes cannot hold the 81000000 samples"),
        (b"P6 9000 9000 65535\n" + bytes(99), "cannot hold"),
        (b"P2 9000 9000 255\n1 2 3", "cannot hold"),
        (b"P2 3 1 255\n1  2   ", "cannot hold the 3 samples"),
        (b"P2 2 1 255\n1 -2", "a sample is no number"),
        (b"P2 2 1 255\n1 300", "a sample is 300"),
        (b"P2 1 1 255\n12345678901", "has 11 digits"),
        (b"P5 2 1 100\n\xff\xff", "a sample is 255"),
        (b"P5 2 1 0\n\0\0", "largest value"),
        (b"P5 2 1 70000\n\0\0\0\0", "largest value"),
        (b"P5 0 1 255\n", "0 x 1 pixels"),
        (b"P5 2 x 255\n", "header cannot be read"),
        (b"P5\n" + b"#" * 70_000 + b"\n1 1 255\n\0", "header cannot be read"),
        (b"P4 8 1\n\0", "is not a PNG"),
    ],
)
def test_refuses(tmp_path: Path, data: bytes, words: str) -> None:
    assert words in refusal(tmp_path, data)
