from pathlib import Path

import numpy as np

from ldp_runtime.backends.base import Session
from ldp_runtime.registry import BACKENDS
from tests.ldp_runtime.tiny_bundle import PATCH, WINDOW


def open_graph(name: str, path: Path, precision: str = "fp32") -> Session:
    return BACKENDS[name].open(path, precision, threads=1)


def deblur_feeds(h: int = 64, w: int = 96, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "pair": rng.random((1, 6, h, w), dtype=np.float32),
        "blur_logits": rng.standard_normal((1, 1, h // PATCH, w // PATCH)).astype(np.float32),
    }


def clip_feeds(batch: int = 3, dtype: type = np.float32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        "stereo": rng.standard_normal((batch, 3, WINDOW, 2 * WINDOW)).astype(dtype),
        "center": rng.standard_normal((batch, 3, WINDOW, WINDOW)).astype(dtype),
    }
