from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.roofline.variants import design_variants, export_variant, variants_are_exported
from ldp_export.network import CONFIGS
from ldp_runtime.bundle.bundle import Bundle
from tests.ldp_export.tiny_models import TINY_CONFIG

NANO = Path(__file__).resolve().parents[3] / "models" / "ldp-nano"


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_the_variants_are_networks_that_can_be_built(name: str) -> None:
    config = CONFIGS[name]
    variants = design_variants(config)
    assert len(variants) >= 2
    assert len({variant.to_dict().__repr__() for variant in [config, *variants.values()]}) == len(variants) + 1


def test_a_variant_is_exported_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exported: list[int] = []

    def deblur_graph(network: object, multiple: int, *, half: bool) -> bytes:
        exported.append(multiple)
        return b"fp16" if half else b"fp32"

    monkeypatch.setenv("LDP_CACHE", str(tmp_path))
    monkeypatch.setattr("ldp_export.bundling.onnx_graphs.deblur_graph", deblur_graph)
    monkeypatch.setattr("ldp_export.bundling.onnx_graphs.save_graph", lambda graph, path: path.write_bytes(graph))
    paths = [export_variant(TINY_CONFIG, patch) for patch in (32, 32, 24)]
    assert exported == [32, 48]
    assert paths[0] == paths[1] != paths[2]
    assert {path.read_bytes() for path in paths} == {b"fp16"}
    assert {path.name for path in paths[0].parent.iterdir()} == {path.name for path in paths}
    manifest = Bundle.load(NANO).manifest
    assert not variants_are_exported(manifest)
    for variant in design_variants(CONFIGS["nano"]).values():
        export_variant(variant, manifest.clip.patch)
    assert variants_are_exported(manifest)
