from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

import ldp_runtime.stages.blur_map as twin
from ldp_export.blur_map import (
    LOGIT_LIMIT,
    alpha,
    blur_logits,
    center_view,
    ensemble_logits,
    similarity,
    stereo_canvas,
    upsample_map,
)
from ldp_export.clip import PROMPTS
from tests.ldp_export.tensors import array, noise

PATCH = 8
DP_AWARE = [prompt.format == "dp-aware" for prompt in PROMPTS]


@dataclass(frozen=True)
class CalibratedPrompt:
    format: str
    offset: float
    temperature: float


def unit_rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.nn.functional.normalize(noise(*shape, seed=seed), dim=-1)


def test_center_view_is_the_mean() -> None:
    left, right = torch.tensor([[0.0, 1.0, 0.25]]), torch.tensor([[1.0, 1.0, 0.75]])
    assert center_view(left, right).tolist() == [[0.5, 1.0, 0.5]]


@pytest.mark.parametrize("width", [1, 32, 33])
def test_column_x_mirrors_to_2w_minus_1_minus_x(width: int) -> None:
    left, right = noise(2, 3, 4, width), noise(2, 3, 4, width, seed=1)
    canvas = stereo_canvas(left, right)
    assert canvas.shape == (2, 3, 4, 2 * width)
    for x in range(width):
        assert torch.equal(canvas[..., x], left[..., x])
        assert torch.equal(canvas[..., 2 * width - 1 - x], right[..., x])


