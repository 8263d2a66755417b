"""One block of a peer in a process of its own, so that its peak memory is its own too.

``benchmarks.peers.bench`` runs this module by ``run_spec``. Peers are timed as ours, by ``benchmarks.latency.worker``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness.processes import answer_spec
from benchmarks.latency.worker import ONNXRUNTIME_ON_GPU, Opened, Timing, measure, torch_device
from benchmarks.peers import PEERS

Views = NDArray[Any]
Network = Callable[[Views], Views]


@dataclass(frozen=True)
class PeerSpec:
    """A peer to time.

    Attributes:
        timing: How; the backend may be "torch", the precision is that of the graph or of torch's weights.
        peer: A name of ``PEERS``.
        graph: Its exported graph for a backend; unused by torch.
    """

    timing: Timing
    peer: str
    graph: str


def restore(network: Network, left: Views, right: Views, multiple: int) -> Views:
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


def open_peer(spec: PeerSpec) -> Opened:
    """Loads a peer.

    Raises:
        LDPError: The backend does not work.
    """
    timing, multiple = spec.timing, PEERS[spec.peer].multiple
    in_torch = timing.backend == "torch"
    network, device, gpu = _open_torch(spec) if in_torch else _open_graph(spec)

    def run(left: Views, right: Views) -> tuple[Views, Mapping[str, float]]:
        return restore(network, left, right, multiple), {}

    return Opened(run, device, gpu, events=False, lazy=not in_torch)


def _open_torch(spec: PeerSpec) -> tuple[Network, str, bool]:
    import torch

    from ldp_export.evaluation.reference import DTYPES

    where, description = torch_device(spec.timing.threads)
    dtype = DTYPES[spec.timing.precision]
    module = PEERS[spec.peer].build().eval().to(where, dtype)

    def network(pair: Views) -> Views:
        with torch.inference_mode():
            restored: Views = module(torch.from_numpy(pair).to(where)).cpu().numpy()
        return restored

    return network, description, where == "cuda"


def _open_graph(spec: PeerSpec) -> tuple[Network, str, bool]:
    from ldp_runtime.registry import SESSION_BACKENDS

    timing = spec.timing
    backend = SESSION_BACKENDS[timing.backend]
    backend.available()
    session = backend.open(Path(spec.graph), timing.precision, timing.threads)

    def network(pair: Views) -> Views:
        return session.run({"pair": pair})["restored"]

    return network, backend.describe(), timing.backend in ONNXRUNTIME_ON_GPU


def answer(fields: dict[str, Any]) -> dict[str, Any]:
    """Measures a ``PeerSpec``; returns the fields of a ``Block``."""
    spec = PeerSpec(**{**fields, "timing": Timing(**fields["timing"])})
    return asdict(measure(spec.timing, lambda: open_peer(spec)))


if __name__ == "__main__":
    answer_spec(answer)
