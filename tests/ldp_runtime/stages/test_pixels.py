from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ldp_runtime.errors import NumericsError
from ldp_runtime.stages import pixels as pixels_module
from ldp_runtime.stages.geometry import pad_reflect
from ldp_runtime.stages.pixels import FIX_NUMERICS, PaddedPair, new_image, write_pixels
from tests.ldp_runtime.whole import to_image

DTYPES = (np.uint8, np.uint16)


@pytest.fixture(scope="module", params=["whole", "strips"], autouse=True)
def strips(request: pytest.FixtureRequest) -> Iterator[None]:
    """Small pictures go in one piece; with "strips" each row by itself."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "strips":
            patch.setattr(pixels_module, "STRIP_BYTES", 1)
        yield


@settings(max_examples=150)
@given(st.data())
def test_regions_are_cut_from_the_padded_pair(data: st.DataObject) -> None:
    h, w = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 20))
    H, W = h + data.draw(st.integers(0, 30)), w + data.draw(st.integers(0, 30))
    dtype = data.draw(st.sampled_from([np.dtype(np.uint8), np.dtype(np.uint16), np.dtype(">u2")]))
    rng = np.random.default_rng(0)
    order = data.draw(st.sampled_from(["contiguous", "transposed", "reversed", "every second", "part of a row"]))
    wide = rng.integers(0, np.iinfo(dtype).max, (2, 50, 50, 3), endpoint=True).astype(dtype)
    views = {
        "contiguous": np.ascontiguousarray(wide[:, :h, :w]),
        "transposed": np.ascontiguousarray(wide[:, :w, :h]).transpose(0, 2, 1, 3),
        "reversed": wide[:, h - 1 :: -1, w - 1 :: -1, ::-1],
        "every second": wide[:, : 2 * h : 2, : 2 * w : 2],
        "part of a row": wide[:, 3 : 3 + h, 5 : 5 + w],
    }[order]
    planes = np.concatenate([v.transpose(2, 0, 1) for v in views]) / np.float32(np.iinfo(dtype).max)
    padded, whole = (
        PaddedPair(*views, (H, W)),
        pad_reflect(planes.astype(np.float32), (H, W)),
    )
    if data.draw(st.booleans()):
        H, W = H + data.draw(st.integers(0, 30)), W + data.draw(st.integers(0, 30))
        padded, whole = padded.extended((H, W)), pad_reflect(whole, (H, W))
    assert padded.size == (H, W)
    y, x = data.draw(st.integers(0, H - 1)), data.draw(st.integers(0, W - 1))
    height, width = data.draw(st.integers(1, H - y)), data.draw(st.integers(1, W - x))
    region = padded.region(y, x, height, width)
    assert region.dtype == np.float32
    np.testing.assert_array_equal(region, whole[:, y : y + height, x : x + width])


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_level_is_scaled_by_a_division(dtype: type) -> None:
    top = np.iinfo(dtype).max
    values = np.arange(top + 1).astype(dtype).reshape(1, -1, 1).repeat(3, axis=2)
    region = PaddedPair(values, values, values.shape[:2]).region(0, 0, *values.shape[:2])
    np.testing.assert_array_equal(region[0, 0], np.arange(top + 1, dtype=np.float32) / np.float32(top))


@settings(max_examples=60)
@given(st.data())
def test_canvases_are_the_normalised_views(data: st.DataObject) -> None:
    mean, std = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
    s, (h, w) = data.draw(st.sampled_from([1, 2, 7, 16])), data.draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    size = H, W = max(h, s) + data.draw(st.integers(0, 20)), max(w, s) + data.draw(st.integers(0, 20))
    dtype = data.draw(st.sampled_from([np.dtype(np.uint8), np.dtype(np.uint16), np.dtype(">u2")]))
    rng = np.random.default_rng(s)
    views = rng.integers(0, np.iinfo(dtype).max, (2, h, w, 3), endpoint=True).astype(dtype)
    if data.draw(st.booleans()):
        views = np.ascontiguousarray(views.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)
    padded = PaddedPair(*views, size)
    origins = data.draw(st.lists(st.tuples(st.integers(0, H - s), st.integers(0, W - s)), min_size=1, max_size=4))
    origins += [(y, W - s - x) for y, x in origins[-1:]]  # two windows of a row
    made = padded.canvases(origins, s, mean, std)
    stereo, center = made["stereo"], made["center"]
    for name, whole in made.items():
        (alone,) = (one := padded.canvases(origins, s, mean, std, (name,))).values()
        assert list(one) == [name]
        np.testing.assert_array_equal(alone, whole)
    offset, scale = (np.array(value, np.float32)[:, None, None] for value in (mean, std))
    for (y, x), canvas, middle in zip(origins, stereo, center, strict=True):
        region = padded.region(y, x, s, s)
        left, right = ((view - offset) / scale for view in (region[:3], region[3:]))
        np.testing.assert_array_equal(canvas, np.concatenate([left, right[..., ::-1]], axis=2))
        np.testing.assert_array_equal(middle, (left + right) * np.float32(0.5))


def expected_pixels(restored: NDArray[Any], dtype: Any) -> NDArray[Any]:
    top = np.float32(np.iinfo(dtype).max)
    return np.clip(np.rint(restored * top), 0, top).transpose(1, 2, 0).astype(dtype)


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("axis", ["horizontal", "vertical"])
@pytest.mark.parametrize("dtype", [*DTYPES, ">u2"])
@pytest.mark.parametrize(
    ("size", "padding"), [((1, 1), (0, 0)), ((1, 9), (3, 0)), ((11, 1), (0, 2)), ((13, 31), (3, 1))]
)
def test_pixels_are_rounded_half_to_even(
    axis: str, dtype: Any, size: tuple[int, int], padding: tuple[int, int]
) -> None:
    h, w = size
    top = np.iinfo(dtype).max
    rng = np.random.default_rng(h)
    restored = rng.uniform(-0.2, 1.2, (3, h + padding[0], w + padding[1])).astype(np.float32)
    halves = (rng.integers(0, top, restored.shape) + np.float32(0.5)) / np.float32(top)
    restored = np.where(rng.random(restored.shape) < 0.3, halves, restored).astype(np.float32)
    restored[0, 0, 0] = rng.choice([-0.0, 1e30, -1e30, np.finfo(np.float32).max])
    image, along_x = new_image(np.empty((h, w, 3), dtype), axis)
    write_pixels(restored, along_x)
    assert image.dtype == np.dtype(dtype).newbyteorder("=")
    assert image.flags.c_contiguous
    expected = expected_pixels(restored, image.dtype)[:h, :w]
    np.testing.assert_array_equal(image, expected if axis == "horizontal" else expected.transpose(1, 0, 2))


def test_a_part_of_an_image_is_written_alone() -> None:
    image = np.full((20, 30, 3), 7, np.uint8)
    restored = np.random.default_rng(0).random((3, 40, 50), np.float32)[:, 10:18, 20:32]
    write_pixels(restored, image[5:13, 9:19])
    expected = np.full_like(image, 7)
    expected[5:13, 9:19] = expected_pixels(restored, np.uint8)[:, :10]
    np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0, 0), (1, 4, 7), (2, 5, 2), (2, 7, 9)])
def test_a_number_that_is_none_is_found_in_the_padding_too(value: float, place: tuple[int, int, int]) -> None:
    restored = np.zeros((3, 8, 10), np.float32)
    restored[place] = value
    c, y, x = place
    match = f"in 1 of 240, first at channel {c}, y {100 + y}, x {50 + x};"
    with pytest.raises(NumericsError, match=match):
        write_pixels(restored, np.empty((5, 7, 3), np.uint8), (100, 50))
    with pytest.raises(NumericsError, match=match):  # nothing of the block is in the image
        write_pixels(restored, np.empty((0, 7, 3), np.uint8), (100, 50))


@pytest.mark.filterwarnings("ignore:overflow")
def test_numbers_whose_sum_is_none_are_fine() -> None:
    restored = np.full((3, 4, 5), np.finfo(np.float32).max)
    image = np.zeros((4, 5, 3), np.uint8)
    write_pixels(restored, image)
    assert (image == 255).all()


def test_finish_clamps_and_rounds_half_to_even() -> None:
    levels = np.array([-0.5, -0.001, 0.5 / 255, 1.5 / 255, 2.5 / 255, 2.6 / 255, 254.5 / 255, 1.0, 7.0])
    values = levels.astype(np.float32)
    halves = values * np.float32(255)
    assert halves[2:5].tolist() == [0.5, 1.5, 2.5], "these are no halves in FP32, so they prove nothing"
    restored = np.broadcast_to(values, (3, 1, 9)).copy()
    found = to_image(restored, np.zeros((1, 9, 3), np.uint8), "horizontal")
    assert found[0, :, 0].tolist() == [0, 0, 0, 2, 2, 3, 254, 255, 255]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_or_inf_anywhere_is_an_error_also_in_the_padding(bad: float) -> None:
    restored = np.zeros((3, 32, 64), np.float32)
    restored[1, 31, 60] = bad
    with pytest.raises(NumericsError) as caught:
        to_image(restored, np.zeros((20, 40, 3), np.uint8), "horizontal")
    assert str(caught.value) == (
        "expected finite numbers in the restored image, got NaN or Inf in 1 of 6144, "
        f"first at channel 1, y 31, x 60; {FIX_NUMERICS}"
    )
