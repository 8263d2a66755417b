import pytest

from benchmarks.harness.bundles import open_bundle
from benchmarks.latency.contenders import ANY_TENSORRT, Contender, find_contenders
from benchmarks.latency.contenders import TORCH as TORCHES
from ldp_runtime.bundle.bundle import Bundle
from ldp_runtime.errors import BackendError
from ldp_runtime.registry import BACKENDS


def test_all_is_every_backend_here_in_each_of_its_precisions(bundle: Bundle) -> None:
    contenders, left_out = find_contenders(["all"], bundle, None)
    wanted = [Contender(name, p) for name in ("openvino", "onnxruntime") for p in BACKENDS[name].precisions]
    wanted.remove(Contender("openvino", "int8"))  # the bundle has no INT8 graphs
    wanted.remove(Contender("onnxruntime", "int8"))
    assert [c for c in contenders if c.backend in ("openvino", "onnxruntime")] == wanted
    assert {c.backend for c in contenders} | set(left_out) == {*BACKENDS, *TORCHES} - {ANY_TENSORRT}
    assert "models/checkpoints has none" in left_out["torch"]


def test_backends_by_name(bundle: Bundle) -> None:
    contenders, left_out = find_contenders(["onnxruntime:fp16", "openvino:fp32", "onnxruntime"], bundle, None)
    assert [c.name for c in contenders] == ["onnxruntime fp16", "openvino fp32", "onnxruntime fp32"]
    assert left_out == {}
    contenders, _ = find_contenders(["openvino:auto", "onnxruntime:auto"], bundle, None)
    chosen = [f"{name} {BACKENDS[name].resolve('auto')}" for name in ("openvino", "onnxruntime")]
    assert [c.name for c in contenders] == chosen


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("nonsense", "expected a backend, one of all, openvino"),
        ("onnxruntime:bf16", "one of fp32, fp16, got 'bf16'"),
        ("torch", "needs the weights of tiny as a checkpoint"),
    ],
)
def test_a_backend_that_cannot_be_timed_is_an_error_when_asked_for(bundle: Bundle, asked: str, words: str) -> None:
    with pytest.raises(BackendError, match=words):
        find_contenders([asked], bundle, None)


@pytest.mark.parametrize(
    ("device", "features", "precisions"),
    [
        ("cpu", ["avx2"], ["fp32"]),
        ("cpu", ["avx2", "avx512_bf16"], ["fp32", "bf16"]),
        ("cuda", ["avx2"], ["fp32", "fp16", "bf16"]),
    ],
)
def test_torch_is_compared_where_it_does_not_emulate(
    device: str, features: list[str], precisions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ldp_export.evaluation.reference.default_device", lambda: device)
    monkeypatch.setattr("benchmarks.harness.machine.describe", lambda: {"cpu": {"features": features}})
    contenders, _ = find_contenders(["torch"], open_bundle("ldp-nano", None), None)
    assert [contender.precision for contender in contenders] == precisions
