import pytest
import torch
from torch.nn import functional as F

from ldp_export.network import ConfigError
from ldp_export.network.released import ReleasedConfig, pool_matrix
from tests.ldp_export.tiny_models import tiny_released


@pytest.mark.parametrize(("size", "bins"), [(32, 32), (48, 8), (50, 8), (9, 8), (5, 8), (1, 4)])
def test_pooling_as_a_matrix_is_adaptive_average_pooling(size: int, bins: int) -> None:
    row = torch.rand(1, 1, size, generator=torch.Generator().manual_seed(size))
    torch.testing.assert_close(pool_matrix(size, bins) @ row[0, 0], F.adaptive_avg_pool1d(row, bins)[0, 0])


@torch.no_grad()
def test_channel_attention_as_defined() -> None:
    attention = tiny_released().ca
    x = torch.randn(2, 8, 12, 18, generator=torch.Generator().manual_seed(0))
    blur_map = torch.rand(2, 1, 12, 18, generator=torch.Generator().manual_seed(1))
    q, k, v = attention.qkv(x).flatten(2).chunk(3, dim=1)
    logits = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(1, 2) * attention.temperature
    weights = (logits + F.adaptive_avg_pool2d(blur_map, (8, 8))[:, 0]).softmax(-1)
    expected = attention.project_out((weights @ v).reshape(2, 8, 12, 18))
    torch.testing.assert_close(attention(x, blur_map), expected)
    assert (attention(x, blur_map) - attention(x, 1 - blur_map)).abs().max() > 1e-3


@torch.no_grad()
def test_the_body_pads_with_zeros_and_crops() -> None:
    body = tiny_released().naf
    x = torch.randn(1, 8, 9, 15, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(body(x), body(F.pad(x, (0, 1, 0, 1)))[:, :, :9, :15])
    assert body.multiple == 2


@torch.no_grad()
def test_the_output_is_not_added_to_the_pair() -> None:
    network = tiny_released()
    torch.nn.init.zeros_(network.output.weight)
    pair = torch.rand(1, 6, 8, 8)
    restored = network(pair, torch.rand(1, 1, 8, 8))
    assert restored.dtype == torch.float32
    assert torch.equal(restored, torch.zeros(1, 3, 8, 8))


@torch.no_grad()
def test_half_arithmetic_survives_many_pixels() -> None:
    """Sums of q * k over all pixels overflow FP16, and q of unit length underflows it; both stay in FP32."""
    network = tiny_released()
    network.ca.qkv.weight.mul_(60)
    pair, blur_map = torch.rand(1, 6, 96, 160), torch.rand(1, 1, 96, 160)
    query, key, _ = network.ca.qkv(network.patch_embed(pair)).flatten(2).chunk(3, dim=1)
    assert not torch.isfinite((query @ key.transpose(1, 2)).half()).all(), "the naive form would overflow here"
    network.ca.project_out.weight.div_(60)
    expected = network(pair, blur_map)
    half = network.half()(pair, blur_map)
    assert half.dtype == torch.float32
    assert 10 * torch.log10(1 / (half - expected).square().mean()) > 50


def test_a_released_config_is_a_channel_attention() -> None:
    values = ReleasedConfig().to_dict()
    assert values["attention"] == "channel"
    assert values["encoder"] == [2, 2, 2, 2]
    with pytest.raises(ConfigError, match="as many levels"):
        ReleasedConfig(decoder=(2,))
    with pytest.raises(ConfigError, match="attention must be channel"):
        ReleasedConfig(attention="spatial")
