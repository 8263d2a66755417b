"""The peers: parameter counts and work as cited, each one's own layer by hand, and the comparison with ours."""

import math
from pathlib import Path

import pytest

from benchmarks.harness.results import BenchmarkError
from benchmarks.peers import PEERS
from benchmarks.peers.bench import choose_backends, measure
from benchmarks.peers.summary import OURS
from ldp_runtime.bundle.bundle import Bundle
from tests.benchmarks.peers.graphs import save_mean_graph

NANO = Path(__file__).resolve().parents[3] / "models" / "ldp-nano"


def test_backends_by_name() -> None:
    assert choose_backends(["torch", "torch:fp32", "onnxruntime:fp32"]) == [("torch", "fp32"), ("onnxruntime", "fp32")]
    assert choose_backends(["auto:fp32"])[0][0] in ("openvino", "onnxruntime")
    with pytest.raises(BenchmarkError, match=r"expected a backend, one of torch, auto, .* got 'cuda'"):
        choose_backends(["cuda"])
    with pytest.raises(BenchmarkError, match="expected a precision of torch"):
        choose_backends(["torch:int8"])


@pytest.mark.slow
def test_ours_and_a_peer_are_measured_in_processes_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_mean_graph(tmp_path / "peer.onnx")
    monkeypatch.setattr("benchmarks.peers.bench.export_peer", lambda peer, half: path)
    backends = [("torch", "fp32"), ("onnxruntime", "fp32")]
    found = measure(Bundle.load(NANO), [PEERS["nafnet"]], backends, [(48, 64)], threads=1)
    assert [(m.who, m.error) for m in found] == 2 * [(OURS, None), ("nafnet", None)]
    for measurement in found:
        (result,) = measurement.blocks
        assert all(math.isfinite(value) and value > 0 for value in result.seconds)
        assert result.host_bytes > 2e7
    torchs, onnxruntimes = (next(m for m in found[i:] if m.who == "nafnet") for i in (0, 2))
    assert torchs.blocks[0].host_bytes > onnxruntimes.blocks[0].host_bytes  # no torch in the runtime's process
