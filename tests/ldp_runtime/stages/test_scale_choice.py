"""Which scale fits."""

from __future__ import annotations

from ldp_runtime.stages.scale_choice import fitting_scale


def test_the_largest_scale_at_which_the_disparity_fits() -> None:
    assert [fitting_scale(d, 20.0) for d in (0.0, 9.0, 9.1, 18.0, 18.1, 100.0)] == [1, 1, 2, 2, 4, 4]
    assert fitting_scale(9.0, 10.0) == 2
