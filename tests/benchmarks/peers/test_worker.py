import numpy as np
import pytest

from benchmarks.peers.worker import restore


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_restore_pads_and_rounds_as_the_runtime_does(dtype: type[np.generic]) -> None:
    rng = np.random.default_rng(0)
    left, right = (rng.integers(0, np.iinfo(dtype).max + 1, (5, 7, 3)).astype(dtype) for _ in range(2))
    seen = []

    def network(pair: np.ndarray) -> np.ndarray:
        seen.append(pair)
        return pair[:, 3:] * 2 - 0.5

    restored = restore(network, left, right, 8)
    assert seen[0].shape == (1, 6, 8, 8)
    np.testing.assert_array_equal(seen[0][0, :, 5], seen[0][0, :, 3])  # reflect-101
    top = np.iinfo(dtype).max
    expected = np.clip(np.rint((right.astype(np.float32) / np.float32(top) * 2 - np.float32(0.5)) * top), 0, top)
    assert restored.dtype == dtype
    np.testing.assert_allclose(restored.astype(np.float64), expected, atol=1)
