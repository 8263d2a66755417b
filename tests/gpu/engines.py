"""A copy of ldp-nano with engines for the GPU that is there."""

import shutil
from pathlib import Path

from ldp_runtime.bundle.find import find_bundle
from ldp_runtime.cuda.base import Device
from ldp_runtime.errors import BackendError

FLAVOURS = {"tensorrt-rtx": "rtx", "tensorrt": "tensorrt"}
"""Backend -> flavour of TensorRT."""


def copy_with_engines(
    backend: str, device: Device, folder: Path, shape: str | None = None, *, whole: bool = False
) -> Path:
    """Builds the engines.

    Args:
        backend: A name of ``FLAVOURS``.
        device: The GPU.
        folder: Where the copy goes.
        shape: The one size that they take, ``HxW``; None for any from 32 x 32 to 1120 x 1696 px.
        whole: The deblur engine in one part.

    Raises:
        BackendError: That TensorRT has no engines for the GPU, or cannot be installed with what is here.
    """
    try:
        from ldp_export.cli import main
    except ImportError as error:
        raise BackendError(f"building engines needs the package {error.name}, which is not installed") from error
    copy = folder / "ldp-nano"
    shutil.copytree(find_bundle("ldp-nano"), copy, ignore=shutil.ignore_patterns("engines"))
    arguments = ["engine", str(copy), "--flavour", FLAVOURS[backend]]
    if backend == "tensorrt-rtx":
        from ldp_export.bundling.tensorrt_builder import TensorRT

        TensorRT("rtx").targets([device.arch])
        arguments += ["--arch", device.arch]
    arguments += ["--whole"] if whole else []
    arguments += ["--shape", shape] if shape else ["--min", "32x32", "--opt", "512x768", "--max", "1120x1696"]
    if main(arguments) != 0:
        raise AssertionError("the engines cannot be built; the message is above")
    return copy
