from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.peers import PEERS
from benchmarks.peers.dpdnet import DPDNet
from benchmarks.peers.ifan import IFAN
from benchmarks.peers.nafnet import NAFNet
from benchmarks.peers.restormer import Restormer
from ldp_export.network.randomise import randomise


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", sorted(PEERS))
def test_the_parameters_are_as_many_as_cited(name: str) -> None:
    peer = PEERS[name]
    with torch.device("meta"):
        network = NAFNet(channels=3) if name == "nafnet" else peer.build()
        own = peer.build()
    assert round(parameters(network) / 1e6, peer.decimals) == peer.parameters / 1e6
    assert own.multiple == peer.multiple
    assert len(peer.source) > 20
    assert len(peer.checked) > 10


@pytest.mark.parametrize("build", [NAFNet, DPDNet, IFAN, Restormer])
def test_shapes_and_that_both_views_matter(build: type[torch.nn.Module]) -> None:
    network = randomise(build()).eval()
    pair = torch.rand(1, 6, 32, 48)
    with torch.inference_mode():
        restored = network(pair)
        changed = [network(torch.cat([pair[:, :3] + a, pair[:, 3:] + b], 1)) for a, b in ((0.5, 0), (0, 0.5))]
    assert restored.shape == (1, 3, 32, 48) and torch.isfinite(restored).all()
    assert all((other - restored).abs().max() > 1e-6 for other in changed)


def convolution_gmacs(network: torch.nn.Module, channels: int) -> float:
    """Multiply-adds of the convolutions alone at 256 x 256 px, as the papers count them."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.eval()(torch.zeros(1, channels, 256, 256, device="meta"))
    counts: dict[Any, int] = counter.get_flop_counts()["Global"]
    return sum(flops for op, flops in counts.items() if "convolution" in str(op)) / 2e9


def test_nafnet_takes_the_16_gmac_of_its_paper() -> None:
    with torch.device("meta"):
        network = NAFNet()
    assert convolution_gmacs(network, 6) == pytest.approx(16.0, rel=0.01)


def test_restormer_takes_the_141_gmac_of_its_paper() -> None:
    with torch.device("meta"):
        network = Restormer()
    assert convolution_gmacs(network, 6) == pytest.approx(140.99, rel=0.01)
