"""TensorRT on NVIDIA GPUs: the engines of a bundle, run by the CUDA chain.

One adapter serves ``tensorrt_rtx`` and ``tensorrt`` 10 and 11. They share the calls used here; what only some have
(``IRuntimeCache``, ``is_stream_capturable`` and the like) is asked for with ``hasattr``.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ldp_runtime.bundle.bundle import Bundle
from ldp_runtime.bundle.engines import ENGINE_PRECISION, EngineEntry, EngineFile, Shape
from ldp_runtime.bundle.manifest import BlurMapSpec
from ldp_runtime.bundle.trust import is_trusted
from ldp_runtime.cache import cache_folder
from ldp_runtime.chain import ChainBackend
from ldp_runtime.cuda.base import Device, Engine, EngineContext, Memory, OutOfDeviceMemoryError, Stream
from ldp_runtime.cuda.chain import CudaChain, EngineSource
from ldp_runtime.cuda.collecting import collecting_nothing
from ldp_runtime.cuda.device import NoGpuError, open_device
from ldp_runtime.errors import BackendError, BundleError, one_line
from ldp_runtime.files import write_whole
from ldp_runtime.tensors import TensorSpec

MODULES = {"rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
"""The Python package of each flavour of TensorRT."""

_DTYPES = {"FLOAT": np.float32, "HALF": np.float16}
_LAYOUTS = ("LINEAR", "HWC")  # without gaps; the others round channels up


class TensorRtBackend(ChainBackend):
    """One flavour of TensorRT, with the bundle's engines."""

    def __init__(self, name: str, flavour: str) -> None:
        """Makes the backend ``name`` of a flavour of ``engines.FLAVOURS``."""
        self.name = name
        self._flavour = flavour

    def available(self) -> None:
        """See ``Backend``."""
        _check_installed(self.name, self._flavour)
        open_device()  # before TensorRT is loaded, which takes long and is for nothing without a GPU
        _import(self.name, self._flavour)

    @property
    def precisions(self) -> tuple[str, ...]:
        """See ``Backend``."""
        return (ENGINE_PRECISION,)

    def describe(self) -> str:
        """See ``Backend``."""
        trt = _import(self.name, self._flavour)
        device = open_device()
        return f"{MODULES[self._flavour]} {trt.__version__}, {device.name} ({device.arch})"

    def open_chain(self, bundle: Bundle, precision: str, tile: int | str) -> CudaChain:
        """See ``ChainBackend``."""
        if bundle.manifest.blur_map != BlurMapSpec():
            raise BackendError(
                f"{self.name} runs bundles whose blur map comes from dense features and goes in as logits, and "
                f"{bundle.manifest.name!r} is of another kind; choose a backend such as onnxruntime-cuda"
            )
        source = TensorRtSource(_import(self.name, self._flavour), self._flavour, open_device(), bundle)
        if {entry.kind for entry in source.candidates()} < set(bundle.manifest.graphs):
            raise BackendError(
                f"bundle {bundle.manifest.name!r} has no engine of {MODULES[self._flavour]} "
                f"{source.version} for {source.device.arch}; build some with ldp-export engine {bundle.path} "
                f"--flavour {self._flavour} --arch {source.device.arch}"
            )
        return CudaChain(self.name, source.device, bundle, source, precision, tile)


