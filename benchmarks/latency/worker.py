"""One block of latency: a process of its own opens one backend, warms up and times runs.

A process of its own makes start-up and peak memory honest, and leaves no thread spinning while another is timed.
``benchmarks.latency.bench`` starts it as ``python -m benchmarks.latency.worker SPEC RESULT``, both JSON files.
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ldp_runtime.bundle.bundle import Bundle

ONNXRUNTIME_ON_GPU = ("onnxruntime-cuda", "onnxruntime-tensorrt")
"""They run the graphs alone on the GPU: their stages are times of the host, copies included."""

GPU_WARM_UP_RUNS = 4
"""On a GPU the first run specialises kernels and the second captures a graph, however long they take."""

FIRST_COUNTS = 4.0
"""On a CPU torch's first run is counted if it takes so many seconds: it opens no graph, and what else warms up is small
beside it. That halves the time of a block where a run takes half a minute."""

COPIES = ("upload", "download")
"""Stages that move data between host and device."""


@dataclass(frozen=True)
class Spec:
    """What to measure.

    Attributes:
        bundle: Folder of the bundle.
        backend: A name of ``ldp_runtime.registry.BACKENDS`` or of ``torch_chain.LAYOUTS``.
        precision: Precision of the graphs.
        left: File of the left view.
        right: File of the right view.
        threads: CPU threads, or None for the backend's own choice.
        checkpoint: Folder of the checkpoint for torch, or None to look for it.
        warm_up: Seconds that runs which are not counted take together at least, the first among them.
        seconds: Runs are counted for at least so long.
        most: At most so many runs are counted.
        restored: Where to keep the restored image as .npy, or None.
        spawned: ``time.time()`` when the process was asked for.
    """

    bundle: str
    backend: str
    precision: str
    left: str
    right: str
    threads: int | None
    checkpoint: str | None
    warm_up: float
    seconds: float
    most: int
    restored: str | None
    spawned: float


@dataclass(frozen=True)
class Block:
    """What a process measured.

    Attributes:
        seconds: Wall time of each counted run, from views in memory to the restored image in memory.
        stages: For each stage its seconds in each counted run.
        files: Seconds of ``read`` (both views) and ``write`` (the restored image), once.
        start_up: Seconds of ``process`` (start and imports), ``load`` (bundle or weights), ``first`` (graphs opened,
            first image).
        host_bytes: Peak resident memory of the process.
        device_bytes: Memory in use on the GPU after the runs, by everything; None without a GPU.
        device: What the backend says that it ran on.
        gpu: The graphs ran on a GPU.
        events: The stages are times of the GPU, taken with CUDA events.
    """

    seconds: list[float]
    stages: dict[str, list[float]]
    files: dict[str, float]
    start_up: dict[str, float]
    host_bytes: int
    device_bytes: int | None
    device: str
    gpu: bool
    events: bool


Run = Callable[["NDArray[Any]", "NDArray[Any]"], tuple["NDArray[np.generic]", Mapping[str, float]]]


@dataclass(frozen=True)
class _Opened:
    """What restores a pair and times its stages; what that runs on, as for ``Block``; if the first run opens it."""

    run: Run
    device: str
    gpu: bool
    events: bool
    lazy: bool = True


def measure(spec: Spec) -> Block:
    """Measures one block in this process.

    Raises:
        LDPError: The bundle, the backend or the images do not work.
    """
    from dataclasses import replace

    from benchmarks.harness.machine import gpu_memory_used, peak_memory
    from ldp_runtime.files import write_files
    from ldp_runtime.images.photo import encode_photo, read_photo

    begin = time.perf_counter()
    left, right = read_photo(spec.left), read_photo(spec.right)
    files = {"read": time.perf_counter() - begin}
    imported = time.time()
    opened = _open(spec)
    run = opened.run
    loaded = time.time()
    restored, timings = run(left.pixels, right.pixels)
    first = time.time()
    start_up = {
        "process": imported - spec.spawned - files["read"],
        "load": loaded - imported,
        "first": first - loaded,
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "restored.png"
        begin = time.perf_counter()
        write_files({path: encode_photo(path, replace(left, pixels=restored))})
        files["write"] = time.perf_counter() - begin
    if spec.restored is not None:
        _keep(Path(spec.restored), restored)

    seconds: list[float] = []
    stages: dict[str, list[float]] = {}
    if not opened.lazy and not opened.gpu and start_up["first"] >= FIRST_COUNTS:
        seconds = [start_up["first"]]
        stages = {stage: [value] for stage, value in timings.items()}
    warm, runs = sum(timings.values()), 1
    while warm < spec.warm_up or (opened.gpu and runs < GPU_WARM_UP_RUNS):
        _, timings = run(left.pixels, right.pixels)
        warm, runs = warm + sum(timings.values()), runs + 1
    gc.collect()
    while len(seconds) < spec.most and (not seconds or sum(seconds) < spec.seconds):
        begin = time.perf_counter()
        _, timings = run(left.pixels, right.pixels)
        seconds.append(time.perf_counter() - begin)
        for stage, value in timings.items():
            stages.setdefault(stage, []).append(value)
    used = gpu_memory_used() if opened.gpu else None
    return Block(
        seconds, stages, files, start_up, peak_memory(), used, opened.device, gpu=opened.gpu, events=opened.events
    )


def main(argv: list[str]) -> None:
    """Reads a ``Spec``, writes a ``Block``; a user's error becomes ``{"error": text}``."""
    from benchmarks.harness.results import write_text
    from ldp_runtime.errors import LDPError

    spec = Spec(**json.loads(Path(argv[0]).read_text()))
    try:
        result: dict[str, Any] = asdict(measure(spec))
    except LDPError as error:
        result = {"error": str(error)}
    except MemoryError:
        result = {"error": "out of memory"}
    write_text(Path(argv[1]), json.dumps(result))


