"""The contenders: backends of the runtime and torch, by name and precision."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.harness import options
from ldp_runtime.errors import BackendError

if TYPE_CHECKING:
    from ldp_runtime.bundle.bundle import Bundle


TORCH = ("torch", "torch-channels-last")

ANY_TENSORRT = "cuda"
"""The backend that picks a TensorRT that works; each of them is compared under its own name."""


@dataclass(frozen=True)
class Contender:
    """A backend of the runtime, or torch in one memory layout, in one precision."""

    backend: str
    precision: str

    @property
    def name(self) -> str:
        """For people and as a key: "openvino bf16"."""
        return f"{self.backend} {self.precision}"


REFERENCE = Contender("torch", "fp32")


def add_contenders(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """Declares the bundle, or with ``several`` bundles, and ``--backend``, for ``find_contenders``."""
    options.add_bundle(parser, several=several)
    options.add_checkpoint(parser)
    parser.add_argument(
        "--backend",
        nargs="+",
        default=["all"],
        metavar="NAME[:PRECISION|:auto]",
        help="backends, or torch (default: everything that works on this machine)",
    )


def find_contenders(
    asked: Sequence[str], bundle: Bundle, checkpoint: Path | None
) -> tuple[list[Contender], dict[str, str]]:
    """The contenders of ``--backend``.

    Args:
        asked: ``NAME``, ``NAME:PRECISION``, ``NAME:auto`` or "all".
        bundle: The bundle, which may lack graphs or torch's weights.
        checkpoint: The checkpoint's folder, or None to look for it.

    Returns:
        The contenders, torch last; and the backends that "all" skips, each with the reason.

    Raises:
        LDPError: A backend asked for by name does not work here.
    """
    from ldp_runtime.registry import BACKENDS

    found: dict[Contender, None] = {}
    skipped: dict[str, str] = {}
    everything = [name for name in BACKENDS if name != ANY_TENSORRT] + [*TORCH]
    names = [name for item in asked for name in (everything if item == "all" else [item])]
    for item in names:
        name, _, precision = item.partition(":")
        if name not in (*BACKENDS, *TORCH):
            raise BackendError(f"expected a backend, one of all, {', '.join((*BACKENDS, *TORCH))}, got {name!r}")
        try:
            have = _torch_precisions(bundle, checkpoint) if name in TORCH else _precisions(name, bundle)
        except BackendError as error:
            if item in asked:
                raise
            skipped[name] = str(error)
            continue
        if precision == "auto":
            precision = have[0]
        if precision and precision not in have:
            raise BackendError(f"expected a precision of {name} here, one of {', '.join(have)}, got {precision!r}")
        found |= {Contender(name, each): None for each in ([precision] if precision else have)}
    if not found:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
        raise BackendError(f"expected a backend that works here, got none: {reasons}")
    return list(found), skipped


def _precisions(name: str, bundle: Bundle) -> tuple[str, ...]:
    """The precisions of a backend with graphs in this bundle."""
    from ldp_runtime.backends.base import graph_precision
    from ldp_runtime.chain import ChainBackend
    from ldp_runtime.registry import BACKENDS

    backend = BACKENDS[name]
    backend.available()
    if isinstance(backend, ChainBackend):
        return backend.precisions
    graphs = bundle.manifest.graphs.values()
    return tuple(p for p in backend.precisions if all(graph_precision(p) in files for files in graphs))


def _torch_precisions(bundle: Bundle, checkpoint: Path | None) -> tuple[str, ...]:
    from benchmarks.harness.bundles import has_reference
    from benchmarks.harness.machine import BF16_FEATURES, describe
    from ldp_runtime.bundle.manifest import BlurMapSpec

    if bundle.manifest.blur_map != BlurMapSpec():
        raise BackendError(
            "torch is not timed on bundles of the released model: its blur map comes from patches of the image"
        )
    if not has_reference(bundle, checkpoint):
        raise BackendError(
            f"torch needs the weights of {bundle.manifest.name} as a checkpoint, and models/checkpoints has none; "
            "give it with --checkpoint"
        )
    try:
        from ldp_export.evaluation.reference import default_device
    except ModuleNotFoundError as error:
        raise BackendError(f"torch needs the package {error.name}; install ldp with the extra export") from error
    if default_device() == "cuda":
        return ("fp32", "fp16", "bf16")
    return ("fp32", "bf16") if BF16_FEATURES & set(describe()["cpu"]["features"]) else ("fp32",)
