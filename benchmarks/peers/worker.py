"""One measurement of a peer in a process of its own, so that peak memory is honest.

``benchmarks.peers.bench`` starts it as ``python -m benchmarks.peers.worker SPEC RESULT``, both JSON files. The result
is a ``latency_worker.Block``, as for ours: a run goes from both views in memory to the restored image in memory.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from benchmarks.latency.worker import Block

Views = NDArray[Any]


@dataclass(frozen=True)
class PeerSpec:
    """What to measure.

    Attributes:
        peer: A name of ``PEERS``.
        backend: "torch", or a name of ``ldp_runtime.registry.SESSION_BACKENDS``.
        precision: Precision of the graph, or of torch's weights.
        graph: The peer's exported graph for a backend; unused by torch.
        left: File of the left view.
        right: File of the right view.
        threads: CPU threads, or None for the backend's own choice.
        seconds: Runs are counted for at least so long.
        most: At most so many runs are counted.
        spawned: ``time.time()`` when the process was asked for.
    """

    peer: str
    backend: str
    precision: str
    graph: str
    left: str
    right: str
    threads: int | None
    seconds: float
    most: int
    spawned: float


def measure(spec: PeerSpec) -> Block:
    """Measures one peer in this process.

    Raises:
        LDPError: The backend or the images do not work.
    """
    from benchmarks.harness.machine import gpu_memory_used, peak_memory
    from benchmarks.latency.worker import FIRST_COUNTS, ONNXRUNTIME_ON_GPU, Block
    from benchmarks.peers import PEERS
    from ldp_runtime.images.photo import read_photo

    begin = time.perf_counter()
    left, right = (read_photo(path).pixels for path in (spec.left, spec.right))
    files = {"read": time.perf_counter() - begin}
    imported = time.time()
    network, device, gpu = _open_torch(spec) if spec.backend == "torch" else _open_backend(spec)
    gpu = gpu or spec.backend in ONNXRUNTIME_ON_GPU
    multiple = PEERS[spec.peer].multiple
    loaded = time.time()
    restore(network, left, right, multiple)
    first = time.time()
    counts = spec.backend == "torch" and not gpu and first - loaded >= FIRST_COUNTS
    seconds: list[float] = [first - loaded] if counts else []
    gc.collect()
    while len(seconds) < spec.most and (not seconds or sum(seconds) < spec.seconds):
        begin = time.perf_counter()
        restore(network, left, right, multiple)
        seconds.append(time.perf_counter() - begin)
    start_up = {"process": imported - spec.spawned, "load": loaded - imported, "first": first - loaded}
    used = gpu_memory_used() if gpu else None
    return Block(seconds, {}, files, start_up, peak_memory(), used, device, gpu=gpu, events=False)


def restore(network: Callable[[Views], Views], left: Views, right: Views, multiple: int) -> Views:
    """Restores a pair with a peer, with the runtime's own padding and rounding.

    Args:
        network: ``(1, 6, H, W)`` float32 in [0, 1] to ``(1, 3, H, W)`` float32.
        left: ``(h, w, 3)`` uint8 or uint16.
        right: The other view.
        multiple: H and W are multiples of this many px.

    Returns:
        ``(h, w, 3)`` in the dtype of the views.
    """
    from ldp_runtime.stages.geometry import Padding, pad_reflect

    h, w = left.shape[:2]
    top = np.float32(np.iinfo(left.dtype).max)
    planes = np.concatenate([left, right], axis=2).transpose(2, 0, 1).astype(np.float32) / top
    restored = network(pad_reflect(planes, Padding(multiple).padded_size(h, w))[None])[0, :, :h, :w]
    image: Views = np.clip(np.rint(restored * top), 0, top).transpose(1, 2, 0).astype(left.dtype)
    return image


def main(argv: list[str]) -> None:
    """Reads a ``PeerSpec``, writes a ``Block``; a user's error becomes ``{"error": text}``."""
    from benchmarks.harness.results import write_text
    from ldp_runtime.errors import LDPError

    spec = PeerSpec(**json.loads(Path(argv[0]).read_text()))
    try:
        result: dict[str, Any] = asdict(measure(spec))
    except LDPError as error:
        result = {"error": str(error)}
    except MemoryError:
        result = {"error": "out of memory"}
    write_text(Path(argv[1]), json.dumps(result))


def _open_torch(spec: PeerSpec) -> tuple[Callable[[Views], Views], str, bool]:
    import torch

    from benchmarks.peers import PEERS
    from benchmarks.torch_chain import DTYPES, device

    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    where = device()
    module = PEERS[spec.peer].build().eval().to(where, DTYPES[spec.precision])

    def network(pair: Views) -> Views:
        with torch.inference_mode():
            restored: Views = module(torch.from_numpy(pair).to(where, DTYPES[spec.precision])).float().cpu().numpy()
        return restored

    name = torch.cuda.get_device_name() if where == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return network, f"torch {torch.__version__}, {name}", where == "cuda"


def _open_backend(spec: PeerSpec) -> tuple[Callable[[Views], Views], str, bool]:
    from ldp_runtime.registry import SESSION_BACKENDS

    backend = SESSION_BACKENDS[spec.backend]
    backend.available()
    session = backend.open(Path(spec.graph), spec.precision, spec.threads)
    blank = np.zeros((1, 1, 1, 1), np.float32)  # the graph has the form of ours; a peer takes no blur map

    def network(pair: Views) -> Views:
        return session.run({"pair": pair, "blur_logits": blank})["restored"]

    return network, backend.describe(), False


if __name__ == "__main__":
    main(sys.argv[1:])
