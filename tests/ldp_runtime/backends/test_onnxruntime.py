from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from ldp_runtime.backends.onnxruntime import OnnxRuntimeBackend
from ldp_runtime.errors import BackendError
from ldp_runtime.registry import BACKENDS, select
from tests.ldp_runtime.backends.graphs import deblur_feeds, open_graph


def test_a_run_that_onnxruntime_refuses_is_a_backend_error(bundle: Path) -> None:
    feeds = deblur_feeds()
    feeds["blur_logits"] = np.zeros((1, 1, 3, 5), np.float32)  # does not fit the pair
    with pytest.raises(BackendError, match=r"^onnxruntime failed: ") as caught:
        open_graph("onnxruntime", bundle / "deblur.onnx").run(feeds)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["onnxruntime-cuda", "onnxruntime-tensorrt"])
def test_gpu_providers_say_what_is_missing(name: str) -> None:
    backend = BACKENDS[name]
    assert isinstance(backend, OnnxRuntimeBackend)
    if backend._provider in ort.get_available_providers():
        pytest.skip(f"this onnxruntime has {backend._provider}")
    with pytest.raises(BackendError) as caught:
        select(name)
    assert str(caught.value) == (
        f"{name} needs ONNX Runtime's {backend._provider}, got {', '.join(ort.get_available_providers())}; "
        "install onnxruntime-gpu in place of onnxruntime"
    )


def test_a_provider_that_onnxruntime_drops_silently_is_an_error(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = ort.InferenceSession
    on_cpu = ["CPUExecutionProvider"]
    monkeypatch.setattr(ort, "InferenceSession", lambda path, options, providers: real(path, options, on_cpu))
    with pytest.raises(BackendError, match="expected CUDAExecutionProvider, got CPUExecutionProvider when"):
        BACKENDS["onnxruntime-cuda"].open(bundle / "clip.onnx", "fp32", content="a" * 64)
