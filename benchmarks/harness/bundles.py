"""Bundles to measure: by name or folder, or with random weights of the paper's sizes; and their modules in torch.

No trained weights of the paper's networks are public in this form, and time does not depend on the weights' values. So
``small`` and ``large`` are measured with random weights and a random CLIP of the paper's architecture; such a bundle is
exported once and kept in LDP's cache, under a key made from the exporter's sources.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness import ROOT
from benchmarks.harness.results import BenchmarkError
from ldp_runtime.bundle.bundle import Bundle
from ldp_runtime.bundle.find import find_bundle
from ldp_runtime.bundle.manifest import MANIFEST_FILE
from ldp_runtime.cache import cache_folder

if TYPE_CHECKING:
    from ldp_export.model import ExportModel

CLIP_ARCHITECTURE = "ViT-B-32-quickgelu"
"""The paper's CLIP (Section 4.1)."""

CHECKPOINTS = "checkpoints"


def keep_deblur_graph(network: Any, multiple: int, path: Path, *, half: bool, blur_map: bool = True) -> None:
    """Exports the deblurring graph of a network to a file of the cache, in one step.

    Args:
        network: See ``ldp_export.bundling.onnx_graphs.deblur_graph``, also for ``multiple``, ``half``, ``blur_map``.
        multiple: H and W are multiples of this many px.
        path: The ONNX file.
        half: FP16 inside.
        blur_map: The graph has an input for the blur.
    """
    from ldp_export.bundling.onnx_graphs import deblur_graph, save_graph

    partial = path.with_name(f"partial-{os.getpid()}-{path.name}")
    try:
        save_graph(deblur_graph(network.eval(), multiple, half=half, blur_map=blur_map), partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def open_bundle(bundle: str | None, config: str | None) -> Bundle:
    """The bundle of ``--bundle`` or ``--config``.

    Args:
        bundle: A name or folder; ldp-nano if None.
        config: A name of ``ldp_export.network.CONFIGS`` for random weights in place of ``bundle``.

    Raises:
        LDPError: The bundle is missing or damaged, or random weights cannot be exported.
    """
    return Bundle.load(find_bundle(bundle or "ldp-nano") if config is None else random_bundle(config))


def random_bundle(config: str) -> Path:
    """Folder of a bundle with random weights, exported if the cache does not have it.

    Args:
        config: A name of ``ldp_export.network.CONFIGS``.

    Raises:
        LDPError: There is no such config, no cache folder, or the export failed.
    """
    folder = export_folder(exporter_key())
    path = folder / f"ldp-{config}-random"
    if not (path / MANIFEST_FILE).is_file():
        from ldp_export.bundling.onnx_graphs import ParityError, export_bundle
        from ldp_export.model import random_model

        model = random_model(config, CLIP_ARCHITECTURE)
        try:
            export_bundle(model, path, path.name, report=lambda line: print(f"export: {line}", file=sys.stderr))
        except ParityError as error:
            raise BenchmarkError(f"the export of {config} failed: {error}; fix the exporter") from error
        for stale in set(folder.parent.glob(f"*/{path.name}")) - {path}:  # of other sources; half a gigabyte each
            shutil.rmtree(stale, ignore_errors=True)
    return path


def reference_model(bundle: Bundle, checkpoint: Path | None = None) -> ExportModel:
    """The torch modules that a bundle was exported from, with its weights and windows.

    Args:
        bundle: The bundle.
        checkpoint: Its checkpoint's folder; if None, ``find_checkpoint``, or random weights from the same seed.

    Raises:
        LDPError: There is no checkpoint, or its network is another.
    """
    from ldp_export.checkpoint import Checkpoint
    from ldp_export.model import model_from_checkpoint, random_model

    manifest = bundle.manifest
    clip = manifest.require_clip()
    windows: dict[str, Any] = {"window": clip.window, "overlap": clip.overlap}
    if checkpoint is None and manifest.training.get("weights") == "random" and clip.weights == "random":
        model = random_model(
            str(manifest.network.get("name")),
            clip.architecture,
            seed=int(manifest.training.get("seed", 0)),
            **windows,
        )
    else:
        folder = checkpoint or find_checkpoint(bundle)
        if folder is None:
            raise BenchmarkError(
                f"expected the checkpoint of {manifest.name} in models/checkpoints/{manifest.name}, got none; give it "
                "with --checkpoint"
            )
        model = model_from_checkpoint(Checkpoint.open(folder), **windows)
    ours, theirs = model.network.config.to_dict(), dict(manifest.network)
    if any(ours.get(key, value) != value for key, value in theirs.items()):
        raise BenchmarkError(
            f"expected the network that {manifest.name} was exported from, {theirs}, got {ours}; give its checkpoint "
            "with --checkpoint, or export the bundle again"
        )
    return model


def find_checkpoint(bundle: Bundle) -> Path | None:
    """The folder ``checkpoints/NAME`` beside the bundle, or in the repository's ``models``; None if there is none."""
    for folder in (bundle.path.parent, ROOT / "models"):
        path = folder / CHECKPOINTS / bundle.manifest.name
        if path.is_dir():
            return path
    return None


def has_reference(bundle: Bundle, checkpoint: Path | None = None) -> bool:
    """Whether ``reference_model`` finds weights, without loading them."""
    manifest = bundle.manifest
    random = manifest.training.get("weights") == "random" and manifest.require_clip().weights == "random"
    return checkpoint is not None or random or find_checkpoint(bundle) is not None


def export_folder(*parts: str) -> Path:
    """A folder of LDP's cache for exported graphs.

    Raises:
        BenchmarkError: There is no cache.
    """
    folder = cache_folder("benchmarks", *parts)
    if folder is None:
        raise BenchmarkError("expected a cache folder for exported graphs, got none; set LDP_CACHE to one")
    return folder


def exporter_key() -> str:
    """A key that changes with the exporter's sources, and so with anything that could change an exported bundle."""
    package = ROOT / "ldp_export"
    names = ("checkpoint.py", "blur_map.py", "model.py", "bundling/onnx_graphs.py", "bundling/parity.py")
    wings = (path for wing in ("network", "clip") for path in (package / wing).rglob("*.py"))
    return sources_key([*wings, *(package / name for name in names)])


def sources_key(paths: Iterable[Path]) -> str:
    """A key that changes with the content of files."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
