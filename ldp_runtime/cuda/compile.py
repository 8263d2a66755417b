"""NVRTC compiles the kernels for one architecture; what it made is kept in the user's cache.

Compiling needs the extra ``cuda`` (``cuda-core`` and NVRTC) but neither a GPU nor a driver.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from io import StringIO
from pathlib import Path

from ldp_runtime.cache import cache_folder
from ldp_runtime.errors import BackendError
from ldp_runtime.files import write_whole

KERNELS = Path(__file__).parent / "kernels"
"""The folder of the kernels' sources."""

PROGRAM = "kernels.cu"
"""The source that includes all kernels."""

_OPTIONS = {"std": "c++17", "fma": False}  # contracting products and sums would round other than the numpy twins
_DIGEST = hashlib.sha256


def compile_kernels(arch: str) -> bytes:
    """The kernels as native code, from the cache where it holds them.

    An entry's key is the content of the sources, the options, NVRTC's version and the architecture; an entry
    that is damaged is made again. Processes that compile at the same time do not disturb each other.

    Args:
        arch: Such as ``"sm_89"``.

    Returns:
        A cubin with every kernel of ``launches``.

    Raises:
        BackendError: cuda-core or NVRTC is missing, or NVRTC does not know the architecture.
    """
    _check(arch)
    key = _key(arch, _nvrtc_version())
    folder = cache_folder("cuda")
    entry = folder / f"{key}.cubin" if folder is not None else None
    if entry is not None and (kept := _read(entry)) is not None:
        return kept
    cubin, _ = build(arch)
    if entry is not None:
        _write(entry, cubin)
    return cubin


def build(arch: str, ptxas_options: tuple[str, ...] = ()) -> tuple[bytes, str]:
    """Compiles the kernels, the cache left aside.

    Args:
        arch: Such as ``"sm_89"``.
        ptxas_options: Passed to the assembler; ``"-v"`` makes it log registers and spills.

    Returns:
        The cubin and the compiler's log.

    Raises:
        BackendError: As for ``compile_kernels``.
    """
    _check(arch)
    _nvrtc_version()  # says what is missing
    from cuda.core import Program, ProgramOptions

    options = ProgramOptions(
        name=PROGRAM, arch=arch, include_path=str(KERNELS), ptxas_options=list(ptxas_options) or None, **_OPTIONS
    )
    log = StringIO()
    try:
        code = Program((KERNELS / PROGRAM).read_text(encoding="utf-8"), "c++", options).compile("cubin", logs=log).code
    except Exception as error:  # NVRTCError, of a private module
        text = " ".join(str(error).replace("\0", "").split())
        raise BackendError(
            f"expected an architecture that NVRTC {'.'.join(map(str, _nvrtc_version()))} compiles for, got {arch}: "
            f"{text[-300:]}; update the extra cuda"
        ) from error
    return bytes(code), log.getvalue().replace("\0", "")


def _check(arch: str) -> None:
    if not re.fullmatch(r"sm_\d+", arch):
        raise BackendError(f"expected an architecture such as sm_89, got {arch!r}; give the GPU's compute capability")


def _nvrtc_version() -> tuple[int, int]:
    try:
        import cuda.core  # noqa: F401
        from cuda.bindings import nvrtc

        status, major, minor = nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError) as error:  # RuntimeError: the library itself is not found
        text = " ".join(str(error).split())
        raise BackendError(f"expected cuda-core and NVRTC, got {text[:200]}; pip install 'ldp[cuda]'") from error
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise BackendError(f"expected NVRTC's version, got {status}; install the extra cuda again")
    return int(major), int(minor)


def _key(arch: str, version: tuple[int, int]) -> str:
    """SHA-256 of all that the cubin depends on."""
    digest = _DIGEST(f"{arch} {version} {sorted(_OPTIONS.items())}".encode())
    for source in sorted(KERNELS.glob("*.cu*")):
        content = source.read_bytes()
        digest.update(f"\n{source.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _read(entry: Path) -> bytes | None:
    """The cubin of an entry (its hash, then itself); None if it is missing or damaged."""
    try:
        content = entry.read_bytes()
    except OSError:
        return None
    size = _DIGEST().digest_size
    digest, cubin = content[:size], content[size:]
    return cubin if cubin and _DIGEST(cubin).digest() == digest else None


def _write(entry: Path, cubin: bytes) -> None:
    """Writes an entry in one step; a cache that cannot be written is gone without."""
    with contextlib.suppress(OSError):
        write_whole({entry: _DIGEST(cubin).digest() + cubin})
