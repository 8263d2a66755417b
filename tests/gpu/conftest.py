"""What the GPU tests need; each test skips by the name of what is missing."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ldp_runtime.bundle.bundle import Bundle
from ldp_runtime.cuda.device import CudaDevice, NoGpuError, open_device
from ldp_runtime.errors import BackendError
from ldp_runtime.registry import BACKENDS
from tests.gpu.engines import copy_with_engines


@pytest.fixture(scope="session")
def device() -> CudaDevice:
    """The first GPU."""
    try:
        return open_device()
    except NoGpuError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session", params=["tensorrt-rtx", "tensorrt"])
def backend(request: pytest.FixtureRequest, device: CudaDevice) -> str:
    """A flavour of TensorRT that is installed."""
    try:
        BACKENDS[request.param].available()
    except NoGpuError as error:
        pytest.skip(str(error))
    return str(request.param)


@pytest.fixture(scope="session", autouse=True)
def own_config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Engines that the tests build are not entered in the user's own record of trust."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LDP_CONFIG", str(tmp_path_factory.mktemp("config")))
        yield


@pytest.fixture(scope="session")
def bundle(backend: str, device: CudaDevice, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of ldp-nano with engines for this GPU and any size, built here."""
    try:
        folder = copy_with_engines(backend, device, tmp_path_factory.mktemp("bundles"))
    except BackendError as error:
        pytest.skip(str(error))
    try:
        BACKENDS[backend].open_chain(Bundle.load(folder), "fp16", "auto")  # type: ignore[attr-defined]
    except BackendError as error:
        pytest.fail(str(error))
    return folder
