from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.figure1.graphs import export_network
from ldp_export.network.published import PUBLISHED
from ldp_runtime.registry import BACKENDS


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dpdnet", "ifan"])
def test_a_network_goes_through_our_exporter(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LDP_CACHE", str(tmp_path))
    graph = export_network(PUBLISHED[name], half=False)
    pair = torch.rand(1, 6, 48, 64)
    with torch.inference_mode():
        expected = PUBLISHED[name].random()(pair).numpy()
    session = BACKENDS["onnxruntime"].open(graph, "fp32")
    got = session.run({"pair": pair.numpy()})["restored"]
    assert np.abs(expected).max() < 1000
    np.testing.assert_allclose(got, expected, atol=1e-4 * max(1.0, float(np.abs(expected).max())))
    assert export_network(PUBLISHED[name], half=False) == graph  # from the cache
