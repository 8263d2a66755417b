"""The TensorRT adapter without a GPU: the names that it uses exist, and it does the right calls in order."""

import ast
import errno
import gc
import inspect
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import msgspec
import pytest

import ldp_runtime.cuda.tensorrt as adapter
from ldp_runtime.bundle.bundle import Bundle
from ldp_runtime.bundle.engines import ShapeRange
from ldp_runtime.bundle.manifest import BlurMapSpec
from ldp_runtime.bundle.trust import trust
from ldp_runtime.cuda.base import OutOfDeviceMemoryError
from ldp_runtime.cuda.device import NoGpuError
from ldp_runtime.cuda.tensorrt import (
    CudaBackend,
    RuntimeCache,
    TensorRtBackend,
    TensorRtEngine,
    TensorRtSource,
    make_logger,
)
from ldp_runtime.deblurrer import Deblurrer
from ldp_runtime.errors import BackendError
from ldp_runtime.registry import BACKENDS, select
from tests.ldp_runtime.cuda.host_device import HostDevice
from tests.ldp_runtime.helpers import a_pair
from tests.ldp_runtime.tiny_bundle import add_engine, make_tiny_bundle

API = json.loads((Path(__file__).parent / "tensorrt_api.json").read_text(encoding="utf-8"))

# What a variable of the adapter holds -> the class of TensorRT whose members it uses.
CLASSES = {
    "trt": "module",
    "self._trt": "module",
    "engine": "ICudaEngine",
    "self._engine": "ICudaEngine",
    "context": "IExecutionContext",
    "self._context": "IExecutionContext",
    "config": "IRuntimeConfig",
    "self._runtime": "Runtime",
    "trt.ILogger": "ILogger",
    "trt.ILogger.Severity": "ILogger",
    "trt.ExecutionContextAllocationStrategy": "ExecutionContextAllocationStrategy",
    "self._trt.TensorIOMode": "TensorIOMode",
    "trt.CudaGraphStrategy": "CudaGraphStrategy",
    "trt.DynamicShapesKernelSpecializationStrategy": "DynamicShapesKernelSpecializationStrategy",
}
# What TensorRT-RTX alone has; the adapter asks with hasattr before it uses them.
RTX_ONLY = {
    ("module", "CudaGraphStrategy"),
    ("module", "DynamicShapesKernelSpecializationStrategy"),
    ("CudaGraphStrategy", "DISABLED"),
    ("DynamicShapesKernelSpecializationStrategy", "EAGER"),
    ("IRuntimeConfig", "cuda_graph_strategy"),
    ("IRuntimeConfig", "dynamic_shapes_kernel_specialization_strategy"),
    ("IRuntimeConfig", "create_runtime_cache"),
    ("IRuntimeConfig", "set_runtime_cache"),
    ("IExecutionContext", "is_stream_capturable"),
}


def used() -> set[tuple[str, str]]:
    """Class and member of TensorRT, for every attribute in the adapter's source."""
    tree = ast.parse(inspect.getsource(adapter))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (owner := CLASSES.get(ast.unparse(node.value))):
            found.add((owner, node.attr))
    return {(owner, name) for owner, name in found if not name.startswith("_") or name == "__version__"}


def test_the_search_for_names_finds_them() -> None:
    names = used()
    assert ("IExecutionContext", "execute_async_v3") in names
    assert ("ICudaEngine", "create_runtime_config") in names
    assert ("Runtime", "deserialize_cuda_engine") in names
    assert len(names) > 25
    assert names >= RTX_ONLY


def test_every_name_exists_in_tensorrt_rtx() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    for owner, name in used():
        holder = trt if owner == "module" else getattr(trt, owner)
        assert hasattr(holder, name), f"{owner}.{name}"
    for name in ("serialize", "deserialize"):
        assert hasattr(trt.IRuntimeCache, name)
    assert all(hasattr(trt.DataType, name) for name in adapter._DTYPES)
    assert all(hasattr(trt.TensorFormat, name) for name in adapter._LAYOUTS)


@pytest.mark.parametrize("version", ["10.16.1.11", "11.4.0.106"])
def test_every_name_exists_in_enterprise_tensorrt(version: str) -> None:
    api = API[version]
    for owner, name in used() - RTX_ONLY:
        assert name in api[owner], f"{owner}.{name} of TensorRT {version}"
    for owner, name in RTX_ONLY:
        assert name not in api.get(owner, ()), f"{owner}.{name} is in TensorRT {version} too"
    assert set(adapter._DTYPES) <= set(api["DataType"])


