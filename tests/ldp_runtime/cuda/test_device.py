"""The CUDA device without a GPU: the names that it uses exist, and what is missing is said."""

import ast
import importlib
import inspect
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ldp_runtime.cuda import device as module
from ldp_runtime.cuda.base import OutOfDeviceMemoryError
from ldp_runtime.cuda.device import CudaDevice, CudaStream, NoGpuError, open_device
from ldp_runtime.errors import BackendError
from tests.processes import output

# Class of device.py, and what an expression in it holds -> the module and class whose members it uses.
OWNERS = {
    ("CudaDevice", "device"): "cuda.core.Device",
    ("CudaDevice", "self._device"): "cuda.core.Device",
    ("CudaDevice", "buffer"): "cuda.core.Buffer",
    ("CudaDevice", "self._module"): "cuda.core.ObjectCode",
    ("CudaDevice", "ObjectCode"): "cuda.core.ObjectCode",
    ("CudaDevice", "LegacyPinnedMemoryResource()"): "cuda.core.LegacyPinnedMemoryResource",
    ("CudaDevice", "StridedMemoryView"): "cuda.core.utils.StridedMemoryView",
    ("CudaDevice", "view"): "cuda.core.utils.StridedMemoryView",
    ("CudaMemory", "buffer"): "cuda.core.Buffer",
    ("CudaHostMemory", "buffer"): "cuda.core.Buffer",
    ("CudaEvent", "self.event"): "cuda.core.Event",
    ("CudaGraph", "_driver()"): "cuda.bindings.driver",
    ("CudaStream", "stream"): "cuda.core.Stream",
    ("CudaStream", "self.stream"): "cuda.core.Stream",
    ("CudaStream", "CoreStream"): "cuda.core.Stream",
    ("CudaStream", "event.event"): "cuda.core.Event",
    ("CudaStream", "driver"): "cuda.bindings.driver",
    ("CudaStream", "_driver()"): "cuda.bindings.driver",
    ("CudaStream", "driver.CUmemorytype"): "cuda.bindings.driver.CUmemorytype",
    ("CudaStream", "driver.CUevent_record_flags"): "cuda.bindings.driver.CUevent_record_flags",
    ("CudaStream", "driver.CUstreamCaptureMode"): "cuda.bindings.driver.CUstreamCaptureMode",
    ("CudaStream", "copy"): "cuda.bindings.driver.CUDA_MEMCPY2D",
}


def used() -> set[tuple[str, str]]:
    """Dotted owner and member, for every attribute and import of CUDA's packages in the module's source."""
    tree = ast.parse(inspect.getsource(module))
    found = set()
    for part in tree.body:
        scope = part.name if isinstance(part, ast.ClassDef) else ""
        for node in ast.walk(part):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cuda"):
                found |= {(str(node.module), alias.name) for alias in node.names}
            elif isinstance(node, ast.Attribute) and (owner := OWNERS.get((scope, ast.unparse(node.value)))):
                found.add((owner, node.attr))
    return found


def resolve(path: str) -> object:
    parts = path.split(".")
    for n in range(len(parts), 0, -1):
        try:
            value: object = importlib.import_module(".".join(parts[:n]))
        except ImportError:
            continue
        for name in parts[n:]:
            value = getattr(value, name)
        return value
    raise AssertionError(path)


def test_every_name_exists() -> None:
    pytest.importorskip("cuda.core")
    names = used()
    assert ("cuda.core.Stream", "wait") in names
    assert ("cuda.bindings.driver", "cuStreamEndCapture") in names
    assert ("cuda.bindings.driver", "cuMemcpy2DAsync") in names
    assert len(names) > 40
    for owner, name in sorted(names):
        assert hasattr(resolve(owner), name), f"{owner}.{name}"


def test_the_keywords_that_are_given_exist() -> None:
    core = pytest.importorskip("cuda.core")
    config = core.LaunchConfig(grid=(3, 2, 1), block=(32, 1, 1))
    assert (config.grid, config.block) == ((3, 2, 1), (32, 1, 1))
    assert core.EventOptions(timing_enabled=True).timing_enabled
    from cuda.core.utils import StridedMemoryView

    view = StridedMemoryView.from_dlpack(np.zeros((2, 5, 3), np.uint8), stream_ptr=-1)
    assert (view.shape, view.dtype, view.device_id) == ((2, 5, 3), np.uint8, -1)


def test_what_is_missing_is_said() -> None:
    try:
        device = open_device()
    except NoGpuError as error:
        assert "CUDA needs" in str(error)
        assert "\n" not in str(error)
    else:
        assert device.arch.startswith("sm_")


def test_a_driver_that_shows_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_load_driver", lambda: None)
    monkeypatch.setattr("cuda.core.Device", SimpleNamespace(get_all_devices=list))
    with pytest.raises(NoGpuError, match="got none; check CUDA_VISIBLE_DEVICES"):
        open_device.__wrapped__()


def test_without_a_driver_neither_cuda_core_nor_tensorrt_is_loaded() -> None:
    output("""
import sys
from ldp_runtime.registry import select
from ldp_runtime.cuda import device
device._DRIVER = "no-such-driver.so"
assert select()[0].name != "cuda"
heavy = {"cuda.core", "cuda.bindings", "tensorrt", "tensorrt_rtx"} & sys.modules.keys()
assert not heavy, f"loaded: {heavy}"
try:
    device.open_device()
except device.NoGpuError as error:
    assert "CUDA needs" in str(error), error
else:
    raise SystemExit("a GPU without a driver")
""")


