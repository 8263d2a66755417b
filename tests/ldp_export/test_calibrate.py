from pathlib import Path

import numpy as np
import pytest
from scipy import optimize

from ldp_export import calibrate as calibrate_module
from ldp_export.blur_map import alpha, center_view, similarity, stereo_canvas
from ldp_export.calibrate import (
    CalibrationError,
    blur_of_tokens,
    calibrate,
    fit_logistic,
    simulate_scenes,
    token_similarities,
)
from ldp_export.checkpoint import Checkpoint, choose_windows, save_checkpoint
from ldp_export.cli import main
from ldp_export.clip import PROMPTS, embed_texts, load_clip
from ldp_export.data import PairSample
from ldp_export.network import LDPNet
from ldp_runtime.stages.blur_map import ensemble_logits
from tests.ldp_export.tiny_models import TINY_CLIP, TINY_CONFIG


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def make_scenes(count: int, side: int = 64) -> list[PairSample]:
    rng = np.random.default_rng(2)
    views = rng.integers(0, 256, (count, 2, side, side, 3)).astype(np.uint8)
    disparity = np.linspace(-4, 4, count * side * side, dtype=np.float32).reshape(count, side, side)
    return [PairSample("scene", *pair, disparity=d) for pair, d in zip(views, disparity, strict=True)]


def save_shards(folder: Path, shards: list[list[PairSample]]) -> None:
    folder.mkdir()
    for i, scenes in enumerate(shards):
        np.savez(
            folder / f"scenes-{i:04d}.npz",
            left=np.stack([s.left for s in scenes]),
            right=np.stack([s.right for s in scenes]),
            target=np.stack([s.left for s in scenes]),
            coc=np.stack([s.disparity for s in scenes]),
            disparity=np.stack([s.disparity for s in scenes]),
        )


@pytest.mark.parametrize(("offset", "temperature"), [(21.5, 0.7), (-3.0, -2.5), (0.0, 30.0)])
def test_fit_logistic_finds_what_made_the_labels(offset: float, temperature: float) -> None:
    x = np.random.default_rng(0).normal(offset + 0.3, abs(temperature), 4000).astype(np.float32)
    fitted = fit_logistic(x, sigmoid((x - offset) / temperature))
    assert fitted == pytest.approx((offset, temperature), rel=0.01, abs=0.01)


def test_fit_logistic_agrees_with_a_general_optimiser() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(5, 2, 500)
    truth = np.clip(sigmoid((x - 5.5) / 1.1) + rng.normal(0, 0.2, 500), 0, 1)  # soft labels that no line fits exactly

    def loss(ab: np.ndarray) -> float:
        z = ab[0] * x + ab[1]
        return float((np.logaddexp(0, z) - truth * z).mean())

    best = optimize.minimize(loss, np.array([0.5, -2.0]), method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-12})
    offset, temperature = fit_logistic(x, truth)
    assert (1 / temperature, -offset / temperature) == pytest.approx(tuple(best.x), rel=5e-3)


def test_fit_logistic_survives_what_breaks_newton() -> None:
    x = np.linspace(20, 21, 200)
    separable = fit_logistic(x, (x > 20.5).astype(float))
    assert separable[0] == pytest.approx(20.5, abs=0.02)
    assert 0 < separable[1] < 0.1
    reverse = fit_logistic(x, (x < 20.5).astype(float))
    assert reverse == pytest.approx((separable[0], -separable[1]), rel=1e-6)
    # One class, a constant, far outliers, nothing to learn: finite numbers, and no temperature of zero.
    outlier = np.append(x, 1e5)
    cases = [(x, np.ones(200)), (x, np.zeros(200)), (np.full(200, 20.0), x - 20), (outlier, np.append(x - 20, 0.0))]
    cases.append((np.tile([20.0, 21.0], 100), np.repeat([0.0, 1.0], 100)))
    for values, truth in cases:
        offset, temperature = fit_logistic(values, truth)
        assert np.isfinite([offset, temperature]).all()
        assert temperature != 0
    # The last one is balanced noise, so that it says one half everywhere.
    assert sigmoid((x - offset) / temperature) == pytest.approx(np.full(200, 0.5), abs=1e-3)


def test_blur_of_tokens_by_hand() -> None:
    disparity = np.zeros((4, 8), np.float32)
    disparity[:, 4:] = -1.0  # at the threshold, of either sign
    disparity[0, 0] = 50.0
    tokens = blur_of_tokens(disparity, 4)
    low = sigmoid(np.array(-2.0))
    assert tokens == pytest.approx(np.array([[(15 * low + 1) / 16, 0.5]]), abs=1e-6)
    disparity[3, 7] = np.nan
    assert np.isnan(blur_of_tokens(disparity, 4)).tolist() == [[False, True]]


def test_calibration_learns_the_sign_of_every_prompt() -> None:
    rng = np.random.default_rng(3)
    blur = rng.random(3000).astype(np.float32)
    evidence = np.log(blur / (1 - blur))
    offsets = np.linspace(15, 25, 8)
    # What 100 cos does with blur: rises, falls, rises weakly, ... whatever the format of the prompt.
    slopes = np.array([2.0, -1.0, 0.5, 1.0, -1.5, 1.0, -0.5, -2.0])
    similarities = (offsets + slopes * evidence[:, None]).astype(np.float32)
    calibration = calibrate(similarities, blur)
    assert [(p.text, p.format) for p in calibration.prompts] == [(p.text, p.format) for p in PROMPTS]
    for prompt, offset, slope in zip(calibration.prompts, offsets, slopes, strict=True):
        sign = -1 if prompt.format == "dp-aware" else 1  # those are true where it is sharp
        assert (prompt.offset, prompt.temperature) == pytest.approx((offset, sign * slope), rel=0.02)
    assert calibration.accuracies == pytest.approx([1.0] * 9, abs=0.01)
    assert calibration.tokens == 3000
    z = [
        (-1 if p.format == "dp-aware" else 1) * (similarities[:, k] - p.offset) / p.temperature
        for k, p in enumerate(calibration.prompts)
    ]
    assert sigmoid(ensemble_logits(np.stack(z))) == pytest.approx(blur, abs=0.02)
    assert "A blurry image." in calibration.table()
    assert "3000 tokens" in calibration.table()


