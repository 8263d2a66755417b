"""A chain's counterpart on the CPU, closeness of results, and another library's arrays on the host device."""

from pathlib import Path
from typing import Any

import numpy as np

from ldp_runtime.deblurrer import Deblurrer
from ldp_runtime.result import Result
from tests.ldp_runtime.cuda.host_device import HostDevice, on_device


def on_cpu(bundle: Path, precision: str = "fp32") -> Deblurrer:
    return Deblurrer.from_bundle(bundle, backend="onnxruntime", precision=precision, threads=1)


def assert_close(got: Result, expected: Result, levels: int = 1, share: float = 0.01) -> None:
    """Equal to within rounding: a level apart at most, and that seldom; the map to within FP32 rounding."""
    assert (got.restored.shape, got.restored.dtype) == (expected.restored.shape, expected.restored.dtype)
    apart = np.abs(got.restored.astype(int) - expected.restored)
    assert apart.max() <= levels, f"{apart.max()} levels at {np.unravel_index(apart.argmax(), apart.shape)}"
    assert np.count_nonzero(apart) <= max(2, share * apart.size)
    np.testing.assert_allclose(got.blur_map, expected.blur_map, rtol=0, atol=1e-6)
    np.testing.assert_allclose(got.blur_logits, expected.blur_logits, rtol=0, atol=2e-6)


class Foreign:
    """Another library's array in the device's memory."""

    def __init__(self, device: HostDevice, array: np.ndarray, **interface: Any) -> None:
        self._memory = device.allocate(array.nbytes, device.streams[1], device.streams[1])
        self.array = on_device(self._memory, array.shape, array.dtype)
        self.array[:] = array
        self._interface = interface

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {**self.array.__array_interface__, "version": 3, **self._interface}