def fake_module(rtx: bool, log: list[Any]) -> ModuleType:
    """What the adapter uses of TensorRT, writing down the calls; engines are those of ``engine``."""
    trt = ModuleType("tensorrt")
    trt.__version__ = "1.2.3"  # type: ignore[attr-defined]
    trt.ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user managed")  # type: ignore[attr-defined]
    trt.TensorIOMode = SimpleNamespace(INPUT="input")  # type: ignore[attr-defined]

    class ILogger:
        Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2)

    class Runtime:
        result: Any = None

        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, content: bytes) -> Any:
            log.append(("deserialize", content))
            if self.result is None:
                self.logger.log(1, "built for another GPU")
            return self.result

    trt.ILogger, trt.Runtime = ILogger, Runtime  # type: ignore[attr-defined]
    if rtx:
        trt.CudaGraphStrategy = SimpleNamespace(DISABLED="no graphs")  # type: ignore[attr-defined]
        trt.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")  # type: ignore[attr-defined]
    return trt


class FakeCache:
    def __init__(self, accepts: bool) -> None:
        self.accepts, self.content = accepts, b"fresh"

    def deserialize(self, content: bytes) -> bool:
        if self.accepts:
            self.content = content
        return self.accepts

    def serialize(self) -> memoryview:
        return memoryview(self.content)


class FakeConfig:
    def __init__(self) -> None:
        self.strategy: Any = None
        self.cache = FakeCache(True)

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> FakeCache:
        return self.cache

    def set_runtime_cache(self, cache: FakeCache) -> None:
        assert cache is self.cache


def fake_context(log: list[Any]) -> Any:
    """A context that writes down its calls; its runs fail if ``works`` is False."""

    def note(*call: Any, result: Any = True) -> Any:
        log.append(call)
        return result

    context = SimpleNamespace(works=True, wants=512, logger=None)
    context.set_optimization_profile_async = lambda index, stream: note("profile", index)
    context.set_input_shape = lambda name, shape: note("shape", name, shape, result=shape[0] <= 64)
    context.infer_shapes = list
    context.get_tensor_shape = lambda name: (2, 3)
    context.update_device_memory_size_for_shapes = lambda: 512

    def set_device_memory(address: int, size: int) -> None:
        log.append(("scratch", address, size))
        if size < context.wants:
            context.logger.log(1, f"{size} bytes are too few")

    context.set_device_memory = set_device_memory
    context.set_tensor_address = lambda name, address: note("address", name, address)
    context.execute_async_v3 = lambda stream: note("execute", stream, result=context.works)
    return context


def fake_engine(log: list[Any]) -> Any:
    engine = SimpleNamespace(num_io_tensors=2, made=fake_context(log), device_memory_size_v2=2048)
    engine.get_tensor_name = ("x", "y").__getitem__
    engine.get_tensor_dtype = lambda name: SimpleNamespace(name="HALF")
    engine.get_tensor_format = lambda name: SimpleNamespace(name="LINEAR")
    engine.get_tensor_shape = lambda name: (-1, 3)
    engine.get_tensor_mode = {"x": "input", "y": "output"}.__getitem__

    def create_runtime_config() -> FakeConfig:
        config = FakeConfig()
        engine.config = weakref.ref(config)
        return config

    engine.create_runtime_config = create_runtime_config
    engine.create_execution_context = lambda how: (log.append(("context", how)), engine.made)[1]
    return engine


def an_engine(rtx: bool, log: list[Any], cache: Path | None = None) -> tuple[TensorRtEngine, Any, Any]:
    trt, fake = fake_module(rtx, log), fake_engine(log)
    logger = fake.made.logger = make_logger(trt)
    return TensorRtEngine(trt, logger, fake, HostDevice(), cache), fake, logger


def test_the_calls_of_enterprise_tensorrt() -> None:
    log: list[Any] = []
    engine, _, _ = an_engine(False, log)
    assert [str(spec) for spec in engine.inputs + engine.outputs] == ["x (?, 3) float16", "y (?, 3) float16"]
    context = engine.context({"x": (2, 3)})
    assert log == [("context", "user managed"), ("profile", 0), ("shape", "x", (2, 3))]
    assert (context.outputs, context.scratch) == ({"y": (2, 3)}, 512)
    stream = HostDevice().stream()
    assert context.capturable(stream)
    log.clear()
    context.enqueue(stream, {"x": 10, "y": 20}, 256)
    addresses = [("address", "x", 10), ("address", "y", 20), ("scratch", 256, 512)]
    assert log == [*addresses, ("execute", stream.handle)]
    context.enqueue(stream, {"x": 10, "y": 20}, 256)  # nothing changed: TensorRT need not prepare again
    assert log[4:] == [("execute", stream.handle)]
    context.enqueue(stream, {"x": 11, "y": 20}, 256)
    assert ("address", "x", 11) in log[5:]
    context.ran()  # keeps nothing


