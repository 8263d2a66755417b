"""One block of a method in a process of its own, so that its peak memory is its own too.

``benchmarks.figure1.bench`` runs this module by ``run_spec``. ``benchmarks.latency.worker`` takes the times, from both
views in memory to the restored image in memory. Ours is the whole chain, CLIP and blur map included. A published
network has the runtime's padding and rounding. EBDB and DMENet's deconvolution run in NumPy, whatever the backend.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness.processes import answer_spec
from benchmarks.harness.results import BenchmarkError
from benchmarks.latency.worker import (
    ONNXRUNTIME_ON_GPU,
    Opened,
    Spec,
    Timing,
    measure,
    open_model,
    open_spec,
    torch_device,
)
from ldp_export.network.published import PUBLISHED

Views = NDArray[Any]
Network = Callable[[Views], Views]
Chain = Callable[[Views, Views], Views]


@dataclass(frozen=True)
class MethodSpec:
    """A method to time.

    Attributes:
        timing: How; the backend may be "torch", the precision is that of the graph or of torch's weights.
        kind: See ``Contender``.
        name: Its name.
        path: Its exported graph, or the folder of its bundle; unused by torch but for bundles.
    """

    timing: Timing
    kind: str
    name: str
    path: str


def restore(chain: Chain, left: Views, right: Views) -> Views:
    """Restores a pair, with the runtime's own rounding.

    Args:
        chain: Both views ``(h, w, 3)`` float32 in [0, 1] to the restored image of that shape.
        left: ``(h, w, 3)`` uint8 or uint16.
        right: The other view.

    Returns:
        ``(h, w, 3)`` in the dtype of the views.
    """
    top = np.float32(np.iinfo(left.dtype).max)
    restored = chain(left.astype(np.float32) / top, right.astype(np.float32) / top)
    image: Views = np.clip(np.rint(restored * top), 0, top).astype(left.dtype)
    return image


def network_chain(network: Network, multiple: int) -> Chain:
    """The chain of a network ``(1, 6, H, W)`` to ``(1, 3, H, W)``, with the runtime's own padding to a multiple."""
    from ldp_runtime.stages.geometry import Padding, pad_reflect

    def chain(left: Views, right: Views) -> Views:
        h, w = left.shape[:2]
        planes = np.concatenate([left, right], axis=2).transpose(2, 0, 1)
        restored: Views = network(pad_reflect(planes, Padding(multiple).padded_size(h, w))[None])[0, :, :h, :w]
        return restored.transpose(1, 2, 0)

    return chain


def open_method(spec: MethodSpec) -> Opened:
    """Loads a method.

    Raises:
        LDPError: The backend does not work, or there is not enough memory.
    """
    if spec.kind == "bundle":
        return open_spec(Spec(spec.timing, spec.path, None))
    if spec.kind == "config":
        from benchmarks.harness.bundles import CLIP_ARCHITECTURE
        from ldp_export.model import random_model

        return open_model(random_model(spec.name, CLIP_ARCHITECTURE), spec.timing)
    if spec.kind == "classical":
        from benchmarks.classical.chains import restore_ebdb

        return _opened(restore_ebdb, "NumPy, SciPy and OpenCV, CPU", gpu=False, lazy=False)
    in_torch = spec.timing.backend == "torch"
    network, device, gpu = _open_torch(spec) if in_torch else _open_graph(spec)
    chain = network_chain(network, PUBLISHED[spec.name].multiple)
    if spec.name == "dmenet":
        from benchmarks.classical.chains import restore_dmenet

        chain = partial(restore_dmenet, chain)
    return _opened(chain, device, gpu=gpu, lazy=not in_torch)


def _opened(chain: Chain, device: str, *, gpu: bool, lazy: bool) -> Opened:
    def run(left: Views, right: Views) -> tuple[Views, Mapping[str, float]]:
        return restore(chain, left, right), {}

    return Opened(run, device, gpu, events=False, lazy=lazy)


def _open_torch(spec: MethodSpec) -> tuple[Network, str, bool]:
    import torch

    from ldp_export.evaluation.reference import DTYPES

    where, description = torch_device(spec.timing.threads)
    module = PUBLISHED[spec.name].build().eval().to(where, DTYPES[spec.timing.precision])

    def network(pair: Views) -> Views:
        if where == "cpu":
            check_memory(module.config.memory, module.config.works_at or pair.shape[2:])
        with torch.inference_mode():
            restored: Views = module(torch.from_numpy(pair).to(where)).cpu().numpy()
        return restored

    return network, description, where == "cuda"


def check_memory(bytes_per_pixel: int, size: tuple[int, ...]) -> None:
    """Refuses what would not fit: a process that the system kills for memory may not be the only one.

    Raises:
        BenchmarkError: It needs more than is free.
    """
    from ldp_runtime.stages.tiles import free_memory

    needed, free = bytes_per_pixel * size[0] * size[1], free_memory()
    if needed > free:
        raise BenchmarkError(
            f"expected {needed / 2**30:.1f} GiB of free memory at {size[0]}x{size[1]} px, got {free / 2**30:.1f}; "
            "choose a smaller --shape"
        )


def _open_graph(spec: MethodSpec) -> tuple[Network, str, bool]:
    from ldp_runtime.registry import SESSION_BACKENDS

    timing = spec.timing
    backend = SESSION_BACKENDS[timing.backend]
    backend.available()
    session = backend.open(Path(spec.path), timing.precision, timing.threads)

    def network(pair: Views) -> Views:
        return session.run({"pair": pair})["restored"]

    return network, backend.describe(), timing.backend in ONNXRUNTIME_ON_GPU


def answer(fields: dict[str, Any]) -> dict[str, Any]:
    """Measures a ``MethodSpec``; returns the fields of a ``Block``."""
    spec = MethodSpec(**{**fields, "timing": Timing(**fields["timing"])})
    return asdict(measure(spec.timing, lambda: open_method(spec)))


if __name__ == "__main__":
    answer_spec(answer)
