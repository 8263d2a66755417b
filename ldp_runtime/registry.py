"""The backends by name, and which of them to take. Importing this loads none of their libraries."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from ldp_runtime.backends.base import PRECISIONS, Backend, SessionBackend
from ldp_runtime.backends.onnxruntime import OnnxRuntimeBackend
from ldp_runtime.backends.openvino import OpenVinoBackend
from ldp_runtime.cuda.device import NoGpuError
from ldp_runtime.cuda.tensorrt import CudaBackend, TensorRtBackend
from ldp_runtime.errors import BackendError

_TENSORRT = (TensorRtBackend("tensorrt-rtx", "rtx"), TensorRtBackend("tensorrt", "tensorrt"))

SESSION_BACKENDS: Mapping[str, SessionBackend] = MappingProxyType(
    {
        backend.name: backend
        for backend in (
            OpenVinoBackend(),
            OnnxRuntimeBackend("onnxruntime", "CPUExecutionProvider"),
            OnnxRuntimeBackend("onnxruntime-cuda", "CUDAExecutionProvider"),
            OnnxRuntimeBackend("onnxruntime-tensorrt", "TensorrtExecutionProvider"),
        )
    }
)
"""Those that run single graphs, by name."""

BACKENDS: Mapping[str, Backend] = MappingProxyType(
    {**SESSION_BACKENDS, **{backend.name: backend for backend in (CudaBackend(_TENSORRT), *_TENSORRT)}}
)
"""Every backend by name."""

AUTO_ORDER = {
    "cuda": "the fastest on an NVIDIA GPU",
    "openvino": "the fastest on a CPU",
    "onnxruntime": "runs on any CPU",
}
"""The backends that "auto" tries, fastest first, and what speaks for each."""


class Choice(NamedTuple):
    """The backend that was picked.

    Attributes:
        backend: The backend.
        reason: A sentence that says which it is and why.
        passed_over: Faster ones that "auto" would have taken, and why it did not; not those of a machine without GPU.
    """

    backend: Backend
    reason: str
    passed_over: Mapping[str, str]


def select(
    name: str | Backend = "auto",
    precision: str = "auto",
    *,
    bf16: bool = True,
    failed: Mapping[str, str] | None = None,
) -> Choice:
    """Picks a backend.

    Args:
        name: A name of ``BACKENDS``, ``"auto"`` for the fastest that works here, or a backend that is not among them.
        precision: One of ``PRECISIONS``, or ``"auto"``; a backend without it is passed over.
        bf16: As for ``Backend.resolve``.
        failed: Backends that "auto" must pass over, and why.

    Returns:
        What was picked and why.

    Raises:
        BackendError: An unknown name or precision, or nothing that works here.
    """
    if isinstance(name, str) and name != "auto" and name not in BACKENDS:
        raise BackendError(f"expected a backend, one of auto, {', '.join(BACKENDS)}, got {name!r}")
    if precision not in ("auto", *PRECISIONS):
        raise BackendError(f"expected a precision, one of auto, {', '.join(PRECISIONS)}, got {precision!r}")
    if name != "auto":
        backend = BACKENDS[name] if isinstance(name, str) else name
        backend.available()
        return Choice(backend, f"{backend.name} in {backend.resolve(precision, bf16=bf16)}, as asked", {})
    passed = dict(failed or {})
    absent: dict[str, str] = {}  # no reason to speak of it on a machine without a GPU
    for candidate, merit in AUTO_ORDER.items():
        if candidate in passed:
            continue
        backend = BACKENDS[candidate]
        try:
            backend.available()
            chosen = backend.resolve(precision, bf16=bf16)
        except NoGpuError as error:
            absent[candidate] = str(error)
            continue
        except BackendError as error:
            passed[candidate] = str(error)
            continue
        without = "".join(f"; {other} was passed over: {why}" for other, why in passed.items())
        return Choice(backend, f"{candidate} in {chosen}: {merit}{without}", passed)
    reasons = "; ".join(f"{other}: {why}" for other, why in (passed | absent).items())
    raise BackendError(f"no backend works here in precision {precision}: {reasons}")