def test_a_layout_with_more_bytes_than_elements_is_refused() -> None:
    layouts = {"x": "LINEAR", "y": "HWC"}
    fake = fake_engine([])
    fake.get_tensor_format = lambda name: SimpleNamespace(name=layouts[name])
    trt = fake_module(False, [])
    assert TensorRtEngine(trt, make_logger(trt), fake, HostDevice(), None).channels_last == {"y"}
    layouts["y"] = "HWC8"
    with pytest.raises(BackendError, match="expected y of an engine in LINEAR or HWC, got HWC8; build"):
        TensorRtEngine(trt, make_logger(trt), fake, HostDevice(), None)


def test_the_calls_of_tensorrt_rtx(tmp_path: Path) -> None:
    log: list[Any] = []
    engine, fake, _ = an_engine(True, log, tmp_path / "kernels.cache")
    context = engine.context({"x": (2, 3)})
    config = fake.config()
    assert log[0] == ("context", config)
    assert (config.strategy, config.cuda_graph_strategy) == ("user managed", "no graphs")
    assert config.dynamic_shapes_kernel_specialization_strategy == "eager"
    fake.made.is_stream_capturable = lambda stream: False
    assert not context.capturable(HostDevice().stream())
    context.ran()
    assert (tmp_path / "kernels.cache").read_bytes() == b"fresh"
    log.clear()
    del config
    gc.collect()
    assert fake.config() is not None, "the configuration went before its context"
    del context
    gc.collect()
    assert fake.config() is None


def test_memory_that_is_refused_is_made_as_large_as_the_documentation_wants() -> None:
    log: list[Any] = []
    engine, fake, _ = an_engine(False, log)
    fake.made.wants = 2048
    context = engine.context({"x": (2, 3)})
    stream = HostDevice().stream()
    log.clear()
    context.enqueue(stream, {"x": 10, "y": 20}, 256)
    context.enqueue(stream, {"x": 10, "y": 20}, 512)  # its own memory is what it goes on with
    sizes = [call for call in log if call[0] == "scratch"]
    assert [size for _, _, size in sizes] == [512, 2048]
    assert sizes[0][1] == 256 and sizes[1][1] not in (256, 512)
    fake.made.wants = 4096  # not even then
    context = engine.context({"x": (2, 3)})
    log.clear()
    with pytest.raises(BackendError, match="refused 512 and 2048 bytes of memory: 2048 bytes are too few"):
        context.enqueue(stream, {"x": 10, "y": 20}, 256)
    assert ("execute", stream.handle) not in log


@pytest.mark.parametrize(("most", "wanted"), [(2048, 2048), (0, 0)])
def test_a_size_of_zero_is_not_believed(most: int, wanted: int) -> None:
    log: list[Any] = []
    engine, fake, _ = an_engine(False, log)
    fake.made.update_device_memory_size_for_shapes = lambda: 0
    fake.device_memory_size_v2 = most
    context = engine.context({"x": (2, 3)})
    assert context.scratch == wanted
    context.enqueue(HostDevice().stream(), {"x": 10, "y": 20}, 256)
    assert [call for call in log if call[0] == "scratch"] == ([("scratch", 256, most)] if most else [])


