import numpy as np

from ldp_runtime.tensors import TensorSpec


def test_tensor_spec_fits() -> None:
    spec = TensorSpec("x", ("B", 3, "W"), np.dtype(np.float32))
    assert spec.fits(np.zeros((5, 3, 7), np.float32))
    assert not spec.fits(np.zeros((5, 4, 7), np.float32))
    assert not spec.fits(np.zeros((5, 3), np.float32))
    assert not spec.fits(np.zeros((5, 3, 7), ">f4"))
    assert str(spec) == "x (B, 3, W) float32"
