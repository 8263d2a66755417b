"""What the GPU tests need; each test skips by the name of what is missing."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ldp_runtime.bundle.bundle import Bundle
from ldp_runtime.bundle.find import find_bundle
from ldp_runtime.cuda.device import CudaDevice, NoGpuError, open_device
from ldp_runtime.errors import BackendError
from ldp_runtime.registry import BACKENDS


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
    pytest.importorskip("onnx", reason="ldp-export needs the package onnx")
    from ldp_export.cli import main

    folder = tmp_path_factory.mktemp("bundles") / "ldp-nano"
    shutil.copytree(find_bundle("ldp-nano"), folder, ignore=shutil.ignore_patterns("engines"))
    flavour = {"tensorrt-rtx": "rtx", "tensorrt": "tensorrt"}[backend]
    arguments = ["engine", str(folder), "--flavour", flavour]
    if flavour == "rtx":
        if device.arch == "sm_90":
            pytest.skip("TensorRT-RTX has no engines for Hopper (sm_90)")
        arguments += ["--arch", device.arch]
    assert main([*arguments, "--min", "32x32", "--opt", "512x768", "--max", "1120x1696"]) == 0
    try:
        BACKENDS[backend].open_chain(Bundle.load(folder), "fp16", "auto")  # type: ignore[attr-defined]
    except BackendError as error:
        pytest.fail(str(error))
    return folder
