"""The way back to full size."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from ldp_export.simulation.apertures import Layer
from ldp_export.simulation.optics import HalfAperturePSF
from ldp_export.simulation.simulate import SensorNoise, quantise
from ldp_runtime.images.linear import linear_to_srgb, srgb_to_linear
from ldp_runtime.images.quality import center_view, psnr
from ldp_runtime.stages import scales
from ldp_runtime.stages.scales import blend_full_size, reduce_view
from tests.ldp_export.simulation.layers import composite

Pixels = NDArray[np.uint8]
INNER = np.s_[24:-24, 24:-24]


@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_sharp_photo_keeps_every_detail(n: int, dtype: type) -> None:
    view = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (601, 67, 3), dtype, endpoint=True)
    small = reduce_view(view, n)
    assert small.shape == (-(-601 // n), -(-67 // n), 3)
    restored = blend_full_size([small], (view, view), (small, small), n)
    assert np.abs(restored.astype(int) - view).max() <= 1  # strips meet, and nothing is lost
    wrong = np.full_like(small, np.iinfo(dtype).max // 2)
    kept = blend_full_size([wrong], (view, view), (small, small), n)
    error = np.abs(kept.astype(np.float64) - view)
    assert error.mean() <= 0.002 * np.abs(wrong.astype(np.float64) - small).mean(), error.mean()


@pytest.mark.parametrize("n", [2, 4])
def test_strips_meet(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    left, right, target, _ = scene("sharp object", 7.0 * n)
    small = reduce_view(left, n), reduce_view(right, n)
    whole, strips = [], []
    for rows, results in ((1024, whole), (64, strips)):
        monkeypatch.setattr(scales, "_ROWS", rows)
        results.append(blend_full_size([reduce_view(target, n)], (left, right), small, n))
    np.testing.assert_array_equal(strips[0], whole[0])


def waves(noise: int = 0) -> tuple[Pixels, Pixels]:
    """Views of one blurred wave, ``(80, 400, 3)``, with a disparity of 12 px, and noise of each."""
    x = np.arange(400, dtype=np.float32)
    rng = np.random.default_rng(0)
    left, right = (
        np.rint(128 + 80 * np.sin((x + shift) / 6))[None, :, None] + rng.integers(-noise, noise + 1, (80, 400, 3))
        for shift in (-6, 6)
    )
    return left.astype(np.uint8), right.astype(np.uint8)


def test_blurred_parts_come_from_the_small_restoration() -> None:
    pair = waves(noise=8)
    restored = np.full((40, 200, 3), 90, np.uint8)
    small = reduce_view(pair[0], 2), reduce_view(pair[1], 2)
    out = blend_full_size([restored], pair, small, 2).astype(int)
    own = center_view(*pair) - center_view(*waves())
    assert np.abs(out - 90).mean() < 0.5 * np.abs(own).mean()  # the noise of the photo does not come back


def test_what_restorations_do_not_agree_on_is_left_as_it_is() -> None:
    pair = waves()
    small = reduce_view(pair[0], 2), reduce_view(pair[1], 2)
    center = center_view(*small)
    change = np.broadcast_to((40 * np.sin(np.arange(40)))[:, None, None], center.shape)
    one, other = (np.clip(np.rint(center + sign * change), 0, 255).astype(np.uint8) for sign in (1, -1))
    agreed, torn = (blend_full_size(each, pair, small, 2).astype(float) for each in ([one, one], [one, other]))
    assert np.abs(agreed - center_view(*pair)).mean() > 5
    assert np.abs(torn - center_view(*pair)).max() <= 1


def test_noise_is_no_detail() -> None:
    """A grey photo with strong noise: what the small restoration says of it holds everywhere."""
    rng = np.random.default_rng(0)
    pair = [np.rint(np.clip(rng.normal(100, 12, (256, 256, 3)), 0, 255)).astype(np.uint8) for _ in range(2)]
    small = reduce_view(pair[0], 2), reduce_view(pair[1], 2)
    out = blend_full_size([np.full_like(small[0], 100)] * 2, (pair[0], pair[1]), small, 2)
    assert out.std() < 0.3 * center_view(*pair).std()


# --- sharp regions beside strongly blurred ones ---


def texture(seed: int, height: int, width: int) -> NDArray[np.float32]:
    """A sharp picture in linear light with detail of every size, as photographs have it."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3), np.float32)
    for k in range(6):
        cells = rng.uniform(-1, 1, (-(-height >> k) + 2, -(-width >> k) + 2, 3)).astype(np.float32)
        total += 1.4**k * cv2.resize(cells, None, fx=1 << k, fy=1 << k, interpolation=cv2.INTER_CUBIC)[:height, :width]
    total -= total.min()
    return srgb_to_linear((0.1 + 0.8 * total / total.max()).astype(np.float32))


