"""Which scale fits."""

from __future__ import annotations

from ldp_runtime.stages.scale_choice import fitting_scale


def test_the_largest_scale_at_which_the_disparity_fits() -> None:
    assert [fitting_scale(d, 7.0) for d in (0.0, 6.0, 7.0, 12.0, 13.0, 100.0)] == [1, 1, 2, 2, 4, 4]
    assert fitting_scale(7.0, 14.0) == 1
