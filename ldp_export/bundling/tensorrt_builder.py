"""The TensorRT builder, by the names of its Python bindings."""

from __future__ import annotations

import contextlib
import functools
import importlib
import math
import os
import signal
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldp_runtime.bundle.engines import FLAVOURS, Profile, architecture_number
from ldp_runtime.cuda.collecting import collecting_nothing
from ldp_runtime.cuda.tensorrt import MODULES
from ldp_runtime.errors import BackendError, one_line

Group = tuple[str, ...]

RTX_ARCHITECTURES = ("sm_75", "sm_86", "sm_89", "sm_120")
"""The GPUs that TensorRT-RTX builds for where none is asked for: GeForce RTX 20 to 50."""

_RTX_SUPPORTED = (*RTX_ARCHITECTURES, "sm_121")
"""The GPUs in its support matrix; its ``ComputeCapability`` also names sm_80, which the matrix lacks."""

_INSTALL = {
    "rtx": "pip install 'ldp[rtx]'",
    "tensorrt": "install NVIDIA's package tensorrt, or build with --flavour rtx",
}

_TURING = 75

_GROUP = 8

_SHOWN_ERRORS = 5

_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Part:
    """A graph to build an engine of.

    Attributes:
        name: "clip", "deblur", or "head", what of the deblur graph needs no blur map.
        graph: Its ONNX file.
        profile: The shapes of each input.
        channels_last: As for ``TensorRT.build``.
    """

    name: str
    graph: Path
    profile: Profile
    channels_last: tuple[str, ...] = ()


