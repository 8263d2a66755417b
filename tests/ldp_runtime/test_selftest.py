import hashlib
import json
import tracemalloc
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from ldp_export.bundling.selftest import add_sample
from ldp_runtime import selftest
from ldp_runtime.bundle.bundle import Bundle, read_manifest, write_manifest
from ldp_runtime.bundle.manifest import SELFTEST_FILE
from ldp_runtime.cli import main
from ldp_runtime.errors import BackendError, BundleError
from ldp_runtime.registry import BACKENDS
from ldp_runtime.selftest import MAX_SAMPLE_BYTES, read_sample, run_selftest, sample_pair
from tests.ldp_runtime.tiny_bundle import make_tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with a sample."""
    path = make_tiny_bundle(tmp_path_factory.mktemp("bundles"))
    add_sample(path)
    return path


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A tiny bundle with a sample, to be spoilt."""
    path = make_tiny_bundle(tmp_path)
    add_sample(path)
    return path


def rehash(path: Path) -> None:
    manifest = read_manifest(path)
    write_manifest(path, manifest, extra_files=manifest.files)


def scale_weights(path: Path, factor: float) -> None:
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.ndim == 4:
            tensor.CopyFrom(numpy_helper.from_array((array * factor).astype(array.dtype), tensor.name))
    onnx.save(model, path)


def test_the_made_pair_is_the_same_everywhere() -> None:
    left, right = sample_pair()
    assert (left.shape, left.dtype, right.shape) == ((96, 128, 3), np.uint16, (96, 128, 3))
    assert np.array_equal(left[:, 0], right[:, 0])  # sharp on the left
    assert not np.array_equal(left[:, 100:], right[:, 100:])
    digest = hashlib.sha256(left.astype("<u2").tobytes() + right.astype("<u2").tobytes()).hexdigest()
    assert digest[:16] == "bda0fae40e13bf2f"


def test_every_backend_passes_on_a_whole_bundle(bundle: Path) -> None:
    test = run_selftest(Bundle.load(bundle))
    assert test.kept
    assert test.failures == []
    ran = {(outcome.backend, outcome.precision) for outcome in test.outcomes}
    assert {("onnxruntime", "fp32"), ("onnxruntime", "fp16"), ("openvino", "fp32")} <= ran
    assert {outcome.backend for outcome in test.outcomes} | test.absent.keys() == set(BACKENDS)
    assert "int8" not in {precision for _, precision in ran}  # the bundle has no such graphs
    first = test.outcomes[0]
    assert (first.backend, first.precision, first.max_difference, first.psnr_db) == ("onnxruntime", "fp32", 0.0, None)


def test_the_kept_values_are_those_of_the_fp32_graphs_and_name_what_they_are(bundle: Path) -> None:
    loaded = Bundle.load(bundle)
    sample = read_sample(loaded)
    assert sample is not None
    assert sample.to_bytes() == selftest.make_sample(loaded).to_bytes() == (bundle / SELFTEST_FILE).read_bytes()
    assert read_manifest(bundle).files[SELFTEST_FILE].size == (bundle / SELFTEST_FILE).stat().st_size


def test_a_graph_that_computes_something_else_fails(own: Path) -> None:
    scale_weights(own / "deblur.fp16.onnx", 1.5)
    rehash(own)
    failures = run_selftest(Bundle.load(own)).failures
    failed = {(outcome.backend, outcome.precision): outcome.reason for outcome in failures}
    assert failed.keys() == {(name, "fp16") for name in ("onnxruntime", "openvino")}
    assert all(reason.startswith("restored image: expected at least 50 dB, got ") for reason in failed.values())


def test_a_clip_that_sees_something_else_fails_in_the_blur_map(own: Path) -> None:
    scale_weights(own / "clip.onnx", -1)
    rehash(own)
    (outcome,) = run_selftest(Bundle.load(own), "onnxruntime").failures
    assert outcome.precision == "fp32"
    assert "blur map: expected a difference of at most 0.005, got " in outcome.reason


