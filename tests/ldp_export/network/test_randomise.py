import torch

from ldp_export.blur_map import center_view
from ldp_export.network import LDPNet
from ldp_export.network.randomise import randomise_network
from tests.ldp_export.tiny_models import TINY_CONFIG


def test_randomise_network_is_seeded_and_far_from_the_identity() -> None:
    first, again, other = (randomise_network(LDPNet(TINY_CONFIG), seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.intro.weight, other.intro.weight)
    assert all(parameter.abs().max() > 0 for parameter in first.parameters())
    pair, logits = torch.rand(1, 6, 48, 64), torch.randn(1, 1, 3, 4)
    with torch.inference_mode():
        residual = first(pair, logits) - center_view(pair[:, :3], pair[:, 3:])
        fresh = LDPNet(TINY_CONFIG).eval()
        for block in fresh.modules():
            for name in ("beta", "gamma"):
                assert getattr(block, name, torch.zeros(1)).abs().max() == 0, "a fresh network has lost its zeros"
    assert 0.05 < residual.std() < 0.2
