"""The committed model: what its card says of it holds, through the runtime that people use."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ldp_export.checkpoint import Checkpoint
from ldp_export.clip import PROMPTS, embed_texts
from ldp_export.evaluation.evaluate import WANTED
from ldp_export.evaluation.metrics import balanced_accuracy, psnr, spearman
from ldp_export.network import CONFIGS, LDPConfig
from ldp_export.simulation.optics import HalfAperturePSF
from ldp_export.simulation.samples import MOTORCYCLE, disparity_in_pixels, focus_setting
from ldp_export.simulation.simulate import SimulatedPair, simulate_pair
from ldp_runtime import Deblurrer
from ldp_runtime.bundle.bundle import Bundle
from ldp_runtime.images.photo import read_photo
from ldp_runtime.result import Result
from tests.sample import SAMPLE, near_sample

ROOT = Path(__file__).parents[1]
BUNDLE, CHECKPOINT = ROOT / "models/ldp-nano", ROOT / "models/checkpoints/ldp-nano"
WIDE_SAMPLE, WIDE = ROOT / "tests/wide_sample", HalfAperturePSF(crosstalk=0.03)
MIB = 2**20


@pytest.fixture(scope="module")
def deblurrer() -> Deblurrer:
    """ldp-nano on the backend that ``auto`` picks here."""
    return Deblurrer.from_bundle(BUNDLE)


def center(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The mean of the views, float64."""
    return (left.astype(np.float64) + right) / 2


@pytest.fixture(scope="module")
def near(deblurrer: Deblurrer) -> tuple[SimulatedPair, Result]:
    """The sample and what ldp-nano makes of it."""
    pair = near_sample()
    return pair, deblurrer(pair.left, pair.right)


def check_gain_and_blur(pair: SimulatedPair, result: Result) -> None:
    before = psnr(center(pair.left, pair.right), pair.target, data_range=255.0)
    gain = psnr(result.restored, pair.target, data_range=255.0) - before
    assert gain >= WANTED["gain_db"].limit, f"gain {gain:.2f} dB over {before:.2f} dB"
    blurred = disparity_in_pixels(pair.coc) > 1
    assert 0.3 <= 1 - blurred.mean() <= 0.7
    assert balanced_accuracy(result.blur_map > 0.5, blurred) >= WANTED["blur_map_balanced_accuracy"].limit
    assert spearman(result.blur_map, np.abs(pair.coc)) >= WANTED["blur_map_spearman"].limit


def test_the_held_out_scene_gets_sharper_and_its_blur_is_found(near: tuple[SimulatedPair, Result]) -> None:
    check_gain_and_blur(*near)


@pytest.mark.slow
def test_so_it_does_with_the_focus_far_away(deblurrer: Deblurrer) -> None:
    pair = focus_setting("far")
    check_gain_and_blur(pair, deblurrer(pair.left, pair.right))


def wide_gain(deblurrer: Deblurrer, left: np.ndarray, right: np.ndarray, target: np.ndarray) -> float:
    before = psnr(center(left, right), target, data_range=255.0)
    return psnr(deblurrer(left, right).restored, target, data_range=255.0) - before


def test_views_that_are_nearly_half_disks_are_restored_too(
    deblurrer: Deblurrer, near: tuple[SimulatedPair, Result]
) -> None:
    """The centroids lie 0.74 r apart; the files were the sample before its views lay as those of cameras do."""
    left, right = (read_photo(WIDE_SAMPLE / f"{name}.png").pixels for name in ("left", "right"))
    assert wide_gain(deblurrer, left, right, near[0].target) >= 4.3


@pytest.mark.slow
def test_so_are_they_with_the_focus_far_away(deblurrer: Deblurrer) -> None:
    truth = focus_setting("far")
    pair = simulate_pair(truth.target, truth.coc, psf=WIDE, noise=MOTORCYCLE.noise, seed=MOTORCYCLE.seed + 1)
    assert wide_gain(deblurrer, pair.left, pair.right, truth.target) >= 3.4


@pytest.mark.parametrize("variant", ["mild", "noise3", "jpeg90"])
def test_what_is_hardly_blurred_gets_no_worse(deblurrer: Deblurrer, variant: str) -> None:
    pair = focus_setting("near", variant)
    restored = deblurrer(pair.left, pair.right).restored
    change = psnr(restored, pair.target, data_range=255.0) - psnr(
        center(pair.left, pair.right), pair.target, data_range=255.0
    )
    assert change >= WANTED[f"{variant}_change_db"].limit, f"{change:.2f} dB"


def test_both_views_are_used(deblurrer: Deblurrer, near: tuple[SimulatedPair, Result]) -> None:
    pair, result = near
    middle = np.rint(center(pair.left, pair.right)).astype(np.uint8)
    with_both = psnr(result.restored, pair.target, data_range=255.0)
    with_one = psnr(deblurrer(middle, middle).restored, pair.target, data_range=255.0)
    assert with_both - with_one >= WANTED["center_as_both_costs_db"].limit


def test_the_sample_files_are_the_near_setting() -> None:
    pair = focus_setting("near")
    for name, pixels in (("left", pair.left), ("right", pair.right), ("target", pair.target)):
        apart = np.abs(read_photo(SAMPLE / f"{name}.png").pixels.astype(int) - pixels)
        assert apart.max() <= 1, name  # sums are rounded in another way on other CPUs
        assert np.count_nonzero(apart) < 1e-5 * apart.size, name
    np.testing.assert_array_equal(np.load(SAMPLE / "coc.npy"), pair.coc)


def test_the_bundle_comes_from_the_checkpoint() -> None:
    bundle, checkpoint = Bundle.load(BUNDLE), Checkpoint.open(CHECKPOINT)
    assert checkpoint.config() == replace(CONFIGS["nano"], ensemble="dp-aware")
    assert LDPConfig.from_dict(bundle.manifest.network) == checkpoint.config()
    assert [prompt.text for prompt in bundle.manifest.prompts] == [prompt.text for prompt in PROMPTS]
    assert tuple(bundle.manifest.prompts) == checkpoint.prompts()
    embeddings = embed_texts(checkpoint.clip(), [prompt.text for prompt in PROMPTS])
    np.testing.assert_allclose(bundle.text_embeddings, embeddings.detach().numpy(), atol=1e-6)
    checkpoint.network()  # the weights fit


def test_the_manifest_holds_figures_that_passed() -> None:
    manifest = json.loads((BUNDLE / "bundle.json").read_text(encoding="utf-8"))
    assert manifest["evaluation"]["passed"] is True
    assert all(gate["passed"] for gate in manifest["parity"]["gates"])
    assert manifest["parity"]["weights"] == "trained"


def test_the_bundle_is_small() -> None:
    assert sum(path.stat().st_size for path in BUNDLE.rglob("*")) < 48 * MIB
