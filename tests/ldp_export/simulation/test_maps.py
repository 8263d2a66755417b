import numpy as np
import pytest

from ldp_export.simulation.maps import fill_disparity_holes
from ldp_export.simulation.optics import SimulationError


def test_holes_take_the_farther_of_their_neighbours_in_the_row() -> None:
    nan, inf = np.nan, np.inf
    disparity = np.array(
        [
            [5, nan, nan, 9, 7],
            [nan, 4, 6, 0, inf],
            [8, -1, 3, nan, 2],
            [nan, nan, nan, nan, nan],
            [1, 1, 1, 1, 1],
        ],
        dtype=np.float32,
    )
    filled = fill_disparity_holes(disparity)
    assert filled.dtype == np.float32
    assert filled[:3].tolist() == [[5, 5, 5, 9, 7], [4, 4, 6, 6, 6], [8, 3, 3, 2, 2]]
    # A row without any value takes the nearest value of the map: here from the row below or the row above.
    assert all(value in (filled[2, j], 1) for j, value in enumerate(filled[3]))


def test_a_map_without_holes_stays_as_it_is() -> None:
    disparity = np.random.default_rng(0).uniform(1, 9, (5, 6)).astype(np.float32)
    np.testing.assert_array_equal(fill_disparity_holes(disparity), disparity)


def test_a_map_of_holes_is_an_error() -> None:
    with pytest.raises(SimulationError, match="no valid"):
        fill_disparity_holes(np.array([[0.0, np.nan], [-1.0, np.inf]]))
