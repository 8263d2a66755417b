"""The self-test: does this installation compute what the bundle was exported to compute?

A bundle has a small pair and its restoration by the FP32 graphs in ``selftest.npz``. Each backend restores the pair in
each of its precisions, through the whole chain, and is compared with these values. In a bundle without the file the
backends are compared with each other.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldp_runtime.backends.base import Backend, graph_precision
from ldp_runtime.bundle.bundle import Bundle
from ldp_runtime.bundle.manifest import SELFTEST_FILE
from ldp_runtime.bundle.npy_files import read_npz
from ldp_runtime.chain import ChainBackend
from ldp_runtime.deblurrer import Deblurrer
from ldp_runtime.errors import BackendError, BundleError, LDPError, one_line
from ldp_runtime.images.quality import psnr
from ldp_runtime.registry import BACKENDS
from ldp_runtime.result import Result
from ldp_runtime.stages.blur_map import sigmoid

REFERENCE_BACKEND = "onnxruntime"
"""Runs on any CPU; in FP32 it makes the values that are kept."""

FP32_LIMIT = 1e-4
"""Largest difference of the restored image in FP32, unless the bundle's own gate says another."""

FP16_LIMIT_DB = 50.0
"""Least PSNR to the kept values in FP16, unless the bundle's own gate says another."""

BF16_LIMIT_DB = 45.0
"""Least PSNR to the kept values in bf16, whose features have three bits less than FP16's."""

INT8_LIMIT_DB = 35.0
"""Least PSNR to the kept values in INT8: finds broken graphs; for quality see the benchmark parity."""

BLUR_LIMITS = {"fp32": 0.005, "fp16": 0.05, "bf16": 0.1, "int8": 0.2}
"""Largest difference of the blur map, by precision."""

MAX_SAMPLE_BYTES = 64 << 20
"""Most bytes of ``selftest.npz``, packed and unpacked."""

_FIX = "export the bundle again, or write the sample again with ldp-export selftest"
_SHAPE = (96, 128)
_TO_16_BITS = 257  # 255 becomes 65535
_PEAK = 65535


@dataclass(frozen=True, eq=False)
class Sample:
    """A pair and its expected restoration.

    Attributes:
        left: ``(h, w, 3)`` uint16 RGB.
        right: The right view.
        restored: ``(h, w, 3)`` uint16, what the FP32 graphs restore.
        blur_logits: ``(h / p, w / p)`` float32, over the padded pair; None where the network reads no blur map.
    """

    left: NDArray[np.uint16]
    right: NDArray[np.uint16]
    restored: NDArray[np.uint16]
    blur_logits: NDArray[np.float32] | None

    def to_bytes(self) -> bytes:
        """The content of ``selftest.npz``."""
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {name: array for name, array in vars(self).items() if array is not None}
        np.savez_compressed(buffer, **arrays)
        return buffer.getvalue()


@dataclass(frozen=True)
class Outcome:
    """How one backend did in one precision.

    Attributes:
        backend: Its name.
        precision: The precision.
        verdict: ``"pass"``, ``"FAIL"`` or ``"reference"``, which the others are compared with where the
            bundle has no sample.
        reason: Why it failed; empty if it did not.
        open_seconds: Seconds until the graphs were ready; None if they never were.
        run_seconds: Seconds of the pair after that.
        max_difference: Largest difference of the restored image, of a full scale of 1.
        mean_difference: Mean of the absolute differences.
        psnr_db: PSNR in dB; None where the images are equal, too.
        blur_difference: Largest difference of the blur map, which reaches from 0 to 1; None where there is none.
    """

    backend: str
    precision: str
    verdict: str
    reason: str = ""
    open_seconds: float | None = None
    run_seconds: float | None = None
    max_difference: float | None = None
    mean_difference: float | None = None
    psnr_db: float | None = None
    blur_difference: float | None = None


@dataclass(frozen=True)
class SelfTest:
    """The outcome of a self-test.

    Attributes:
        outcomes: One for each backend that can work here and each of its precisions.
        absent: Backends, or a precision of one, that cannot, and why.
        kept: The bundle keeps values to compare with.
    """

    outcomes: tuple[Outcome, ...]
    absent: Mapping[str, str]
    kept: bool

    @property
    def failures(self) -> list[Outcome]:
        """What failed."""
        return [outcome for outcome in self.outcomes if outcome.verdict == "FAIL"]


