import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from ldp_runtime.stages.blur_map import (
    alpha,
    blur_logits,
    ensemble_logits,
    prompt_logits,
    select_canvases,
    select_prompts,
    sigmoid,
    upsample_map,
)


@dataclass(frozen=True)
class FakePrompt:
    format: str
    offset: float = 0.0
    temperature: float = 1.0


PROMPTS = [FakePrompt("blur-aware", 1.0 + k, 3.0 + k) for k in range(4)]
PROMPTS += [FakePrompt("dp-aware", 2.0 - k, (-1) ** k * (4.0 + k)) for k in range(4)]


def features(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_alpha_refuses_an_odd_canvas() -> None:
    with pytest.raises(ValueError, match="even number of token columns in a stereo canvas, got 5"):
        alpha(features(1, 2, 5, 3))


def test_half_precision_features_are_squared_in_fp32() -> None:
    f = (300 * features(4, 24)).astype(np.float16)
    with np.errstate(over="ignore"):
        assert np.isinf((f * f).sum(-1)).any(), "the naive form does not overflow, so this proves nothing"
    t = features(1, 24, seed=1)
    expected = prompt_logits(f.astype(np.float32), t, [0], [1])
    np.testing.assert_allclose(prompt_logits(f, t, [0], [1]), expected, rtol=1e-6)


def ensemble_directly(z: np.ndarray) -> np.ndarray:
    """Mean probability in float64, then its logit."""
    p = (1 / (1 + np.exp(-z.astype(np.float64)))).mean(0)
    return np.clip(np.log(p) - np.log1p(-p), -10, 10)


def test_ensemble_is_the_logit_of_the_mean_probability() -> None:
    z = 6 * features(8, 20, 20)
    np.testing.assert_allclose(ensemble_logits(z), ensemble_directly(z), atol=2e-5)
    one = np.linspace(-9.9, 9.9, 101, dtype=np.float32)[None]
    np.testing.assert_allclose(ensemble_logits(one), one[0], atol=2e-5)


def test_ensemble_at_the_extremes() -> None:
    sure = np.float32(1e4)
    columns = {
        (sure,) * 8: 10.0,
        (-sure,) * 8: -10.0,
        (np.float32(90.0),) * 8: 10.0,
        (sure,) * 4 + (-sure,) * 4: 0.0,
        (sure,) + (-sure,) * 7: math.log(1 / 7),
        (np.float32(-9.0),) * 8: -9.0,
        (np.float32(20.0),) * 7 + (np.float32(6.0),): ensemble_directly(np.array([20.0] * 7 + [6.0])),
        (np.float32(0.0),) * 8: 0.0,
    }
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        found = ensemble_logits(np.array(list(columns)).T)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, list(columns.values()), atol=2e-5)


def test_ensemble_passes_nan_on() -> None:
    with np.errstate(invalid="ignore"):
        assert np.isnan(ensemble_logits(np.full((8, 1), np.nan))).all()


def test_ensembles_of_table_5() -> None:
    assert select_prompts(PROMPTS) == select_prompts(PROMPTS, "ens2") == list(range(8))
    assert select_prompts(PROMPTS, "blur-aware") == select_prompts(PROMPTS, "ens1-blur-aware") == [0, 1, 2, 3]
    assert select_prompts(PROMPTS, "dp-aware") == select_prompts(PROMPTS, "ens1-dp-aware") == [4, 5, 6, 7]
    assert select_prompts(PROMPTS, 5) == [5]
    with pytest.raises(ValueError, match=r"expected one of ens2, .* or a prompt's index, got 'ens3'"):
        select_prompts(PROMPTS, "ens3")
    with pytest.raises(ValueError, match="expected a prompt from 0 to 7, got 8"):
        select_prompts(PROMPTS, 8)


def test_what_clip_has_to_see() -> None:
    assert select_canvases(PROMPTS) == ("stereo", "center")
    assert select_canvases(PROMPTS, "dp-aware") == select_canvases(PROMPTS, 6) == ("stereo",)
    assert select_canvases(PROMPTS, "ens1-blur-aware") == select_canvases(PROMPTS, 1) == ("center",)
    assert select_canvases([], "ens2") == ()  # a bundle without CLIP


