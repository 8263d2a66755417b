from dataclasses import replace

import numpy as np
import pytest

from ldp_export.simulation.cameras import Camera, random_camera
from ldp_export.simulation.optics import FloatArray
from ldp_export.simulation.simulate import quantise
from ldp_runtime.images.linear import linear_to_srgb

NOISY = Camera(shot=1e-4, read=1e-3)


def flat(value: float, side: int = 64) -> FloatArray:
    return np.full((side, side, 3), value, dtype=np.float32)


def ramp() -> FloatArray:
    return np.repeat(np.linspace(0, 1, 64, dtype=np.float32)[None, :, None], 64, axis=0).repeat(3, axis=2)


def views(camera: Camera, light: FloatArray, seed: int = 0) -> list[np.ndarray]:
    return [v.astype(np.float64) for v in camera.views(np.random.default_rng(seed), light, light)]


def test_without_anything_it_is_srgb() -> None:
    expected = quantise(linear_to_srgb(ramp()))
    assert np.array_equal(Camera().target(ramp()), expected)
    assert all(np.array_equal(view, expected) for view in views(Camera(), ramp()))
    encoded = Camera(encoded=True).target(ramp())
    assert np.array_equal(encoded, quantise(ramp()))
    power = Camera(gamma=0.5).target(flat(0.25))
    assert (power == 128).all()


def test_the_target_has_the_tones_of_the_views_and_no_noise() -> None:
    camera = replace(NOISY, contrast=0.5, sharpen=0.4, gamma=0.5, late=0.01, quality=80)
    target = camera.target(flat(0.2))
    assert np.ptp(target) == 0
    view = views(camera, flat(0.2))[0]
    assert view.std() > 0.5
    assert view.mean() == pytest.approx(target.mean(), abs=0.5)


def test_noise_is_that_of_the_raw_values() -> None:
    """Variance ``shot * signal + read^2`` before white balance, seen through a linear tone curve."""
    plain = Camera(shot=1e-3, read=1e-2, encoded=True)
    view = views(plain, flat(0.5, 256))[0] / 255
    assert view.std() == pytest.approx((0.5e-3 + 1e-4) ** 0.5, rel=0.03)
    balanced = replace(plain, balance=(2.0, 1.0, 1.0))
    deviations = (views(balanced, flat(0.5, 256))[0] / 255).std((0, 1))
    assert deviations[0] == pytest.approx((2 * 0.5e-3 + 4 * 1e-4) ** 0.5, rel=0.03)
    assert deviations[1] == pytest.approx((0.5e-3 + 1e-4) ** 0.5, rel=0.03)


@pytest.mark.parametrize("changed", [{"mosaic": True}, {"grain": 0.8}])
def test_noise_of_neighbours_is_correlated(changed: dict[str, float]) -> None:
    def correlation(camera: Camera) -> float:
        view = views(camera, flat(0.5, 128))[0][..., 0]
        return float(np.corrcoef(view[:, 1:].ravel(), view[:, :-1].ravel())[0, 1])

    plain = Camera(read=0.02, encoded=True)
    assert abs(correlation(plain)) < 0.05
    assert correlation(replace(plain, **changed)) > 0.2  # type: ignore[arg-type]


def test_views_differ_in_exposure_and_shading() -> None:
    left, right = views(Camera(exposure=0.2, encoded=True), flat(0.5))
    assert left.mean() / right.mean() == pytest.approx(np.exp(0.2), rel=0.01)
    left, right = views(Camera(shading=0.2, encoded=True), flat(0.5))
    assert left[:, -1].mean() / left[:, 0].mean() == pytest.approx(1.1 / 0.9, rel=0.02)
    assert right[:, 0].mean() / right[:, -1].mean() == pytest.approx(1.1 / 0.9, rel=0.02)


def test_grey_is_one_channel_three_times() -> None:
    light = np.random.default_rng(0).random((32, 32, 3), dtype=np.float32)
    camera = replace(NOISY, grey=True, mosaic=True, late=0.01)
    for image in (*views(camera, light), camera.target(light)):
        assert (image[..., :1] == image).all()


def test_denoising_and_sharpening_do_what_they_say() -> None:
    noisy = Camera(read=0.02, encoded=True)
    assert views(replace(noisy, denoise=3.0), flat(0.5))[0].std() < 0.8 * views(noisy, flat(0.5))[0].std()
    step = flat(0.3)
    step[:, 32:] = 0.6
    assert Camera(sharpen=0.5, encoded=True).target(step).max() > Camera(encoded=True).target(step).max()


def test_drawn_cameras_differ_and_give_photographs() -> None:
    drawn = [random_camera(np.random.default_rng(seed)) for seed in range(300)]
    for key in ("mosaic", "encoded", "grey"):
        assert 0 < sum(getattr(camera, key) for camera in drawn) < 200
    assert 0.15 < sum(not (camera.shot or camera.read) for camera in drawn) / 300 < 0.35
    for seed, camera in enumerate(drawn[:20]):
        for view in views(camera, ramp(), seed):
            assert view.shape == (64, 64, 3)
