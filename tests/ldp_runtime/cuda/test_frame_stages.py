"""The deblur graph in two parts: its head on a stream beside CLIP, or tile by tile in front of the rest."""

from pathlib import Path
from typing import Any

import pytest

from ldp_runtime.cuda.base import OutOfDeviceMemoryError
from ldp_runtime.errors import BackendError, NumericsError
from tests.ldp_runtime.cuda.chains import assert_close, on_cpu
from tests.ldp_runtime.cuda.host_device import HostStream, OrtContext
from tests.ldp_runtime.helpers import a_pair


def test_the_head_is_enqueued_beside_clip(use: Any, bundle: Path, tmp_path: Path) -> None:
    gpu, device = use(precision="fp16", cut=tmp_path)
    pair = a_pair(50, 70)
    result = gpu(*pair)
    stages = ["prepare_u8_f16", "head", "clip", "blur_logits_f16", "deblur", "blur_map", "finish_u8"]
    assert [name for name in device.log if name != "copy"] == stages
    assert list(result.timings) == [
        *("open", "upload", "prepare", "clip", "blur_logits", "deblur", "finish", "download")
    ]
    assert_close(result, on_cpu(bundle, "fp16")(*pair))


@pytest.mark.parametrize("seed", [None, 1, 2, 3, 4, 5])
def test_both_streams_give_the_same_however_the_device_schedules(use: Any, tmp_path: Path, seed: int | None) -> None:
    """As they are, captured, and as graphs; the next pair is in flight, and its buffers are the same."""
    pairs = [a_pair(40, 90, seed=i) for i in range(6)]
    whole, _ = use(precision="fp16")
    gpu, device = use(precision="fp16", cut=tmp_path, seed=seed)
    for result, pair in zip(gpu.map(iter(pairs)), pairs, strict=True):
        assert_close(result, whole(*pair))  # which rounds no map in between
        assert result.notes == ()
    assert "graph" in device.log


@pytest.mark.parametrize("axis", ["horizontal", "vertical"])
def test_tiles_run_the_head_in_front_of_the_rest(use: Any, tmp_path: Path, axis: str) -> None:
    pair = a_pair(*((100, 400) if axis == "horizontal" else (400, 100)))
    gpu, device = use(precision="fp16", cut=tmp_path, tile=256)
    whole, _ = use(precision="fp16", tile=256)
    for _ in range(3):  # the last one as a graph
        result = gpu(*pair, axis=axis)
        assert result.tiles > 1
        assert_close(result, whole(*pair, axis=axis))
    assert device.log[-2:] == ["graph", "copy"]
    assert device.log.count("head") == device.log.count("deblur") == 2 * result.tiles


def test_the_blur_map_alone_needs_no_head(use: Any, tmp_path: Path) -> None:
    gpu, device = use(precision="fp16", cut=tmp_path)
    assert gpu.blur_map(*a_pair(50, 70)).blur_map.shape == (50, 70)
    assert not {"head", "deblur"} & {*device.log}


@pytest.mark.parametrize("error", [BackendError("the GPU refused a copy"), KeyboardInterrupt()])
def test_an_error_between_fork_and_join_is_what_is_told(
    use: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """That the capture cannot be ended well, since the head is not joined, is no news; Ctrl-C must get through."""
    gpu, device = use(precision="fp16", cut=tmp_path)
    pair = a_pair(40, 90)
    first = gpu(*pair)
    enqueue = OrtContext.enqueue
    failing = True

    def some(context: Any, stream: HostStream, *arguments: Any) -> None:
        if failing and stream.captured is not None and context._engine.name == "clip":
            raise error
        enqueue(context, stream, *arguments)

    monkeypatch.setattr(OrtContext, "enqueue", some)
    if isinstance(error, KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt):
            gpu(*pair)
        assert device.log.count("capture") == 1
        failing = False
        gpu(*pair)  # on a new slot
        assert gpu(*pair).notes == ()
        assert device.log[-2:] == ["graph", "copy"]
    else:
        note = "pairs of this size run without a CUDA graph, which is slower: the GPU refused a copy"
        assert gpu(*pair).notes == (note,)
    assert_close(gpu(*pair), first)


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_memory_that_runs_out_while_the_head_is_at_work(
    use: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int | None
) -> None:
    """What the head writes to is given back once it is done, and the pair is tried again."""
    enqueue = OrtContext.enqueue
    left = [True, True]

    def some(context: Any, stream: HostStream, *arguments: Any) -> None:
        if left and context._engine.name == "clip":
            left.pop()
            raise OutOfDeviceMemoryError("10 bytes of GPU memory cannot be had")
        enqueue(context, stream, *arguments)

    pair = a_pair(40, 90)
    expected = use(precision="fp16")[0](*pair)
    monkeypatch.setattr(OrtContext, "enqueue", some)
    gpu, device = use(precision="fp16", cut=tmp_path, seed=seed)
    for _ in range(3):
        assert_close(gpu(*pair), expected)
    assert (left, device.log[-2:]) == ([], ["graph", "copy"])


@pytest.mark.parametrize("missing", ["beside", "compute"])
def test_a_missing_join_is_found(use: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    """The control of the tests above: where a stream does not wait for the other, numbers are wrong, or no graph is."""
    join = HostStream.join

    def some(stream: HostStream, other: HostStream) -> None:
        streams = gpu._chain._streams
        if stream is not getattr(streams, missing):
            join(stream, other)

    pair = a_pair(40, 90)
    whole, _ = use(precision="fp16")
    expected = whole(*pair)
    monkeypatch.setattr(HostStream, "join", some)
    wrong = False
    for seed in (None, 1, 2, 3):
        gpu, _ = use(precision="fp16", cut=tmp_path, seed=seed)
        for _ in range(3):
            try:
                result = gpu(*pair)
                assert_close(result, expected)
                wrong |= bool(result.notes)  # no graph
            except (AssertionError, NumericsError):  # poison read
                wrong = True
    assert wrong


def test_what_the_head_writes_meets_nothing_of_clip(use: Any, tmp_path: Path) -> None:
    gpu, _ = use(precision="fp16", cut=tmp_path)
    gpu(*a_pair(40, 90))
    ((runner, _),) = gpu._chain._runners.values()
    stages = runner._stages
    ((name, size),) = stages.engines.maps.items()
    assert size == 2 * 12 * 32 * 48  # FP16, 12 channels at half of 64 x 96 px
    offsets = stages.layout.offsets
    assert {name, "head_scratch"} < {*offsets}
    for beside in ("stereo", "center", "stereo_features", "center_features", "clip_scratch"):
        assert offsets[beside] not in (offsets[name], offsets["head_scratch"], offsets["pair"])
