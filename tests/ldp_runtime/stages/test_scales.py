"""The way back to full size."""

from __future__ import annotations

import numpy as np
import pytest

from ldp_runtime.stages.scales import blend_full_size, reduce_view


@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("axis", ["horizontal", "vertical"])
def test_a_sharp_photo_keeps_every_detail(n: int, dtype: type, axis: str) -> None:
    view = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (601, 67, 3), dtype, endpoint=True)
    small = reduce_view(view, n)
    assert small.shape == (-(-601 // n), -(-67 // n), 3)
    restored = blend_full_size(small, (view, view), (small, small), n, axis)
    assert np.abs(restored.astype(int) - view).max() <= 1  # strips meet, and nothing is lost


def test_blurred_parts_come_from_the_small_restoration() -> None:
    x = np.arange(400, dtype=np.float32)
    left, right = (128 + 80 * np.sin((x + shift) / 6) for shift in (-6, 6))
    pair = [np.repeat(np.broadcast_to(v, (80, 400))[..., None], 3, 2).round().astype(np.uint8) for v in (left, right)]
    noise = np.random.default_rng(0).integers(-8, 9, (2, 80, 400, 3))
    noisy = [(view + own).astype(np.uint8) for view, own in zip(pair, noise, strict=True)]
    restored = np.full((40, 200, 3), 90, np.uint8)
    full = noisy[0], noisy[1]
    small = reduce_view(full[0], 2), reduce_view(full[1], 2)
    out = blend_full_size(restored, full, small, 2, "horizontal").astype(int)
    assert np.abs(out - 90).mean() < 0.5 * np.abs(noise.mean(0)).mean()  # the noise of the photo does not come back
