"""The peers: parameter counts and work as cited, each one's own layer by hand, and the comparison with ours."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness.results import BenchmarkError
from benchmarks.latency.worker import Block
from benchmarks.peers import PEERS, nafnet
from benchmarks.peers.bench import (
    OURS,
    Measurement,
    as_deblur_network,
    choose_backends,
    export_peer,
    markdown,
    measure,
    random_network,
    summarise_all,
)
from benchmarks.peers.dpdnet import WIDTHS, DPDNet, UpConvolution
from benchmarks.peers.ifan import FILTERS, IFAN, SLOPE, TAPS, adaptive_convolution
from benchmarks.peers.layers import ChannelNorm, center
from benchmarks.peers.nafnet import NAFNet
from benchmarks.peers.restormer import Restormer, TransposedAttention
from benchmarks.peers.worker import restore
from ldp_export.network.randomise import randomise
from ldp_runtime.bundle.bundle import Bundle
from ldp_runtime.registry import BACKENDS

NANO = Path(__file__).resolve().parents[3] / "models" / "ldp-nano"


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", sorted(PEERS))
def test_the_parameters_are_as_many_as_cited(name: str) -> None:
    peer = PEERS[name]
    with torch.device("meta"):
        network = NAFNet(channels=3) if name == "nafnet" else peer.build()
        own = peer.build()
    assert round(parameters(network) / 1e6, peer.decimals) == peer.parameters / 1e6
    assert own.multiple == peer.multiple
    assert len(peer.source) > 20
    assert len(peer.checked) > 10


def test_dpdnets_count_follows_from_its_layers() -> None:
    def conv(inputs: int, outputs: int, side: int) -> int:
        return inputs * outputs * side * side + outputs

    down = sum(conv(a, b, 3) + conv(b, b, 3) for a, b in zip((6, *WIDTHS[:-1]), WIDTHS, strict=True))
    up = sum(conv(2 * w, w, 2) + conv(2 * w, w, 3) + conv(w, w, 3) for w in WIDTHS[:-1])
    with torch.device("meta"):
        assert parameters(DPDNet()) == down + up + conv(64, 3, 3) + conv(3, 3, 1)


def test_nafnets_first_convolution_is_all_that_the_pair_adds() -> None:
    with torch.device("meta"):
        assert parameters(NAFNet()) - parameters(NAFNet(channels=3)) == 864


def convolution_gmacs(network: torch.nn.Module, channels: int) -> float:
    """Multiply-adds of the convolutions alone at 256 x 256 px, as the papers count them."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.eval()(torch.zeros(1, channels, 256, 256, device="meta"))
    counts: dict[Any, int] = counter.get_flop_counts()["Global"]
    return sum(flops for op, flops in counts.items() if "convolution" in str(op)) / 2e9


def test_nafnet_takes_the_16_gmac_of_its_paper() -> None:
    with torch.device("meta"):
        network = NAFNet()
    assert convolution_gmacs(network, 6) == pytest.approx(16.0, rel=0.01)


def test_restormer_takes_the_141_gmac_of_its_paper() -> None:
    with torch.device("meta"):
        network = Restormer()
    assert convolution_gmacs(network, 6) == pytest.approx(140.99, rel=0.01)


@pytest.mark.parametrize("build", [NAFNet, DPDNet, IFAN, Restormer])
def test_shapes_and_that_both_views_matter(build: type[torch.nn.Module]) -> None:
    network = randomise(build()).eval()
    pair = torch.rand(1, 6, 32, 48)
    with torch.inference_mode():
        restored = network(pair)
        changed = [network(torch.cat([pair[:, :3] + a, pair[:, 3:] + b], 1)) for a, b in ((0.5, 0), (0, 0.5))]
    assert restored.shape == (1, 3, 32, 48) and torch.isfinite(restored).all()
    assert all((other - restored).abs().max() > 1e-6 for other in changed)


def test_nafnet_with_an_idle_body_returns_the_centre_view() -> None:
    network = NAFNet().eval()
    torch.nn.init.zeros_(network.last.weight)
    torch.nn.init.zeros_(network.last.bias)
    pair = torch.rand(1, 6, 16, 16)
    with torch.inference_mode():
        assert torch.equal(network(pair), center(pair))