@pytest.mark.parametrize(("ensemble", "unread"), [("dp-aware", 1), (5, 1), ("blur-aware", 0), (0, 0)])
def test_features_that_no_prompt_queries_need_not_be_there(ensemble: str | int, unread: int) -> None:
    both: list[Any] = [features(2, 3, 6, 7), features(2, 3, 3, 7, seed=1)]
    one = [None if i == unread else given for i, given in enumerate(both)]
    t = features(8, 7, seed=2)
    np.testing.assert_array_equal(
        blur_logits(*one, t, PROMPTS, ensemble), blur_logits(*both, t, PROMPTS, ensemble), strict=True
    )
    with pytest.raises(ValueError, match=r"expected the features that (blur|dp)-aware prompts query, got None"):
        blur_logits(*one, t, PROMPTS, "ens2")


@pytest.mark.parametrize("ensemble", ["ens2", "blur-aware", "dp-aware", "ens1-dp-aware", 1, 6])
def test_blur_logits_directly(ensemble: str | int) -> None:
    stereo, center, t = features(2, 3, 6, 7), features(2, 3, 3, 7, seed=1), features(8, 7, seed=2)
    found = blur_logits(stereo, center, t, PROMPTS, ensemble)
    assert found.shape == (2, 3, 3)
    for b, i, j in np.ndindex(2, 3, 3):
        probabilities = []
        for k in select_prompts(PROMPTS, ensemble):
            dp = PROMPTS[k].format == "dp-aware"
            f = (stereo[b, i, j] + stereo[b, i, 5 - j]) / 2 if dp else center[b, i, j]
            cosine = f @ t[k] / np.linalg.norm(f) / np.linalg.norm(t[k])
            m = 1 / (1 + math.exp(-(100 * float(cosine) - PROMPTS[k].offset) / PROMPTS[k].temperature))
            probabilities.append(1 - m if dp else m)
        p = sum(probabilities) / len(probabilities)
        expected = min(max(math.log(p / (1 - p)), -10), 10)
        assert found[b, i, j] == pytest.approx(expected, abs=1e-3), (b, i, j)


def test_a_symmetric_region_is_sharp() -> None:
    """Where both views are like "symmetrical" it is sharp; where one view differs it is blurred."""
    t = np.eye(8, 16, dtype=np.float32)
    stereo = np.zeros((1, 1, 4, 16), np.float32)
    stereo[0, 0, :, 4:8] = 1  # all like the DP-aware prompts
    stereo[0, 0, 0, :] = np.eye(16)[12]  # except column 0 of the left view
    prompts = [FakePrompt("blur-aware")] * 4 + [FakePrompt("dp-aware", offset=47.0, temperature=0.5)] * 4
    blurred, sharp = blur_logits(stereo, np.zeros((1, 1, 2, 16)), t, prompts, "dp-aware")[0, 0]
    assert sharp < -4 < 4 < blurred


def test_sigmoid_never_overflows() -> None:
    with np.errstate(over="raise", invalid="raise"):
        found = sigmoid([-1e30, -100, -2, 0, 2, 100, 1e30])
    np.testing.assert_allclose(found, [0, 0, 0.11920292, 0.5, 0.88079708, 1, 1], atol=1e-7)


GRIDS_AND_SIZES = [((4, 6), (50, 90)), ((1, 1), (1, 1)), ((2, 3), (32, 48)), ((1, 4), (3, 64))]


@pytest.mark.parametrize(("grid", "size"), GRIDS_AND_SIZES)
def test_upsampling_is_bilinear_with_half_pixel_centres(grid: tuple[int, int], size: tuple[int, int]) -> None:
    patch = 16
    logits = 3 * features(*grid)
    m = 1 / (1 + np.exp(-logits.astype(float)))
    expected = np.empty(size)
    for y, x in np.ndindex(*size):
        v = min(max((y + 0.5) / patch - 0.5, 0), grid[0] - 1)
        u = min(max((x + 0.5) / patch - 0.5, 0), grid[1] - 1)
        i, j = int(v), int(u)
        i1, j1 = min(i + 1, grid[0] - 1), min(j + 1, grid[1] - 1)
        top = m[i, j] * (1 - (u - j)) + m[i, j1] * (u - j)
        bottom = m[i1, j] * (1 - (u - j)) + m[i1, j1] * (u - j)
        expected[y, x] = top * (1 - (v - i)) + bottom * (v - i)
    found = upsample_map(logits, size, patch)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_upsampled_map_stays_in_range() -> None:
    found = upsample_map(np.array([[10.0, -10.0], [np.float32(1e9), 10.0]]), (32, 32), 16)
    assert found.min() >= 0
    assert found.max() <= 1
