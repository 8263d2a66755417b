"""A crop of the sample, and ldp-nano with and without the check."""

from __future__ import annotations

from pathlib import Path

import pytest

from ldp_runtime import Deblurrer
from ldp_runtime.images.photo import read_photo
from tests.ldp_runtime.paircheck.faults import Pair, Pixels

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def crop() -> tuple[Pair, Pixels]:
    """A pair of 480 x 320 px, and its target."""
    left, right, target = (
        read_photo(ROOT / f"samples/motorcycle/{name}.png").pixels[102:422, 150:630]
        for name in ("left", "right", "target")
    )
    return (left, right), target


@pytest.fixture(scope="session")
def nano() -> Deblurrer:
    """ldp-nano that checks pairs."""
    return Deblurrer.from_bundle(ROOT / "models/ldp-nano", check="auto")
