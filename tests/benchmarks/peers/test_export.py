from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.peers import PEERS, nafnet
from benchmarks.peers.export import as_deblur_network, export_peer, random_network
from benchmarks.peers.nafnet import NAFNet
from ldp_export.network.randomise import randomise
from ldp_runtime.registry import BACKENDS


def test_a_peer_in_our_form_has_fp32_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    # Small: where the CPU has no half arithmetic, torch takes minutes for the whole.
    for name, value in (("WIDTH", 8), ("ENCODER", (1, 1)), ("MIDDLE", 1), ("DECODER", (1, 1))):
        monkeypatch.setattr(nafnet, name, value)
    network = as_deblur_network(randomise(NAFNet())).half().eval()
    pair = torch.rand(1, 6, 16, 16)
    with torch.inference_mode():
        restored = network(pair, torch.zeros(1, 1, 1, 1))
        assert restored.dtype == torch.float32
        torch.testing.assert_close(restored, network.peer(pair.half()).float())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dpdnet", "ifan"])
def test_a_peer_goes_through_our_exporter(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LDP_CACHE", str(tmp_path))
    graph = export_peer(PEERS[name], half=False)
    network = as_deblur_network(random_network(PEERS[name])).eval()
    pair = torch.rand(1, 6, 48, 64)
    with torch.inference_mode():
        expected = network(pair, torch.zeros(1, 1, 1, 1)).numpy()
    session = BACKENDS["onnxruntime"].open(graph, "fp32")
    got = session.run({"pair": pair.numpy(), "blur_logits": np.zeros((1, 1, 1, 1), np.float32)})["restored"]
    assert np.abs(expected).max() < 1000
    np.testing.assert_allclose(got, expected, atol=1e-4 * max(1.0, float(np.abs(expected).max())))
    assert export_peer(PEERS[name], half=False) == graph  # from the cache
