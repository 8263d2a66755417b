import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ldp_export.blur_map import center_view
from ldp_export.checkpoint import Windows
from ldp_export.clip import PROMPTS, load_clip
from ldp_export.training.losses import (
    FLOOR,
    BlurAwareMap,
    LossConfig,
    LossError,
    blur_aware,
    blur_weighting,
    charbonnier,
    psnr,
    total_loss,
)
from ldp_runtime.bundle.manifest import Prompt
from ldp_runtime.stages import blur_map as runtime

CALIBRATED = [Prompt(p.text, p.format, 1.0 + i, (-1) ** i * (2.0 + i)) for i, p in enumerate(PROMPTS)]


@pytest.fixture
def blur_aware_map(tiny_clip_file: Path) -> BlurAwareMap:
    return BlurAwareMap(load_clip(str(tiny_clip_file), seed=5), CALIBRATED, Windows(64, 16))


def _pixels(*values: tuple[float, float, float]) -> Tensor:
    """An image ``(1, 3, 1, n)`` of these pixels."""
    return torch.tensor(values).T[None, :, None, :]


def test_charbonnier_takes_the_norm_over_channels() -> None:
    restored, target = _pixels((0.5, 0.6, 0.1), (0.2, 0.2, 0.2)), _pixels((0.2, 0.2, 0.1), (0.2, 0.2, 0.2))
    # One pixel is 5 tenths away (3, 4, 0), the other equal: sqrt(0.25 + 1e-8) and 1e-4.
    assert charbonnier(restored, target).item() == pytest.approx((math.sqrt(0.25 + 1e-8) + 1e-4) / 2, rel=1e-6)


def test_the_psnr_loss_is_a_mean_over_images_not_over_pixels() -> None:
    target = torch.zeros(2, 3, 1, 2)
    restored = torch.stack([torch.full((3, 1, 2), 0.1), torch.full((3, 1, 2), 0.01)])
    # 20 dB, and 40 dB, where the floor of 1e-4 counts as much as the error.
    expected = (math.log10(1e-2 + 1e-4) + math.log10(2e-4)) / 2
    assert psnr(restored, target).item() == pytest.approx(expected, rel=1e-5)
    config = LossConfig(charbonnier=0, psnr=0.1)
    total, parts = total_loss(config, restored, target, restored.repeat(1, 2, 1, 1), torch.zeros(2, 1, 1, 1))
    assert total.item() == pytest.approx(0.1 * expected, rel=1e-5)
    assert list(parts) == ["psnr"]


def test_blur_weighting_divides_by_the_deviation_of_the_target() -> None:
    target, center = _pixels((0.5, 0.5, 0.5), (0.4, 0.4, 0.4)), _pixels((0.5, 0.3, 0.5), (0.4, 0.4, 0.39))
    restored = _pixels((0.5, 0.4, 0.5), (0.5, 0.4, 0.4))
    blur_map = torch.tensor([0.5, 1.0]).reshape(1, 1, 1, 2)
    # 0.1^2 / 0.2^2 * 0.5; the other pixel is sharp (0.01^2 < FLOOR): 0.1^2 / FLOOR.
    expected = (0.25 * 0.5 + 0.01 / FLOOR) / 2
    assert blur_weighting(restored, target, center, blur_map).item() == pytest.approx(expected, rel=1e-5)
    # As Eq. 12 prints it the restoration's deviation divides: 0.1^2 / 0.1^2 * 0.5 and 0.1^2 / (0.1^2 + 0.01^2).
    printed = blur_weighting(restored, target, center, blur_map, "restored").item()
    assert printed == pytest.approx((0.5 + 0.01 / 0.0101) / 2, rel=1e-5)


def test_a_floor_and_a_window_take_the_weight_from_crossings() -> None:
    """The middle pixel of a blurred edge has the target's value in both images, and nothing to restore."""
    target, center = _pixels((0, 0, 0), (0.4, 0.4, 0.4), (0.8, 0.8, 0.8)), _pixels((0.2,) * 3, (0.4,) * 3, (0.6,) * 3)
    blur_map = torch.ones(1, 1, 1, 3)
    slope = {}
    for name, options in {"Eq. 12": {}, "floor": {"floor": 0.1}, "window": {"deviation_window": 3}}.items():
        restored = (target + 0.01).requires_grad_()
        loss = blur_weighting(restored, target, center, blur_map, **options)  # type: ignore[arg-type]
        slope[name] = torch.autograd.grad(loss, restored)[0][0, 0, 0]
        # A deviation of 3 * 0.2^2 = 0.12 at the sides and 0 in the middle; the window means two pixels or all three.
        sides, middle = {"Eq. 12": (0.12, FLOOR), "floor": (0.12, 0.1), "window": (0.06, 0.08)}[name]
        torch.testing.assert_close(slope[name], 0.02 / 3 / torch.tensor([sides, middle, sides]))
    assert slope["Eq. 12"][1] / slope["Eq. 12"][0] == pytest.approx(0.12 / FLOOR)
    assert slope["floor"][1] / slope["floor"][0] == pytest.approx(1.2)
    assert slope["window"][1] / slope["window"][0] == pytest.approx(0.75)


