import torch

from benchmarks.peers.layers import center
from benchmarks.peers.nafnet import NAFNet


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_nafnets_first_convolution_is_all_that_the_pair_adds() -> None:
    with torch.device("meta"):
        assert parameters(NAFNet()) - parameters(NAFNet(channels=3)) == 864


def test_nafnet_with_an_idle_body_returns_the_centre_view() -> None:
    network = NAFNet().eval()
    torch.nn.init.zeros_(network.last.weight)
    torch.nn.init.zeros_(network.last.bias)
    pair = torch.rand(1, 6, 16, 16)
    with torch.inference_mode():
        assert torch.equal(network(pair), center(pair))
