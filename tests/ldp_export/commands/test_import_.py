"""``ldp-export import``: help, errors, and bundles of small networks that run as any other."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ldp_export.bundling import parity
from ldp_export.cli import main
from ldp_export.network.published import PUBLISHED, restormer
from ldp_runtime import Deblurrer
from ldp_runtime.bundle.bundle import Bundle
from tests.ldp_export.importing.authors import IMPORTABLE
from tests.ldp_export.importing.made_files import draw, narrow, save, save_torch


@pytest.mark.parametrize("name", sorted(IMPORTABLE))
def test_help_says_where_the_file_is_and_what_its_licence_allows(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", name, "--help"]) == 0
    text, network = " ".join(capsys.readouterr().out.split()), PUBLISHED[name]
    weights = network.weights
    assert weights is not None
    for part in (*weights.files, weights.where, weights.licence, weights.sharing, weights.cite, network.source):
        assert part in text


def test_a_wrong_file_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save_torch(tmp_path / "a.pth", {"weight": torch.zeros(1)}, "params")
    assert main(["import", "restormer", str(path), "-o", str(tmp_path / "bundle")]) == 2
    error = capsys.readouterr().err
    assert "495 missing: " in error and "1 unknown: weight" in error and error.count("\n") == 1
    assert not (tmp_path / "bundle").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bambnet", "dpdnet", "ifan", "rdpd", "restormer"])
def test_an_imported_bundle_runs_as_any_other(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow(monkeypatch)
    monkeypatch.setattr(restormer, "BLOCKS", (1, 1, 1, 1))
    monkeypatch.setattr(restormer, "REFINEMENT", 1)
    monkeypatch.setattr(parity, "TARGET_LIMIT_DB", 1.0)  # random numbers restore nothing
    state = draw(name, tame=True)
    network = PUBLISHED[name].build().eval()
    network.load_published_state(state)
    (path,) = save(tmp_path, name, state)
    assert main(["import", name, str(path), "-o", str(tmp_path / "bundle")]) == 0
    manifest = Bundle.load(tmp_path / "bundle").manifest
    assert manifest.origin is not None and manifest.origin.kind == name and manifest.clip is None
    rng = np.random.default_rng(0)
    left, right = (rng.integers(0, 1 << 16, (53, 91, 3)).astype(np.uint16) for _ in range(2))
    pair = np.pad(np.concatenate([left, right], 2), ((0, 11), (0, 5), (0, 0)), "reflect") / np.float32(65535)
    with torch.inference_mode():
        restored = network(torch.from_numpy(pair).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    expected = restored[:53, :91].clip(0, 1)
    assert expected.std() > 0.01
    for backend in ("onnxruntime", "openvino"):
        for precision, limit in (("fp32", 1e-4), ("fp16", 2e-2)):
            deblurrer = Deblurrer.from_bundle(tmp_path / "bundle", backend=backend, precision=precision, threads=1)
            result = deblurrer(left, right)
            assert result.blur_map is None
            error = np.abs(result.restored / 65535 - expected)
            assert error.max() < limit, f"{backend} {precision}: mean {error.mean():.3g}, max {error.max():.3g}"
