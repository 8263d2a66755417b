from pathlib import Path

import pytest

from benchmarks.latency.worker import Block
from benchmarks.peers import PEERS
from benchmarks.peers.summary import OURS, Measurement, summarise_all
from benchmarks.peers.tables import markdown
from ldp_runtime.bundle.bundle import Bundle
from tests.benchmarks.peers.graphs import save_mean_graph

NANO = Path(__file__).resolve().parents[3] / "models" / "ldp-nano"


def block(seconds: float, host_bytes: int) -> Block:
    return Block([seconds] * 3, {}, {}, {}, host_bytes, None, "a device", gpu=False, events=False)


@pytest.fixture
def measurements() -> list[Measurement]:
    """Ours linear in pixels, NAFNet growing with the power 1.5 and twice our memory; one failure."""
    found = []
    for size, pixels in (((64, 64), 4096), ((128, 128), 16384)):
        ours = block(pixels / 4096, 10**8 + 100 * pixels)
        peer = block(3 * (pixels / 4096) ** 1.5, 2 * (10**8 + 100 * pixels))
        found += [
            Measurement(OURS, "torch", "fp32", size, [ours]),
            Measurement("nafnet", "torch", "fp32", size, [peer]),
            Measurement("restormer", "torch", "fp32", size, error="out of memory"),
        ]
    return found


def test_ratios_scaling_and_failures(
    measurements: list[Measurement], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = save_mean_graph(tmp_path / "peer.onnx")
    monkeypatch.setattr("benchmarks.peers.summary.export_peer", lambda peer, half: graph)
    data = summarise_all(Bundle.load(NANO), [PEERS["nafnet"], PEERS["restormer"]], measurements)
    rows = {(row["who"], tuple(row["size"])): row for row in data["rows"]}
    assert rows["nafnet", (64, 64)]["time_ratio"] == pytest.approx(3)
    assert rows["nafnet", (128, 128)]["time_ratio"] == pytest.approx(6)
    assert rows["nafnet", (128, 128)]["memory_ratio"] == pytest.approx(2)
    assert rows[OURS, (64, 64)]["time_ratio"] == 1
    assert rows["restormer", (64, 64)]["seconds"] is None
    scaling = {row["who"]: row for row in data["scaling"]}
    assert scaling[OURS]["exponent"] == pytest.approx(1) and scaling["nafnet"]["exponent"] == pytest.approx(1.5)
    assert scaling[OURS]["mb_a_megapixel"] == pytest.approx(100)
    assert "restormer" not in scaling
    networks = {network["who"]: network for network in data["networks"]}
    assert networks["restormer"]["quoted"]["psnr"] == 26.66 and networks["nafnet"]["quoted"]["psnr"] == 26.21
    assert networks[OURS]["quoted"] is None  # nano is not in the paper
    text = markdown(data)
    assert "PSNR, quoted" in text and "out of memory" in text and "Table 6" in text
