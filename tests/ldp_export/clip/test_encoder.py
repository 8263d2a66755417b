import copy
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from ldp_export.clip import DenseCLIP, LoadedClip, WindowEncoder
from tests.ldp_export.clip.small_clip import PATCH
from tests.ldp_export.tensors import noise


@torch.no_grad()
def test_dense_features_are_open_clips_own_tokens_normalised_and_projected(clip: LoadedClip) -> None:
    visual, image = clip.model.visual, noise(2, 3, 32, 32)
    features = clip.encoder(image)
    assert features.shape == (2, 4, 4, 12)

    inner = visual.forward_intermediates(image, indices=1, output_fmt="NLC", output_extra_tokens=True)
    last, class_token = inner["image_intermediates"][-1], inner["image_intermediates_prefix"][-1][:, 0]
    # These tokens are the ones that open_clip pools: its image feature is their class token, projected.
    torch.testing.assert_close(visual.ln_post(class_token) @ visual.proj, visual(image))
    expected = (visual.ln_post(last) @ visual.proj).reshape(2, 4, 4, 12)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)
    assert float((features[:, 0, 0] - visual(image)).abs().max()) > 0.1  # not the class token itself

    row_major = clip.encoder(torch.cat([image[..., :24], noise(2, 3, 32, 8, seed=3)], dim=3)) - features
    # Attention carries a change everywhere, but most of it stays in the column of patches that changed.
    assert row_major[:, :, 3].abs().mean() > 1.5 * row_major[:, :, :3].abs().mean()


@pytest.mark.parametrize("grid", [(4, 8), (2, 2), (3, 7), (6, 12)])
@torch.no_grad()
def test_other_grids_run_open_clips_blocks_with_resized_positions(clip: LoadedClip, grid: tuple[int, int]) -> None:
    image = noise(1, 3, grid[0] * PATCH, grid[1] * PATCH)
    visual = copy.deepcopy(clip.model.visual)
    table = visual.positional_embedding.double().numpy()
    resized = numpy_bicubic(table[1:].reshape(4, 4, -1), grid).reshape(grid[0] * grid[1], -1)
    visual.positional_embedding = nn.Parameter(torch.from_numpy(np.concatenate([table[:1], resized])).float())
    tokens = visual.forward_intermediates(image, indices=1, output_fmt="NLC", normalize_intermediates=True)
    expected = (tokens["image_intermediates"][-1] @ visual.proj).reshape(1, *grid, 12)
    torch.testing.assert_close(clip.encoder(image), expected, atol=1e-4, rtol=1e-4)


def numpy_bicubic(x: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
    """Keys' cubic with a = -0.75, half-pixel centres, edges repeated, no antialias; ``(h, w, c)`` to ``size``."""

    def cubic(t: float) -> float:
        t, a = abs(t), -0.75
        if t <= 1:
            return (a + 2) * t**3 - (a + 3) * t**2 + 1
        return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0

    for axis in (0, 1):
        x = np.moveaxis(x, axis, 0)
        out = np.zeros((size[axis], *x.shape[1:]))
        for i in range(size[axis]):
            centre = (i + 0.5) * x.shape[0] / size[axis] - 0.5
            first = math.floor(centre) - 1
            for tap in range(first, first + 4):
                out[i] += cubic(centre - tap) * x[min(max(tap, 0), x.shape[0] - 1)]
        x = np.moveaxis(out, 0, axis)
    return x


@pytest.mark.parametrize("grid", [(4, 4), (8, 16), (8, 8), (2, 4), (5, 3), (1, 1)])
@torch.no_grad()
def test_positions_are_resized_bicubically_without_antialias(clip: LoadedClip, grid: tuple[int, int]) -> None:
    table = clip.model.visual.positional_embedding.double().numpy()
    positional = clip.encoder.positional_embedding(grid)
    assert positional.shape == (1, 1 + grid[0] * grid[1], 32)
    np.testing.assert_array_equal(positional[0, 0].numpy(), table[0].astype(np.float32))
    expected = numpy_bicubic(table[1:].reshape(4, 4, -1), grid).reshape(grid[0] * grid[1], -1)
    np.testing.assert_allclose(positional[0, 1:].numpy(), expected, atol=1e-5)


@torch.no_grad()
def test_window_encoder_is_the_dense_encoder_on_both_inputs(clip: LoadedClip) -> None:
    windows = WindowEncoder(clip.encoder, 24)
    stereo, center = noise(3, 3, 24, 48), noise(3, 3, 24, 24, seed=1)
    of_stereo, of_center = windows(stereo, center)
    assert of_stereo.shape == (3, 3, 6, 12)
    assert of_center.shape == (3, 3, 3, 12)
    torch.testing.assert_close(of_stereo, clip.encoder(stereo))
    torch.testing.assert_close(of_center, clip.encoder(center))
    # Both grids' positions are constants of the graph: buffers, not computed again.
    assert {name for name, _ in windows.named_buffers()} >= {"stereo_positional", "center_positional"}
    for name, canvas, features in (("stereo", stereo, of_stereo), ("center", center, of_center)):
        alone = WindowEncoder(clip.encoder, 24, (name,))
        torch.testing.assert_close(alone(**{name: canvas}), (features,), rtol=0, atol=0)
        assert [buffer for buffer, _ in alone.named_buffers() if "_positional" in buffer] == [f"{name}_positional"]
    windows.stereo_positional.zero_()
    assert float((windows(stereo, center)[0] - of_stereo).abs().max()) > 0.01


def test_gradients_flow_through_the_encoder_to_the_image(clip: LoadedClip) -> None:
    image = noise(1, 3, 16, 32).requires_grad_()
    clip.encoder(image).square().mean().backward()
    assert image.grad is not None
    assert torch.isfinite(image.grad).all()
    assert image.grad.any()


def test_the_dense_encoder_refuses_towers_without_patch_tokens() -> None:
    with pytest.raises(TypeError, match="plain vision transformer, got Linear"):
        DenseCLIP(nn.Linear(1, 1))  # type: ignore[arg-type]