@pytest.mark.parametrize("ws", [2, 10, 33])
def test_alpha_is_equation_5(ws: int) -> None:
    """Eq. 5 counted from 0; its j runs to floor(ws / 2), so an odd canvas's own mirror column drops out."""
    features = noise(2, 3, ws, 5)
    folded = alpha(features)
    assert folded.shape == (2, 3, ws // 2, 5)
    for b, i, j in np.ndindex(2, 3, ws // 2):
        expected = 0.5 * features[b, i, j] + 0.5 * features[b, i, ws - 1 - j]
        torch.testing.assert_close(folded[b, i, j], expected)
    if ws % 2:
        changed = features.clone()
        changed[:, :, ws // 2] += 1
        assert torch.equal(alpha(changed), folded)


# --- symmetry through the whole chain: a hand-made encoder --------------------------------------------------


def patch_embedding(image: Tensor, filters: Tensor) -> Tensor:
    """A linear dense encoder: ``(B, 3, H, W)`` and filters ``(c, 3, PATCH, PATCH)`` to ``(B, gh, gw, c)``."""
    return torch.nn.functional.conv2d(image, filters, stride=PATCH).permute(0, 2, 3, 1)


def pair_blurred_on_the_right(height: int = 48, width: int = 64) -> tuple[Tensor, Tensor]:
    """Textured views, identical in the left half and one pixel apart either way in the right half."""
    texture = torch.rand(1, 3, height, width + 4, generator=torch.Generator().manual_seed(7))
    left, right = texture[..., 2:-2].clone(), texture[..., 2:-2].clone()
    half = width // 2
    left[..., half:], right[..., half:] = texture[..., 3 + half : -1], texture[..., 1 + half : -3]
    return left, right


def test_a_symmetry_detector_maps_the_blur() -> None:
    """A feature that is odd under mirroring cancels in alpha where, and only where, views are symmetrical."""
    left, right = pair_blurred_on_the_right()
    even = torch.full((1, 3, PATCH, PATCH), 1 / PATCH)
    odd = noise(4, 3, PATCH, PATCH)
    filters = torch.cat([even, odd - odd.flip(3)])
    text = torch.eye(5)[:1]  # "symmetrical": along the even feature alone
    settings = (torch.tensor([99.5]), torch.tensor([0.1]))
    center = patch_embedding(center_view(left, right), filters)

    def blur_of(canvas: Tensor) -> Tensor:
        return torch.sigmoid(blur_logits(patch_embedding(canvas, filters), center, text, [True], *settings))

    blur_map = blur_of(stereo_canvas(left, right))[0, 0]
    assert blur_map.shape == (6, 8)
    assert float(blur_map[:, :4].max()) < 0.01
    assert float(blur_map[:, 4:].min()) > 0.99
    # Negative control: without the flip nothing is symmetrical, and all of it looks blurred.
    assert float(blur_of(torch.cat([left, right], dim=3)).min()) > 0.9


# --- Eq. 4 --------------------------------------------------------------------------------------------------


def test_similarity_of_half_precision_features_is_computed_in_single() -> None:
    features = (200 * noise(4, 512)).half()  # their squares overflow FP16
    texts = unit_rows(3, 512, seed=1)
    cosines = similarity(features, texts)
    assert cosines.dtype == torch.float32
    torch.testing.assert_close(cosines, similarity(features.float(), texts))


def slow_ensemble(z: NDArray[np.float64]) -> NDArray[np.float64]:
    """The logit of the mean probability, from those of blurred and of sharp, in extended precision."""
    z = z.astype(np.longdouble)
    blurred, sharp = (1 / (1 + np.exp(sign * z)) for sign in (-1, 1))
    return np.clip(np.log(blurred.mean(-1)) - np.log(sharp.mean(-1)), -LOGIT_LIMIT, LOGIT_LIMIT).astype(float)


@pytest.mark.parametrize("scale", [0.1, 1.0, 4.0, 12.0])
@pytest.mark.parametrize("prompts", [1, 4, 8])
def test_ensemble_is_the_logit_of_the_mean_probability(scale: float, prompts: int) -> None:
    z = scale * noise(200, prompts)
    np.testing.assert_allclose(array(ensemble_logits(z)), slow_ensemble(array(z)), atol=2e-6, rtol=2e-6)


def test_ensemble_loses_no_digits_where_all_agree() -> None:
    for sign in (-1, 1):
        z = sign * (9.0 + 0.1 * torch.rand(50, 8, generator=torch.Generator().manual_seed(1)))
        np.testing.assert_allclose(array(ensemble_logits(z)), slow_ensemble(array(z)), rtol=1e-6)
    # Negative control: through probabilities in FP32, 1 - p has lost its digits.
    probability = torch.sigmoid(z).mean(-1)
    naive = torch.log(probability / (1 - probability))
    assert np.abs(array(naive) - slow_ensemble(array(z))).max() > 1e-4


def test_ensemble_at_extremes_is_clipped_and_finite() -> None:
    z = torch.tensor([[1e4, 1e4], [-1e4, -1e4], [1e4, -1e4], [30.0, 30.0], [0.0, 0.0], [1e4, 0.0]])
    z.requires_grad_()
    logits = ensemble_logits(z)
    expected = torch.tensor([10.0, -10.0, 0.0, 10.0, 0.0, np.log(3.0)])
    torch.testing.assert_close(logits, expected.float())
    logits.sum().backward()
    assert z.grad is not None
    assert torch.isfinite(z.grad).all()


def test_ensemble_of_one_is_its_logit() -> None:
    z = torch.linspace(-9.9, 9.9, 50)[:, None]
    torch.testing.assert_close(ensemble_logits(z), z[:, 0], atol=1e-5, rtol=1e-5)


# --- Eq. 6 and the formats of Table 5 -----------------------------------------------------------------------


def settings(count: int = 8) -> tuple[Tensor, Tensor]:
    offsets = torch.tensor([-3.0, 0.0, 2.0, 5.0, 1.0, -2.0, 4.0, 0.5])
    temperatures = torch.tensor([4.0, 10.0, -6.0, 8.0, 5.0, -7.0, 9.0, 12.0])
    return offsets[:count], temperatures[:count]


def inputs(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    stereo, center = noise(2, 3, 8, 12, seed=seed), noise(2, 3, 4, 12, seed=seed + 1)
    return stereo, center, unit_rows(8, 12, seed=seed + 2)


def slow_blur_logits(stereo: Tensor, center: Tensor, texts: Tensor, chosen: list[int]) -> NDArray[np.float64]:
    offsets, temperatures = (array(t) for t in settings())
    stereo, center, texts = array(stereo), array(center), array(texts)
    batch, rows, columns, _ = center.shape
    out = np.empty((batch, rows, columns))
    for b, i, j in np.ndindex(out.shape):
        probabilities = []
        for k in chosen:
            mirror = stereo[b, i, 2 * columns - 1 - j]
            f = (stereo[b, i, j] + mirror) / 2 if DP_AWARE[k] else center[b, i, j]
            cosine = f @ texts[k] / np.linalg.norm(f)
            sigma = 1 / (1 + np.exp(-(100 * cosine - offsets[k]) / temperatures[k]))
            probabilities.append(1 - sigma if DP_AWARE[k] else sigma)  # Eq. 6 and Eq. 4
        mean = np.mean(probabilities)
        out[b, i, j] = np.clip(np.log(mean / (1 - mean)), -10, 10)
    return out


FORMATS = {
    "ens2": list(range(8)),
    "ens1-blur-aware": [0, 1, 2, 3],
    "ens1-dp-aware": [4, 5, 6, 7],
    **{str(k): [k] for k in range(8)},
}


@pytest.mark.parametrize("name", FORMATS)
def test_blur_logits_are_equations_4_to_6_for_every_format(name: str) -> None:
    chosen = FORMATS[name]
    stereo, center, texts = inputs()
    offsets, temperatures = (t[chosen] for t in settings())
    of_chosen = texts[chosen], [DP_AWARE[k] for k in chosen], offsets, temperatures
    logits = blur_logits(stereo, center, *of_chosen)
    for unread, seen in ((True, (None, center)), (False, (stereo, None))):
        if unread in of_chosen[1]:
            with pytest.raises(ValueError, match="expected the features that each prompt reads, got None"):
                blur_logits(*seen, *of_chosen)
        else:
            torch.testing.assert_close(blur_logits(*seen, *of_chosen), logits, rtol=0, atol=0)
    assert logits.shape == (2, 1, 3, 4)
    assert logits.dtype == torch.float32
    expected = slow_blur_logits(stereo, center, texts, chosen)
    np.testing.assert_allclose(array(logits[:, 0]), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", FORMATS)
def test_the_runtimes_twin_agrees(name: str) -> None:
    chosen = FORMATS[name]
    stereo, center, texts = inputs(seed=10)
    offsets, temperatures = settings()
    prompts = [
        CalibratedPrompt(prompt.format, float(offsets[k]), float(temperatures[k])) for k, prompt in enumerate(PROMPTS)
    ]
    ours = blur_logits(
        stereo, center, texts[chosen], [DP_AWARE[k] for k in chosen], offsets[chosen], temperatures[chosen]
    )
    theirs = twin.blur_logits(
        stereo.numpy(), center.numpy(), texts.numpy(), prompts, int(name) if name.isdigit() else name
    )
    np.testing.assert_allclose(ours[:, 0].numpy(), theirs, atol=1e-5, rtol=1e-5)
    ours_up = upsample_map(ours, PATCH)[0, 0].numpy()
    np.testing.assert_allclose(ours_up, twin.upsample_map(theirs[0], (24, 32), PATCH), atol=1e-5)


def test_the_twin_agrees_on_the_ensemble_at_extremes() -> None:
    z = torch.cat([20 * noise(300, 8), torch.tensor([[1e4] * 8, [-1e4] * 8, [1e4] * 4 + [-1e4] * 4])])
    np.testing.assert_allclose(ensemble_logits(z).numpy(), twin.ensemble_logits(z.T.numpy()), atol=1e-5)


def test_gradients_are_finite_and_reach_both_encoders_outputs() -> None:
    stereo, center, texts = inputs()
    stereo[0, 0, 0], stereo[0, 0, -1], center[0, 0, 0] = 0, 0, 0  # no length: the cosine is 0 there
    stereo.requires_grad_(), center.requires_grad_()
    logits = blur_logits(stereo, center, texts, DP_AWARE, *settings())
    assert torch.isfinite(logits).all()
    logits[..., 1:].square().sum().backward()
    for features in (stereo, center):
        assert features.grad is not None
        assert torch.isfinite(features.grad).all()
        assert features.grad[:, 1].abs().sum(-1).gt(0).float().mean() > 0.7
    (logits_of_zero,) = torch.autograd.grad(
        blur_logits(stereo, center, texts, DP_AWARE, *settings())[0, 0, 0, 0], center
    )
    assert torch.isfinite(logits_of_zero).all()


def test_the_upsampled_map_is_bilinear_with_half_pixel_centres() -> None:
    logits = 3 * noise(1, 1, 3, 4)
    blur_map = upsample_map(logits, 4)
    assert blur_map.shape == (1, 1, 12, 16)
    grid = 1 / (1 + np.exp(-array(logits[0, 0])))
    for i, j in np.ndindex(12, 16):
        y, x = (min(max((n + 0.5) / 4 - 0.5, 0), size - 1) for n, size in ((i, 3), (j, 4)))
        top, left = int(y), int(x)
        bottom, right = min(top + 1, 2), min(left + 1, 3)
        upper = grid[top, left] * (1 - x + left) + grid[top, right] * (x - left)
        lower = grid[bottom, left] * (1 - x + left) + grid[bottom, right] * (x - left)
        expected = upper * (1 - y + top) + lower * (y - top)
        assert float(blur_map[0, 0, i, j]) == pytest.approx(expected, abs=1e-6)