def test_the_runtime_cache_is_read_written_and_never_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "kernels.cache"
    path.write_bytes(b"of the last run")
    config = FakeConfig()
    cache = RuntimeCache(config, path)
    assert config.cache.content == b"of the last run"
    config.cache.content = b"more"
    cache.save()
    assert path.read_bytes() == b"more"
    config = FakeConfig()
    config.cache.accepts = False  # of another driver
    RuntimeCache(config, path).save()
    assert path.read_bytes() == b"fresh"
    assert [file.name for file in tmp_path.iterdir()] == ["kernels.cache"]
    RuntimeCache(FakeConfig(), tmp_path / "gone" / "kernels.cache").save()  # no folder: no error
    RuntimeCache(FakeConfig(), None).save()

    def fail(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", fail)
    config = FakeConfig()
    RuntimeCache(config, path)
    assert config.cache.content == b"fresh"


def test_failures_say_what_tensorrt_says() -> None:
    log: list[Any] = []
    engine, fake, logger = an_engine(False, log)
    with pytest.raises(BackendError, match=r"the engine does not take x \(65, 3\): TensorRT gives no reason"):
        engine.context({"x": (65, 3)})
    context = engine.context({"x": (2, 3)})
    fake.made.works = False
    execute = fake.made.execute_async_v3
    fake.made.execute_async_v3 = lambda stream: (logger.log(1, "a kernel\nfailed"), execute(stream))[1]
    with pytest.raises(BackendError, match="TensorRT failed: a kernel failed"):
        context.enqueue(HostDevice().stream(), {"x": 10, "y": 20}, 256)
    fake.made = None
    logger.log(1, "stale")
    with pytest.raises(BackendError, match="cannot make an engine ready: TensorRT gives no reason"):
        engine.context({"x": (2, 3)})
    logger.clear()
    logger.log(1, "Requested amount of GPU memory: out of memory")
    assert isinstance(logger.error("no context"), OutOfDeviceMemoryError)
    logger.clear()
    logger.log(2, "only a warning")
    assert "gives no reason" in str(logger.error("x"))


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A tiny bundle with two engines for the host device."""
    monkeypatch.setenv("LDP_CONFIG", str(tmp_path / "config"))
    monkeypatch.setenv("LDP_CACHE", str(tmp_path / "cache"))
    path = make_tiny_bundle(tmp_path)
    made: dict[str, Any] = {"kind": "deblur", "flavour": "tensorrt", "version": "1.2.3", "targets": ("sm_0",)}
    for low, high, content in ((64, 64, b"fixed"), (32, 128, b"dynamic engine")):
        ends = deblur_shapes(low, low), deblur_shapes(high, high)
        profile = {name: ShapeRange(ends[0][name], ends[1][name], ends[1][name]) for name in ends[0]}
        add_engine(path, content, **made, profile=profile)
    return Bundle.load(path)


def a_source(bundle: Bundle, log: list[Any], version: str = "1.2.3") -> tuple[TensorRtSource, ModuleType]:
    trt = fake_module(False, log)
    trt.__version__ = version  # type: ignore[attr-defined]
    return TensorRtSource(trt, "tensorrt", HostDevice(), bundle), trt


def deblur_shapes(H: int, W: int) -> dict[str, tuple[int, ...]]:
    return {"pair": (1, 6, H, W), "blur_logits": (1, 1, H // 16, W // 16)}


def test_an_untrusted_engine_is_not_even_read(bundle: Bundle) -> None:
    log: list[Any] = []
    source, trt = a_source(bundle, log)
    entry = source.find("deblur", deblur_shapes(64, 64))
    with pytest.raises(BackendError, match=f"native code and was neither built here nor.*run ldp trust {bundle.path}"):
        source.open(entry)
    assert log == []
    trust([entry.sha256], "a test")
    trt.Runtime.result = fake_engine(log)  # type: ignore[attr-defined]
    engine = source.open(entry)
    assert log == [("deserialize", b"fixed")]
    assert source.open(entry) is engine


def test_an_engine_that_does_not_load(bundle: Bundle) -> None:
    source, _ = a_source(bundle, [])
    entry = source.find("deblur", deblur_shapes(96, 128))
    trust([entry.sha256], "a test")
    with pytest.raises(BackendError, match="does not load on the test's host: built for another GPU"):
        source.open(entry)


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"plam"), lambda path: path.unlink()])
def test_auto_passes_over_an_engine_that_is_damaged_or_missing(
    damage: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LDP_CONFIG", str(tmp_path / "config"))
    path = make_tiny_bundle(tmp_path, clip=False)
    made: dict[str, Any] = {"kind": "deblur", "flavour": "rtx", "version": "1.2.3", "targets": ("sm_0",)}
    entry = add_engine(path, **made, profile={"pair": ShapeRange(*[(1, 6, 64, 64)] * 3)})
    trust([entry.sha256], "a test")
    damage(path / entry.file)
    monkeypatch.setattr(adapter, "_import", lambda name, flavour: fake_module(True, []))
    monkeypatch.setattr(adapter, "open_device", HostDevice)
    monkeypatch.setattr("ldp_runtime.registry.BACKENDS", {**BACKENDS, "cuda": Flavour("cuda", True)})
    deblurrer = Deblurrer.from_bundle(path)
    assert deblurrer.backend == "cuda"
    assert deblurrer(*a_pair(64, 64)).backend in ("openvino", "onnxruntime")
    why = deblurrer.passed_over["cuda"]
    assert why.startswith(f"{path / entry.file}: ")
    assert why.endswith(f"; build it again with ldp-export engine {path}")
    with pytest.raises(BackendError, match="build it again"):
        Deblurrer.from_bundle(path, backend="cuda")(*a_pair(64, 64))


def test_no_engine_says_how_to_build_one(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    source, _ = a_source(bundle, [])
    assert source.fixed_sizes() == [(64, 64)]
    with pytest.raises(BackendError, match="--flavour tensorrt --arch sm_0"):
        source.find("clip", {"stereo": (1, 3, 64, 128), "center": (1, 3, 64, 64)})
    other, trt = a_source(bundle, [], "9.9")
    assert other.candidates() == []
    monkeypatch.setattr(adapter, "_import", lambda name, flavour: trt)
    monkeypatch.setattr(adapter, "open_device", HostDevice)
    with pytest.raises(
        BackendError, match=r"has no engine of tensorrt 9\.9 for sm_0; build some with ldp-export engine"
    ):
        TensorRtBackend("tensorrt", "tensorrt").open_chain(bundle, "fp16", "auto")


def test_a_bundle_of_the_released_kind_is_refused(bundle: Bundle) -> None:
    import dataclasses

    spec = BlurMapSpec("patch", "map", 40)
    released = dataclasses.replace(bundle, manifest=msgspec.structs.replace(bundle.manifest, blur_map=spec))
    with pytest.raises(BackendError, match="is of another kind"):
        TensorRtBackend("tensorrt", "tensorrt").open_chain(released, "fp16", "auto")


class Flavour(TensorRtBackend):
    """A flavour that is there or not, with engines or not, or with those of the bundle."""

    def __init__(self, name: str, there: bool, chain: Any = "the bundle's") -> None:
        super().__init__(name, "rtx")
        self._there, self._chain = there, chain

    def available(self) -> None:
        if not self._there:
            raise NoGpuError(f"{self.name} is not here")

    def open_chain(self, bundle: Any, precision: str, tile: int | str) -> Any:
        if self._chain is None:
            raise BackendError(f"no engine of {self.name}")
        return super().open_chain(bundle, precision, tile) if self._chain == "the bundle's" else self._chain


def test_cuda_means_the_flavour_that_has_engines(bundle: Bundle) -> None:
    first, second = Flavour("a", True, "chain a"), Flavour("b", True, "chain b")
    assert CudaBackend((first, second)).open_chain(bundle, "fp16", "auto") == "chain a"
    assert CudaBackend((Flavour("a", True, None), second)).open_chain(bundle, "fp16", "auto") == "chain b"
    assert CudaBackend((Flavour("a", False, "x"), second)).open_chain(bundle, "fp16", "auto") == "chain b"
    with pytest.raises(BackendError, match="no engine of a; no engine of b"):
        CudaBackend((Flavour("a", True, None), Flavour("b", True, None))).open_chain(bundle, "fp16", "auto")
    with pytest.raises(NoGpuError, match="a is not here; b is not here"):
        CudaBackend((Flavour("a", False, None), Flavour("b", False, None))).available()


def test_a_flavour_that_does_not_load_leaves_the_other_alone(bundle: Bundle) -> None:
    class Broken(Flavour):
        def available(self) -> None:
            raise BackendError(f"{self.name} does not load")

    broken = Broken("a", True)
    both = CudaBackend((broken, Flavour("b", True, "chain b")))
    both.available()
    assert both.open_chain(bundle, "fp16", "auto") == "chain b"
    with pytest.raises(BackendError, match=r"^a does not load; no engine of b$"):
        CudaBackend((broken, Flavour("b", True, None))).open_chain(bundle, "fp16", "auto")
    with pytest.raises(BackendError, match=r"^a does not load$") as caught:
        CudaBackend((broken, Flavour("b", False, None))).available()
    assert not isinstance(caught.value, NoGpuError)


def test_what_is_missing_here_is_named() -> None:
    if _has_gpu():
        pytest.skip("there is a GPU")
    for name in ("tensorrt-rtx", "tensorrt", "cuda"):
        with pytest.raises(BackendError, match=r"needs (the package|an NVIDIA driver)"):
            BACKENDS[name].available()
    chosen, reason, _ = select()
    assert chosen.name in ("openvino", "onnxruntime")
    assert "cuda" not in reason  # a machine without a GPU hears nothing of GPUs


def _has_gpu() -> bool:
    try:
        adapter.open_device()
    except BackendError:
        return False
    return True
