"""The sample of a bundle, and what an import's precisions come to."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ldp_export.bundling import selftest
from ldp_export.bundling.onnx_graphs import ParityError, export_bundle, steps
from ldp_export.bundling.selftest import BF16_GATE, add_sample
from ldp_export.cli import main
from ldp_export.model import ExportModel
from ldp_export.network.published.base import PublishedConfig, PublishedNetwork
from ldp_runtime import Deblurrer
from ldp_runtime.bundle.bundle import Bundle
from ldp_runtime.bundle.manifest import Manifest, Origin, SourceFile
from ldp_runtime.errors import BundleError
from ldp_runtime.registry import BACKENDS
from ldp_runtime.selftest import Outcome, run_selftest
from tests.ldp_runtime.helpers import is_locked
from tests.ldp_runtime.tiny_bundle import make_tiny_bundle, rewrite

ORIGIN = Origin("tiny", (SourceFile("a.pth", "0" * 64),), "MIT", "may be passed on", "A and B, ECCV 2020")
HAS_BF16 = "bf16" in BACKENDS["openvino"].precisions


class Loud(PublishedNetwork):
    """The left view by way of numbers that FP16 does not hold."""

    config = PublishedConfig("loud", multiple=1, memory=64, halo=16)

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Conv2d(6, 3, 1, bias=False), nn.Conv2d(3, 3, 1, bias=False)
        with torch.no_grad():
            self.up.weight.copy_(2e5 * torch.eye(3, 6)[:, :, None, None])
            self.down.weight.copy_(torch.eye(3)[:, :, None, None] / 2e5)

    def restore(self, pair: Tensor) -> Tensor:
        return self.down(self.up(pair))


@pytest.mark.slow
def test_an_import_that_fp16_fails_has_fp32_alone(tmp_path: Path) -> None:
    model = ExportModel(Loud().eval(), None, (), None, True, origin=ORIGIN)
    told: list[str] = []
    manifest = export_bundle(model, tmp_path / "loud", "loud", report=told.append)
    assert len(told) == steps(model)
    assert manifest.graphs == {"deblur": {"fp32": "deblur.onnx"}}
    assert sorted(file.name for file in (tmp_path / "loud").iterdir()) == ["bundle.json", "deblur.onnx", "selftest.npz"]
    failed = {gate["name"] for gate in manifest.parity["gates"] if not gate["passed"]}
    assert {"deblur fp16 PSNR in dB", "deblur largest activation"} <= failed
    assert "deblur fp32 max abs" not in failed
    bundle = Bundle.load(tmp_path / "loud")
    left, right = (np.random.default_rng(seed).integers(0, 255, (20, 30, 3), np.uint8) for seed in (0, 1))
    assert np.abs(Deblurrer(bundle, backend="onnxruntime")(left, right).restored.astype(int) - left).max() <= 1
    assert {outcome.precision for outcome in run_selftest(bundle, "onnxruntime").outcomes} == {"fp32"}
    with pytest.raises(BundleError, match="got fp32; choose another precision or another network: its import"):
        Deblurrer(bundle, backend="onnxruntime", precision="fp16")(left, right)
    with pytest.raises(ParityError, match="deblur largest activation: expected at most"):
        export_bundle(replace(model, origin=None), tmp_path / "own", "own")
    assert not (tmp_path / "own").exists()


@pytest.mark.slow
def test_an_import_that_fp32_fails_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldp_export.bundling.parity.FP32_LIMIT", -1.0)
    with pytest.raises(ParityError, match="deblur fp32 max abs"):
        export_bundle(ExportModel(Loud().eval(), None, (), None, True, origin=ORIGIN), tmp_path / "loud", "loud")
    assert not (tmp_path / "loud").exists()


@pytest.mark.parametrize(
    ("outcome", "bf16", "gates"),
    [
        (Outcome("openvino", "bf16", "pass", psnr_db=51.0), True, [51.0]),
        (Outcome("openvino", "bf16", "FAIL", psnr_db=35.0), False, [35.0]),
        (Outcome("openvino", "bf16", "FAIL", "NaN or Inf"), False, [None]),
        (None, False, []),  # of a CPU without bf16 nothing is known
    ],
)
def test_auto_takes_bf16_for_an_import_that_passed_in_it(
    outcome: Outcome | None, bf16: bool, gates: list[float | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_tiny_bundle(tmp_path, clip=False)
    rewrite(path, clip=None, prompts=(), graphs={"deblur": {"fp32": "deblur.onnx"}}, origin=ORIGIN)
    monkeypatch.setattr(selftest, "try_bf16", lambda bundle: outcome)
    for _ in range(2):  # a second measurement takes the place of the first
        manifest = add_sample(path)
        assert manifest.bf16 == bf16
        assert [gate["value"] for gate in manifest.parity["gates"] if gate["name"] == BF16_GATE] == gates
    bundle = Bundle.load(path)
    assert bundle.manifest.bf16 == bf16
    taken = "bf16" if bf16 and HAS_BF16 else "fp32"
    assert Deblurrer(bundle, backend="openvino").precision == Deblurrer(bundle).precision == taken
    test = run_selftest(bundle, "openvino")
    assert ("bf16" in {each.precision for each in test.outcomes}) == (bf16 and HAS_BF16)
    assert ("openvino in bf16" in test.absent) == (HAS_BF16 and not bf16)
    if HAS_BF16:
        assert Deblurrer(bundle, backend="openvino", precision="bf16").precision == "bf16"


def test_an_engine_that_is_built_meanwhile_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_tiny_bundle(tmp_path)
    add = selftest.add_sample

    def add_locked(folder: Path) -> Manifest:
        assert is_locked(folder)
        return add(folder)

    monkeypatch.setattr(selftest, "add_sample", add_locked)
    assert main(["selftest", str(path)]) == 0


def test_bf16_of_our_own_bundles_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "try_bf16", lambda bundle: pytest.fail("measured"))
    manifest = add_sample(make_tiny_bundle(tmp_path))
    assert manifest.bf16 and "bf16" not in manifest.to_json()
