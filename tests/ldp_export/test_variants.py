"""The networks of Table 6, the ensembles of Table 5, and their export."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import Tensor

from ldp_export.bundling.onnx_graphs import deblur_graph, save_graph
from ldp_export.checkpoint import Checkpoint
from ldp_export.network import CONFIGS, ConfigError, LDPConfig, LDPNet
from ldp_export.network.bpa import BlurPriorAttention
from ldp_export.network.config import PRIORS
from ldp_export.network.randomise import randomise, randomise_network

ROOT = Path(__file__).parents[2]
TINY = LDPConfig(
    "tiny",
    width=8,
    stem=2,
    encoder=(1,),
    middle=1,
    decoder=(1,),
    bpa=("middle", "decoder"),
    head_dim=8,
    kernel=3,
    window=4,
    kernel_hidden=4,
    sca_cell=8,
)
READS_THE_MAP = {"none": False, "concat": True, "sa": False, "concat+sa": True, "bpa": True}
ATTENDS = {"none": False, "concat": False, "sa": True, "concat+sa": True, "bpa": True}


def inputs(height: int, width: int, batch: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(height + width)
    pair = torch.rand(batch, 6, height, width, generator=generator)
    return pair, 3 * torch.randn(batch, 1, height // 8, width // 8, generator=generator)


def test_a_row_each() -> None:
    assert list(PRIORS) == list(READS_THE_MAP)


@pytest.mark.parametrize("prior", PRIORS)
@torch.no_grad()
def test_what_a_variant_holds_and_reads(prior: str) -> None:
    net = randomise(LDPNet(replace(TINY, prior=prior))).eval()
    pair, logits = inputs(16, 32, batch=2)
    assert tuple(net.bpa) == (TINY.bpa if ATTENDS[prior] else ())
    assert any("kernels" in name for name in net.state_dict()) == (prior == "bpa")
    assert net.intro.in_channels == (28 if prior.startswith("concat") else 24)
    change = (net(pair, logits) - net(pair, -logits)).abs().max()
    assert (float(change) > 1e-3) == READS_THE_MAP[prior]
    swapped = net(torch.cat([pair[:, 3:], pair[:, :3]], dim=1), logits)
    assert (net(pair, logits) - swapped).abs().max() > 1e-3


def test_variants_differ_only_where_they_should() -> None:
    """Table 6 compares priors, so that all else must be the same: names and shapes of what is shared."""
    shapes = {
        prior: {key: value.shape for key, value in LDPNet(replace(TINY, prior=prior)).state_dict().items()}
        for prior in PRIORS
    }
    for prior, own in shapes.items():
        shared = {key: shape for key, shape in own.items() if key != "intro.weight"}
        assert shared.items() <= shapes["bpa"].items(), prior
    assert shapes["none"].items() <= shapes["sa"].items() <= shapes["bpa"].items()
    assert shapes["none"].keys() == shapes["concat"].keys()
    assert shapes["sa"].keys() == shapes["concat+sa"].keys()


@torch.no_grad()
def test_concat_appends_the_upsampled_probability() -> None:
    net = randomise(LDPNet(replace(TINY, prior="concat", stem=1, sca_cell=8))).eval()
    seen: list[Tensor] = []
    net.intro.register_forward_hook(lambda _, args, __: seen.append(args[0]))
    pair, _ = inputs(16, 32)
    net(pair, torch.tensor([[[[-2.0, 0.0, 3.0]]]]))
    assert torch.equal(seen[0][:, :6], pair)
    row = seen[0][0, 6, 0]
    expected = np.interp((np.arange(32) + 0.5) * 3 / 32 - 0.5, [0, 1, 2], 1 / (1 + np.exp(-np.array([-2.0, 0.0, 3.0]))))
    np.testing.assert_allclose(row.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("window", [4, None])
@torch.no_grad()
def test_plain_attention_is_that_of_a_kernel_of_zeros(window: int | None) -> None:
    plain = randomise(BlurPriorAttention(8, 4, 3, None, window)).eval()
    biased = BlurPriorAttention(8, 4, 3, 4, window).eval()
    biased.load_state_dict(plain.state_dict(), strict=False)
    assert biased.kernels is not None
    torch.nn.init.zeros_(biased.kernels.conv2.weight)
    torch.nn.init.zeros_(biased.kernels.conv2.bias)
    x = torch.randn(2, 8, 6, 9, generator=torch.Generator().manual_seed(0))
    logits = torch.zeros(2, 1, 3, 3)
    torch.testing.assert_close(plain(x, logits), biased(x, logits))


@pytest.mark.parametrize("prior", PRIORS)
def test_gradients_reach_every_parameter(prior: str) -> None:
    net = randomise(LDPNet(replace(TINY, prior=prior)))
    pair, logits = inputs(16, 32)
    logits.requires_grad_()
    net(pair, logits).square().mean().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
    assert (logits.grad is not None) == READS_THE_MAP[prior]


@pytest.mark.parametrize(
    "prior", ["none", *(pytest.param(name, marks=pytest.mark.slow) for name in PRIORS if name != "none")]
)
def test_a_variant_exports_like_the_default(prior: str, tmp_path: Path) -> None:
    net = randomise_network(LDPNet(replace(TINY, prior=prior)), seed=1)
    for half in (False, True):
        path = tmp_path / f"{half}.onnx"
        save_graph(deblur_graph(net, 16, half=half), path)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        assert {end.name: end.shape for end in session.get_inputs()} == {
            "pair": [1, 6, "H", "W"],
            "blur_logits": [1, 1, "h", "w"],
        }
        for size in ((16, 16), (48, 80)):
            pair, logits = inputs(*size)
            with torch.inference_mode():
                expected = net(pair, logits).numpy()
            (restored,) = session.run(None, {"pair": pair.numpy(), "blur_logits": logits.numpy()})
            error = np.abs(restored - expected)
            if half:
                assert 10 * math.log10(1 / np.mean(error**2)) >= 50
                assert error.max() > 1e-6, "this is no FP16 graph"
            else:
                assert error.max() <= 1e-4, f"mean {error.mean():.3g}, max {error.max():.3g}"


# --- configurations -----------------------------------------------------------------------------------------


def test_configurations_of_before_load_unchanged() -> None:
    values = json.loads((ROOT / "models/checkpoints/ldp-nano/network.json").read_text())
    assert "prior" not in values
    assert "ensemble" not in values
    config = LDPConfig.from_dict(values)
    assert config == CONFIGS["nano"]
    assert (config.prior, config.ensemble) == ("bpa", "ens2")
    assert Checkpoint.open(ROOT / "models/checkpoints/ldp-nano").network().config == config


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("ensemble", ["ens2", "ens1-dp-aware", 7])
def test_round_trip_through_json(prior: str, ensemble: str | int) -> None:
    config = replace(CONFIGS["small"], prior=prior, ensemble=ensemble)
    assert LDPConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prior": "bap"}, "prior must be one of none, concat, sa, concat\\+sa, bpa, not 'bap'"),
        ({"prior": "sa", "bpa": ()}, "prior sa needs a place of bpa"),
        ({"prior": "concat+sa", "bpa": ()}, "prior concat\\+sa needs a place of bpa"),
        ({"ensemble": "ens3"}, "ensemble must be one of ens2, .* or a prompt from 0 to 7, not 'ens3'"),
        ({"ensemble": 8}, "or a prompt from 0 to 7, not 8"),
        ({"ensemble": -1}, "not -1"),
    ],
)
def test_configs_of_no_variant_are_errors(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        replace(TINY, **changes)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_no_places_of_attention_is_nafnet() -> None:
    none, empty = LDPNet(replace(TINY, prior="none")), LDPNet(replace(TINY, bpa=()))
    assert none.state_dict().keys() == empty.state_dict().keys()
