import torch
from torch.nn import functional as F

from ldp_export.network.published.layers import ChannelNorm
from ldp_export.network.randomise import randomise


def test_channel_norm_is_torchs_layer_norm_in_fp32_statistics() -> None:
    layer = randomise(ChannelNorm(6, 1e-5))
    x = 170 * torch.randn(1, 6, 4, 4)
    expected = F.layer_norm(x.permute(0, 2, 3, 1), (6,), layer.weight, layer.bias, 1e-5).permute(0, 3, 1, 2)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
        assert torch.isfinite(layer.half()(x.half())).all()
