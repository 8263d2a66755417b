"""OpenVINO on the CPU, in FP32 and, where the CPU has it, bf16."""

from __future__ import annotations

import ctypes
import functools
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ldp_runtime.backends.base import Session, SessionBackend
from ldp_runtime.cache import cache_folder, sealed
from ldp_runtime.errors import BackendError, one_line
from ldp_runtime.tensors import Array, TensorSpec

_DEVICE = "CPU"


class OpenVinoSession(Session):
    """A graph in OpenVINO. Calls from several threads run one after the other."""

    def __init__(self, compiled: Any) -> None:
        """Wraps an ``openvino.CompiledModel``."""
        self._request = compiled.create_infer_request()
        self._lock = threading.Lock()
        self.inputs = tuple(_spec(port) for port in compiled.inputs)
        self.outputs = tuple(_spec(port) for port in compiled.outputs)

    def __del__(self) -> None:
        with _signal_stack_kept():
            self.__dict__.pop("_request", None)

    def run_impl(self, feeds: dict[str, Array]) -> dict[str, Array]:
        """See ``Session``."""
        try:
            with self._lock, _signal_stack_kept():
                values = self._request.infer(feeds, share_inputs=True)  # copies the outputs
        except RuntimeError as error:
            raise BackendError(f"openvino failed: {one_line(error)}") from error
        return {spec.name: values[i] for i, spec in enumerate(self.outputs)}


class OpenVinoBackend(SessionBackend):
    """OpenVINO's CPU plugin, tuned for the latency of one image.

    In bf16 the plugin keeps what lies between the last convolution and the output in FP32, so the skip of
    ``restored = center + network`` is not rounded; a test holds it to that. "fp16" runs the FP16 graph, in
    half arithmetic where the CPU has it and else in FP32. "int8" runs the INT8 graph; what that leaves in float
    runs in bf16 where the CPU has it.
    """

    name = "openvino"

    def available(self) -> None:
        """See ``Backend``."""
        try:
            _core()
        except Exception as error:  # a broken native library raises more than ImportError
            raise BackendError(
                f"openvino needs the package openvino with its CPU plugin, which does not load "
                f"({one_line(error)}); install it or choose onnxruntime"
            ) from error

    @property
    def precisions(self) -> tuple[str, ...]:
        """See ``Backend``."""
        exact = ("bf16", "fp32") if "BF16" in _capabilities(_core()) else ("fp32",)
        return (*exact, "fp16", "int8")

    def describe(self) -> str:
        """See ``Backend``."""
        import openvino

        version = openvino.get_version().split("-")[0]
        return f"OpenVINO {version}, {_core().get_property(_DEVICE, 'FULL_DEVICE_NAME').strip()}"

    def open_impl(self, path: Path, precision: str, threads: int | None, content: str | None) -> Session:
        """See ``Backend``."""
        core = _core()
        # Asked for f16 on a CPU without it, the plugin takes bf16 and says nothing.
        half = "f16" if "FP16" in _capabilities(core) else "f32"
        rest = "bf16" if "BF16" in _capabilities(core) else "f32"
        config: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16", "fp16": half, "int8": rest}[precision],
        }
        if threads is not None:
            config["INFERENCE_NUM_THREADS"] = threads
        # A folder for each graph and precision: sessions are opened side by side, and each seals its own file.
        cache = cache_folder("openvino", content[:32], f"{path.stem}-{precision}") if content else None
        if cache is not None:
            config["CACHE_DIR"] = str(cache)
        with sealed(cache), _signal_stack_kept():  # OpenVINO crashes on a blob with a flipped bit
            return OpenVinoSession(core.compile_model(path, _DEVICE, config))


class _SignalStack(ctypes.Structure):
    """``stack_t`` of Linux."""

    _fields_ = [("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]


@contextmanager
def _signal_stack_kept() -> Iterator[None]:
    """Puts back the calling thread's alternate signal stack.

    The plugin leaves one of its own behind whenever it compiles, runs or drops a model, and that one is gone soon: a
    signal that Python handles, such as Ctrl-C, would then crash the process.
    """
    if sys.platform != "linux":
        yield
        return
    libc = ctypes.CDLL(None)
    before = _SignalStack()
    known = libc.sigaltstack(None, ctypes.byref(before)) == 0
    try:
        yield
    finally:
        if known:
            libc.sigaltstack(ctypes.byref(before), None)


@functools.cache
def _core() -> Any:
    """The process's only core: making and dropping one has a price, and see ``_signal_stack_kept``."""
    import openvino

    with _signal_stack_kept():
        core = openvino.Core()
        core.get_property(_DEVICE, "FULL_DEVICE_NAME")  # loads the plugin
        return core


def _capabilities(core: Any) -> list[str]:
    capabilities: list[str] = core.get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES")
    return capabilities


def _spec(port: Any) -> TensorSpec:
    shape = tuple("?" if size.is_dynamic else size.get_length() for size in port.partial_shape)
    return TensorSpec(_name(port), shape, np.dtype(port.element_type.to_dtype()))


def _name(port: Any) -> str:
    """The ONNX graph's name of an input or output.

    A port also bears the names of tensors that were optimised away, and ``any_name`` is the first of them all
    in the alphabet; the node behind the port is named after the graph's own.
    """
    name: str = port.get_node().friendly_name.split("/sink_port_")[0]
    return name if name in port.names else port.any_name
