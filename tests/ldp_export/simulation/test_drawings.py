import numpy as np

from ldp_export.simulation.drawings import random_drawing


def test_drawings_are_sharp_and_repeatable() -> None:
    colors = np.array([[10, 200, 30], [240, 240, 240]], np.uint8)
    kinds = set()
    for seed in range(24):
        drawing = random_drawing(np.random.default_rng(seed), 96, colors)
        assert drawing.shape == (96, 96, 3)
        assert np.array_equal(drawing, random_drawing(np.random.default_rng(seed), 96, colors))
        assert np.abs(np.diff(drawing.astype(int), axis=1)).max() > 20  # an edge within a pixel
        kinds.add(drawing.tobytes())
    assert len(kinds) == 24
