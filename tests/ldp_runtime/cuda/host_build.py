"""The CUDA kernels built for the host with g++, and a call that runs a ``Launch`` on host memory.

The sources are those that NVRTC compiles; ``shim/`` supplies what CUDA would. Built once a process; tests that
need it skip by name where there is no g++.
"""

import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest

from ldp_runtime.cuda.compile import KERNELS
from ldp_runtime.cuda.launch import Launch

SHIM = Path(__file__).parent / "shim"
FLAGS = (
    "-std=c++17",
    "-O1",
    "-fPIC",
    "-shared",
    "-ffp-contract=off",  # as NVRTC's --fmad=false
    "-fno-strict-aliasing",
    "-w",
)
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g1")

ENV_SANITIZE = "LDP_TEST_SANITIZE"
"""Set in the process of the test that runs the kernels under AddressSanitizer and UBSan."""

_LETTERS = {np.dtype(np.uintp): "P", np.dtype(np.int32): "i", np.dtype(np.int64): "q", np.dtype(np.float32): "f"}


def build(folder: Path, flags: tuple[str, ...] = ()) -> Path:
    """Compiles the kernels for the host; skips the test if there is no g++.

    Args:
        folder: Where the shared library goes.
        flags: More options of g++.

    Returns:
        The shared library.
    """
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed")
    library = folder / "kernels.so"
    sources = [f"-I{KERNELS}", f"-I{SHIM}", str(SHIM / "kernels_host.cpp")]
    command = [compiler, *FLAGS, *flags, *sources, "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return library


@functools.cache
def library() -> ctypes.CDLL:
    """The kernels for the host, built once a process; skips the test if there is no g++."""
    flags = SANITIZERS if os.environ.get(ENV_SANITIZE) else ()
    with tempfile.TemporaryDirectory() as folder:  # once loaded, its file is not needed
        return ctypes.CDLL(str(build(Path(folder), flags)))


def signature(kernel: str) -> str:
    """A letter a parameter: P pointer, i int, q long long, f float."""
    function = library()[f"signature_{kernel}"]
    function.restype = ctypes.c_char_p
    return str(function().decode())


def check_arguments(call: Launch) -> None:
    """Raises TypeError where arguments are not of the types of the kernel's parameters."""
    got = "".join(_LETTERS.get(argument.dtype, "?") for argument in call.arguments)
    wanted = signature(call.kernel)
    if got != wanted:
        raise TypeError(f"expected arguments {wanted} of {call.kernel}, got {got}")


def launch(call: Launch) -> None:
    """Runs a launch whose addresses are of host memory, thread after thread.

    Raises:
        TypeError: The arguments are not of the types of the kernel's parameters.
    """
    check_arguments(call)
    values = [np.array(argument) for argument in call.arguments]
    pointers = (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values))
    sizes = ((ctypes.c_uint * 3)(*call.grid), (ctypes.c_uint * 3)(*call.block))
    library()[f"host_{call.kernel}"](*sizes, pointers)


def address(array: np.ndarray) -> int:
    """Where an array begins."""
    return int(array.__array_interface__["data"][0])
