"""Scores of photographs, against slow transcriptions of what they are said to be."""

import itertools
import math

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from ldp_export.evaluation.photographs import (
    aligned_psnr,
    is_grey,
    matched_psnr,
    register_target,
    sharpness,
    unit_range,
)
from ldp_runtime.images.quality import psnr

Floats = NDArray[np.float32]


def noise(shape: tuple[int, ...], seed: int = 0) -> Floats:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def slow_matched(image: Floats, target: Floats) -> float:
    """Low frequencies by an explicit Gaussian of 161 taps, mirrored without the border's own pixel."""
    taps = np.exp(-(np.arange(-80, 81) ** 2) / (2 * 20.0**2))
    taps /= taps.sum()

    def low(v: Floats) -> NDArray[np.float64]:
        padded = np.pad(v.astype(np.float64), ((80, 80), (80, 80), (0, 0)), mode="reflect")
        for axis in (0, 1):
            padded = np.apply_along_axis(lambda line: np.convolve(line, taps, "valid"), axis, padded)
        return padded

    error = image - low(image) + low(target) - target
    return float(-10 * np.log10((error**2).mean()))


def cubic(distance: float) -> float:
    """Keys' interpolation kernel with a = -0.75."""
    x, a = abs(distance), -0.75
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def slow_aligned(image: Floats, target: Floats) -> float:
    """Each block by itself, each of its 65 shifts, each pixel from its 4 x 4 neighbours."""
    height, width = target.shape[:2]

    def along(length: int, shift: float) -> NDArray[np.float64]:
        """Rows of weights: pixel i of the shifted line from the pixels of the line, mirrored with the border's own."""
        matrix = np.zeros((length, length))
        for i in range(length):
            at = i - shift
            for k in range(math.floor(at) - 1, math.floor(at) + 3):
                mirrored = -1 - k if k < 0 else 2 * length - 1 - k if k >= length else k
                matrix[i, mirrored] += cubic(at - k)
        return matrix

    total = 0.0
    for top, left in itertools.product(range(0, height, 64), range(0, width, 64)):
        block = np.s_[top : top + 64, left : left + 64]
        errors = []
        for dx, dy in itertools.product(np.arange(-6, 7) / 2, np.arange(-2, 3) / 2):
            moved = np.einsum(
                "yi,xj,ijc->yxc", along(height, dy)[block[0]], along(width, dx)[block[1]], image, optimize=True
            )
            errors.append(((moved - target[block]) ** 2).sum())
        total += min(errors)
    return -10 * math.log10(total / target.size)


@pytest.mark.parametrize("channels", [1, 3])
def test_matched_psnr_is_what_its_words_say(channels: int) -> None:
    image, target = noise((90, 110, channels)), noise((90, 110, channels), 1)
    image += np.linspace(0, 1, 110, dtype=np.float32)[:, None]
    assert matched_psnr(image, target) == pytest.approx(slow_matched(image, target), abs=1e-3)
    assert psnr(image, target, data_range=1.0) < matched_psnr(image, target) - 1


@pytest.mark.parametrize("channels", [1, 3])
def test_aligned_psnr_is_what_its_words_say(channels: int) -> None:
    image, target = noise((70, 80, channels)), noise((70, 80, channels), 1)
    assert aligned_psnr(image, target) == pytest.approx(slow_aligned(image, target), abs=1e-3)


def test_light_does_not_count_when_matched() -> None:
    target = noise((120, 160, 3)) * 0.5
    brighter = target + np.float32(0.2)
    assert psnr(brighter, target, data_range=1.0) == pytest.approx(14, abs=0.1)
    assert matched_psnr(brighter, target) > 100


def test_blocks_that_moved_differently_do_not_count_when_aligned() -> None:
    target = noise((128, 192, 3))
    moved = target.copy()
    moved[:, :64] = np.roll(target, 2, 1)[:, :64]
    moved[:, 64:] = np.roll(target, (-1, -3), (0, 1))[:, 64:]
    inner = np.s_[:, 4:-4]  # np.roll brings the other border in
    assert psnr(moved[inner], target[inner], data_range=1.0) < 10
    assert aligned_psnr(moved, target) > 16  # what is left is at the seams of the blocks
    assert aligned_psnr(np.roll(target, 5, 1), target) < 10, "5 px are too far"
    assert aligned_psnr(target, target) == math.inf


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("pixels", [1e9, 1e4], ids=["full size", "reduced"])
def test_a_target_of_another_focus_is_registered(channels: int, pixels: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldp_export.evaluation.photographs.REGISTERED_PX", pixels)
    scene = cv2.GaussianBlur(noise((140, 190, channels)), (0, 0), 2.5).reshape(140, 190, channels) * 3 - 1
    breathing = np.array([[1.02, 0, -3.5], [0, 1.015, 1.0]], np.float32)  # photo px -> target px
    photo = cv2.warpAffine(scene, breathing, (190, 140), flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP)
    photo = photo.reshape(scene.shape)
    soft = cv2.GaussianBlur(photo, (0, 0), 3).reshape(scene.shape)
    inner = np.s_[10:-10, 10:-10]
    assert psnr(photo[inner], scene[inner], data_range=1.0) < psnr(soft[inner], scene[inner], data_range=1.0) + 1.5
    registered = register_target(scene, photo * np.float32(0.9))
    assert registered.psnr(photo) > max(35, registered.psnr(soft) + 10)
    assert 0.9 < registered.inside.mean() < 1


def test_what_cannot_be_registered_stays_as_it_is() -> None:
    target, image = noise((60, 80, 3)), np.full((60, 80, 3), 0.5, np.float32)
    for restored in (image, noise((60, 80, 3), 1)):
        registered = register_target(target, restored)
        np.testing.assert_array_equal(registered.target, target)
        assert registered.inside.all()
        assert registered.psnr(restored) == psnr(restored, target, data_range=1.0)


def test_sharpness_falls_with_blur_and_not_with_light() -> None:
    step = np.zeros((64, 64, 3), np.float32)
    step[:, 32:] = 0.5
    soft = np.repeat(np.clip((np.arange(64) - 24) / 16, 0, 1)[None, :, None] * 0.5, 64, 0)
    soft = np.repeat(soft, 3, 2).astype(np.float32)
    assert sharpness(step) > 2 * sharpness(soft) > 0
    assert sharpness(step + np.float32(0.3)) == pytest.approx(sharpness(step), rel=1e-4)
    ramp = np.repeat(np.linspace(0, 0.63, 64, dtype=np.float32)[None, :, None], 64, 0)
    assert sharpness(np.repeat(ramp, 3, 2)) == pytest.approx(1.0, abs=0.05), "1 % of the peak per px"


def test_ranges_and_grey() -> None:
    pixels = np.full((2, 3, 3), 51, np.uint8)
    np.testing.assert_allclose(unit_range(pixels, 255.0), 0.2, atol=1e-6)
    assert is_grey(pixels)
    pixels[1, 1, 2] += 1
    assert not is_grey(pixels)
