import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldp_runtime.stages.geometry import pad_reflect
from ldp_runtime.stages.pixels import PaddedPair


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_regions_are_cut_from_the_padded_pair(data: st.DataObject) -> None:
    h, w = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 20))
    H, W = h + data.draw(st.integers(0, 30)), w + data.draw(st.integers(0, 30))
    dtype = data.draw(st.sampled_from([np.dtype(np.uint8), np.dtype(np.uint16), np.dtype(">u2")]))
    rng = np.random.default_rng(0)
    views = rng.integers(0, np.iinfo(dtype).max, (2, w, h, 3), endpoint=True).astype(dtype).transpose(0, 2, 1, 3)
    planes = np.concatenate([v.transpose(2, 0, 1) for v in views]) / np.float32(np.iinfo(dtype).max)
    padded, whole = PaddedPair(*views, (H, W)), pad_reflect(planes.astype(np.float32), (H, W))
    if data.draw(st.booleans()):
        H, W = H + data.draw(st.integers(0, 30)), W + data.draw(st.integers(0, 30))
        padded, whole = padded.extended((H, W)), pad_reflect(whole, (H, W))
    assert padded.size == (H, W)
    y, x = data.draw(st.integers(0, H - 1)), data.draw(st.integers(0, W - 1))
    height, width = data.draw(st.integers(1, H - y)), data.draw(st.integers(1, W - x))
    region = padded.region(y, x, height, width)
    assert region.dtype == np.float32
    np.testing.assert_array_equal(region, whole[:, y : y + height, x : x + width])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_every_level_is_scaled_by_a_division(dtype: type) -> None:
    top = np.iinfo(dtype).max
    values = np.arange(top + 1).astype(dtype).reshape(1, -1, 1).repeat(3, axis=2)
    region = PaddedPair(values, values, values.shape[:2]).region(0, 0, *values.shape[:2])
    np.testing.assert_array_equal(region[0, 0], np.arange(top + 1, dtype=np.float32) / np.float32(top))
