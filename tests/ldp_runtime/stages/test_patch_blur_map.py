import numpy as np

from ldp_runtime.bundle.manifest import Prompt
from ldp_runtime.stages.blur_map import sigmoid, upsample_map
from ldp_runtime.stages.patch_blur_map import cut_patches, map_logits, patch_values, stretch

A, B = 29.0, 26.05
PROMPT = Prompt("A symmetric image at pixel level", "dp-aware", B, A - B)


def truncated(similarity: float) -> float:
    """The released map on [0, 1], as its code words it."""
    if similarity > A:
        return 0.0
    if similarity < B:
        return 1.0
    return (A - similarity) / (A - B)


def test_truncated_linear_map() -> None:
    similarities = np.array([-100, 0, 26, 26.05, 26.2, 27.5, 28.9, 29, 29.1, 40, 100])
    text = np.array([[0.6, 0.8]])
    angle = np.arccos(similarities / 100) + np.arctan2(0.8, 0.6)
    features = 7 * np.stack([np.cos(angle), np.sin(angle)], axis=-1)  # of any length
    values = patch_values(features, text, PROMPT)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, [truncated(s) for s in similarities], atol=2e-5)
    assert values[2] == 1
    assert values[-1] == 0


def test_patches_are_left_beside_the_mirrored_right() -> None:
    rng = np.random.default_rng(0)
    pair = rng.random((6, 7, 13), np.float32)
    patches = cut_patches(pair, 4)
    assert patches.shape == (2, 4, 3, 4, 8)
    padded = np.pad(pair, ((0, 0), (0, 1), (0, 3)), mode="reflect")
    for row in range(2):
        for column in range(4):
            part = padded[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            expected = np.concatenate([part[:3], part[3:, :, ::-1]], axis=2)
            np.testing.assert_array_equal(patches[row, column], expected)


def test_a_pair_without_disparity_gives_symmetric_patches() -> None:
    view = np.random.default_rng(1).random((3, 8, 12), np.float32)
    patches = cut_patches(np.concatenate([view, view]), 4)
    np.testing.assert_array_equal(patches, patches[..., ::-1])


def test_stretch_reaches_from_zero_to_one() -> None:
    values = np.array([[0.2, 0.5], [0.3, 0.7]], np.float32)
    np.testing.assert_allclose(stretch(values), [[0, 0.6], [0.2, 1]], atol=1e-6)
    for same in (0.0, 0.4, 1.0):  # nothing to stretch: all sharp stays sharp, all blurred stays blurred
        np.testing.assert_array_equal(stretch(np.full((2, 3), same, np.float32)), np.full((2, 3), same, np.float32))
    assert np.isnan(stretch(np.array([0.1, np.nan, 0.4], np.float32))).all()


def test_logits_give_the_map_again() -> None:
    blur_map = np.array([0, 1e-6, 1e-3, 0.25, 0.5, 0.999, 1], np.float32)
    logits = map_logits(blur_map)
    assert np.abs(logits).max() == 10
    np.testing.assert_allclose(sigmoid(logits), blur_map, atol=4.6e-5)
    assert np.isnan(map_logits(np.array([np.nan], np.float32))).all()


def test_upsampling_to_the_image() -> None:
    """Bilinear between the centres of patches, constant beyond the outermost ones, cropped to the image."""
    blur_map = np.array([[0, 1, 0.5], [0.25, 0.5, 1]], np.float32)
    found = upsample_map(map_logits(blur_map), (70, 100), 40)
    rows = np.clip((np.arange(70) + 0.5) / 40 - 0.5, 0, 1)
    columns = np.clip((np.arange(100) + 0.5) / 40 - 0.5, 0, 2)
    across = np.stack([np.interp(columns, [0, 1, 2], row) for row in blur_map])
    expected = across[0] + rows[:, None] * (across[1] - across[0])
    assert found.shape == (70, 100)
    np.testing.assert_allclose(found, expected, atol=5e-5)
