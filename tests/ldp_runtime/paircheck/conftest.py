"""Crops of good pairs, and ldp-nano that checks."""

from __future__ import annotations

from pathlib import Path

import pytest

from ldp_runtime import Deblurrer
from ldp_runtime.images.photo import read_photo
from tests.ldp_runtime.paircheck.faults import Pair, Pixels

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def crop() -> tuple[Pair, Pixels]:
    """A pair of 480 x 320 px, and its target; the views lie 0.45 r apart, as those of cameras do."""
    return _crop("samples/motorcycle")


@pytest.fixture(scope="session")
def wide_crop() -> tuple[Pair, Pixels]:
    """The same pair with views that are nearly half disks, 0.74 r apart."""
    return _crop("tests/wide_sample")


def _crop(views: str) -> tuple[Pair, Pixels]:
    files = (f"{views}/left", f"{views}/right", "samples/motorcycle/target")
    left, right, target = (read_photo(ROOT / f"{name}.png").pixels[102:422, 150:630] for name in files)
    return (left, right), target


@pytest.fixture(scope="session")
def nano() -> Deblurrer:
    """ldp-nano that checks pairs."""
    return Deblurrer.from_bundle(ROOT / "models/ldp-nano", check="auto")