class CudaBackend(ChainBackend):
    """``cuda``: TensorRT-RTX or TensorRT, whichever is installed and has engines in the bundle, RTX first."""

    name = "cuda"

    def __init__(self, backends: tuple[TensorRtBackend, ...]) -> None:
        """Takes the flavours, the one to prefer first."""
        self._backends = backends

    def available(self) -> None:
        """See ``Backend``."""
        self._installed()

    @property
    def precisions(self) -> tuple[str, ...]:
        """See ``Backend``."""
        return (ENGINE_PRECISION,)

    def describe(self) -> str:
        """See ``Backend``."""
        return "; ".join(backend.describe() for backend in self._installed())

    def open_chain(self, bundle: Bundle, precision: str, tile: int | str) -> CudaChain:
        """See ``ChainBackend``."""
        problems = []
        for backend in self._backends:
            try:
                backend.available()
                return backend.open_chain(bundle, precision, tile)
            except BackendError as error:
                if not isinstance(error, NoGpuError):  # which says that it is not installed
                    problems.append(str(error))
        raise BackendError("; ".join(problems))

    def _installed(self) -> list[TensorRtBackend]:
        installed, problems = [], []
        for backend in self._backends:
            try:
                backend.available()
                installed.append(backend)
            except BackendError as error:
                problems.append(error)
        if not installed:
            broken = [error for error in problems if not isinstance(error, NoGpuError)]
            raise (BackendError if broken else NoGpuError)("; ".join(dict.fromkeys(map(str, broken or problems))))
        return installed


class TensorRtSource(EngineSource):
    """The engines of a bundle that one TensorRT runs on one GPU.

    Attributes:
        device: The GPU.
        version: Version of the TensorRT.
    """

    def __init__(self, trt: Any, flavour: str, device: Device, bundle: Bundle) -> None:
        """Takes the module of a flavour."""
        self.device, self.version = device, str(trt.__version__)
        self._trt, self._flavour, self._bundle = trt, flavour, bundle
        self._logger = make_logger(trt)
        with collecting_nothing():
            self._runtime = trt.Runtime(self._logger)
        self._engines: dict[str, TensorRtEngine] = {}

    def candidates(self) -> list[EngineEntry]:
        """The engines of this TensorRT for this GPU, made from the bundle's graphs as they are or not."""
        return [
            entry
            for entry in self._bundle.manifest.engines
            if (entry.flavour, entry.version) == (self._flavour, self.version) and self.device.arch in entry.targets
        ]

    def find(self, kind: str, shapes: dict[str, Shape]) -> EngineEntry:
        """See ``EngineSource``."""
        return self._bundle.find_engine(
            kind, flavour=self._flavour, version=self.version, arch=self.device.arch, shapes=shapes
        )

    def open(self, file: EngineFile) -> Engine:
        """See ``EngineSource``. An engine that nobody trusted is not read."""
        if file.sha256 not in self._engines:
            if not is_trusted(file.sha256):
                raise BackendError(
                    f"{self._bundle.path / file.file}: this engine is native code and was neither built here nor "
                    f"trusted; if you trust where it comes from, run ldp trust {self._bundle.path}"
                )
            try:
                content = self._bundle.read_engine(file)
            except BundleError as error:  # the graphs were verified: another backend may run them
                raise BackendError(str(error)) from error
            self._logger.clear()
            engine = self._runtime.deserialize_cuda_engine(content)
            if engine is None:
                raise self._logger.error(f"{self._bundle.path / file.file} does not load on {self.device.name}")
            cache = _runtime_cache_file(file, self.device)
            self._engines[file.sha256] = TensorRtEngine(self._trt, self._logger, engine, self.device, cache)
        return self._engines[file.sha256]

    def fixed_sizes(self) -> list[tuple[int, int]]:
        """See ``EngineSource``."""
        pairs = [entry.profile["pair"] for entry in self.candidates() if entry.kind == "deblur"]
        return sorted({(pair.opt[2], pair.opt[3]) for pair in pairs if pair.fixed}, reverse=True)


