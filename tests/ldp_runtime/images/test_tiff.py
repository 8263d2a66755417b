import io
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile

from ldp_runtime.images import tiff as tiff_module
from ldp_runtime.images.decode import Photo
from ldp_runtime.images.linear import encode_srgb
from ldp_runtime.images.photo import decode_photos, encode_photo, photo_size, read_photo, write_pixels
from tests.ldp_runtime.images.pictures import RGB16, noise, read, refusal, tiff


def set_long(data: bytes, tag: int, value: int) -> bytes:
    """Changes the only value of a tag of type LONG in a little-endian file."""
    at = data.index(struct.pack("<HHI", tag, 4, 1)) + 8
    return data[:at] + struct.pack("<I", value) + data[at + 4 :]


def test_a_large_picture_has_several_strips(tmp_path: Path) -> None:
    pixels = noise(300, 800, 3, dtype=np.uint16)
    write_pixels(tmp_path / "a.tif", pixels)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert len(file.pages.first.dataoffsets) > 1
    np.testing.assert_array_equal(read_photo(tmp_path / "a.tif").pixels, pixels)


def test_a_thumbnail_page_is_no_second_picture(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        writer.write(RGB16, photometric="rgb", metadata=None)
        writer.write(RGB16[::2, ::2].copy(), photometric="rgb", metadata=None, subfiletype=1)
    np.testing.assert_array_equal(read(tmp_path, buffer.getvalue()).pixels, RGB16)


@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("reduced", [1, 0])
def test_a_thumbnail_before_the_picture_is_passed_over(tmp_path: Path, reduced: int, bigtiff: bool) -> None:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer, bigtiff=bigtiff) as writer:
        writer.write(noise(2, 3, 3), photometric="rgb", metadata=None, subfiletype=reduced)
        orientation = [(274, 3, 1, 3, True)]
        writer.write(RGB16, photometric="rgb", metadata=None, compression="zlib", extratags=orientation)
    assert photo_size("a", buffer.getvalue()) == (9, 6)
    expected = RGB16 if bigtiff else RGB16[::-1, ::-1]  # EXIF tags of BigTIFF are not read
    np.testing.assert_array_equal(read(tmp_path, buffer.getvalue()).pixels, expected)


FLOATS = {
    "plain": {},
    "deflate": {"compression": "zlib"},
    "tiles": {"tile": (16, 16), "compression": "zlib"},
    "big endian": {"byteorder": ">"},
    "planes": {"planarconfig": "separate"},
}


@pytest.mark.parametrize("options", FLOATS.values(), ids=FLOATS)
def test_linear_light_is_encoded_as_srgb(tmp_path: Path, options: dict[str, Any]) -> None:
    light = np.random.default_rng(0).uniform(0, 1, (20, 30, 3)).astype(np.float32)
    light[0, 0] = 1.0
    stored = np.moveaxis(light, 2, 0) if "planarconfig" in options else light
    photo = read(tmp_path, tiff(stored, **options))
    np.testing.assert_array_equal(photo.pixels, encode_srgb(light))
    assert photo.notes == ("linear floating-point samples were encoded as sRGB, with 1 as white",)


def test_opencvs_float_files_are_read(tmp_path: Path) -> None:
    light = np.random.default_rng(0).uniform(0, 1, (20, 30, 3)).astype(np.float32)
    light[0, 0] = 1.0
    for compression in (1, 5, 8):  # none, LZW, deflate; OpenCV writes differences of floats
        data = cv2.imencode(".tif", light[..., ::-1], [cv2.IMWRITE_TIFF_COMPRESSION, compression])[1].tobytes()
        np.testing.assert_array_equal(read(tmp_path, data).pixels, encode_srgb(light))


@pytest.mark.parametrize(
    ("scale", "stated", "white"),
    [(1.0, None, 1.0), (0.7, None, 1.0), (0.05, None, 0.05), (300.0, None, 300.0), (0.05, 2.0, 2.0)],
)
def test_white_is_what_the_file_says_or_its_maximum(
    tmp_path: Path, scale: float, stated: float | None, white: float
) -> None:
    light = np.linspace(0, scale, 54, dtype=np.float32).reshape(6, 9)
    extra = [] if stated is None else [(341, 11, 1, stated, True)]
    photo = read(tmp_path, tiff(light, photometric="minisblack", extratags=extra))
    assert photo.grey
    np.testing.assert_array_equal(photo.pixels[..., 0], encode_srgb(light, white=white))


