"""One block of timed runs: a process of its own opens one backend, warms up and times runs.

In a process of its own start-up and peak memory are honest, and no thread spins while something else is timed.
``benchmarks.latency.bench`` runs this module by ``run_spec``; ``benchmarks.figure1.worker`` shares what it measures by.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness.processes import answer_spec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ldp_export.model import ExportModel

ONNXRUNTIME_ON_GPU = ("onnxruntime-cuda", "onnxruntime-tensorrt")
"""They run the graphs alone on the GPU: their stages are times of the host, copies included."""

GPU_WARM_UP_RUNS = 4
"""On a GPU the first run specialises kernels and the second captures a graph, however long they take."""

FIRST_COUNTS = 8.0
"""Processor seconds of torch's first run on a CPU from which it is counted: it opens no graph, and what else warms up
is small beside it. That halves the time of a block where a run takes long. Wall time would count the cold runs of a
busy machine."""

COPIES = ("upload", "download")
"""Stages that move data between host and device."""


@dataclass(frozen=True)
class Timing:
    """How to time something.

    Attributes:
        backend: A name of ``ldp_runtime.registry.BACKENDS`` or of torch's layouts.
        precision: Precision of the graphs.
        left: File of the left view.
        right: File of the right view.
        threads: CPU threads, or None for the backend's own choice.
        seconds: Runs are counted for at least so long.
        most: The most runs that are counted.
        spawned: ``time.time()`` at the start of the process.
        warm_up: Least seconds of the runs before, the first among them, which are not counted.
        restored: Where to keep the restored image as .npy, or None.
    """

    backend: str
    precision: str
    left: str
    right: str
    threads: int | None
    seconds: float
    most: int
    spawned: float
    warm_up: float = 0.0
    restored: str | None = None


@dataclass(frozen=True)
class Spec:
    """A bundle to time.

    Attributes:
        timing: How.
        bundle: Folder of the bundle.
        checkpoint: Folder of the checkpoint for torch, or None to look for it.
    """

    timing: Timing
    bundle: str
    checkpoint: str | None


@dataclass(frozen=True)
class Block:
    """The result of a process.

    Attributes:
        seconds: Wall time of each counted run, from views in memory to the restored image in memory.
        stages: For each stage its seconds in each counted run.
        files: Seconds of ``read`` (both views) and ``write`` (the restored image), once.
        start_up: Seconds of ``process`` (start and imports), ``load`` (bundle or weights), ``first`` (graphs opened,
            first image).
        host_bytes: Peak resident memory of the process.
        device_bytes: Memory in use on the GPU after the runs, by every process; None without a GPU.
        device: The backend's description of its device.
        gpu: The graphs ran on a GPU.
        events: The stages are times of the GPU, from CUDA events.
        cpu_seconds: Processor time of each counted run, of all threads.
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
    cpu_seconds: list[float] = field(default_factory=list)


Run = Callable[["NDArray[Any]", "NDArray[Any]"], tuple["NDArray[np.generic]", Mapping[str, float]]]


@dataclass(frozen=True)
class Opened:
    """A network that is ready to run.

    Attributes:
        run: Restores a pair and times its stages.
        device: See ``Block``.
        gpu: See ``Block``.
        events: See ``Block``.
        lazy: The first run opens graphs.
    """

    run: Run
    device: str
    gpu: bool
    events: bool
    lazy: bool = True


