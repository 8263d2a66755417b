import io
from pathlib import Path

import numpy as np
import pytest
import tifffile

from ldp_runtime.errors import ImageError
from ldp_runtime.images.one_file import both_views
from ldp_runtime.images.pair_files import read_views
from tests.ldp_runtime.images.pictures import RGB8, RGB16, noise, pillow, tiff
from tests.ldp_runtime.images.raw_files import dng, make_frames

OTHER16 = noise(6, 9, 3, dtype=np.uint16, seed=1)


def pages(*arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        for array in arrays:
            writer.write(array, photometric="rgb", metadata=None)
    return buffer.getvalue()


def test_two_pages_are_a_pair_and_thumbnails_are_not() -> None:
    left, right = both_views("a.tif", pages(RGB16[::3, ::3].copy(), RGB16, OTHER16))
    np.testing.assert_array_equal(left.pixels, RGB16)
    np.testing.assert_array_equal(right.pixels, OTHER16)


def test_side_by_side() -> None:
    data = pillow(np.concatenate([RGB8, 255 - RGB8], axis=1), "PNG")
    left, right = both_views("a.png", data, side_by_side=True)
    np.testing.assert_array_equal(left.pixels, RGB8)
    np.testing.assert_array_equal(right.pixels, 255 - RGB8)
    with pytest.raises(ImageError, match="is 9 px wide; expected an even number"):
        both_views("a.png", pillow(RGB8, "PNG"), side_by_side=True)


@pytest.mark.parametrize("data", [pillow(RGB8, "PNG"), tiff(RGB16), pages(RGB16, OTHER16, RGB16)])
def test_other_files_hold_no_pair(data: bytes) -> None:
    with pytest.raises(ImageError, match=r"a expected|a holds one picture; expected both views"):
        both_views("a", data)


def test_swap_exchanges_the_views_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(pages(RGB16, OTHER16))
    views = read_views(tmp_path / "a.tif", swap=True)
    np.testing.assert_array_equal(views.left.pixels, OTHER16)
    np.testing.assert_array_equal(views.right.pixels, RGB16)


def test_raw_files_stand_alone_or_are_a_sum_and_a_view(tmp_path: Path) -> None:
    pytest.importorskip("rawpy")
    light = np.random.default_rng(0).uniform(0.2, 0.8, (32, 40, 3))
    frames = make_frames(light, light)
    files = {"a.dng": dng(frames), "a-1.dng": dng(frames[:1]), "a-2.dng": dng(frames[1:]), "b.png": pillow(RGB8, "PNG")}
    paths = {name: tmp_path / name for name in files}
    for name, data in files.items():
        paths[name].write_bytes(data)
    alone, apart = read_views(paths["a.dng"]), read_views(paths["a-1.dng"], paths["a-2.dng"])
    np.testing.assert_array_equal(alone.left.pixels, apart.left.pixels)
    with pytest.raises(ImageError, match=r"a\.dng is a raw photo and .*b\.png is not"):
        read_views(paths["b.png"], paths["a.dng"])
