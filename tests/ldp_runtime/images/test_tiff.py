import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile

from ldp_runtime.images import tiff as tiff_module
from ldp_runtime.images.decode import Photo
from ldp_runtime.images.photo import encode_photo, read_photo, write_pixels
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


def test_a_missing_strip_or_size_is_refused(tmp_path: Path) -> None:
    data = encode_photo("a.tif", Photo(noise(20, 20, 3, dtype=np.uint16)))
    assert "a part of the picture is missing" in refusal(tmp_path, set_long(data, 279, 0))
    assert "claims 0 x 20 pixels" in refusal(tmp_path, set_long(data, 256, 0))
