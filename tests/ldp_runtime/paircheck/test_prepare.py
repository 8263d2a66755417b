"""What the check of a pair is worth: faults made from a good pair, restored by ldp-nano."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from ldp_runtime import Deblurrer
from ldp_runtime.errors import ImageError
from ldp_runtime.images.photo import read_photo
from ldp_runtime.images.quality import center_view, psnr
from ldp_runtime.paircheck.prepare import prepare
from tests.ldp_runtime.paircheck.faults import (
    Pair,
    Pixels,
    exposed,
    light,
    linear,
    lowered,
    of_bits,
    stored,
    sum_and_view,
    turned,
)

SAMPLE = Path(__file__).parents[3] / "samples/motorcycle"
Crop = tuple[Pair, Pixels]


@pytest.fixture(scope="module")
def good_db(nano: Deblurrer, crop: Crop) -> float:
    result = nano(*crop[0])
    assert result.notes == () and result.scale == 1
    return psnr(result.restored, crop[1], data_range=255)


@pytest.mark.parametrize(
    ("faulty", "words", "most_db"),
    [
        (lambda pair: exposed(pair, -1), "times the light", 0.3),
        (lambda pair: exposed(pair, 0.3), "times the light", 0.3),
        (lambda pair: sum_and_view(pair, 0.5), "the sum of both views", 0.3),
        (lambda pair: lowered(pair, 2), "2 px lower", 0.5),
        (lambda pair: lowered(pair, -1.5), "1.5 px higher", 0.5),
        (lambda pair: of_bits(pair, 12), "12 of 16 bits", 0.05),
    ],
    ids=["dark", "bright", "sum", "lower", "higher", "12-bit"],
)
def test_a_corrected_pair_is_restored_like_the_good_one(
    nano: Deblurrer, crop: Crop, good_db: float, faulty: object, words: str, most_db: float
) -> None:
    pair = faulty(crop[0])  # type: ignore[operator]
    result = nano(*pair)
    (note,) = result.notes
    assert words in note
    assert result.restored.dtype == pair[0].dtype
    db = psnr(result.restored / np.iinfo(result.restored.dtype).max, crop[1] / 255, data_range=1)
    assert db >= good_db - most_db, f"{db:.2f} dB, the good pair {good_db:.2f} dB"


def test_a_sum_and_a_view_of_its_brightness_are_told_apart_by_sharpness(nano: Deblurrer, wide_crop: Crop) -> None:
    """As far as the views are nearly half disks: those of cameras are hardly sharper along x than their sum."""
    pair, target = wide_crop
    good_db = psnr(nano(*pair).restored, target, data_range=255)
    result = nano(*sum_and_view(pair, 1))
    assert "the sum of both views" in result.notes[0]
    assert psnr(result.restored, target, data_range=255) >= good_db - 0.3


def test_the_axis_is_found(nano: Deblurrer, crop: Crop) -> None:
    pair = turned(crop[0])
    result = nano(*pair)
    assert "along y" in result.notes[0]
    np.testing.assert_array_equal(result.restored, nano(*pair, axis="vertical").restored)


def test_linear_light_gains_and_stays_linear(nano: Deblurrer, crop: Crop) -> None:
    pair, target = linear(crop[0]), stored(light(crop[1]), np.uint16)
    result = nano(*pair)
    assert "linear light" in result.notes[0]
    before = psnr(center_view(*pair), target, data_range=65535)
    gain = psnr(result.restored, target, data_range=65535) - before
    assert gain >= 3, f"gain {gain:.2f} dB"


def test_large_blur_is_restored_at_half_the_size(nano: Deblurrer, wide_crop: Crop) -> None:
    big = [cv2.resize(view[38:278, 60:420], None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC) for view in wide_crop[0]]
    target = cv2.resize(wide_crop[1][38:278, 60:420], None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC)
    result = nano(*big)
    assert result.scale == 0.5 and "the pair was restored at 1/2 of its size" in result.notes[0]
    assert result.restored.shape == (*result.blur_map.shape, 3) == target.shape
    before = center_view(*big)
    gain = psnr(result.restored, target, data_range=255) - psnr(before, target, data_range=255)
    assert gain >= 2.5, f"gain {gain:.2f} dB"  # measured: 2.57


@pytest.mark.parametrize("scale", ["1/2", "1/4"])
def test_sharp_px_of_the_sample_lose_nothing_at_a_smaller_scale(nano: Deblurrer, scale: str) -> None:
    """Cables narrower than 7 px lie beside strong blur there."""
    left, right, target = (read_photo(SAMPLE / f"{name}.png").pixels for name in ("left", "right", "target"))
    restored = Deblurrer(nano.bundle, scale=scale)(left, right).restored
    coc = np.abs(np.load(SAMPLE / "coc.npy"))

    def gain(where: NDArray[np.bool_]) -> float:
        before = np.rint(center_view(left, right))
        return psnr(restored[where], target[where], data_range=255) - psnr(before[where], target[where], data_range=255)

    assert gain(coc < 0.5) >= 0  # measured: 0.15 and 0.03
    assert gain(coc > 2) >= 1  # measured: 3.7 and 1.5


def test_a_scale_that_was_asked_for_is_no_note(nano: Deblurrer, crop: Crop) -> None:
    left, right = (np.ascontiguousarray(view[:64, :64]) for view in crop[0])
    result = Deblurrer(nano.bundle, scale="1/2", check="auto")(left, right)
    assert result.scale == 0.5 and result.notes == ()


def test_warnings_change_nothing(crop: Crop) -> None:
    pair = lowered(crop[0], 2)
    prepared = prepare(*pair, "horizontal", mode="warn", scale="1", blur_range=7)
    assert prepared.left is pair[0] and prepared.right is pair[1]
    assert prepared.check is not None and prepared.check.notes[0].endswith("--check auto")


def test_a_smaller_scale_restores_two_orientations(crop: Crop) -> None:
    whole, half = (
        prepare(*crop[0], "horizontal", mode="off", scale=scale, blur_range=7).pairs for scale in ("1", "1/2")
    )
    assert len(whole) == 1
    (left, right), turned = half
    assert left.shape == (160, 240, 3)
    np.testing.assert_array_equal(turned[0], right[::-1, ::-1])
    np.testing.assert_array_equal(turned[1], left[::-1, ::-1])


def test_what_would_do_harm_is_refused(nano: Deblurrer, crop: Crop) -> None:
    left, right = crop[0]
    for other, words in ((left, "hold the same picture"), (right[::-1, ::-1], "do not look like two views")):
        with pytest.raises(ImageError, match=words):
            nano(left, other)
