from pathlib import Path

import numpy as np

from benchmarks.harness.sample import sample_pair
from ldp_runtime.images.photo import read_photo


def test_the_sample_is_cut_or_repeated_and_never_mirrored_along_x() -> None:
    sample = read_photo(Path("samples/motorcycle/left.png")).pixels
    h, w = sample.shape[:2]
    np.testing.assert_array_equal(sample_pair((20, 30))[0], sample[:20, :30])
    left, right = sample_pair((h + 5, 2 * w + 7))
    assert left.shape == right.shape == (h + 5, 2 * w + 7, 3)
    np.testing.assert_array_equal(left[:h, w : 2 * w], sample)
    np.testing.assert_array_equal(left[:h, 2 * w :], sample[:, :7])
    np.testing.assert_array_equal(left[h:, :w], sample[h - 2 : h - 7 : -1])
