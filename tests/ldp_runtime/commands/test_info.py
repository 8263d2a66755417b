import json
import os
from pathlib import Path

import msgspec
import numpy as np
import pytest

from ldp_runtime import __version__
from ldp_runtime.bundle.bundle import Bundle, read_manifest, save_manifest
from ldp_runtime.bundle.engines import EngineFile
from ldp_runtime.bundle.manifest import Origin, SourceFile
from ldp_runtime.bundle.trust import trust
from tests.ldp_runtime.conftest import Run
from tests.ldp_runtime.tiny_bundle import make_engine, make_tiny_bundle


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


def test_engines_are_listed_trusted_or_not(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LDP_CONFIG", str(tmp_path / "config"))
    monkeypatch.setenv("LDP_BUNDLES", str(tmp_path))
    path = make_tiny_bundle(tmp_path)
    old, head, new = (make_engine(path, name.encode(), name) for name in ("old", "head", "new"))
    gone = make_engine(path, b"gone", "gone", flavour="tensorrt", version="10.9", targets=("sm_90",))
    clip = make_engine(path, b"clip", "clip", kind="clip", key="1" * 64)
    cut = msgspec.structs.replace(new, key="2" * 64, head=EngineFile(head.file, head.sha256, head.size))
    save_manifest(path, msgspec.structs.replace(read_manifest(path), engines=(clip, old, cut, gone)))
    (path / gone.file).unlink()
    trust([file.sha256 for entry in (clip, old) for file in entry.files] + [new.sha256], "a test")

    listed = json.loads(run("info", "--json")[1])["bundles"]["tiny"]["engines"]
    rtx = {"flavour": "rtx", "version": "1.7", "precision": "fp16", "targets": ["sm_89"]}
    assert listed == [
        {"kind": "clip", **rtx, "state": "trusted"},
        {"kind": "deblur", **rtx, "state": "trusted"},
        {"kind": "deblur", **rtx, "state": "untrusted"},  # half of it is trusted
        {
            **listed[0],
            "kind": "deblur",
            "flavour": "tensorrt",
            "version": "10.9",
            "targets": ["sm_90"],
            "state": "missing",
        },
    ]
    out = run("info")[1]
    for line in (
        "clip, deblur by TensorRT-RTX 1.7 for sm_89 in fp16, trusted",
        "deblur by TensorRT-RTX 1.7 for sm_89 in fp16, untrusted",
        "deblur by TensorRT 10.9 for sm_90 in fp16, missing",
    ):
        assert out.count(f"  {'':21}{line}\n") == 1
    (tmp_path / "config" / "trusted-engines").chmod(0o777)
    assert "fp16, trusted" not in run("info")[1], "others could have written the record"
