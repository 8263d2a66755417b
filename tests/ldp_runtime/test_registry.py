import sys

import pytest

from ldp_runtime.backends import openvino as openvino_backend
from ldp_runtime.errors import BackendError
from ldp_runtime.registry import AUTO_ORDER, BACKENDS, select

HAS_BF16 = "bf16" in BACKENDS["openvino"].precisions


def test_auto_takes_openvino_and_bf16_where_the_cpu_has_it() -> None:
    backend, reason, _ = select()
    precision = "bf16" if HAS_BF16 else "fp32"
    assert backend.name == "openvino"
    assert reason == f"openvino in {precision}: {AUTO_ORDER['openvino']}"


def test_a_named_backend_is_taken_as_asked() -> None:
    backend, reason, _ = select("onnxruntime", "fp32")
    assert backend is BACKENDS["onnxruntime"]
    assert reason == "onnxruntime in fp32, as asked"


def test_auto_goes_on_when_openvino_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)  # import openvino now fails
    openvino_backend._core.cache_clear()
    backend, reason, _ = select()
    assert backend.name == "onnxruntime"
    assert reason.startswith(
        f"onnxruntime in fp32: {AUTO_ORDER['onnxruntime']}; openvino was passed over: "
        "openvino needs the package openvino with its CPU plugin, which does not load ("
    )
    with pytest.raises(BackendError, match=r"^openvino needs the package openvino"):
        select("openvino")
    with pytest.raises(BackendError, match=r"no backend works here in precision bf16: openvino: .*; onnxruntime: "):
        select("auto", "bf16")


def test_auto_passes_over_what_failed_before() -> None:
    backend, reason, _ = select(failed={"openvino": "it broke"})
    assert backend.name == "onnxruntime"
    assert reason.endswith("; openvino was passed over: it broke")


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(BackendError) as caught:
        select("tensorflow")
    assert str(caught.value) == f"expected a backend, one of auto, {', '.join(BACKENDS)}, got 'tensorflow'"
    assert all(name == backend.name for name, backend in BACKENDS.items())
    with pytest.raises(BackendError) as caught:
        select("auto", "fp4")
    assert str(caught.value) == "expected a precision, one of auto, fp32, bf16, fp16, int8, got 'fp4'"
