"""The steps of ``make gpu-check``: each runs a part of LDP on a device, and gives figures."""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.harness import ROOT
from ldp_runtime.bundle.bundle import Bundle
from ldp_runtime.cuda.base import Device
from ldp_runtime.cuda.chain import CudaChain
from ldp_runtime.deblurrer import Deblurrer
from ldp_runtime.errors import BackendError
from ldp_runtime.images.quality import psnr
from ldp_runtime.registry import BACKENDS
from ldp_runtime.result import Result
from tests.gpu import bandwidth as kernels_bandwidth
from tests.gpu.engines import copy_with_engines
from tests.gpu.mirror import Mirror
from tests.gpu.pairs import a_pair
from tests.gpu.stand_ins import Computed, Copied, deblurrer_on

LEAST_DB = 60.0
"""Of the chain over the same FP16 graphs, against the chain of the CPU; only rounding in their inputs differs."""

LEAST_FP16_DB = 50.0
"""Of FP16 arithmetic on the device against the FP16 graphs on the CPU."""

KERNEL_TESTS = ("tests/ldp_runtime/cuda/test_preparation.py", "tests/ldp_runtime/cuda/test_launches.py")
ENGINE_TESTS = ("tests/gpu/test_gpu.py",)


class SkippedError(Exception):
    """A step cannot run here; the message names what is missing."""


@dataclass(frozen=True)
class Setting:
    """What the steps run on.

    Attributes:
        device: The device.
        bundle: The bundle.
        folder: For files of the steps.
        dry: The device is the host: pairs are small, and times mean nothing.
    """

    device: Device
    bundle: Bundle
    folder: Path
    dry: bool

    @property
    def size(self) -> tuple[int, int]:
        """``(h, w)`` of pairs that are timed, in px."""
        return (96, 160) if self.dry else (1120, 1680)

    @property
    def parts(self) -> Path | None:
        """Where the two parts of the deblur graph go; None without the package that cuts it, and it stays whole."""
        return self.folder if importlib.util.find_spec("onnx") is not None else None

    @property
    def engines(self) -> str:
        """What the engines stand for, for the result."""
        return "clip, deblur" if self.parts is None else "clip, head beside it, deblur"

    @property
    def repeats(self) -> int:
        """How often a pair is timed."""
        return 3 if self.dry else 30


