"""Pairs in every memory layout give the image of plain arrays; everything else gives our error."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from ldp_runtime.deblurrer import Deblurrer
from ldp_runtime.errors import ImageError
from tests.fuzz.strategies import Pair, pairs, wrong_pairs
from tests.ldp_runtime.tiny_bundle import make_tiny_bundle


@pytest.fixture(scope="module")
def deblurrer(tmp_path_factory: pytest.TempPathFactory) -> Deblurrer:
    bundle = make_tiny_bundle(tmp_path_factory.mktemp("bundles"))
    return Deblurrer.from_bundle(bundle, backend="onnxruntime", precision="fp32", threads=1)


@settings(max_examples=60, deadline=None)
@given(pair=pairs())
def test_the_layout_of_memory_does_not_matter(deblurrer: Deblurrer, pair: Pair) -> None:
    result = deblurrer(pair.left, pair.right, axis=pair.axis)
    plain = deblurrer(*pair.plain, axis=pair.axis)
    assert result.restored.shape == pair.plain[0].shape
    assert result.restored.dtype == pair.plain[0].dtype
    assert result.restored.flags.writeable
    np.testing.assert_array_equal(result.restored, plain.restored)
    np.testing.assert_array_equal(result.blur_map, plain.blur_map)
    for odd, view in zip((pair.left, pair.right), pair.plain, strict=True):
        np.testing.assert_array_equal(odd, view)  # inputs are left as they are


@settings(max_examples=100, deadline=None)
@given(pair=wrong_pairs())
def test_what_is_no_pair_is_refused_in_one_line(deblurrer: Deblurrer, pair: tuple[Any, Any]) -> None:
    with pytest.raises(ImageError) as caught:
        deblurrer(*pair)
    assert "\n" not in str(caught.value)
