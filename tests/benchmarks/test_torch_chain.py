"""Torch as the benchmarks run it, on ldp-nano: what the others are compared with must itself be right."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest

from benchmarks import torch_chain
from benchmarks.harness import bundles
from benchmarks.harness.results import BenchmarkError
from benchmarks.parity import sample_pairs
from benchmarks.torch_chain import TorchChain
from ldp_runtime import Deblurrer
from ldp_runtime.bundle.bundle import Bundle
from ldp_runtime.images.quality import psnr
from tests.ldp_runtime.tiny_bundle import make_tiny_bundle

if TYPE_CHECKING:
    from ldp_export.model import ExportModel


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.load(bundles.ROOT / "models" / "ldp-nano")


@pytest.fixture(scope="module")
def model(bundle: Bundle) -> ExportModel:
    return bundles.reference_model(bundle)


@pytest.mark.parametrize("layout", torch_chain.LAYOUTS)
@pytest.mark.parametrize("size", [(70, 101), (5, 3)])
def test_it_restores_what_the_runtime_restores(
    bundle: Bundle, model: ExportModel, layout: str, size: tuple[int, int]
) -> None:
    (pair,) = sample_pairs()
    left, right = (view[200 : 200 + size[0], 300 : 300 + size[1]] for view in (pair.left, pair.right))
    expected = Deblurrer(bundle, backend="onnxruntime", precision="fp32", threads=1)(left, right)
    result = TorchChain(bundle, model, layout)(left, right)
    assert result.restored.dtype == np.uint16
    assert np.abs(result.restored.astype(int) - expected.restored).max() <= 3
    np.testing.assert_allclose(result.blur_logits, expected.blur_logits, atol=1e-4)
    assert set(result.timings) == {"prepare", "clip", "blur_logits", "deblur", "finish"}
    assert np.ptp(result.restored) > 0


def test_bf16_is_near(bundle: Bundle, model: ExportModel) -> None:
    (pair,) = sample_pairs()
    left, right = (view[200:296, 300:396] for view in (pair.left, pair.right))
    images = [TorchChain(bundle, model, "torch", p)(left, right).restored for p in ("fp32", "bf16")]
    assert 45 < psnr(*images, data_range=65535) < 90


def test_unknown_forms_are_refused(bundle: Bundle, model: ExportModel) -> None:
    with pytest.raises(BenchmarkError, match="got 'rows' and 'fp32'"):
        TorchChain(bundle, model, "rows")


def test_precisions() -> None:
    if torch_chain.device() == "cuda":
        assert torch_chain.precisions(()) == ("fp32", "fp16", "bf16")
    else:
        assert torch_chain.precisions(("avx2",)) == ("fp32",)
        assert torch_chain.precisions(["avx2", "avx512_bf16"]) == ("fp32", "bf16")


def test_a_bundle_without_its_checkpoint(tmp_path: Path) -> None:
    tiny = Bundle.load(make_tiny_bundle(tmp_path))
    assert not bundles.has_reference(tiny)
    with pytest.raises(BenchmarkError, match="models/checkpoints/tiny, got none"):
        bundles.reference_model(tiny)


def test_the_checkpoint_of_another_network_is_refused(bundle: Bundle) -> None:
    network = {**bundle.manifest.network, "width": 48}
    other = dataclasses.replace(bundle, manifest=msgspec.structs.replace(bundle.manifest, network=network))
    with pytest.raises(BenchmarkError, match="expected the network that ldp-nano was exported from"):
        bundles.reference_model(other)


def test_bundles_are_opened_by_name_or_as_random_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert bundles.open_bundle(None, None).manifest.name == "ldp-nano"
    made = make_tiny_bundle(tmp_path)
    monkeypatch.setattr(bundles, "random_bundle", lambda config: made if config == "small" else None)
    assert bundles.open_bundle(None, "small").manifest.name == "tiny"


def test_a_random_bundle_takes_the_place_of_that_of_older_sources(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from ldp_export.bundling import onnx_graphs as onnx_export

    monkeypatch.setenv("LDP_CACHE", str(tmp_path))
    stale = tmp_path / "benchmarks" / "older" / "ldp-small-random"
    other = tmp_path / "benchmarks" / "older" / "ldp-large-random"
    for folder in (stale, other):
        folder.mkdir(parents=True)
    asked = []
    monkeypatch.setattr(onnx_export, "random_model", lambda *what: asked.append(what))
    monkeypatch.setattr(onnx_export, "export_bundle", lambda _, path, name, report: make_tiny_bundle(path.parent, name))
    path = bundles.random_bundle("small")
    assert Bundle.load(path).manifest.name == "ldp-small-random"
    assert bundles.random_bundle("small") == path
    assert asked == [("small", bundles.CLIP_ARCHITECTURE)]
    assert not stale.exists()
    assert other.exists()


def test_random_bundles_are_kept_in_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LDP_CACHE", str(tmp_path))
    folder = tmp_path / "benchmarks" / bundles.exporter_key()
    folder.mkdir(parents=True)
    made = make_tiny_bundle(folder, "ldp-small-random")
    assert bundles.random_bundle("small") == made
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LDP_CACHE", str(tmp_path / "file"))
    with pytest.raises(BenchmarkError, match="set LDP_CACHE"):
        bundles.random_bundle("small")
