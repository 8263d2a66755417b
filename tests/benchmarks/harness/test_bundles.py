import dataclasses
from pathlib import Path

import msgspec
import pytest

from benchmarks.harness import bundles
from benchmarks.harness.results import BenchmarkError
from ldp_runtime.bundle.bundle import Bundle
from tests.ldp_runtime.tiny_bundle import make_tiny_bundle


def test_the_key_changes_with_the_content_and_the_names_of_the_sources(tmp_path: Path) -> None:
    one, other = tmp_path / "one.py", tmp_path / "other.py"
    one.write_text("x = 1\n")
    other.write_text("x = 1\n")
    keys = {bundles.sources_key([one]), bundles.sources_key([other]), bundles.sources_key([one, other])}
    one.write_text("x = 2\n")
    assert len({*keys, bundles.sources_key([one])}) == 4


def test_the_exporters_sources_are_where_its_key_expects_them() -> None:
    assert len(bundles.exporter_key()) == 16


def test_without_a_cache_there_is_nowhere_to_export_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundles, "cache_folder", lambda *_: None)
    with pytest.raises(BenchmarkError, match="expected a cache folder for exported graphs, got none; set LDP_CACHE"):
        bundles.export_folder("key")


def test_a_bundle_without_its_checkpoint(bundle: Bundle) -> None:
    assert not bundles.has_reference(bundle)
    with pytest.raises(BenchmarkError, match="models/checkpoints/tiny, got none"):
        bundles.reference_model(bundle)


def test_the_checkpoint_of_another_network_is_refused() -> None:
    nano = bundles.open_bundle(None, None)
    network = {**nano.manifest.network, "width": 48}
    other = dataclasses.replace(nano, manifest=msgspec.structs.replace(nano.manifest, network=network))
    with pytest.raises(BenchmarkError, match="expected the network that ldp-nano was exported from"):
        bundles.reference_model(other)


def test_bundles_are_opened_by_name_or_as_random_weights(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bundles.open_bundle(None, None).manifest.name == "ldp-nano"
    monkeypatch.setattr(bundles, "random_bundle", lambda config: bundle.path if config == "small" else None)
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
    monkeypatch.setattr("ldp_export.model.random_model", lambda *what: asked.append(what))
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