def _open(spec: Spec) -> _Opened:
    from ldp_runtime.bundle.bundle import Bundle

    bundle = Bundle.load(spec.bundle)
    if spec.backend.startswith("torch"):
        return _open_torch(spec, bundle)
    from ldp_runtime.chain import ChainBackend
    from ldp_runtime.deblurrer import Deblurrer
    from ldp_runtime.registry import BACKENDS

    backend = BACKENDS[spec.backend]
    on_engines = isinstance(backend, ChainBackend)
    deblurrer = Deblurrer(bundle, backend=spec.backend, precision=spec.precision, threads=spec.threads)

    def run(left: NDArray[Any], right: NDArray[Any]) -> tuple[NDArray[np.generic], Mapping[str, float]]:
        result = deblurrer(left, right)
        return result.restored, {stage: value for stage, value in result.timings.items() if stage != "open"}

    return _Opened(run, backend.describe(), on_engines or spec.backend in ONNXRUNTIME_ON_GPU, on_engines)


def _open_torch(spec: Spec, bundle: Bundle) -> _Opened:
    import torch

    from benchmarks import torch_chain
    from benchmarks.harness.bundles import reference_model
    from benchmarks.harness.machine import reset_peak_memory

    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    device = torch_chain.device()
    model = reference_model(bundle, None if spec.checkpoint is None else Path(spec.checkpoint))
    chain = torch_chain.TorchChain(bundle, model, spec.backend, spec.precision, device)
    del model
    gc.collect()
    reset_peak_memory()  # the text encoder was loaded too, and the chain has copies of the rest

    def run(left: NDArray[Any], right: NDArray[Any]) -> tuple[NDArray[np.generic], Mapping[str, float]]:
        result = chain(left, right)
        return result.restored, result.timings

    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return _Opened(run, f"torch {torch.__version__}, {name}", device == "cuda", device == "cuda", lazy=False)


def _keep(path: Path, image: NDArray[np.generic]) -> None:
    import numpy as np

    np.save(path, image)


if __name__ == "__main__":
    main(sys.argv[1:])
