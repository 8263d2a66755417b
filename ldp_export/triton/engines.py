"""The engines of the enterprise TensorRT that serve a bundle."""

from __future__ import annotations

import math

from ldp_export.triton.serving import TritonError
from ldp_runtime.bundle.bundle import Bundle
from ldp_runtime.bundle.engines import ENGINE_PRECISION, FLAVOURS, EngineEntry, architecture_number
from ldp_runtime.bundle.trust import is_trusted

_FLAVOUR = "tensorrt"


def served_engines(bundle: Bundle) -> dict[str, dict[str, EngineEntry]]:
    """The engines of the enterprise TensorRT that serve a bundle, those of its latest version, the largest of each GPU.

    Returns:
        By the graph's kind and the GPU's architecture; both kinds have the same architectures.

    Raises:
        TritonError: There are none, or one is not trusted.
    """
    fix = (
        f"build engines of a range of sizes with ldp-export engine {bundle.path} --flavour {_FLAVOUR}, on the GPU and "
        "with the TensorRT that will run them"
    )
    usable = [
        entry
        for entry in bundle.manifest.engines
        if entry.flavour == _FLAVOUR
        and entry.made_from(bundle.graph_hash(entry.kind, ENGINE_PRECISION))
        and not any(shapes.fixed for shapes in entry.profile.values())
        and (bundle.path / entry.file).is_file()
    ]
    version = max((entry.version for entry in usable), key=_version_numbers, default=None)
    found: dict[str, dict[str, EngineEntry]] = {kind: {} for kind in bundle.manifest.graphs}
    for entry in sorted(usable, key=lambda entry: [math.prod(shapes.max) for shapes in entry.profile.values()]):
        if entry.version == version:
            found[entry.kind] |= dict.fromkeys(entry.targets, entry)
    both = sorted(set.intersection(*(set(engines) for engines in found.values())), key=architecture_number)
    if not both:
        have = "; ".join(map(str, bundle.manifest.engines)) or "none"
        raise TritonError(
            f"expected engines of every graph by {FLAVOURS[_FLAVOUR]} in bundle {bundle.manifest.name!r}, got {have}; "
            + fix
        )
    chosen = {kind: {arch: engines[arch] for arch in both} for kind, engines in found.items()}
    for entry in {entry.file: entry for engines in chosen.values() for entry in engines.values()}.values():
        if not is_trusted(entry.sha256):  # Triton itself asks nobody
            raise TritonError(
                f"{bundle.path / entry.file}: this engine is native code and was neither built here nor trusted; if "
                f"you trust where it comes from, run ldp trust {bundle.path}"
            )
    return chosen


def _version_numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".") if part.isdecimal()]
