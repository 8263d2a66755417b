import numpy as np
import pytest

from ldp_runtime.images.orientation import upright, upright_disparity


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("axis", ["horizontal", "vertical"])
def test_upright_disparity_follows_a_moving_point(axis: str, orientation: int) -> None:
    positions = []
    for step in (0, 1):
        stored = np.zeros((5, 7, 3), np.uint8)
        stored[(2, 3 + step) if axis == "horizontal" else (2 + step, 3)] = 255
        positions.append(np.argwhere(upright(stored, orientation)[..., 0])[0])
    moved = tuple(positions[1] - positions[0])
    upright_axis, mirrored = upright_disparity(axis, orientation)
    sign = -1 if mirrored else 1
    assert moved == ((0, sign) if upright_axis == "horizontal" else (sign, 0))
