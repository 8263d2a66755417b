import argparse
from pathlib import Path

import pytest

from benchmarks.engines import bench as engine_build
from benchmarks.harness.results import Report
from tests.ldp_runtime.tiny_bundle import make_tiny_bundle


def arguments(*options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    engine_build.add_arguments(parser)
    return parser.parse_args(options)


def test_builds_are_measured_and_the_bundle_stays_as_it_is(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed (pip install 'ldp[rtx]')")
    bundle, older = make_tiny_bundle(tmp_path), make_tiny_bundle(tmp_path, "older", seed=1)
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    output = tmp_path / "reports"
    options = ("--shape", "64x96", "--arch", "sm_86", "--before", str(older), "-o", str(output))
    engine_build.run(arguments("--bundle", str(bundle), *options))
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before

    report = Report.read(output / "engine_build.json")
    assert report.kind == "engine_build"
    assert report.bundle is not None
    assert report.bundle.name == "tiny"
    builds = report.data["builds"]
    assert [(b["kind"], b["targets"], b["fixed"]) for b in builds] == [
        (kind, ["sm_86"], fixed) for fixed in (True, False) for kind in ("clip", "head", "deblur")
    ]
    for build in builds:
        assert build["bytes"] > 1000
        assert build["wall_s"] >= 0
        assert build["warnings"] == []
        assert build["layers"] > 0 < build["parsed_layers"]
        assert (build["moved_bytes"] is not None) == build["fixed"]
    fixed = next(build for build in builds if build["kind"] == "deblur" and build["fixed"])
    # At least the pair and the logits are read and the output is written, all FP32.
    assert fixed["moved_bytes"] >= (9 * 64 * 96 + 4 * 6) * 4
    assert {graph["kind"]: graph["needless"] for graph in report.data["graphs"]} == {"clip": 0, "deblur": 0}
    assert [build["targets"] for build in report.data["before"]["builds"]] == 3 * [["sm_86"]]

    text = (output / "engine_build.md").read_text(encoding="utf-8")
    assert "| tiny | deblur | sm_86 | 64x96 |" in text
    assert "32x32 to 2240x3360, tuned for 1120x1696" in text
    assert "## Before" in text
    assert "Warnings of TensorRT: none." in text


def test_the_report_names_warnings_and_leaves_out_what_is_not_known() -> None:
    build = {
        "bundle": "b", "kind": "clip", "targets": ["sm_75"], "sizes": "32x32", "fixed": True, "wall_s": 1.0,
        "cpu_s": 2.0, "bytes": 2**20, "activation_bytes": None, "parsed_layers": 9, "layers": 0, "attentions": 0,
        "moved_bytes": None, "warnings": ["It may overflow"],
    }  # fmt: skip
    text = engine_build.markdown({"tensorrt": "TensorRT 11.0", "graphs": [], "builds": [build]})
    assert "| b | clip | sm_75 | 32x32 | 1.0 | 2.0 | 1.0 | – | 9 to 0 | – |" in text
    assert "Warnings of TensorRT: It may overflow." in text
    assert "## Before" not in text
