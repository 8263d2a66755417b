import torch
from torch.nn import functional as F

from ldp_export.network.published.dpdnet import WIDTHS, DPDNet, UpConvolution


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_dpdnets_count_follows_from_its_layers() -> None:
    def conv(inputs: int, outputs: int, side: int) -> int:
        return inputs * outputs * side * side + outputs

    down = sum(conv(a, b, 3) + conv(b, b, 3) for a, b in zip((6, *WIDTHS[:-1]), WIDTHS, strict=True))
    up = sum(conv(2 * w, w, 2) + conv(2 * w, w, 3) + conv(w, w, 3) for w in WIDTHS[:-1])
    with torch.device("meta"):
        assert parameters(DPDNet()) == down + up + conv(64, 3, 3) + conv(3, 3, 1)


def test_up_convolution_keeps_keras_padding() -> None:
    layer = UpConvolution(2)
    torch.nn.init.zeros_(layer.convolution.bias)
    torch.nn.init.zeros_(layer.convolution.weight)
    with torch.no_grad():
        layer.convolution.weight[0, 0, 0, 0] = 1.0  # the tap on the pixel itself: nothing is added on the left
    x = torch.rand(1, 2, 3, 4)
    with torch.no_grad():
        torch.testing.assert_close(layer(x)[:, 0], F.interpolate(x[:, :1], scale_factor=2.0)[:, 0])
