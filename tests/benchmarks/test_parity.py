import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from benchmarks import parity
from benchmarks.__main__ import main
from benchmarks.harness import bundles
from benchmarks.harness.results import BenchmarkError, Report
from benchmarks.latency.contenders import Contender
from benchmarks.parity import Pair, Restore, compare, measure, sixteen_bits, to_markdown
from ldp_export.evaluation import reference
from ldp_runtime import Deblurrer
from ldp_runtime.bundle.bundle import Bundle
from ldp_runtime.command import CheckFailedError
from ldp_runtime.errors import BackendError, LDPError
from ldp_runtime.result import Result
from tests.ldp_runtime.tiny_bundle import deblur_graph, make_tiny_bundle, rewrite

FP32, FP16 = Contender("onnxruntime", "fp32"), Contender("onnxruntime", "fp16")


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    """Two sets of noisy pairs, 16 bits; the target is near the center view, as that of a restorer."""
    rng = np.random.default_rng(0)
    made = []
    for name, count in (("one", 2), ("two", 1)):
        for i in range(count):
            sharp = np.kron(rng.uniform(0.2, 0.8, (5, 6, 3)), np.ones((8, 8, 1)))
            left, right, target = (
                np.round(np.clip(sharp + 0.02 * rng.standard_normal(sharp.shape), 0, 1) * 65535).astype(np.uint16)
                for _ in range(3)
            )
            made.append(Pair(name, f"{name}-{i}", left, right, target))
    return made


def runtime(bundle: Bundle, contender: Contender) -> Restore:
    return Deblurrer(bundle, backend=contender.backend, precision=contender.precision, threads=1)


def restored(image: np.ndarray, logits: np.ndarray) -> Result:
    return Result(restored=image, blur_map=None, blur_logits=logits, timings={}, backend="", precision="")


def perturbed(folder: Path, gain: float) -> Bundle:
    """A tiny bundle whose deblur graphs have a residual of another size."""
    path = make_tiny_bundle(folder)
    for precision, suffix in ((np.float32, ".onnx"), (np.float16, ".fp16.onnx")):
        graph = deblur_graph(np.random.default_rng(0), np.dtype(precision), gain)
        onnx.save(graph, path / f"deblur{suffix}")
    rewrite(path)
    return Bundle.load(path)


def test_an_equal_graph_passes_and_its_fp16_differs_a_little(bundle: Bundle, pairs: list[Pair]) -> None:
    data = measure(pairs, runtime(bundle, FP32), [FP32, FP16], lambda contender: runtime(bundle, contender))
    assert data["failures"] == []
    assert {name: scores["pairs"] for name, scores in data["sets"].items()} == {"one": 2, "two": 1}
    same, half = data["configurations"]
    for summary in same["sets"].values():
        assert summary["psnr_db"] is None
        assert summary["max_error"] == summary["delta_psnr_db"] == summary["delta_ssim"] == 0
        assert summary["passed"]
    for summary in half["sets"].values():
        assert 60 < summary["psnr_db"] < 110
        assert 0 < summary["mean_error"] < summary["max_error"] < 1e-3
        assert 0 < summary["blur_logits_max_error"] < 0.1
        assert 0 < abs(summary["delta_psnr_db"]) <= 0.01
    assert [figures["pair"] for figures in half["pairs"]] == ["one-0", "one-1", "two-0"]


def test_a_perturbed_graph_fails_its_gate(bundle: Bundle, pairs: list[Pair], tmp_path: Path) -> None:
    other = perturbed(tmp_path, gain=0.03)
    data = measure(pairs, runtime(bundle, FP32), [FP32], lambda contender: runtime(other, contender))
    (entry,) = data["configurations"]
    assert not any(summary["passed"] for summary in entry["sets"].values())
    assert all(abs(summary["delta_psnr_db"]) > 0.01 for summary in entry["sets"].values())
    assert len(data["failures"]) == 2
    assert data["failures"][0].startswith("onnxruntime fp32 on one: expected a change in PSNR to the target of at most")


def test_each_precision_has_its_limit() -> None:
    assert parity.LIMITS_DB == {"fp32": 0.01, "fp16": 0.01, "bf16": 0.02, "int8": 0.05}
    figures = [
        {"delta_psnr_db": delta, "delta_ssim": None, "max_error": 0.0, "mean_error": 0.0} for delta in (0.01, 0.02)
    ]
    figures = [figure | {"psnr_db": None, "blur_logits_max_error": 0.0} for figure in figures]
    assert not parity._summarise(figures, 0.01)["passed"]
    summary = parity._summarise(figures, 0.02)
    assert summary["passed"]
    assert summary["worst_delta_psnr_db"] == 0.02
    assert not parity._summarise([figures[0] | {"delta_psnr_db": math.nan}], 0.02)["passed"]


