"""Device arrays in and out of the chain on the host device."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ldp_runtime.cuda.arrays import DeviceArray
from ldp_runtime.errors import ImageError
from ldp_runtime.result import Result
from tests.ldp_runtime.cuda.chains import Foreign, assert_close, on_cpu
from tests.ldp_runtime.cuda.host_device import on_device
from tests.ldp_runtime.helpers import a_pair


class ForeignDlpack:
    def __init__(self, foreign: Foreign) -> None:
        self._foreign = foreign
        self.streams: list[int] = []

    def __dlpack__(self, stream: int) -> object:
        self.streams.append(stream)
        return self._foreign.array.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0


@pytest.mark.parametrize("axis", ["horizontal", "vertical"])
def test_device_arrays_in_and_out(use: Any, bundle: Path, axis: str) -> None:
    gpu, device = use()
    pair = a_pair(33, 40, np.uint16)
    expected = on_cpu(bundle)(*pair, axis=axis)
    gpu(*(Foreign(device, view) for view in pair), axis=axis)  # makes the chain
    device.log.clear()
    result = gpu(*(Foreign(device, view) for view in pair), axis=axis)
    assert isinstance(result.restored, DeviceArray)
    assert device.log.count("copy") == 1  # counts and logits alone come back
    assert device.log[:2] == ["wait for 1"] * 2  # nobody named a stream: the default stream may be at work
    host = Result(
        restored=result.restored.numpy(),
        blur_map=result.blur_map.numpy(),
        blur_logits=result.blur_logits,
        timings={},
        backend="",
        precision="",
    )
    assert_close(host, expected)
    assert "upload" not in result.timings


def test_device_arrays_by_dlpack(use: Any, bundle: Path) -> None:
    gpu, device = use()
    pair = a_pair(20, 24)
    foreign = [ForeignDlpack(Foreign(device, view)) for view in pair]
    result = gpu(*foreign)
    np.testing.assert_array_equal(result.restored.numpy(), on_cpu(bundle)(*pair).restored)
    assert foreign[0].streams == foreign[1].streams
    assert foreign[0].streams[0] in device.streams  # the producer is told which stream will read
    assert result.restored.__dlpack_device__() == (2, 0)


def test_arrays_of_a_dtype_that_numpy_lacks_are_refused(use: Any) -> None:
    gpu, device = use()

    class Quarter(ForeignDlpack):
        def __dlpack__(self, stream: int) -> object:
            return np.dtype("float8")

    foreign = [Quarter(Foreign(device, view)) for view in a_pair(20, 24)]
    with pytest.raises(ImageError, match=r"DLPack can share, got Quarter \(data type 'float8' not understood\)"):
        gpu(*foreign)


def test_device_arrays_wait_for_the_stream_that_they_name(use: Any, bundle: Path) -> None:
    gpu, device = use()
    left, right = a_pair(20, 24)
    producer = device.stream()
    foreign = [Foreign(device, np.zeros_like(view), stream=producer.handle) for view in (left, right)]
    for target, source in zip(foreign, (left, right), strict=True):  # still pending when the frame is enqueued
        staged = device.allocate_host(source.nbytes)
        on_device(staged, source.shape, source.dtype)[:] = source
        producer.copy(target.array.ctypes.data, staged.address, source.nbytes)
        target.staged = staged  # type: ignore[attr-defined]
    np.testing.assert_array_equal(gpu(*foreign).restored.numpy(), on_cpu(bundle)(left, right).restored)


def test_device_arrays_with_strides(use: Any, bundle: Path) -> None:
    gpu, device = use()
    wide = [np.concatenate([view, view[..., :1]], axis=2) for view in a_pair(20, 24)]  # RGBA
    padded = [Foreign(device, view) for view in wide]
    for foreign in padded:
        foreign.array = foreign.array[:, 3:, :3]  # a crop, without alpha
        foreign._interface = {"strides": foreign.array.strides}
    expected = on_cpu(bundle)(*(view[:, 3:, :3] for view in wide))
    np.testing.assert_array_equal(gpu(*padded).restored.numpy(), expected.restored)


def test_results_on_the_device_stay_what_they_are(use: Any) -> None:
    gpu, device = use(seed=5)
    pairs = [a_pair(20, 24, seed=i) for i in range(3)]
    results = [gpu(*(Foreign(device, view) for view in pair)) for pair in pairs]
    for result, pair in zip(results, pairs, strict=True):
        np.testing.assert_array_equal(result.restored.numpy(), gpu(*pair).restored)
    interface = results[0].restored.__cuda_array_interface__
    assert (interface["shape"], interface["typestr"], interface["stream"]) == ((20, 24, 3), "|u1", None)


def test_device_arrays_that_do_not_fit(use: Any, bundle: Path) -> None:
    gpu, device = use()
    left, right = a_pair(20, 24)
    with pytest.raises(ImageError, match="both views on the host or both on the device"):
        gpu(Foreign(device, left), right)
    planar = Foreign(device, np.ascontiguousarray(left.transpose(2, 0, 1)))
    planar.array = planar.array.transpose(1, 2, 0)
    planar._interface = {"strides": planar.array.strides}
    with pytest.raises(ImageError, match="channels side by side"):
        gpu(planar, planar)
    swapped = Foreign(device, left.astype(">u2"))
    with pytest.raises(ImageError, match="in the machine's byte order, got >u2; convert it first"):
        gpu(swapped, swapped)
    with pytest.raises(ImageError, match="choose the backend cuda for it"):
        on_cpu(bundle)(Foreign(device, left), Foreign(device, right))