def test_calibration_needs_sharp_and_blurred_places() -> None:
    similarities = np.random.default_rng(0).random((50, 8)).astype(np.float32)
    for blur in (0.1, 0.9):
        with pytest.raises(CalibrationError, match="one kind"):
            calibrate(similarities, np.full(50, blur, np.float32))


def test_similarities_are_those_of_the_equations(tiny_clip_file: Path) -> None:
    import torch

    clip = load_clip(str(tiny_clip_file), seed=1)
    scene = make_scenes(1, 64)[0]
    similarities, blur = token_similarities(clip, choose_windows(16, 64), [scene])
    assert similarities.shape == (16, 8)
    mean, std = (np.array(v, np.float32) for v in (clip.mean, clip.std))
    left, right = (
        torch.from_numpy((view.astype(np.float32) / 255 - mean) / std).permute(2, 0, 1)[None]
        for view in (scene.left, scene.right)
    )
    with torch.inference_mode():
        texts = embed_texts(clip, [p.text for p in PROMPTS])
        of_center = similarity(clip.encoder(center_view(left, right)), texts)[0]
        of_canvas = similarity(alpha(clip.encoder(stereo_canvas(left, right))), texts)[0]
    for k, prompt in enumerate(PROMPTS):
        source = of_canvas if prompt.format == "dp-aware" else of_center
        assert np.abs(similarities[:, k] - 100 * source[..., k].flatten().numpy()).max() < 1e-3
    assert blur == pytest.approx(blur_of_tokens(scene.disparity, 16).ravel())


def test_padding_takes_no_part(tiny_clip_file: Path) -> None:
    clip = load_clip(str(tiny_clip_file), seed=1)
    view, disparity = np.zeros((40, 72, 3), np.uint8), np.full((40, 72), 3.0, np.float32)
    scene = PairSample("scene", view, view, disparity=disparity)
    # Two windows of 64 px over 64 x 80 px: of the image's 2 x 4 whole patches the second sees 3 columns again.
    similarities, blur = token_similarities(clip, choose_windows(16, 64), [scene])
    assert len(similarities) == len(blur) == 2 * (4 + 3)
    assert blur == pytest.approx(sigmoid(np.array(4.0)))
    small = PairSample("scene", view[:8], view[:8], disparity=disparity[:8])
    with pytest.raises(CalibrationError, match="16 x 16 px"):
        token_similarities(clip, choose_windows(16, 64), [small])
    with pytest.raises(CalibrationError, match="with its disparity, got none"):
        token_similarities(clip, choose_windows(16, 64), [PairSample("scene", view, view)])


def test_simulated_scenes_are_seeded_and_hold_both_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate_module, "_SIDE", 96)  # a quarter of the work
    scenes = list(simulate_scenes(2, seed=4))
    again = next(simulate_scenes(1, seed=4))
    assert np.array_equal(scenes[0].left, again.left)
    assert not np.array_equal(scenes[0].left, scenes[1].left)
    for scene in scenes:
        assert scene.left.shape == scene.right.shape == (96, 96, 3)
        assert scene.left.dtype == np.uint8
        assert not np.array_equal(scene.left, scene.right)
    sharp = np.mean([np.abs(scene.disparity) <= 1 for scene in scenes])
    assert 0.05 < sharp < 0.95


def test_the_command_writes_the_calibration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_clip_file: Path
) -> None:
    scenes = make_scenes(4, 64)
    save_shards(tmp_path / "scenes", [scenes[:2], scenes[2:]])
    clip = load_clip(str(tiny_clip_file), seed=1)
    folder = tmp_path / "checkpoint"
    save_checkpoint(
        folder,
        config=TINY_CONFIG,
        network=LDPNet(TINY_CONFIG).state_dict(),
        clip_config={**TINY_CLIP, "window": 64},
        clip=clip.model.state_dict(),
        prompts=calibrate(np.random.default_rng(0).random((9, 8)).astype(np.float32), np.linspace(0, 1, 9)).prompts,
        training={},
    )
    (folder / "calibration.json").unlink()
    assert main(["calibrate", str(folder), "--scenes", str(tmp_path / "scenes")]) == 0
    expected = calibrate(*token_similarities(clip, choose_windows(16, 64), scenes))
    written = Checkpoint.open(folder).prompts()
    for prompt, want in zip(written, expected.prompts, strict=True):
        assert (prompt.offset, prompt.temperature) == pytest.approx((want.offset, want.temperature), rel=1e-3)
    assert "ensemble of all, over 64 tokens" in capsys.readouterr().out

    before = (folder / "calibration.json").read_bytes()
    assert main(["calibrate", str(folder), "--scenes", str(tmp_path)]) == 2
    assert main(["calibrate", str(folder), "--scenes", str(tmp_path / "scenes"), "--window", "100"]) == 2
    assert "multiple of CLIP's patch" in capsys.readouterr().err
    assert (folder / "calibration.json").read_bytes() == before
