import numpy as np
import pytest

from ldp_export.data import PairSample
from ldp_export.training.config import TrainingError
from ldp_export.training.true_blur import OFFSET, true_logits, with_errors
from ldp_runtime.stages.geometry import Padding


def sample(disparity: np.ndarray | None, h: int = 24, w: int = 32) -> PairSample:
    view = np.zeros((h, w, 3), np.uint8)
    return PairSample("one", view, view, disparity=disparity)


def test_true_logits_grow_with_the_size_of_the_disparity() -> None:
    disparity = np.zeros((24, 32), np.float32)
    disparity[:, 8:16], disparity[:, 16:24], disparity[:, 24:] = -1, 6, -6
    logits = true_logits(sample(disparity), Padding(16), 8)
    assert (logits.shape, logits.dtype) == ((4, 4), np.float32)
    assert np.ptp(logits, axis=0).max() == 0, "the padding repeats the border"
    sharp, edge, near, far = logits[0]
    assert edge == pytest.approx(OFFSET), "a disparity of 1 px lies on the border between sharp and blurred"
    assert sharp < edge - 1
    assert near == far > edge + 1, "the side of the blur does not matter"


def test_pairs_without_disparity_are_refused() -> None:
    with pytest.raises(TrainingError, match="expected pairs with disparity, got one without; use blur_logits: clip"):
        true_logits(sample(None), Padding(16), 8)


def test_errors_scatter_around_the_truth_and_some_maps_are_blank() -> None:
    logits = np.tile(np.linspace(-2, 3, 8, dtype=np.float32), (8, 1))
    drawn = np.stack([with_errors(logits, np.random.default_rng(seed)) for seed in range(2000)])
    assert drawn.dtype == np.float32
    blank = ~drawn.any((1, 2))
    assert 0.07 < blank.mean() < 0.13
    kept = drawn[~blank]
    np.testing.assert_allclose(kept.mean(0), logits, atol=0.12)
    assert 0.7 < kept.std(0).min() < kept.std(0).max() < 1.5
    assert np.array_equal(with_errors(logits, np.random.default_rng(3)), drawn[3])
