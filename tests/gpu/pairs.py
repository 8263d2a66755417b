"""Pairs that a network has something to restore in."""

import numpy as np


def a_pair(h: int, w: int, dtype: type = np.uint8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A smooth pair with a shift, so that the network has something to restore."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:h, 0:w] / 40.0
    phase = rng.uniform(0, 6, (3, 4))
    waves = [sum(np.sin(x * np.cos(a) * (k + 1) + y * np.sin(a) + a) for k, a in enumerate(p)) for p in phase]
    image = (np.stack(waves, axis=-1) / 8 + 0.5).clip(0, 1)
    left, right = ((np.roll(image, shift, 1) * np.iinfo(dtype).max).round().astype(dtype) for shift in (-1, 1))
    return left, right
