"""The sample pair, as its files hold it: to simulate it takes seconds."""

import functools
from pathlib import Path

import numpy as np

from ldp_export.simulation.simulate import SimulatedPair
from ldp_runtime.images.photo import read_photo

SAMPLE = Path(__file__).parents[1] / "samples" / "motorcycle"


@functools.cache
def near_sample() -> SimulatedPair:
    """What ``focus_setting("near")`` simulates; ``test_ldp_nano.py`` compares the two."""
    left, right, target = (read_photo(SAMPLE / f"{name}.png").pixels.copy() for name in ("left", "right", "target"))
    return SimulatedPair(left, right, target, np.load(SAMPLE / "coc.npy"))
