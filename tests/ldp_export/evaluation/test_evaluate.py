import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from scipy import ndimage

from ldp_export.cli import main
from ldp_export.evaluation import evaluate as module
from ldp_export.evaluation.evaluate import WANTED, Evaluation, Want, evaluate, sharp_region, store
from ldp_export.simulation import rays as simulate_rays
from ldp_export.simulation import samples
from ldp_export.simulation.samples import MOTORCYCLE, VARIANTS, disparity_in_pixels, focus_setting, must_render
from ldp_export.simulation.simulate import SimulatedPair
from ldp_runtime.bundle.bundle import Bundle, write_manifest
from ldp_runtime.images.photo import read_photo
from ldp_runtime.images.quality import center_view, psnr
from tests.ldp_runtime.helpers import is_locked
from tests.ldp_runtime.tiny_bundle import make_tiny_bundle
from tests.processes import output
from tests.sample import near_sample

H, W = 64, 96
IN_16_BITS = 100


def make_pair(seed: int = 0) -> SimulatedPair:
    """Half sharp, half blurred, the blurred half darker by 20 in both views; views that differ by noise."""
    rng = np.random.default_rng(seed)
    target = rng.integers(60, 200, (H, W, 3)).astype(np.uint8)
    coc = np.zeros((H, W), np.float32)
    coc[:, W // 2 :] = np.linspace(2.2, 4, W // 2)
    views = np.where(coc[..., None] == 0, target, target - 20)
    noise = rng.integers(-8, 9, (2, H, W, 3))
    left, right = (np.clip(views + n, 0, 255).astype(np.uint8) for n in noise)
    return SimulatedPair(left, right, target, coc)


class FakeDeblurrer:
    """Answers with the target and a little, or the center view; the blur map is right or wrong everywhere."""

    backend, precision, has_map = "fake", "fp32", True

    def __init__(self, pairs: dict[str, SimulatedPair], quality: str) -> None:
        self.pairs, self.quality = pairs, quality
        self.bundle = SimpleNamespace(manifest=SimpleNamespace(name="fake"), path=Path("fake"))

    def __call__(self, left: np.ndarray, right: np.ndarray) -> Any:
        coc = next(iter(self.pairs.values())).coc
        truth = (np.abs(coc) / 4).astype(np.float32)
        restored = np.rint(center_view(left, right)).astype(left.dtype)
        steps, error = (1, 1) if left.dtype == np.uint8 else (257, IN_16_BITS)
        if self.quality == "good":
            for pair in self.pairs.values():
                views = (view.astype(left.dtype) * steps for view in (pair.left, pair.right))
                if {left.tobytes(), right.tobytes()} == {view.tobytes() for view in views}:
                    restored = pair.target.astype(left.dtype) * steps + error
        blur_map = None if not self.has_map else truth if self.quality == "good" else 1 - truth
        return SimpleNamespace(restored=restored, blur_map=blur_map)


@pytest.fixture
def pairs(monkeypatch: pytest.MonkeyPatch) -> dict[str, SimulatedPair]:
    """Small pairs in place of the sample's, one a variant."""
    made = {variant: make_pair(i) for i, variant in enumerate(VARIANTS)}
    monkeypatch.setattr(module, "focus_setting", lambda focus, variant: made[variant])
    monkeypatch.setattr(module, "must_render", lambda focus, variant: False)
    return made


def test_a_good_bundle_passes(pairs: dict[str, SimulatedPair], tmp_path: Path) -> None:
    lines: list[str] = []
    evaluation = evaluate(FakeDeblurrer(pairs, "good"), pictures=tmp_path, report=lines.append)  # type: ignore[arg-type]
    assert evaluation.passed
    assert list(evaluation.figures) == ["near", "far"]
    figures, pair = evaluation.figures["near"], pairs["standard"]
    center = center_view(pair.left, pair.right)
    before = psnr(center, pair.target, data_range=255)
    assert figures["center_psnr_db"] == before
    assert figures["restored_psnr_db"] == pytest.approx(20 * math.log10(255))  # off by 1 everywhere
    assert figures["gain_db"] == pytest.approx(20 * math.log10(255) - before)
    assert figures["swapped_costs_db"] == 0
    middle = np.rint(center).astype(np.uint8)
    assert figures["center_as_both_costs_db"] == pytest.approx(
        20 * math.log10(255) - psnr(middle, pair.target, data_range=255)
    )
    assert figures["blur_map_spearman"] == pytest.approx(1)
    assert figures["blur_map_balanced_accuracy"] == figures["blur_map_accuracy"] == 1
    assert figures["sharp_share"] == 0.5
    sharp = np.abs(pair.coc) < 0.5
    sharp[:, W // 2 - 4 :] = False  # light reaches 4 px
    expected = 20 * math.log10(255) - psnr(center[sharp], pair.target[sharp], data_range=255)
    assert figures["sharp_region_change_db"] == pytest.approx(expected)
    rays = pairs["rays"]
    assert figures["rays_gain_db"] == pytest.approx(
        20 * math.log10(255) - psnr(center_view(rays.left, rays.right), rays.target, data_range=255)
    )
    sharp_pair = pairs["in_focus"]
    assert figures["in_focus_change_db"] == pytest.approx(
        20 * math.log10(65535 / IN_16_BITS)
        - psnr(center_view(sharp_pair.left, sharp_pair.right), sharp_pair.target, data_range=255),
        abs=1e-3,
    )
    assert set(figures) == {*WANTED, *module.REPORTED}
    assert len(lines) == 2 * len(VARIANTS)
    assert len(list(tmp_path.iterdir())) == 2 * len(VARIANTS) * 3
    assert np.array_equal(read_photo(tmp_path / "far-rays-restored.png").pixels, rays.target + np.uint8(1))


def test_a_model_without_a_blur_map_passes_without_its_figures(pairs: dict[str, SimulatedPair], tmp_path: Path) -> None:
    deblurrer = FakeDeblurrer(pairs, "good")
    deblurrer.has_map = False
    evaluation = evaluate(deblurrer, pictures=tmp_path)  # type: ignore[arg-type]
    assert evaluation.passed
    assert not [name for name in evaluation.figures["near"] if name.startswith("blur_map")]
    assert evaluation.wanted.keys() == {name for name in WANTED if not name.startswith("blur_map")}
    assert "blur map" not in evaluation.table() and "gain over the center view" in evaluation.table()


def test_doing_nothing_misses(pairs: dict[str, SimulatedPair]) -> None:
    evaluation = evaluate(FakeDeblurrer(pairs, "none"))  # type: ignore[arg-type]
    assert not evaluation.passed
    missed = set(evaluation.to_json()["missed"])
    for name in ("gain_db", "center_as_both_costs_db", "rays_gain_db", "noise_free_gain_db", "blur_map_spearman"):
        assert f"near {name}" in missed
    for name in ("sharp_region_change_db", "mild_change_db", "in_focus_change_db", "swapped_costs_db"):
        assert f"near {name}" not in missed
    assert evaluation.table().count("MISS") == len(missed)


def test_tables_and_json(pairs: dict[str, SimulatedPair]) -> None:
    evaluation = evaluate(FakeDeblurrer(pairs, "good"))  # type: ignore[arg-type]
    table = evaluation.table()
    assert all(want.label in table for want in WANTED.values())
    assert "MISS" not in table
    assert all(label in table for label in module.REPORTED.values())
    value = json.loads(json.dumps(evaluation.to_json(), allow_nan=False))
    assert value["passed"] is True
    assert (value["backend"], value["precision"], value["missed"]) == ("fake", "fp32", [])
    assert value["wanted"]["gain_db"] == ">= 3.2"
    assert value["wanted"]["swapped_costs_db"] == "<= 0.6"
    broken = Evaluation({"near": dict(evaluation.figures["near"], gain_db=math.nan)}, "fake", "fp32")
    assert not broken.passed
    assert broken.to_json()["figures"]["near"]["gain_db"] is None


def test_wants() -> None:
    assert Want("", 3.0).met(3.0)
    assert not Want("", 3.0).met(2.99)
    assert Want("", 0.5, at_least=False).met(0.5)
    assert not Want("", 0.5, at_least=False).met(0.51)
    assert not Want("", 0.5).met(math.nan)
    assert WANTED["gain_db"].limit == 3.2
    assert WANTED["rays_gain_db"].limit == 2.6
    assert WANTED["sharp_region_change_db"].limit == -0.2
    assert WANTED["center_as_both_costs_db"].limit == 1.0
    assert WANTED["blur_map_balanced_accuracy"].limit == 0.85
    assert WANTED["blur_map_spearman"].limit == 0.6
    assert all(WANTED[f"{name}_change_db"].limit == -0.1 for name in ("mild", "noise3", "jpeg90"))


def test_sharp_region_is_out_of_reach_of_blur() -> None:
    coc = np.zeros((40, 40), np.float32)
    coc[20, 20] = -3.0
    region = sharp_region(coc)
    outside = np.zeros((40, 40), bool)
    outside[17:24, 17:24] = True
    assert np.array_equal(~region, outside)
    assert np.array_equal(region, ndimage.binary_erosion(np.abs(coc) < 0.5, np.ones((7, 7)), border_value=1))


def test_store_keeps_the_bundle_valid(
    tmp_path: Path, pairs: dict[str, SimulatedPair], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_tiny_bundle(tmp_path)
    before = Bundle.load(path)

    def write_locked(*arguments: Any, **options: Any) -> Any:
        assert is_locked(path), "an engine that is built meanwhile waits, and stays in the manifest"
        return write_manifest(*arguments, **options)

    monkeypatch.setattr(module, "write_manifest", write_locked)
    store(path, evaluate(FakeDeblurrer(pairs, "good")))  # type: ignore[arg-type]
    after = Bundle.load(path)
    assert after.manifest.evaluation["passed"] is True
    assert after.manifest.evaluation["figures"]["far"]["blur_map_spearman"] == 1.0
    assert msgspec.structs.replace(after.manifest, evaluation={}) == before.manifest
    assert after.content == before.content


def test_the_command_scores_a_real_bundle(
    tmp_path: Path, pairs: dict[str, SimulatedPair], capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_tiny_bundle(tmp_path)
    arguments = ["evaluate", str(path), "--backend", "onnxruntime", "--threads", "1"]
    assert (
        main([*arguments, "--json", str(tmp_path / "out.json"), "--pictures", str(tmp_path / "pictures"), "--store"])
        == 1
    )
    captured = capsys.readouterr()
    assert "MISS" in captured.out
    assert captured.err.strip().splitlines()[-1].startswith("ldp-export: failed: not as wanted: near gain_db")
    written = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert written["passed"] is False
    assert Bundle.load(path).manifest.evaluation == written
    assert len(list((tmp_path / "pictures").iterdir())) == 2 * 3 * len(VARIANTS)
    assert main([*arguments, "--json", str(tmp_path / "nowhere" / "out.json")]) == 2
    assert main([*arguments, "--pictures", str(path / "bundle.json")]) == 2
    assert "cannot be made" in capsys.readouterr().err


def test_evaluation_imports_no_torch() -> None:
    output("import sys, ldp_export.evaluation.evaluate, ldp_export.data; sys.exit('torch' in sys.modules)")


@pytest.fixture
def fast_rays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """A cache folder of the test's own, and a second simulator that only takes note."""
    calls: list[int] = []

    def render(image: np.ndarray, coc: np.ndarray, *, noise: object, seed: int) -> SimulatedPair:
        calls.append(seed)
        return SimulatedPair(image, np.roll(image, 1, axis=1), image, coc)

    monkeypatch.setenv("LDP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(simulate_rays, "simulate_pair_rays", render)
    focus_setting.cache_clear()
    yield calls  # type: ignore[misc]
    focus_setting.cache_clear()


def test_the_sample_is_what_the_plan_describes() -> None:
    pair = near_sample()
    assert pair.left.shape == pair.target.shape == (500, 741, 3)
    assert pair.left.dtype == np.uint8
    image, disparity = samples.motorcycle()
    assert np.array_equal(pair.target, image)
    assert np.isfinite(disparity).all()
    assert float(np.abs(pair.coc).max()) == pytest.approx(MOTORCYCLE.max_radius)
    in_focus = disparity[np.abs(pair.coc) < 0.02]
    assert in_focus.mean() == pytest.approx(np.percentile(disparity, 80), abs=0.2)
    assert pair.coc[disparity > np.percentile(disparity, 90)].max() < 0, "nearer than the focal plane is negative"
    assert 0.3 <= (disparity_in_pixels(pair.coc) <= 1).mean() <= 0.7
    assert 22 < psnr(center_view(pair.left, pair.right), pair.target, data_range=255) < 28


def test_the_far_setting_is_in_focus_farther_away() -> None:
    _, disparity = samples.motorcycle()
    coc = samples._coc("far", MOTORCYCLE.max_radius)
    assert disparity[np.abs(coc) < 0.02].mean() == pytest.approx(np.percentile(disparity, 30), abs=0.2)
    assert 0.3 <= (disparity_in_pixels(coc) <= 1).mean() <= 0.7
    assert np.percentile(disparity, 30) < np.percentile(disparity, 80)


def test_disparity_is_that_of_the_sample_s_psf() -> None:
    psf = MOTORCYCLE.psf
    assert psf.separation == pytest.approx(0.45, abs=0.002)
    for radius in (-4.0, 0.0, 2.5):
        assert disparity_in_pixels(np.array([radius], np.float32))[0] == pytest.approx(
            abs(psf.disparity(radius)), abs=0.02
        )


def test_the_degraded_variants_are_the_mild_one_degraded() -> None:
    mild, noisy, compressed = (focus_setting("near", variant) for variant in ("mild", "noise3", "jpeg90"))
    assert float(np.abs(mild.coc).max()) == pytest.approx(0.7)
    assert psnr(center_view(mild.left, mild.right), mild.target, data_range=255) > 30
    middle = (mild.left > 20) & (mild.left < 235)
    for view, clean in ((noisy.left, mild.left), (noisy.right, mild.right)):
        noise = view.astype(float) - clean
        assert noise[middle].std() == pytest.approx(3, abs=0.1)
        assert abs(noise[middle].mean()) < 0.05
    between = np.corrcoef(
        (noisy.left.astype(float) - mild.left)[middle], (noisy.right.astype(float) - mild.right)[middle]
    )
    assert abs(between[0, 1]) < 0.02, "the noise of the views must be independent"
    change = compressed.left.astype(float) - mild.left
    assert 0.5 < change.std() < 6
    assert compressed.left.shape == mild.left.shape
    assert np.array_equal(compressed.target, mild.target)


def test_the_pair_in_focus_has_noise_alone() -> None:
    pair = focus_setting("near", "in_focus")
    assert not pair.coc.any()
    assert 0.2 < (pair.left.astype(float) - pair.target).std() < 2
    assert not np.array_equal(pair.left, pair.right)
    assert psnr(center_view(pair.left, pair.right), pair.target, data_range=255) > 45


def test_rays_are_rendered_once(fast_rays: list[int]) -> None:
    assert must_render("near", "rays")
    assert not must_render("near", "standard")
    first = focus_setting("near", "rays")
    assert fast_rays == [MOTORCYCLE.seed]
    assert not must_render("near", "rays")
    assert must_render("far", "rays")
    focus_setting.cache_clear()
    again = focus_setting("near", "rays")
    assert fast_rays == [MOTORCYCLE.seed]
    for name in ("left", "right", "target", "coc"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
    focus_setting("far", "rays")
    assert fast_rays == [MOTORCYCLE.seed, MOTORCYCLE.seed + 1]


def test_a_damaged_or_missing_cache_is_no_matter(fast_rays: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    focus_setting("near", "rays")
    path = samples._rays_file("near")
    assert path is not None
    path.write_bytes(path.read_bytes()[:100])
    focus_setting.cache_clear()
    focus_setting("near", "rays")
    assert len(fast_rays) == 2
    monkeypatch.setattr(samples, "cache_folder", lambda *parts: None)
    focus_setting.cache_clear()
    assert must_render("near", "rays")
    focus_setting("near", "rays")
    assert len(fast_rays) == 3


def test_other_parameters_have_another_cache(fast_rays: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    before = samples._rays_file("near")
    monkeypatch.setattr(samples, "MOTORCYCLE", replace(MOTORCYCLE, seed=8))
    assert samples._rays_file("near") != before


def test_unknown_settings() -> None:
    for focus, variant in (("middle", "standard"), ("near", "foggy")):
        with pytest.raises(ValueError, match="expected a focus of near, far"):
            focus_setting(focus, variant)