class TensorRT:
    """One TensorRT, whichever its flavour; they share all that is used here.

    Attributes:
        flavour: A name of ``FLAVOURS``.
        name: What people call it.
        version: Its version.
    """

    def __init__(self, flavour: str) -> None:
        """Loads the library.

        Raises:
            BackendError: There is no such flavour, or it is not installed.
        """
        if flavour not in FLAVOURS:
            raise BackendError(f"expected a flavour of TensorRT, one of {', '.join(FLAVOURS)}, got {flavour!r}")
        self.flavour, self.name = flavour, FLAVOURS[flavour]
        try:
            self._trt: Any = importlib.import_module(MODULES[flavour])
        except ImportError as error:
            raise BackendError(
                f"building engines of {self.name} needs the package {MODULES[flavour]}, which cannot be imported "
                f"({one_line(error)}); {_INSTALL[flavour]}"
            ) from error
        self.version = str(self._trt.__version__)

    def targets(self, architectures: Sequence[str] | None = None) -> list[Group]:
        """The architectures of each engine to build.

        TensorRT-RTX builds one engine for Ampere and later and another for Turing; the enterprise TensorRT one for
        the GPU that is there.

        Args:
            architectures: Those asked for, such as ``"sm_89"``; None is all that make sense here.

        Raises:
            BackendError: One is unknown to this TensorRT, or there is no GPU where one is needed.
        """
        known = self._known()
        usual = RTX_ARCHITECTURES if self.flavour == "rtx" else known
        asked = sorted(set(architectures or usual), key=_number)
        if unknown := [name for name in asked if name not in known]:
            hint = "; for other GPUs build with --flavour tensorrt where the GPU is" if self.flavour == "rtx" else ""
            raise BackendError(
                f"expected architectures that {self.name} {self.version} builds engines for here "
                f"({', '.join(known) or 'none'}), got {', '.join(unknown)}{hint}"
            )
        if self.flavour != "rtx":
            return [tuple(asked)]
        parts = ([n for n in asked if _number(n) > _TURING], [n for n in asked if _number(n) <= _TURING])
        return [tuple(part) for part in parts if part]

    def _known(self) -> list[str]:
        if self.flavour == "rtx":
            members = {f"sm_{name[2:]}" for name in self._trt.ComputeCapability.__members__ if name.startswith("SM")}
            return [name for name in _RTX_SUPPORTED if name in members]
        from ldp_runtime.cuda.device import NoGpuError, open_device

        try:
            return [open_device().arch]
        except NoGpuError as error:
            raise BackendError(
                f"{self.name} builds only where the GPU is, and none can be used here: {error}; build there, or with "
                "--flavour rtx, which needs no GPU"
            ) from error

    def build(
        self,
        graph: Path,
        profile: Profile,
        targets: Sequence[str],
        *,
        channels_last: Collection[str] = (),
        progress: Progress | None = None,
        detailed: bool = False,
    ) -> Plan:
        """Compiles a graph.

        Args:
            graph: An ONNX file, strongly typed.
            profile: The shapes of each input.
            targets: Architectures, as from ``targets``.
            channels_last: Names of inputs and outputs whose channels lie side by side in memory, whatever their shape
                says.
            progress: Hears how far it is, and may cancel.
            detailed: Keep all messages, with the layers that TensorRT made; the engine holds their names too.

        Raises:
            BackendError: The graph, the profile or the GPU does not suit.
            KeyboardInterrupt: Cancelled with Ctrl-C.
        """
        trt, log = self._trt, _log(self._trt)
        log.begin(detailed)
        what = f"{self.name} {self.version}"
        try:
            with collecting_nothing():
                builder = trt.Builder(log)
        except Exception as error:  # pybind11 raises TypeError where the library gives no builder
            raise BackendError(f"{what} cannot build here: {log.last() or one_line(error)}") from error
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, log)
        if not parser.parse_from_file(os.fspath(graph)):
            errors = [parser.get_error(i) for i in range(parser.num_errors)]
            raise BackendError(f"{what} does not take {graph.name}: {_parser_errors(errors) or log.last()}")
        config = builder.create_builder_config()
        if detailed:
            config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        inputs = [network.get_input(i) for i in range(network.num_inputs)]
        if {tensor.name for tensor in inputs} != set(profile):
            raise BackendError(
                f"expected {graph.name} with the inputs {', '.join(profile)}, got "
                f"{', '.join(tensor.name for tensor in inputs)}; export the bundle again with ldp-export onnx"
            )
        for tensor in (*inputs, *(network.get_output(i) for i in range(network.num_outputs))):
            if tensor.name in channels_last:
                tensor.allowed_formats = 1 << int(trt.TensorFormat.HWC)
        ranges = builder.create_optimization_profile()
        for name, shapes in profile.items():
            ranges.set_shape(name, shapes.min, shapes.opt, shapes.max)
        config.add_optimization_profile(ranges)
        if self.flavour == "rtx":
            config.num_compute_capabilities = len(targets)
            for i, target in enumerate(targets):
                config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{_number(target)}"), i)
            if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):  # an engine that allocates cannot be captured
                config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
        turing = self.flavour == "rtx" and all(_number(target) <= _TURING for target in targets)
        weights = _widen_depthwise(trt, network) if turing else []  # TensorRT reads them while it builds
        monitor = _monitor(trt, progress or Progress())
        config.progress_monitor = monitor
        content = _interruptible(lambda: builder.build_serialized_network(network, config), monitor.cancel)
        del weights
        if content is None:
            shown = ", ".join(f"{name} {shapes}" for name, shapes in profile.items())
            raise BackendError(
                f"{what} cannot build {graph.name} for {', '.join(targets)} and {shown}: "
                f"{log.last() or 'it gave no reason'}"
            )
        return Plan(bytes(content), tuple(log.warnings), tuple(log.all), int(network.num_layers))


class Progress:
    """Hears of a build's phases, from the thread that builds; phases nest. This one does nothing."""

    def start(self, phase: str, steps: int) -> None:
        """A phase of this many steps begins."""

    def step(self) -> None:
        """A step of the innermost phase is done."""

    def finish(self) -> None:
        """The innermost phase ends."""


@dataclass(frozen=True)
class Plan:
    """What a build gave.

    Attributes:
        content: The engine.
        warnings: What TensorRT warned of.
        messages: All that it said, if that was asked for.
        layers: Layers of the network as parsed, before TensorRT fuses any.
    """

    content: bytes = field(repr=False)
    warnings: tuple[str, ...]
    messages: tuple[str, ...] = field(repr=False)
    layers: int


def _number(architecture: str) -> int:
    try:
        return architecture_number(architecture)
    except ValueError as error:
        raise BackendError(f"{error}; give architectures such as sm_89,sm_120") from error