def run_selftest(bundle: Bundle, only: str | None = None) -> SelfTest:
    """Restores the bundle's sample on each backend in each of its precisions, and compares.

    Args:
        bundle: The bundle.
        only: Name of the one backend to test, which then must be available.

    Raises:
        BundleError: The bundle's sample is damaged.
        BackendError: No such backend, it cannot work here, or none can.
    """
    if only is not None and only not in BACKENDS:
        raise BackendError(f"expected a backend, one of {', '.join(BACKENDS)}, got {only!r}")
    sample = read_sample(bundle)
    kept = sample is not None
    outcomes: list[Outcome] = []
    absent: dict[str, str] = {}
    for backend, precision in _runs(bundle, only, absent):
        try:
            outcome, sample = _test(bundle, backend, precision, sample)
        except LDPError as error:
            if isinstance(backend, ChainBackend) and only is None and isinstance(error, BackendError):
                absent[f"{backend.name} in {precision}"] = str(error)  # no engines, or none that are trusted
                continue
            outcome = Outcome(backend.name, precision, "FAIL", str(error))
        except Exception as error:  # a broken library may raise anything, and the others are tested too
            outcome = Outcome(backend.name, precision, "FAIL", f"{type(error).__name__}: {one_line(error)}")
        outcomes.append(outcome)
    if not outcomes:
        raise BackendError("no backend works here: " + "; ".join(f"{name}: {why}" for name, why in absent.items()))
    return SelfTest(tuple(outcomes), absent, kept)


def make_sample(bundle: Bundle) -> Sample:
    """The sample pair, and what ONNX Runtime makes of it with the bundle's FP32 graphs.

    Raises:
        LDPError: The bundle does not run.
    """
    left, right = sample_pair()
    result = Deblurrer(bundle, backend=REFERENCE_BACKEND, precision="fp32")(left, right)
    return Sample(left, right, result.restored, result.blur_logits)


def try_bf16(bundle: Bundle) -> Outcome | None:
    """How the CPU restores the bundle's sample in bf16; None where it has no bf16.

    Raises:
        BundleError: The bundle's sample is damaged.
    """
    backend = BACKENDS["openvino"]
    try:
        backend.available()
    except BackendError:
        return None
    if "bf16" not in backend.precisions:
        return None
    try:
        return _test(bundle, backend, "bf16", read_sample(bundle))[0]
    except LDPError as error:
        return Outcome(backend.name, "bf16", "FAIL", str(error))


