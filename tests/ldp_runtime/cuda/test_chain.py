"""The chain on the host device: the same code as on a GPU, against the CPU pipeline."""

import collections
import contextlib
import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import ldp_runtime.registry
from ldp_runtime.bundle.bundle import Bundle
from ldp_runtime.cuda.arrays import DeviceArray
from ldp_runtime.cuda.base import OutOfDeviceMemoryError
from ldp_runtime.cuda.frame import FrameRunner
from ldp_runtime.cuda.slot import Slot
from ldp_runtime.deblurrer import Deblurrer
from ldp_runtime.errors import BackendError, BundleError, ImageError, NumericsError
from ldp_runtime.result import Result
from tests.ldp_runtime.cuda import host_device
from tests.ldp_runtime.cuda.host_device import HostBackend, HostDevice, HostStream, on_device
from tests.ldp_runtime.helpers import a_pair, assert_same
from tests.ldp_runtime.tiny_bundle import Graph, clip_graph, deblur_graph, make_tiny_bundle, rewrite

SIZES = [(50, 100), (33, 65), (1, 1), (1, 40), (40, 1), (2, 3), (64, 64)]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch, bundle: Path) -> Callable[..., tuple[Deblurrer, HostDevice]]:
    """Makes a deblurrer on a host device; arguments are those of both."""

    def make(
        path: Path = bundle, *, precision: str = "fp32", deblur: Any = None, tile: int | str = "auto", **device: Any
    ) -> tuple[Deblurrer, HostDevice]:
        backend = HostBackend(HostDevice(**device), precision, deblur=deblur)
        backends = {**ldp_runtime.registry.BACKENDS, "host": backend}
        monkeypatch.setattr(ldp_runtime.registry, "BACKENDS", backends)
        return Deblurrer.from_bundle(path, backend="host", tile=tile), backend.device

    return make


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