def views_of(layers: list[Layer]) -> tuple[Pixels, Pixels]:
    """Views with noise, without the px at the border."""
    rng, noise = np.random.default_rng(3), SensorNoise(5e-5, 5e-4)
    left, right = (
        quantise(linear_to_srgb(noise.add(view, rng)))[INNER] for view in composite(layers, HalfAperturePSF())
    )
    return left, right


def scene(kind: str, radius: float) -> tuple[Pixels, Pixels, Pixels, NDArray[np.float32]]:
    """Views, target and radius in px, ``(h, w)``, of one layer that is sharp and one that is not."""
    h, w = 336, 448
    alpha = np.zeros((h, w), np.float32)
    points = np.array([(90, 40), (330, 120), (240, 290), (140, 190), (60, 300)])
    cv2.fillPoly(alpha, [points], 1.0, cv2.LINE_AA)
    cv2.line(alpha, (300, 330), (440, 20), 1.0, 14, cv2.LINE_AA)
    back, front = (0.0, -radius) if kind == "sharp background" else (radius, 0.0)
    layers = [Layer(texture(1, h, w), np.ones((h, w), np.float32), back), Layer(texture(2, h, w), alpha, front)]
    left, right = views_of(layers)
    target = layers[1].color * alpha[..., None] + (1 - alpha[..., None]) * layers[0].color
    coc = np.where(alpha > 0.5, np.float32(front), np.float32(back))
    return left, right, quantise(linear_to_srgb(target))[INNER], np.abs(coc[INNER])


@pytest.mark.parametrize("n", [2, 4])
def test_a_blurred_photo_of_little_contrast_has_no_patches(n: int) -> None:
    """Noise hides the disparity where slopes are small: what was right to change is changed there too."""
    h, w = 336, 448
    color = (0.3 + 0.1 * (texture(1, h, w) - 0.3)).astype(np.float32)
    left, right = views_of([Layer(color, np.ones((h, w), np.float32), 7.0 * n)])
    target = quantise(linear_to_srgb(color))[INNER]
    small, goal = (reduce_view(left, n), reduce_view(right, n)), reduce_view(target, n)
    wanted = cv2.resize(goal, target.shape[1::-1], interpolation=cv2.INTER_CUBIC).astype(np.float32)
    missing, change = (
        np.abs(image - wanted)
        for image in (blend_full_size([goal, goal], (left, right), small, n), center_view(left, right))
    )
    assert np.square(missing).mean() < 0.03 * np.square(change).mean()
    assert missing.max() <= 3


@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("kind", ["sharp background", "sharp object"])
def test_sharp_regions_lose_nothing_beside_blurred_ones(kind: str, n: int) -> None:
    """Restorations that are wrong wherever the photo is sharp, as those of networks are: it stays as it was."""
    left, right, target, coc = scene(kind, 7.0 * n)
    small = reduce_view(left, n), reduce_view(right, n)
    rng = np.random.default_rng(4)
    goal = reduce_view(target, n).astype(np.float32)
    restored = [
        np.clip(goal + cv2.GaussianBlur(rng.normal(0, 12, goal.shape), (0, 0), 1.0), 0, 255).astype(np.uint8)
        for _ in range(2)
    ]
    result = blend_full_size(restored, (left, right), small, n)
    before = np.rint(center_view(left, right))

    def gain(where: NDArray[np.bool_]) -> float:
        return psnr(result[where], target[where], data_range=255) - psnr(before[where], target[where], data_range=255)

    blurred = (coc > 2).astype(np.uint8)
    inside = cv2.distanceTransform(1 - blurred, cv2.DIST_L2, 5)
    assert gain(coc < 0.5) >= -0.1
    assert gain((coc < 0.5) & (inside >= 2)) >= 0, "without the px beside the occlusion"
    assert gain(blurred > 0) > 7.5
    naive = cv2.resize(restored[0], target.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    sharp = (coc < 0.5) & (inside > 8 * n)
    assert psnr(naive[sharp], target[sharp], data_range=255) < psnr(before[sharp], target[sharp], data_range=255) - 3
