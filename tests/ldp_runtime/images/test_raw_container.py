import io
import struct
from collections.abc import Callable

import numpy as np
import pytest
import tifffile

from ldp_runtime.images.exif import clean_exif, read_block
from ldp_runtime.images.raw_container import dual_pixel_tag, is_raw, metadata_block, with_second_image
from tests.ldp_runtime.images.pictures import RGB8, pillow, tiff
from tests.ldp_runtime.images.raw_files import cr2, cr3, dng

FRAMES = [np.full((32, 40), value, np.uint16) for value in (1000, 700)]


def test_raw_files_are_known_by_their_content() -> None:
    assert all(map(is_raw, (dng(FRAMES), dng(FRAMES, samples=False), cr2(), cr3())))
    assert not any(map(is_raw, (tiff(RGB8), pillow(RGB8, "PNG"), pillow(RGB8, "JPEG"), b"", b"II*\0")))


@pytest.mark.parametrize("data", [cr2(), cr3()], ids=["cr2", "cr3"])
def test_the_exif_data_of_canons_files_is_found(data: bytes) -> None:
    orientation, exif = clean_exif(metadata_block(data))
    assert orientation == 1
    assert exif is not None
    tags = read_block(exif)[1]
    assert tags[0x010F] == (2, 6, b"Maker\0")
    inner = tags[0x8769]
    assert isinstance(inner, dict)
    assert inner[0x829A] == (5, 1, struct.pack("<II", 1, 250))


@pytest.mark.parametrize("make", [cr2, cr3])
def test_the_tag_of_dual_pixel_raw(make: Callable[..., bytes]) -> None:
    assert dual_pixel_tag(make(on=True)) is True
    assert dual_pixel_tag(make(on=False)) is False
    assert dual_pixel_tag(dng(FRAMES)) is None
    for cut in range(0, 400, 3):
        dual_pixel_tag(make()[:cut])


@pytest.mark.parametrize("cut", range(0, 230, 3))
def test_damaged_boxes_give_less_or_nothing(cut: int) -> None:
    data = cr3()
    for damaged in (data[:cut], data[:cut] + b"\xff" * 8 + data[cut + 8 :], data[:cut] + bytes(8) + data[cut + 8 :]):
        clean_exif(metadata_block(damaged))
        is_raw(damaged)
        dual_pixel_tag(damaged)


def test_the_second_raw_image_is_put_in_place_of_the_first() -> None:
    rawpy = pytest.importorskip("rawpy")
    data = with_second_image(dng(FRAMES, samples=False))
    assert data is not None
    with rawpy.imread(io.BytesIO(data)) as raw:
        np.testing.assert_array_equal(raw.raw_image, FRAMES[1])
    assert with_second_image(dng(FRAMES)) is None
    assert with_second_image(dng(FRAMES[:1])) is None
    assert with_second_image(cr3()) is None


def test_raw_images_in_inner_directories_are_found() -> None:
    """Adobe's DNGs have a preview in the first directory, and the raw images in directories that it points to."""
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        writer.write(RGB8, photometric="rgb", metadata=None, subifds=2)
        for frame in FRAMES:
            cfa = [(33421, 3, 2, (2, 2), True), (33422, 1, 4, bytes([0, 1, 1, 2]), True)]
            writer.write(frame, photometric="cfa", metadata=None, extratags=cfa)
    data = with_second_image(buffer.getvalue())
    assert data is not None
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        inner = file.pages.first.pages
        assert inner is not None
        for page in inner:
            np.testing.assert_array_equal(page.asarray(), FRAMES[1])


def test_directories_in_a_circle_end() -> None:
    data = bytearray(dng(FRAMES[:1]))
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    struct.pack_into("<I", data, start + 2 + 12 * count, start)
    assert with_second_image(bytes(data)) is None
    for at in range(0, len(data), 7):
        with_second_image(bytes(data[:at]))
