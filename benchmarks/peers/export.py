"""Peers with random weights as ONNX graphs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness import ROOT
from benchmarks.harness.bundles import export_folder, exporter_key, keep_deblur_graph, sources_key
from benchmarks.peers import Peer
from ldp_runtime.stages.geometry import padding_multiple

if TYPE_CHECKING:
    from torch import Tensor, nn

"""H and W of any graph of the exporter are multiples of this many px."""

_FILTER_GAIN = 0.3


def export_peer(peer: Peer, *, half: bool) -> Path:
    """The ONNX graph of a peer with random weights, from the cache or exported into it.

    The exporter's deblur graph accepts any network of a pair: a peer gets its form, with a blur map that nothing reads.

    Args:
        peer: The peer.
        half: FP16 inside; else FP32.

    Raises:
        BenchmarkError: There is no cache.
    """
    own = sources_key((ROOT / "benchmarks" / "peers").glob("*.py"))
    path = export_folder(exporter_key(), "peers", own) / f"{peer.name}{'.fp16' if half else ''}.onnx"
    if not path.is_file():
        print(f"export: {peer.title}, {'fp16' if half else 'fp32'}", file=sys.stderr)
        network: Any = as_deblur_network(random_network(peer))
        keep_deblur_graph(network, padding_multiple(peer.multiple), path, half=half)
    return path


def random_network(peer: Peer) -> nn.Module:
    """A peer with random parameters; IFAN's filters get a small gain, as 17 of them in a row would overflow."""
    import torch

    from benchmarks.peers.ifan import IFAN
    from ldp_export.network.randomise import randomise

    network = randomise(peer.build())
    if isinstance(network, IFAN):
        with torch.no_grad():
            for parameter in network.filters[-1].parameters():
                parameter.mul_(_FILTER_GAIN)
    return network


def as_deblur_network(peer: nn.Module) -> nn.Module:
    """A peer in the form of our deblurring network: FP32 inputs and outputs, and a blur map that nothing reads."""
    from torch import nn

    class DeblurForm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.peer = peer

        def forward(self, pair: Tensor, blur_logits: Tensor) -> Tensor:
            restored: Tensor = self.peer(pair.to(next(self.peer.parameters()).dtype))
            return restored.float()

    return DeblurForm()