class _Watch:
    """A pytest plugin that sends launches to a device, and counts outcomes."""

    def __init__(self, mirror: Mirror | None = None) -> None:
        self._mirror = mirror
        self.counts = {"passed": 0, "failed": 0, "skipped": 0}
        self.reasons: list[str] = []

    @pytest.fixture(autouse=True)
    def _on_device(self, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
        # Addresses past 2^31 elements lie in a sparse map of the host: that test stays there.
        if self._mirror is not None and "past_32_bits" not in request.node.name:
            monkeypatch.setattr(request.module, "launch", self._mirror)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.counts[report.outcome] += 1
        if report.outcome != "passed":
            self.reasons.append(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.nodeid)

    def verdict(self) -> dict[str, Any]:
        """The counts.

        Raises:
            SkippedError: Nothing ran.
            AssertionError: A test failed.
        """
        reasons = "; ".join(dict.fromkeys(reason.removeprefix("Skipped: ") for reason in self.reasons))
        assert not self.counts["failed"], f"{self.counts['failed']} tests failed: {reasons}"
        if not self.counts["passed"]:
            raise SkippedError(reasons or "no test was found")
        return {**self.counts, **({"why_skipped": reasons} if reasons else {})}


def kernels(setting: Setting) -> dict[str, Any]:
    """Every kernel in every test of the host, its launches sent to the device: bit for bit its NumPy twin."""
    mirror = Mirror(setting.device)
    watch = _Watch(mirror)
    _test(KERNEL_TESTS, watch, "-k", "not sanitizer")
    return watch.verdict() | {"launches": mirror.launches}


def _test(files: Sequence[str], watch: _Watch, *options: str) -> None:
    paths = [str(ROOT / file) for file in files]
    pytest.main(["-q", "--tb=short", "-p", "no:cacheprovider", *paths, *options], [watch])


def chain(setting: Setting) -> dict[str, Any]:
    """The whole chain over ONNX Runtime on the host, against the CPU: streams, events, pinned copies."""
    gpu = deblurrer_on(setting.device, setting.bundle, Computed, setting.parts)
    cpu = Deblurrer(setting.bundle, backend="onnxruntime", precision="fp16")
    worst, pairs = np.inf, 0
    for size in ((1, 1), (33, 65)) if setting.dry else ((1, 1), (33, 65), (333, 517)):
        for dtype in (np.uint8, np.uint16):
            for axis in ("horizontal", "vertical"):
                pair = a_pair(*size, dtype)
                got, wanted = gpu(*pair, axis=axis), cpu(*pair, axis=axis)
                top = float(np.iinfo(dtype).max)
                worst = min(worst, psnr(got.restored, wanted.restored, data_range=top))
                apart = float(np.abs(got.blur_map - wanted.blur_map).max())
                assert apart < 1e-3, f"blur maps of {size} px, {np.dtype(dtype)}, {axis}, differ by {apart:.2g}"
                pairs += 1
    assert worst > LEAST_DB, f"expected more than {LEAST_DB:g} dB, got {worst:.1f}"
    return {"pairs": pairs, "least_psnr_db": round(float(min(worst, 200.0)), 1), "engines": setting.engines}


def graphs(setting: Setting) -> dict[str, Any]:
    """Captured frames against frames that run as they are, alone and two in flight, and what a pair takes.

    The first capture fails in CLIP, while the head beside it is captured: nothing of it may be left.
    """
    gpu = deblurrer_on(setting.device, setting.bundle, Copied, setting.parts)
    pairs = [a_pair(*((96, 160) if setting.dry else (333, 517)), np.uint16, seed) for seed in range(6)]
    replayed = [gpu(*pairs[0])]
    assert isinstance(gpu._chain, CudaChain)
    ((runner, _),) = gpu._chain._runners.values()
    failed = _fails_once(runner._stages.engines.clip)
    replayed += [gpu(*pair) for pair in pairs[1:]]
    assert failed == [True], "no frame was captured"
    assert all(result.notes == () for result in replayed), replayed[-1].notes
    assert sum(len(slot.graphs) for slot in runner._free) == 1, f"not captured: {replayed[-1].notes}"
    in_flight = list(gpu.map(iter(pairs)))
    runner._capturable = False
    for slot in runner._free:
        slot.graphs.clear()
    for pair, *results in zip(pairs, replayed, in_flight, strict=True):
        eager = gpu(*pair)
        for result in (eager, *results):
            np.testing.assert_array_equal(result.restored, pair[0])  # the stand-in's image is the left view
            np.testing.assert_array_equal(result.blur_map, eager.blur_map)
            assert all(seconds >= 0 for seconds in result.timings.values()), result.timings
    assert len({result.blur_map.tobytes() for result in replayed}) == len(pairs)
    return _timed(gpu, setting) | {"engines": setting.engines}


def _fails_once(context: Any) -> list[bool]:
    """Makes the next run of an engine fail; the list is filled when it has."""
    enqueue = context.enqueue
    failed: list[bool] = []

    def failing(*arguments: Any) -> None:
        context.enqueue = enqueue
        failed.append(True)
        raise BackendError("this run was to fail")

    context.enqueue = failing
    return failed


def arrays(setting: Setting) -> dict[str, Any]:
    """Arrays of torch and CuPy in and out, torch's still being written when the call begins."""
    if setting.dry:
        raise SkippedError("the host has no arrays on a device")
    gpu = deblurrer_on(setting.device, setting.bundle, Copied)
    pair, shared = a_pair(256, 384), []
    try:
        import torch
    except ImportError:
        torch = None
    if torch is not None and torch.cuda.is_available():
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda._sleep(200_000_000)  # cycles: what does not wait reads what was not yet written
            views = [torch.from_numpy(view).pin_memory().cuda(non_blocking=True) for view in pair]
            result = gpu(*views)
        restored = torch.from_dlpack(result.restored)
        assert restored.data_ptr() == result.restored.address
        np.testing.assert_array_equal(restored.cpu().numpy(), pair[0])
        shared.append(f"torch {torch.__version__}")
    try:
        import cupy
    except ImportError:
        cupy = None
    if cupy is not None:
        result = gpu(*(cupy.asarray(view) for view in pair))
        np.testing.assert_array_equal(cupy.asarray(result.restored).get(), pair[0])
        shared.append(f"cupy {cupy.__version__}")
    if not shared:
        raise SkippedError("neither torch with CUDA nor cupy is installed")
    return {"with": ", ".join(shared)}


def bandwidth(setting: Setting) -> dict[str, Any]:
    """What each kernel moves a second, beside a copy on the device."""
    sizes = [setting.size] if setting.dry else [setting.size, (2240, 3360)]
    repeats, copied = (2, 2**16) if setting.dry else (200, 2**29)
    return kernels_bandwidth.measure(setting.device, setting.bundle.manifest, sizes, repeats, copied)


def onnxruntime(setting: Setting) -> dict[str, Any]:
    """ONNX Runtime's CUDA provider against its CPU provider, in FP16."""
    return _against_cpu(setting, "onnxruntime-cuda", setting.bundle)


def engines(setting: Setting) -> dict[str, Any]:
    """The tests over TensorRT's engines, built here: numerics, graphs, stages, tiles, memory, arrays."""
    if setting.dry:
        raise SkippedError("the host runs no engines")
    watch = _Watch()
    _test(ENGINE_TESTS, watch)
    return watch.verdict()


def latency(setting: Setting) -> dict[str, Any]:
    """The bundle over TensorRT-RTX's engines at the size that is timed: CLIP beside the head, and all on one stream."""
    if setting.dry:
        raise SkippedError("the host runs no engines")
    figures = {}
    for name, whole in (("two streams", False), ("one stream", True)):
        try:
            BACKENDS["tensorrt-rtx"].available()
            size = f"{setting.size[0]}x{setting.size[1]}"
            path = copy_with_engines("tensorrt-rtx", setting.device, setting.folder / name, size, whole=whole)
        except BackendError as error:
            raise SkippedError(str(error)) from error
        figures[name] = _against_cpu(setting, "tensorrt-rtx", Bundle.load(path))
    return figures


def _against_cpu(setting: Setting, backend: str, bundle: Bundle) -> dict[str, Any]:
    if setting.dry:
        raise SkippedError("the host is no GPU")
    try:
        BACKENDS[backend].available()
    except BackendError as error:
        raise SkippedError(str(error)) from error
    gpu = Deblurrer(bundle, backend=backend, precision="fp16")
    pair = a_pair(*setting.size)
    expected = Deblurrer(bundle, backend="onnxruntime", precision="fp16")(*pair)
    decibel = psnr(gpu(*pair).restored, expected.restored, data_range=255.0)
    assert decibel > LEAST_FP16_DB, f"expected more than {LEAST_FP16_DB:g} dB, got {decibel:.1f}"
    return {"psnr_db": round(float(decibel), 1)} | _timed(gpu, setting)


def _timed(gpu: Deblurrer, setting: Setting) -> dict[str, Any]:
    """Median milliseconds of a pair, on the wall and by stage, once nothing is made anew."""
    gpu.warm_up([setting.size])
    pair, walls, results = a_pair(*setting.size), [], []
    for _ in range(setting.repeats):
        start = time.perf_counter()
        results.append(gpu(*pair))
        walls.append(time.perf_counter() - start)
    size = f"{setting.size[0]}x{setting.size[1]}"
    return {"size": size, "wall_ms": _milliseconds(walls), "stages_ms": _stages(results)}


def _stages(results: list[Result]) -> dict[str, float]:
    stages = [stage for stage in results[0].timings if stage != "open"]
    return {stage: _milliseconds(result.timings[stage] for result in results) for stage in stages}


def _milliseconds(seconds: Iterable[float]) -> float:
    return round(1e3 * statistics.median(seconds), 3)


STEPS: dict[str, Callable[[Setting], dict[str, Any]]] = {
    step.__name__: step for step in (kernels, chain, graphs, arrays, bandwidth, onnxruntime, engines, latency)
}