def _parser_errors(errors: Sequence[Any]) -> str:
    lines = []
    for error in errors[:_SHOWN_ERRORS]:
        where = f"node {error.node_name()!r} ({error.node_operator()})" if error.node_name() else "the graph"
        lines.append(f"{where}: {one_line(Exception(error.desc()))}")
    more = len(errors) - _SHOWN_ERRORS
    return "; ".join(lines) + (f"; and {more} more" if more > 0 else "")


def widen_kernel(kernel: NDArray[Any]) -> NDArray[Any]:
    """A depthwise kernel as that of groups of ``_GROUP`` channels, zero where it would mix channels.

    Args:
        kernel: ``(C, 1, kh, kw)``, C a multiple of ``_GROUP``.

    Returns:
        ``(C, _GROUP, kh, kw)``.
    """
    channels = np.arange(len(kernel))
    wide = np.zeros((len(kernel), _GROUP, *kernel.shape[2:]), kernel.dtype)
    wide[channels, channels % _GROUP] = kernel[:, 0]
    return wide


def _widen_depthwise(trt: Any, network: Any) -> list[NDArray[Any]]:
    """Makes depthwise convolutions such of ``_GROUP`` channels a group; they compute the same.

    For Turing TensorRT-RTX 1.7 would pad each channel of the *map* to 8 with zeros: 8 times the memory, and for a fixed
    size those zeros lie in the engine, 3 GiB for config small at 1120x1696.

    Returns:
        The new weights, which must live until the engine is built.
    """
    kept = []
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        if layer.type != trt.LayerType.CONVOLUTION:
            continue
        layer.__class__ = trt.IConvolutionLayer
        channels = layer.num_output_maps
        if layer.num_groups == channels and channels > 1 and channels % _GROUP == 0:
            kernel = np.asarray(layer.kernel)
            if kernel.size == channels * math.prod(layer.kernel_size_nd):  # weights may also be an input, then empty
                wide = widen_kernel(kernel.reshape(channels, 1, *layer.kernel_size_nd))
                layer.num_groups, layer.kernel = channels // _GROUP, trt.Weights(wide)
                kept.append(wide)
    return kept


@functools.cache
def _log(trt: Any) -> Any:
    """The logger of all builds, as TensorRT keeps to the first one while a builder lives, such as in an error's frames.

    It keeps warnings and errors of the last build, and if asked all else; nothing is printed.
    """

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.begin(detailed=False)

        def begin(self, detailed: bool) -> None:
            self.detailed = detailed
            self.warnings: list[str] = []
            self.errors: list[str] = []
            self.all: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity == trt.ILogger.WARNING:
                self.warnings.append(message)
            elif severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)
            if self.detailed:
                self.all.append(message)

        def last(self) -> str:
            return one_line(Exception(self.errors[-1])) if self.errors else ""

    return Log()


def _monitor(trt: Any, progress: Progress) -> Any:
    """TensorRT's progress monitor over a ``Progress``; ``cancel`` makes it stop the build at its next step."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._cancelled = threading.Event()
            self._lock = threading.Lock()

        def cancel(self) -> None:
            self._cancelled.set()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self._lock:
                progress.start(phase_name, num_steps)

        def phase_finish(self, phase_name: str) -> None:
            with self._lock:
                progress.finish()

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self._lock:
                progress.step()
            return not self._cancelled.is_set()

    return Monitor()


def _interruptible(build: Callable[[], Any], cancel: Callable[[], None]) -> Any:
    """Runs a build in a thread, so that Ctrl-C is heard while TensorRT works; a second Ctrl-C ends the process.

    It waits for the future, not for the thread: up to Python 3.12, once Ctrl-C has interrupted ``Thread.join`` the next
    one returns at once, and the process would end under the build.
    """
    future: Future[Any] = Future()

    def work() -> None:
        try:
            future.set_result(build())
        except BaseException as error:
            future.set_exception(error)

    thread = threading.Thread(target=work, name="engine build", daemon=True)
    try:
        thread.start()
        while not wait([future], _POLL_SECONDS).done:
            pass
    except KeyboardInterrupt:
        cancel()
        with _default_interrupt():
            wait([future])
        raise
    return future.result()


@contextlib.contextmanager
def _default_interrupt() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