def test_transposed_attention_as_its_equation() -> None:
    layer = randomise(TransposedAttention(8, 2), 1)
    x = torch.randn(2, 8, 5, 6)
    with torch.no_grad():
        q, k, v = (t.reshape(2, 2, 4, 30) for t in layer.depthwise(layer.project_in(x)).chunk(3, dim=1))
        expected = torch.empty(2, 2, 4, 30)
        for b in range(2):
            for h in range(2):
                rows = [row / row.norm() for row in q[b, h]], [row / row.norm() for row in k[b, h]]
                logits = torch.stack([torch.stack([a @ c for c in rows[1]]) for a in rows[0]]) * layer.temperature[h]
                expected[b, h] = torch.softmax(logits, dim=1) @ v[b, h]
        expected = layer.project_out(expected.reshape(2, 8, 5, 6))
        torch.testing.assert_close(layer(x), expected)


def test_adaptive_convolution_by_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 2, 4, 5, generator=generator)
    filters = torch.randn(1, FILTERS * 2 * (2 * TAPS + 1), 4, 5, generator=generator) / 2
    expected = x[0].numpy().astype(np.float64)
    for step in filters[0].numpy().reshape(FILTERS, 2 * (2 * TAPS + 1), 4, 5):
        column, row, bias = step[:6].reshape(TAPS, 2, 4, 5), step[6:12].reshape(TAPS, 2, 4, 5), step[12:]
        for axis, taps in ((1, column), (2, row)):
            widths = [(0, 0), (0, 0), (0, 0)]
            widths[axis] = (1, 1)
            padded = np.pad(expected, widths, mode="edge")
            shifted = [np.take(padded, range(i, i + expected.shape[axis]), axis) for i in range(TAPS)]
            expected = sum(w * s for w, s in zip(taps, shifted, strict=True))
        expected = expected + bias
        expected = np.where(expected > 0, expected, SLOPE * expected)
    np.testing.assert_allclose(adaptive_convolution(x, filters)[0].numpy(), expected, rtol=1e-4, atol=1e-5)


def test_up_convolution_keeps_keras_padding() -> None:
    layer = UpConvolution(2)
    torch.nn.init.zeros_(layer.convolution.bias)
    torch.nn.init.zeros_(layer.convolution.weight)
    with torch.no_grad():
        layer.convolution.weight[0, 0, 0, 0] = 1.0  # the tap on the pixel itself: nothing is added on the left
    x = torch.rand(1, 2, 3, 4)
    with torch.no_grad():
        torch.testing.assert_close(layer(x)[:, 0], F.interpolate(x[:, :1], scale_factor=2.0)[:, 0])


def test_channel_norm_is_torchs_layer_norm_in_fp32_statistics() -> None:
    layer = randomise(ChannelNorm(6, 1e-5))
    x = 170 * torch.randn(1, 6, 4, 4)
    expected = F.layer_norm(x.permute(0, 2, 3, 1), (6,), layer.weight, layer.bias, 1e-5).permute(0, 3, 1, 2)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
        assert torch.isfinite(layer.half()(x.half())).all()


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


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_restore_pads_and_rounds_as_the_runtime_does(dtype: type[np.generic]) -> None:
    rng = np.random.default_rng(0)
    left, right = (rng.integers(0, np.iinfo(dtype).max + 1, (5, 7, 3)).astype(dtype) for _ in range(2))
    seen = []

    def network(pair: np.ndarray) -> np.ndarray:
        seen.append(pair)
        return pair[:, 3:] * 2 - 0.5

    restored = restore(network, left, right, 8)
    assert seen[0].shape == (1, 6, 8, 8)
    np.testing.assert_array_equal(seen[0][0, :, 5], seen[0][0, :, 3])  # reflect-101
    top = np.iinfo(dtype).max
    expected = np.clip(np.rint((right.astype(np.float32) / np.float32(top) * 2 - np.float32(0.5)) * top), 0, top)
    assert restored.dtype == dtype
    np.testing.assert_allclose(restored.astype(np.float64), expected, atol=1)


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


def test_ratios_scaling_and_failures(measurements: list[Measurement], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.peers.bench.export_peer", lambda peer, half: Bundle.load(NANO).graph("deblur"))
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


def test_backends_by_name() -> None:
    assert choose_backends(["torch", "torch:fp32", "onnxruntime:fp32"]) == [("torch", "fp32"), ("onnxruntime", "fp32")]
    assert choose_backends(["auto:fp32"])[0][0] in ("openvino", "onnxruntime")
    with pytest.raises(BenchmarkError, match=r"expected a backend, one of torch, auto, .* got 'cuda'"):
        choose_backends(["cuda"])
    with pytest.raises(BenchmarkError, match="expected a precision of torch"):
        choose_backends(["torch:int8"])


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
