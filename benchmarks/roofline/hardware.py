"""Peak rates: of GPUs from ``hardware.json``, each with its source, and of this CPU as measured here."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.machine import BF16_FEATURES, describe

FILE = Path(__file__).with_name("hardware.json")

_SCALE = {"TFLOPS": 1e12, "TOPS": 1e12, "GB/s": 1e9, "MiB": 2.0**20}
_GEMM_SIDE = 1024
_COPY_BYTES = 2**27
_REPEATS = 5


@dataclass(frozen=True)
class Device:
    """The roofs of one device for one type of arithmetic.

    Attributes:
        name: Its name.
        precision: "fp16", or on a CPU "fp32" or "bf16".
        matrix: FLOP/s of convolutions and matrix products.
        vector: FLOP/s of everything else.
        bandwidth: Bytes/s of its memory.
        cache: Bytes of its last-level cache; 0 if unknown.
        link: Bytes/s between it and the host, one way; 0 for the host itself.
        measured: The rates were measured here; else they are the vendor's peaks.
    """

    name: str
    precision: str
    matrix: float
    vector: float
    bandwidth: float
    cache: int
    link: float
    measured: bool

    def seconds(self, matrix_flops: float, vector_flops: float, nbytes: float) -> float:
        """The floor of a kernel: the longest of what its arithmetic and its traffic take, fully overlapped."""
        return max(matrix_flops / self.matrix, vector_flops / self.vector, nbytes / self.bandwidth)


def figures() -> dict[str, dict[str, float]]:
    """All figures of the file in FLOP/s, OP/s, bytes/s and bytes, by device and quantity."""
    devices = json.loads(FILE.read_text(encoding="utf-8"))["devices"]
    return {
        name: {quantity: value * _SCALE[unit] for quantity, (value, unit, _) in entries.items()}
        for name, entries in devices.items()
    }


def sources() -> list[dict[str, str]]:
    """Sources of the figures, rows of ``device``, ``figures``, ``document``, ``where``, ``status``, ``check``.

    ``status`` says how far a source was checked; ``hardware.json`` explains each.
    """
    data = json.loads(FILE.read_text(encoding="utf-8"))
    rows = []
    for name, entries in data["devices"].items():
        for key in dict.fromkeys(source for _, _, source in entries.values()):
            own = [quantity for quantity, (_, _, source) in entries.items() if source == key]
            source = data["sources"][key]
            rows.append(
                {"device": name, "figures": ", ".join(own)}
                | {field: source[field] for field in ("document", "where", "status", "check")}
            )
    return rows


def gpus(accumulate: str = "fp16") -> list[Device]:
    """The GPUs of the file, in FP16 without sparsity.

    Args:
        accumulate: "fp16", the fastest that tensor cores do, or "fp32", half of it on GeForce cards.
    """
    key = "fp16_tensor" if accumulate == "fp16" else "fp16_tensor_fp32_accumulate"
    return [
        Device(name, "fp16", f[key], f["fp16_vector"], f["bandwidth"], int(f["l2"]), f["pcie"], False)
        for name, f in figures().items()
    ]


def measure_cpu() -> list[Device]:
    """This CPU: a matrix product and a copy, the best of a few runs each, on the libraries' own choice of threads.

    The rates are those of good libraries, not a vendor's peak, so a chain can be faster than a floor from them.
    Without torch there is no bf16, nor on a CPU without instructions for it, where torch emulates it.
    """
    source = np.ones(_COPY_BYTES // 4, np.float32)
    target = np.zeros_like(source)
    bandwidth = 2 * source.nbytes / _best(lambda: np.copyto(target, source))
    flops = 2.0 * _GEMM_SIDE**3
    a = np.random.default_rng(0).random((_GEMM_SIDE, _GEMM_SIDE), np.float32)
    fp32 = flops / _best(lambda: a @ a)
    devices = [Device("this CPU, FP32", "fp32", fp32, fp32, bandwidth, 0, 0, True)]
    if not BF16_FEATURES & set(describe()["cpu"]["features"]):
        return devices
    try:
        import torch
    except ImportError:
        return devices
    b = torch.from_numpy(a).to(torch.bfloat16)
    bf16 = flops / _best(lambda: b @ b)
    return [*devices, Device("this CPU, bf16", "bf16", bf16, fp32, bandwidth, 0, 0, True)]


def _best(run: Callable[[], Any]) -> float:
    run()
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)