def test_a_backend_that_fails_is_a_failed_gate(bundle: Bundle, pairs: list[Pair]) -> None:
    def restore(contender: Contender) -> Restore:
        if contender == FP16:
            raise BackendError("no such device")
        return runtime(bundle, contender)

    data = measure(pairs, runtime(bundle, FP32), [FP16, FP32], restore)
    assert data["failures"] == ["onnxruntime fp16: no such device"]
    assert [entry["error"] for entry in data["configurations"]] == ["no such device", None]
    report = Report.new("parity", {**data, "left_out": {}}, bundle)
    assert Report.from_json(report.to_json()) == report
    markdown = to_markdown(report)
    assert "| onnxruntime fp16 | – | – | – | – | – | – | – | failed |" in markdown
    assert "Gates failed: onnxruntime fp16: no such device." in markdown
    assert "## one, 2 pairs" in markdown


def test_figures_of_a_pair() -> None:
    target = np.full((8, 8, 3), 32768, np.uint16)
    want, got = target + np.uint16(100), target.copy()
    got[0, 0, 0] += 655
    logits = np.zeros((2, 2), np.float32)
    figures = compare(Pair("s", "p", target, target, target), restored(got, logits + 0.25), restored(want, logits))
    assert figures["max_error"] == pytest.approx(555 / 65535)
    assert figures["mean_error"] == pytest.approx((100 * 191 + 555) / 192 / 65535)
    assert figures["blur_logits_max_error"] == 0.25
    psnrs = [10 * math.log10(65535**2 / mse) for mse in (655**2 / 192, 100**2)]
    assert figures["delta_psnr_db"] == pytest.approx(psnrs[0] - psnrs[1])
    perfect = compare(Pair("s", "p", target, target, target), restored(target, logits), restored(want, logits))
    assert math.isfinite(perfect["delta_psnr_db"])


def test_sixteen_bits_are_the_same_share_of_full_scale() -> None:
    image = np.array([[[0, 1, 255]]], np.uint8)
    assert sixteen_bits(image).tolist() == [[[0, 257, 65535]]]
    assert sixteen_bits(image).dtype == np.uint16
    photo = np.array([[[0, 1, 65535]]], np.uint16)
    assert sixteen_bits(photo).tolist() == photo.tolist()


def test_simulated_pairs_are_always_the_same() -> None:
    (first,) = parity.simulated_pairs(1)
    (again,) = parity.simulated_pairs(1)
    assert first.left.shape == (256, 256, 3)
    for name in ("left", "right", "target"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert not np.array_equal(first.left, first.right)


@pytest.mark.parametrize(
    ("item", "words"),
    [("simulated", "expected --data NAME=DIR"), ("nonsense=somewhere", "expected a data set, one of")],
)
def test_data_that_cannot_be_had(item: str, words: str) -> None:
    with pytest.raises(LDPError, match=words):
        parity.data_pairs(item, 4)


def test_a_data_set_gives_pairs_spread_over_its_split(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    fields: dict[str, Any] = {
        name: rng.integers(0, 255, (5, 256, 256, 3), dtype=np.uint8) for name in ("left", "right", "target")
    }
    fields |= {name: np.zeros((5, 256, 256), np.float16) for name in ("coc", "disparity")}
    np.savez(tmp_path / "scenes-0000.npz", **fields)
    pairs = parity.data_pairs(f"simulated={tmp_path}", 3)
    assert [pair.set for pair in pairs] == [pairs[0].set] * 3
    np.testing.assert_array_equal(pairs[0].target, sixteen_bits(fields["target"][0]))
    np.testing.assert_array_equal(pairs[2].left, sixteen_bits(fields["left"][4]))


def test_the_command_fails_where_a_gate_did_and_still_writes_its_result(
    bundle: Bundle,
    pairs: list[Pair],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def torch(*_: object, **__: object) -> Restore:
        """Stands for torch: the tiny bundle was exported from nothing."""
        restore = runtime(bundle, FP32)

        def other(left: Any, right: Any) -> Result:
            result = restore(left, right)
            return restored(result.restored ^ 512, result.blur_logits)

        return other

    monkeypatch.setattr(reference, "TorchDeblurrer", torch)
    monkeypatch.setattr(bundles, "reference_model", lambda *_: None)
    monkeypatch.setattr(parity, "sample_pairs", lambda: pairs)
    monkeypatch.setattr(parity, "simulated_pairs", list)
    parser = argparse.ArgumentParser()
    parity.add_arguments(parser)
    options = ["--bundle", str(bundle.path), "--backend", "onnxruntime:fp32", "-o", str(tmp_path)]
    with pytest.raises(CheckFailedError, match="onnxruntime fp32 on one: expected a change"):
        parity.run(parser.parse_args(options))
    report = Report.read(tmp_path / "parity-tiny.json")
    assert report.data["failures"]
    assert to_markdown(report) in capsys.readouterr().out
    with pytest.raises(BenchmarkError, match="--pairs above 0"):
        parity.run(parser.parse_args([*options, "--pairs", "0"]))


@pytest.mark.slow
def test_ldp_nano_passes_on_every_backend_here(tmp_path: Path) -> None:
    assert main(["parity", "-o", str(tmp_path)]) == 0
    report = Report.read(tmp_path / "parity-ldp-nano.json")
    assert report.data["failures"] == []
    assert {"openvino fp32", "onnxruntime fp32", "onnxruntime fp16"} <= {
        c["name"] for c in report.data["configurations"]
    }
    assert report.data["sets"]["sample"]["psnr_db"] > 29
    assert report.data["sets"]["simulated"]["pairs"] == parity.SIMULATED_PAIRS