@pytest.mark.parametrize(("version", "words"), [(12090, "got one for CUDA 12.9; update the driver"), (13000, None)])
def test_a_driver_older_than_the_packages_is_named(
    version: int, words: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    source, library = tmp_path / "driver.c", tmp_path / "driver.so"
    source.write_text(f"int cuDriverGetVersion(int *version) {{ *version = {version}; return 0; }}")
    subprocess.run([compiler, "-shared", "-fPIC", source, "-o", library], check=True)
    monkeypatch.setattr(module, "_DRIVER", str(library))
    if words is None:
        module._load_driver()
        return
    with pytest.raises(BackendError, match=f"driver for CUDA 13, release 580 or newer, {words}") as caught:
        module._load_driver()
    assert not isinstance(caught.value, NoGpuError)  # there is a GPU, so that the user hears of it


def test_memory_comes_from_one_stream_and_goes_on_another() -> None:
    calls: list[Any] = []
    buffer = SimpleNamespace(handle=4096, size=10, set_deallocation_stream=lambda stream: calls.append(stream.handle))
    core = SimpleNamespace(name="a GPU", arch="89", set_current=lambda: None)
    core.allocate = lambda size, *, stream: (calls.append((size, stream.handle)), buffer)[1]
    device = CudaDevice(core)
    compute, download = (CudaStream(device, SimpleNamespace(handle=handle)) for handle in (7, 8))
    memory = device.allocate(10, compute, download)
    assert (memory.address, memory.size) == (4096, 10)
    assert calls == [(10, 7), 8]  # and neither a default stream nor a wait, which the device above has not


def test_errors_of_cuda_become_ours() -> None:
    with (
        pytest.raises(OutOfDeviceMemoryError, match="10 bytes cannot be had: out of memory"),
        module._translated("10 bytes cannot be had"),
    ):
        raise RuntimeError("CUDA_ERROR_OUT_OF_MEMORY: the API call failed")
    with (
        pytest.raises(BackendError, match=r"^the GPU refused a copy: CUDA_ERROR_INVALID_VALUE$") as caught,
        module._translated("the GPU refused a copy"),
    ):
        raise RuntimeError("CUDA_ERROR_INVALID_VALUE")
    assert not isinstance(caught.value, OutOfDeviceMemoryError)


def test_the_status_of_a_driver_call() -> None:
    driver = pytest.importorskip("cuda.bindings.driver")
    module._check((driver.CUresult.CUDA_SUCCESS,))
    with pytest.raises(RuntimeError, match="CUDA_ERROR_OUT_OF_MEMORY"):
        module._check((driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY,))


@pytest.mark.parametrize("fails", [None, "cuStreamEndCapture", "cuGraphInstantiate"])
def test_a_capture_leaves_neither_its_graph_nor_the_stream_behind(
    fails: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph that the driver has destroyed, as after a capture that failed, must not be destroyed once more."""
    driver = pytest.importorskip("cuda.bindings.driver")
    success, unjoined = driver.CUresult.CUDA_SUCCESS, driver.CUresult.CUDA_ERROR_STREAM_CAPTURE_UNJOINED
    answers = {"cuStreamEndCapture": "graph", "cuGraphInstantiate": "executable"}
    calls: list[Any] = []

    class Driver:
        def __getattr__(self, name: str) -> Any:
            if not name.startswith("cu"):
                return getattr(driver, name)

            def call(*arguments: Any) -> tuple[Any, ...]:
                calls.append((name, *arguments))
                answer = (answers[name],) if name in answers else ()
                return (unjoined, None) if name == fails else (success, *answer)

            return call

    monkeypatch.setattr(module, "_driver", Driver)
    records: list[Any] = []
    core: Any = SimpleNamespace(handle=7, record=records.append)
    stream, event = CudaStream(Any, core), module.CudaEvent(SimpleNamespace(handle=9))  # type: ignore[arg-type]
    stream.begin_capture()
    stream.record(event)
    mode, flag = (
        driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL,
        int(driver.CUevent_record_flags.CU_EVENT_RECORD_EXTERNAL),
    )
    expected = [("cuStreamBeginCapture", 7, mode), ("cuEventRecordWithFlags", 9, 7, flag), ("cuStreamEndCapture", 7)]
    assert not records
    if fails is None:
        graph = stream.end_capture()
        graph.launch(stream)
        del graph
        expected += [
            ("cuGraphInstantiate", "graph", 0),
            ("cuGraphDestroy", "graph"),
            ("cuGraphUpload", "executable", 7),
        ]
        expected += [("cuGraphLaunch", "executable", 7), ("cuGraphExecDestroy", "executable")]
    else:
        with pytest.raises(BackendError, match="cannot become a graph: CUDA_ERROR_STREAM_CAPTURE_UNJOINED"):
            stream.end_capture()
        if fails == "cuGraphInstantiate":
            expected += [("cuGraphInstantiate", "graph", 0), ("cuGraphDestroy", "graph")]
    assert calls == expected
    stream.record(event)
    assert records == [event.event]
