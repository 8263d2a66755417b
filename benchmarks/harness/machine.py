"""The machine of a measurement: processor, memory, GPU, system, versions, and the state of the source."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT

PACKAGES = (
    "numpy",
    "opencv-python-headless",
    "openvino",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-rtx-cu13",
    "cuda-core",
    "torch",
    "open_clip_torch",
    "onnx",
    "onnxscript",
    "scikit-image",
)
"""Packages whose versions matter to a figure."""

CPU_FEATURES = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "asimd", "bf16")
"""Instruction sets that matter to the backends."""

BF16_FEATURES = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""Those that multiply in bf16; without any of them bf16 is emulated, and slow."""

_PROC = Path("/proc")
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_GPU_FIELDS = ("name", "driver_version", "memory.total", "compute_cap")


@dataclass(frozen=True)
class Commit:
    """The state of the source.

    Attributes:
        hash: 40 hexadecimal digits; None outside of a git checkout.
        dirty: Tracked files differ from that commit.
    """

    hash: str | None
    dirty: bool

    def __str__(self) -> str:
        if self.hash is None:
            return "unknown commit"
        return f"{self.hash[:12]}{' with changes' if self.dirty else ''}"


@lru_cache(maxsize=1)
def describe() -> dict[str, Any]:
    """The machine, as plain JSON values; None where the system does not say.

    Returns:
        ``summary`` (one line), ``cpu`` (``name``, ``cores``, ``threads``, ``usable``, ``features``, ``caches``),
        ``memory_bytes``, ``gpus``, ``system``, ``python``, ``packages``.
    """
    cpu, memory, cards = _cpu(), _memory(), gpus()
    gib = "" if memory is None else f", {memory / 2**30:.0f} GiB"
    return {
        "summary": f"{cpu['name']}, {cpu['usable']} threads{gib}, "
        + (", ".join(card["name"] for card in cards) or "no GPU"),
        "cpu": cpu,
        "memory_bytes": memory,
        "gpus": cards,
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": _packages(),
    }


@lru_cache(maxsize=1)
def commit() -> Commit:
    """The state of the repository; its hash is None outside of a git checkout."""
    head = _run("git", "-C", str(ROOT), "rev-parse", "HEAD")
    if head is None:
        return Commit(None, False)
    # Reports are what a benchmark writes: they do not make the source differ.
    changed = _run("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    lines = [line for line in (changed or "").splitlines() if not line[3:].startswith("benchmarks/reports/")]
    return Commit(head.strip(), bool(lines))


@lru_cache(maxsize=1)
def gpus() -> list[dict[str, Any]]:
    """The NVIDIA cards that the driver reports: ``name``, ``driver``, ``memory_mib``, ``compute_capability``."""
    listed = _run("nvidia-smi", f"--query-gpu={','.join(_GPU_FIELDS)}", "--format=csv,noheader,nounits")
    cards = []
    for line in (listed or "").splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) == len(_GPU_FIELDS):
            name, driver, memory, capability = cells
            cards.append(
                {
                    "name": name,
                    "driver": driver,
                    "memory_mib": int(memory) if memory.isdecimal() else None,
                    "compute_capability": capability,
                }
            )
    return cards


def gpu_memory_used() -> int | None:
    """Bytes in use on the first NVIDIA card, by every process; None where the driver does not say."""
    listed = _run("nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits")
    first = (listed or "").partition("\n")[0].strip()
    return int(first) * 2**20 if first.isdecimal() else None


def peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes."""
    for line in _read(_PROC / "self" / "status").splitlines():
        if line.startswith("VmHWM:"):  # getrusage includes the peak of the parent process
            return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_memory() -> int:
    """Resident memory of this process now, in bytes; its peak where the system does not say."""
    for line in _read(_PROC / "self" / "status").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return peak_memory()


def reset_peak_memory() -> None:
    """Starts ``peak_memory`` anew, where the system can."""
    with contextlib.suppress(OSError):
        (_PROC / "self" / "clear_refs").write_text("5")


def load_average() -> float | None:
    """Runnable processes, on average over the last minute; None where the system does not say."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


@contextlib.contextmanager
def watch_load() -> Iterator[dict[str, float | None]]:
    """Load averages ``before`` and ``after`` the block."""
    load = {"before": load_average(), "after": None}
    yield load
    load["after"] = load_average()


def parse_cpuinfo(text: str) -> tuple[str | None, int | None, set[str]]:
    """Name, physical cores and features of ``/proc/cpuinfo``.

    Args:
        text: The file's text.

    Returns:
        The model's name and the number of distinct cores, None where the text does not say; the flags.
    """
    name, flags, cores = None, set[str](), set[tuple[str, str]]()
    package = ""
    for line in text.splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "model name":
            name = value
        elif key in ("flags", "Features"):
            flags = set(value.split())
        elif key == "physical id":
            package = value
        elif key == "core id":
            cores.add((package, value))
    return name, len(cores) or None, flags


def _cpu() -> dict[str, Any]:
    name, cores, flags = parse_cpuinfo(_read(_PROC / "cpuinfo"))
    threads = os.cpu_count() or 1
    return {
        "name": name or platform.processor() or platform.machine(),
        "cores": cores,
        "threads": threads,
        "usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else threads,
        "features": [feature for feature in CPU_FEATURES if feature in flags],
        "caches": _caches(),
    }


def _caches() -> dict[str, str]:
    """Size of each of the first core's caches, such as ``{"L1d": "32K", "L2": "1024K"}``."""
    caches = {}
    for index in sorted(_CACHES.glob("index*")):
        level, kind, size = (_read(index / name).strip() for name in ("level", "type", "size"))
        if level and size:
            caches[f"L{level}{kind[0].lower() if kind in ('Data', 'Instruction') else ''}"] = size
    return caches


def _memory() -> int | None:
    """Bytes of memory."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # no such call, or no such value, on this system
        return None


def _packages() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def _run(*command: str) -> str | None:
    """Standard output of a program; None where it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