class TensorRtEngine(Engine):
    """An engine of TensorRT."""

    def __init__(self, trt: Any, logger: Any, engine: Any, device: Device, cache: Path | None) -> None:
        """Takes an ``ICudaEngine``.

        Args:
            trt: The module it is of.
            logger: Where it reports.
            engine: The engine.
            device: The GPU it is for.
            cache: File that keeps the kernels that TensorRT-RTX compiles here; None for no such file.
        """
        self._trt, self._logger, self._engine, self._cache = trt, logger, engine, cache
        self._device, self._setup = device, device.stream()
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        specs = [self._spec(name) for name in names]
        self.inputs = tuple(spec for is_input, spec in specs if is_input)
        self.outputs = tuple(spec for is_input, spec in specs if not is_input)
        self.channels_last = frozenset(name for name in names if engine.get_tensor_format(name).name == "HWC")

    def _spec(self, name: str) -> tuple[bool, TensorSpec]:
        dtype, layout = self._engine.get_tensor_dtype(name), self._engine.get_tensor_format(name)
        for got, known in ((dtype.name, _DTYPES), (layout.name, _LAYOUTS)):
            if got not in known:
                raise BackendError(
                    f"expected {name} of an engine in {' or '.join(known)}, got {got}; build the bundle's engines again"
                )
        shape = tuple(int(size) if size >= 0 else "?" for size in self._engine.get_tensor_shape(name))
        is_input = self._engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT
        return is_input, TensorSpec(name, shape, np.dtype(_DTYPES[dtype.name]))

    def context(self, shapes: Mapping[str, Shape]) -> EngineContext:
        """See ``Engine``."""
        trt, engine = self._trt, self._engine
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        self._logger.clear()
        cache = config = None
        if hasattr(trt, "CudaGraphStrategy"):  # TensorRT-RTX, which compiles kernels when they first run
            config = engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(strategy)
            config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED  # the chain captures its own
            eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER  # else a capture keeps the fallback kernels
            config.dynamic_shapes_kernel_specialization_strategy = eager
            cache = RuntimeCache(config, self._cache)
            context = engine.create_execution_context(config)
        else:
            context = engine.create_execution_context(strategy)
        if context is None:
            raise self._logger.error("TensorRT cannot make an engine ready")
        if not context.set_optimization_profile_async(0, self._setup.handle):
            raise self._logger.error("TensorRT refused the engine's profile")
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise self._logger.error(f"the engine does not take {name} {shape}")
        if missing := context.infer_shapes():
            raise BackendError(f"the engine wants more inputs than it has: {', '.join(missing)}")
        self._setup.sync()
        outputs = {spec.name: tuple(context.get_tensor_shape(spec.name)) for spec in self.outputs}
        most = int(engine.device_memory_size_v2)
        scratch = int(context.update_device_memory_size_for_shapes()) or most  # 0 also where it could not tell

        def allocate(stream: Stream) -> Memory:
            return self._device.allocate(most, stream, self._setup)

        return TensorRtContext(self._logger, context, outputs, scratch, allocate, cache, config)


