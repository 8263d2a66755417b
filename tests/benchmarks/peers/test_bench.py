"""The peers: parameter counts and work as cited, each one's own layer by hand, and the comparison with ours."""

import math
from pathlib import Path

import onnx
import pytest

from benchmarks.harness.results import BenchmarkError
from benchmarks.peers import PEERS
from benchmarks.peers.bench import choose_backends, measure
from benchmarks.peers.summary import OURS
from ldp_runtime.bundle.bundle import Bundle

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
    ends = {"pair": [1, 6, "H", "W"], "blur_logits": [1, 1, "h", "w"], "restored": [1, 3, "H", "W"]}
    infos = {name: onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, s) for name, s in ends.items()}
    node = onnx.helper.make_node("Split", ["pair"], ["restored", "rest"], axis=1, num_outputs=2)
    graph = onnx.helper.make_graph([node], "first view", [infos["pair"], infos["blur_logits"]], [infos["restored"]])
    path = tmp_path / "peer.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10), path)
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
