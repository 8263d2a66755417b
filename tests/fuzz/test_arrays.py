"""Pairs in every memory layout give the image of plain arrays; everything else gives our error."""

from typing import Any

import numpy as np
import pytest

from ldp_runtime.deblurrer import Deblurrer
from ldp_runtime.errors import ImageError
from tests.fuzz.arrays import LAYOUTS, WRONG, pixels


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layout_of_memory_does_not_matter(deblurrer: Deblurrer, layout: str, dtype: Any) -> None:
    for size in ((1, 1), (48, 33)):
        plain = [pixels(*size, dtype, seed) for seed in range(2)]
        views = [LAYOUTS[layout](view) for view in plain]
        result, expected = deblurrer(*views, axis="vertical"), deblurrer(*plain, axis="vertical")
        assert (result.restored.shape, result.restored.dtype) == ((*size, 3), dtype)
        assert result.restored.flags.writeable
        np.testing.assert_array_equal(result.restored, expected.restored)
        np.testing.assert_array_equal(result.blur_map, expected.blur_map)
        np.testing.assert_array_equal(views, plain)  # unchanged


@pytest.mark.parametrize("kind", WRONG)
def test_everything_else_is_refused_in_one_line(deblurrer: Deblurrer, kind: str) -> None:
    for dtype in (np.uint8, np.uint16):
        view = pixels(7, 5, dtype, seed=0)
        wrong = WRONG[kind](view)
        for pair in ((view, wrong), (wrong, view)):
            with pytest.raises(ImageError) as caught:
                deblurrer(*pair)
            assert "\n" not in str(caught.value)