@pytest.mark.parametrize("axis", ["horizontal", "vertical"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_chain_is_the_cpu_pipeline(use: Any, bundle: Path, dtype: type, axis: str) -> None:
    gpu, _ = use()
    cpu = on_cpu(bundle)
    for seed, size in enumerate(SIZES):
        pair = a_pair(*size, dtype, seed)
        result = gpu(*pair, axis=axis)
        assert (result.backend, result.precision, result.notes) == ("host", "fp32", ())
        assert_close(result, cpu(*pair, axis=axis))


def test_chain_runs_the_fp16_graphs(use: Any, bundle: Path) -> None:
    gpu, _ = use(precision="fp16")
    pair = a_pair(50, 100, np.uint16)
    result, expected = gpu(*pair), on_cpu(bundle, "fp16")(*pair)
    np.testing.assert_allclose(result.blur_logits, expected.blur_logits, atol=2e-6)
    assert np.abs(result.restored.astype(int) - expected.restored).max() <= 1


def test_blur_map_alone_opens_no_deblur_engine(use: Any, bundle: Path) -> None:
    gpu, device = use()
    pair = a_pair(50, 70)
    result, expected = gpu.blur_map(*pair, axis="vertical"), on_cpu(bundle).blur_map(*pair, axis="vertical")
    np.testing.assert_allclose(result.blur_map, expected.blur_map, atol=1e-6)
    np.testing.assert_allclose(result.blur_logits, expected.blur_logits, atol=2e-6)
    assert "deblur" not in device.log
    assert list(result.timings) == ["open", "upload", "prepare", "clip", "blur_logits", "finish", "download"]


def test_inputs_of_any_strides_and_byte_order(use: Any, bundle: Path) -> None:
    gpu, _ = use()
    left, right = a_pair(50, 40, np.uint16)
    expected = gpu(left, right)
    assert_same(gpu(left.astype(">u2"), np.asfortranarray(right)), expected)
    assert expected.restored.dtype == np.dtype(np.uint16)


def test_a_network_without_a_blur_map(use: Any, tmp_path: Path) -> None:
    path = make_tiny_bundle(tmp_path, clip=False)
    gpu, device = use(path)
    pair = a_pair(50, 100, np.uint16)
    result, expected = gpu(*pair, axis="vertical"), on_cpu(path)(*pair, axis="vertical")
    assert np.abs(result.restored.astype(int) - expected.restored).max() <= 1
    assert (result.blur_map, result.blur_logits) == (None, None)
    assert [name for name in device.log if name != "copy"] == ["prepare_u16_f16", "deblur", "finish_u16_turned"]
    with pytest.raises(BundleError, match="has no blur map: its network reads none"):
        gpu.blur_map(*pair)
    tiled, device = use(path, tile=256)
    pair = a_pair(100, 400)
    assert np.abs(tiled(*pair).restored.astype(int) - on_cpu(path)(*pair).restored).max() <= 1
    assert device.log.count("blend") == 4
    views = [Foreign(device, view) for view in pair]
    resident = tiled(*views)
    np.testing.assert_array_equal(resident.restored.numpy(), tiled(*pair).restored)
    assert resident.blur_map is None


@pytest.mark.parametrize(("ensemble", "canvas"), [("dp-aware", "stereo"), ("blur-aware", "center"), (5, "stereo")])
def test_clip_sees_what_the_prompts_query_alone(
    use: Any, tmp_path: Path, ensemble: str | int, canvas: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ldp_runtime.cuda.plan.clip_batch", lambda windows: 4)  # the last run repeats 3 of 9
    path = make_tiny_bundle(tmp_path, ensemble=ensemble)
    cpu = on_cpu(path)
    for tile in ("auto", 256):
        gpu, device = use(path, tile=tile)
        for pair in (a_pair(100, 150), a_pair(100, 400)):
            assert_close(gpu(*pair), cpu(*pair))
        assert ("blend" in device.log) == (tile == 256)
        (runner, _), *_ = gpu._chain._runners.values()
        assert list(runner.plan.clip_shapes) == [canvas]
        assert {"stereo", "center"} & {*runner._layout.offsets} == {canvas}
        assert f"{canvas}_features" in runner._layout.offsets


def test_more_windows_than_a_batch(use: Any, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldp_runtime.cuda.plan.clip_batch", lambda windows: 4)  # of 9: the last run repeats 3
    gpu, device = use()
    pair = a_pair(100, 150)
    assert_close(gpu(*pair), on_cpu(bundle)(*pair))
    assert device.log.count("clip") == 3


def test_stages_and_their_order(use: Any) -> None:
    gpu, device = use()
    result = gpu(*a_pair(50, 70))
    stages = ["prepare_u8_f32", "clip", "blur_logits_f32", "deblur", "blur_map", "finish_u8"]
    assert [name for name in device.log if name != "copy"] == stages
    assert device.log.count("copy") == 4  # the prompts, once; both views; the results
    timed = ["open", "upload", "prepare", "clip", "blur_logits", "deblur", "finish", "download"]
    assert list(result.timings) == timed
    assert all(seconds >= 0 for seconds in result.timings.values())


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_sequences_are_right_however_the_device_schedules(use: Any, bundle: Path, seed: int | None) -> None:
    gpu, device = use(seed=seed)
    pairs = [a_pair(*((33, 40) if i % 3 else (40, 33)), seed=i) for i in range(7)]
    cpu = on_cpu(bundle)
    results = list(gpu.map(iter(pairs)))
    assert len(results) == len(pairs)
    for result, pair in zip(results, pairs, strict=True):
        assert_close(result, cpu(*pair))
    assert "graph" in device.log


def test_staging_is_not_used_again_too_early(use: Any) -> None:
    gpu, device = use()  # nothing runs before it is waited for
    pairs = [a_pair(20, 24, seed=i) for i in range(4)]
    alone = [gpu(*pair) for pair in pairs]
    buffers = [np.empty_like(pairs[0][0]) for _ in range(2)]

    def reused() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for pair in pairs:
            for buffer, view in zip(buffers, pair, strict=True):
                buffer[:] = view
            yield buffers[0].copy(), buffers[1].copy()

    results = []
    for result in gpu.map(reused()):
        results.append(result)
        gpu(*a_pair(20, 24, seed=99))  # a call between: both pairs in flight keep their memory
    for result, expected in zip(results, alone, strict=True):
        assert_same(result, expected)
    assert device.log.count("capture") >= 2


@pytest.mark.parametrize("method", ["wait", "sync"])
def test_a_missing_wait_is_found(use: Any, bundle: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """The control of the tests above: without the waits between streams, or those of the host, numbers are wrong."""
    pair = a_pair(20, 24)
    expected = on_cpu(bundle)(*pair)
    if method == "wait":
        monkeypatch.setattr(HostStream, "wait", lambda self, event: None)
    else:
        monkeypatch.setattr(host_device.HostEvent, "sync", lambda self: None)
    gpu, _ = use()
    try:
        wrong = not np.array_equal(gpu(*pair).restored, expected.restored)
    except (AssertionError, NumericsError):  # poison read, or a time before its event
        wrong = True
    assert wrong


def test_pairs_overlap(use: Any) -> None:
    gpu, device = use()
    list(gpu.map(a_pair(20, 24, seed=i) for i in range(3)))
    uploads = [i for i, name in enumerate(device.log) if name == "copy"]
    assert len(uploads) == 10  # the prompts, three pairs of two views in, three images out
    taken: list[int] = []
    gpu, device = use()
    for _ in gpu.map(a_pair(20, 24, seed=i) for i in range(4)):
        taken.append(device.log.count("copy") // 3)  # pairs enqueued when a result is handed over
    assert taken == [2, 3, 4, 4]


def test_a_pair_of_another_size_is_started_while_one_is_in_flight(use: Any, bundle: Path) -> None:
    gpu, device = use(tile=256)  # nothing runs before it is waited for
    pairs = [a_pair(20, 24), a_pair(100, 400)]  # the second in tiles, whose weights go to the device
    first = gpu.start(*pairs[0])
    done = [stream.done for stream in device.streams.values()]
    second = gpu.start(*pairs[1])
    assert [stream.done for stream in device.streams.values()] == done
    for pending, pair in zip((first, second), pairs, strict=True):
        assert_close(pending.result(), on_cpu(bundle)(*pair))


@pytest.mark.parametrize("axis", ["horizontal", "vertical"])
def test_a_view_goes_to_pinned_memory_at_once_and_is_uploaded_while_the_other_is_staged(
    use: Any, monkeypatch: pytest.MonkeyPatch, axis: str
) -> None:
    gpu, device = use()
    expected = gpu(*a_pair(20, 24), axis=axis).restored
    views = [np.asfortranarray(view) for view in a_pair(20, 24)]  # no order that a copy by bytes could keep
    staged: list[tuple[int, bool]] = []
    copyto = np.copyto

    def note(target: np.ndarray, source: np.ndarray) -> None:
        pinned = any(np.shares_memory(target, slot.host_in.array) for slot in slots if slot.host_in is not None)
        staged.append((device.log.count("copy") - before, pinned and any(source is view for view in views)))
        copyto(target, source)

    ((runner, _),) = gpu._chain._runners.values()
    slots = list(runner._free)
    before = device.log.count("copy")
    monkeypatch.setattr(np, "copyto", note)
    np.testing.assert_array_equal(gpu(*views, axis=axis).restored, expected)
    assert staged[:2] == [(0, True), (1, True)]


def test_map_ends_with_the_error_of_its_source(use: Any) -> None:
    gpu, _ = use()

    def pairs() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        yield a_pair(8, 8)
        raise ImageError("this file is damaged")

    with pytest.raises(ImageError, match="this file is damaged"):
        list(gpu.map(pairs()))
    assert gpu(*a_pair(8, 8)).restored.shape == (8, 8, 3)


def test_map_that_is_left_early_leaves_nothing_behind(use: Any) -> None:
    gpu, device = use()
    for _ in gpu.map(a_pair(20, 24, seed=i) for i in range(5)):
        break
    before = device.used
    assert_same(gpu(*a_pair(20, 24)), gpu(*a_pair(20, 24)))
    assert device.used == before  # the two frames in flight gave their memory back to the chain


def test_the_second_frame_is_captured_and_replays_equal_it(use: Any, bundle: Path) -> None:
    gpu, device = use()
    pairs = [a_pair(33, 40, seed=i) for i in range(4)]
    results = []
    for pair in pairs:
        device.log.clear()
        results.append((gpu(*pair), list(device.log)))
    first, second, third = (log for _, log in results[:3])
    assert "capture" not in first
    assert "graph" not in first
    assert (second.count("capture"), second.count("graph")) == (1, 1)
    assert third == ["copy", "copy", "graph", "copy"]
    eager, plain = use(graphs=False)
    for (result, _), pair in zip(results, pairs, strict=True):
        assert_same(result, eager(*pair))
        assert all(seconds >= 0 for seconds in result.timings.values())
    assert "graph" not in plain.log


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_what_was_warmed_up_makes_nothing_anew(use: Any, dtype: type) -> None:
    gpu, device = use()
    gpu.warm_up([(20, 24), (24, 20)], dtype)
    used = device.used
    device.log.clear()
    for size in ((20, 24), (24, 20)):
        list(gpu.map(a_pair(*size, dtype, seed) for seed in range(4)))
    assert set(device.log) == {"copy", "graph"}
    assert (device.log.count("graph"), device.used) == (8, used)


def test_an_engine_that_cannot_be_captured(use: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_device.OrtContext, "capturable", lambda self, stream: False)
    gpu, device = use()
    pair = a_pair(20, 24)
    first = gpu(*pair)
    assert first.notes == ()
    for _ in range(2):
        again = gpu(*pair)
        assert_same(again, first)
        assert again.notes == (
            "pairs of this size run without a CUDA graph, which is slower: an engine cannot be captured",
        )
    assert "capture" not in device.log


@pytest.mark.parametrize("spoilt", [1, 2])
def test_a_capture_that_is_spoilt_is_tried_once_more(use: Any, spoilt: int) -> None:
    gpu, device = use()
    pair = a_pair(20, 24)
    first = gpu(*pair)
    device.spoilt = spoilt
    second, third = gpu(*pair), gpu(*pair)
    assert_same(second, first)
    assert_same(third, first)
    assert all(seconds >= 0 for seconds in third.timings.values())
    assert device.log.count("capture") == 2
    if spoilt == 1:
        assert (second.notes, third.notes, device.log.count("graph")) == ((), (), 2)
    else:
        assert second.notes == third.notes
        assert "without a CUDA graph, which is slower: the work cannot become a graph: another" in third.notes[0]
        assert "graph" not in device.log


@pytest.mark.parametrize("guarded", [True, False])
def test_nothing_is_collected_during_a_capture(use: Any, monkeypatch: pytest.MonkeyPatch, guarded: bool) -> None:
    gpu, device = use()
    pinned = [device.allocate_host(16)]
    enqueue = host_device.OrtContext.enqueue

    def littering(self: Any, stream: HostStream, *arguments: Any) -> None:
        if stream.captured is not None and pinned:
            loop: list[Any] = [pinned.pop()]
            loop.append(loop)
            del loop
            if gc.isenabled():  # what Python does by itself at some moment
                gc.collect()
        enqueue(self, stream, *arguments)

    monkeypatch.setattr(host_device.OrtContext, "enqueue", littering)
    if not guarded:  # the control
        monkeypatch.setattr("ldp_runtime.cuda.frame.collecting_nothing", contextlib.nullcontext)
    pair = a_pair(20, 24)
    results = [gpu(*pair) for _ in range(2)]
    assert_same(*results)
    assert results[1].notes == ()
    assert device.log.count("capture") == (1 if guarded else 2)


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("seed", [None, 1])
def test_a_pair_that_nobody_asks_for_is_done_before_its_memory_goes(
    use: Any, bundle: Path, seed: int | None, resident: bool
) -> None:
    gpu, device = use(seed=seed, pooled=True)
    pairs = [a_pair(20, 24, seed=i) for i in range(4)]
    for pair in pairs[:3]:
        pending = gpu.start(*(Foreign(device, view) if resident else view for view in pair))
        del pending
        assert not any(stream.ready() for stream in device.streams.values())
    assert_close(gpu(*pairs[3]), on_cpu(bundle)(*pairs[3]))
    pending = gpu.start(*pairs[0])
    used = device.used
    del gpu, pending
    gc.collect()
    assert device.used < used
    assert not any(stream.ready() for stream in device.streams.values())


def test_an_interrupted_wait_ends_before_its_memory_is_used_again(use: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, device = use(pooled=True)
    pair = a_pair(20, 24)
    expected = gpu(*pair)
    sync, calls = host_device.HostEvent.sync, []

    def interrupted(event: Any) -> None:
        calls.append(event)
        if len(calls) == 1:
            raise KeyboardInterrupt
        sync(event)

    pending = gpu.start(*a_pair(20, 24, seed=1))
    with monkeypatch.context() as patch:
        patch.setattr(host_device.HostEvent, "sync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pending.result()
    assert not any(stream.ready() for stream in device.streams.values())
    for _ in range(3):
        assert_same(gpu(*pair), expected)


@pytest.mark.parametrize("shared", [False, True])
def test_an_address_that_comes_again_brings_no_old_graph(
    use: Any, bundle: Path, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    """A slot goes with an error, and the pool gives its addresses to the next one: graphs have to go with it."""
    if shared:  # the control: graphs that outlive their slot
        graphs: Any = collections.OrderedDict()
        keep = Slot.__init__

        def with_shared_graphs(slot: Slot, *arguments: Any) -> None:
            keep(slot, *arguments)
            slot.graphs = graphs

        monkeypatch.setattr(Slot, "__init__", with_shared_graphs)
    gpu, device = use(pooled=True)
    pair = a_pair(20, 24)
    for _ in range(3):
        gpu(*pair)
    before = set(device.live)
    with monkeypatch.context() as patch:
        patch.setattr(FrameRunner, "_pending", lambda *_: (_ for _ in ()).throw(BackendError("the GPU is ill")))
        with pytest.raises(BackendError, match="the GPU is ill"):
            gpu(*pair)
    gc.collect()
    assert set(device.live) < before
    device.log.clear()
    try:
        result = gpu(*pair)
        stale = "graph" in device.log
        assert_close(result, on_cpu(bundle)(*pair))
    except (AssertionError, IndexError):
        stale = True
    assert set(device.live) == before, "the pool gave other addresses"
    assert stale is shared
    if not shared:
        results = [gpu(*pair) for _ in range(2)]
        assert [name for name in device.log if name in ("capture", "graph")] == ["capture", "graph", "graph"]
        assert list(results[1].timings) == list(result.timings)


def test_tiles_when_memory_is_short(use: Any, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldp_runtime.stages.tiles.TILE_BYTES", 1)  # as small as they can be
    pair = a_pair(200, 330, np.uint16)
    whole, device = use()
    expected = whole(*pair)
    gpu, small = use(limit=device.peak - 1)
    result = gpu(*pair)
    (note,) = result.notes
    assert "the test's host did not take larger pieces" in note
    assert "restored in 3 blended tiles of 256 x 224 px" in note
    assert small.peak < device.peak
    assert_close(result, expected)  # halos are wider than the tiny network sees
    for _ in range(2):  # from now on at once, and as a graph
        again = gpu(*pair)
        assert again.notes == (note,)
        assert_same(again, result)
    assert small.log[-2:] == ["graph", "copy"]
    assert_close(gpu(*pair, axis="vertical"), on_cpu(bundle)(*pair, axis="vertical"))


@pytest.mark.parametrize("axis", ["horizontal", "vertical"])
def test_rows_of_tiles_are_blended_as_one(use: Any, bundle: Path, axis: str) -> None:
    """Several rows that overlap by more and by less than half: what a row shares moves to the top of the next."""
    for h in (260, 300, 420, 700):
        gpu, _ = use(tile=256)
        pair = a_pair(*((h, 90) if axis == "horizontal" else (90, h)))
        result = gpu(*pair, axis=axis)
        assert result.tiles > 1
        assert_close(result, on_cpu(bundle)(*pair, axis=axis))


@pytest.mark.parametrize(("least", "most"), [((16, 16), (256, 256)), ((128, 256), (128, 256))])
def test_tiles_when_no_engine_takes_the_whole(use: Any, bundle: Path, least: Any, most: Any) -> None:
    gpu, device = use(deblur=[(least, most)])
    pair = a_pair(100, 300)
    result = gpu(*pair)
    assert "tiles of 256 x 128 px" in result.notes[0]
    assert_close(result, on_cpu(bundle)(*pair))
    assert device.log.count("blend") == 2


def test_tiles_that_are_asked_for(use: Any, bundle: Path) -> None:
    pair = a_pair(100, 400)
    gpu, device = use(tile=256)
    result = gpu(*pair)
    assert result.tiles == 4
    assert result.notes == ()  # nothing that the user did not ask for
    assert device.log.count("blend") == 4
    assert_close(result, on_cpu(bundle)(*pair))
    gpu, device = use(tile=512)
    assert gpu(*pair).tiles == 1
    assert "blend" not in device.log


@pytest.mark.parametrize(("tile", "sizes"), [("off", ((16, 16), (256, 256))), ("auto", ((512, 512), (512, 512)))])
def test_no_engine_for_the_size(use: Any, tile: str, sizes: Any) -> None:
    gpu, _ = use(tile=tile, deblur=[sizes])
    with pytest.raises(BackendError, match="no deblur engine takes"):
        gpu(*a_pair(100, 300))


def test_no_memory_at_all(use: Any) -> None:
    gpu, _ = use(limit=100_000)
    with pytest.raises(OutOfDeviceMemoryError, match="300 x 200 px does not fit into the memory of the test's host"):
        gpu(*a_pair(200, 300))


def test_another_chain_goes_when_memory_is_short(use: Any) -> None:
    gpu, device = use()
    gpu(*a_pair(64, 64))
    one = device.peak
    gpu, device = use(limit=one * 3 // 2)
    for size in ((64, 64), (64, 60), (60, 64)):
        assert gpu(*a_pair(*size)).notes == ()
    assert device.peak <= one * 3 // 2


def test_chains_of_other_sizes_are_let_go(use: Any) -> None:
    gpu, device = use()
    used = []
    for side in (40, 41, 42, 43, 44, 45):
        gpu(*a_pair(side, side))
        used.append(device.used)
    assert max(used[2:]) <= used[1] * 1.1


def test_nan_is_an_error_not_an_image(use: Any, tmp_path: Path) -> None:
    path = make_tiny_bundle(tmp_path)
    rng = np.random.default_rng(0)
    spoil(path / "deblur.onnx", deblur_graph(rng, np.dtype(np.float32)))
    rewrite(path)
    gpu, _ = use(path)
    for _ in range(3):  # in a graph too, and the chain goes on
        with pytest.raises(NumericsError, match="restored image, got NaN or Inf in"):
            gpu(*a_pair(20, 24))
    assert gpu.blur_map(*a_pair(20, 24)).blur_map.shape == (20, 24)
    spoil(path / "clip.onnx", clip_graph(rng, np.dtype(np.float32)))
    rewrite(path)
    gpu, _ = use(path)
    with pytest.raises(NumericsError, match="finite blur logits"):
        gpu(*a_pair(20, 24))


def test_an_error_of_one_pair_leaves_those_in_flight_alone(use: Any, bundle: Path, tmp_path: Path) -> None:
    gpu, _ = use()
    pair = a_pair(20, 24)
    started = gpu.start(*pair)
    with pytest.raises(ImageError, match="one size"):
        gpu.start(pair[0], pair[1][1:])
    assert_close(started.result(), on_cpu(bundle)(*pair))

    path = make_tiny_bundle(tmp_path)
    spoil(path / "deblur.onnx", deblur_graph(np.random.default_rng(0), np.dtype(np.float32)))
    rewrite(path)
    gpu, _ = use(path)
    for _ in range(3):
        both = [gpu.start(*a_pair(20, 24, seed=seed)) for seed in range(2)]
        for started in both:
            with pytest.raises(NumericsError):
                started.result()


def test_features_whose_squares_overflow_are_an_error_not_a_cosine_of_zero(use: Any, tmp_path: Path) -> None:
    path = make_tiny_bundle(tmp_path)
    model = clip_graph(np.random.default_rng(0), np.dtype(np.float32))
    for weight in model.graph.initializer:
        values = onnx.numpy_helper.to_array(weight) * np.float32(1e21)
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, path / "clip.onnx")
    rewrite(path)
    gpu, _ = use(path)
    for action in (gpu, gpu.blur_map):
        with pytest.raises(NumericsError, match="finite blur logits, got NaN or Inf in"):
            action(*a_pair(20, 24))


def spoil(path: Path, model: onnx.ModelProto) -> None:
    """Writes a graph whose weights hold one NaN."""
    weight = next(w for w in model.graph.initializer if len(w.dims) == 4)
    values = onnx.numpy_helper.to_array(weight).copy()
    values.flat[3] = np.nan
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, path)


def test_an_engine_of_another_pipeline(use: Any, tmp_path: Path) -> None:
    path = make_tiny_bundle(tmp_path)
    g = Graph(np.dtype(np.float32))
    g.node("Slice", "pair", *(g.constant(np.array([at])) for at in (0, 2, 1)), output="restored")
    g.node("Identity", "blur_logits", output="rest")
    model = g.model(
        {"pair": [1, 6, "H", "W"], "blur_logits": [1, 1, "h", "w"]},
        {"restored": [1, 2, "H", "W"]},
        onnx.TensorProto.FLOAT,
    )
    onnx.save(model, path / "deblur.onnx")
    rewrite(path)
    gpu, _ = use(path)
    with pytest.raises(BundleError, match=r"expected restored \(1, 3, 32, 32\) of its engine, got \(1, 2, 32, 32\)"):
        gpu(*a_pair(20, 24))


def test_auto_goes_on_when_the_gpu_cannot(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = HostBackend(HostDevice(), deblur=[((512, 512), (512, 512))])
    backend.name = "cuda"
    monkeypatch.setattr(ldp_runtime.registry, "BACKENDS", {**ldp_runtime.registry.BACKENDS, "cuda": backend})
    deblurrer = Deblurrer.from_bundle(bundle)
    assert deblurrer.reason.startswith("cuda in fp32: the fastest on an NVIDIA GPU")
    result = deblurrer(*a_pair(20, 24))
    assert result.backend in ("openvino", "onnxruntime")
    assert "cuda was passed over: no deblur engine takes" in deblurrer.reason


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
    with pytest.raises(ImageError, match="choose the backend cuda for it"):
        on_cpu(bundle)(Foreign(device, left), Foreign(device, right))


def test_the_chain_says_when_a_network_is_global(use: Any, tmp_path: Path) -> None:
    path = make_tiny_bundle(tmp_path)
    rewrite(path, network={"sca_cell": None})
    gpu, _ = use(path, deblur=[((16, 16), (256, 256))])
    assert "differ from the whole" in gpu(*a_pair(100, 300)).notes[1]
    assert Bundle.load(path).manifest.network == {"sca_cell": None}