def test_both_views_in_linear_light_get_one_exposure() -> None:
    light = np.random.default_rng(0).uniform(0, 3, (6, 9, 3)).astype(np.float32)
    light[0, 0] = 3.0
    left, right = decode_photos([("l", tiff(light)), ("r", tiff(light * 2))])
    np.testing.assert_array_equal(left.pixels, encode_srgb(light, white=6))
    np.testing.assert_array_equal(right.pixels, encode_srgb(light, white=3))


def test_alpha_of_linear_light_stays_linear(tmp_path: Path) -> None:
    light = np.random.default_rng(0).uniform(0.6, 1, (6, 9, 4)).astype(np.float32)
    photo = read(tmp_path, tiff(light, extrasamples=["unassalpha"]))
    np.testing.assert_array_equal(photo.pixels, encode_srgb(light[..., :3]))
    np.testing.assert_array_equal(photo.alpha, np.rint(65535 * light[..., 3]))


def test_a_strip_that_inflates_without_end_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = zlib.compress(bytes(2**26), 9)  # 64 MiB of zeros in 64 KiB
    data = tiff(RGB16, compression="zlib")
    bomb = set_long(set_long(data, 279, len(packed)), 273, len(data)) + packed
    inflated: list[int] = []
    real = zlib.decompressobj

    class Watched:
        def __init__(self) -> None:
            self._stream = real()

        def decompress(self, packed: bytes, limit: int) -> bytes:
            out = self._stream.decompress(packed, limit)
            inflated.append(len(out))
            return out

        @property
        def eof(self) -> bool:
            return self._stream.eof

    monkeypatch.setattr(tiff_module.zlib, "decompressobj", Watched)
    assert f"inflates to more than its {RGB16.nbytes} bytes" in refusal(tmp_path, bomb)
    assert inflated == [RGB16.nbytes + 1]


def test_deflate_is_read_as_tifffile_reads_it(tmp_path: Path) -> None:
    large = noise(70, 50, 3, dtype=np.uint16)
    for options in ({"rowsperstrip": 7}, {"tile": (32, 16)}, {"rowsperstrip": 2**31}, {"predictor": True}):
        for order in "<>":
            data = tiff(large, compression="zlib", byteorder=order, **options)
            np.testing.assert_array_equal(read(tmp_path, data).pixels, large)
    planes = tiff(np.moveaxis(large, 2, 0), planarconfig="separate", compression="zlib", tile=(16, 16))
    np.testing.assert_array_equal(read(tmp_path, planes).pixels, large)


@pytest.mark.parametrize("length", [1, 2, 150])
def test_a_circle_of_directories_ends(tmp_path: Path, length: int) -> None:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        for _ in range(length):
            writer.write(RGB16, photometric="rgb", metadata=None)
    data = bytearray(buffer.getvalue())
    (at,) = first = struct.unpack_from("<I", data, 4)
    for _ in range(length - 1):
        (count,) = struct.unpack_from("<H", data, at)
        (at,) = struct.unpack_from("<I", data, at + 2 + 12 * count)
    (count,) = struct.unpack_from("<H", data, at)
    struct.pack_into("<I", data, at + 2 + 12 * count, *first)
    assert "pages" in refusal(tmp_path, bytes(data))


def test_a_size_of_many_numbers_is_refused(tmp_path: Path) -> None:
    data = bytearray(encode_photo("a.tif", Photo(noise(20, 20, 3, dtype=np.uint16))))
    at = data.index(struct.pack("<HHI", 256, 4, 1))
    struct.pack_into("<HHII", data, at, 256, 4, 13, 8)  # as a sequence, which times 2^30 would fill the memory
    assert "not a number" in refusal(tmp_path, set_long(bytes(data), 257, 2**30))


def test_a_missing_strip_or_size_is_refused(tmp_path: Path) -> None:
    data = encode_photo("a.tif", Photo(noise(20, 20, 3, dtype=np.uint16)))
    assert "a part of the picture is missing" in refusal(tmp_path, set_long(data, 279, 0))
    assert "claims 0 x 20 pixels" in refusal(tmp_path, set_long(data, 256, 0))