def sample_pair() -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """A pair with stripes, squares and slopes, sharp on the left and more and more out of focus to the right.

    Integer arithmetic alone: the same pixels everywhere.

    Returns:
        Left and right view, ``(96, 128, 3)`` uint16.
    """
    h, w = _SHAPE
    reach = 6
    y, x = np.mgrid[0:h, 0 : w + 2 * reach]
    squares = (x // 12 * 7 + y // 9 * 5) % 11 * 19
    stripes = np.where(y % 24 < 8, (x // 2 % 2) * 90, 0)
    sharp = np.stack([(squares + stripes + shade) % 256 for shade in (x // 2, y, (x + y) // 3)], axis=-1)
    sums = np.concatenate([np.zeros((h, 1, 3), np.int64), np.cumsum(sharp, axis=1)], axis=1)
    at = np.arange(w)
    radius = at * reach // w

    def box(first: NDArray[np.intp], last: NDArray[np.intp]) -> NDArray[np.uint16]:
        mean = (sums[:, last + 1] - sums[:, first]) // (last + 1 - first)[:, None]
        view: NDArray[np.uint16] = (mean * _TO_16_BITS).astype(np.uint16)
        return view

    at = at + reach
    return box(at - radius, at), box(at, at + radius)


def read_sample(bundle: Bundle) -> Sample | None:
    """The bundle's sample; None where it was exported without one.

    Raises:
        BundleError: The file is no sample.
    """
    if SELFTEST_FILE not in bundle.manifest.files:
        return None
    path = bundle.file(SELFTEST_FILE)
    views = ("left", "right", "restored")
    names = (*views, "blur_logits") if bundle.manifest.reads_blur_map else views
    try:
        fields = read_npz(path, names, MAX_SAMPLE_BYTES)
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: expected a sample, got something else ({one_line(error)}); {_FIX}") from error
    shape, logits = fields["left"].shape, fields.get("blur_logits")
    fits = all(fields[name].shape == shape and fields[name].dtype == np.uint16 for name in views)
    if len(shape) != 3 or shape[2:] != (3,) or not fits or (logits is not None and not np.isfinite(logits).all()):
        got = ", ".join(f"{name} {array.shape} {array.dtype}" for name, array in fields.items())
        raise BundleError(f"{path}: expected three images (h, w, 3) of uint16 and finite logits, got {got}; {_FIX}")
    return Sample(fields["left"], fields["right"], fields["restored"], logits)


def _runs(bundle: Bundle, only: str | None, absent: dict[str, str]) -> Iterator[tuple[Backend, str]]:
    """The backends that can work here with each precision that the bundle has graphs for, the reference first."""
    names = [only] if only is not None else sorted(BACKENDS, key=lambda name: name != REFERENCE_BACKEND)
    for name in names:
        backend = BACKENDS[name]
        try:
            backend.available()
            precisions = backend.precisions
        except BackendError as error:
            if only is not None:
                raise
            absent[name] = str(error)
            continue
        for precision in sorted(precisions, key=lambda precision: precision != "fp32"):
            graphs = bundle.manifest.graphs.values()
            if precision == "bf16" and not bundle.manifest.bf16:
                absent[f"{name} in bf16"] = "its import found bf16 too inexact or could not try it; auto takes fp32"
                continue
            if isinstance(backend, ChainBackend) or all(graph_precision(precision) in files for files in graphs):
                yield backend, precision


def _test(bundle: Bundle, backend: Backend, precision: str, sample: Sample | None) -> tuple[Outcome, Sample]:
    """One run; without a sample its result becomes the reference of the others."""
    deblurrer = Deblurrer(bundle, backend=backend.name, precision=precision)
    left, right = (sample.left, sample.right) if sample is not None else sample_pair()
    opened = deblurrer(left, right).timings.get("open")  # the first run also compiles, on a GPU
    start = time.perf_counter()
    result = deblurrer(left, right)
    seconds = time.perf_counter() - start
    run = Outcome(backend.name, precision, "reference", open_seconds=opened, run_seconds=seconds)
    if sample is None:
        return run, Sample(left, right, result.restored, result.blur_logits)
    return _judged(run, result, sample, bundle.manifest.parity), sample


def _shapes(made: Result | Sample) -> str:
    arrays = (made.restored, made.blur_logits)
    return " and ".join("none" if array is None else str(array.shape) for array in arrays)


def _judged(run: Outcome, result: Result, sample: Sample, parity: Mapping[str, Any]) -> Outcome:
    """A run compared with the sample."""
    expected, got = (_shapes(made) for made in (sample, result))
    if got != expected:
        return replace(run, verdict="FAIL", reason=f"expected image and blur logits {expected}, got {got}")
    difference = np.abs(result.restored.astype(np.float64) - sample.restored) / _PEAK
    decibel = psnr(result.restored, sample.restored, data_range=_PEAK)
    blur = None
    if sample.blur_logits is not None and result.blur_logits is not None:
        blur = float(np.abs(sigmoid(result.blur_logits) - sigmoid(sample.blur_logits)).max())
    largest = float(difference.max())
    if run.precision == "fp32":
        limit = _gate(parity, "deblur fp32 max abs", FP32_LIMIT) + 1 / _PEAK  # a step of 16 bits
        near, rule = largest <= limit, f"a difference of at most {limit:.2g}, got {largest:.2g}"
    else:
        fixed = {"bf16": BF16_LIMIT_DB, "int8": INT8_LIMIT_DB}
        limit = fixed.get(run.precision) or _gate(parity, "chain fp16 PSNR in dB", FP16_LIMIT_DB)
        near, rule = decibel >= limit, f"at least {limit:g} dB, got {decibel:.1f}"
    blur_limit = BLUR_LIMITS[run.precision]
    reasons = [] if near else [f"restored image: expected {rule}"]
    if blur is not None and not blur <= blur_limit:
        reasons.append(f"blur map: expected a difference of at most {blur_limit:g}, got {blur:.2g}")
    return replace(
        run,
        verdict="FAIL" if reasons else "pass",
        reason="; ".join(reasons),
        max_difference=largest,
        mean_difference=float(difference.mean()),
        psnr_db=decibel if math.isfinite(decibel) else None,
        blur_difference=blur,
    )


def _gate(parity: Mapping[str, Any], name: str, default: float) -> float:
    """The limit of a gate that the bundle passed at export."""
    for gate in parity.get("gates", ()):
        if gate.get("name") == name:
            return float(gate["limit"])
    return default
