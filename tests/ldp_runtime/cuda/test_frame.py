"""Frames on the host device: order of the stages, streams, pairs in flight, captures."""

import collections
import contextlib
import gc
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ldp_runtime.cuda.frame import FrameRunner
from ldp_runtime.cuda.slot import Slot
from ldp_runtime.errors import BackendError, NumericsError
from tests.ldp_runtime.cuda import host_device
from tests.ldp_runtime.cuda.chains import Foreign, assert_close, on_cpu
from tests.ldp_runtime.cuda.host_device import HostStream
from tests.ldp_runtime.helpers import a_pair, assert_same


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


@pytest.mark.parametrize("locked", [False, True])
def test_nobody_waits_for_the_device_with_the_lock(use: Any, monkeypatch: pytest.MonkeyPatch, locked: bool) -> None:
    gpu, _ = use()
    gpu(*a_pair(20, 24))
    lock, free = gpu._chain._lock, []

    def try_lock() -> None:
        free.append(lock.acquire(blocking=False))
        if free[-1]:
            lock.release()

    def watched(sync: Any) -> Any:
        def run(waiting: Any) -> None:
            other = threading.Thread(target=try_lock)
            other.start()
            other.join()
            sync(waiting)

        return run

    for kind in (host_device.HostEvent, HostStream):
        monkeypatch.setattr(kind, "sync", watched(kind.sync))
    with lock if locked else contextlib.nullcontext():  # the control
        for _ in range(3):
            gpu(*a_pair(20, 24))
        for side in (30, 40, 50):  # more sizes than are kept ready
            gpu(*a_pair(side, side))
        gpu.start(*a_pair(20, 24)).cancel()
    assert len(free) >= 7
    assert set(free) == {not locked}


def test_a_third_size_is_started_while_pairs_are_in_flight(use: Any, bundle: Path) -> None:
    gpu, device = use(pooled=True)  # nothing runs before it is waited for
    pairs = [a_pair(20, 24), a_pair(30, 40), a_pair(50, 60), a_pair(70, 80)]
    pending = [gpu.start(*pair) for pair in pairs]
    assert all(stream.done == 0 for stream in device.streams.values())
    for each, pair in zip(pending, pairs, strict=True):
        assert_close(each.result(), on_cpu(bundle)(*pair))


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