class TensorRtContext(EngineContext):
    """An engine of TensorRT for one shape; its scratch memory is the chain's."""

    def __init__(
        self,
        logger: Any,
        context: Any,
        outputs: Mapping[str, Shape],
        scratch: int,
        allocate: Callable[[Stream], Memory],
        cache: RuntimeCache | None,
        config: Any,
    ) -> None:
        """Takes an ``IExecutionContext`` whose input shapes are set.

        Args:
            logger: Where TensorRT reports.
            context: The context.
            outputs: Shape of each output.
            scratch: Bytes that it wants for these shapes.
            allocate: Memory for the largest shapes that the engine takes.
            cache: What keeps the kernels that TensorRT-RTX compiles.
            config: The ``IRuntimeConfig`` that it was made with, kept for as long as it lives.
        """
        self.outputs, self.scratch = outputs, scratch
        self._logger, self._context, self._cache, self._config = logger, context, cache, config
        self._allocate = allocate
        self._own: Memory | None = None
        self._addresses: Mapping[str, int] | None = None
        self._scratch_address: int | None = None

    def enqueue(self, stream: Stream, addresses: Mapping[str, int], scratch: int) -> None:
        """See ``EngineContext``."""
        self._logger.clear()
        if self._addresses != addresses:  # TensorRT prepares anew after a change
            for name, address in addresses.items():
                if not self._context.set_tensor_address(name, address):
                    raise self._logger.error(f"TensorRT refused the address of {name}")
            self._addresses = dict(addresses)
        if self.scratch and self._own is None and self._scratch_address != scratch:
            self._give_memory(scratch, stream)
            self._scratch_address = scratch
        if not self._context.execute_async_v3(stream.handle):
            raise self._logger.error("TensorRT failed")

    def _give_memory(self, scratch: int, stream: Stream) -> None:
        """Hands over the scratch memory.

        The size for the shapes that are set is what TensorRT says that it needs; where it refuses that, it gets what
        its documentation asks for, the size for the largest shapes.
        """
        self._context.set_device_memory(scratch, self.scratch)
        if not self._logger.failed:
            return
        own = self._allocate(stream)
        self._logger.clear()
        self._context.set_device_memory(own.address, own.size)
        if self._logger.failed:
            raise self._logger.error(f"TensorRT refused {self.scratch} and {own.size} bytes of memory")
        self._own = own

    def capturable(self, stream: Stream) -> bool:
        """See ``EngineContext``."""
        if hasattr(self._context, "is_stream_capturable"):
            return bool(self._context.is_stream_capturable(stream.handle))
        return True

    def ran(self) -> None:
        """See ``EngineContext``."""
        if self._cache is not None:
            self._cache.save()


class RuntimeCache:
    """What TensorRT-RTX compiled for this GPU, on disk, so that the next start is quick."""

    def __init__(self, config: Any, path: Path | None) -> None:
        """Loads the file, if it is there and of use, and hands the cache to an ``IRuntimeConfig``."""
        self._path, self._cache = path, config.create_runtime_cache()
        self._loaded = b""
        with contextlib.suppress(OSError):
            content = path.read_bytes() if path is not None else b""
            if content and self._cache.deserialize(content):  # it refuses what another GPU, driver or release wrote
                self._loaded = content
        config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Writes the file if there is anything new; the cache is a convenience, so a full disk is no error."""
        if self._path is not None and (content := bytes(self._cache.serialize())) != self._loaded:
            with contextlib.suppress(OSError):
                write_whole({self._path: content})
                self._loaded = content


def make_logger(trt: Any) -> Any:
    """A logger that keeps TensorRT's errors for our messages and prints nothing."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self._errors.append(" ".join(message.split()))

        def clear(self) -> None:
            self._errors.clear()

        @property
        def failed(self) -> bool:
            return bool(self._errors)

        def error(self, what: str) -> BackendError:
            reasons = one_line(RuntimeError("; ".join(self._errors) or "TensorRT gives no reason"))
            memory = any("out of memory" in text.lower() or "outofmemory" in text.lower() for text in self._errors)
            return (OutOfDeviceMemoryError if memory else BackendError)(f"{what}: {reasons}")

    return Logger()


def _check_installed(name: str, flavour: str) -> None:
    module = MODULES[flavour]
    if importlib.util.find_spec(module) is None:
        extra = "ldp[rtx]" if flavour == "rtx" else module
        raise NoGpuError(f"{name} needs the package {module}, which is not installed; install {extra}")


def _import(name: str, flavour: str) -> Any:
    _check_installed(name, flavour)
    module = MODULES[flavour]
    try:
        return importlib.import_module(module)
    except Exception as error:  # a broken native library raises more than ImportError
        raise BackendError(
            f"{name} needs the package {module}, which does not load ({one_line(error)}); install it again"
        ) from error


def _runtime_cache_file(file: EngineFile, device: Device) -> Path | None:
    folder = cache_folder("tensorrt-rtx")
    if folder is None:
        return None
    name = hashlib.sha256(f"{file.sha256} {device.name} {device.arch}".encode()).hexdigest()[:32]
    return folder / f"{name}.cache"