def test_the_total_takes_the_options() -> None:
    generator = torch.Generator().manual_seed(6)
    pair, restored, target = (torch.rand(1, c, 32, 32, generator=generator) for c in (6, 3, 3))
    logits = torch.zeros(1, 1, 2, 2)
    config = LossConfig(charbonnier=0, blur_weighting=1, floor=0.05, deviation_window=5)
    got, _ = total_loss(config, restored, target, pair, logits)
    half = torch.full((1, 1, 32, 32), 0.5)
    center = center_view(pair[:, :3], pair[:, 3:])
    torch.testing.assert_close(got, blur_weighting(restored, target, center, half, "target", 0.05, 5))
    assert abs(got - blur_weighting(restored, target, center, half)) > 0.01


def test_blur_aware_is_zero_where_nothing_is_blurred() -> None:
    z = torch.tensor([-50.0, 0.0, 3.0])
    assert blur_aware(z[:1]).item() == pytest.approx(0, abs=1e-9)
    assert blur_aware(z).item() == pytest.approx((math.log(2) + math.log1p(math.exp(3))) / 3, rel=1e-6)
    assert blur_aware(z, "raw").item() == pytest.approx(-47 / 3, rel=1e-6)


@pytest.mark.parametrize("denominator", ["target", "restored"])
def test_gradients_of_the_pixel_losses(denominator: str) -> None:
    generator = torch.Generator().manual_seed(1)
    restored, target, center = (torch.rand(1, 3, 2, 3, dtype=torch.float64, generator=generator) for _ in range(3))
    blur_map = torch.rand(1, 1, 2, 3, dtype=torch.float64, generator=generator)
    restored.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: charbonnier(x, target), restored)
    weighting = lambda x: blur_weighting(x, target, center, blur_map, denominator)  # type: ignore[arg-type]  # noqa: E731
    assert torch.autograd.gradcheck(weighting, restored)


def test_the_map_is_that_of_the_runtime(blur_aware_map: BlurAwareMap) -> None:
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        z = blur_aware_map(image)
        features = blur_aware_map.encoder((image - blur_aware_map.mean) / blur_aware_map.std)
        of_one_part = blur_aware_map(torch.cat([image, image.flip(3)], dim=3))
    texts = np.zeros((8, 16), np.float32)
    texts[:4] = blur_aware_map.texts.numpy()
    expected = runtime.blur_logits(np.zeros((2, 4, 8, 16)), features.numpy(), texts, CALIBRATED, "ens1-blur-aware")
    assert z.shape == (2, 1, 4, 4)
    np.testing.assert_allclose(z[:, 0].numpy(), expected, rtol=1e-4, atol=1e-4)
    # A crop of two windows side by side is two windows.
    torch.testing.assert_close(of_one_part[..., :4], z, rtol=1e-4, atol=1e-4)
    assert of_one_part.shape == (2, 1, 4, 8)


def test_crops_that_do_not_divide_are_refused(blur_aware_map: BlurAwareMap) -> None:
    blur_aware_map.check_size(48)
    blur_aware_map.check_size(128)
    with pytest.raises(LossError, match="CLIP's patch, 16 px, got 40"):
        blur_aware_map.check_size(40)
    with pytest.raises(LossError, match="CLIP's window, 64 px, got 96"):
        blur_aware_map.check_size(96)


def test_the_blur_aware_loss_passes_through_the_frozen_encoder(blur_aware_map: BlurAwareMap) -> None:
    generator = torch.Generator().manual_seed(3)
    image = torch.rand(1, 3, 64, 64, generator=generator).requires_grad_()

    def loss(x: Tensor) -> Tensor:
        return blur_aware(blur_aware_map(x))

    loss(image).backward()
    assert image.grad is not None
    assert all(p.grad is None and not p.requires_grad for p in blur_aware_map.encoder.parameters())
    assert (image.grad.abs() > 0).float().mean() > 0.9
    # The slope along the gradient, by central differences.
    direction = image.grad / image.grad.norm()
    with torch.no_grad():
        measured = (loss(image + 0.01 * direction) - loss(image - 0.01 * direction)) / 0.02
    assert measured.item() == pytest.approx(image.grad.norm().item(), rel=0.02)


def test_the_total_is_the_weighted_sum(blur_aware_map: BlurAwareMap) -> None:
    generator = torch.Generator().manual_seed(4)
    pair, restored, target = (torch.rand(2, c, 64, 64, generator=generator) for c in (6, 3, 3))
    logits = torch.randn(2, 1, 4, 4, generator=generator)
    config = LossConfig(charbonnier=1.0, blur_aware=0.1, blur_weighting=0.2)
    total, parts = total_loss(config, restored, target, pair, logits, blur_aware_map)
    assert list(parts) == ["charbonnier", "blur_aware", "blur_weighting"]
    expected = parts["charbonnier"] + 0.1 * parts["blur_aware"] + 0.2 * parts["blur_weighting"]
    torch.testing.assert_close(total, expected)
    upsampled = torch.from_numpy(np.stack([runtime.upsample_map(z[0].numpy(), (64, 64), 16) for z in logits]))[:, None]
    center = center_view(pair[:, :3], pair[:, 3:])
    torch.testing.assert_close(parts["blur_weighting"], blur_weighting(restored, target, center, upsampled))
    # A loss of weight zero is neither computed nor asked for.
    assert list(total_loss(LossConfig(), restored, target, pair, logits)[1]) == ["charbonnier"]
    with pytest.raises(LossError, match="CLIP"):
        total_loss(config, restored, target, pair, logits)
