"""The measured PSFs of simulated pairs are those that the simulator used."""

import cv2
import numpy as np
import pytest

from ldp_export.data import PairSample
from ldp_export.evaluation import measure_psf as module
from ldp_export.evaluation.measure_psf import BlockPSF, kernel_sheet, measure_pair, summarise
from ldp_export.simulation.optics import HalfAperturePSF
from ldp_export.simulation.simulate import SensorNoise, simulate_pair

SIDE = 150
TOLERANCE = 0.03
"""In units of r: how far a measured separation may lie from that of the simulator."""


def texture(seed: int = 0, shape: tuple[int, int] = (SIDE, SIDE)) -> np.ndarray:
    """Fine texture ``(h, w, 3)`` uint8."""
    noise = np.random.default_rng(seed).random((*shape, 3))
    return np.uint8(255 * np.clip(3 * cv2.GaussianBlur(noise, (0, 0), 1.0) - 1, 0, 1))  # type: ignore[return-value]


def simulated(radius: float, separation: float, image: np.ndarray | None = None) -> PairSample:
    image = texture() if image is None else image
    coc = np.full(image.shape[:2], radius, np.float32)
    psf, noise = HalfAperturePSF().with_separation(separation), SensorNoise(5e-5, 5e-4)
    pair = simulate_pair(image, coc, psf=psf, noise=noise)
    return PairSample("pair", pair.left, pair.right, pair.target)


@pytest.mark.parametrize("separation", [0.45, 0.7])
@pytest.mark.parametrize("radius", [3.0, -6.0])
def test_it_finds_the_separation_of_the_simulator(separation: float, radius: float) -> None:
    (block,) = measure_pair(simulated(radius, separation), 8.0)
    assert block.separation == pytest.approx(separation, abs=TOLERANCE)
    assert block.radius == pytest.approx(abs(radius) * 1.04, rel=0.03)  # that of an even disk with its second moment
    assert np.sign(block.shift) == np.sign(radius), (
        "behind the focal plane content stands further right in the right view"
    )
    assert block.left.sum() == pytest.approx(1) and block.right.sum() == pytest.approx(1)


def test_the_kernels_are_those_of_the_simulator() -> None:
    (block,) = measure_pair(simulated(4.0, 0.45), 8.0)
    for kernel, expected in zip((block.left, block.right), HalfAperturePSF().views(4.0), strict=True):
        room = (len(kernel) - len(expected)) // 2
        padded = np.pad(expected, room)
        assert np.abs(kernel - padded).sum() < 0.25, "of a light of 1"
        assert np.abs(kernel - padded[:, ::-1]).sum() > 0.5, "the other view's is another one"


def test_light_that_changed_does_not_matter() -> None:
    sample = simulated(4.0, 0.45)
    assert sample.target is not None
    darker = PairSample("pair", sample.left, sample.right, np.uint8(sample.target * 0.8))
    (block,) = measure_pair(darker, 8.0)
    assert block.separation == pytest.approx(0.45, abs=2 * TOLERANCE)


def test_what_no_kernel_explains_is_left_out() -> None:
    sample = simulated(4.0, 0.45)
    assert list(measure_pair(PairSample("a", sample.left, sample.right, texture(1)), 8.0)) == [], "another target"
    flat = np.full_like(sample.left, 90)
    assert list(measure_pair(PairSample("a", flat, flat, flat), 8.0)) == [], "no texture"
    sharp = PairSample("a", texture(), texture(), texture())
    assert list(measure_pair(sharp, 8.0)) == [], "not out of focus"
    with pytest.raises(ValueError, match="expected a pair with a target"):
        next(measure_pair(PairSample("a", flat, flat), 8.0))


def test_the_blocks_with_most_texture_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    image = texture(shape=(SIDE, 2 * SIDE))
    image[:, :SIDE] = 60 + image[:, :SIDE] // 2
    monkeypatch.setattr(module, "MOST_BLOCKS", 1)
    (block,) = measure_pair(simulated(4.0, 0.45, image), 8.0)
    assert block.column > 0


def test_roughness_is_the_sum_of_squared_differences() -> None:
    kernel = np.random.default_rng(0).random((5, 5))
    expected = sum(np.square(np.diff(kernel, axis=axis)).sum() for axis in (0, 1))
    assert kernel.ravel() @ module._roughness(5) @ kernel.ravel() == pytest.approx(expected)


def test_summaries_and_pictures() -> None:
    left = np.zeros((5, 5))
    left[2, 1] = 1.0
    blocks = [BlockPSF("a", 0, 0, left, left[:, ::-1], 4.0, shift) for shift in (-1.6, 1.8, 2.0, 2.2, 2.4)]
    found = summarise(blocks)
    assert (found.lower, found.median, found.upper) == pytest.approx((0.45, 0.5, 0.55))
    sheet = kernel_sheet(blocks)
    assert sheet.shape == (2 * 4 * 7, 4 * 4 * 12, 3) and sheet.dtype == np.uint8
    assert (sheet[:28] == 255).all(2).sum() == 4 * 2 * 16 and not sheet[28:, 48:].any()
