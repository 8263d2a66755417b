import json
import os
from pathlib import Path

import msgspec
import numpy as np
import pytest

from ldp_runtime import __version__
from ldp_runtime.bundle.bundle import Bundle, read_manifest, save_manifest
from ldp_runtime.bundle.manifest import Origin, SourceFile
from tests.ldp_runtime.conftest import Run
from tests.ldp_runtime.tiny_bundle import make_tiny_bundle


def test_info(
    run: Run, bundle: Path, bundle_without_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "bundle.json").write_text("{}")
    folders = [bundle.parent, bundle_without_clip.parent, tmp_path]
    monkeypatch.setenv("LDP_BUNDLES", os.pathsep.join(map(str, folders)))
    code, out, err = run("info", "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report["versions"]["ldp"] == __version__
    assert report["versions"]["numpy"] == np.__version__
    assert report["backends"]["onnxruntime"]["available"] is True
    assert "fp32" in report["backends"]["onnxruntime"]["precisions"]
    for backend in report["backends"].values():
        assert backend["available"] or backend["reason"]
    assert report["bundles"]["tiny"]["path"] == str(bundle)
    assert report["bundles"]["tiny"]["blur_map"] is True
    assert (report["bundles"]["mapless"]["blur_map"], report["bundles"]["mapless"]["clip"]) == (False, None)
    assert "bundle.json" in report["bundles"]["damaged"]["error"]
    assert str(bundle.parent) in report["bundle_folders"]

    code, out, err = run("info")
    assert (code, err) == (0, "")
    for text in (__version__, report["cpu"]["name"], "  onnxruntime ", "  auto ", f"  tiny {'':16}{bundle}\n"):
        assert text in out
    assert f"{bundle_without_clip}; no blur map\n" in out


def test_an_imported_bundle_says_its_origin(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_tiny_bundle(tmp_path, "imported", clip=False)
    origin = Origin("dpdnet", (SourceFile("a.hdf5", "0" * 64),), "MIT", "may be passed on", "A and B, ECCV 2020")
    save_manifest(path, msgspec.structs.replace(read_manifest(path), origin=origin, bf16=False))
    assert Bundle.load(path).manifest.origin == origin
    monkeypatch.setenv("LDP_BUNDLES", str(tmp_path))
    assert json.loads(run("info", "--json")[1])["bundles"]["imported"]["origin"]["cite"] == "A and B, ECCV 2020"
    out = run("info")[1]
    assert f"dpdnet from a.hdf5 (SHA-256 {'0' * 64}); MIT; may be passed on\n" in out
    assert "cite: A and B, ECCV 2020\n" in out
    assert f"{path}; no blur map; auto takes fp32 on CPUs\n" in out
