from __future__ import annotations

import numpy as np

from benchmarks.check import measure
from ldp_runtime import Deblurrer
from ldp_runtime.bundle.bundle import Bundle


def test_both_are_timed(bundle: Bundle) -> None:
    deblurrer = Deblurrer(bundle, backend="onnxruntime", precision="fp32", threads=1)
    (row,) = measure(deblurrer, [(48, 64)], 1)
    assert row.shape == (48, 64)
    assert 0 < row.share < np.inf
