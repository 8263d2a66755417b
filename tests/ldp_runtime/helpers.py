"""Pairs of noise, equality of results, and whether a folder is locked."""

import os
from pathlib import Path

import numpy as np

from ldp_runtime.backends.base import Session
from ldp_runtime.deblurrer import Deblurrer
from ldp_runtime.files import lock_file
from ldp_runtime.host import HostChain
from ldp_runtime.result import Result


def a_pair(h: int, w: int, dtype: type = np.uint8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    left, right = rng.integers(0, np.iinfo(dtype).max, (2, h, w, 3), dtype=dtype, endpoint=True)
    return left, right


def assert_same(a: Result, b: Result) -> None:
    np.testing.assert_array_equal(a.restored, b.restored)
    np.testing.assert_array_equal(a.blur_map, b.blur_map)
    np.testing.assert_array_equal(a.blur_logits, b.blur_logits)


def session_of(deblurrer: Deblurrer, kind: str) -> Session:
    """The session in which a deblurrer on the host runs a graph."""
    deblurrer.start(*a_pair(1, 1)).cancel()
    assert isinstance(deblurrer._chain, HostChain)
    return deblurrer._chain._session(kind)


def is_locked(folder: Path) -> bool:
    handle = os.open(folder, os.O_RDONLY)
    try:
        return lock_file(handle) is False
    finally:
        os.close(handle)