def measure(timing: Timing, open_network: Callable[[], Opened]) -> Block:
    """Measures one block in this process.

    Args:
        timing: How.
        open_network: Loads the network.

    Raises:
        LDPError: The bundle, the backend or the images do not work.
    """
    import numpy as np

    from benchmarks.harness.machine import gpu_memory_used, peak_memory
    from ldp_runtime.files import write_files
    from ldp_runtime.images.photo import encode_photo, read_photo

    begin = time.perf_counter()
    left, right = read_photo(timing.left), read_photo(timing.right)
    files = {"read": time.perf_counter() - begin}
    imported = time.time()
    opened = open_network()
    run = opened.run
    loaded, busy = time.time(), time.process_time()
    restored, timings = run(left.pixels, right.pixels)
    first, busy = time.time(), time.process_time() - busy
    start_up = {
        "process": imported - timing.spawned - files["read"],
        "load": loaded - imported,
        "first": first - loaded,
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "restored.png"
        begin = time.perf_counter()
        write_files({path: encode_photo(path, replace(left, pixels=restored))})
        files["write"] = time.perf_counter() - begin
    if timing.restored is not None:
        np.save(timing.restored, restored)

    seconds: list[float] = []
    cpu_seconds: list[float] = []
    stages: dict[str, list[float]] = {}
    if not opened.lazy and not opened.gpu and busy >= FIRST_COUNTS:
        seconds, cpu_seconds = [start_up["first"]], [busy]
        stages = {stage: [value] for stage, value in timings.items()}
    warm, runs = sum(timings.values()), 1
    while warm < timing.warm_up or (opened.gpu and runs < GPU_WARM_UP_RUNS):
        _, timings = run(left.pixels, right.pixels)
        warm, runs = warm + sum(timings.values()), runs + 1
    gc.collect()
    while len(seconds) < timing.most and (not seconds or sum(seconds) < timing.seconds):
        begin, busy = time.perf_counter(), time.process_time()
        _, timings = run(left.pixels, right.pixels)
        seconds.append(time.perf_counter() - begin)
        cpu_seconds.append(time.process_time() - busy)
        for stage, value in timings.items():
            stages.setdefault(stage, []).append(value)
    used = gpu_memory_used() if opened.gpu else None
    return Block(
        *(seconds, stages, files, start_up, peak_memory(), used, opened.device),
        gpu=opened.gpu,
        events=opened.events,
        cpu_seconds=cpu_seconds,
    )


def torch_device(threads: int | None) -> tuple[str, str]:
    """Where torch runs, "cuda" or "cpu", and a description of it.

    Args:
        threads: CPU threads that it gets; None is its own choice.
    """
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    on_gpu = torch.cuda.is_available()
    name = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    return "cuda" if on_gpu else "cpu", f"torch {torch.__version__}, {name}"


def open_spec(spec: Spec) -> Opened:
    """Loads a bundle, or its checkpoint in torch.

    Raises:
        LDPError: The bundle, its checkpoint or the backend does not work.
    """
    if spec.timing.backend.startswith("torch"):
        return _open_torch(spec)
    from ldp_runtime.bundle.bundle import Bundle
    from ldp_runtime.chain import ChainBackend
    from ldp_runtime.deblurrer import Deblurrer
    from ldp_runtime.registry import BACKENDS

    timing = spec.timing
    backend = BACKENDS[timing.backend]
    on_engines = isinstance(backend, ChainBackend)
    bundle = Bundle.load(spec.bundle)
    deblurrer = Deblurrer(bundle, backend=timing.backend, precision=timing.precision, threads=timing.threads)

    def run(left: NDArray[Any], right: NDArray[Any]) -> tuple[NDArray[np.generic], Mapping[str, float]]:
        result = deblurrer(left, right)
        return result.restored, {stage: value for stage, value in result.timings.items() if stage != "open"}

    return Opened(run, backend.describe(), on_engines or timing.backend in ONNXRUNTIME_ON_GPU, on_engines)


def _open_torch(spec: Spec) -> Opened:
    from benchmarks.harness.bundles import reference_model
    from ldp_runtime.bundle.bundle import Bundle

    checkpoint = None if spec.checkpoint is None else Path(spec.checkpoint)
    return open_model(reference_model(Bundle.load(spec.bundle), checkpoint), spec.timing)


def open_model(model: ExportModel, timing: Timing) -> Opened:
    """The whole chain in torch, in the layout and precision of ``timing``; copies the modules."""
    from benchmarks.harness.machine import reset_peak_memory
    from ldp_export.evaluation.reference import TorchDeblurrer

    device, description = torch_device(timing.threads)
    deblurrer = TorchDeblurrer(model, layout=timing.backend, precision=timing.precision, device=device)
    del model
    gc.collect()
    reset_peak_memory()  # the text encoder was loaded too, and the deblurrer has copies of the rest

    def run(left: NDArray[Any], right: NDArray[Any]) -> tuple[NDArray[np.generic], Mapping[str, float]]:
        result = deblurrer(left, right)
        return result.restored, result.timings

    return Opened(run, description, device == "cuda", device == "cuda", lazy=False)


def answer(fields: dict[str, Any]) -> dict[str, Any]:
    """Measures a ``Spec``; returns the fields of a ``Block``."""
    spec = Spec(**{**fields, "timing": Timing(**fields["timing"])})
    return asdict(measure(spec.timing, lambda: open_spec(spec)))


if __name__ == "__main__":
    answer_spec(answer)
