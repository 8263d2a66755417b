import json
import os
from pathlib import Path

import numpy as np
import pytest

from ldp_runtime import __version__
from tests.ldp_runtime.conftest import Run


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
