import torch

from ldp_export.network.published.layers import center
from ldp_export.network.published.nafnet import NAFNet
from ldp_export.network.randomise import randomise


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_form_with_three_channels_sees_the_center_view_alone() -> None:
    network = randomise(NAFNet(channels=3)).eval()
    pair = torch.rand(1, 6, 16, 16)
    with torch.inference_mode():
        swapped = network(torch.cat([pair[:, 3:], pair[:, :3]], 1))
        torch.testing.assert_close(network(pair), swapped)
    assert parameters(network) == 17_111_907
    assert len(network.published_state()) == 664


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
