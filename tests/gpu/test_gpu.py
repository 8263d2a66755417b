"""On a GPU: numerics against ONNX Runtime, graphs against eager, stages' times, memory. Not yet run on a GPU."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ldp_runtime.cuda import launches, preparation
from ldp_runtime.cuda.arrays import DeviceArray
from ldp_runtime.cuda.chain import CudaChain
from ldp_runtime.cuda.device import CudaDevice
from ldp_runtime.cuda.launch import Pixels
from ldp_runtime.deblurrer import Deblurrer
from ldp_runtime.images.quality import psnr
from tests.gpu.pairs import a_pair

pytestmark = pytest.mark.gpu


@pytest.fixture
def gpu(backend: str, bundle: Path) -> Deblurrer:
    return Deblurrer.from_bundle(bundle, backend=backend)


def chain_of(deblurrer: Deblurrer) -> CudaChain:
    assert isinstance(deblurrer._chain, CudaChain)
    return deblurrer._chain


def test_prepare_and_finish_are_the_numpy_twins(device: CudaDevice) -> None:
    from tests.ldp_runtime.whole import prepare, to_image

    left, right = a_pair(37, 53, np.uint16)
    size, padded = (37, 53), (64, 64)
    stream = device.stream()
    views, memory = [], []
    for view in (left, right):
        view_memory, staged = device.allocate(view.nbytes, stream, stream), device.allocate_host(view.nbytes)
        staged.array[: view.nbytes] = view.reshape(-1).view(np.uint8)
        stream.copy(view_memory.address, staged.address, view.nbytes)
        memory += [view_memory, staged]
        views.append(Pixels(view_memory.address, 3 * size[1]))
    pair, image, bad = (device.allocate(size, stream, stream) for size in (6 * 64 * 64 * 4, left.nbytes, 4))
    stream.zero(bad.address, 4)
    region = preparation.PairRegion(pair.address, (0, 0), padded)
    stream.launch(preparation.prepare(*views, left.dtype, size, padded, pair=region))
    finish = launches.finish(pair.address, padded, Pixels(image.address, 3 * size[1]), left.dtype, size, bad.address)
    stream.launch(finish)
    stream.sync()
    expected = prepare(left, right, padded)
    np.testing.assert_array_equal(fetch(device, pair.address, (1, 6, *padded), np.float32), expected)
    np.testing.assert_array_equal(
        fetch(device, image.address, left.shape, np.uint16), to_image(expected[0, :3], left, "horizontal")
    )
    assert fetch(device, bad.address, (1,), np.int32)[0] == 0


def fetch(device: CudaDevice, address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    host, stream = device.allocate_host(size), device.stream()
    stream.copy(host.address, address, size)
    stream.sync()
    return host.array[:size].view(dtype).reshape(shape).copy()


@pytest.mark.parametrize("axis", ["horizontal", "vertical"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("size", [(512, 768), (333, 517), (1, 1)])
def test_numerics_against_onnx_runtime(
    gpu: Deblurrer, bundle: Path, size: tuple[int, int], dtype: type, axis: str
) -> None:
    pair = a_pair(*size, dtype)
    expected = Deblurrer.from_bundle(bundle, backend="onnxruntime", precision="fp32")(*pair, axis=axis)
    result = gpu(*pair, axis=axis)
    top = float(np.iinfo(dtype).max)
    assert np.abs(result.blur_map - expected.blur_map).max() < 0.02
    assert psnr(result.restored, expected.restored, data_range=top) > 55


def test_a_graph_is_what_runs_without_one(gpu: Deblurrer) -> None:
    pairs = [a_pair(333, 517, np.uint16, seed) for seed in range(5)]
    results = [gpu(*pair) for pair in pairs]  # the first runs, the second is captured, the others are replays
    (runner, _), *_ = chain_of(gpu)._runners.values()
    (slot,) = runner._free
    assert len(slot.graphs) == 1, "the frame was not captured"
    slot.graphs.clear()
    runner._capturable = False
    for result, pair in zip(results, pairs, strict=True):
        again = gpu(*pair)
        np.testing.assert_array_equal(result.restored, again.restored)
        np.testing.assert_array_equal(result.blur_map, again.blur_map)


def test_every_stage_is_timed(gpu: Deblurrer) -> None:
    stages = ["open", "upload", "prepare", "clip", "blur_logits", "deblur", "finish", "download"]
    for _ in range(4):  # graphs too
        timings = gpu(*a_pair(512, 768)).timings
        assert list(timings) == stages
        assert all(timings[stage] > 0 for stage in stages[1:])


def test_a_sequence_is_its_pairs(gpu: Deblurrer) -> None:
    pairs = [a_pair(*((256, 384) if seed % 3 else (300, 200)), seed=seed) for seed in range(8)]
    alone = [gpu(*pair).restored for pair in pairs]
    for result, expected in zip(gpu.map(iter(pairs)), alone, strict=True):
        np.testing.assert_array_equal(result.restored, expected)


def test_tiles_are_close_to_the_whole(gpu: Deblurrer, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = a_pair(1000, 1500)
    whole = gpu(*pair)
    assert whole.notes == ()
    chain = chain_of(gpu)
    chain._runners.clear()
    chain._tilings_found.clear()
    tilings = chain._tilings
    monkeypatch.setattr(chain, "_tilings", lambda form: list(tilings(form))[-2:])
    tiled = gpu(*pair)
    assert "blended tiles" in tiled.notes[0]
    assert psnr(tiled.restored, whole.restored, data_range=255.0) > 45


def test_memory_stays_where_it_is(gpu: Deblurrer, device: CudaDevice) -> None:
    pool = device._device.memory_resource
    if not hasattr(pool, "attributes"):
        pytest.skip("this GPU has no memory pools")
    pair = a_pair(512, 768)
    for _ in range(3):
        gpu(*pair)
    used = pool.attributes.used_mem_current
    for _ in range(10):
        gpu(*pair)
    assert pool.attributes.used_mem_current == used
    (runner, _), *_ = chain_of(gpu)._runners.values()
    planned = runner._stages.layout.size + runner.plan.inputs().size + runner.plan.outputs().size
    assert used >= planned


def test_arrays_of_other_libraries(gpu: Deblurrer) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch has no CUDA")
    pair = a_pair(256, 384)
    expected = gpu(*pair)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):  # pending on a stream of torch's when the call begins
        views = [torch.from_numpy(view).pin_memory().cuda(non_blocking=True) for view in pair]
        result = gpu(*views)
    assert isinstance(result.restored, DeviceArray)
    restored = torch.from_dlpack(result.restored)
    assert restored.data_ptr() == result.restored.address
    np.testing.assert_array_equal(restored.cpu().numpy(), expected.restored)
    cupy = pytest.importorskip("cupy")
    result = gpu(*(cupy.asarray(view) for view in pair))
    np.testing.assert_array_equal(cupy.asarray(result.restored).get(), expected.restored)
