import numpy as np
import pytest

from benchmarks.classical import chains
from benchmarks.classical.chains import restore_dmenet, restore_ebdb


def test_chains_take_the_center_view_and_their_own_map(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def keep(image: np.ndarray, sigma: np.ndarray) -> np.ndarray:
        seen.append((image, sigma))
        return image

    def defocus(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        return np.repeat(((left + right) / 2)[..., 1:2], 3, axis=2)

    monkeypatch.setattr(chains, "deconvolve", keep)
    monkeypatch.setattr(chains, "blur_map", lambda image: image[..., 0] * 5)
    left, right = np.random.default_rng(0).random((2, 16, 32, 3))
    center = (left + right) / 2
    np.testing.assert_array_equal(restore_ebdb(left, right), center)
    np.testing.assert_array_equal(seen[0][1], center[..., 0] * 5)
    np.testing.assert_array_equal(restore_dmenet(defocus, left, right), center)
    np.testing.assert_allclose(seen[1][1], np.maximum(0, (15 * center[..., 1] - 1) / 2), atol=1e-5)
