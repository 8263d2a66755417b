import math
from pathlib import Path

import pytest
import torch

from ldp_export.bundling import parity
from ldp_export.bundling.onnx_graphs import ParityError, export_bundle
from ldp_export.cli import main
from ldp_export.model import ExportModel
from ldp_export.network import LDPNet
from ldp_export.network.randomise import randomise_network
from tests.ldp_export.tiny_checkpoint import save_trained
from tests.ldp_export.tiny_models import TINY_CONFIG


@pytest.mark.usefixtures("ready_graphs")
def test_graphs_of_other_weights_fail_the_gates(
    tmp_path: Path, exported_model: ExportModel, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = tmp_path / "checkpoint", tmp_path / "models" / "own"
    save_trained(folder, exported_model, randomise_network(LDPNet(TINY_CONFIG), 9))
    assert main(["onnx", str(folder), "-o", str(output)]) == 1
    error = capsys.readouterr().err
    assert "failed the parity check: deblur fp32 max abs: expected at most 0.0001, got" in error
    assert "difference in PSNR to the target" in error
    assert "nothing was written" in error
    assert list(output.parent.iterdir()) == []


@pytest.mark.usefixtures("ready_graphs")
def test_nan_fails_a_gate(exported_model: ExportModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "psnr", lambda *arguments, **options: math.nan)
    with pytest.raises(ParityError, match=r"deblur fp16 PSNR in dB: expected at least 50\.0, got None"):
        export_bundle(exported_model, tmp_path / "bundle", "nano")
    assert list(tmp_path.iterdir()) == []


def test_the_largest_output_of_any_layer_is_kept() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1)))
    for parameter, value in zip(network.parameters(), (1e5, -3e5, 1e-6, 0.0), strict=True):
        torch.nn.init.constant_(parameter, value)
    with torch.no_grad(), parity._largest_activation(network) as largest:
        network(torch.ones(1, 1, 2, 2))
    assert max(largest) == 2e5 > parity.ACTIVATION_LIMIT
    network(torch.ones(1, 1, 2, 2))
    assert len(largest) == 2