def test_the_limit_of_a_gate_in_the_manifest_counts(own: Path) -> None:
    manifest = read_manifest(own)
    gates = [{"name": "chain fp16 PSNR in dB", "limit": 500.0, "is": "at least", "value": 501.0, "passed": True}]
    write_manifest(own, msgspec.structs.replace(manifest, parity={"gates": gates}), extra_files=manifest.files)
    (outcome,) = run_selftest(Bundle.load(own), "onnxruntime").failures
    assert outcome.reason.startswith("restored image: expected at least 500 dB, got ")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_fails_and_the_others_are_tested(own: Path, value: float) -> None:
    scale_weights(own / "deblur.onnx", value)
    rehash(own)
    test = run_selftest(Bundle.load(own))
    assert {outcome.precision for outcome in test.failures} <= {"fp32", "bf16"}
    assert all("NaN or Inf" in outcome.reason for outcome in test.failures)
    assert {outcome.verdict for outcome in test.outcomes if outcome.precision == "fp16"} == {"pass"}


def test_a_library_that_raises_anything_fails_alone(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> Any:
        raise AttributeError("module has no attribute\n'Core'")

    monkeypatch.setattr(type(BACKENDS["openvino"]), "open", broken)
    failures = run_selftest(Bundle.load(bundle)).failures
    assert {outcome.backend for outcome in failures} == {"openvino"}
    assert failures[0].reason == "AttributeError: module has no attribute 'Core'"


def test_a_bundle_without_a_sample_is_held_to_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_tiny_bundle(tmp_path)
    assert main(["selftest", "--bundle", str(path), "--backend", "onnxruntime"]) == 0
    out = capsys.readouterr().out
    assert f"or run ldp-export selftest {path}" in out
    verdicts = [line.split()[-1] for line in out.splitlines() if line.startswith("onnxruntime")]
    assert verdicts == ["reference", "pass"]


def test_output_for_machines_and_exit_codes(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selftest", "--bundle", str(own), "--json"]) == 0
    fields = json.loads(capsys.readouterr().out)
    assert fields["passed"]
    assert fields["bundle"]["content"] == Bundle.load(own).content
    assert {"versions", "system", "cpu", "cache", "not_available", "results"} <= fields.keys()
    scale_weights(own / "deblur.fp16.onnx", 2)
    rehash(own)
    assert main(["selftest", "--bundle", str(own), "--backend", "onnxruntime"]) == 1
    out, err = capsys.readouterr()
    assert "FAIL: restored image" in out
    assert err.startswith("ldp: failed: expected the values of bundle 'tiny', got others from onnxruntime in fp16; ")
    assert main(["selftest", "--bundle", str(own), "--backend", "tensorrt-rtx"]) == 2


def test_wrong_choices_and_damaged_samples(own: Path) -> None:
    with pytest.raises(BackendError, match="expected a backend, one of openvino, "):
        run_selftest(Bundle.load(own), "abacus")
    (own / SELFTEST_FILE).write_bytes(b"PK")
    rehash(own)
    with pytest.raises(BundleError, match=r"expected a sample, got something else .* ldp-export selftest"):
        run_selftest(Bundle.load(own))
    np.savez(own / SELFTEST_FILE, **dict.fromkeys(("left", "right", "restored", "blur_logits"), np.zeros((4, 4, 3))))
    rehash(own)
    with pytest.raises(BundleError, match=r"expected three images \(h, w, 3\) of uint16"):
        read_sample(Bundle.load(own))


def test_a_sample_that_unpacks_to_more_than_promised_is_refused(own: Path) -> None:
    zeros = np.zeros((5000, 6667, 3), np.uint16)  # 200 MiB out of some 200 KiB
    np.savez_compressed(own / SELFTEST_FILE, left=zeros)
    del zeros
    assert (own / SELFTEST_FILE).stat().st_size < 300_000
    rehash(own)
    bundle = Bundle.load(own)
    tracemalloc.start()
    with pytest.raises(BundleError, match=f"arrays of more than {MAX_SAMPLE_BYTES} bytes"):
        read_sample(bundle)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * MAX_SAMPLE_BYTES


def test_a_sample_that_was_replaced_after_it_was_verified_is_refused(own: Path) -> None:
    bundle = Bundle.load(own)
    (own / SELFTEST_FILE).write_bytes((own / SELFTEST_FILE).read_bytes())
    with pytest.raises(BundleError, match="expected the file that was verified"):
        read_sample(bundle)


def test_a_bundle_without_a_blur_map(tmp_path: Path) -> None:
    path = make_tiny_bundle(tmp_path, clip=False)
    add_sample(path)
    sample = read_sample(Bundle.load(path))
    assert sample is not None
    assert sample.blur_logits is None
    test = run_selftest(Bundle.load(path))
    assert test.kept
    assert {outcome.verdict for outcome in test.outcomes} == {"pass"}
    assert {outcome.blur_difference for outcome in test.outcomes} == {None}
