"""ONNX Runtime: on the CPU, and by option on NVIDIA GPUs through its CUDA and TensorRT providers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ldp_runtime.backends.base import Session, SessionBackend
from ldp_runtime.cache import cache_folder
from ldp_runtime.errors import BackendError, one_line
from ldp_runtime.tensors import Array, TensorSpec

_FATAL_ONLY = 4
"""Errors come as exceptions; the library would print them on stderr as well."""

_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


class OnnxRuntimeSession(Session):
    """A graph in ONNX Runtime. Several threads may run it at once."""

    def __init__(self, session: Any) -> None:
        """Wraps an ``onnxruntime.InferenceSession``."""
        self._session = session
        self.inputs = tuple(_spec(value) for value in session.get_inputs())
        self.outputs = tuple(_spec(value) for value in session.get_outputs())

    def run_impl(self, feeds: dict[str, Array]) -> dict[str, Array]:
        """See ``Session``."""
        names = [spec.name for spec in self.outputs]
        try:
            values = self._session.run(names, feeds)
        except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
            raise BackendError(f"onnxruntime failed: {one_line(error)}") from error
        return dict(zip(names, values, strict=True))


class OnnxRuntimeBackend(SessionBackend):
    """One of ONNX Runtime's execution providers.

    On the CPU "fp16" runs the FP16 graph, some nodes in FP32 arithmetic: good for checks, not for speed. "int8" is for
    the CPU alone.
    """

    def __init__(self, name: str, provider: str) -> None:
        """Makes the backend ``name`` of a provider, such as ``"CPUExecutionProvider"``."""
        self.name = name
        self._provider = provider

    def available(self) -> None:
        """See ``Backend``."""
        try:
            import onnxruntime as ort

            have = ort.get_available_providers()
        except Exception as error:  # a broken native library, or what is left of a package, raises much
            raise BackendError(
                f"{self.name} needs the package onnxruntime, which does not load ({one_line(error)}); install it again"
            ) from error
        if self._provider not in have:
            raise BackendError(
                f"{self.name} needs ONNX Runtime's {self._provider}, got {', '.join(have)}; "
                "install onnxruntime-gpu in place of onnxruntime"
            )

    @property
    def precisions(self) -> tuple[str, ...]:
        """See ``Backend``."""
        return ("fp32", "fp16", "int8") if self._provider == "CPUExecutionProvider" else ("fp32", "fp16")

    def describe(self) -> str:
        """See ``Backend``."""
        import onnxruntime as ort

        return f"ONNX Runtime {ort.__version__}, {self._provider.removesuffix('ExecutionProvider')}"

    def open_impl(self, path: Path, precision: str, threads: int | None, content: str | None) -> Session:
        """See ``Backend``."""
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = _FATAL_ONLY
        options.intra_op_num_threads = threads or 0
        providers: list[tuple[str, dict[str, Any]]] = [(self._provider, self._options(precision, content))]
        if self._provider != "CPUExecutionProvider":
            providers.append(("CPUExecutionProvider", {}))  # for the few nodes a GPU provider leaves
        session = ort.InferenceSession(path, options, providers=providers)
        got = session.get_providers()
        if self._provider not in got:  # ONNX Runtime falls back to the CPU without an error
            raise BackendError(
                f"{self.name}: expected {self._provider}, got {', '.join(got)} when the graph was opened; "
                "check the NVIDIA driver and its libraries, or choose another backend"
            )
        return OnnxRuntimeSession(session)

    def _options(self, precision: str, content: str | None) -> dict[str, Any]:
        if self._provider == "CUDAExecutionProvider":
            return {"use_tf32": 0}  # fp32 means fp32
        if self._provider == "TensorrtExecutionProvider":
            options: dict[str, Any] = {"trt_fp16_enable": precision == "fp16"}
            if content and (cache := cache_folder("onnxruntime-tensorrt", content[:32])):
                options |= {"trt_engine_cache_enable": True, "trt_engine_cache_path": str(cache)}
            return options
        return {}


def _spec(value: Any) -> TensorSpec:
    shape = tuple(size if isinstance(size, int) else size or "?" for size in value.shape)
    if value.type not in _DTYPES:
        raise BackendError(f"expected the type of {value.name} to be one of {', '.join(_DTYPES)}, got {value.type}")
    return TensorSpec(value.name, shape, np.dtype(_DTYPES[value.type]))
