"""The floor of the chain, its tables, its finding and its plot, on nano."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness.results import BenchmarkError, Report
from benchmarks.roofline import bench as roofline
from benchmarks.roofline.bench import (
    PREDICTED,
    Chain,
    Step,
    analyse,
    build_chain,
    design_variants,
    export_variant,
    finding,
    floor,
    markdown,
    variants_are_exported,
)
from benchmarks.roofline.fusion import EXTRA
from benchmarks.roofline.hardware import Device, gpus
from ldp_export.network import CONFIGS
from ldp_runtime.bundle.bundle import Bundle
from tests.ldp_export.tiny_models import TINY_CONFIG

NANO = Path(__file__).resolve().parents[3] / "models" / "ldp-nano"
SIZE = (100, 150)
CPU = Device("a CPU", "fp32", 1e11, 1e11, 1e10, 0, True)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.load(NANO)


@pytest.fixture(scope="module")
def chain(bundle: Bundle) -> Chain:
    return build_chain(bundle, SIZE, "fp16")


@pytest.fixture(scope="module")
def data(bundle: Bundle) -> dict[str, Any]:
    return analyse(bundle, SIZE, "RTX 3060", cpu=[CPU])


def test_the_chain_has_all_stages_in_order(chain: Chain) -> None:
    assert list(dict.fromkeys(step.stage for step in chain.steps)) == [
        "prepare",
        "clip",
        "blur_logits",
        "deblur",
        "finish",
    ]
    assert chain.padded == (128, 160)
    assert all(step.nbytes() > 0 for step in chain.steps)


def test_the_own_kernels_move_at_least_pixels_in_and_out(chain: Chain) -> None:
    (h, w), (H, W) = chain.size, chain.padded
    steps = {step.stage: step for step in chain.steps if step.kind == "cuda"}
    assert steps["prepare"].nbytes() >= 6 * h * w + 24 * H * W
    assert steps["finish"].nbytes() >= 12 * h * w + 3 * h * w
    assert steps["blur_logits"].nbytes() >= 4 * (H // 16) * (W // 16)


def test_clip_runs_once_a_batch(bundle: Bundle) -> None:
    large = build_chain(bundle, (1120, 1680), "fp16")
    assert large.windows > 64 and large.batches > 1
    assert {step.repeats for step in large.steps if step.stage == "clip"} == {large.batches}
    assert {step.repeats for step in large.steps if step.stage != "clip"} == {1}


def test_the_floor_of_a_chain_is_the_sum_over_its_kernels(chain: Chain) -> None:
    card = gpus()[0]
    by_hand = sum(
        step.repeats
        * max(
            step.matrix_flops / card.matrix,
            step.vector_flops / card.vector,
            sum(size for size, _ in step.traffic) / card.bandwidth,
        )
        for step in chain.steps
    )
    assert floor(chain.steps, card) == pytest.approx(by_hand)
    assert floor(chain.steps, card, cached=True) <= by_hand <= floor(chain.unfused, card)
    assert floor(chain.steps, replace(card, bandwidth=card.bandwidth / 2)) > 1.5 * by_hand  # bound by memory


def test_a_cache_holds_tensors_whole_or_not_at_all() -> None:
    step = Step("deblur", "matrix", "", (1,), 0, 0, ((100, 0), (40, 80), (60, 60)))
    assert [step.nbytes(cache) for cache in (0, 59, 60, 79, 80)] == [200, 200, 140, 140, 100]


def test_every_figure_of_a_gpu_is_labelled(data: dict[str, Any]) -> None:
    labels = {row["device"]: row["label"] for row in data["devices"]}
    assert labels.pop("a CPU") == "floor at measured rates"
    assert set(labels.values()) == {PREDICTED} and len(labels) == 6
    text = markdown(data)
    for heading in [line for line in text.splitlines() if line.startswith("## ") and "RTX" in line]:
        assert PREDICTED in heading
    assert text.count(f"| {PREDICTED} |") == 6


def test_shares_and_totals_add_up(data: dict[str, Any], chain: Chain) -> None:
    total = 1e3 * floor(chain.steps, gpus()[0])
    for key in ("stages", "bounds", "points"):
        assert sum(row["ms"] for row in data[key]) == pytest.approx(total)
        assert sum(row["share"] for row in data[key]) == pytest.approx(1)
    (deblur,) = [row["ms"] for row in data["stages"] if row["what"] == "deblur"]
    for key in ("kinds", "scales"):
        assert sum(row["ms"] for row in data[key]) == pytest.approx(deblur)
    assert len(data["kernels"]) == len(data["nodes"]) == 10
    assert [row["ms"] for row in data["kernels"]] == sorted((row["ms"] for row in data["kernels"]), reverse=True)
    matrix = chain.batches * chain.clip.matrix_flops + chain.deblur.matrix_flops
    assert data["totals"][0]["matrix_gflop"] == pytest.approx(matrix / 1e9)


def test_more_fusions_lower_the_floor(data: dict[str, Any]) -> None:
    rules, *alone, together = (row["ms"] for row in data["fusions"])
    assert len(alone) == len(EXTRA)
    assert max(alone) <= rules
    assert together < min(alone)


def test_the_finding_is_made_of_the_figures(data: dict[str, Any]) -> None:
    stages = [{**data["stages"][0], "what": "some stage", "share": 0.875}, *data["stages"][1:]]
    fusions = [
        {"change": "the rules alone", "ms": 10.0},
        {"change": "one thing", "ms": 9.0},
        {"change": "another", "ms": 7.0},
        {"change": "all of these", "ms": 5.0},
    ]
    variants = [
        {"change": "as it is", "parameters": 1, "ms": 10.0},
        {"change": "a smaller one", "parameters": 2_500_000, "ms": 4.0},
    ]
    text = finding(data | {"stages": stages, "fusions": fusions, "variants": variants})
    assert "some stage stage takes 88%" in text
    assert "*another*: 7.00 ms (-30.0%)" in text and "5.00 ms (-50.0%)" in text
    assert "*a smaller one* would lower it most: 4.00 ms (-60.0%) with 2.5 M parameters" in text
    assert "unknown until it is trained" in text


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


def test_the_command_writes_all_its_files(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(roofline, "measure_cpu", lambda: [CPU])
    monkeypatch.setenv("LDP_CACHE", str(tmp_path_factory.mktemp("cache")))  # has no variants, whatever the user's has
    parser = argparse.ArgumentParser()
    roofline.add_arguments(parser)
    roofline.run(parser.parse_args(["--bundle", str(NANO), "--shape", "100x150", "--output", str(tmp_path)]))
    report = Report.read(tmp_path / "roofline-ldp-nano.json")
    assert (report.kind, report.data["size"]) == ("roofline", [100, 150])
    assert (tmp_path / "roofline-ldp-nano.png").read_bytes().startswith(b"\x89PNG")
    drawing = (tmp_path / "roofline-ldp-nano.svg").read_text()
    assert "<svg" in drawing
    text = (tmp_path / "roofline-ldp-nano.md").read_text()
    assert "## Finding" in text and "roofline-ldp-nano.svg" in text
    assert "## Finding" in capsys.readouterr().out
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".md", ".png", ".svg"]


def test_errors_say_what_is_wrong(bundle: Bundle) -> None:
    with pytest.raises(BenchmarkError, match=r"expected a device, one of RTX 3060, .*got 'GTX 1080'"):
        analyse(bundle, SIZE, "GTX 1080", cpu=[CPU])
    for text in ("1120", "0x10", "axb", "1x2x3"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected HEIGHTxWIDTH"):
            roofline.parse_size(text)
