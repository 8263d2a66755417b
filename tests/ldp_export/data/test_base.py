from typing import Any

import numpy as np
import pytest

from ldp_export.data import DataError, PairSample, spread


def test_samples_check_their_arrays() -> None:
    view = np.zeros((4, 6, 3), np.uint8)
    with pytest.raises(DataError, match="views"):
        PairSample("a", view.astype(np.float32), view)
    with pytest.raises(DataError, match="target like the left view"):
        PairSample("a", view, view, view.astype(np.uint16))
    with pytest.raises(DataError, match=r"disparity map \(4, 6\) of float32"):
        PairSample("a", view, view, disparity=np.zeros((4, 6)))  # type: ignore[arg-type]
    assert PairSample("a", view, view).peak == 255


@pytest.mark.parametrize(("pairs", "most", "chosen"), [(9, 3, [0, 4, 8]), (2, 5, [0, 1]), (3, 2, [0, 2]), (0, 4, [])])
def test_few_pairs_are_spread_over_the_data_set(pairs: int, most: int, chosen: list[int]) -> None:
    dataset: Any = range(pairs)  # it too has a length and items
    assert list(spread(dataset, most)) == chosen
