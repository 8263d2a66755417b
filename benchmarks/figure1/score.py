"""Accuracy on real pairs, for bundles with trained weights."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ldp_runtime.bundle.bundle import Bundle


def score_bundles(bundles: Sequence[Bundle], pairs: Path, threads: int | None) -> dict[str, dict[str, Any]]:
    """Scores bundles as ``ldp-export evaluate BUNDLE --data pairs=FOLDER`` does, but for those with random weights.

    Args:
        bundles: The bundles.
        pairs: A folder of pairs with targets, or a CSV of them.
        threads: CPU threads, or None for the backend's own choice.

    Returns:
        Name of the bundle -> ``pairs`` (how many), ``psnr`` and ``center_psnr`` (means in dB, of the restored image and
        of the center view), ``backend``.

    Raises:
        LDPError: The pairs cannot be read or restored, or none has a target.
    """
    from tqdm import tqdm

    from benchmarks.harness.results import BenchmarkError
    from ldp_export.data import find_kind
    from ldp_export.data.layout import open_kind
    from ldp_export.data.pairs import NAME
    from ldp_export.evaluation.report import WHOLE
    from ldp_export.evaluation.score import score_dataset
    from ldp_runtime.deblurrer import Deblurrer

    dataset = open_kind(find_kind(NAME), pairs, "test")
    scores = {}
    for bundle in bundles:
        if bundle.manifest.training.get("weights") == "random":
            continue
        name = bundle.manifest.name
        progress = partial(tqdm, desc=name, total=len(dataset), disable=None, file=sys.stderr)
        report = score_dataset(Deblurrer(bundle, threads=threads), dataset, name, progress=progress)
        figures = report.summary()[WHOLE]
        if "psnr" not in figures:
            raise BenchmarkError(f"expected pairs with targets in {pairs}, got none; give some")
        scores[name] = {
            "pairs": len(report.scores),
            "psnr": figures["psnr"],
            "center_psnr": figures["center_psnr"],
            "backend": f"{report.backend} {report.precision}",
        }
    return scores
