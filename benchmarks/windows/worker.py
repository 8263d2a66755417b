"""One process of the benchmark of windows: it measures bundles whose windows are of one size.

``benchmarks.windows.bench`` runs this module by ``run_spec``.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness import options
from benchmarks.harness.processes import answer_spec
from ldp_runtime.stages.blur_map import upsample_map

if TYPE_CHECKING:
    from ldp_runtime.deblurrer import Deblurrer
    from ldp_runtime.stages.pixels import Image


@dataclass(frozen=True)
class Spec:
    """The work of a process.

    Attributes:
        bundles: Folders of bundles whose windows are of one size.
        backend: ``NAME[:PRECISION]`` of a backend.
        threads: CPU threads, or None for the backend's own choice.
        shape: Height and width of the pair that is timed, in px.
        rounds: Timed runs of each.
        reduce: By what the pair is reduced before CLIP sees it, each measured with every bundle; 1 leaves it as it is.
    """

    bundles: Sequence[str]
    backend: str
    threads: int | None
    shape: tuple[int, int]
    rounds: int
    reduce: Sequence[int]


@dataclass
class Row:
    """Cost and quality of one choice of windows and prompts.

    Attributes:
        ensemble: The prompts that take part.
        window: Side of a window in px.
        overlap: Least px that neighbours share.
        windows: Number of windows of the pair.
        gflop: CLIP's matrix products and convolutions on the pair.
        reduce: By what the pair was reduced before CLIP saw it.
        seconds: Of the blur map of the pair, one per round.
        backend: Its name.
        precision: Its precision.
        quality: Focus setting of the sample -> ``ldp_export.evaluation.evaluate.blur_map_figures``, and ``gain_db`` of
            the restored image over the center view where the pair was not reduced; empty with random weights.
    """

    ensemble: str | int
    window: int
    overlap: int
    windows: int
    gflop: float
    reduce: int = 1
    seconds: list[float] = field(default_factory=list)
    backend: str = ""
    precision: str = ""
    quality: dict[str, dict[str, float]] = field(default_factory=dict)


def measure_here(spec: Spec) -> list[Row]:
    """Measures the bundles of one process in rounds, so that other load on the machine affects all alike."""
    from benchmarks.harness.sample import sample_pair
    from benchmarks.roofline.flops import graph_cost
    from ldp_runtime.bundle.bundle import Bundle
    from ldp_runtime.bundle.engines import clip_shapes
    from ldp_runtime.deblurrer import Deblurrer
    from ldp_runtime.stages.geometry import WindowGrid

    name, precision = options.split_backend(spec.backend)
    opened = [
        Deblurrer(Bundle.load(Path(folder)), backend=name, precision=precision, threads=spec.threads)
        for folder in spec.bundles
    ]
    pairs = {factor: [_reduced(view, factor) for view in sample_pair(spec.shape)] for factor in spec.reduce}
    rows = []
    for deblurrer, factor in itertools.product(opened, spec.reduce):
        manifest, pair = deblurrer.bundle.manifest, pairs[factor]
        clip = manifest.require_clip()
        grid = WindowGrid.cover(
            *manifest.padding.padded_size(*pair[0].shape[:2]),
            window=clip.window,
            overlap=clip.overlap,
            patch=clip.patch,
        )
        shapes = clip_shapes(1, clip.window, manifest.canvases)
        flops = len(grid) * graph_cost(deblurrer.bundle.graph("clip"), shapes).matrix_flops
        rows.append(Row(manifest.ensemble, clip.window, clip.overlap, len(grid), flops / 1e9, factor))
        deblurrer.blur_map(*pair)  # opens the graph
    measured = list(zip(itertools.product(opened, spec.reduce), rows, strict=True))
    for _ in range(spec.rounds):
        for (deblurrer, factor), row in measured:
            timings = deblurrer.blur_map(*pairs[factor]).timings
            row.seconds.append(sum(timings[stage] for stage in ("prepare", "clip", "blur_logits")))
    for (deblurrer, factor), row in measured:
        row.backend, row.precision = deblurrer.backend, deblurrer.precision
        if deblurrer.bundle.manifest.training.get("weights") != "random":
            row.quality = quality(deblurrer, factor)
    return rows


def _reduced(view: Image, factor: int) -> Image:
    """A view whose px are means of ``factor`` x ``factor`` px."""
    import cv2

    h, w = view.shape[:2]
    return view if factor == 1 else cv2.resize(view, (w // factor, h // factor), interpolation=cv2.INTER_AREA)


def quality(deblurrer: Deblurrer, factor: int = 1) -> dict[str, dict[str, float]]:
    """Blur map and restored image of the sample: see ``Row``.

    Args:
        deblurrer: Opened on the bundle.
        factor: By what the pair is reduced before CLIP sees it.
    """
    from ldp_export.evaluation.evaluate import blur_map_figures
    from ldp_export.evaluation.metrics import psnr
    from ldp_export.simulation.samples import MOTORCYCLE, focus_setting
    from ldp_runtime.images.quality import center_view

    found = {}
    for focus in MOTORCYCLE.focus:
        pair = focus_setting(focus)
        if factor > 1:
            result = deblurrer.blur_map(_reduced(pair.left, factor), _reduced(pair.right, factor))
            cell = deblurrer.bundle.manifest.blur_cell * factor
            found[focus] = blur_map_figures(upsample_map(result.blur_logits, pair.coc.shape, cell), pair.coc)
            continue
        result = deblurrer(pair.left, pair.right)
        center = center_view(pair.left, pair.right)
        before, after = (psnr(image, pair.target, data_range=255) for image in (center, result.restored))
        found[focus] = {**blur_map_figures(result.blur_map, pair.coc), "gain_db": after - before}
    return found


def answer(fields: dict[str, Any]) -> list[dict[str, Any]]:
    """Measures a ``Spec`` in this process; returns the fields of its ``Row``s."""
    return [asdict(row) for row in measure_here(Spec(**{**fields, "shape": tuple(fields["shape"])}))]


if __name__ == "__main__":
    answer_spec(answer)
